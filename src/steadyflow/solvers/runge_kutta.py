"""Explicit Runge-Kutta methods in flow, noise or data coordinates: one class, many tableaux.

With scale W and time tau of the coordinates (see `coordinates`), a step from t0 to t1, h = tau1 - tau0, is

    x_i = (W_i / W0) x + W_i h sum_{j<i} A_ij k_j,   k_i = slope(prediction at (x_i, t_i)),  tau_i = tau0 + c_i h
    x1  = (W1 / W0) x + W1 h sum_i b_i k_i.

The step back is the same step with the ends exchanged. Euler is DDIM in any coordinates, Heun in noise coordinates
is EDM's deterministic sampler, midpoint in flow coordinates is RF-Solver (Wang et al. 2024), and EES gives the
near-reversible samplers of 2605.16399.

If the coordinates are singular at an end of the step, or a stage would evaluate the model at sigma = 0 where it is not
defined, the step is a DDIM step, which is defined there. Euler's steps always are DDIM steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, cast

from torch import Tensor

from .. import prediction
from .._internal.tensors import linear_combination
from ..coordinates import Coordinates, CoordinatesName, check_name, regular_between
from ..errors import InputError
from ..prediction import Prediction, PredictionType
from ..schedules import Level, Schedule
from . import tableaux
from .base import Properties, Queries, Query, Solver, Step, ddim_step
from .registry import register
from .tableaux import Tableau

__all__ = [
    "EES25",
    "EES27",
    "RK4",
    "SSPRK3",
    "BogackiShampine",
    "Dopri5",
    "Euler",
    "Heun",
    "Midpoint",
    "Ralston",
    "RungeKutta",
    "Tsit5",
]


class StepPlan:
    """The numbers of a step: its stages and its end as linear combinations of a basis of tensors.

    The basis consists of the state at the start of the step and the model's outputs so far. Each stage is computed
    directly from these tensors, with one pass over the memory for each of them and none for a slope.

    Args:
        tableau: The method.
        coordinates: The coordinates in which to step, regular at both ends.
        kind: What the network predicts.
        schedule: The path.
        start: The level at the start of the step.
        end: The level at its end.
    """

    def __init__(
        self,
        tableau: Tableau,
        coordinates: Coordinates,
        kind: PredictionType,
        schedule: Schedule,
        start: Level,
        end: Level,
    ):
        def slope(level: Level, state: Sequence[float]) -> list[float]:
            return _slope(prediction.factors(kind, level.alpha, level.sigma, *coordinates.prediction), state)

        self._tableau, self._prediction = tableau, coordinates.prediction
        tau = coordinates.time(start)
        self.h = coordinates.time(end) - tau
        """The size of the step in the time of the coordinates."""
        self.before, self.after = coordinates.scale(start), coordinates.scale(end)
        """The scale of the coordinates at the start and at the end."""
        self.stages: list[tuple[float, list[float]]] = []
        """The stages after the first: their path times, and their coefficients in the basis."""
        self._slopes = [slope(start, [1.0])]  # an explicit method's first stage is the state itself
        for row, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
            if c == 1.0:
                level = end
            elif c == 0.0:
                level = start
            else:
                level = schedule.at(coordinates.when(schedule, tau + c * self.h))
            scale = coordinates.scale(level)
            coefficients = self.coefficients(scale / self.before, scale, row)
            self.stages.append((level.t, coefficients))
            self._slopes.append(slope(level, coefficients))
        self.end = self.coefficients(self.after / self.before, self.after, tableau.b)
        """The coefficients in the basis of the state at the end of the step."""

    def coefficients(self, first: float, scale: float, weights: Sequence[float]) -> list[float]:
        """Return the coefficients in the basis of  first x + scale h sum_i weights_i k_i."""
        return _combination(first, scale * self.h, weights, self._slopes)

    def error(self, after: Prediction | None) -> list[float]:
        """Return the coefficients in the basis of the error estimate of an embedded method, in these coordinates.

        Args:
            after: The prediction at the end of the step, if the estimate needs it (first same as last). Its output is
                then the last tensor of the basis.
        """
        b, low, slopes = self._tableau.b, self._tableau.b_low, self._slopes
        assert low is not None
        weights = [one - other for one, other in zip(b, low, strict=False)]
        if after is not None:
            weights.append(-low[-1])
            of = cast("tuple[float, float]", after.factors(*self._prediction))  # as all samples have one time
            slopes = [*slopes, _slope(of, self.end)]
        return _combination(0.0, self.h, weights, slopes)


@lru_cache(maxsize=4096)
def step_plan(
    tableau: Tableau,
    coordinates: Coordinates,
    kind: PredictionType,
    schedule: Schedule,
    start: Level,
    end: Level,
) -> StepPlan:
    """Return the plan of a step between two levels, from a cache; do not modify it.

    Args:
        tableau: The method.
        coordinates: The coordinates in which to step, regular at both levels.
        kind: What the network predicts.
        schedule: The path.
        start: The level at the start of the step.
        end: The level at its end.
    """
    return StepPlan(tableau, coordinates, kind, schedule, start, end)


def _slope(of: tuple[float, float], state: Sequence[float]) -> list[float]:
    """Return a slope's coefficients in the basis, from those of the state at which the model is evaluated.

    Args:
        of: The factors of that state and of the model's output in the slope.
        state: The state's coefficients in the basis.
    """
    of_state, of_output = of
    return [*(of_state * coefficient for coefficient in state), of_output]


def _combination(first: float, h: float, weights: Sequence[float], slopes: Sequence[Sequence[float]]) -> list[float]:
    """Return the coefficients of  first x + h sum of weights * slopes, each slope given by its coefficients."""
    result = [first] + [0.0] * len(weights)
    for weight, slope in zip(weights, slopes, strict=True):
        for j, coefficient in enumerate(slope):
            result[j] += weight * h * coefficient
    return result


class Stages(NamedTuple):
    """The evaluated stages of a step."""

    plan: StepPlan
    """The numbers of the step."""
    basis: list[Tensor]
    """The state at the start of the step, shape (B, ...), and the model's outputs."""


