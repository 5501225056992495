"""Explicit Runge-Kutta methods in the flow, noise or data variable: one class, many tableaux.

With scale W and time tau of the variable (see `variables`), a step from t0 to t1, h = tau1 - tau0, is

    x_i = (W_i / W0) x + W_i h sum_{j<i} A_ij k_j,   k_i = slope(prediction at (x_i, t_i)),  tau_i = tau0 + c_i h
    x1  = (W1 / W0) x + W1 h sum_i b_i k_i.

The step back is the same step with the ends exchanged. Euler is DDIM in any variable, Heun in the noise variable
is EDM's deterministic sampler, midpoint in the flow variable is RF-Solver (Wang et al. 2024), and EES gives the
near-reversible samplers of 2605.16399.

Where the variable is singular at an end of the leg, or a stage would ask the model for a state without noise
(sigma = 0), the leg is one DDIM step, which is defined there; Euler's legs all are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from .. import prediction
from ..batches import total
from ..errors import InputError
from ..prediction import Prediction, PredictionType
from ..schedules import Schedule
from ..variables import Variable, VariableName, check_name, choose
from . import tableaux
from .base import Asking, Facts, Leg, Query, Solver, ddim_step
from .tableaux import Tableau


class StepPlan:
    """The numbers of a step: its stages and its end as linear combinations of what is known.

    Known are the state that the step began with and the model's outputs so far, so that each stage is computed from
    those tensors directly: a pass over the memory for each, and none for a slope.
    """

    def __init__(
        self, tableau: Tableau, variable: Variable, schedule: Schedule, kind: PredictionType, t0: float, t1: float
    ):
        def slope(t: float, state: Sequence[float]) -> list[float]:
            return _slope(prediction.factors(kind, schedule.alpha(t), schedule.sigma(t), *variable.reading), state)

        self._tableau, self._reading = tableau, variable.reading
        start = variable.time(schedule, t0)
        self.h = variable.time(schedule, t1) - start
        """The step in the variable's time."""
        self.before, self.after = variable.scale(schedule, t0), variable.scale(schedule, t1)
        """The variable's scale at both ends."""
        self.stages: list[tuple[float, list[float]]] = []
        """The stages after the first: their times, and the factors of what is known in them."""
        self._slopes = [slope(t0, [1.0])]  # an explicit method's first stage is the state itself
        for row, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
            if c == 1.0:
                t, here = t1, self.after
            elif c == 0.0:
                t, here = t0, self.before
            else:
                t = variable.when(schedule, start + c * self.h)
                here = variable.scale(schedule, t)
            factors = self.factors(here / self.before, here, row)
            self.stages.append((t, factors))
            self._slopes.append(slope(t, factors))
        self.end = self.factors(self.after / self.before, self.after, tableau.b)
        """The factors of what is known in the state at the end of the step."""

    def factors(self, first: float, scale: float, weights: Sequence[float]) -> list[float]:
        """The factors of what is known in  first x + scale h sum_i weights_i k_i."""
        return _combination(first, scale * self.h, weights, self._slopes)

    def error(self, after: Prediction | None) -> list[float]:
        """The factors of what is known in an embedded method's error estimate, in the variable's units.

        after: what the model says at the step's end, whose output is then the last that is known, for methods whose
        estimate takes it in (first same as last).
        """
        b, low, slopes = self._tableau.b, self._tableau.b_low, self._slopes
        assert low is not None
        weights = [one - other for one, other in zip(b, low, strict=False)]
        if after is not None:
            weights.append(-low[-1])
            slopes = [*slopes, _slope(after.factors(*self._reading), self.end)]
        return _combination(0.0, self.h, weights, slopes)


def _slope(reading: tuple[float, float], state: Sequence[float]) -> list[float]:
    """The factors of what is known in a slope, from those in the state at which the model is asked."""
    of_state, of_output = reading
    return [*(of_state * factor for factor in state), of_output]


def _combination(first: float, h: float, weights: Sequence[float], slopes: Sequence[Sequence[float]]) -> list[float]:
    """The factors of what is known in  first x + h sum of weights * slopes, each slope given by its own factors."""
    result = [first] + [0.0] * len(weights)
    for weight, slope in zip(weights, slopes, strict=True):
        for j, factor in enumerate(slope):
            result[j] += weight * h * factor
    return result


class Asked(NamedTuple):
    """A step whose stages have been asked for."""

    plan: StepPlan
    known: list[Tensor]
    """The state that the step began with, shape (B, ...), and the model's outputs."""


METHODS: list[type[RungeKutta]] = []
"""The methods without options, each registered by its name, and coupled as "rex-" and its name."""


