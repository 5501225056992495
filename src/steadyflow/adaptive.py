"""Adaptive steps: an embedded Runge-Kutta pair with a PID controller, and the accepted grid to retrace.

A step's error estimate is e = h sum_i (b_i - b_low_i) k_i, in the solver's variable. With the scaled norm of each
sample, E = rms(e / (atol + rtol max(|u0|, |u1|))), a step is accepted if E <= 1 for the worst sample, and the next size
is h times

    0.9 E_n^(-b1) E_(n-1)^(-b2) E_(n-2)^(-b3),   b = (kP + kI + kD, -(kP + 2 kD), kD) / order,

within [0.2, 5] (Soederlind 2003). Sizes are measured in the time of the flow variable, which is regular at both ends of
every path. The batch shares its grid, so that it can be inverted: `Run.grid.reversed()` retraces it exactly.

No evaluation is made twice: a step that is tried again keeps its first slope, and where the error estimate takes the
slope at the step's end (first same as last), the next step begins with it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .batches import rms, total
from .denoisers.base import Denoiser
from .errors import ConvergenceError, InputError, NonFiniteError
from .gradients import follows
from .grids import Grid
from .integrate import Run, answer, check_state
from .prediction import Prediction
from .solvers import registry
from .solvers.base import Asking, Leg, Query, Solver
from .solvers.runge_kutta import RungeKutta
from .variables import FLOW, Variable

_LAST = 1e-5
"""The time of the flow variable from which a clean end is reached by DDIM, which errs by its square."""


@dataclass(frozen=True)
class PID:
    """The controller's coefficients; the default is the PI controller of Gustafsson 1991 for non-stiff problems."""

    proportional: float = 0.4
    integral: float = 0.3
    derivative: float = 0.0
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 5.0

    def factor(self, errors: list[float], order: int) -> float:
        """The factor for the next step from the last errors, the newest last."""
        p, i, d = self.proportional, self.integral, self.derivative
        powers = (p + i + d, -(p + 2 * d), d)
        value = self.safety
        for error, power in zip(reversed(errors[-3:]), powers, strict=False):
            value *= max(error, 1e-10) ** (-power / order)
        return min(max(value, self.smallest), self.largest)


@dataclass(frozen=True)
class AdaptiveRun(Run):
    """A run whose grid was found on the way."""

    rejected: int = 0
    """Steps that were tried and taken back."""

    def _more(self):
        return {"rejected": self.rejected}


@follows("x")
def solve_adaptive(
    model: Denoiser,
    x: Tensor,
    *,
    solver: str | Solver = "dopri5",
    rtol: float = 1e-4,
    atol: float = 1e-5,
    t_start: float | None = None,
    t_end: float | None = None,
    first_step: float = 0.02,
    max_steps: int = 2000,
    controller: PID | None = None,
) -> AdaptiveRun:
    """Travel from t_start to t_end with steps chosen so that every sample keeps the tolerance.

    x: shape (B, ...), float32 or float64. The default direction is sampling, from t_max to t_min; t_start < t_end
        inverts. A clean end with sigma = 0 is reached by one DDIM step from tau = 1e-5 of the flow variable.
    solver: an embedded Runge-Kutta method: "heun", "ssprk3", "bogacki-shampine", "dopri5", "tsit5" or "ees25" (at its
        default x).
    rtol, atol: relative and absolute, a step and sample. first_step: in the flow variable's time, which is within
        [0, 1].

    The result's `grid` holds the accepted times and its `nfe` counts rejected steps too. Raises `InputError` for a
    solver without an error estimate, `ConvergenceError` where max_steps do not suffice, `NonFiniteError` where the
    model answers with NaN however small the step.
    """
    check_state("x", x, model.shape)
    method = registry.get(solver)
    if not isinstance(method, RungeKutta) or method.tableau.b_low is None:
        raise InputError(
            f"solver {method.name!r} has no embedded error estimate; use dopri5, tsit5 or bogacki-shampine"
        )
    if not (rtol > 0 and atol > 0 and first_step > 0):
        raise InputError("adaptive: rtol, atol and first_step must be positive")
    schedule, control = model.schedule, controller or PID()
    t_min, t_max = schedule.t_range
    t_start, t_end = t_max if t_start is None else t_start, t_min if t_end is None else t_end
    whole = Grid((t_start, t_end)).check_domain(schedule)
    clean_end = not whole.rising and not model.answers_clean and schedule.sigma(t_end) == 0.0
    t_last = FLOW.when(schedule, _LAST) if clean_end else t_end
    clock, goal = FLOW.time(schedule, t_start), FLOW.time(schedule, t_last)
    size, sign = min(first_step, abs(goal - clock)), 1.0 if goal > clock else -1.0
    times, errors, nfe, rejected = [t_start], [], 0, 0
    state, worst = x, 0.0
    known: Prediction | None = None  # what the model says of the state, where it has been asked
    for _ in range(max_steps):
        ahead = clock + sign * size
        if ahead == clock:
            kind = ConvergenceError if worst < float("inf") else NonFiniteError
            raise kind(f"adaptive: stuck at t = {times[-1]:.6g}: no step is small enough (error {worst:.1e})")
        last = sign * (goal - ahead) < 1e-12
        t = t_last if last else FLOW.when(schedule, ahead)
        leg = Leg(schedule, times[-1], t, 0, 1, clean=model.answers_clean)
        tried, asked = answer(_embedded(method, state, leg, rtol, atol, known), model)
        nfe += asked * model.cost
        worst = tried.error.item()
        if not worst <= 1.0:  # also where it is not finite
            rejected += 1
            size *= control.factor([worst], method.tableau.order) if worst < float("inf") else control.smallest
            known = tried.before
            continue
        state, known, clock = tried.x, tried.after, goal if last else ahead
        times.append(t)
        errors.append(worst)
        if last and clean_end:
            if known is None:
                known, nfe = model(state, t), nfe + model.cost
            state = known.mix(schedule.alpha(t_end), schedule.sigma(t_end))  # DDIM
            times.append(t_end)
        if last:
            return AdaptiveRun(method, Grid(tuple(times)), len(times) - 1, state, nfe, None, rejected)
        size = min(size * control.factor(errors, method.tableau.order), abs(goal - clock))
    raise ConvergenceError(
        f"adaptive: {max_steps} steps reached t = {times[-1]:.6g} of {t_end:.6g}; loosen rtol and atol, or raise "
        f"max_steps"
    )


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
    method: RungeKutta, x: Tensor, leg: Leg, rtol: float, atol: float, known: Prediction | None
) -> Asking[_Tried]:
    """A step with its error estimate; known: what the model says of x, if it has been asked."""
    variable: Variable | None = method.regular_variable(leg)
    if variable is None:
        raise InputError(
            f"adaptive: {method.name!r} cannot step from t = {leg.t0:.6g} to {leg.t1:.6g}: its variable "
            f"{method.variable!r} is singular there; bound the range, or take variable='flow'"
        )
    tableau, schedule = method.tableau, leg.schedule
    assert tableau.b_low is not None
    before, after = (yield Query(x, leg.t0)) if known is None else known, None
    plan, tensors = yield from method.stages(x, schedule, leg.t0, leg.t1, variable, before)
    onward = total(plan.end, tensors)
    if len(tableau.b_low) > len(tableau.b):
        after = yield Query(onward, leg.t1)
        tensors.append(after.output)
    estimate = total(plan.error(after), tensors)
    scale = atol + rtol * torch.maximum((x / plan.before).abs(), (onward / plan.after).abs())
    return _Tried(onward, rms(estimate / scale).max(), before, after)
