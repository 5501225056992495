"""The exact flow of a model from the times of a grid, and what the steps of a run over that grid add to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._integrate import PIDController, Solution, integrate
from .._internal.tensors import rms
from ..denoisers.base import Denoiser
from ..errors import ConvergenceError, NonFiniteError
from ..grids import Grid
from ..solvers import registry

REFERENCE = registry.get("dopri5")
"""The method of reference solves."""


def adaptive(model: Denoiser, x: Tensor, grid: Grid, tolerance: float) -> Solution:
    """An adaptive solve between the ends of a grid, or the reading of the clean estimate where it has one time.

    Args:
        model: The model.
        x: The start, shape (B, ...).
        grid: The grid, of which only the ends count.
        tolerance: Relative and absolute.

    Raises:
        ConvergenceError: It needs too many steps.
        NonFiniteError: It diverged.
    """
    control = None if len(grid) == 1 else PIDController(tolerance, tolerance, max_steps=5000)
    return integrate(model, x, grid, REFERENCE, controller=control, progress=False)


@dataclass(frozen=True)
class StepErrors:
    """The errors that the steps of a run make, and what becomes of them."""

    exact: Tensor
    """The end of the exact journey from the run's start, float64, shape (B, ...)."""
    total: Tensor
    """The sum of what the steps make, shape (B, ...)."""
    made: Tensor
    """The root mean square of what each of the K steps makes, shape (K, B)."""
    reached: Tensor
    """That of what the exact flow makes of it by the end, shape (K, B)."""


class ExactFlow:
    """A model's flow between the times of a falling grid, by adaptive solves.

    Args:
        model: The model, which should compute in float64.
        grid: The grid. The reading of the clean estimate belongs to the flow of one that is `clean`.
        tolerance: The tolerance of the solves.
    """

    def __init__(self, model: Denoiser, grid: Grid, tolerance: float):
        self.model, self.grid, self.tolerance = model, grid, tolerance
        self.nfe = 0
        """Evaluations of the model per sample so far."""

    def end(self, x: Tensor) -> Tensor:
        """The end of the exact journey from the grid's first time."""
        return self._after(x, 0)

    def errors(self, states: Sequence[Tensor], bar: Any) -> StepErrors:
        """Find the errors of a run's steps.

        Args:
            states: The float64 states that it visits, each of shape (B, ...).
            bar: Is told of every step.
        """
        ends, made, total = list[Tensor](), list[Tensor](), torch.zeros_like(states[0])
        for k, scale in enumerate(self._scales()):
            there = self._within(states[k], k)
            ends.append(self._after(there, k + 1))
            new = scale * (states[k + 1] - there)
            total = total + new
            made.append(rms(new))
            bar.update()
        reached = [rms(after - before) for before, after in zip(ends, [*ends[1:], states[-1]], strict=True)]
        return StepErrors(ends[0], total, torch.stack(made), torch.stack(reached))

    def _scales(self) -> list[float]:
        """How large a state of unit variance is at the end of the grid, over how large it is after each step."""
        levels = [self.model.schedule.at(t) for t in self.grid.times[1:]]
        sizes = [*(math.hypot(level.alpha, level.sigma) for level in levels), *([1.0] if self.grid.clean else [])]
        return [sizes[-1] / size for size in sizes]

    def _within(self, x: Tensor, k: int) -> Tensor:
        """The exact flow over step k."""
        times = self.grid.times[k : k + 2]
        return self._solved(x, Grid(times, clean=len(times) == 1))

    def _after(self, x: Tensor, k: int) -> Tensor:
        """The exact flow from the state before step k to the end."""
        times, clean = self.grid.times[k:], self.grid.clean
        if len(times) + clean < 2:
            return x
        return self._solved(x, Grid((*times[:1], *times[1:][-1:]), clean=clean))

    def _solved(self, x: Tensor, grid: Grid) -> Tensor:
        """The exact flow over a grid, of which only the ends count."""
        try:
            run = adaptive(self.model, x, grid, self.tolerance)
        except (ConvergenceError, NonFiniteError) as error:
            raise ConvergenceError(
                f"compare: the reference solve of the plain model failed ({error}); give a larger tolerance, or the "
                "plain model in float64 as `precise`"
            ) from error
        self.nfe += run.nfe
        return run.x