@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge-Kutta method in a variable: "flow", "noise" or "data".

    A subclass that is given its tableau takes its name from it and is added to `METHODS`; one with options of its own
    has a name, and makes its tableau of them.

    The flow variable is regular at both ends of every path, and its round trips are the best or close to it on
    all the models measured here (benchmarks/variables.py).
    """

    variable: VariableName = "flow"
    _tableau: ClassVar[Tableau]

    def __init_subclass__(cls, tableau: Tableau | None = None, **options: Any):
        super().__init_subclass__(**options)
        if tableau is not None:
            cls.name, cls._tableau = tableau.name, tableau
            METHODS.append(cls)

    def __post_init__(self):
        check_name(self.variable)

    @property
    def tableau(self) -> Tableau:
        """The method's coefficients."""
        return self._tableau

    @property
    def frame(self) -> VariableName:
        return self.variable

    @property
    def facts(self) -> Facts:
        return _facts(self.tableau)

    def step(self, state: Tensor, leg: Leg) -> Asking[Tensor]:
        variable = None if self.tableau.stages == 1 else self.regular_variable(leg)
        if variable is None:
            return (yield from ddim_step(state, leg))
        plan, known = yield from self.stages(state, leg.schedule, leg.t0, leg.t1, variable)
        return total(plan.end, known)

    def regular_variable(self, leg: Leg) -> Variable | None:
        """The variable for this leg, or None where only a DDIM step is defined."""
        schedule = leg.schedule
        if not leg.clean and 1.0 in self.tableau.c and schedule.sigma(leg.t1) == 0.0:
            return None
        return choose(self.variable, schedule, leg.t0, leg.t1)

    def stages(
        self,
        x: Tensor,
        schedule: Schedule,
        t0: float,
        t1: float,
        variable: Variable,
        first: Prediction | None = None,
    ) -> Asking[Asked]:
        """Ask for the stages of a step from (x, t0) to t1; first: what the model says at (x, t0), if it was asked."""
        if first is None:
            first = yield Query(x, t0)
        tableau, kind = self.tableau, first.kind
        plan = schedule.remembered(
            (tableau, variable, kind, t0, t1), lambda: StepPlan(tableau, variable, schedule, kind, t0, t1)
        )
        known = [x, first.output]
        for t, factors in plan.stages:
            answer = yield Query(total(factors, known), t)
            if answer.kind != kind:
                raise InputError(f"prediction: the model answers in two ways within a step, {kind} and {answer.kind}")
            known.append(answer.output)
        return Asked(plan, known)


@cache
def _facts(tableau: Tableau) -> Facts:
    return Facts(
        order=tableau.order,
        evaluations=tableau.stages,
        inverse="approximate",
        antisymmetric_order=tableau.antisymmetric_order,
        real_interval=tableau.real_interval(),
        source=tableau.source,
    )


class Euler(RungeKutta, tableau=tableaux.EULER):
    """First order, one evaluation: DDIM, in any variable."""


class Midpoint(RungeKutta, tableau=tableaux.MIDPOINT):
    """Second order, two evaluations, antisymmetric order 3."""


class Heun(RungeKutta, tableau=tableaux.HEUN):
    """Second order, two evaluations; in the noise variable EDM's deterministic sampler."""


class Ralston(RungeKutta, tableau=tableaux.RALSTON):
    """Second order, two evaluations, smallest truncation bound of its kind."""


class SSPRK3(RungeKutta, tableau=tableaux.SSPRK3):
    """Third order, three evaluations, strong-stability preserving."""


class RK4(RungeKutta, tableau=tableaux.RK4):
    """Fourth order, four evaluations, antisymmetric order 5."""


class BogackiShampine(RungeKutta, tableau=tableaux.BOGACKI_SHAMPINE):
    """Third order, three evaluations, with an embedded method of second order."""


class Dopri5(RungeKutta, tableau=tableaux.DOPRI5):
    """Fifth order, six evaluations, with an embedded method of fourth order."""


class Tsit5(RungeKutta, tableau=tableaux.TSIT5):
    """Fifth order, six evaluations, with an embedded method of fourth order."""


@dataclass(frozen=True)
class EES25(RungeKutta):
    """EES(2,5;x): second order, three evaluations, near-reversible: antisymmetric order 5.

    x: any number but 1, 1/2 and -1/2; the default minimises the residuals of order 3 and of symmetry.
    """

    x: float = 0.1
    name: ClassVar[str] = "ees25"

    @property
    def tableau(self) -> Tableau:
        return tableaux.ees25(self.x)

    def __post_init__(self):
        super().__post_init__()
        _ = self.tableau  # an inadmissible x fails here, not in the run


@dataclass(frozen=True)
class EES27(RungeKutta):
    """EES(2,7;x): second order, four evaluations, near-reversible: antisymmetric order 7.

    x: any number but the poles that the error message lists. branch: the sign of sqrt(2); "+" is the one to use.
    """

    x: float = tableaux.EES27_X
    branch: Literal["+", "-"] = "+"
    name: ClassVar[str] = "ees27"

    @property
    def tableau(self) -> Tableau:
        return tableaux.ees27(self.x, self.branch)

    def __post_init__(self):
        super().__post_init__()
        _ = self.tableau
