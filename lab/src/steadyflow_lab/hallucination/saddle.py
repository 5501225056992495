"""The saddle between two modes: E.12, P4.5 to P4.7, appendices B and C of arXiv 2605.06831, exact and learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from steadyflow.metrics.statistics import Estimate, average, spearman, wilson

from ..findings import EMPTY, FAILS, HOLDS, Claim, Finding, decide, short, verdict
from ..studies import Bench
from ..theory import interpolation as theory
from ..theory import saddles
from .drawing import Request, run
from .setting import (
    TAU,
    Problem,
    ddim,
    exact,
    learned,
    on_segments,
    pair_length,
    quadratic,
    segments,
)

NEAR = 0.45
"""What ends within so many lengths of the midpoint is interpolated: the modes' five sigmas take the rest."""


def last_times() -> list[float]:
    """Give the ten times from tau_3 to the end."""
    return list(quadratic(50).times[-TAU - 1 :])


def flow_slope(problem: Problem, y: Tensor, t: float) -> Tensor:
    """Give dy/ds of a model at states y (n, d): (x0_hat - y) s2 / (s2 - s0^2), which is `slope` with an exact score."""
    s2 = theory.variance(problem.mixture, problem.schedule, t)
    level = problem.schedule.ratio(t) ** 2
    return (problem.model(problem.schedule.alpha(t) * y, t).x0 - y) * (s2 / level)


@dataclass(frozen=True)
class Profile:
    """The speed along each of the m segments, in lengths, at each time."""

    xi: Tensor
    """Shape (g,)."""
    speed: Tensor
    """Shape (T, m, g)."""
    times: list[float]

    @property
    def rates(self) -> Tensor:
        """The eigenvalue along the segment at its midpoint, by differences, shape (T, m)."""
        middle, step = len(self.xi) // 2, float(self.xi[1] - self.xi[0])
        return (self.speed[..., middle + 1] - self.speed[..., middle - 1]) / (2.0 * step)

    @property
    def curvature(self) -> Tensor:
        """The greatest second derivative over all times, shape (m,)."""
        step = float(self.xi[1] - self.xi[0])
        return ((self.speed[..., 2:] - 2.0 * self.speed[..., 1:-1] + self.speed[..., :-2]).abs() / step**2).amax((0, 2))


def profile(problem: Problem, points: int = 181) -> Profile:
    """Measure the speed along the segments at the last ten times."""
    means = problem.mixture.means
    pairs = segments(problem.mixture)
    xi = torch.linspace(0.05, 0.95, points, dtype=means.dtype)
    first, along = means[pairs[:, 0]], means[pairs[:, 1]] - means[pairs[:, 0]]
    y = first[:, None] + xi[None, :, None] * along[:, None]
    speeds = []
    for t in last_times():
        slope = flow_slope(problem, y.flatten(0, 1), t).view_as(y)
        speeds.append((slope * along[:, None]).sum(-1) / along.square().sum(-1)[:, None])
    return Profile(xi, torch.stack(speeds), last_times())


def factors(problem: Problem) -> tuple[Tensor, Tensor]:
    """Give, for each of the last ten times, what DDIM's step multiplies the slope by, and the span of the clock s.

    A step moves y by (x0_hat - y)(1 - chi1 / chi0), and the last takes the clean prediction.
    """
    times, schedule, mixture = last_times(), problem.schedule, problem.mixture
    level = [schedule.ratio(t) for t in times] + [0.0]
    s2 = [theory.variance(mixture, schedule, t) for t in times] + [mixture.spread**2]
    steps = [a**2 / v * (1.0 - b / a) for a, b, v in zip(level, level[1:], s2, strict=False)]
    spans = [theory.clock(v, w) for v, w in pairwise(s2)]
    return torch.tensor(steps, dtype=torch.float64), torch.tensor(spans, dtype=torch.float64)


def observed_radius(problem: Problem, points: int = 361) -> Tensor:
    """Give half the width of the interval of starts on each segment that DDIM leaves interpolated, (m,), in lengths."""
    count = len(segments(problem.mixture))
    offsets = torch.linspace(-NEAR, NEAR, points).double().repeat_interleave(count)
    start = on_segments(problem, offsets)
    (outcome,) = run(problem, [Request(ddim(), len(start), start=start, tau=TAU)])
    held = (outcome.classes.kind == theory.INTERPOLATED).view(points, count)
    return held.double().mean(0) * NEAR


def reduced_radius(found: Profile, steps: Tensor, points: int = 3601) -> Tensor:
    """Give the same by DDIM's steps on the measured speed along the segment alone, (m,): the parallel dynamics."""
    count, size = found.speed.shape[1], len(found.xi)
    xi = torch.linspace(0.5 - NEAR, 0.5 + NEAR, points, dtype=torch.float64)[None].repeat(count, 1)
    low, gap = float(found.xi[0]), float(found.xi[1] - found.xi[0])
    for speed, factor in zip(found.speed.double(), steps, strict=True):
        place = ((xi - low) / gap).clamp(0.0, size - 1.001)
        left = place.floor().long()
        value = speed.gather(1, left) + (place - left) * (speed.gather(1, left + 1) - speed.gather(1, left))
        xi = xi + float(factor) * value
    return ((xi - 0.5).abs() < NEAR).double().mean(1) * NEAR


