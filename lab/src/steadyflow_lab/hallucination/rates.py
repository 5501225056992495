"""Rates of interpolation: figures 1, 3, 5 and D, E.9, E.11, E.13, E.15, E.16 and table I.1 of arXiv 2605.06831."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from steadyflow._integrate import StepInfo
from steadyflow.metrics.statistics import Estimate, wilson
from steadyflow.schedules import Tabulated

from ..theory import interpolation as theory
from ..studies import Bench
from .drawing import HERE, Request, invalid, run
from ..findings import RATE, Finding, curve, mean_rate, percent
from .geometry import convergence
from .setting import (
    DDPM,
    TAU,
    UNIT,
    Method,
    Problem,
    ddim,
    eta,
    exact,
    hybrid,
    learned,
    near_midpoint,
    on_segments,
    quadratic,
    uniform_20,
)


def figure_1(bench: Bench) -> Finding:
    """Compare DDIM-50 with DDPM-1000, with the learned score."""
    problem = learned()
    quick, slow = run(problem, [Request(ddim(), bench.size.n), Request(DDPM, bench.size.long)], bench.engine)
    rows = [[o.label, percent(o.classes.rate()), invalid(o)] for o in (quick, slow)]
    holds = quick.classes.rate().low > slow.classes.rate().high
    return Finding("1", "Rates of interpolation", "DDIM interpolates more than DDPM", holds, RATE, rows)


def figure_3(bench: Bench) -> Finding:
    """Measure the rate of DDIM over its number of steps."""
    problem = learned()
    counts = (50, 100, 200, 500, 800)
    requests = [Request(ddim(count), bench.size.n if count < 500 else bench.size.long) for count in counts]
    *fine, slow = run(problem, [*requests, Request(DDPM, bench.size.long)], bench.engine)
    rates = [o.classes.rate() for o in fine]
    holds = all(rate.low > slow.classes.rate().high for rate in rates)
    rows = [[o.label, percent(o.classes.rate()), invalid(o)] for o in (*fine, slow)]
    return Finding(
        "3",
        "The rate of DDIM over its steps",
        "finer DDIM still interpolates more than DDPM, so that discretisation is not the cause",
        holds,
        RATE,
        rows,
        curves=[curve("DDIM", counts, rates), curve("DDPM", counts, [slow.classes.rate()] * len(counts))],
        axes=("steps", "rate of interpolation"),
    )


_OFFSETS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)


def starting_radius(
    problem: Problem, methods: tuple[Method, ...], n: int, engine: Any = HERE, tau: int = TAU
) -> dict[str, list[Estimate]]:
    """Measure the rate of each method from n starts on the segments at each offset from the midpoint."""
    signs = 1.0 - 2.0 * (torch.arange(n) % 2)
    starts = [on_segments(problem, offset * signs, tau) for offset in _OFFSETS]
    requests = [Request(method, n, start=start, tau=tau) for method in methods for start in starts]
    rates = [outcome.classes.rate() for outcome in run(problem, requests, bench.engine)]
    count = len(starts)
    return {method.label: rates[k * count : (k + 1) * count] for k, method in enumerate(methods)}


def figure_5(bench: Bench) -> Finding:
    """Measure the rate against the starting radius at tau_3, with the learned score."""
    return _radius("5", learned(), bench, "With the learned score, ")


def figure_e15(bench: Bench) -> Finding:
    """Measure the rate against the starting radius at tau_3, with the exact score."""
    return _radius("E.15", exact(), bench, "With the exact score, ")


def _radius(number: str, problem: Problem, bench: Bench, engine: Engine, where: str) -> Finding:
    methods = (ddim(), DDPM, hybrid(2), hybrid(5), hybrid(8))
    rates = starting_radius(problem, methods, max(400, bench.size.n // 10), bench.engine)
    inner = {label: mean_rate(values[:4]) for label, values in rates.items()}
    holds = inner["DDIM-50"] > 2.0 * inner["DDPM-1000"] and inner["DDIM-50"] > 0.0
    holds = holds and inner["hybrid, 5 steps"] < inner["DDIM-50"]
    rows = [[label, *(f"{e.value:.2%}" for e in values), f"{inner[label]:.2%}"] for label, values in rates.items()]
    return Finding(
        number,
        f"Rate against the starting radius at tau_3 = {TAU}",
        f"{where}near the midpoint DDIM interpolates several times as often as DDPM, and hybrids less than DDIM",
        holds,
        ["start, in lengths", *(f"{o:g}" for o in _OFFSETS), "within 0.15"],
        rows,
        curves=[curve(label, _OFFSETS, values) for label, values in rates.items()],
        axes=("distance of the start from the midpoint, in lengths", "rate of interpolation"),
    )


def figure_e9(bench: Bench) -> Finding:
    """Measure rates and convergence in higher dimensions, with the learned scores."""
    rows, holds = [], True
    for name in ("mixture25-8d", "mixture25-32d"):
        problem = learned(name)
        quick, slow = run(problem, [Request(ddim(), bench.size.n // 2), Request(DDPM, bench.size.long // 4)], bench.engine)
        slopes, _, _ = convergence(problem, min(bench.size.n // 4, 1000))
        slope = f"{slopes.median():.3f}" if len(slopes) else "none"
        holds = holds and quick.classes.rate().low > slow.classes.rate().high
        rows += [
            [name, quick.label, percent(quick.classes.rate()), invalid(quick), slope],
            [name, slow.label, percent(slow.classes.rate()), invalid(slow), ""],
        ]
    return Finding(
        "E.9",
        "Learned scores in 8 and 32 dimensions",
        "in higher dimensions too DDIM interpolates more than DDPM, and convergence is exponential",
        holds,
        ["model", *RATE, "slope of convergence"],
        rows,
    )


def figure_e11(bench: Bench) -> Finding:
    """Measure the rate from near the midpoint, over tau_3."""
    problem, n = learned(), max(400, bench.size.n // 10)
    taus = (5, 7, 9, 11, 13)
    methods = (ddim(), DDPM)
    offsets = 0.15 * (2.0 * torch.arange(n) / (n - 1) - 1.0)
    starts = [(tau, on_segments(problem, offsets, tau)) for tau in taus]
    requests = [Request(method, n, start=start, tau=tau) for method in methods for tau, start in starts]
    found = [outcome.classes.rate() for outcome in run(problem, requests, bench.engine)]
    rates = {methods[0].label: found[: len(taus)], methods[1].label: found[len(taus) :]}
    holds = all(values[0].value > values[-1].value for values in rates.values())
    return Finding(
        "E.11",
        "Rate from within 0.15 lengths of the midpoint, over tau_3",
        "a larger tau_3, more time to escape, lowers the rate of every sampler",
        holds,
        ["sampler", *(str(tau) for tau in taus)],
        [[label, *(f"{e.value:.2%}" for e in values)] for label, values in rates.items()],
        curves=[curve(label, taus, values) for label, values in rates.items()],
        axes=("tau_3, steps left", "rate of interpolation"),
    )


def figure_e13(bench: Bench) -> Finding:
    """Measure the rate over the noise level eta of DDIM's own steps, overall and from near the midpoint."""
    problem, n = learned(), max(400, bench.size.n // 10)
    offsets = 0.15 * (2.0 * torch.arange(n) / (n - 1) - 1.0)
    start = on_segments(problem, offsets)
    levels = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    requests = [Request(eta(level), bench.size.n) for level in levels]
    requests += [Request(eta(level), n, start=start, tau=TAU) for level in levels]
    found = [outcome.classes.rate() for outcome in run(problem, requests, bench.engine)]
    overall, near = found[: len(levels)], found[len(levels) :]
    return Finding(
        "E.13",
        "Rate over the noise level eta, 50 steps",
        "the highest level of noise gives the fewest interpolations",
        min(range(6), key=lambda k: overall[k].value) == 5 and near[5].value < near[0].value,
        ["", *(f"eta = {level:g}" for level in levels)],
        [["overall", *(percent(e) for e in overall)], ["within 0.15 at tau_3", *(f"{e.value:.2%}" for e in near)]],
        curves=[curve("overall", levels, overall), curve("from near the midpoint", levels, near)],
        axes=("eta", "rate of interpolation"),
    )


SPREADS = tuple(s / UNIT for s in (0.01, 0.02, 0.05))
LENGTHS = tuple(v / UNIT for v in (1.0, 2.0, 3.0))


def figure_e16(bench: Bench) -> Finding:
    """Vary T, sigma and l, with the exact score on the 20-step uniform grid, where it interpolates too."""
    rows, gaps = [], []
    n = min(bench.size.n, 20_000)
    settings = [("T", T, SPREADS[1], LENGTHS[1]) for T in (250, 500, 1000)]
    settings += [("sigma", 1000, s, LENGTHS[1]) for s in SPREADS] + [("l", 1000, SPREADS[1], v) for v in LENGTHS]
    for name, top, spread, length in settings:
        schedule = Tabulated.linear(top, 0.1 / top, 20.0 / top)
        problem = exact(spacing=length, std=spread, schedule=schedule)
        coarse = Method("DDIM-20, uniform", "ddim", uniform_20)
        requests = [Request(coarse, n), Request(DDPM, min(n, bench.size.long))]
        quick, slow = (outcome.classes.rate() for outcome in run(problem, requests, bench.engine))
        gaps.append(quick.low > slow.high)
        value = {"T": top, "sigma": spread * UNIT, "l": length * UNIT}[name]
        rows.append([name, f"{value:g}", percent(quick), percent(slow)])
    return Finding(
        "E.16",
        "Ablations over T, sigma and l, exact score",
        "DDIM interpolates more than DDPM for all of them",
        all(gaps),
        ["changed", "value", "DDIM-20, uniform", "DDPM, all steps"],
        rows,
        note=(
            "The paper trains a model for each setting. Here the score is exact, and the grid a coarse one, on which "
            "the exact flow interpolates as well; so this shows the effect of steps, not of a learned score."
        ),
    )


def table_i1(bench: Bench) -> Finding:
    """Split the rate by where samples were at tau_3: M is within theta = 0.35 l of a midpoint."""
    problem, rows, found = learned(), [], {}
    watch = partial(_At, problem, quadratic(50).times[-TAU - 1])
    requests = [Request(method, n, watch=watch) for method, n in ((ddim(), bench.size.n), (DDPM, bench.size.long))]
    for outcome in run(problem, requests, bench.engine):
        assert outcome.found is not None  # it was watched
        counted = outcome.classes.kind != theory.INVALID
        hallucinated = outcome.classes.kind == theory.INTERPOLATED
        parts = found[outcome.label] = theory.decompose(hallucinated[counted], outcome.found[counted])
        cells = [percent(parts.inside), percent(parts.given_inside), percent(parts.given_outside)]
        rows.append([outcome.label, *cells, f"{parts.from_inside:.1%}"])
    quick, slow = found["DDIM-50"], found["DDPM-1000"]
    holds = quick.from_inside > 0.5 and quick.given_inside.low > slow.given_inside.high
    return Finding(
        "I.1",
        "Where interpolated samples come from (learned score)",
        "the midpoint neighbourhood drives the rates: P(H|M) is larger for DDIM, and most of P(H) comes from M",
        holds,
        ["sampler", "P(M)", "P(H|M)", "P(H|not M)", "share of P(H) from M"],
        rows,
    )


class _At:
    """A watch that notes which samples of a batch are near a midpoint at a time."""

    def __init__(self, problem: Problem, t: float, share: float = 0.35):
        self._problem, self._t, self._share = problem, t, share
        self.found = torch.zeros(0, dtype=torch.bool)

    def __call__(self, info: StepInfo) -> None:
        if info.t == self._t:
            self.found = near_midpoint(self._problem, info.x, info.t, self._share)


def figure_d(bench: Bench) -> Finding:
    """Count how often the segment of an interpolated sample is a diagonal of the grid."""
    problem = learned()
    (outcome,) = run(problem, [Request(ddim(), bench.size.n)], bench.engine)
    pairs = outcome.classes.pair[outcome.classes.kind == theory.INTERPOLATED]
    diagonal = theory.diagonals(pairs, problem.mixture)
    share = wilson(int(diagonal.sum()), max(len(pairs), 1)) if len(pairs) else Estimate(0.0, 0.0, 1.0)
    return Finding(
        "D",
        "Interpolation on diagonals",
        "interpolated samples rarely lie on diagonals of the grid",
        len(pairs) > 0 and share.high < 0.1,
        ["interpolated samples", "on a diagonal"],
        [[str(len(pairs)), percent(share)]],
        note="Any segment along no axis counts as a diagonal, also of more than one cell.",
    )