METHODS: list[type[RungeKutta]] = []
"""The methods without options; each is also registered as the base of Rex, under "rex-" and its name."""


@dataclass(frozen=True)
class RungeKutta(Solver[Tensor]):
    """An explicit Runge-Kutta method in flow, noise or data coordinates.

    A subclass with the class argument `tableau` takes its name from the tableau, is registered under it, and is added
    to `METHODS`. A subclass with options defines `name` and `tableau` itself.

    Flow coordinates are regular at both ends of every path, and their round trips are the best or close to it on
    all the models measured here (benchmarks/coordinates.py).

    Args:
        coordinates: The coordinates in which to step, "flow", "noise" or "data".

    Raises:
        UnknownNameError: There are no such coordinates.
    """

    coordinates: CoordinatesName = "flow"
    _tableau: ClassVar[Tableau]

    def __init_subclass__(cls, tableau: Tableau | None = None, **options: Any):
        super().__init_subclass__(**options)
        if tableau is not None:
            cls.name, cls._tableau = tableau.name, tableau
            METHODS.append(cls)
            register(cls.name, cls)

    def __post_init__(self):
        check_name(self.coordinates)

    @property
    def tableau(self) -> Tableau:
        """The method's coefficients."""
        return self._tableau

    @property
    def properties(self) -> Properties:
        return _properties(self.tableau)

    def step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        coordinates = None if self.tableau.stages == 1 else self.regular_coordinates(step)
        if coordinates is None:
            return (yield from ddim_step(state, step))
        plan, basis = yield from self.stages(state, step.schedule, step.start, step.end, coordinates)
        return linear_combination(plan.end, basis)

    def regular_coordinates(self, step: Step) -> Coordinates | None:
        """Return the coordinates for a step, or None if only a DDIM step is defined.

        Args:
            step: The step, in either direction.
        """
        if not step.defined_at_zero_noise and 1.0 in self.tableau.c and step.end.sigma == 0.0:
            return None
        return regular_between(self.coordinates, step.start, step.end)

    def stages(
        self,
        x: Tensor,
        schedule: Schedule,
        start: Level,
        end: Level,
        coordinates: Coordinates,
        first: Prediction | None = None,
    ) -> Queries[Stages]:
        """Evaluate the stages of a step.

        Args:
            x: The state at `start`, shape (B, ...).
            schedule: The path.
            start: The level at the start of the step.
            end: The level at its end.
            coordinates: The coordinates in which to step, regular at both levels.
            first: The prediction at the start, if it is already known.

        Yields:
            The points at which the model is needed; predictions are sent back.

        Raises:
            InputError: The model's prediction type changes between stages.
        """
        if first is None:
            first = yield Query(x, start.t)
        kind = first.kind
        plan = step_plan(self.tableau, coordinates, kind, schedule, start, end)
        basis = [x, first.output]
        for t, coefficients in plan.stages:
            further = yield Query(linear_combination(coefficients, basis), t)
            if further.kind != kind:
                raise InputError(
                    f"prediction: the model changed its prediction type within a step ({kind}, then {further.kind})"
                )
            basis.append(further.output)
        return Stages(plan, basis)


@cache
def _properties(tableau: Tableau) -> Properties:
    return Properties(
        order=tableau.order,
        evaluations=tableau.stages,
        inverse="approximate",
        antisymmetric_order=tableau.antisymmetric_order,
        real_interval=tableau.real_interval(),
        source=tableau.source,
    )


class Euler(RungeKutta, tableau=tableaux.EULER):
    """First order, one evaluation: DDIM, in any coordinates."""


class Midpoint(RungeKutta, tableau=tableaux.MIDPOINT):
    """Second order, two evaluations, antisymmetric order 3."""


class Heun(RungeKutta, tableau=tableaux.HEUN):
    """Second order, two evaluations; in the noise coordinates EDM's deterministic sampler."""


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

    Args:
        coordinates: The coordinates in which to step, "flow", "noise" or "data".
        x: Any number other than 1, 1/2 and -1/2; the default minimises the residuals of order 3 and of symmetry.

    Raises:
        InputError: x is not admissible.
        UnknownNameError: There are no such coordinates.
    """

    x: float = 0.1
    name: ClassVar[str] = "ees25"

    @property
    def tableau(self) -> Tableau:
        return tableaux.ees25(self.x)

    def __post_init__(self):
        super().__post_init__()
        _ = self.tableau  # so that an inadmissible x is refused here and not in a run


@dataclass(frozen=True)
class EES27(RungeKutta):
    """EES(2,7;x): second order, four evaluations, near-reversible: antisymmetric order 7.

    Args:
        coordinates: The coordinates in which to step, "flow", "noise" or "data".
        x: Any number other than the zeros of the denominators (see `tableaux.ees27`).
        branch: The sign of sqrt(2); "+" is recommended.

    Raises:
        InputError: x or the branch is not admissible.
        UnknownNameError: There are no such coordinates.
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


for _solver in (EES25, EES27):
    register(_solver.name, _solver)