def exact_radius(problem: Problem) -> Tensor:
    """Give the greatest start on each segment, in lengths, that DDIM with the exact score leaves interpolated, (m,)."""
    count = len(segments(problem.mixture))
    low, high = torch.full((count,), -14.0, dtype=torch.float64), torch.full((count,), -0.5, dtype=torch.float64)
    for _ in range(30):
        middle = 0.5 * (low + high)
        start = on_segments(problem, 10.0**middle)
        (outcome,) = run(problem, [Request(ddim(), count, start=start, tau=TAU)])
        held = outcome.classes.kind == theory.INTERPOLATED
        low, high = torch.where(held, middle, low), torch.where(held, high, middle)
    return 10.0**low


def _one_digit(value: float) -> str:
    """Write a positive number rounded to one significant digit, such as "3,000"."""
    return f"{float(f'{value:.0e}'):,g}"


def figure_p47(bench: Bench) -> Finding:
    """Compare the radius that P4.7 bounds with the one that is observed, and with what predicts it."""
    sharp, problem, size = exact(dtype=torch.float64), learned(), bench.size
    steps, spans = factors(problem)
    s2 = [theory.variance(sharp.mixture, sharp.schedule, t) for t in last_times()]
    length = pair_length(sharp)
    paper = saddles.trapped_start(length, s2[0], s2[-1]) / length
    at = exact_radius(sharp)
    exact_rates = torch.tensor([saddles.saddle_rate(length**2 / v) for v in s2], dtype=torch.float64)
    exact_guess = NEAR / float((1.0 + exact_rates * steps).prod())
    exact_flow = NEAR * math.exp(-saddles.growth_integral(length, s2[0], s2[-1]))

    found = profile(problem)
    observed, rates = observed_radius(problem, 91 if size.quick else 361), found.rates.double()
    bound = torch.tensor(
        [
            saddles.trapping_bound(rates[:, k].tolist(), spans.tolist(), float(found.curvature[k]))
            for k in range(len(observed))
        ]
    )
    linear = NEAR / (1.0 + rates * steps[:, None]).prod(0)
    flow = NEAR * torch.exp(-(rates * spans[:, None]).sum(0))
    reduced = reduced_radius(found, steps)
    (outcome,) = run(problem, [Request(ddim(), size.n, size.seed)], bench.engine)
    pairs = segments(problem.mixture)
    held = outcome.classes.pair[outcome.classes.kind == theory.INTERPOLATED].sort(1).values
    hits = (held[:, None] == pairs.sort(1).values[None]).all(2).sum(0).double()
    some = observed > 0.0
    ratio = {
        k: average((v[some] / observed[some]).log())
        for k, v in (("linear", linear), ("reduced", reduced.clamp_min(1e-9)))
    }
    told = {k: Estimate(*(math.exp(x) for x in (e.value, e.low, e.high))) for k, e in ratio.items()}
    ranks = {k: spearman(v.double(), observed) for k, v in (("linear", linear), ("reduced", reduced))}
    counts = spearman(observed, hits)
    sides = torch.cat([bound, -bound])
    (edge,) = run(problem, [Request(ddim(), len(sides), start=on_segments(problem, sides), tau=TAU)])
    kept = wilson(int((edge.classes.kind == theory.INTERPOLATED).sum()), len(sides))

    def row(name: str, values: Tensor) -> list[str]:
        return [name, f"{values.median():.3g}", f"{values.min():.2g} to {values.max():.2g}"]

    rows = [
        ["exact: P4.7's bound at the paper's parameters", f"{paper:.2g}", ""],
        ["exact: linear growth of the flow", f"{exact_flow:.2g}", ""],
        ["exact: linear growth over DDIM's ten steps", f"{exact_guess:.2g}", ""],
        row("exact: observed, DDIM-50", at),
        row("learned: P4.7's bound with measured rates and curvature", bound),
        row("learned: linear growth of the flow, measured rates", flow),
        row("learned: linear growth over DDIM's ten steps", linear),
        row("learned: the parallel dynamics alone", reduced),
        row("learned: observed, DDIM-50", observed),
    ]
    claims = [
        Claim(
            "P4.7 (2)",
            "a start within the trapping radius of the midpoint stays trapped",
            "theta exp(-(3/2) integral of the rate); no number in the text",
            f"true on {int((at >= paper).sum())} of {len(at)} segments; with the exact score at the paper's parameters "
            f"the radius is {paper:.1g} lengths, whereas DDIM-50 is seen to hold starts within {at.median():.1g}",
            FAILS if not bool((at >= paper).all()) else EMPTY if paper < 1e-16 else HOLDS,
        ),
        Claim(
            "ours",
            "with the learned model's own rates and curvature, P4.7's radius holds what starts within it, and is "
            "not vacuous",
            "",
            f"median {bound.median():.2g} lengths, about {_one_digit(float(observed.median() / bound.median()))} "
            f"times below the {observed.median():.2g} observed; of starts at that radius on either side of the "
            f"midpoint, {short(kept)} stay",
            decide([kept.low > 0.9], [kept.high < 0.9]),
        ),
        Claim(
            "ours",
            "linear growth with the measured rates predicts the observed radius to within a factor of two, and its "
            "rank",
            "",
            f"predicted over observed {told['linear']} (geometric mean); rank correlation over segments "
            f"{ranks['linear']}",
            decide(
                [told["linear"].low > 0.5 and told["linear"].high < 2.0, ranks["linear"].low > 0.0],
                [told["linear"].low < 0.5 or told["linear"].high > 2.0, ranks["linear"].high < 0.0],
            ),
        ),
        Claim(
            "section 4",
            "the motion within the tube reduces to the parallel dynamics on the segment",
            "the reduction behind P4.7",
            f"the radius of the parallel dynamics over the observed one is {told['reduced']}; rank correlation over "
            f"segments {ranks['reduced']}",
            decide(
                [told["reduced"].low > 0.9 and told["reduced"].high < 1.1 and ranks["reduced"].low > 0.8],
                [told["reduced"].high < 0.9 or told["reduced"].low > 1.1 or ranks["reduced"].high < 0.8],
            ),
        ),
        Claim(
            "section 4",
            "interpolated samples are those that come within the trapping radius: segments with a wider one hold more",
            "the mechanism; no number in the text",
            f"rank correlation of a segment's radius with its count of interpolated samples ({int(hits.sum())} in "
            f"all): {counts}",
            decide([counts.low > 0.0], [counts.high < 0.0]),
        ),
    ]
    heads = ["trapping radius with 9 steps left, in lengths", "median over the 40 segments", "range"]
    return Finding("P4.7", "The trapping radius: bound, prediction, observation", claims, heads, rows)


