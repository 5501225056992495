"""The gradient of a run with respect to the times of its grid.

The numbers of a step (alpha, sigma, coefficients) are floats, computed from its times, so that no graph leads to them.
With the step's state s, the network's outputs o_i and the cotangents w of its end frozen, though, the scalar

    phi(t) = <w, F(t; s, o)> + sum_i <r_i, q_i(t)> + sum_i m_i t_i(t),

with q_i and t_i the points at which the model is asked, and r_i, m_i the gradients that reach the network through its
two arguments, has the step's gradient with respect to its times as its derivative. It takes no call of the network:
F is the solver's own code, run once more on o_i. The derivative in each time is a difference of sixth order in
float64, taken with two widths, which must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..denoisers.base import Denoiser
from ..errors import InputError, SteadyflowError
from ..grids import Grid
from ..prediction import Prediction, PredictionType
from ..schedules import Schedule
from ..solvers.base import Solver, Step
from ..solvers.state import flatten_state
from .adjoint import Adjoint
from .steps import Model

_CENTRAL = ((1, 0.75), (2, -0.15), (3, 1.0 / 60.0))
_ONE_SIDED = (-2.45, 6.0, -7.5, 20.0 / 3.0, -3.75, 1.2, -1.0 / 6.0)
_WIDTH = 1e-3
"""The width of a difference, as a share of the distance to the next time or to the end of the path."""
_AGREE = 1e-4
"""How far the two differences may lie apart; the error of the narrow one is some 60 times smaller."""
_ON_KNOT = 1e-6
"""The distance below which a time counts as one where the path bends."""


class _Call(NamedTuple):
    """A call of the model within a step."""

    output: Tensor
    kind: PredictionType
    moved: Tensor
    """A zero that was added to the state which the model saw, whose gradient is r."""
    time: Tensor
    """The time that the model saw, shape (B,)."""


def check_times(
    how: Adjoint | None, solver: Solver[Any], corrections: Sequence[object], state: Any, adaptive: bool
) -> None:
    """Refuse a run whose grid is made of a tensor that requires a gradient, where its times have none.

    Args:
        how: How gradients pass through the run.
        solver: Its method.
        corrections: Its corrections.
        state: A state of a solver that the run begins with, if it does not begin with a sample.
        adaptive: Whether a controller chooses the steps.

    Raises:
        InputError: Gradients pass in a way that does not reach them, noise is drawn, corrections act, a controller
            chooses the steps, or the state holds numbers that may belong to other times.
    """
    if how is None or how.kind == "none" or how.order == 2:
        raise InputError(
            "grid: its times require a gradient, which needs adjoint='checkpoint' or 'reversible' (of order 1); "
            "detach() them if none is wanted"
        )
    if solver.properties.stochastic:
        raise InputError(
            f"grid: its times have no gradient with solver {solver.name!r}, as noise is no smooth function of them; "
            "detach() them"
        )
    if corrections:
        raise InputError("grid: its times have no gradient in a run with corrections; detach() them")
    if adaptive:
        raise InputError("grid: its times have no gradient where a controller chooses the steps; detach() them")
    if _floats(state)[1]:
        raise InputError(
            "grid: its times have no gradient where a run goes on from the state of another, which holds times of its "
            "own; detach() them"
        )


def level_at(schedule: Schedule, time: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma at a time, with their derivatives, which differences of the path's numbers give.

    Args:
        schedule: The path.
        time: The path time, shape ().
    """
    t, (low, high) = float(time.detach()), schedule.domain
    room = min(abs(t - end) for end in (low, high) if end != t and math.isfinite(end))
    moved = time.double() - t  # 0, with a gradient
    found: list[Tensor] = []
    for number in (schedule.alpha, schedule.sigma):
        slope = _difference(lambda h, number=number: number(t + h), _WIDTH * min(room, 1.0), t == low, t == high)
        found.append(number(t) + slope * moved)
    return found[0], found[1]


def _difference(at: Callable[[float], float], width: float, lowest: bool, highest: bool) -> float:
    """Return a derivative at 0 by a difference of sixth order, to one side at an end."""
    if lowest or highest:
        side = width if lowest else -width
        return sum(c * at(n * side) for n, c in enumerate(_ONE_SIDED)) / side
    return sum(c * (at(n * width) - at(-n * width)) for n, c in _CENTRAL) / width


