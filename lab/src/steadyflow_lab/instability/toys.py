"""What is exact, on mixtures: where the map expands, the theorem in up to 1024 dimensions, and the conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from steadyflow import grids, solvers
from steadyflow.denoisers import GaussianMixture
from steadyflow.diagnostics.amplification import coefficient
from steadyflow.grids import Grid
from steadyflow.jacobians import FlowMap
from steadyflow.metrics.statistics import Estimate, wilson
from steadyflow.schedules import RectifiedFlow, Schedule, VPLinear
from steadyflow.tasks import invert

from ..findings import FAILS, HOLDS, PARTLY, Claim, Curve, Finding, curve, percent, short, verdict
from ..studies import Bench
from ..theory import instability as theory
from .setting import direction

SPREADS = (0.5, 0.4, 0.3, 0.2, 0.15)
DIMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Toy:
    """The stretch of the generation map at samples."""

    x: Tensor
    """The samples, shape (n, d)."""
    values: Tensor
    """The singular values of the map's Jacobian there, falling, shape (n, d)."""
    log_det: Tensor
    """ln |det J|, shape (n,)."""
    ratio: Tensor
    """ln p_prior(z) - ln p_gen(x), shape (n,)."""
    near: Tensor
    """The distance to the nearest mode, in spreads, shape (n,)."""
    inside: Tensor
    """Whether the sample is between the modes, in their convex hull, shape (n,)."""


def toy(modes: int, spread: float, own: bool, n: int = 1000, steps: int = 64) -> Toy:
    """Compute the stretch of two modes at -1 and 1 on a line, or of more on a circle in the plane.

    own: at samples of the model; else at points uniform over [-3, 3]^d.
    """
    mixture, schedule = _modes(modes, spread), VPLinear()
    if own:
        x = mixture.marginal(schedule, schedule.t_min).sample(n)
    else:
        generator = torch.Generator().manual_seed(0)
        x = 6.0 * torch.rand(n, mixture.dim, dtype=torch.float64, generator=generator) - 3.0
    values, log_det, z = _stretches(mixture, schedule, x, steps)
    if modes == 2:
        inside = x[:, 0].abs() < 1.0
    else:
        half = torch.pi / modes
        angles = half + 2.0 * half * torch.arange(modes, dtype=torch.float64)  # of the polygon's edges
        inside = (x @ torch.stack([angles.cos(), angles.sin()]) < 1.5 * math.cos(half)).all(1)
    ratio = theory.log_amplification(mixture, schedule, z, x)
    return Toy(x, values, log_det, ratio, torch.cdist(x, mixture.means).amin(1) / spread, inside)


def _modes(modes: int, spread: float) -> GaussianMixture:
    if modes == 2:
        return GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), spread)
    angles = torch.arange(modes, dtype=torch.float64) * (2.0 * torch.pi / modes)
    return GaussianMixture(1.5 * torch.stack([angles.cos(), angles.sin()], 1), spread)


