"""Editing along a field of one's own: FlowEdit, which inverts nothing, and RF-Inversion, which steers both ways.

Both are written for rectified flows; in flow coordinates u = x / (alpha + sigma), tau = sigma / (alpha + sigma),
in which every path is one (see `coordinates`), they hold for all. Each is a model of a rectified flow made from models
of the data, so that every solver runs on it, with everything that may look at a run.

FlowEdit (Kulikov et al. 2024, 2412.08629): with fresh noise n at every evaluation, u_s = (1 - tau) x + tau n and
u_t = z + u_s - x, the edit z follows  dz/dtau = v(u_t, target) - v(u_s, source).

RF-Inversion (Rout et al. 2024, 2410.10792): upwards  du/dtau = v + gamma ((y - u)/(1 - tau) - v) towards a noise y,
downwards  du/dtau = v + eta ((u - x)/tau - v) towards the source x, over a window of the way.
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .. import noise
from .._integrate import Solution, StepInfo, Trajectory
from ..coordinates import FLOW
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..prediction import Prediction
from ..schedules import Level, RectifiedFlow, Schedule
from ..solvers.base import Solver
from ..tasks._batched import run_batched
from ..tasks._options import Resolved
from .base import Edit, EditMethod, EditRequest, finished, register

_NO_INVERSION = {
    "inversion": "it makes none, so that there is none to start from",
    "mask": "it keeps no states of the source to hold on to",
    "corrections": "its states follow a field of its own, not the path of the data",
}


@dataclass(frozen=True, eq=False)
class _Field(Denoiser):
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


def _field(velocity: Callable[[Tensor, float, slice], Tensor], calls: int) -> _Field:
    return _Field(velocity, RectifiedFlow(), prediction="flow", name="edit", calls=calls)


def _velocity(model: Denoiser, u: Tensor, tau: float, rows: slice) -> Tensor:
    """du/dtau of a model of the data at (u, tau), for some samples of the batch."""
    schedule = model.schedule
    level = schedule.at(FLOW.when(schedule, tau))
    part = model if rows == slice(None) else model.slice(rows.start, rows.stop)
    return part(u * FLOW.scale(level), level.t).flow


def _clock(schedule: Schedule, grid: Grid) -> Grid:
    """A grid of the data's path as times of flow coordinates."""
    if grid.tensor is not None:
        raise InputError("grid: its times have no gradient with this way of editing; detach() them")
    return Grid(tuple(FLOW.time(schedule.at(t)) for t in grid.times))


def _solver(request: EditRequest) -> Solver[Any]:
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


