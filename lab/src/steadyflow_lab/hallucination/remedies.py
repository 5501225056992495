"""Images, detectors, and the comparison of remedies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steadyflow._integrate import StepInfo
from steadyflow.diagnostics.detectors import TrajectoryVariance, roc_area
from steadyflow.jacobians import largest_singular_value
from steadyflow.metrics import count_shapes, sliced_wasserstein
from steadyflow.metrics.statistics import Estimate, wilson
from steadyflow.models import load

from ..findings import RATE, Claim, Finding, decide, percent, short, verdict
from ..studies import Bench
from ..theory import interpolation as theory
from .drawing import Request, draw, invalid, run
from .setting import DDPM, UNIT, Method, ddim, learned, remedies, thinned

_IMAGES = 50
"""Pictures per piece of work."""
DDPM_250 = Method("DDPM-250", "ddpm", thinned)


@dataclass(frozen=True)
class Count:
    """What a method made of some pictures."""

    wrong: int
    n: int
    evaluations: float
    held: int | None = None
    """How many were held at a saddle; None where nothing was examined."""

    @property
    def share(self) -> Estimate:
        """The share of pictures with a wrong count of shapes."""
        return wilson(self.wrong, self.n)

    def __add__(self, other: Count) -> Count:
        total = self.n + other.n
        mean = (self.evaluations * self.n + other.evaluations * other.n) / total
        held = None if self.held is None or other.held is None else self.held + other.held
        return Count(self.wrong + other.wrong, total, mean, held)


def counted(bench: Bench, figure: str, jobs: Sequence[tuple[str, Method]], n: int) -> list[Count]:
    """Draw n pictures of triangles for each (model, method), in pieces that are kept, and count their shapes."""
    firsts, seed = range(0, n, _IMAGES), bench.size.seed
    items = [
        (f"{name}-{method.label}-{first}".replace(" ", "_"), (name, method, first))
        for name, method in jobs
        for first in firsts
    ]

    def one(item: tuple[str, Method, int]) -> Count:
        name, method, first = item
        few = min(_IMAGES, n - first)
        (drawn,) = draw(load(name), [Request(method, few, seed + 1000 * (1 + first), batch=few)])
        held = None if drawn.record is None else drawn.record.flagged
        return Count(int((count_shapes(drawn.x) != 3).sum()), few, drawn.evaluations, held)

    found = bench.cells(figure, one, items, lambda fields: Count(**fields))
    per = len(firsts)
    return [sum(found[k + 1 : k + per], found[k]) for k in range(0, len(found), per)]


def figure_e10(bench: Bench) -> Finding:
    """Measure the share of images of triangles with a wrong count, over training epochs."""
    names = ("triangles-20", "triangles-40", "triangles")
    jobs = [(name, method) for name in names for method in (ddim(), DDPM_250)]
    shares = [c.share for c in counted(bench, "E.10", jobs, bench.size.images // 2)]
    pairs = list(zip(shares[::2], shares[1::2], strict=True))
    apart = [quick.low > slow.high for quick, slow in pairs]
    words = "; ".join(f"{short(quick)} against {short(slow)}" for quick, slow in pairs)
    claim = Claim(
        "figure E.10",
        "throughout training, DDIM miscounts triangles more often than DDPM",
        "consistently, across epochs; no number in the text",
        f"after 20, 40 and 80 epochs: {words}",
        decide(apart, (quick.high < slow.low for quick, slow in pairs)),
    )
    rows = [[name, *(percent(share) for share in pair)] for name, pair in zip(names, pairs, strict=True)]
    return Finding(
        "E.10",
        "Images of three triangles with a wrong count",
        [claim],
        ["model (epochs; without a number, 80)", "DDIM-50", "DDPM-250"],
        rows,
        note="DDPM takes every fourth timestep.",
    )


def detection(bench: Bench) -> Finding:
    """Compare the detectors that know no modes with the exact classification."""
    rows, best = [], {}
    for name in ("mixture25", "mixture25-8d", "mixture25-32d"):
        n = min(bench.size.n, 50_000) // (1 if name == "mixture25" else 5)
        (outcome,) = run(learned(name), [Request(ddim(), n, bench.size.seed, watch=_Detectors)], bench.engine)
        assert outcome.found is not None  # it was watched
        belongs = outcome.classes.kind != theory.INVALID
        positive = (outcome.classes.kind == theory.INTERPOLATED)[belongs]
        if not bool(positive.any()):
            rows.append([name, "no interpolated sample", "", "", ""])
            continue
        areas = [roc_area(scores, positive) for scores in outcome.found[belongs].T]
        best[name] = areas
        rows.append([name, *(f"{area:.4f}" for area in areas)])
    plane = best.get("mixture25", [0.0] * 4)
    claim = Claim(
        "ours",
        "in the plane, the stretch of the clean prediction finds interpolated samples without knowledge of the modes",
        "",
        f"area under the ROC curve {max(plane[1:]):.3f}; {plane[0]:.3f} for the variance of Aithal et al.; but "
        + ", ".join(f"{max(best[k][1:]):.2f} in {k.split('-')[1]}" for k in best if "-" in k),
        verdict(max(plane[1:]) > 0.99),
    )
    heads = ["model", "variance of x0 (Aithal et al.)", "stretch with 4 steps left", "with 6 left", "with 8 left"]
    return Finding("detector", "ROC area of detectors of interpolated samples", [claim], heads, rows)


class _Detectors:
    """A watch with one column per detector: the variance, and the stretch with 4, 6 and 8 steps left."""

    def __init__(self):
        self._variance = TrajectoryVariance(10)
        self._stretches: dict[int, Tensor] = {}

    def __call__(self, info: StepInfo) -> None:
        self._variance(info)
        left = info.remaining
        if left in (4, 6, 8):
            self._stretches[left] = largest_singular_value(info.model, info.x, info.t)

    @property
    def found(self) -> Tensor:
        return torch.stack([self._variance.scores, *(self._stretches[left] for left in (4, 6, 8))], 1)


def remedy_table(bench: Bench) -> Finding:
    """Compare remedies at about equal evaluations, on all learned models."""
    rows, claims, size = [], [], bench.size
    for name in ("mixture25", "mixture25-8d", "mixture25-32d"):
        problem = learned(name)
        data = problem.mixture.sample(min(size.n, 20_000), seed=12345)
        few, many = (size.long, size.n) if name == "mixture25" else (size.long // 20, size.n // 10)
        requests = [Request(method, few if method is DDPM else many, seed=size.seed + 7) for method in remedies()]
        results = {outcome.label: outcome for outcome in run(problem, requests, bench.engine)}
        for label, outcome in results.items():
            rate, balance = outcome.classes.rate(), outcome.classes.balance(25)
            distance = sliced_wasserstein(outcome.x[: len(data)], data) * UNIT
            off = 0.5 * (balance - 0.04).abs().sum().item()
            cells = [f"{outcome.evaluations:.1f}", percent(rate), invalid(outcome), f"{distance:.4f}", f"{off:.4f}"]
            rows.append([name, label, *cells])
        if name == "mixture25":
            plain, freed, slow = (results[k].classes.rate() for k in ("DDIM-50", "Escape on DDIM-50", "DDPM-1000"))
            cost = results["Escape on DDIM-50"].evaluations
            best = freed.high <= slow.high and freed.high < plain.low / 20.0 and cost <= 60.0
            claims.append(
                Claim(
                    "future work",
                    "an adaptive sampler that detects held samples and adds noise has DDIM's cost and DDPM's rate",
                    "left to future work",
                    f"Escape: {short(freed)} at {cost:.1f} evaluations; DDIM-50 {short(plain)}, DDPM-1000 "
                    f"{short(slow)}",
                    decide([best], [freed.low > slow.high or cost > 60.0]),
                )
            )
            hybrids = [results[k].classes.rate() for k in ("hybrid, 2 steps", "hybrid, 5 steps", "hybrid, 8 steps")]
            claims.append(
                Claim(
                    "section 7",
                    "just a few noisy steps significantly lower the rate of DDIM",
                    "significantly lower",
                    f"with 2, 5 and 8 noisy steps from tau_3 on: {', '.join(short(r) for r in hybrids)}, against "
                    f"{short(plain)} without",
                    decide((r.high < plain.low for r in hybrids), (r.low > plain.high for r in hybrids)),
                )
            )
    heads = ["model", "sampler", "evaluations", *RATE[1:], "sliced Wasserstein", "imbalance"]
    note = (
        "Sliced 2-Wasserstein distance to fresh data, in units of the published lattice. Imbalance: total variation "
        "distance between the modes' shares and equal shares. A Jacobian product counts as two evaluations."
    )
    return Finding("remedies", "Remedies at about equal evaluations", claims, heads, rows, note=note)