def _stretches(
    mixture: GaussianMixture, schedule: Schedule, x: Tensor, steps: int, pieces: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the singular values of the generation map at the latents of x, ln |det J|, and the latents.

    They are those of the way up, inverted: where the generation map expands greatly, its own run from a rounded latent
    would end elsewhere. The way up is taken in pieces, for no number has the digits of a Jacobian that stretches some
    directions 1e20 times as much as others: the logarithms of the pieces' determinants are added.
    """
    times = grids.make("quadratic", schedule, steps).reversed().times
    model, method, each = mixture.denoiser(schedule), solvers.get("rk4"), max(1, steps // pieces)
    jacobian = torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
    log_det, z = torch.zeros(len(x), dtype=x.dtype), x
    for first in range(0, steps, each):
        up = FlowMap(model, Grid(times[first : first + each + 1]), method)
        dense = up.dense(z)
        jacobian, log_det = jacobian @ torch.linalg.inv(dense), log_det - torch.linalg.slogdet(dense).logabsdet
        z = up(z)
    return torch.linalg.svdvals(jacobian), log_det, z


def toys(bench: Bench) -> Finding:
    """Find where the map of small mixtures expands, and how that follows the spread of the modes."""
    n = 1000 if bench.size.quick else 8000
    settings = [(modes, spread, own) for modes in (2, 5) for spread in SPREADS for own in (True, False)]
    found = dict(zip(settings, bench.map(lambda setting: toy(*setting, n=n), settings), strict=True))
    rows, between, beyond, own = [], [], [], []
    for modes in (2, 5):
        for spread in SPREADS:
            drawn, seen = found[modes, spread, True], found[modes, spread, False]
            far = seen.near > 3.0
            own.append(_share(drawn.values[:, 0] > 1.0))
            between.append(_share(seen.values[far & seen.inside, 0] > 1.0) if (far & seen.inside).any() else None)
            beyond.append(_share(seen.values[far & ~seen.inside, 0] > 1.0))
            peak = theory.midpoint_stretch(VPLinear(), spread, 2.0) if modes == 2 else float(seen.values.max())
            shown = "no points" if between[-1] is None else short(between[-1])
            rows.append([str(modes), f"{spread:g}", shown, short(beyond[-1]), short(own[-1]), f"{peak:.3g}"])
    lines = [_slope(spread) for spread in SPREADS]
    peaks = [theory.midpoint_stretch(VPLinear(), spread, 2.0) for spread in SPREADS]
    known = [e for e in between if e is not None]
    claims = [
        Claim(
            "experiment 3",
            "the map expands between the modes",
            "large gradients where density is low; no number in the sources at hand",
            f"in the modes' convex hull, more than 3 spreads from each, it expands at {_range(known)} of the points",
            verdict(all(e.low > 0.5 for e in known), PARTLY),
        ),
        Claim(
            "mechanism 2",
            "low density means expansion",
            "to preserve mass, low-density regions need large gradients",
            f"outside the hull, more than 3 spreads from each mode, it expands at {_range(beyond)} of the points; at "
            "the others the density of the latent is lower still",
            verdict(all(e.low > 0.5 for e in beyond), PARTLY if any(e.low > 0.5 for e in beyond) else FAILS),
        ),
        Claim(
            "mechanism 2",
            "the sparser the distribution, the larger the gradients",
            "no number in the sources at hand",
            f"the largest slope for two modes at distance 2 rises from {peaks[0]:.3g} at spread {SPREADS[0]:g} to "
            f"{peaks[-1]:.3g} at {SPREADS[-1]:g} (closed form)",
            verdict(peaks == sorted(peaks)),
        ),
        Claim(
            "ours",
            "the sparser the distribution, the fewer of its own samples lie where the map expands",
            "",
            f"two modes: {short(own[0])} at spread {SPREADS[0]:g}, {short(own[len(SPREADS) - 1])} at {SPREADS[-1]:g}",
            verdict(
                all(b.value < a.value for half in (own[: len(SPREADS)], own[len(SPREADS) :]) for a, b in pairwise(half))
            ),
        ),
    ]
    return Finding(
        "toys",
        "Where the map of a mixture expands",
        claims,
        ["modes", "spread", "between the modes", "outside", "the model's own samples", "largest stretch"],
        rows,
        note="Share of points at which the largest singular value is above 1. Two modes at distance 2 on a line, or "
        f"five on a circle in the plane; {n} samples of the model itself, and as many points uniform over [-3, 3]^d, "
        "of which those within 3 spreads of a mode are left out. The curves show the slope on the line.",
        curves=[Curve(f"spread {s:g}", *line) for s, line in zip(SPREADS, lines, strict=True)],
        axes=("latent z", "dG/dz"),
        scales=("linear", "log"),
    )


def _slope(spread: float) -> tuple[list[float], list[float]]:
    """Give the slope of the map of two modes at distance 2, in closed form."""
    z, schedule = torch.linspace(-3.0, 3.0, 121, dtype=torch.float64), VPLinear()
    x = theory.pair_map(schedule, spread, 2.0, z)
    return z.tolist(), theory.pair_stretch(schedule, spread, 2.0, z, x).tolist()


def _range(shares: Sequence[Estimate]) -> str:
    values = [e.value for e in shares]
    low, high = (f"{v:.3g} %" for v in (100.0 * min(values), 100.0 * max(values)))
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Share:
    """How often a data point lies where the generation map expands."""

    dim: int
    data: str
    """"real" (uniform over a cube that holds the modes) or "generated" (from the model itself)."""
    std: float
    geometric: Estimate
    """Share of points with geometric mean amplification above 1."""
    random: Estimate
    """Share of points with an amplification above 1 along a random direction."""


def shares(dim: int, std: float, *, n: int = 400, modes: int = 8, steps: int = 48) -> list[Share]:
    """Measure how certain expansion is in a dimension: the theorem, for real data of density bounded below.

    Real data are uniform over the cube [-1.5, 1.5]^d; the model generates a mixture of `modes` modes in it, of spread
    std. The geometric mean at x is (p_prior(z) / p_gen(x))^(1/d), both densities in closed form but for the latent,
    which is found by RK4. The same of points from the model itself is the control.
    """
    generator = torch.Generator().manual_seed(dim)
    means = 2.0 * torch.rand(modes, dim, generator=generator, dtype=torch.float64) - 1.0
    mixture = GaussianMixture(means, std)
    model, rows = mixture.denoiser(VPLinear()), []
    uniform = 3.0 * torch.rand(n, dim, generator=generator, dtype=torch.float64) - 1.5
    clean = mixture.marginal(model.schedule, model.schedule.t_min)
    for data, x in (("real", uniform), ("generated", clean.sample(n))):
        inversion = invert(model, x, solver="rk4", steps=steps, progress=False)
        z = inversion.latent
        expands = theory.log_amplification(mixture, model.schedule, z, x) > 0.0
        generation = FlowMap(model, inversion.grid.reversed(), solvers.get("rk4"))
        along = coefficient(generation, z, direction(z, 0, 0))
        rows.append(Share(dim, data, std, _share(expands), _share(along > 1.0)))
    return rows


def theorem(bench: Bench) -> Finding:
    """Show how certain expansion gets with the dimension."""
    dims, n = ((1, 4, 16, 64), 100) if bench.size.quick else (DIMS, bench.size.n)
    settings = [(dim, std) for std in (0.3, 0.1) for dim in dims]
    work = partial(_of, n=n)
    found = [row for rows in bench.map(work, settings) for row in rows]
    real = {std: [r for r in found if r.std == std and r.data == "real"] for std in (0.3, 0.1)}
    control = [r for r in found if r.data == "generated"]
    last = {std: rows[-1] for std, rows in real.items()}
    certain = all(r.geometric.low > 0.9 and r.geometric.low > real[std][0].geometric.high for std, r in last.items())
    words = "; ".join(
        f"spread {std:g}: {short(real[std][0].geometric)} in 1 dimension, {short(r.geometric)} in {r.dim}"
        for std, r in last.items()
    )
    alone = [r for r in control if r.dim == dims[-1]]
    claims = [
        Claim(
            "theorem",
            "for data with finite support and a density bounded below, the probability of instability tends to 1",
            "converges to 1 as the dimension grows",
            f"share of points with a geometric mean above 1: {words}",
            verdict(certain, PARTLY),
        ),
        Claim(
            "ours",
            "the cause is data that the model would hardly generate, not the dimension",
            "",
            f"share of the model's own samples with a geometric mean above 1 in {dims[-1]} dimensions: "
            + "; ".join(f"spread {r.std:g}: {short(r.geometric)}" for r in alone),
            verdict(all(r.geometric.high < 0.1 for r in alone)),
        ),
    ]
    curves = [
        curve(f"{data}, spread {std:g}", [r.dim for r in line], [r.geometric for r in line])
        for std in (0.3, 0.1)
        for data in ("real", "generated")
        for line in [[r for r in found if (r.std, r.data) == (std, data)]]
    ]
    return Finding(
        "theorem",
        "Expansion by dimension",
        claims,
        ["spread", "data", "dimension", "geometric mean > 1", "random direction > 1"],
        [[f"{r.std:g}", r.data, str(r.dim), short(r.geometric), short(r.random)] for r in found],
        note=f"{n} points each. Real: uniform over the cube [-1.5, 1.5]^d; the model has 8 modes at random places in "
        "it, drawn anew for each dimension. Generated: the model's own samples.",
        curves=curves,
        axes=("dimension", "share of points with geometric mean amplification > 1"),
        scales=("log", "linear"),
    )


def _of(setting: tuple[int, float], n: int) -> list[Share]:
    return shares(*setting, n=n)


def conditions(bench: Bench) -> Finding:
    """Hold the closed conditions for expansion against whole Jacobians."""
    quick = bench.size.quick
    paths: list[tuple[str, Schedule]] = [("vp", VPLinear()), ("flow", RectifiedFlow())]
    settings = [(path, spread) for path in paths for spread in ((0.1, 0.3) if quick else (0.05, 0.1, 0.2, 0.3))]
    pairs = bench.map(lambda setting: _pair(setting[0][1], setting[1]), settings)
    dims = (2, 4) if quick else (2, 4, 8)
    n = 50 if quick else 100
    mixtures = bench.map(lambda setting: _identity(*setting, n=n), [(dim, s) for dim in dims for s in (0.2, 0.3)])
    rows = [
        [f"two modes, {name}", f"{spread:g}", f"{p.threshold:.4g}", f"{p.found:.4g}", f"{p.worst:.1e}", ""]
        for ((name, _), spread), p in zip(settings, pairs, strict=True)
    ]
    for (dim, spread), m in zip([(d, s) for d in dims for s in (0.2, 0.3)], mixtures, strict=True):
        rows.append([f"6 modes, {dim} dimensions", f"{spread:g}", "", "", f"{m.worst:.1e}", percent(m.agrees)])
    off = max(abs(p.found / p.threshold - 1.0) for p in pairs)
    agree = sum(round(m.agrees.value * 2 * n) for m in mixtures), 2 * n * len(mixtures)
    agreed = wilson(*agree)
    claims = [
        Claim(
            "open question 1",
            "the map expands in the geometric mean at x if and only if p_gen(x) < p_prior(z)",
            "asks for necessary and sufficient conditions",
            f"the sign of ln p_prior(z) - ln p_gen(x) is that of ln |det J| at {agree[0]} of {agree[1]} points of "
            f"mixtures, {percent(agreed)}",
            verdict(agreed.low > 0.99, PARTLY),
        ),
        Claim(
            "open question 1",
            "the map of two equal modes at distance l expands somewhere if and only if l^2 > 4 ln(V1/V0) / D; on a "
            "variance-preserving path this is nearly l > spread sqrt(8 ln(1/spread))",
            "asks for necessary and sufficient conditions",
            f"the distance at which the stretch at the midpoint passes 1 agrees with this to within a relative "
            f"{off:.1e}",
            verdict(off < 1e-3, FAILS),
        ),
        Claim(
            "open question 1",
            "the map of modes of equal spread whose means all lie within that distance of each other expands nowhere",
            "asks for necessary and sufficient conditions",
            f"the largest singular value at {sum(m.points for m in mixtures)} points is at most "
            f"{max(m.reach for m in mixtures):.1%} of its bound, the midpoint stretch at the largest distance of means",
            HOLDS if all(m.reach <= 1.0 + 1e-6 for m in mixtures) else FAILS,
        ),
    ]
    return Finding(
        "conditions",
        "When the map expands, in closed form",
        claims,
        ["model", "spread", "threshold l", "found by bisection", "largest error of ln stretch", "sign agrees"],
        rows,
        note="Jacobians by RK4 (96 steps; 192 for six modes), compared with `theory.instability`. Two modes: the error "
        "is that of the stretch along their line at 100 latents, with the modes at 1.5 times the threshold. Six modes "
        "at random places: that of ln |det J| divided by the dimension, at samples of the model and at points uniform "
        "in the cube.",
    )


@dataclass(frozen=True)
class _Pair:
    threshold: float
    found: float
    worst: float


def _map(mixture: GaussianMixture, schedule: Schedule, steps: int = 96) -> FlowMap:
    return FlowMap(mixture.denoiser(schedule), grids.make("quadratic", schedule, steps), solvers.get("rk4"))


def _two(spread: float, length: float) -> GaussianMixture:
    means = torch.tensor([[-0.5 * length, 0.0], [0.5 * length, 0.0]], dtype=torch.float64)
    return GaussianMixture(means, spread)


def _pair(schedule: Schedule, spread: float) -> _Pair:
    """Find the distance at which two modes begin to expand at their midpoint, and check the stretch elsewhere."""
    expected = theory.expansion_threshold(schedule, spread)
    low, high = 0.5 * expected, 2.0 * expected
    for _ in range(14):
        middle = 0.5 * (low + high)
        stretch = _along(_two(spread, middle), schedule, torch.zeros(1, 2, dtype=torch.float64))[0]
        low, high = (middle, high) if stretch < 1.0 else (low, middle)
    length = 1.5 * expected
    z = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, along = _map(_two(spread, length), schedule)(z), _along(_two(spread, length), schedule, z)
    closed = theory.pair_stretch(schedule, spread, length, z[:, 0], x[:, 0])
    return _Pair(expected, 0.5 * (low + high), float((along.log() - closed.log()).abs().max()))


def _along(mixture: GaussianMixture, schedule: Schedule, z: Tensor) -> Tensor:
    """Give the map's stretch of the first axis at latents z."""
    axis = torch.zeros_like(z)
    axis[:, 0] = 1.0
    return _map(mixture, schedule).jvp(z, axis)[:, 0]


@dataclass(frozen=True)
class _Identity:
    agrees: Estimate
    worst: float
    reach: float
    points: int


def _identity(dim: int, spread: float, n: int) -> _Identity:
    """Compare ln |det J| with the densities' ratio at samples and at uniform points, and the largest stretch."""
    generator = torch.Generator().manual_seed(dim)
    mixture = GaussianMixture(2.0 * torch.rand(6, dim, generator=generator, dtype=torch.float64) - 1.0, spread)
    schedule = VPLinear()
    uniform = 3.0 * torch.rand(n, dim, generator=generator, dtype=torch.float64) - 1.5
    x = torch.cat([mixture.marginal(schedule, schedule.t_min).sample(n), uniform])
    values, measured, z = _stretches(mixture, schedule, x, 192)
    exact = theory.log_amplification(mixture, schedule, z, x)
    bound = theory.midpoint_stretch(schedule, spread, theory.diameter(mixture))
    agrees = (measured > 0.0) == (exact > 0.0)
    worst = float((measured - exact).abs().max()) / dim
    return _Identity(_share(agrees), worst, math.exp(float(values.max().log()) - math.log(bound)), 2 * n)


def _share(events: Tensor) -> Estimate:
    return wilson(int(events.sum()), len(events))