def _run(
    model: _Field,
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
    inner = _clock(schedule, grid)
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
    return replace(found, state=state, grid=times, seed=options.seed, trajectory=seen_states)


@register
@dataclass(frozen=True)
class FlowEdit(EditMethod):
    """FlowEdit: move samples along the difference of the target's and the source's fields, without an inversion.

    Nothing is stored. The same conditions and guidance give x back exactly. `nfe` counts the evaluations of each of the
    two fields, whose sum is what the edit costs, as in a method that goes there and back.

    Args:
        average: How many noises are averaged per evaluation of the difference.
    """

    average: int = 1
    name: ClassVar[str] = "flow-edit"
    draws_noise: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"solver": "euler", "strength": 0.66, "grid": "uniform"}
    refuses: ClassVar[Mapping[str, str]] = {**_NO_INVERSION, "noise": "it draws its own for every evaluation"}

    def __post_init__(self):
        if not isinstance(self.average, int) or self.average < 1:
            raise InputError(f"average: got {self.average!r}, expected at least one noise")

    def edit(self, request: EditRequest) -> Edit:
        options, x, source, target = request.options, request.x, request.source, request.target
        solver, schedule = _solver(request), source.schedule
        if options.steps is None and not isinstance(options.grid, Grid):
            options = options.changed(nfe=options.budget // self.average)

        def velocity(z: Tensor, tau: float, rows: slice) -> Tensor:
            mine = x[rows]
            samples = range(options.index + (rows.start or 0), options.index + (rows.start or 0) + len(mine))
            change = torch.zeros_like(mine)
            (address,) = struct.unpack("<Q", struct.pack("<d", tau))
            for repeat in range(self.average):
                drawn = noise.like(mine, options.seed, noise.PERTURBATION, (address, repeat, 3), samples)
                noisy = (1.0 - tau) * mine + tau * drawn
                change += _velocity(target, z + noisy - mine, tau, rows) - _velocity(source, noisy, tau, rows)
            return change / self.average

        model = _field(velocity, self.average * (source.cost + target.cost))
        grid = options.falling(source)
        found = _run(model, schedule, grid, solver, options, x)
        return finished(request, self, found, nfe=found.nfe)


@register
@dataclass(frozen=True)
class RFInversion(EditMethod):
    """RF-Inversion: up with a pull towards typical noise, down with a pull towards the source; not exact.

    Args:
        gamma: The strength of the pull upwards, in [0, 1]; 0 is the plain inversion.
        eta: That of the pull downwards.
        window: The share of the steps with the pull downwards, counted from the noisy end.
    """

    gamma: float = 0.5
    eta: float = 0.9
    window: tuple[float, float] = (0.0, 0.4)
    name: ClassVar[str] = "rf-inversion"
    draws_noise: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"solver": "euler", "grid": "uniform"}
    refuses: ClassVar[Mapping[str, str]] = {**_NO_INVERSION, "noise": "its one noise is the goal of the way up"}

    def __post_init__(self):
        if not (0.0 <= self.gamma <= 1.0 and 0.0 <= self.eta <= 1.0):
            raise InputError(f"rf-inversion: gamma and eta lie in [0, 1], got {self.gamma} and {self.eta}")
        window = tuple(self.window) if isinstance(self.window, tuple | list) else ()
        if len(window) != 2 or not 0.0 <= window[0] <= window[1] <= 1.0:
            raise InputError(f"rf-inversion: got window {self.window!r}, expected two rising shares in [0, 1]")
        object.__setattr__(self, "window", window)

    def edit(self, request: EditRequest) -> Edit:
        options, source, target = request.options, request.source, request.target
        solver, schedule = _solver(request), source.schedule
        if options.controller is not None:
            raise InputError("steps: the window of this method counts steps; give their number")
        grid = options.falling(source)
        u = request.x / FLOW.scale(schedule.at(grid.times[-1]))
        samples = range(options.index, options.index + len(u))
        goal = noise.like(u, options.seed, noise.PERTURBATION, (1, 0, 1), samples)
        begin, end = self._window(_clock(schedule, grid).times)

        def up(state: Tensor, tau: float, rows: slice) -> Tensor:
            slope = _velocity(source, state, tau, rows)
            return slope + self.gamma * ((goal[rows] - state) / (1.0 - tau) - slope)

        def down(state: Tensor, tau: float, rows: slice) -> Tensor:
            slope = _velocity(target, state, tau, rows)
            if end < tau <= begin:
                slope = slope + self.eta * ((state - u[rows]) / tau - slope)
            return slope

        scaled = FLOW.scale
        rising = _run(_field(up, source.cost), schedule, grid.reversed(), solver, options, request.x, scaled)
        found = _run(_field(down, target.cost), schedule, grid, solver, options, rising.x, scaled)
        return finished(request, self, found, nfe=rising.nfe + found.nfe)

    def _window(self, times: Sequence[float]) -> tuple[float, float]:
        """The times of flow coordinates between which the pull downwards acts, the later one not among them."""
        n = len(times) - 1
        ends = [(1.0 if k <= 0 else -1.0 if k > n else times[k]) for k in (_ceil(share * n) for share in self.window)]
        return ends[0], ends[1]


def _ceil(value: float) -> int:
    return -int(-value // 1)
