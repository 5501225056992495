"""Rates of interpolation: figures 1, 3, 5 and D, E.11, E.13, E.15, E.16 and table I.1 of arXiv 2605.06831."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from steadyflow._integrate import StepInfo
from steadyflow.metrics.statistics import Estimate, wilson

from ..findings import FAILS, HOLDS, OPEN, PARTLY, RATE, Claim, Finding, curve, decide, percent, short, verdict
from ..studies import Bench
from ..theory import interpolation as theory
from .drawing import Outcome, Request, invalid, run
from .setting import (
    DDPM,
    LENGTHS,
    SPREADS,
    TAU,
    UNIT,
    Method,
    Problem,
    ddim,
    eta,
    every,
    exact,
    hybrid,
    learned,
    near_midpoint,
    on_segments,
    quadratic,
    segments,
    trained,
    uniform_20,
)


def counts(outcome: Outcome) -> tuple[int, int]:
    """Give how many samples are interpolated, and how many are counted: those that are not invalid."""
    kind = outcome.classes.kind
    return int((kind == theory.INTERPOLATED).sum()), int((kind != theory.INVALID).sum())


def figure_1(bench: Bench) -> Finding:
    """Compare DDIM-50 with DDPM-1000, with the learned score."""
    requests = [Request(ddim(), bench.size.n, bench.size.seed), Request(DDPM, bench.size.long, bench.size.seed)]
    quick, slow = run(learned(), requests, bench.engine)
    fast, noisy = quick.classes.rate(), slow.classes.rate()
    rows = [[o.label, percent(o.classes.rate()), invalid(o)] for o in (quick, slow)]
    claim = Claim(
        "figure 1",
        "DDIM interpolates more often than DDPM",
        "a significantly lower rate with DDPM; the numbers are only in a figure",
        f"{short(fast)} against {short(noisy)}",
        verdict(fast.low > noisy.high),
    )
    return Finding("1", "Rates of interpolation", [claim], RATE, rows)


def figure_3(bench: Bench) -> Finding:
    """Measure the rate of DDIM over its number of steps."""
    counts_, size = (50, 100, 200, 500, 800), bench.size
    requests = [Request(ddim(k), size.n if k < 500 else min(size.n, size.long), size.seed) for k in counts_]
    *fine, slow = run(learned(), [*requests, Request(DDPM, size.long, size.seed)], bench.engine)
    rates, noisy = [o.classes.rate() for o in fine], slow.classes.rate()
    rows = [[o.label, percent(o.classes.rate()), invalid(o)] for o in (*fine, slow)]
    claim = Claim(
        "figure 3",
        "even with finer steps DDIM interpolates more than DDPM, so discretisation is not the cause",
        "the gap remains from coarse to fine steps; the numbers are only in a figure",
        f"{short(rates[0])} at 50 steps, {short(rates[-1])} at 800, against {short(noisy)}; "
        f"{1.0 - rates[-1].value / rates[0].value:.0%} of the rate at 50 steps is discretisation error",
        verdict(all(rate.low > noisy.high for rate in rates), FAILS)
        if 2.0 * rates[-1].low > rates[0].high
        else PARTLY
        if all(rate.low > noisy.high for rate in rates)
        else FAILS,
    )
    return Finding(
        "3",
        "The rate of DDIM over its steps",
        [claim],
        RATE,
        rows,
        curves=[curve("DDIM", counts_, rates), curve("DDPM", counts_, [noisy] * len(counts_))],
        axes=("steps", "rate of interpolation"),
    )


_OFFSETS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
_TINY = (1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.15, 0.3, 0.45)


def starting_radius(
    problem: Problem, methods: Sequence[Method], offsets: Sequence[float], n: int, bench: Bench, tau: int = TAU
) -> dict[str, list[tuple[int, int]]]:
    """Count interpolated and counted samples of each method from n starts on the segments at each offset.

    A deterministic method takes each segment and side once.
    """
    both = 2 * len(segments(problem.mixture))
    sizes = [n if m.stochastic else both for m in methods]  # a deterministic sampler has one outcome a start
    requests = [
        Request(m, k, bench.size.seed, start=_both_sides(problem, offset, k, tau), tau=tau)
        for m, k in zip(methods, sizes, strict=True)
        for offset in offsets
    ]
    found = [counts(outcome) for outcome in run(problem, requests, bench.engine)]
    return {m.label: found[k * len(offsets) : (k + 1) * len(offsets)] for k, m in enumerate(methods)}


def _both_sides(problem: Problem, offset: float, n: int, tau: int) -> Tensor:
    """Make n starts at an offset to either side of the midpoints, all segments by turns."""
    count = len(segments(problem.mixture))
    signs = 1.0 - 2.0 * (torch.arange(n) // count % 2).double()
    return on_segments(problem, offset * signs, tau)


def _radius(number: str, problem: Problem, offsets: tuple[float, ...], bench: Bench, where: str) -> Finding:
    """Compare DDIM, DDPM and hybrids from starts near the midpoint."""
    methods = (ddim(), DDPM, hybrid(2), hybrid(5), hybrid(8))
    n = max(400, bench.size.n // 20)
    found = {
        m: [wilson(*c) for c in cells] for m, cells in starting_radius(problem, methods, offsets, n, bench).items()
    }
    fast, slow = found["DDIM-50"], found["DDPM-1000"]
    hybrids = [found[m.label] for m in methods[2:]]
    stuck = [k for k in range(len(offsets)) if fast[k].low > 0.5 and all(e.low > 0.5 for e in fast[:k])]
    radius = offsets[stuck[-1]] if stuck else 0.0
    at = stuck[-1] if stuck else 0
    held, start = f"DDIM {short(fast[at])}", f"from {offsets[at]:g} lengths"
    few = ", ".join(short(values[at]) for values in hybrids)
    apart = decide((fast[k].low > slow[k].high for k in stuck), (fast[k].high < slow[k].low for k in stuck))
    claims = [
        Claim(
            number if number.startswith("E") else f"figure {number}",
            f"{where}, there is a radius around the midpoint within which DDIM hallucinates, and DDPM far less often",
            "a radius exists (trajectories with 9 steps left); the curves are only in a figure",
            f"DDIM mostly stays if started within {radius:g} lengths; rate {start}: {held}, DDPM {short(slow[at])}",
            FAILS if not stuck else PARTLY if apart == HOLDS and radius < _OFFSETS[0] else apart,
        ),
        Claim(
            number if number.startswith("E") else f"figure {number}",
            f"{where}, a few DDPM steps in DDIM's run lower the rate",
            "hybrids of 2, 5 and 8 steps lower it",
            f"rate {start}: {held}; with 2, 5 and 8 DDPM steps {few}",
            decide((v[at].high < fast[at].low for v in hybrids), (v[at].low > fast[at].high for v in hybrids)),
        ),
    ]
    rows = [[label, *(short(e) for e in values)] for label, values in found.items()]
    return Finding(
        number,
        f"Rate against the starting radius, {TAU} steps before the end",
        claims,
        ["start, in lengths", *(f"{o:g}" for o in offsets)],
        rows,
        curves=[curve(label, offsets, values) for label, values in found.items()],
        axes=("distance of the start from the midpoint, in lengths", "rate of interpolation"),
        scales=("log", "linear"),
    )


def figure_5(bench: Bench) -> Finding:
    """Measure the rate against the starting radius at tau_3, with the learned score."""
    return _radius("5", learned(), _OFFSETS, bench, "with the learned score")


def figure_e15(bench: Bench) -> Finding:
    """Measure the same with the exact score in double precision, from starts down to 1e-12 lengths."""
    return _radius("E.15", exact(dtype=torch.float64), _TINY, bench, "with the exact score")


def figure_e11(bench: Bench) -> Finding:
    """Measure the rate from near the midpoint, over tau_3."""
    problem, n = learned(), max(400, bench.size.n // 10)
    taus, methods = (5, 7, 9, 11, 13), (ddim(), DDPM)
    offsets = 0.15 * (2.0 * torch.arange(n) / (n - 1) - 1.0)
    starts = [(tau, on_segments(problem, offsets, tau)) for tau in taus]
    requests = [Request(m, n, bench.size.seed, start=start, tau=tau) for m in methods for tau, start in starts]
    found = [outcome.classes.rate() for outcome in run(problem, requests, bench.engine)]
    rates = {methods[0].label: found[: len(taus)], methods[1].label: found[len(taus) :]}
    words = "; ".join(f"{label} {short(v[0])} at 5 steps left, {short(v[-1])} at 13" for label, v in rates.items())
    claim = Claim(
        "figure E.11",
        "a larger tau_3, which leaves more time to escape, lowers the rate of every sampler",
        "the rate drops as tau_3 grows; the curves are only in a figure",
        f"from starts within 0.15 lengths: {words}",
        verdict(all(values[0].low > values[-1].high for values in rates.values())),
    )
    return Finding(
        "E.11",
        "Rate from within 0.15 lengths of the midpoint, over tau_3",
        [claim],
        ["sampler", *(f"{tau} steps left" for tau in taus)],
        [[label, *(short(e) for e in values)] for label, values in rates.items()],
        curves=[curve(label, taus, values) for label, values in rates.items()],
        axes=("tau_3, steps left", "rate of interpolation"),
    )


def figure_e13(bench: Bench) -> Finding:
    """Measure the rate over the noise level eta of DDIM's own steps: overall, and over the starting radius."""
    problem, levels, size = learned(), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), bench.size
    methods = [eta(level) for level in levels]
    overall = [o.classes.rate() for o in run(problem, [Request(m, size.n, size.seed) for m in methods], bench.engine)]
    near = starting_radius(problem, methods, _OFFSETS, max(400, size.n // 20), bench)
    rates = [[wilson(*c) for c in near[m.label]] for m in methods]
    within = [wilson(*map(sum, zip(*near[m.label][:5], strict=True))) for m in methods]
    claims = [
        Claim(
            "figure E.13",
            "the highest level of noise gives the fewest interpolations",
            "eta = 1 has the lowest rate; the curve is only in a figure",
            f"{short(overall[0])} at eta = 0, {short(overall[-2])} at 0.8, {short(overall[-1])} at 1",
            decide((overall[-1].high < e.low for e in overall[:-1]), (overall[-1].low > e.high for e in overall[:-1])),
        ),
        Claim(
            "figure E.13",
            "noise in DDIM's own steps helps samples to leave the neighbourhood of the midpoint",
            "the analogue of figure 5; the curves are only in a figure",
            f"rate from starts within 0.15 lengths: {short(within[0])} at eta = 0, {short(within[-1])} at 1",
            verdict(within[-1].high < within[0].low),
        ),
    ]
    heads = ["noise", "overall", *(f"from {o:g} lengths" for o in _OFFSETS)]
    rows = [
        [m.label, short(whole), *(short(e) for e in line)]
        for m, whole, line in zip(methods, overall, rates, strict=True)
    ]
    return Finding(
        "E.13",
        "Rate over the noise level eta, 50 steps",
        claims,
        heads,
        rows,
        curves=[curve(m.label, _OFFSETS, line) for m, line in zip(methods, rates, strict=True)],
        axes=("distance of the start from the midpoint, in lengths", "rate of interpolation"),
    )


def figure_e16(bench: Bench) -> Finding:
    """Vary T, sigma and l: with a model trained for each, and with the exact score on a coarse grid."""
    rows, gaps, contrary, rates = [], [], [], {}
    size = bench.size
    for name, label in (("base", "none"), ("short", "T = 250"), ("wide", "sigma = 0.05"), ("near", "l = 1")):
        problem = trained(name)
        requests = [Request(ddim(), size.n // 2, size.seed), Request(DDPM, min(size.n, size.long) // 2, size.seed)]
        quick, slow = run(problem, requests, bench.engine)
        rates[name] = quick.classes.rate(), slow.classes.rate()
        gaps.append(rates[name][0].low > rates[name][1].high)
        contrary.append(rates[name][0].high < rates[name][1].low)
        rows.append(["trained", label, "DDIM-50", *(short(r) for r in rates[name]), invalid(quick), invalid(slow)])
    settings = [(f"T = {T}", T, SPREADS[1], LENGTHS[1]) for T in (250, 500, 1000)]
    settings += [(f"sigma = {s * UNIT:g}", 1000, s, LENGTHS[1]) for s in SPREADS]
    settings += [(f"l = {v * UNIT:g}", 1000, SPREADS[1], v) for v in LENGTHS]
    coarse, n = Method("DDIM-20, uniform", "ddim", uniform_20), min(size.n, 10_000)
    every_gap, no_gap = [], []
    for label, top, spread, length in settings:
        problem = exact(spacing=length, std=spread, schedule=schedule_of(top))
        requests = [Request(coarse, n, size.seed), Request(DDPM, min(n, size.long), size.seed)]
        outcomes = run(problem, requests, bench.engine)
        quick, slow = (outcome.classes.rate() for outcome in outcomes)
        every_gap.append(quick.low > slow.high)
        no_gap.append(quick.high < slow.low)
        rows.append(["exact", label, coarse.label, short(quick), short(slow), *(invalid(o) for o in outcomes)])
    base, words = rates["base"], {"short": "T = 250", "wide": "sigma = 0.05", "near": "l = 1"}
    told = "; ".join(f"{words[k]}: {short(rates[k][0])} against {short(rates[k][1])}" for k in words)
    gap = {k: (quick.low - slow.high, quick.high - slow.low) for k, (quick, slow) in rates.items()}
    shrinks = decide(
        (gap[k][1] < gap["base"][0] for k in ("wide", "near")), (gap[k][0] > gap["base"][1] for k in ("wide", "near"))
    )
    claims = [
        Claim(
            "figure E.16",
            "DDIM interpolates more than DDPM for other T, sigma and l, with a model trained for each",
            "the gap persists; no number in the text",
            f"base: {short(base[0])} against {short(base[1])}; {told}",
            decide(gaps, contrary),
        ),
        Claim(
            "figure E.16",
            "the gap shrinks as sigma grows and as l falls, that is, as modes begin to overlap",
            "the gap decreases",
            f"DDIM minus DDPM: base {base[0].value - base[1].value:.2%}, "
            + ", ".join(f"{words[k]} {rates[k][0].value - rates[k][1].value:.2%}" for k in ("wide", "near")),
            shrinks,
        ),
        Claim(
            "ours",
            "with the exact score, coarse steps alone make DDIM interpolate more than DDPM",
            "",
            f"in {sum(every_gap)} of {len(every_gap)} settings DDIM-20 on a uniform grid interpolates more than DDPM",
            decide(every_gap, no_gap),
        ),
    ]
    return Finding(
        "E.16",
        "Ablations over T, sigma and l",
        claims,
        ["score", "changed", "grid", "DDIM", "DDPM, all steps", "invalid, DDIM", "invalid, DDPM"],
        rows,
        note="The four models were trained by the same protocol, shorter than the paper's (scripts/train_mixture.py).",
    )


def schedule_of(top: int):
    """Make the linear schedule of `top` timesteps with the same noise at the end."""
    from steadyflow.schedules import Tabulated

    return Tabulated.linear(top, 0.1 / top, 20.0 / top)


def table_i1(bench: Bench) -> Finding:
    """Split the rate by where samples were at tau_3: M is within theta = 0.35 l of a midpoint, in all directions."""
    rows, claims, size = [], [], bench.size
    found: dict[str, dict[str, tuple[Estimate, Estimate, Estimate, Estimate]]] = {}
    for problem in (learned(), exact()):
        watch = partial(_At, problem, quadratic(50).times[-TAU - 1])
        few = min(size.long, size.n)
        jobs = [(ddim(), size.n), (DDPM, few)] + ([(_FINE, few)] if problem.name != "mixture25" else [])
        requests = [Request(m, n, size.seed, watch=watch) for m, n in jobs]
        mine = found[problem.name] = {}
        for outcome in run(problem, requests, bench.engine):
            assert outcome.found is not None  # it was watched
            counted = outcome.classes.kind != theory.INVALID
            hallucinated = (outcome.classes.kind == theory.INTERPOLATED)[counted]
            parts = theory.decompose(hallucinated, outcome.found[counted])
            rate = outcome.classes.rate()
            inside = outcome.found[counted]
            share = wilson(int((hallucinated & inside).sum()), max(int(hallucinated.sum()), 1))
            mine[outcome.label] = parts.inside, parts.given_inside, rate, share
            cells = [percent(parts.inside), percent(parts.given_inside), percent(parts.given_outside), percent(rate)]
            rows.append(
                [problem.name, outcome.label, *cells, "" if not hallucinated.any() else f"{parts.from_inside:.1%}"]
            )
    quick, slow = (found["mixture25"][label] for label in ("DDIM-50", "DDPM-1000"))
    fast, noisy = (found["exact, 2-d"][label] for label in (_FINE.label, "DDPM-1000"))
    coarse = found["exact, 2-d"]["DDIM-50"]
    none = fast[2].value == noisy[2].value == 0.0
    claims = [
        Claim(
            "table I.1",
            "the midpoint's neighbourhood drives the rates: most of P(H) comes from M",
            "the first term of I.347 dominates",
            f"{short(quick[3])} of DDIM's and {short(slow[3])} of DDPM's interpolated samples had been in M, as had "
            f"{short(quick[0])} and {short(slow[0])} of all samples",
            decide((e[3].low > 0.5 for e in (quick, slow)), (e[3].high < 0.5 for e in (quick, slow))),
        ),
        Claim(
            "table I.1",
            "P(H | M) is larger for DDIM than for DDPM",
            "much larger",
            f"{short(quick[1])} against {short(slow[1])}",
            verdict(quick[1].low > slow[1].high),
        ),
        Claim(
            "appendix I",
            "with the exact score, P(M) is the same for both samplers and P(H) is 0",
            "equal; 0",
            f"P(M) {short(fast[0])} for DDIM over all timesteps and {short(noisy[0])} for DDPM (DDIM-50: "
            f"{short(coarse[0])}, through discretisation error); P(H) {short(fast[2])} and {short(noisy[2])}",
            verdict(max(fast[0].high - noisy[0].low, noisy[0].high - fast[0].low) < _SAME and none, OPEN),
        ),
    ]
    return Finding(
        "I.1",
        "Where interpolated samples come from",
        claims,
        ["score", "sampler", "P(M)", "P(H|M)", "P(H|not M)", "P(H)", "share of P(H) from M"],
        rows,
        note="M: within 0.35 lengths of the midpoint of the two nearest modes, 9 steps of 50 before the end.",
    )


_SAME = 0.03
"""Two rates count as equal if no difference within their intervals is as large."""
_FINE = Method("DDIM-1000", "ddim", every)
"""The flow with hardly an error of its steps."""


class _At:
    """A watch that notes which samples of a batch are near a midpoint when the noise has fallen to that of a time."""

    def __init__(self, problem: Problem, t: float, share: float = 0.35):
        self._problem, self._t, self._share = problem, t, share
        self.found = torch.zeros(0, dtype=torch.bool)

    def __call__(self, info: StepInfo) -> None:
        if info.t == self._t:
            self.found = near_midpoint(self._problem, info.x, info.t, self._share)


def figure_d(bench: Bench) -> Finding:
    """Count how often an interpolated sample lies on the diagonal of a cell and on no edge."""
    problem, rows = learned(), []
    requests = [Request(m, n, bench.size.seed) for m, n in ((ddim(), bench.size.n), (DDPM, bench.size.long))]
    reach, shares = 5.0 * float(problem.mixture.spread), []
    first, second = torch.triu_indices(25, 25, 1)
    pairs = torch.stack([first, second], 1)
    edges, crossings = segments(problem.mixture), pairs[theory.diagonals(pairs, problem.mixture)]
    for outcome in run(problem, requests, bench.engine):
        x = outcome.x[outcome.classes.kind == theory.INTERPOLATED]
        on_edge, on_diagonal = (_near(x, problem, some) <= reach for some in (edges, crossings))
        only = on_diagonal & ~on_edge
        shares.append(wilson(int(only.sum()), max(len(x), 1)))
        other = wilson(int((~on_edge & ~on_diagonal).sum()), max(len(x), 1))
        edge = wilson(int(on_edge.sum()), max(len(x), 1))
        rows.append([outcome.label, str(len(x)), *(percent(e) for e in (edge, shares[-1], other))])
    length = len(crossings) * 2.0**0.5 / (len(crossings) * 2.0**0.5 + len(edges))
    claim = Claim(
        "D.1, figure 1",
        "on a grid, interpolated samples rarely lie on the diagonals of a cell",
        "rarely; a dominant diagonal pair forces the lighter mode's share below e^-2kappa",
        f"{short(shares[0])} of DDIM's lie on a diagonal and on no edge; spread evenly over the length of both, it "
        f"would be {length:.0%}",
        decide([shares[0].high < 0.05], [shares[0].low > 0.05]),
    )
    heads = ["sampler", "interpolated samples", "on an edge", "on a cell's diagonal only", "on a longer segment only"]
    note = (
        "On: within 5 sigma. On a square grid, the two modes nearest to a point are never diagonal neighbours, so "
        "they could not decide this."
    )
    return Finding("D", "Interpolation on diagonals", [claim], heads, rows, note=note)


def _near(x: Tensor, problem: Problem, pairs: Tensor) -> Tensor:
    """Give the distance of each sample to the nearest of some segments, (n,)."""
    ends = problem.mixture.means[pairs]
    return torch.stack([theory.distance_to_segment(x, a, b) for a, b in ends]).amin(0)
