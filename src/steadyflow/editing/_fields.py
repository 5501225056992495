"""Fields in flow coordinates as models of a rectified flow: what methods follow that leave the path of the data.

In flow coordinates u = x / (alpha + sigma), tau = sigma / (alpha + sigma) every path is a rectified flow (see
`coordinates`), so that what is written for rectified flows holds for all; and as models, fields run on every solver,
with everything that may look at a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from .._integrate import Solution, StepInfo, Trajectory
from ..coordinates import FLOW
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..prediction import Prediction
from ..schedules import Level, RectifiedFlow, Schedule
from ..schedules._functions import Scalar
from ..solvers.base import Solver
from ..tasks._batched import run_batched
from ..tasks._options import Resolved
from .base import EditRequest

NO_INVERSION = {
    "inversion": "it makes none, so that there is none to start from",
    "mask": "it keeps no states of the source to hold on to",
    "corrections": "its states follow a field of its own, not the path of the data",
}


@dataclass(frozen=True)
class _Straight(RectifiedFlow):
    """The rectified flow with alpha and sigma that add up to one to the last bit, so that what does not move stays."""

    def alpha(self, t: Scalar) -> Scalar:
        return 1.0 - t

    def sigma(self, t: Scalar) -> Scalar:
        return t


@dataclass(frozen=True, eq=False)
class Field(Denoiser):
    """A velocity du/dtau of flow coordinates as a model of a rectified flow, whose time is tau.

    `net(u, tau, rows)` answers for the samples `rows` of the batch, with `calls` evaluations of the data's models.
    """

    calls: int = 1
    rows: slice = field(default_factory=lambda: slice(None))

    def __call__(self, x: Tensor, t: float | Tensor) -> Prediction:
        assert isinstance(t, float)
        level = self.schedule.at(t)
        return Prediction(x, self.net(x, t, self.rows), "flow", level.alpha, level.sigma)

    def slice(self, start: int, stop: int) -> Self:
        return self._replace(rows=slice(start, stop))

    @property
    def cost(self) -> int:
        return self.calls


def field_of(net: Callable[[Tensor, float, slice], Tensor], calls: int) -> Field:
    """A field as a model.

    Args:
        net: The velocity at (u, tau) of some samples of the batch.
        calls: How many evaluations of the data's models it makes.
    """
    return Field(net, _Straight(), prediction="flow", name="edit", calls=calls)


def velocity(model: Denoiser, u: Tensor, tau: float, rows: slice) -> Tensor:
    """du/dtau of a model of the data at (u, tau), for some samples of the batch."""
    schedule = model.schedule
    level = schedule.at(FLOW.when(schedule, tau))
    part = model if rows == slice(None) else model.slice(rows.start, rows.stop)
    return part(u * FLOW.scale(level), level.t).flow


def clock(schedule: Schedule, grid: Grid) -> Grid:
    """A grid of the data's path as times of flow coordinates."""
    if grid.tensor is not None:
        raise InputError("grid: its times have no gradient with this way of editing; detach() them")
    return Grid(tuple(FLOW.time(schedule.at(t)) for t in grid.times))


def solver_of(request: EditRequest) -> Solver[Any]:
    """The solver, in flow coordinates: the field is no model of data, and is only defined there."""
    if request.options.auto is not None:
        raise InputError("solver: a choice by trial is for methods that invert; name a Runge-Kutta method")
    solver = request.options.method
    if solver.has_own_grid:
        raise InputError(
            f"solver {solver.name!r}: it was fitted to the field of a model, and this way of editing follows another "
            "one; name a Runge-Kutta method, or edit with method='inversion'"
        )
    if solver.coordinates != "flow" or solver.properties.stochastic or not solver.invertible:
        raise InputError(
            f"solver {solver.name!r}: this way of editing follows a field of flow coordinates; use a Runge-Kutta "
            "method in them, such as 'euler', 'midpoint' or 'ees25'"
        )
    return solver


def _unscaled(level: Level) -> float:
    return 1.0


def run(
    model: Field,
    schedule: Schedule,
    grid: Grid,
    solver: Solver[Any],
    options: Resolved,
    x: Tensor,
    scale: Callable[[Level], float] = _unscaled,
) -> Solution:
    """Follow a field of flow coordinates; whoever looks sees the data's path.

    Args:
        model: The field.
        schedule: The data's path.
        grid: The times on it, in the order of the run.
        solver: The method.
        options: Those of the run.
        x: The start, in the units of the data's path; shape (B, ...).
        scale: What a state of the field is multiplied by to be one of the data's path.

    Returns:
        The run, with its times and states on the data's path.
    """
    inner = clock(schedule, grid)
    levels = {tau: schedule.at(t) for tau, t in zip(inner.times, grid.times, strict=True)}

    def level_of(tau: float) -> Level:
        known = levels.get(tau)
        return schedule.at(FLOW.when(schedule, tau)) if known is None else known  # a controller chooses its own times

    callback = options.callback
    if callback is not None:
        seen = callback

        def outside(info: StepInfo) -> None:
            level = level_of(info.t)
            seen(info._replace(t=level.t, x=info.x * scale(level), grid=grid))

        callback = outside
    start, end = (schedule.at(grid.times[k]) for k in (0, -1))
    found = run_batched(model, inner, solver, options.changed(callback=callback), x=x / scale(start))
    seen_states = found.trajectory
    if seen_states is not None:
        there = [level_of(tau) for tau in seen_states.times]
        states = torch.stack([x * scale(level) for x, level in zip(seen_states.x, there, strict=True)])
        seen_states = Trajectory(tuple(level.t for level in there), states)
    state = found.state * scale(end)
    times = Grid(tuple(level_of(tau).t for tau in found.grid.times))
    return replace(found, state=state, grid=times, trajectory=seen_states)


def within(options: Resolved, nfe: int) -> Resolved:
    """The options with as many evaluations, at least one, where neither steps nor the times themselves are given."""
    given = options.steps is not None or isinstance(options.grid, Grid)
    return options if given else options.changed(nfe=max(1, nfe))


def check_euler(request: EditRequest, why: str) -> Solver[Any]:
    """Euler's method. Raises `InputError` for another one, or for a controller, where a method counts steps."""
    options = request.options
    if options.auto is None and options.method.name != "euler":
        raise InputError(f"solver {options.method.name!r}: {why}; use 'euler'")
    check_counted(options)
    return solver_of(request)


def check_counted(options: Resolved) -> None:
    """Raise `InputError` where a controller chooses the steps."""
    if options.controller is not None:
        raise InputError("steps: this method counts its steps; give their number")


class Carried:
    """What a method carries from step to step, for each chunk of a batch; a chunk's first step starts it anew."""

    def __init__(self):
        self._held: dict[int, Any] = {}

    def get(self, rows: slice) -> Any:
        """What the last step of these samples left."""
        return self._held.get(rows.start or 0)

    def set(self, rows: slice, value: Any) -> None:
        """Leave something for the next step of these samples."""
        self._held[rows.start or 0] = value
