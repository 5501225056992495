"""The exact flow of a model from the times of a grid, and what the steps of runs over that grid add to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._integrate import PIDController, integrate
from .._internal.tensors import rms
from ..denoisers.base import Denoiser
from ..errors import ConvergenceError, NonFiniteError
from ..grids import Grid
from ..solvers import registry

_SOLVER = registry.get("dopri5")


@dataclass(frozen=True)
class Arisen:
    """Where the differences between runs from one start arise, and what becomes of them. Of R runs there are R parts:
    the difference of each run from the next, and of the last from the exact journey."""

    exact: Tensor
    """The ends of the exact journeys, float64, shape (B, ...)."""
    sums: tuple[Tensor, ...]
    """Of each part, the sum of what the steps made, shape (B, ...)."""
    made: tuple[Tensor, ...]
    """Of each part, the root mean square of what each of the K steps made, shape (K, B)."""
    reached: tuple[Tensor, ...]
    """Of each part, that of what the exact flow makes of it by the end, shape (K, B)."""


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
        return self._after([x], 0)[0]

    def follow(self, runs: Sequence[Tensor], bar: Any) -> Arisen:
        """Find where the differences between runs arise.

        Args:
            runs: The float64 states that each visits, shape (K + 1, B, ...), from one start.
            bar: Is told of every step.
        """
        sums: list[Tensor] = []
        made, reached = list[list[Tensor]](), list[list[Tensor]]()
        exact = before = list[Tensor]()
        for k, scale in enumerate(self._scales()):
            there = self._within([run[k] for run in runs], k)
            ends = self._after(there, k + 1)
            if k:
                reached.append(_parts(ends, before))
            exact, before = exact or ends, ends
            new = _parts([run[k + 1] for run in runs], there)
            new = [part * scale for part in new]
            made.append([rms(part) for part in new])
            sums = [part + one for part, one in zip(sums, new, strict=True)] if sums else new
            bar.update()
        reached.append(_parts([run[-1] for run in runs], before))
        sizes = [[rms(part) for part in parts] for parts in reached]
        by_part = [tuple(torch.stack(steps) for steps in zip(*found, strict=True)) for found in (made, sizes)]
        return Arisen(exact[0], tuple(sums), by_part[0], by_part[1])

    def _scales(self) -> list[float]:
        """How large a state of unit variance is at the end of the grid, over how large it is after each step."""
        levels = [self.model.schedule.at(t) for t in self.grid.times[1:]]
        sizes = [*(math.hypot(level.alpha, level.sigma) for level in levels), *([1.0] if self.grid.clean else [])]
        return [sizes[-1] / size for size in sizes]

    def _within(self, xs: list[Tensor], k: int) -> list[Tensor]:
        """The exact flow over step k."""
        times, clean = self.grid.times[k : k + 2], self.grid.clean
        return self._solved(xs, Grid(times, clean=clean and len(times) == 1))

    def _after(self, xs: list[Tensor], k: int) -> list[Tensor]:
        """The exact flow from the state before step k to the end."""
        times, clean = self.grid.times[k:], self.grid.clean
        if len(times) + clean < 2:
            return xs
        return self._solved(xs, Grid((*times[:1], *times[1:][-1:]), clean=clean))

    def _solved(self, xs: list[Tensor], grid: Grid) -> list[Tensor]:
        """The exact flow over a grid, of which only the ends count, from several states.

        All take the steps that the first needs, so that what the solve leaves out cancels from their differences; equal
        states are solved for once.
        """
        found: list[Tensor] = []
        control = None if len(grid) == 1 else PIDController(self.tolerance, self.tolerance, max_steps=5000)
        for k, x in enumerate(xs):
            equal = next((j for j in range(k) if torch.equal(x, xs[j])), None)
            if equal is not None:
                found.append(found[equal])
                continue
            try:
                run = integrate(self.model, x, grid, _SOLVER, controller=control, progress=False)
            except (ConvergenceError, NonFiniteError) as error:
                raise ConvergenceError(
                    f"compare: the reference solve of the plain model failed ({error}); give a larger tolerance, or "
                    "the plain model in float64 as `precise`"
                ) from error
            grid, control = run.grid, None
            found.append(run.x)
            self.nfe += run.nfe
        return found


def _parts(runs: list[Tensor], exact: list[Tensor]) -> list[Tensor]:
    """The differences of runs from what is exact for each, as parts."""
    off = [x - y for x, y in zip(runs, exact, strict=True)]
    return [*(one - following for one, following in zip(off, off[1:], strict=False)), off[-1]]
