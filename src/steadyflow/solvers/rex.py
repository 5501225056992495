"""Rex: McCallum-Foster coupling over a Runge-Kutta method, for ODEs, and over an SDE method.

See `reversible` for what exactly reversible methods share: two states, a determinant, a coupling.
Sources: McCallum & Foster 2024 (2410.11648); Blasingame & Liu 2025 (2502.08834); Foster et al. 2024 (ShARK).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..batches import combine
from ..bisection import last_where
from ..errors import InputError, SingularTimeError
from ..variables import VariableName, check_name
from .base import Asking, Facts, Leg, Query
from .reversible import Coupling, Pair, TwoStates, check_coupling, contraction, regular_variable
from .runge_kutta import METHODS, RungeKutta
from .tableaux import Tableau

_BASES: dict[str, type[RungeKutta]] = {method.name: method for method in METHODS}
_REX_POWER = {"euler": 1.0}


@dataclass(frozen=True)
class Rex(TwoStates):
    """McCallum-Foster coupling over a Runge-Kutta method in a variable: Rex, for ODEs.

    With P_h(t, x) the method's increment in the variable, and zeta the coupling,

        u1 = zeta u + (1 - zeta) v + P_h(t0, v),        v1 = v - P_-h(t1, u1),

    and back: v = v1 + P_-h(t1, u1), u = (u1 - (1 - zeta) v - P_h(t0, v)) / zeta. Determinant zeta. Order that of the
    method; twice its evaluations. Source: 2410.11648, 2502.08834.
    """

    method: str = "euler"
    variable: VariableName = "noise"
    coupling: Coupling = 0.999

    def __post_init__(self):
        check_name(self.variable)
        check_coupling(self.coupling, self.name)

    @property
    def name(self) -> str:  # type: ignore[override]  # one class serves a name a method
        return f"rex-{self.method}"

    @property
    def base(self) -> RungeKutta:
        """The Runge-Kutta method that is coupled."""
        return _BASES[self.method](variable=self.variable)

    @property
    def frame(self) -> VariableName:
        return self.variable

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "variable": self.variable, "coupling": self.coupling}

    @property
    def facts(self) -> Facts:
        base = self.base.facts
        fixed = None if self.coupling == "auto" else float(self.coupling)
        return Facts(
            order=base.order,
            evaluations=2 * (base.evaluations or 0),
            inverse="exact",
            states=2,
            real_interval=None if fixed is None else _coupled_interval(self.base.tableau, fixed),
            source="Blasingame & Liu 2025 (2502.08834); McCallum & Foster 2024 (2410.11648)",
        )

    def determinant(self, leg: Leg) -> float:
        if self.coupling == "auto":
            return contraction(leg, _REX_POWER.get(self.method, 0.8), regular_variable(self.variable, leg))
        return self.coupling

    def step(self, state: Pair, leg: Leg) -> Asking[Pair]:
        variable, zeta = regular_variable(self.variable, leg), self.determinant(leg)
        before, after = variable.scale(leg.schedule, leg.t0), variable.scale(leg.schedule, leg.t1)
        ratio = after / before
        base, b = self.base, self.base.tableau.b
        forth = yield from base.stages(state.y, leg.schedule, leg.t0, leg.t1, variable)
        x = combine(ratio * zeta, state.x, forth.plan.factors(ratio * (1 - zeta), after, b), forth.known)
        back = yield from base.stages(x, leg.schedule, leg.t1, leg.t0, variable)
        return Pair(x, combine(ratio, state.y, back.plan.factors(0.0, -after, b), back.known))

    def inverse_step(self, state: Pair, leg: Leg) -> Asking[Pair]:
        variable, zeta = regular_variable(self.variable, leg), self.determinant(leg)
        before, after = variable.scale(leg.schedule, leg.t0), variable.scale(leg.schedule, leg.t1)
        ratio = after / before
        base, b = self.base, self.base.tableau.b
        back = yield from base.stages(state.x, leg.schedule, leg.t0, leg.t1, variable)
        y = combine(ratio, state.y, back.plan.factors(0.0, after, b), back.known)
        forth = yield from base.stages(y, leg.schedule, leg.t1, leg.t0, variable)
        return Pair(combine(ratio / zeta, state.x, forth.plan.factors(1 - 1 / zeta, -after / zeta, b), forth.known), y)


@cache
def _coupled_interval(tableau: Tableau, zeta: float) -> float:
    """The real stability interval of McCallum-Foster coupling, from the roots of its matrix on u' = z u,

    [[zeta, 1 - zeta + a], [-b zeta, 1 - b (1 - zeta + a)]],  a = R(z) - 1,  b = R(-z) - 1: those of
    r^2 - (zeta + 1 - b (1 - zeta + a)) r + zeta, R being the method's stability polynomial.
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
    """Rex for the reverse SDE, over the addressed Brownian path of the run.

    In the noise variable u = x / alpha the SDE is du = 2 eps_hat dchi + dB over chi^2, in the data variable
    u = x alpha / sigma^2 it is du = x0_hat drho + dB over rho = (alpha / sigma)^2. The coupling is that of `Rex`, with
    the same increments W (and areas H) of B both ways, so that a sample's latent and seed give it back exactly. The
    latent of an inversion is no draw of the prior: reverse-time sampling contracts strongly, its inverse expands.

    Increments of the base method: "euler-maruyama", or "shark" (Foster et al. 2024; data variable only),

        Z1 = u + H,  Z2 = u + 5/6 (h f(Z1) + W) + H,  P = h (2/5 f(Z1) + 3/5 f(Z2)) + W.

    Source: 2502.08834, section on SDEs.
    """

    method: Literal["euler-maruyama", "shark"] = "euler-maruyama"
    variable: Literal["noise", "data"] = "data"
    coupling: float = 0.999

    def __post_init__(self):
        if self.method not in ("euler-maruyama", "shark"):
            raise InputError(f"rex-sde: got method {self.method!r}, expected 'euler-maruyama' or 'shark'")
        if self.variable not in (("data",) if self.method == "shark" else ("noise", "data")):
            raise InputError(f"{self.name}: the {self.variable!r} variable is not defined for it; use 'data'")
        check_coupling(self.coupling, self.name)
        if self.coupling == "auto":
            raise InputError(f'{self.name}: coupling "auto" follows the contraction of an ODE; give a number in (0, 1]')

    @property
    def name(self) -> str:  # type: ignore[override]  # one class serves a name a method
        return "rex-shark" if self.method == "shark" else "rex-sde"

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "variable": self.variable, "coupling": self.coupling}

    @property
    def facts(self) -> Facts:
        shark = self.method == "shark"
        return Facts(
            2 if shark else 1,
            4 if shark else 2,
            "exact",
            stochastic=True,
            strong_order=1,  # also ShARK's, whose areas on a refined grid belong to other paths
            states=2,
            source="Blasingame & Liu 2025 (2502.08834)" + ("; Foster et al. 2024 (2210.17543)" if shark else ""),
        )

    def determinant(self, leg: Leg) -> float:
        return self.coupling

    def _scale(self, leg: Leg, t: float) -> float:
        alpha, sigma = leg.schedule.alpha(t), leg.schedule.sigma(t)
        scale = alpha if self.variable == "noise" else sigma * sigma / alpha if alpha > 0 else math.inf
        if not 0.0 < scale < math.inf:
            raise SingularTimeError(f"{self.name}: the {self.variable} variable is singular at t = {t:.6g}")
        return scale

    def _increment(self, x: Tensor, leg: Leg, t0: float, t1: float) -> Asking[Tensor]:
        """Drift and noise of a step of the base method from (x, t0) to t1, in the variable."""
        if self.method == "shark":
            return (yield from self._shark(x, leg, t0, t1))
        prediction = yield Query(x, t0)
        ratio0, ratio1 = leg.schedule.ratio(t0), leg.schedule.ratio(t1)
        if self.variable == "noise":
            drift, h, clock = prediction.eps, 2.0 * (ratio1 - ratio0), (ratio0**2, ratio1**2)
        else:
            drift, h, clock = prediction.x0, ratio1**-2 - ratio0**-2, (ratio0**-2, ratio1**-2)
        return torch.add(leg.source.increment(*clock), drift, alpha=h)

    def _shark(self, x: Tensor, leg: Leg, t0: float, t1: float) -> Asking[Tensor]:
        schedule, noise = leg.schedule, leg.source
        rho0, rho1 = (schedule.ratio(t) ** -2 for t in (t0, t1))
        h, w, area = rho1 - rho0, noise.increment(rho0, rho1), noise.area(rho0, rho1)
        middle = schedule.t_from_ratio((rho0 + 5 / 6 * h) ** -0.5)
        before, here = self._scale(leg, t0), self._scale(leg, middle)
        first = (yield Query(torch.add(x, area, alpha=before), t0)).x0
        inner = combine(here / before, x, [here * 5 / 6 * h, here * 5 / 6, here], [first, w, area])
        second = (yield Query(inner, middle)).x0
        return combine(1.0, w, [0.4 * h, 0.6 * h], [first, second])

    def step(self, state: Pair, leg: Leg) -> Asking[Pair]:
        zeta, after = self.coupling, self._scale(leg, leg.t1)
        ratio = after / self._scale(leg, leg.t0)
        forth = yield from self._increment(state.y, leg, leg.t0, leg.t1)
        x = combine(ratio * zeta, state.x, [ratio * (1 - zeta), after], [state.y, forth])
        back = yield from self._increment(x, leg, leg.t1, leg.t0)
        return Pair(x, combine(ratio, state.y, [-after], [back]))

    def inverse_step(self, state: Pair, leg: Leg) -> Asking[Pair]:
        zeta, after = self.coupling, self._scale(leg, leg.t1)
        ratio = after / self._scale(leg, leg.t0)
        back = yield from self._increment(state.x, leg, leg.t0, leg.t1)
        y = combine(ratio, state.y, [after], [back])
        forth = yield from self._increment(y, leg, leg.t1, leg.t0)
        return Pair(combine(ratio / zeta, state.x, [1 - 1 / zeta, -after / zeta], [y, forth]), y)
