"""What a run keeps of its states, and what notices at once that they are not finite."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from .._internal.given import whole
from .._internal.tensors import finite
from ..errors import InputError, NonFiniteError
from ..grids import Grid
from ..solvers.base import Step
from .solution import Trajectory

Record = Literal["all", "last"] | int | None
"""What to keep of a run: "all" states, every k-th (an integer k), or only the "last" (None)."""


class Watch:
    """Notices the step at which the state stops being finite."""

    def __init__(self, x: Tensor):
        self._now = x.device.type == "cpu"
        self._sums: list[Tensor] = []

    def see(self, x: Tensor, done: int, step: Step) -> None:
        if not self._now:
            self._sums.append(x.detach().sum())
        elif not finite(x):
            self._fail(done, step.t0, step.t1)

    def close(self, grid: Grid, first: int) -> None:
        if self._sums:
            finite_sums = torch.stack(self._sums).isfinite()
            whole = cast(list[bool], finite_sums.tolist())  # pyright: ignore[reportUnknownMemberType]
            if not all(whole):
                k = first + whole.index(False)
                times = (*grid.times, grid.times[-1])
                self._fail(k + 1, times[k], times[k + 1])

    def _fail(self, done: int, t0: float, t1: float) -> None:
        raise NonFiniteError(
            f"the state became NaN or infinite at step {done}, between t = {t0:.6g} and t = {t1:.6g}; "
            f"more steps, less guidance or a solver with a larger stability interval may help"
        )


class States:
    """Keeps the states that were asked for."""

    def __init__(self, record: Record, total: int | None, t: float, x: Tensor):
        if not (record is None or (isinstance(record, str) and record in ("all", "last"))):
            try:
                record = whole("record", record, 1)
            except InputError:
                raise InputError(
                    f'record: got {record!r}, expected "all", "last", None or a whole number >= 1'
                ) from None
        self._every = 1 if record == "all" else record if isinstance(record, int) else 0
        self._total = total
        self._kept = [(t, x.clone())] if self._every else []
        self._newest: tuple[float, Tensor] | None = None
        self.steps: list[int] = []
        """The numbers of the steps whose ends were kept."""

    def see(self, x: Tensor, done: int, t: float) -> None:
        if not self._every:
            return
        if done % self._every == 0 or done == self._total:
            self._kept.append((t, x.clone()))
            self.steps.append(done)
            self._newest = None
        elif self._total is None:
            self._newest = t, x  # perhaps the last, which is always kept

    @property
    def states(self) -> list[Tensor]:
        """The samples after the start."""
        return [x for _, x in self._kept[1:]]

    @states.setter
    def states(self, states: list[Tensor]) -> None:
        self._kept[1:] = [(t, x) for (t, _), x in zip(self._kept[1:], states, strict=True)]

    def trajectory(self) -> Trajectory | None:
        if not self._every:
            return None
        if self._newest is not None:
            self._kept.append(self._newest)
        return Trajectory(tuple(t for t, _ in self._kept), torch.stack([x for _, x in self._kept]))
