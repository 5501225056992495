"""Schemes as numbers to be fitted, run on a model's field in flow coordinates; and the scheme of any linear solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._integrate.steps import StepLoop
from .._internal.tensors import linear_combination
from ..coordinates import FLOW
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..prediction import Prediction
from ..schedules import Schedule
from ..solvers.base import Solver
from ..solvers.tuned import Scheme, time_on

Field = Callable[[Tensor, float], Tensor]
"""The slope du/dtau at a state (B, ...) in flow coordinates and a flow time."""

_APART = 1e-4
"""The least distance between the times of two calls."""


class Numbers(NamedTuple):
    """The numbers of a scheme of N calls, which are fitted: all but the first time, the first row and the end."""

    times: Tensor
    """The times of the calls, shape (N,), float64."""
    rows: Tensor
    """The factors of the start and the slopes at each call, shape (N, N + 1), zero where a slope is not known yet."""
    weights: Tensor
    """The same at the end, shape (N + 1,)."""
    end: float
    """The time of the end."""
    bound: float
    """The time beyond which no call may lie."""

    @property
    def calls(self) -> int:
        """The number of calls."""
        return len(self.times)

    @classmethod
    def of(cls, scheme: Scheme, bound: float) -> Numbers:
        """The numbers of a scheme.

        Args:
            scheme: The scheme.
            bound: The time beyond which no call may lie, at or before the end.
        """
        n = scheme.calls
        rows = torch.tensor([[*row, *[0.0] * (n + 1 - len(row))] for row in scheme.rows], dtype=torch.float64)
        times, weights = (torch.tensor(values, dtype=torch.float64) for values in (scheme.times, scheme.weights))
        return cls(times, rows, weights, scheme.end, bound)

    def scheme(self) -> Scheme:
        """The scheme of these numbers."""
        rows = tuple(tuple(row[: k + 1]) for k, row in enumerate(_floats(self.rows)))
        return Scheme(tuple(_floats(self.times)), self.end, rows, tuple(_floats(self.weights)))

    @property
    def last(self) -> float:
        """The last time that a call may have."""
        gap = _gap(self.times, self.bound)
        return self.bound if self.bound != self.end else self.end - math.copysign(gap, self.end - float(self.times[0]))

    def bounds(self, values: Tensor) -> dict[int, float]:
        """Which numbers in place of what `packed` gave are beyond their bounds, with the bounds: the last time."""
        sign = 1.0 if self.end > float(self.times[0]) else -1.0
        beyond = self.calls > 1 and sign * (float(values[-1]) - self.last) > 0.0
        return {len(values) - 1: self.last} if beyond else {}

    def packed(self) -> Tensor:
        """What is fitted, as one vector: the weights, the rows from the second, the times from the second."""
        rows = [self.rows[k, : k + 1] for k in range(1, self.calls)]
        return torch.cat([self.weights, *rows, self.times[1:]])

    def extended(self) -> Numbers:
        """The same scheme with one more call in its widest gap, whose slope does not count yet."""
        whole = torch.cat([self.times, torch.tensor([self.bound], dtype=torch.float64)])
        gaps = (whole[1:] - whole[:-1]).abs()
        place = int(gaps.argmax()) + 1
        after = self.rows[place] if place < self.calls else self.weights
        share = 0.5 if place < self.calls or self.bound != self.end else 0.0

        def with_gap(row: Tensor) -> Tensor:
            return torch.cat([row[: place + 1], torch.zeros(1, dtype=torch.float64), row[place + 1 :]])

        middle = (1.0 - share) * self.rows[place - 1] + share * after
        middle = torch.where(torch.arange(len(middle)) <= place, middle, 0.0)
        rows = [with_gap(row) for row in self.rows]
        rows.insert(place, with_gap(middle))
        times = [*_floats(self.times)]
        times.insert(place, 0.5 * float(whole[place - 1] + whole[place]))
        found = torch.tensor(times, dtype=torch.float64)
        return Numbers(found, torch.stack(rows), with_gap(self.weights), self.end, self.bound)

    def unpacked(self, values: Tensor) -> Numbers:
        """These numbers with others in place of what `packed` gave; times keep their order and the range."""
        n = self.calls
        rows, times = self.rows.clone(), self.times.clone()
        place = n + 1
        for k in range(1, n):
            rows[k, : k + 1] = values[place : place + k + 1]
            place += k + 1
        times[1:] = values[place:]
        times = _ordered(times, self.last)
        return Numbers(times, rows, values[: n + 1].clone(), self.end, self.bound)


def _gap(times: Tensor, bound: float) -> float:
    return min(_APART, 0.25 * abs(bound - float(times[0])) / len(times))


def _ordered(times: Tensor, last: float) -> Tensor:
    """Times that strictly run from the first, none of them beyond the last that is allowed."""
    sign = 1.0 if last > float(times[0]) else -1.0
    gap = _gap(times, last)
    found = _floats(sign * times)
    for k in range(1, len(found)):
        found[k] = max(found[k], found[k - 1] + gap)
    for k in reversed(range(1, len(found))):
        found[k] = min(found[k], sign * last - gap * (len(found) - 1 - k))
    return sign * torch.tensor(found, dtype=torch.float64)


def field_of(model: Denoiser) -> Field:
    """The field of a model in flow coordinates."""
    schedule = model.schedule

    def field(u: Tensor, tau: float) -> Tensor:
        level = schedule.at(time_on(schedule, tau))
        return model(u * FLOW.scale(level), level.t).flow

    return field


class Run(NamedTuple):
    """What a run of a scheme computed."""

    end: Tensor
    """The end, shape (B, ...)."""
    points: list[Tensor]
    """Where the model was asked."""
    slopes: list[Tensor]
    """What it answered."""


def run(field: Field, numbers: Numbers, start: Tensor, known: Run | None = None, first: int = 0) -> Run:
    """Run a scheme.

    Args:
        field: The field.
        numbers: The scheme.
        start: The start in flow coordinates, shape (B, ...).
        known: An earlier run, which is taken over up to call number `first`.
        first: The first call to make.
    """
    points, slopes = ([], []) if known is None else (known.points[:first], known.slopes[:first])
    rows = _floats(numbers.rows)
    for k in range(first, numbers.calls):
        points.append(linear_combination(rows[k][: k + 1], [start, *slopes]))
        slopes.append(field(points[-1], float(numbers.times[k])))
    return Run(linear_combination(_floats(numbers.weights), [start, *slopes]), points, slopes)


def scheme_of(solver: Solver[Any], schedule: Schedule, grid: Grid, *, defined_at_zero_noise: bool = False) -> Scheme:
    """Find the scheme that a linear deterministic solver is on a grid, by running its own steps on unit vectors.

    Args:
        solver: The method.
        schedule: The path.
        grid: The grid.
        defined_at_zero_noise: Whether the model can be evaluated at sigma = 0.

    Raises:
        InputError: The solver's calls are not at times that strictly fall or rise, or it is not such a solver.
    """
    size = 256
    units = torch.eye(size, dtype=torch.float64)
    times: list[float] = []
    rows: list[list[float]] = []

    def model(x: Tensor, t: float) -> Prediction:
        level = schedule.at(t)
        rows.append(_floats((x / FLOW.scale(level))[0]))
        times.append(FLOW.time(level))
        if len(times) >= size:
            raise InputError(f"solver {solver.name!r}: more than {size - 1} calls")
        return Prediction(x, units[len(times)][None], "flow", level.alpha, level.sigma)

    begin = schedule.at(grid.times[0])
    state = solver.start(units[:1] * FLOW.scale(begin), schedule, begin.t)
    loop = StepLoop(model, solver, schedule, grid, state, defined_at_zero_noise=defined_at_zero_noise)
    for _ in loop:
        pass
    last = None if grid.clean else schedule.at(grid.times[-1])
    end = solver.output(loop.state) if last is None else solver.output(loop.state) / FLOW.scale(last)
    n = len(times)
    rows = [row[: k + 1] for k, row in enumerate(rows)]
    return Scheme(
        tuple(times),
        0.0 if last is None else FLOW.time(last),
        ((1.0,), *(tuple(row) for row in rows[1:])),
        tuple(_floats(end[0])[: n + 1]),
    )


def _floats(values: Tensor) -> Any:
    return values.tolist()  # pyright: ignore[reportUnknownMemberType]


def parameters(calls: int) -> int:
    """The number of what is fitted in a scheme of so many calls."""
    return (calls + 1) + sum(k + 1 for k in range(1, calls)) + (calls - 1)


class Pair(NamedTuple):
    """The schemes of a round trip, which are fitted together."""

    up: Numbers
    """From data to noise."""
    down: Numbers
    """From noise to data."""

    @property
    def calls(self) -> int:
        """The number of calls of both ways."""
        return self.up.calls + self.down.calls

    def bounds(self, values: Tensor) -> dict[int, float]:
        """As those of `Numbers`, for both schemes."""
        cut = len(self.up.packed())
        below = self.down.bounds(values[cut:])
        return {**self.up.bounds(values[:cut]), **{cut + k: bound for k, bound in below.items()}}

    def packed(self) -> Tensor:
        """The numbers of the way up, and those of the way down."""
        return torch.cat([self.up.packed(), self.down.packed()])

    def unpacked(self, values: Tensor) -> Pair:
        """These schemes with other numbers in place of what `packed` gave."""
        cut = len(self.up.packed())
        return Pair(self.up.unpacked(values[:cut]), self.down.unpacked(values[cut:]))