class Times:
    """What the gradient of a grid's times is added up in.

    Args:
        grid: The grid, made of a tensor.
        schedule: The path.
        first: The step of the grid with which the run begins.
    """

    def __init__(self, grid: Grid, schedule: Schedule, first: int):
        assert grid.tensor is not None
        self.tensor, self._schedule, self._first = grid.tensor, schedule, first
        self._sum: list[float] = []
        self._calls: list[_Call] = []
        self._floats: list[float] | None = None

    def begin(self) -> None:
        """Begin a way back."""
        self._sum, self._floats = [0.0] * len(self.tensor), None

    @property
    def sources(self) -> list[Tensor]:
        """What the gradients of the step's calls are to be taken of."""
        return [part for call in self._calls for part in (call.moved, call.time)]

    def listening(self, model: Denoiser) -> Model:
        """Return a model that notes the calls of a step."""
        self._calls = []

        def answer(x: Tensor, t: float) -> Prediction:
            moved = torch.zeros_like(x).requires_grad_()
            time = torch.full((len(x),), t, dtype=x.dtype, device=x.device).requires_grad_()
            found = model(x + moved, time)
            if found.plain is not None:
                raise InputError("grid: times have no gradient with Clip(keeps_noise=True)")
            self._calls.append(_Call(found.output.detach(), found.kind, moved, time))
            level = self._schedule.at(t)
            return Prediction(x, found.output, found.kind, level.alpha, level.sigma)

        return answer

    def add(
        self,
        step: Step,
        k: int,
        solver: Solver[Any],
        before: Any,
        cotangents: Sequence[Tensor | None],
        of_calls: Sequence[Tensor | None],
    ) -> None:
        """Add the gradient of a step.

        Args:
            step: The step.
            k: Its number in the run.
            solver: The method.
            before: The solver's state before the step.
            cotangents: The gradients of the tensors of the state after it, and of its sample.
            of_calls: The gradients of `sources`.
        """
        build, parts = flatten_state(before)
        state = build([part.double() for part in parts])
        rebuild, floats = _floats(state)
        pushed = [None if r is None else r.double() for r in of_calls[::2]]
        pulled = [0.0 if m is None else float(m.double().sum()) for m in of_calls[1::2]]
        weights = [None if w is None else w.double() for w in cotangents]
        after = self._floats

        def phi(values: Sequence[float]) -> float:
            start, end = self._schedule.at(values[0]), step.end
            if not step.reads_clean:
                end = self._schedule.at(values[1])
            moved = replace(step, start=start, end=end)
            total, i = torch.zeros((), dtype=torch.float64, device=parts[0].device), 0
            queries = solver.advance(rebuild(values[2:]), moved)
            try:
                query = next(queries)
                while True:
                    if i == len(self._calls):
                        raise InputError("grid: next to this time the solver takes another kind of step")
                    call, r = self._calls[i], pushed[i]
                    total = total + pulled[i] * query.t
                    if r is not None:
                        total = total + (r * query.x).sum()
                    level, i = self._schedule.at(query.t), i + 1
                    output = call.output.double()
                    query = queries.send(Prediction(query.x, output, call.kind, level.alpha, level.sigma))
            except StopIteration as stop:
                end_state = stop.value
            if i != len(self._calls):
                raise InputError("grid: next to this time the solver takes another kind of step")
            for part, w in zip([*flatten_state(end_state)[1], solver.output(end_state)], weights, strict=True):
                if w is not None:
                    total = total + (w * part).sum()
            reached = _floats(end_state)[1]
            if after is not None:
                total = total + sum(v * f for v, f in zip(after, reached, strict=True))
            return total.item()

        place, where = self._first + k, [step.t0, step.t1, *floats]
        with torch.no_grad():
            slopes = [
                0.0 if i == 1 and step.reads_clean else self._slope(phi, where, i, place) for i in range(len(where))
            ]
        self._sum[place] += slopes[0]
        if not step.reads_clean:
            self._sum[place + 1] += slopes[1]
        self._floats = slopes[2:]
        if k == 0:
            self._of_start(solver, state, step.t0, place)

    def _of_start(self, solver: Solver[Any], state: Any, t: float, place: int) -> None:
        """Add what the first time means for the numbers that the first state holds."""
        assert self._floats is not None
        if not self._floats:
            return
        x, weights = solver.output(state), self._floats

        def phi(values: Sequence[float]) -> float:
            found = _floats(solver.start(x, self._schedule, values[0]))[1]
            return sum(v * f for v, f in zip(weights, found, strict=True))

        self._sum[place] += self._slope(phi, [t], 0, place)

    def _slope(self, phi: Callable[[Sequence[float]], float], where: list[float], i: int, place: int) -> float:
        """Return the derivative of phi in one of its arguments, by differences of two widths."""
        low, high = self._schedule.domain
        t = where[i]
        # numbers that are nearly equal are no neighbouring times, but factors of slopes
        others = [abs(v - t) for v in where if abs(v - t) > 1e-6 * abs(t)]
        room = [abs(t - end) for end in (low, high) if end != t]
        knot = self._schedule.to_knot(t)
        near: list[float] = [*others, *room, *([knot] if knot >= _ON_KNOT else [])]
        width = _WIDTH * min(near)

        def at(step: float) -> float:
            return phi([*where[:i], t + step, *where[i + 1 :]])

        def slope(h: float) -> float:
            if knot < _ON_KNOT and t not in (low, high):  # where the path bends, the mean of both sides
                return 0.5 * (_difference(at, h, True, False) + _difference(at, h, False, True))
            return _difference(at, h, t == low, t == high)

        try:
            wide, narrow = slope(width), slope(width / 2.0)
            size = abs(at(0.0)) / width
        except SteadyflowError as error:
            raise InputError(f"grid: time {place} ({t:.6g}) has no gradient with this solver: {error}") from error
        if not abs(wide - narrow) <= _AGREE * max(abs(wide), abs(narrow), 1e-9 * size):
            raise InputError(
                f"grid: time {place} ({t:.6g}) has no gradient with this solver: differences of two widths give "
                f"{wide:.6g} and {narrow:.6g}"
            )
        return narrow

    def total(self) -> Tensor:
        """Return the gradient of the grid's tensor, shape (times,)."""
        return torch.tensor(self._sum, dtype=self.tensor.dtype, device=self.tensor.device)


def _floats(state: Any) -> tuple[Callable[[Sequence[float]], Any], list[float]]:
    """Take a state apart into its numbers: what builds it from others, and these."""
    found: list[float] = []
    return _apart(state, found), found


def _apart(item: Any, found: list[float]) -> Callable[[Sequence[float]], Any]:
    if type(item) is float:
        k = len(found)
        found.append(item)
        return lambda values: values[k]
    if isinstance(item, tuple):
        parts = [_apart(part, found) for part in cast(tuple[Any, ...], item)]
        kind = cast(Callable[..., Any], type(cast(Any, item)))
        named = hasattr(kind, "_fields")
        return lambda values: kind(*(p(values) for p in parts)) if named else tuple(p(values) for p in parts)
    return lambda values: item
