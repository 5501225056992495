"""What a tune may spend, and how far a fit goes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import judging
from .fitting import Aim, Fit
from .journal import Journal

_FIRST_STEPS = 3
"""Steps from each beginning, before the best goes on."""
_PATIENCE = 4
"""Steps without progress of one per cent after which a fit ends."""
_STEPS = 40


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

    @property
    def over(self) -> bool:
        """Whether it is used up."""
        late = self.minutes is not None and time.monotonic() - self.began > 60.0 * self.minutes
        return late or (self.calls is not None and self.spent >= self.calls)


def best_fit(
    fits: Sequence[Fit[Any, Any]], fit: Sequence[Any], validate: Sequence[Any], budget: Budget, journal: Journal
) -> Any:
    """Go a few steps from each beginning, and on from the best, until there is no more progress on other starts.

    Args:
        fits: The beginnings.
        fit: The starts to fit on.
        validate: The starts that decide.
        budget: What may be spent.
        journal: What has been done.

    Returns:
        The numbers that were best on those.
    """
    aim = fits[0].aim

    def score(numbers: Any) -> float:
        found = journal.remembered(lambda: torch.tensor(_score(aim, validate, numbers), dtype=torch.float64))
        return float(found)

    found: list[tuple[float, Any, Fit[Any, Any]]] = []
    for k, one in enumerate(fits):
        best = (score(one.numbers), one.numbers)
        for _ in range(_FIRST_STEPS):
            if budget.over or one.stuck:
                break
            journal.step(one, fit, budget.spend, k)
            best = min(best, (score(one.numbers), one.numbers), key=lambda entry: entry[0])
        found.append((*best, one))
    lowest, numbers, chosen = min(found, key=lambda entry: entry[0])
    rounds = 0
    idle = 0
    while not budget.over and chosen.steps < _STEPS and rounds < 2:
        if chosen.stuck or idle >= _PATIENCE:
            rounds, idle, chosen.stuck = rounds + 1, 0, False
            chosen.restart(numbers)
            continue
        journal.step(chosen, fit, budget.spend, fits.index(chosen))
        reached = score(chosen.numbers)
        idle = 0 if reached < lowest - 0.02 else idle + 1
        if reached < lowest:
            lowest, numbers = reached, chosen.numbers
    return numbers


def _score(aim: Aim[Any, Any], batches: Sequence[Any], numbers: Any) -> float:
    """The logarithms of the median and of the mean error, as both are to be small."""
    errors = torch.cat([aim.errors(batch, numbers) for batch in batches])
    if not bool(errors.isfinite().all()):
        return math.inf
    tiny = torch.finfo(torch.float64).tiny
    return math.log(max(judging.median(errors), tiny)) + math.log(max(judging.mean(errors), tiny))
