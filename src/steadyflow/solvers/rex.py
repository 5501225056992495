"""Rex: the McCallum-Foster coupling of a Runge-Kutta method, for ODEs, or of an SDE method.

See the module `reversible` for what exactly reversible methods share: two states, a determinant, a coupling.
Sources: McCallum & Foster 2024 (2410.11648); Blasingame & Liu 2025 (2502.08834); Foster et al. 2024 (ShARK).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from .._internal.numerics import last_where
from .._internal.tensors import combine
from ..coordinates import CoordinatesName, check_name
from ..errors import InputError, SingularTimeError, UnknownNameError
from ..schedules import Level
from .base import Properties, Queries, Query, Step
from .registry import register
from .reversible import Coupling, Pair, TwoStates, check_coupling, contraction, regular_coordinates
from .runge_kutta import METHODS, RungeKutta
from .tableaux import Tableau

__all__ = [
    "Rex",
    "RexSDE",
]

_BASES: dict[str, type[RungeKutta]] = {method.name: method for method in METHODS}
_REX_POWER = {"euler": 1.0}


@dataclass(frozen=True)
class Rex(TwoStates):
    """Rex: the McCallum-Foster coupling of a Runge-Kutta method.

    With P_h(t, x) the method's increment in the coordinates, and zeta the coupling,

        u1 = zeta u + (1 - zeta) v + P_h(t0, v),        v1 = v - P_-h(t1, u1),

    and back: v = v1 + P_-h(t1, u1), u = (u1 - (1 - zeta) v - P_h(t0, v)) / zeta. Determinant zeta. It has the order of
    the method and twice its evaluations. Source: 2410.11648, 2502.08834.

    Args:
        method: The name of a Runge-Kutta method without options.
        coordinates: The coordinates in which to step, "flow", "noise" or "data".
        coupling: zeta, in (0, 1], or "auto" (see the module `reversible`).

    Raises:
        UnknownNameError: There are no such coordinates.
        InputError: The coupling is out of range.
    """

    method: str = "euler"
    coordinates: CoordinatesName = "noise"
    coupling: Coupling = 0.999

    def __post_init__(self):
        if self.method not in _BASES:
            raise UnknownNameError("method", self.method, _BASES)
        check_name(self.coordinates)
        check_coupling(self.coupling, self.name)

    @property
    def name(self) -> str:  # type: ignore[override]  # the name depends on the method
        return f"rex-{self.method}"

    @property
    def base(self) -> RungeKutta:
        """The Runge-Kutta method that is coupled."""
        return _BASES[self.method](coordinates=self.coordinates)

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "coordinates": self.coordinates, "coupling": self.coupling}

    @property
    def properties(self) -> Properties:
        base = self.base.properties
        fixed = None if self.coupling == "auto" else float(self.coupling)
        return Properties(
            order=base.order,
            evaluations=2 * (base.evaluations or 0),
            inverse="exact",
            states=2,
            real_interval=None if fixed is None else _coupled_interval(self.base.tableau, fixed),
            source="Blasingame & Liu 2025 (2502.08834); McCallum & Foster 2024 (2410.11648)",
        )

    def determinant(self, step: Step) -> float:
        if self.coupling == "auto":
            return contraction(step, _REX_POWER.get(self.method, 0.8), regular_coordinates(self.coordinates, step))
        return self.coupling

    def step(self, state: Pair, step: Step) -> Queries[Pair]:
        coordinates, zeta = regular_coordinates(self.coordinates, step), self.determinant(step)
        before, after = coordinates.scale(step.start), coordinates.scale(step.end)
        ratio = after / before
        base, b = self.base, self.base.tableau.b
        forth = yield from base.stages(state.y, step.schedule, step.start, step.end, coordinates)
        x = combine(ratio * zeta, state.x, forth.plan.coefficients(ratio * (1 - zeta), after, b), forth.basis)
        back = yield from base.stages(x, step.schedule, step.end, step.start, coordinates)
        return Pair(x, combine(ratio, state.y, back.plan.coefficients(0.0, -after, b), back.basis))

    def inverse_step(self, state: Pair, step: Step) -> Queries[Pair]:
        coordinates, zeta = regular_coordinates(self.coordinates, step), self.determinant(step)
        before, after = coordinates.scale(step.start), coordinates.scale(step.end)
        ratio = after / before
        base, b = self.base, self.base.tableau.b
        back = yield from base.stages(state.x, step.schedule, step.start, step.end, coordinates)
        y = combine(ratio, state.y, back.plan.coefficients(0.0, after, b), back.basis)
        forth = yield from base.stages(y, step.schedule, step.end, step.start, coordinates)
        coefficients = forth.plan.coefficients(1 - 1 / zeta, -after / zeta, b)
        return Pair(combine(ratio / zeta, state.x, coefficients, forth.basis), y)


@cache
def _coupled_interval(tableau: Tableau, zeta: float) -> float:
    """Return the real stability interval of the McCallum-Foster coupling.

    On u' = z u a step has the matrix [[zeta, 1 - zeta + a], [-b zeta, 1 - b (1 - zeta + a)]], a = R(z) - 1,
    b = R(-z) - 1, with R the method's stability polynomial. Its eigenvalues are the roots of
    r^2 - (zeta + 1 - b (1 - zeta + a)) r + zeta.
    """
    polynomial = np.poly1d(tableau.stability_polynomial()[::-1])

    def stable(z: float) -> bool:
        trace = zeta + 1.0 - (polynomial(-z) - 1.0) * (polynomial(z) - zeta)
        return bool(np.abs(np.roots([1.0, -trace, zeta])).max() <= 1.0 + 1e-12)

    low, high = 0.0, 1e-5
    while stable(-high) and high < 20.0:
        low, high = high, high * 1.05
    return last_where(lambda r: stable(-r), low, high, 40)


@dataclass(frozen=True)
class RexSDE(TwoStates):
    """Rex for the reverse SDE, on the addressed Brownian path of the run.

    In noise coordinates u = x / alpha the SDE is du = 2 eps_hat dchi + dB over chi^2, in data coordinates
    u = x alpha / sigma^2 it is du = x0_hat drho + dB over rho = (alpha / sigma)^2. The coupling is that of `Rex`, with
    the same increments W (and areas H) of B in both directions, so that a sample is reconstructed exactly from its
    latent and seed. The latent of an inversion is not distributed like the prior: reverse-time sampling contracts
    strongly, and its inverse expands.

    Increments of the base method: "euler-maruyama", or "shark" (Foster et al. 2024; data coordinates only),

        Z1 = u + H,  Z2 = u + 5/6 (h f(Z1) + W) + H,  P = h (2/5 f(Z1) + 3/5 f(Z2)) + W.

    Source: 2502.08834, section on SDEs.

    Args:
        method: "euler-maruyama" or "shark".
        coordinates: "data" or, for "euler-maruyama", "noise".
        coupling: zeta, in (0, 1].

    Raises:
        InputError: An option is not one of these.
    """

    method: Literal["euler-maruyama", "shark"] = "euler-maruyama"
    coordinates: CoordinatesName = "data"
    coupling: float = 0.999

    def __post_init__(self):
        if self.method not in ("euler-maruyama", "shark"):
            raise InputError(f"rex-sde: got method {self.method!r}, expected 'euler-maruyama' or 'shark'")
        if self.coordinates not in (("data",) if self.method == "shark" else ("noise", "data")):
            raise InputError(f"{self.name}: not defined in {self.coordinates!r} coordinates; use 'data'")
        check_coupling(self.coupling, self.name)
        if cast(Coupling, self.coupling) == "auto":
            raise InputError(f'{self.name}: coupling "auto" is only valid for ODE methods; give a number in (0, 1]')

    @property
    def name(self) -> str:  # type: ignore[override]  # the name depends on the method
        return "rex-shark" if self.method == "shark" else "rex-sde"

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "coordinates": self.coordinates, "coupling": self.coupling}

    @property
    def properties(self) -> Properties:
        shark = self.method == "shark"
        return Properties(
            2 if shark else 1,
            4 if shark else 2,
            "exact",
            stochastic=True,
            strong_order=1,  # also ShARK's, whose areas on a refined grid belong to other paths
            states=2,
            source="Blasingame & Liu 2025 (2502.08834)" + ("; Foster et al. 2024 (2210.17543)" if shark else ""),
        )

    def determinant(self, step: Step) -> float:
        return self.coupling

    def _scale(self, level: Level) -> float:
        alpha, sigma = level.alpha, level.sigma
        scale = alpha if self.coordinates == "noise" else sigma * sigma / alpha if alpha > 0 else math.inf
        if not 0.0 < scale < math.inf:
            raise SingularTimeError(f"{self.name}: {self.coordinates} coordinates are singular at t = {level.t:.6g}")
        return scale

    def _increment(self, x: Tensor, step: Step, start: Level, end: Level) -> Queries[Tensor]:
        """Return drift plus noise of a step of the base method from x at one level to another, in the coordinates."""
        if self.method == "shark":
            return (yield from self._shark(x, step, start, end))
        prediction = yield Query(x, start.t)
        ratio0, ratio1 = start.ratio, end.ratio
        if self.coordinates == "noise":
            drift, h, clock = prediction.eps, 2.0 * (ratio1 - ratio0), (ratio0**2, ratio1**2)
        else:
            drift, h, clock = prediction.x0, ratio1**-2 - ratio0**-2, (ratio0**-2, ratio1**-2)
        return torch.add(step.source.increment(*clock), drift, alpha=h)

    def _shark(self, x: Tensor, step: Step, start: Level, end: Level) -> Queries[Tensor]:
        schedule, noise = step.schedule, step.source
        rho0, rho1 = start.ratio**-2, end.ratio**-2
        h, w, area = rho1 - rho0, noise.increment(rho0, rho1), noise.area(rho0, rho1)
        middle = schedule.at(schedule.t_from_ratio((rho0 + 5 / 6 * h) ** -0.5))
        before, here = self._scale(start), self._scale(middle)
        first = (yield Query(torch.add(x, area, alpha=before), start.t)).x0
        inner = combine(here / before, x, [here * 5 / 6 * h, here * 5 / 6, here], [first, w, area])
        second = (yield Query(inner, middle.t)).x0
        return combine(1.0, w, [0.4 * h, 0.6 * h], [first, second])

    def step(self, state: Pair, step: Step) -> Queries[Pair]:
        zeta, after = self.coupling, self._scale(step.end)
        ratio = after / self._scale(step.start)
        forth = yield from self._increment(state.y, step, step.start, step.end)
        x = combine(ratio * zeta, state.x, [ratio * (1 - zeta), after], [state.y, forth])
        back = yield from self._increment(x, step, step.end, step.start)
        return Pair(x, combine(ratio, state.y, [-after], [back]))

    def inverse_step(self, state: Pair, step: Step) -> Queries[Pair]:
        zeta, after = self.coupling, self._scale(step.end)
        ratio = after / self._scale(step.start)
        back = yield from self._increment(state.x, step, step.start, step.end)
        y = combine(ratio, state.y, [after], [back])
        forth = yield from self._increment(y, step, step.end, step.start)
        return Pair(combine(ratio / zeta, state.x, [1 - 1 / zeta, -after / zeta], [y, forth]), y)


def _maker(method: str) -> Callable[..., Rex]:
    """Return a function that creates Rex over one method, without the method among its options."""

    def make(coordinates: CoordinatesName = "noise", coupling: Coupling = 0.999) -> Rex:
        return Rex(method, coordinates, coupling)

    return make


for _solver in METHODS:
    register(f"rex-{_solver.name}", _maker(_solver.name))
for _method in ("euler-maruyama", "shark"):
    register(RexSDE(_method).name, partial(RexSDE, _method))
