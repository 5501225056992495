"""RES, the refined exponential solvers: exponential integrators in lambda = ln(alpha / sigma) that meet the order
conditions of stiff equations (Hochbruck & Ostermann 2005).

In terms of x0_hat, with h = lambda1 - lambda0, y = x / alpha and the functions phi_1(z) = (e^z - 1) / z and
phi_2(z) = (e^z - 1 - z) / z^2, the method of two stages with the node c is

    u  = e^(-ch) y0 + c h phi_1(-ch) m0
    y1 = e^(-h) y0 + h [ (phi_1(-h) - phi_2(-h) / c) m0 + phi_2(-h) / c m_c ].

DPM-Solver++(2S) has the same stages but gives m_c the whole weight, which meets the second condition to leading order.

The multistep methods integrate the polynomial through the last two or three predictions exactly. That is what
`dpmpp-3m` does here, so that `res-2m` and `res-3m` are `dpmpp-3m` of order 2 and 3. A step with an infinite log-SNR at
an end is a DDIM step. Source: Zhang, Cheng, Zhao & Zou 2023 (2308.02157).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from .._internal.tensors import combine
from ..errors import InputError
from .base import Properties, Queries, Query, Step
from .multistep import DPMpp3M
from .registry import register
from .singlestep import Exponential

__all__ = [
    "RES2S",
    "RESMultistep",
]

_SOURCE = "Zhang et al. 2023 (2308.02157)"


@dataclass(frozen=True)
class RES2S(Exponential):
    """RES of two stages: order 2, two evaluations per step.

    Args:
        c: The place of the second evaluation within the step in lambda, in (0, 1].

    Raises:
        InputError: The option is out of range.
    """

    c: float = 0.5
    name: ClassVar[str] = "res-2s"
    coordinates = "data"

    def __post_init__(self):
        if not 0.0 < self.c <= 1.0:
            raise InputError(f"{self.name}: got c {self.c}, expected a number in (0, 1]")

    @property
    def properties(self) -> Properties:
        return Properties(2, 2, "approximate", antisymmetric_order=3, real_interval=2.0, source=_SOURCE)

    def regular_step(self, x: Tensor, step: Step, start: float, end: float) -> Queries[Tensor]:
        schedule, h = step.schedule, end - start
        s0, a1, s1 = step.start.sigma, step.end.alpha, step.end.sigma
        middle = step.end if self.c == 1.0 else schedule.at(schedule.t_from_log_snr(2.0 * (start + self.c * h)))
        first = (yield Query(x, step.t0)).x0
        inner = combine(middle.sigma / s0, x, [-middle.alpha * math.expm1(-self.c * h)], [first])
        second = (yield Query(inner, middle.t)).x0
        bend = (math.expm1(-h) + h) / (self.c * h)  # h phi_2(-h) / c
        return combine(s1 / s0, x, [a1 * (-math.expm1(-h) - bend), a1 * bend], [first, second])


@dataclass(frozen=True)
class RESMultistep(DPMpp3M):
    """RES in its multistep form, `res-2m` and `res-3m`: `dpmpp-3m` of order 2 and 3.

    Args:
        order: The number of predictions through which the polynomial goes, 2 or 3.

    Raises:
        InputError: The order is out of range.
    """

    source = _SOURCE

    def __post_init__(self):
        if self.order not in (2, 3):
            raise InputError(f"res: got order {self.order!r}, expected 2 or 3")

    @property
    def name(self) -> str:  # type: ignore[override]  # the name depends on the order
        return f"res-{self.order}m"

    def spec(self) -> dict[str, Any]:
        return {"name": self.name}


register(RES2S.name, RES2S)
for _order in (2, 3):
    register(f"res-{_order}m", partial(RESMultistep, _order))
