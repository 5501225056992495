"""The paper's mechanism on real images, link by link: low density, expansion, error; beside the model's own samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steadyflow.metrics.statistics import Estimate, spearman, wilson

from ..findings import FAILS, HOLDS, OPEN, PARTLY, Claim, Finding, short, shown
from ..studies import Bench
from .correlations import exceeds, kind, median, partial_spearman
from .setting import Amplified, Dense, Problem, RoundTrip, amplified, densities, problem, round_trip


def digits(bench: Bench) -> Finding:
    """Measure on real held-out digits; the densities are exact."""
    return _figure(bench, "digits", bench.size.images, 500)


def faces(bench: Bench) -> Finding:
    """Measure on real held-out faces."""
    return _figure(bench, "faces", 6 if bench.size.quick else 60, 100)


def ink(bench: Bench) -> Finding:
    """Measure on held-out pictures under their captions, in the latents of the bundled pipeline."""
    return _figure(bench, "ink", 6 if bench.size.quick else 24, 100)


@dataclass(frozen=True)
class Chain:
    """What is measured of each image of a group."""

    density: Dense
    amplified: Amplified
    trip: RoundTrip

    def columns(self) -> dict[str, Tensor]:
        """Give the numbers of each image by name."""
        return {
            "density": self.density.value,
            "mean stretch": self.density.mean,
            "E": self.amplified.random,
            "isotropic": self.amplified.isotropic,
            "E along": self.trip.inversion,
            "latent error": self.trip.latent_error,
            "error": self.trip.error,
        }


LINKS = (
    ("density", "mean stretch", -1),
    ("density", "E", -1),
    ("mean stretch", "E", 1),
    ("E", "error", 1),
    ("mean stretch", "error", 1),
    ("density", "error", -1),
)
"""The links of the chain, with the sign that the paper gives them."""
GIVEN = (
    ("density", "error", ("E",), -1),
    ("density", "error", ("mean stretch",), -1),
    ("E", "error", ("density",), 1),
    ("E", "error", ("latent error",), 1),
    ("E along", "error", ("latent error",), 1),
    ("density", "error", ("E", "latent error"), -1),
)
"""Partial correlations: the two, what is given, and the sign without it."""


def measure(bench: Bench, data: Problem, nfe: int, method: str = "euler") -> Chain:
    """Measure all links for the images of a problem."""
    found = amplified(bench, data)
    return Chain(densities(bench, data), found, round_trip(bench, data, found, method, nfe))


def _figure(bench: Bench, name: str, n: int, nfe: int) -> Finding:
    data, nfe = problem(name, n, bench.size.quick), 24 if bench.size.quick else nfe
    own = bench.map(lambda data: data.own(), [data])[0]
    return report(data, measure(bench, data, nfe), measure(bench, own, nfe), nfe)


def report(data: Problem, real: Chain, own: Chain, nfe: int) -> Finding:
    """Judge the claims on a group of real images and one of the model's own samples."""
    columns, control = real.columns(), own.columns()
    n, name = len(columns["error"]), data.name
    rows = [[f"median {key}", str(median(columns[key])), str(median(control[key]))] for key in columns]
    found: dict[tuple[str, ...], Estimate] = {}
    for x, y, _ in LINKS:
        found[x, y] = spearman(columns[x], columns[y])
        rows.append([f"{x}, {y}", shown(found[x, y]), shown(spearman(control[x], control[y]))])
    for x, y, given, _ in GIVEN:
        e = partial_spearman(columns[x], columns[y], [columns[key] for key in given])
        other = partial_spearman(control[x], control[y], [control[key] for key in given])
        found[(x, y, *given)] = e
        rows.append([f"{x}, {y} given {' and '.join(given)}", shown(e), shown(other)])
    below = exceeds(-columns["density"], -control["density"])
    worse = exceeds(columns["error"], control["error"])
    expanding = wilson(int((columns["mean stretch"] > 0.0).sum()), n)
    least = (columns["density"] <= columns["density"].quantile(0.25)).nonzero()[:, 0]
    low = median(columns["error"][least]).value / median(columns["error"]).value
    step_density, step_error = found["density", "E"], found["E", "error"]
    rest, alone = found["density", "error", "E"], found["E", "error", "latent error"]
    claims = [
        Claim(
            "mechanism 2",
            "images of low density have a large Jacobian determinant",
            "low density needs large determinants; no number in the sources at hand",
            f"rank correlation of log density with mean stretch {shown(found['density', 'mean stretch'])}, with the "
            f"coefficient along random directions {shown(step_density)}",
            _both(kind(found["density", "mean stretch"], -1), kind(step_density, -1)),
        ),
        Claim(
            "mechanism 2",
            "at real images the map expands: p_gen(x) is below p_prior(z)",
            "real images lie where p_gen is low",
            f"the geometric mean stretch is above 1 for {short(expanding)} of {n} images; its median is "
            f"{median(columns['mean stretch'].exp())}",
            HOLDS if expanding.low > 0.5 else FAILS if expanding.high < 0.5 else OPEN,
        ),
        Claim(
            "mechanism 1",
            "images with a larger coefficient are reconstructed worse, even at equal errors of the latent",
            "strong positive correlation",
            f"rank correlation of coefficient and error {shown(step_error)}; given the latent's error {shown(alone)}",
            _both(kind(step_error), kind(alone)),
        ),
        Claim(
            "mechanism 2",
            "images of low density are reconstructed worse, and expansion is the reason",
            "the chain low density, expansion, error",
            f"rank correlation of log density and error {shown(found['density', 'error'])}; given the coefficient "
            f"{shown(rest)}; the median error of the quarter of lowest density is {low:.2f} times that of all images",
            _mediated(found["density", "error"], rest),
        ),
        Claim(
            "failure signature",
            "real images lie where the model's density is low, and are reconstructed worse",
            "pi_real puts mass where pi_gen is low",
            f"a real image has a lower density than one of the model's own samples in {shown(below, '{:.0%}')} of the "
            f"pairs, and a larger error in {shown(worse, '{:.0%}')}",
            _both(_above(below), _above(worse)),
        ),
    ]
    error = float(real.density.error.median())
    how = "the exact divergence" if data.probes is None else f"{data.probes} probes (standard error {error:.3f})"
    note = (
        f"{n} real images and {n} of the model's own samples under the same conditions: medians, then rank "
        "correlations and partial rank correlations of the quantities named, with 95 % bootstrap intervals. Density: "
        f"ln p_gen(x) divided by the dimension, {data.dim}, from {how}. Mean stretch: ln |det J| divided by the "
        f"dimension. E: the mean coefficient along {data.directions} random directions; isotropic: its root mean "
        "square; E along: the coefficient along the error of the inversion. Errors are those of Euler's round trip at "
        f"{nfe} evaluations each way" + (", in the latents." if name == "ink" else ".")
    )
    return Finding(
        f"chain-{name}",
        f"Density, expansion and error, {name}",
        claims,
        ["quantity", "real images", "the model's own samples"],
        rows,
        note=note,
    )


def _both(first: str, second: str) -> str:
    """Give the verdict on two links that must both be there."""
    if first == second == "yes":
        return HOLDS
    if "yes" in (first, second):
        return PARTLY
    return FAILS if "no" in (first, second) else OPEN


def _mediated(whole: Estimate, rest: Estimate) -> str:
    """Give the verdict on a link that is to go by way of another: there without it, and gone given it."""
    if kind(whole, -1) != "yes":
        return {"no": FAILS, "open": OPEN}[kind(whole, -1)]
    return HOLDS if kind(rest, -1) == "open" else PARTLY


def _above(share: Estimate) -> str:
    return "yes" if share.low > 0.5 else "no" if share.high < 0.5 else "open"
