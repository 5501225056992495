"""Adaptive steps: an embedded Runge-Kutta pair with a PID controller, and the accepted grid to retrace.

A step's error estimate is e = h sum_i (b_i - b_low_i) k_i, in the solver's coordinates. With the scaled norm of each
sample, E = rms(e / (atol + rtol max(|u0|, |u1|))), a step is accepted if E <= 1 for the worst sample, and the next size
is h times

    0.9 E_n^(-b1) E_(n-1)^(-b2) E_(n-2)^(-b3),   b = (kP + kI + kD, -(kP + 2 kD), kD) / order,

within [0.2, 5] (Soederlind 2003). Sizes are measured in the time of flow coordinates, which are regular at both ends of
every path. The batch shares its grid, so that it can be inverted: `Solution.grid.reversed()` retraces it exactly.

No evaluation is made twice: a step that is tried again keeps its first slope, and where the error estimate takes the
slope at the step's end (first same as last), the next step begins with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._internal.tensors import linear_combination, rms
from ..coordinates import FLOW
from ..errors import ConvergenceError, InputError, NonFiniteError
from ..grids import Grid
from ..prediction import Prediction
from ..solvers.base import Queries, Query, Solver, Step
from ..solvers.runge_kutta import RungeKutta
from .steps import StepLoop, drive

_LAST = 1e-5
"""The time of flow coordinates from which a clean end is reached by DDIM, which errs by its square."""


@dataclass(frozen=True)
class PIDController:
    """Steps chosen so that every sample keeps a tolerance, given to a verb as `steps=`.

    For embedded Runge-Kutta methods: "heun", "ssprk3", "bogacki-shampine", "dopri5", "tsit5", and "ees25" at its
    default x. The defaults are the PI controller of Gustafsson 1991 for problems that are not stiff.

    Args:
        rtol: Relative tolerance, per step and sample.
        atol: Absolute tolerance, per step and sample.
        first_step: The size of the first step tried, in the time of flow coordinates, which is within [0, 1].
        max_steps: How many steps may be tried.
        proportional: kP.
        integral: kI.
        derivative: kD.
        safety: The factor before the powers.
        smallest: By how much a step may shrink at most.
        largest: By how much it may grow at most.

    Raises:
        InputError: A tolerance or the first step is not positive.
    """

    rtol: float = 1e-4
    atol: float = 1e-5
    first_step: float = 0.02
    max_steps: int = 2000
    proportional: float = 0.4
    integral: float = 0.3
    derivative: float = 0.0
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 5.0

    def __post_init__(self):
        if not (self.rtol > 0 and self.atol > 0 and self.first_step > 0 and self.max_steps >= 1):
            raise InputError("adaptive: rtol, atol, first_step and max_steps must be positive")

    def check_solver(self, solver: Solver[Any]) -> None:
        """Raise `InputError` for a solver without an error estimate."""
        if not isinstance(solver, RungeKutta) or solver.tableau.b_low is None:
            raise InputError(
                f"solver {solver.name!r} has no embedded error estimate; use dopri5, tsit5 or bogacki-shampine"
            )

    def factor(self, errors: list[float], order: int) -> float:
        """The factor for the next step from the last errors, the newest last."""
        p, i, d = self.proportional, self.integral, self.derivative
        powers = (p + i + d, -(p + 2 * d), d)
        value = self.safety
        for error, power in zip(reversed(errors[-3:]), powers, strict=False):
            value *= max(error, 1e-10) ** (-power / order)
        return min(max(value, self.smallest), self.largest)

    def steps(self, loop: StepLoop[Any]) -> Iterator[Step]:
        """The accepted steps between the ends of the loop's grid.

        A clean end with sigma = 0, where the model is not defined, is reached by one step from tau = 1e-5 of flow
        coordinates, and left by one.

        Raises:
            InputError: The solver has no error estimate.
            ConvergenceError: `max_steps` do not suffice.
            NonFiniteError: The model answers with NaN however small the step.
        """
        self.check_solver(loop.solver)
        method, schedule = loop.solver, loop.schedule
        assert isinstance(method, RungeKutta)
        start, end = schedule.at(loop.grid.times[0]), schedule.at(loop.grid.times[-1])
        undefined, falls = not loop.defined_at_zero_noise, end.t < start.t
        to_zero = falls and undefined and end.sigma == 0.0
        last = schedule.at(FLOW.when(schedule, _LAST)) if to_zero else end
        if to_zero and FLOW.time(start) <= _LAST:
            last = start
        if undefined and not falls and start.sigma == 0.0 and FLOW.time(end) > _LAST:
            start = schedule.at(FLOW.when(schedule, _LAST))
            loop.times.append(start.t)
            yield loop.take(Step(schedule, schedule.at(loop.times[0]), start, 0, 1, loop.noise))
        clock, goal = FLOW.time(start), FLOW.time(last)
        size, sign = min(self.first_step, abs(goal - clock)), 1.0 if goal > clock else -1.0
        here, errors, worst = start, list[float](), 0.0
        known, known_for = None, loop.state  # what the model says of this state, where it has been asked
        for _ in range(self.max_steps):
            if here.t == last.t:
                break
            ahead = clock + sign * size
            if ahead == clock:
                kind = ConvergenceError if worst < float("inf") else NonFiniteError
                raise kind(f"adaptive: stuck at t = {here.t:.6g}: no step is small enough (error {worst:.1e})")
            arrives = sign * (goal - ahead) < 1e-12
            there = last if arrives else schedule.at(FLOW.when(schedule, ahead))
            step = Step(schedule, here, there, 0, 1, loop.noise, loop.defined_at_zero_noise)
            if known_for is not loop.state:  # a correction has moved it
                known = None
            tried, evaluations = drive(_embedded(method, loop.state, step, self, known), loop.model)
            loop.evaluations += evaluations
            worst = tried.error.item()
            if not worst <= 1.0:  # also where it is not finite
                loop.rejected += 1
                size *= self.factor([worst], method.tableau.order) if worst < float("inf") else self.smallest
                known, known_for = tried.before, loop.state
                continue
            if loop.keep_before:
                loop.before = loop.state
            loop.state, known, known_for = tried.x, tried.after, tried.x
            clock, here = goal if arrives else ahead, there
            errors.append(worst)
            loop.times.append(there.t)
            if not arrives:
                size = min(size * self.factor(errors, method.tableau.order), abs(goal - clock))
            yield step
        if here.t != last.t:
            raise ConvergenceError(
                f"adaptive: {self.max_steps} steps reached t = {here.t:.6g} of {end.t:.6g}; loosen rtol and atol, or "
                f"raise max_steps"
            )
        if to_zero:
            loop.times.append(end.t)
            yield self._ddim(loop, Step(schedule, last, end, 0, 1), known if known_for is loop.state else None)
        if loop.grid.clean:
            *_, reading = loop.fixed(Grid((end.t,), clean=True))
            yield self._ddim(loop, reading, known if known_for is loop.state else None)

    @staticmethod
    def _ddim(loop: StepLoop[Any], step: Step, known: Prediction | None) -> Step:
        """Make a DDIM step, with what the model says of the state if it has been asked."""
        if known is None:
            return loop.take(Step(step.schedule, step.start, step.end, 0, 1, reads_clean=True))
        loop.before = loop.state if loop.keep_before else None
        loop.state = known.mix(step.end.alpha, step.end.sigma)
        return step


class _Tried(NamedTuple):
    """A step that was tried."""

    x: Tensor
    """Where it ends, (B, ...)."""
    error: Tensor
    """The scaled norm of its error estimate for the worst sample."""
    before: Prediction
    """What the model says where it begins."""
    after: Prediction | None
    """What the model says where it ends, if it was asked."""


def _embedded(
    method: RungeKutta, x: Tensor, step: Step, control: PIDController, known: Prediction | None
) -> Queries[_Tried]:
    """A step with its error estimate; `known` is what the model says of x, if it has been asked."""
    coordinates = method.regular_coordinates(step)
    if coordinates is None:
        raise InputError(
            f"adaptive: {method.name!r} cannot step from t = {step.t0:.6g} to {step.t1:.6g}: its coordinates "
            f"{method.coordinates!r} are singular there; bound the range, or take coordinates='flow'"
        )
    tableau = method.tableau
    assert tableau.b_low is not None
    before, after = (yield Query(x, step.t0)) if known is None else known, None
    plan, basis = yield from method.stages(x, step.schedule, step.start, step.end, coordinates, before)
    onward = linear_combination(plan.end, basis)
    if len(tableau.b_low) > len(tableau.b):
        after = yield Query(onward, step.t1)
        basis.append(after.output)
    estimate = linear_combination(plan.error(after), basis)
    scale = control.atol + control.rtol * torch.maximum((x / plan.before).abs(), (onward / plan.after).abs())
    return _Tried(onward, rms(estimate / scale).max(), before, after)
