"""What a tune may spend, and how far a fit goes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .fitting import Aim, Fit
from .journal import Journal

_FIRST_STEPS = 4
"""Steps from each beginning, before the best goes on."""
_PATIENCE = 6
"""Steps without progress of one per cent, on the starts that are fitted and on others, after which a fit ends."""
_STEPS = 80
_WORSE = 4.0
"""How much more a figure counts that is not better than the plain solvers'."""
_MARGIN = 0.2


@dataclass
class Budget:
    """What a tune may spend, and has spent."""

    calls: int | None
    minutes: float | None
    bar: Any
    spent: int = 0
    began: float = field(default_factory=time.monotonic)

    def spend(self, calls: int) -> None:
        """Note model evaluations, of one start each."""
        self.spent += calls
        self.bar.update(calls)

    def affords(self, calls: int) -> bool:
        """Whether so many model evaluations can still be made."""
        late = self.minutes is not None and time.monotonic() - self.began > 60.0 * self.minutes
        return not late and (self.calls is None or self.spent + calls <= self.calls)


def best_fit(
    fits: Sequence[Fit[Any, Any]], fit: Sequence[Any], validate: Sequence[Any], budget: Budget, journal: Journal
) -> tuple[Any, int]:
    """Go a few steps from each beginning, and on from the best, until there is no more progress on other starts.

    Args:
        fits: The beginnings.
        fit: The starts to fit on.
        validate: The starts that decide.
        budget: What may be spent.
        journal: What has been done.

    Returns:
        The numbers that were best on those, and how many steps led there.
    """
    aim = fits[0].aim

    def figures(numbers: Any) -> tuple[float, float]:
        found = journal.remembered(lambda: _figures(aim, validate, numbers))
        return float(found[0]), float(found[1])

    began = [figures(one.numbers) for one in fits]
    plain = min(median for median, _ in began), min(mean for _, mean in began)

    def score(numbers: Any) -> float:
        return _score(figures(numbers), plain)

    found: list[tuple[float, Any, int, Fit[Any, Any]]] = []
    makes = fits[0].derivatives != "none"
    for k, one in enumerate(fits):
        best = _score(began[k], plain), one.numbers, 0
        for _ in range(_FIRST_STEPS):
            if not makes or one.stuck or not budget.affords(one.cost(fit)):
                break
            journal.step(one, fit, budget.spend, k)
            best = min(best, (score(one.numbers), one.numbers, one.steps), key=lambda entry: entry[0])
        found.append((best[0], best[1], best[2], one))
    lowest, numbers, steps, chosen = min(found, key=lambda entry: entry[0])
    finishes = ["mean", "median"]
    idle = 0
    while makes and chosen.steps < _STEPS and budget.affords(chosen.cost(fit)):
        if chosen.stuck or idle >= _PATIENCE:
            if not finishes:
                break
            idle, of_mean = 0, finishes.pop(0) == "mean"
            chosen.restart(numbers, of_mean=of_mean)
            continue
        before = chosen.value
        journal.step(chosen, fit, budget.spend, fits.index(chosen))
        reached = score(chosen.numbers)
        idle = 0 if reached < lowest - 0.02 or chosen.value < before - 0.01 else idle + 1
        if reached < lowest:
            lowest, numbers, steps = reached, chosen.numbers, chosen.steps
    return numbers, steps


def _figures(aim: Aim[Any, Any], batches: Sequence[Any], numbers: Any) -> Tensor:
    """The median and the mean error; infinite where a run diverges."""
    errors = torch.cat([aim.errors(batch, numbers) for batch in batches])
    if not bool(errors.isfinite().all()):
        return torch.full((2,), math.inf, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    return torch.stack([errors.quantile(0.5), errors.mean()]).clamp_min(tiny)


def _score(found: tuple[float, float], plain: tuple[float, float]) -> float:
    """The logarithms of both figures over those of the plain solvers; one that is worse than theirs counts more."""
    logs = [math.log(one / other) for one, other in zip(found, plain, strict=True)]
    return sum(one + _WORSE * max(0.0, one + _MARGIN) for one in logs)
