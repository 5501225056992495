"""ER-SDE solvers: the reverse SDE with a free noise scaling function phi, in terms of x0_hat.

With y = x / alpha and s = sigma / alpha the solution of the SDE obeys d(y / phi) = x0_hat d(1 / phi) + dW(c), where W
is a Brownian motion over the clock c = (s / phi)^2, which grows during sampling. phi(s) = s is the ODE and phi(s) = s^2
the usual reverse SDE. From s0 to s1, with r = phi(s1) / phi(s0),

    y1 = r y0 + (1 - r) m0 + J1 m' + J2 m'' + sqrt(s1^2 - r^2 s0^2) z,
    J1 = s1 - s0 + phi(s1) int ds / phi,    J2 = (s1 - s0)^2 / 2 + phi(s1) int (s - s0) / phi ds,

where both integrals run from s1 to s0. The derivatives are difference quotients of the last predictions,

    m' = (m0 - m_1) / (s0 - s_1),    m'' = 2 (m' - m'_1) / (s0 - s_2).

As m' is the quotient of one step and not the derivative of the parabola through three predictions, order 3 is of second
order, too, without noise and even with an exact history. The integrals are computed by Gauss-Legendre quadrature; the
authors' code takes sums of 100 terms.
Source: Cui, Zhang, Wang, Xu & Zhao 2023 (2309.06169).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..schedules import Level
from .base import Properties, Step
from .multistep import Multistep
from .registry import register
from .weights import LinearStep, gauss, regular

__all__ = [
    "ERSDE",
]

Scale = Literal["ode", "sde", "sde-1", "sde-2", "sde-3", "sde-5"]
_RELATIVE: dict[str, Callable[[float], float]] = {
    "ode": lambda s: 1.0,
    "sde": lambda s: s,
    "sde-1": lambda s: math.exp(-1.0 / s) + 10.0,
    "sde-2": lambda s: s**0.5,
    "sde-3": lambda s: s**1.5,
    "sde-5": lambda s: math.exp(s**0.3) + 10.0,
}
"""phi(s) / s, which does not decrease."""
_NOISIEST = 2.0**14
"""The largest s at which the clocks are resolved."""


@dataclass(frozen=True)
class ERSDE(Multistep):
    """ER-SDE-Solver: one evaluation per step, of order 1 to 2. Steps above sigma/alpha = 2^14 are DDIM steps.

    Args:
        order: The number of predictions that are used, 1 to 3.
        scale: The noise scaling function phi(s), with the authors' names: "sde-5" for s (exp(s^0.3) + 10), "sde-1" for
            s (exp(-1/s) + 10), "sde-2" for s^1.5, "sde-3" for s^2.5, "sde" for s^2, and "ode" for s, without noise.

    Raises:
        InputError: An option is none of these.
    """

    order: int = 3
    scale: Scale = "sde-5"
    name: ClassVar[str] = "er-sde"
    highest = 3
    coordinates = "data"

    def __post_init__(self):
        super().__post_init__()
        if self.scale not in _RELATIVE:
            known = ", ".join(map(repr, get_args(Scale)))
            raise InputError(f"{self.name}: got scale {self.scale!r}, expected one of {known}")

    @property
    def properties(self) -> Properties:
        noisy = self.scale != "ode"
        return Properties(
            min(self.order, 2),
            1,
            "none" if noisy else "approximate",
            stochastic=noisy,
            strong_order=1 if noisy else None,
            states=1 + self.order,
            source="Cui et al. 2023 (2309.06169)",
        )

    def covers(self, level: Level) -> bool:
        return regular(level) and level.ratio <= _NOISIEST

    def unit_noise(self, step: Step) -> Tensor:
        before, after = self._clock(step.start.ratio), self._clock(step.end.ratio)
        return step.source.increment(before, after).mul_(1.0 / math.sqrt(after - before))

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        knots, s1 = [level.ratio for level in past], end.ratio
        s0, alpha = knots[0], end.alpha
        phi = s1 * _RELATIVE[self.scale](s1)
        ratio = phi / (s0 * _RELATIVE[self.scale](s0))
        weights = [1.0 - ratio, 0.0, 0.0][: len(knots)]
        if len(knots) > 1:
            first, second = self._integrals(s0, s1)
            slope = s0 - knots[1]
            if len(knots) > 2:
                bend = 2.0 * (phi * second + 0.5 * (s1 - s0) ** 2) / (s0 - knots[2])
                older = knots[1] - knots[2]
                weights[0] += bend / slope
                weights[1] -= bend / slope + bend / older
                weights[2] += bend / older
            gain = (phi * first + s1 - s0) / slope
            weights[0] += gain
            weights[1] -= gain
        noise = alpha * phi * math.sqrt(max(self._clock(s1) - self._clock(s0), 0.0))
        return LinearStep(alpha / past[0].alpha * ratio, tuple(alpha * w for w in weights), noise)

    def _clock(self, s: float) -> float:
        """Return c = (s / phi)^2."""
        return _RELATIVE[self.scale](s) ** -2

    def _integrals(self, s0: float, s1: float) -> tuple[float, float]:
        """Return the integrals of 1 / phi and of (s - s0) / phi from s1 to s0, by quadrature in ln s."""
        nodes, weights = gauss()
        span = math.log(s0 / s1)
        s = s1 * np.exp(span * nodes)
        measure = span * weights / np.array([_RELATIVE[self.scale](float(one)) for one in s])  # ds / phi
        return float(measure.sum()), float(measure @ (s - s0))


register(ERSDE.name, ERSDE)
