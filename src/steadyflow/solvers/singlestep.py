"""Exponential one-step methods in lambda = ln(alpha / sigma): DPM-Solver and DPM-Solver++(2S).

With h = lambda1 - lambda0 and intermediate points at lambda0 + r h, in terms of eps_hat (DPM-Solver-2, -3) or of
x0_hat (DPM-Solver++ 2S), where a and s stand for alpha and sigma, e and m for eps_hat and x0_hat, and the indices 0, s
and 1 for the start, the intermediate point and the end:

    -2:  u = (as/a0) x - ss (e^(h/2) - 1) e0,      x1 = (a1/a0) x - s1 (e^h - 1) es
    -3:  r = 1/3, 2/3, with the finite differences of the two middle predictions
    2S:  u = (ss/s0) x + as (1 - e^(-h/2)) m0,     x1 = (s1/s0) x + a1 (1 - e^-h) ms

Order 1 of either is DDIM. The step back is the same step with the ends exchanged. A step with an infinite log-SNR at
an end is a DDIM step. Sources: Lu et al. 2022a (DPM-Solver), 2022b (DPM-Solver++).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._internal.tensors import combine
from ..schedules import Schedule
from .base import Properties, Queries, Query, Solver, Step, ddim_step
from .registry import register

__all__ = [
    "DPMSolver2",
    "DPMSolver3",
    "DPMpp2S",
]


class Exponential(Solver[Tensor]):
    """The base of these methods: lambda is the time, and a step from or to an infinite lambda is a DDIM step."""

    def step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        start, end = 0.5 * step.start.log_snr, 0.5 * step.end.log_snr
        if not (math.isfinite(start) and math.isfinite(end)):
            return ddim_step(state, step)
        return self.regular_step(state, step, start, end)

    @abstractmethod
    def regular_step(self, x: Tensor, step: Step, start: float, end: float) -> Queries[Tensor]:
        """Make a step between finite values of lambda.

        Args:
            x: The state at `step.start`, shape (B, ...).
            step: The step.
            start: lambda at its beginning.
            end: lambda at its end.
        """


def _at(schedule: Schedule, value: float) -> tuple[float, float, float]:
    """Return time, alpha and sigma at the point where lambda has this value."""
    t = schedule.t_from_log_snr(2.0 * value)
    level = schedule.at(t)
    return t, level.alpha, level.sigma


@dataclass(frozen=True)
class DPMSolver2(Exponential):
    """DPM-Solver-2, with the intermediate point at half the step in lambda: order 2, two evaluations per step."""

    name: ClassVar[str] = "dpm-2"

    @property
    def properties(self) -> Properties:
        return Properties(
            2, 2, "approximate", antisymmetric_order=3, real_interval=2.0, source="Lu et al. 2022 (2206.00927)"
        )

    def regular_step(self, x: Tensor, step: Step, start: float, end: float) -> Queries[Tensor]:
        schedule, h = step.schedule, end - start
        a0, a1, s1 = step.start.alpha, step.end.alpha, step.end.sigma
        t, a, s = _at(schedule, start + h / 2)
        first = (yield Query(x, step.t0)).eps
        middle = combine(a / a0, x, [-s * math.expm1(h / 2)], [first])
        second = (yield Query(middle, t)).eps
        return combine(a1 / a0, x, [-s1 * math.expm1(h)], [second])


@dataclass(frozen=True)
class DPMSolver3(Exponential):
    """DPM-Solver-3, with intermediate points at 1/3 and 2/3 of the step in lambda: order 3, three evaluations."""

    name: ClassVar[str] = "dpm-3"

    @property
    def properties(self) -> Properties:
        return Properties(
            3, 3, "approximate", antisymmetric_order=3, real_interval=2.5127453, source="Lu et al. 2022 (2206.00927)"
        )

    def regular_step(self, x: Tensor, step: Step, start: float, end: float) -> Queries[Tensor]:
        schedule, h = step.schedule, end - start
        r1, r2 = 1 / 3, 2 / 3
        a0, a1, s1 = step.start.alpha, step.end.alpha, step.end.sigma
        (ta, aa, sa), (tb, ab, sb) = (_at(schedule, start + r * h) for r in (r1, r2))
        e0 = (yield Query(x, step.t0)).eps
        ea = (yield Query(combine(aa / a0, x, [-sa * math.expm1(r1 * h)], [e0]), ta)).eps
        bend = sb * (r2 / r1) * (math.expm1(r2 * h) / (r2 * h) - 1)
        eb = (yield Query(combine(ab / a0, x, [bend - sb * math.expm1(r2 * h), -bend], [e0, ea]), tb)).eps
        bend = s1 / r2 * (math.expm1(h) / h - 1)
        return combine(a1 / a0, x, [bend - s1 * math.expm1(h), -bend], [e0, eb])


@dataclass(frozen=True)
class DPMpp2S(Exponential):
    """DPM-Solver++(2S), in terms of x0_hat: order 2, two evaluations per step."""

    name: ClassVar[str] = "dpmpp-2s"
    coordinates = "data"

    @property
    def properties(self) -> Properties:
        return Properties(
            2, 2, "approximate", antisymmetric_order=3, real_interval=2.0, source="Lu et al. 2022 (2211.01095)"
        )

    def regular_step(self, x: Tensor, step: Step, start: float, end: float) -> Queries[Tensor]:
        schedule, h = step.schedule, end - start
        s0, a1, s1 = step.start.sigma, step.end.alpha, step.end.sigma
        t, a, s = _at(schedule, start + h / 2)
        first = (yield Query(x, step.t0)).x0
        middle = combine(s / s0, x, [-a * math.expm1(-h / 2)], [first])
        second = (yield Query(middle, t)).x0
        return combine(s1 / s0, x, [-a1 * math.expm1(-h)], [second])


for _solver in (DPMSolver2, DPMSolver3, DPMpp2S):
    register(_solver.name, _solver)
