"""What moves the saddle between two modes: P4.5, appendices B and C of arXiv 2605.06831, exact and learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steadyflow.errors import InputError
from steadyflow.metrics.statistics import Estimate, average, spearman, wilson

from ..findings import EMPTY, FAILS, HOLDS, PARTLY, Claim, Finding, decide, short, verdict
from ..studies import Bench
from ..theory import interpolation as theory
from ..theory import saddles
from .drawing import Outcome, Request, run
from .rates import starting_radius
from .saddle import flow_slope, last_times
from .setting import (
    DDPM,
    TAU,
    Method,
    Problem,
    ddim,
    exact,
    learned,
    on_segments,
    pair_length,
    quadratic,
    segments,
    uniform_20,
)


def figure_p45(bench: Bench) -> Finding:
    """Check stability near the modes: the equilibria, and that trajectories come together (P4.5, C4.6)."""
    sharp, rough = exact(dtype=torch.float64), learned()
    length, rows, holds = pair_length(sharp), [], True
    radius = 0.25 * length
    generator = torch.Generator().manual_seed(bench.size.seed)
    angles = 2.0 * math.pi * torch.rand(200, generator=generator, dtype=torch.float64)
    ring = radius * torch.rand(200, generator=generator, dtype=torch.float64).sqrt()
    offsets = torch.stack([angles.cos(), angles.sin()], 1) * ring[:, None]
    for t in last_times()[::3]:
        cells = [f"{t:g}"]
        s2 = theory.variance(sharp.mixture, sharp.schedule, t)
        pull, rate = theory.mode_pull(sharp.mixture, radius, s2), theory.mode_contraction(sharp.mixture, radius, s2)
        cells += [f"{pull / length:.2g}", f"{rate:.3f}"]
        for problem in (sharp, rough):
            means = problem.mixture.means
            y = (means[:, None] + offsets.to(means)).flatten(0, 1)
            slope = flow_slope(problem, y, t)
            there = means.clone()
            for _ in range(50):
                there = there + 0.5 * flow_slope(problem, there, t)
            inward = ((y - means.repeat_interleave(200, 0)) * slope).sum(1) < 0.0
            gap, other = y - y.roll(1, 0), slope - slope.roll(1, 0)
            same = torch.arange(len(y)) % 200 != 0
            least = float(-((gap * other).sum(1) / gap.square().sum(1))[same].max())
            cells += [
                f"{(there - means).norm(dim=1).max() / length:.2g}",
                f"{inward.double().mean():.1%}",
                f"{least:.3f}",
            ]
            if problem is sharp:
                holds = holds and pull < radius and least >= rate - 1e-9 and rate > 0.0
        rows.append(cells)
    begin = (rough.mixture.means[:, None] + offsets.to(rough.mixture.means)).flatten(0, 1)
    request = Request(ddim(), len(begin), start=rough.schedule.alpha(last_times()[0]) * begin, tau=TAU)
    (ends,) = run(rough, [request])
    before, after = (v.view(25, 200, -1) for v in (begin, ends.x))
    gaps = [(v[:, 1::2] - v[:, ::2]).norm(dim=2) for v in (before, after)]
    nearer = wilson(int((gaps[1] < gaps[0]).sum()), gaps[0].numel())
    claims = [
        Claim(
            "P4.5, C4.6",
            "each mode has a stable equilibrium nearby, and trajectories around it come together (exact score, "
            "25 modes)",
            "exponentially close in kappa",
            f"in the ball of a quarter length, the pull of the other modes is at most "
            f"{max(float(r[1]) for r in rows):.1g} lengths, and the flow contracts at a rate of at least "
            f"{min(float(r[2]) for r in rows):.3f} by the bound, {min(float(r[5]) for r in rows):.3f} as measured",
            verdict(holds),
        ),
        Claim(
            "ours",
            "with the learned score, too, trajectories in that ball come together",
            "",
            f"of pairs followed from nine steps before the end, {short(nearer)} end closer together than they began; "
            f"at single times the flow still expands somewhere in the ball, at a rate of up to "
            f"{-min(float(r[-1]) for r in rows):.2f}",
            decide([nearer.low > 0.99], [nearer.high < 0.99]),
        ),
    ]
    heads = ["t", "exact: bound on the pull / l", "exact: bound on the rate"]
    parts = ("equilibrium's distance from the mode / l", "inward", "least rate")
    heads += [f"{score}: {part}" for score in ("exact", "learned") for part in parts]
    return Finding("P4.5", "Stability within a quarter length of the modes", claims, heads, rows)


def _zeros(xi: Tensor, speed: Tensor) -> Tensor:
    """Give the rising zero of each row nearest to the middle, (m,); NaN where there is none."""
    rising = (speed[:, :-1] < 0.0) & (speed[:, 1:] >= 0.0)
    part = -speed[:, :-1] / (speed[:, 1:] - speed[:, :-1])
    place = xi[:-1] + part * (xi[1] - xi[0])
    away = torch.where(rising, (place - 0.5).abs(), torch.inf)
    best = away.argmin(1, keepdim=True)
    return torch.where(rising.any(1), place.gather(1, best)[:, 0], torch.nan)


def figure_b1(bench: Bench) -> Finding:
    """Move the saddle: unequal weights, the other modes, and where the basins of unequal modes meet (appendix B)."""
    heavy = torch.tensor([4.0 if (k // 5 + k % 5) % 2 else 1.0 for k in range(25)], dtype=torch.float64)
    rows, inside = [], 0.0
    problem = exact(weights=heavy / heavy.sum(), dtype=torch.float64)
    mixture, length = problem.mixture, pair_length(problem)
    pairs = segments(mixture)
    odds = (mixture.weights[pairs[:, 1]] / mixture.weights[pairs[:, 0]]).log()
    toward, margins, moved = True, [], []
    for t in last_times():
        s2 = theory.variance(mixture, problem.schedule, t)
        ratio = length**2 / s2
        zeros = [next(e.xi for e in saddles.equilibria(ratio, float(o)) if e.rate > 0.0) for o in odds]
        predicted = torch.tensor(zeros, dtype=torch.float64)
        there = _saddles(problem, t)
        # toward the lighter one: xi > 1/2 where the second mode is the lighter
        toward = toward and bool(((there - 0.5) * odds < 0.0).all())
        kappa = 0.5 * (length**2 / s2)  # of the point half way: the third mode is farther by l^2 in the square
        slope = min(saddles.equilibria(ratio, float(odds.max())), key=lambda e: -e.rate).rate
        bound = theory.far_modes(mixture, kappa) / length / slope
        off = float((there - predicted).abs().max())
        inside = max(inside, off)
        margins.append(off <= bound + 1e-12)
        moved.append(float((there - 0.5).abs().mean()))
        rows.append(
            [f"{t:g}", f"{(predicted - 0.5).abs().mean():.5f}", f"{moved[-1]:.5f}", f"{off:.1e}", f"{bound:.1e}"]
        )
    boundary, meets = _boundary(problem, odds)
    rates = [
        run(p, [Request(Method("DDIM-20", "ddim", uniform_20), min(bench.size.n, 20_000), bench.size.seed)])[0]
        for p in (problem, exact())
    ]
    leaning = _leaning(rates[0], problem)
    claims = [
        Claim(
            "B.1 (1)",
            "with unequal weights the saddle moves toward the lighter mode, to where ln(xi/(1-xi)) = ln(w_j/w_i) + "
            "(l^2/s2)(xi - 1/2)",
            "equation B.8",
            f"weights 4 to 1: the saddle of the exact flow is {moved[0]:.3f} lengths from the midpoint nine steps "
            f"before the end and {moved[-1]:.4f} at the end; it is at most {inside:.1g} from the equation's solution",
            verdict(toward and inside < 1e-3),
        ),
        Claim(
            "B.1 (2)",
            "the other modes displace it by at most C e^-kappa / m",
            "C e^-kappa / m, C left open",
            f"with the constant derived here, this holds at {sum(margins)} of {len(margins)} times (to within 1e-12)",
            verdict(all(margins)),
        ),
        Claim(
            "B.1",
            "the basins of a heavier and a lighter mode therefore meet closer to the lighter one",
            "a consequence",
            f"they meet {boundary:.4f} lengths from the midpoint toward the lighter mode; {meets:.4f} by the two-mode "
            "flow",
            verdict(boundary > 0.0 and abs(boundary - meets) < 0.02),
        ),
        Claim(
            "ours",
            "interpolated samples between unequal modes lie closer to the lighter one (exact score, DDIM-20 on a "
            "uniform grid)",
            "",
            f"their mean position is {leaning} lengths from the midpoint toward the lighter mode; rates of "
            f"interpolation {short(rates[0].classes.rate())} (4 to 1) and {short(rates[1].classes.rate())} (equal)",
            decide([leaning.low > 0.0], [leaning.high < 0.0]),
        ),
    ]
    heads = ["t", "saddle's distance from the midpoint / l: two modes", "exact flow of 25 modes", "largest difference"]
    heads += ["C e^-kappa / m"]
    return Finding("B.1", "The saddle under unequal weights, 4 to 1 on a chequerboard", claims, heads, rows)


def _saddles(problem: Problem, t: float) -> Tensor:
    """Find where the speed along each segment rises through zero, in lengths, (m,), by bisection."""
    means, pairs = problem.mixture.means, segments(problem.mixture)
    first, along = means[pairs[:, 0]], means[pairs[:, 1]] - means[pairs[:, 0]]
    low, high = torch.full((len(pairs),), 0.3, dtype=means.dtype), torch.full((len(pairs),), 0.7, dtype=means.dtype)
    for _ in range(55):
        middle = 0.5 * (low + high)
        inward = (flow_slope(problem, first + middle[:, None] * along, t) * along).sum(1) < 0.0
        low, high = torch.where(inward, middle, low), torch.where(inward, high, middle)
    return 0.5 * (low + high)


def _leaning(outcome: Outcome, problem: Problem) -> Estimate:
    """Give where interpolated samples of unequal modes lie, from the midpoint to the lighter one."""
    held = outcome.classes.kind == theory.INTERPOLATED
    pair, x = outcome.classes.pair[held], outcome.x[held]
    weights = problem.mixture.weights.to(x)[pair]
    unequal = weights[:, 0] != weights[:, 1]
    pair, x, weights = pair[unequal], x[unequal], weights[unequal]
    means = problem.mixture.means.to(x)
    xi, _ = theory.pair_coordinates(x, means[pair[:, 0]], means[pair[:, 1]])
    return average(torch.where(weights[:, 1] < weights[:, 0], xi - 0.5, 0.5 - xi))


def _boundary(problem: Problem, odds: Tensor) -> tuple[float, float]:
    """Give where the basins meet, from the midpoint to the lighter mode: by the exact flow, and by two modes."""
    pairs, length = segments(problem.mixture), pair_length(problem)
    sign = torch.where(odds < 0.0, 1.0, -1.0).double()
    low, high = (
        torch.full((len(pairs),), -0.4, dtype=torch.float64),
        torch.full((len(pairs),), 0.4, dtype=torch.float64),
    )
    fine = Method("DDIM, all steps", "ddim", lambda top: quadratic(800, top))
    means, lighter = problem.mixture.means, torch.where(odds < 0.0, pairs[:, 1], pairs[:, 0])
    for _ in range(25):
        middle = 0.5 * (low + high)
        (outcome,) = run(problem, [Request(fine, len(pairs), start=on_segments(problem, middle * sign), tau=TAU)])
        to_lighter = torch.cdist(outcome.x, means).argmin(1) == lighter
        high, low = torch.where(to_lighter, middle, high), torch.where(to_lighter, low, middle)
    s2 = [theory.variance(problem.mixture, problem.schedule, t) for t in last_times()]
    count, ends = 4000, (-0.4, 0.4)
    for _ in range(40):
        xi = torch.tensor(0.5 + 0.5 * sum(ends), dtype=torch.float64)
        total = theory.clock(s2[0], s2[-1])
        for k in range(count):
            ratio = length**2 / (s2[0] * math.exp(-2.0 * total * (k + 0.5) / count))
            xi = xi + total / count * saddles.pair_slope(xi, ratio, -math.log(4.0))
        ends = (ends[0], 0.5 * sum(ends)) if float(xi) > 0.5 else (0.5 * sum(ends), ends[1])
    return float((0.5 * (low + high)).mean()), 0.5 * sum(ends)


def figure_c(bench: Bench) -> Finding:
    """Measure the learned model's own score error in the tubes around the segments, and what it does to the saddle."""
    sharp, rough = exact(), learned()
    length, means = pair_length(sharp), sharp.mixture.means
    pairs = segments(sharp.mixture)
    first, along = means[pairs[:, 0]], means[pairs[:, 1]] - means[pairs[:, 0]]
    across = torch.stack([-along[:, 1], along[:, 0]], 1) / length
    wide = 181
    xi, eta = torch.linspace(0.05, 0.95, wide), torch.linspace(-0.05, 0.05, 11) * length
    y = (
        first[:, None, None]
        + xi[None, None, :, None] * along[:, None, None]
        + eta[None, :, None, None] * across[:, None, None]
    )
    step, middle = float(xi[1] - xi[0]), wide // 2
    rows, signs, guesses, bounded, applies, robust, stable = [], [], [], [], [], [], []
    for t in last_times():
        s2 = theory.variance(sharp.mixture, sharp.schedule, t)
        slopes = [flow_slope(p, y.flatten(0, 2), t).view_as(y) for p in (sharp, rough)]
        error = slopes[1] - slopes[0]
        delta = float(error.norm(dim=-1).max())
        lipschitz = float((error[:, :, 1:] - error[:, :, :-1]).norm(dim=-1).max()) / (step * length)
        speed = (slopes[1][:, 5] * along[:, None]).sum(-1) / length**2
        rate = (speed[:, middle + 1] - speed[:, middle - 1]) / (2.0 * step)
        truth = saddles.saddle_rate(length**2 / s2)
        there = _zeros(xi, speed)
        guess = 0.5 - speed[:, middle] / rate
        known = ~there.isnan()
        signs.append(wilson(int(known.sum()), len(known)))
        stable.append(wilson(int((rate < 0.0).sum()), len(rate)))
        near = known & (rate > 0.0) & ((guess - 0.5).abs() < 0.4)
        guesses.append((there[near], guess[near]))
        try:
            shift = saddles.saddle_shift(length, s2, delta) / length
            applies.append(True)
            bounded.append(bool(((there - 0.5).abs()[known] <= shift + step).all()) and bool(known.all()))
        except InputError:
            shift = math.nan
            applies.append(False)
        away = (xi - 0.5).abs()
        beyond = (error[:, 5] * along[:, None]).sum(-1).abs()[:, (away >= 0.1) & (away <= 0.4)].max() / length
        margin = saddles.least_outward(length, s2, 0.1 * length, 0.4 * length) - 2.0 * float(beyond)
        robust.append(margin > 0.0)
        off = (there - 0.5).abs()[known]
        rows.append(
            [
                f"{t:g}",
                f"{delta / length:.3g}",
                f"{lipschitz:.3g}",
                f"{truth:.3g}",
                f"{rate.mean():.3g}",
                f"{signs[-1].value:.0%}",
                f"{off.median():.3f}" if len(off) else "",
                "none" if math.isnan(shift) else f"{shift:.3f}",
                "yes" if robust[-1] else "no",
            ]
        )
    n = 80 if bench.size.quick else 800
    near = starting_radius(rough, (DDPM, ddim()), (0.01,), n, bench)
    escaped, stuck = (wilson(known - held, known) for ((held, known),) in near.values())
    seen, told = (torch.cat(parts).double() for parts in zip(*guesses, strict=True))
    agreement = spearman(told, seen)
    miss = float((told - seen).abs().median())
    size = float((seen - 0.5).abs().median())
    claims = [
        Claim(
            "C.4",
            "under a bounded score error the saddle persists, displaced by at most about delta / lambda",
            "equation C.15",
            f"a saddle is found for {sum(s.value for s in signs) / len(signs):.0%} of segments and times; delta is "
            f"small enough for the statement to apply at {sum(applies)} of {len(applies)} times, and it holds at "
            f"{sum(bounded)} of these",
            FAILS if not all(bounded) else EMPTY if not any(applies) else PARTLY if not all(applies) else HOLDS,
        ),
        Claim(
            "ours",
            "the value and the slope of the learned speed at the midpoint predict where the saddle is",
            "",
            f"rank correlation {agreement}; the prediction misses by {miss:.3f} lengths, the saddles being {size:.3f} "
            f"from the midpoint (medians)",
            decide([agreement.low > 0.8 and miss < 0.25 * size], [agreement.high < 0.8 or miss > 0.25 * size]),
        ),
        Claim(
            "C.5",
            "score error can lower the unstable eigenvalue, and even make the saddle stable",
            "lambda + u.grad psi.u",
            f"the slope of the error leaves {rows[-1][4]} of {rows[-1][3]} at the last step; "
            f"stable on at most {max(s.value for s in stable):.0%} of the segments",
            HOLDS if max(s.value for s in stable) > 0.0 else PARTLY,
        ),
        Claim(
            "C.6",
            "DDPM still escapes as long as the error is below the margin of the drift",
            "equation C.18",
            f"the measured error of DDPM's drift, twice that of the flow's, is below it at {sum(robust)} of "
            f"{len(robust)} times; of samples started 0.01 lengths from the midpoint, "
            f"{short(escaped)} escape with DDPM, and {short(stuck)} with DDIM",
            FAILS if escaped.high < 0.5 else EMPTY if not any(robust) else PARTLY if not all(robust) else HOLDS,
        ),
    ]
    heads = ["t", "delta / l", "Lipschitz constant", "exact rate", "learned rate", "segments with a saddle"]
    heads += ["saddle's distance from the midpoint / l (median)", "C.4's bound / l", "C.6's condition met"]
    note = (
        "In tubes of radius 0.05 lengths around the 40 segments, from 0.05 to 0.95 of each; delta and the Lipschitz "
        "constant are in the clock s."
    )
    return Finding("C", "The learned model's own score error", claims, heads, rows, note=note)
