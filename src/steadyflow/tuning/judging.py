"""Plain solvers on named grids at a number of calls, and the verdict on a fit against all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import grids, solvers
from .._internal.numerics import middle
from ..errors import InputError, SteadyflowError
from ..grids import Grid
from ..schedules import Schedule
from ..solvers.base import Solver
from ..solvers.tuned import Plain, Tuned, Verdict

_KEEP = 2.0
"""Plain solvers whose error on a few starts is so many times the best are not judged on all."""
_MOST = 24
_RESAMPLES = 2000
_UNSURE = 2.0
"""How many times a fit's error the fine solve may move from half of its calls to all: it is of fourth order, so that
what is left is a fraction of that."""


class Candidate(NamedTuple):
    """A plain solver on a named grid."""

    plain: Plain
    grid: Grid

    @property
    def label(self) -> str:
        """Its name in words."""
        options = {key: value for key, value in self.plain.solver.spec().items() if key != "name"}
        known = self.plain.solver.name in solvers.names()
        plain = solvers.get(self.plain.solver.name).spec() if known else {}
        own = [f"{key}={value}" for key, value in options.items() if plain.get(key) != value]
        return f"{' '.join([self.plain.solver.name, *own])} on {self.plain.grid}"


Against = Sequence["str | Solver[Any]"]
"""Solvers, or their names."""


def candidates(
    schedule: Schedule,
    calls: int,
    ends: tuple[float, float],
    against: Against | None,
    *,
    clean: bool,
    inverting: bool = False,
) -> Iterator[Candidate]:
    """What can be done without a fit: every deterministic solver of fixed cost, on every named grid.

    Args:
        schedule: The path.
        calls: The number of model evaluations.
        ends: The noisy and the clean end.
        against: The solvers; all by default.
        clean: Whether runs end with the clean estimate.
        inverting: Whether only those that invert approximately, at the same cost both ways; the round trips of exact
            ones are exact by algebra.
    """
    for chosen in solvers.names() if against is None else against:
        solver = solvers.get(chosen)
        facts = solver.properties
        if facts.stochastic or facts.evaluations is None or isinstance(solver, Tuned):
            continue
        if inverting and (facts.inverse != "approximate" or facts.inverse_evaluations not in (None, facts.evaluations)):
            continue
        seen: set[tuple[float, ...]] = set()
        for name in grids.names():
            try:
                grid = Plain(solver, name).on(schedule, calls, *ends, clean=clean)
            except SteadyflowError:  # the budget pays for no step, or the spacing cannot cover the range
                continue
            whole = grid.times[0] == ends[0] and (not inverting or grid.times[-1] == ends[1])
            if whole and grid.times not in seen:  # tables may have ends of their own
                seen.add(grid.times)
                yield Candidate(Plain(solver, name), grid)


def tried(measure: Callable[[Candidate], Tensor], one: Candidate) -> Tensor | None:
    """The errors of a candidate, or None where it cannot run."""
    try:
        found = measure(one).double()
    except SteadyflowError:
        return None
    return found if bool(found.isfinite().all()) else None


@dataclass(frozen=True)
class Judged:
    """The errors of plain solvers on the starts for judging."""

    errors: list[tuple[Candidate, Tensor]]
    """The nearest ones, each with an error per start."""
    compared: int
    """How many were tried at all."""

    def fallback(self) -> tuple[Candidate, Tensor]:
        """The one that is nearest to the best in the median and in the mean."""
        tiny = torch.finfo(torch.float64).tiny
        lowest = [max(min(of(errors) for _, errors in self.errors), tiny) for of in (median, mean)]

        def off(entry: tuple[Candidate, Tensor]) -> float:
            ratios = (of(entry[1]) / low for of, low in zip((median, mean), lowest, strict=True))
            return sum(math.log(max(ratio, tiny)) for ratio in ratios)

        return min(self.errors, key=off)

    def best(self, of: Callable[[Tensor], float]) -> tuple[Candidate, Tensor]:
        """The one with the smallest figure of its errors."""
        return min(self.errors, key=lambda entry: of(entry[1]))


def shortlist(found: Sequence[Candidate], measure: Callable[[Candidate], Tensor]) -> list[tuple[Candidate, Tensor]]:
    """Those whose median or mean error on a few starts is not far from the best one's, the best median first.

    Args:
        found: The candidates.
        measure: The errors of one on a few starts.

    Raises:
        InputError: None can run.
    """
    kept: list[tuple[Candidate, Tensor]] = []
    for one in found:
        errors = tried(measure, one)
        if errors is not None:
            kept.append((one, errors))
    if not kept:
        raise InputError("nfe: no plain solver can run with so few evaluations on this path; give more")
    tiny = torch.finfo(torch.float64).tiny
    lowest = [max(min(of(errors) for _, errors in kept), tiny) for of in (median, mean)]
    near = [e for e in kept if median(e[1]) <= _KEEP * lowest[0] or mean(e[1]) <= _KEEP * lowest[1]]
    near.sort(key=lambda entry: min(median(entry[1]) / lowest[0], mean(entry[1]) / lowest[1]))
    return near[:_MOST]


def median(errors: Tensor) -> float:
    """The median of errors, shape (n,)."""
    return float(errors.quantile(0.5))


def mean(errors: Tensor) -> float:
    """The mean of errors, shape (n,)."""
    return float(errors.mean())


def p95(errors: Tensor) -> float:
    """The 95th percentile of errors, shape (n,)."""
    return float(errors.quantile(0.95))


def verdict(fitted: Tensor, judged: Judged, how: str, fit_rows: int, reference: float, calls: int) -> Verdict:
    """Compare a fit with the best plain solvers, chosen on the same starts.

    Args:
        fitted: The errors of the fit, shape (n,), float64.
        judged: Those of the plain solvers.
        how: How it was fitted.
        fit_rows: On how many starts.
        reference: How far the fine solve moved from half of its calls; 0 where it is not what errors are measured from.
        calls: What the fit took.
    """
    _, medians = judged.best(median)
    _, means = judged.best(mean)
    plain, of_plain = judged.fallback()
    of_median = gain(medians, fitted, lambda errors: errors.quantile(0.5, dim=-1))
    of_mean = gain(means, fitted, lambda errors: errors.mean(-1))
    sure = reference <= _UNSURE * median(fitted)
    return Verdict(
        won=sure and of_median[1] > 1.0 and of_mean[1] > 1.0,
        fitted=how,
        median=median(fitted),
        mean=mean(fitted),
        p95=p95(fitted),
        plain=plain.label,
        plain_median=median(of_plain),
        plain_mean=mean(of_plain),
        plain_p95=p95(of_plain),
        gain_median=of_median,
        gain_mean=of_mean,
        compared=judged.compared,
        fit_rows=fit_rows,
        judged_rows=len(fitted),
        reference=reference,
        calls=calls,
    )


def is_open(found: Verdict) -> bool:
    """Whether a fit would have won, had the fine solves been fine enough to tell."""
    return not found.won and found.gain_median[1] > 1.0 and found.gain_mean[1] > 1.0


def gain(plain: Tensor, fitted: Tensor, figure: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """The ratio of a figure of paired errors, with a 95 % bootstrap interval over the starts.

    Args:
        plain: Errors of the plain solver, shape (n,).
        fitted: Those of the fit, shape (n,).
        figure: What is compared, of errors (..., n).
    """
    draws = torch.randint(len(plain), (_RESAMPLES, len(plain)), generator=torch.Generator().manual_seed(0))
    tiny = torch.finfo(torch.float64).tiny
    drawn = figure(plain[draws]) / figure(fitted[draws]).clamp_min(tiny)
    low, high = middle(drawn, 0.95)
    return float(figure(plain) / figure(fitted).clamp_min(tiny)), low, high