def midpoint_eigenvalues(problem: Problem, t: float) -> Tensor:
    """Give the smallest and the largest eigenvalue of the Jacobian of dy/ds at each midpoint, (m, 2)."""
    alpha, mixture = problem.schedule.alpha(t), problem.mixture
    pairs = segments(mixture)
    y = 0.5 * (mixture.means[pairs[:, 0]] + mixture.means[pairs[:, 1]])
    leaf = (alpha * y).requires_grad_()
    with torch.enable_grad():
        # x0_hat = m + (s0^2 / s2) (y - m) of the exact score; the slope in the clock s is (x0_hat - y) s2 / (s2 - s0^2)
        clean = problem.model(leaf, t).x0
        rows = [torch.autograd.grad(clean[:, k].sum(), leaf, retain_graph=True)[0] for k in range(mixture.dim)]
    s2 = theory.variance(mixture, problem.schedule, t)
    jacobian = alpha * torch.stack(rows, 1) - torch.eye(mixture.dim)
    jacobian = jacobian * (s2 / (s2 - mixture.spread**2))
    return torch.linalg.eigvals(jacobian).real.sort(1).values[:, [0, -1]]


def figure_e12(bench: Bench) -> Finding:
    """Compute the eigenvalues of the rescaled flow's Jacobian at the midpoints, for exact and learned score."""
    rows, shares, largest = [], [], []
    times = last_times()
    for problem in (exact(), learned()):
        values = torch.stack([midpoint_eigenvalues(problem, t) for t in times])
        shares.append(wilson(int(((values[..., 0] < 0.0) & (values[..., 1] > 0.0)).sum()), values[..., 0].numel()))
        largest.append(values[..., 1].mean(1))
        for k, name in ((1, "largest"), (0, "smallest")):
            rows.append([problem.name, name, *(f"{v:.3g}" for v in values[..., k].mean(1).tolist())])
    mixture, length = exact().mixture, pair_length(exact())
    expected = torch.tensor(
        [saddles.saddle_rate(length**2 / theory.variance(mixture, exact().schedule, t)) for t in times]
    )
    rows.append(["l^2 / (4 s2) - 1", "", *(f"{v:.3g}" for v in expected.tolist())])
    off = float(((largest[0] - expected) / expected).abs().max())
    claims = [
        Claim(
            "P4.7 (1)",
            "the midpoint is a saddle with the unstable eigenvalue l^2 / (4 s2) - 1",
            "l^2 / (4 s2) - 1",
            f"with the exact score of 25 modes, off by at most {off:.1%} over all ten times",
            verdict(off < 0.05),
        ),
        Claim(
            "figure E.12",
            "one eigenvalue is positive and one negative, with the learned score, too",
            "consistently positive and negative",
            f"exact: {short(shares[0])} of midpoints and times; learned: {short(shares[1])}; the unstable eigenvalue "
            f"of the learned score *falls* from {largest[1][0]:.2g} to {largest[1][-1]:.2g}, while the exact one rises "
            f"to {largest[0][-1]:.3g}",
            decide((e.low > 0.95 for e in shares), (e.high < 0.95 for e in shares)),
        ),
    ]
    return Finding(
        "E.12",
        "Eigenvalues of dy/ds at the midpoint of a segment (mean over the 40)",
        claims,
        ["model", "eigenvalue", *(f"t = {t:g}" for t in times)],
        rows,
    )
