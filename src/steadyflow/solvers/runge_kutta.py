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
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..batches import total
from ..prediction import Prediction
from ..schedules import Schedule
from ..variables import Variable, VariableName, check_name, choose
from . import tableaux
from .base import Asking, Facts, Leg, Query, Solver, ddim_step
from .tableaux import Tableau


class Slopes:
    """The slopes of a step, as linear combinations of the state it began with and of the model's outputs.

    Stages and slopes are such combinations themselves, so that each is computed from those tensors directly: a pass
    over the memory for each, and none for a slope.
    """

    def __init__(self, variable: Variable, h: float, schedule: Schedule, t0: float, t1: float, x: Tensor):
        self.h = h
        """The step in the variable's time."""
        self.before, self.after = variable.scale(schedule, t0), variable.scale(schedule, t1)
        """The variable's scale at both ends."""
        self.known = [x]
        """The state that the step began with, shape (B, ...), and the outputs."""
        self._variable = variable
        self._rows: list[list[float]] = []

    def add(self, prediction: Prediction, stage: list[float]) -> None:
        """Take in what the model answered at the stage that has these factors."""
        of_stage, of_output = prediction.factors(*self._variable.reading)
        row = [of_stage * factor for factor in stage]
        self._rows.append([*row, of_output])  # type: ignore[list-item]  # numbers, as the query's time was one
        self.known.append(prediction.output)

    def factors(self, first: float, scale: float, weights: Sequence[float]) -> list[float]:
        """The factors of `known` in  first x + scale h sum_i weights_i k_i."""
        result = [first] + [0.0] * (len(self.known) - 1)
        for weight, row in zip(weights, self._rows, strict=False):
            if weight != 0.0:
                weight *= scale * self.h
                for j, factor in enumerate(row):
                    result[j] += weight * factor
        return result

    def end(self, weights: Sequence[float]) -> list[float]:
        """The factors of `known` in the state at the end of the step, by a method with these weights."""
        return self.factors(self.after / self.before, self.after, weights)


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
        slopes = yield from self.slopes(state, leg.schedule, leg.t0, leg.t1, variable)
        return total(slopes.end(self.tableau.b), slopes.known)

    def regular_variable(self, leg: Leg) -> Variable | None:
        """The variable for this leg, or None where only a DDIM step is defined."""
        schedule = leg.schedule
        if not leg.clean and 1.0 in self.tableau.c and schedule.sigma(leg.t1) == 0.0:
            return None
        return choose(self.variable, schedule, leg.t0, leg.t1)

    def slopes(
        self,
        x: Tensor,
        schedule: Schedule,
        t0: float,
        t1: float,
        variable: Variable,
        known: Prediction | None = None,
    ) -> Asking[Slopes]:
        """The stage slopes k_i of a step from (x, t0) to t1; known: what the model says at (x, t0), if it was asked."""
        start = variable.time(schedule, t0)
        slopes = Slopes(variable, variable.time(schedule, t1) - start, schedule, t0, t1, x)
        slopes.add((yield Query(x, t0)) if known is None else known, _UNMOVED)  # an explicit method's first stage
        tableau = self.tableau
        for row, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
            if c == 1.0:
                t, here = t1, slopes.after
            elif c == 0.0:
                t, here = t0, slopes.before
            else:
                t = variable.when(schedule, start + c * slopes.h)
                here = variable.scale(schedule, t)
            factors = slopes.factors(here / slopes.before, here, row)
            slopes.add((yield Query(total(factors, slopes.known), t)), factors)
        return slopes


_UNMOVED = [1.0]
"""The factors of a stage that is the state itself."""


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
