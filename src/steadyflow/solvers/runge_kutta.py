"""Explicit Runge-Kutta methods in the flow, noise or data variable: one class, many tableaux.

With scale W and time tau of the variable (see `variables`), a step from t0 to t1, h = tau1 - tau0, is

    x_i = (W_i / W0) x + W_i h sum_{j<i} A_ij k_j,   k_i = slope(prediction at (x_i, t_i)),  tau_i = tau0 + c_i h
    x1  = (W1 / W0) x + W1 h sum_i b_i k_i.

The step back is the same step with the ends exchanged. Euler is DDIM in any variable, Heun in the noise variable
is EDM's deterministic sampler, midpoint in the flow variable is RF-Solver (Wang et al. 2024), and EES gives the
near-reversible samplers of 2605.16399.

Where the variable is singular at an end of the leg, or a stage would ask the model for a state without noise
(sigma = 0), the leg is one DDIM step, which is defined there.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

from torch import Tensor

from ..schedules import Schedule
from ..variables import Variable, VariableName, check_name, choose
from . import tableaux
from .base import Asking, Facts, Leg, Query, Solver, combine, ddim_step
from .tableaux import Tableau


@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge-Kutta method in a variable: "flow", "noise" or "data".

    The flow variable is regular at both ends of every path, and its round trips are the best or close to it on
    all the models measured here (benchmarks/variables.py).
    """

    variable: VariableName = "flow"

    def __post_init__(self):
        check_name(self.variable)

    @property
    @abstractmethod
    def tableau(self) -> Tableau:
        """The method's coefficients."""

    @property
    def frame(self) -> VariableName:
        return self.variable

    @property
    def facts(self) -> Facts:
        return _facts(self.tableau)

    def step(self, state: Tensor, leg: Leg) -> Asking[Tensor]:
        variable = self.regular_variable(leg)
        if variable is None:
            return (yield from ddim_step(state, leg))
        slopes, h = yield from self.slopes(state, leg.schedule, leg.t0, leg.t1, variable)
        before, after = variable.scale(leg.schedule, leg.t0), variable.scale(leg.schedule, leg.t1)
        return combine(after / before, state, [after * h * b for b in self.tableau.b], slopes)

    def regular_variable(self, leg: Leg) -> Variable | None:
        """The variable for this leg, or None where only a DDIM step is defined."""
        schedule = leg.schedule
        if not leg.clean and 1.0 in self.tableau.c and schedule.sigma(leg.t1) == 0.0:
            return None
        return choose(self.variable, schedule, leg.t0, leg.t1)

    def slopes(
        self, x: Tensor, schedule: Schedule, t0: float, t1: float, variable: Variable
    ) -> Asking[tuple[list[Tensor], float]]:
        """The stage slopes k_i of a step from (x, t0) to t1, and the step h in the variable's time."""
        start, scale = variable.time(schedule, t0), variable.scale(schedule, t0)
        h = variable.time(schedule, t1) - start
        slopes: list[Tensor] = []
        for row, c in zip(self.tableau.a, self.tableau.c, strict=True):
            t = t0 if c == 0.0 else t1 if c == 1.0 else variable.when(schedule, start + c * h)
            here = variable.scale(schedule, t)
            stage = combine(here / scale, x, [here * h * a for a in row], slopes)
            prediction = yield Query(stage, t)
            slopes.append(variable.slope(prediction))
        return slopes, h


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


@dataclass(frozen=True)
class Euler(RungeKutta):
    """First order, one evaluation: DDIM, in any variable."""

    name: ClassVar[str] = "euler"

    @property
    def tableau(self) -> Tableau:
        return tableaux.EULER


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """Second order, two evaluations, antisymmetric order 3."""

    name: ClassVar[str] = "midpoint"

    @property
    def tableau(self) -> Tableau:
        return tableaux.MIDPOINT


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Second order, two evaluations; in the noise variable EDM's deterministic sampler."""

    name: ClassVar[str] = "heun"

    @property
    def tableau(self) -> Tableau:
        return tableaux.HEUN


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Second order, two evaluations, smallest truncation bound of its kind."""

    name: ClassVar[str] = "ralston"

    @property
    def tableau(self) -> Tableau:
        return tableaux.RALSTON


@dataclass(frozen=True)
class SSPRK3(RungeKutta):
    """Third order, three evaluations, strong-stability preserving."""

    name: ClassVar[str] = "ssprk3"

    @property
    def tableau(self) -> Tableau:
        return tableaux.SSPRK3


@dataclass(frozen=True)
class RK4(RungeKutta):
    """Fourth order, four evaluations, antisymmetric order 5."""

    name: ClassVar[str] = "rk4"

    @property
    def tableau(self) -> Tableau:
        return tableaux.RK4


@dataclass(frozen=True)
class BogackiShampine(RungeKutta):
    """Third order, three evaluations, with an embedded method of second order."""

    name: ClassVar[str] = "bogacki-shampine"

    @property
    def tableau(self) -> Tableau:
        return tableaux.BOGACKI_SHAMPINE


@dataclass(frozen=True)
class Dopri5(RungeKutta):
    """Fifth order, six evaluations, with an embedded method of fourth order."""

    name: ClassVar[str] = "dopri5"

    @property
    def tableau(self) -> Tableau:
        return tableaux.DOPRI5


@dataclass(frozen=True)
class Tsit5(RungeKutta):
    """Fifth order, six evaluations, with an embedded method of fourth order."""

    name: ClassVar[str] = "tsit5"

    @property
    def tableau(self) -> Tableau:
        return tableaux.TSIT5


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
