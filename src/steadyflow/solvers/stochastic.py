"""Stochastic samplers beyond the ancestral ones: EDM's churn, a second-order SDE method, consistency steps.

All take their noise from the run's addressed source. Sources: Karras et al. 2022, algorithm 2 (churn); Gonzalez et
al. 2023 (SEEDS) and Lu et al. 2022 (SDE-DPM-Solver++); Song et al. 2023, Luo et al. 2023 (consistency, LCM).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..variables import NOISE
from .ancestral import unit_noise
from .base import Asking, Facts, Leg, Query, Solver, ddim_step
from .runge_kutta import Heun


@dataclass(frozen=True)
class EDMStochastic(Solver):
    """EDM's sampler: raise the noise level by the share gamma = min(churn / steps, sqrt 2 - 1), then a Heun step.

    churn: S_churn of the paper, 0 is deterministic Heun. s_min, s_max: the noise levels sigma/alpha between which
    noise is added. s_noise: the factor of the added noise. Levels above the path's noisiest are not raised.
    """

    churn: float = 10.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003
    name: ClassVar[str] = "edm-churn"

    def __post_init__(self):
        if not (self.churn >= 0 and 0 <= self.s_min <= self.s_max and self.s_noise > 0):
            raise InputError("edm-churn: expected churn >= 0, 0 <= s_min <= s_max and s_noise > 0")

    @property
    def facts(self) -> Facts:
        return Facts(2, 2, "none", stochastic=True, strong_order=1, source="Karras et al. 2022 (2206.00364)")

    def step(self, state: Tensor, leg: Leg) -> Asking[Tensor]:
        schedule, level = leg.schedule, leg.schedule.ratio(leg.t0)
        gamma = min(self.churn / leg.steps, math.sqrt(2.0) - 1.0)
        raised = level * (1.0 + gamma)
        top = schedule.ratio(schedule.domain[1])
        t, x = leg.t0, state
        if gamma > 0 and self.s_min <= level <= self.s_max and raised <= top and math.isfinite(raised):
            t = schedule.t_from_ratio(raised)
            spread = self.s_noise * math.sqrt(raised**2 - level**2) * schedule.alpha(t)
            scaled = state * (NOISE.scale(schedule, t) / NOISE.scale(schedule, leg.t0))
            x = torch.add(scaled, unit_noise(leg), alpha=spread)
        onward = Leg(schedule, t, leg.t1, leg.index, leg.steps, leg.noise, leg.clean)
        return (yield from Heun(variable="noise").step(x, onward))


@dataclass(frozen=True)
class SEEDS2(Solver):
    """A second-order exponential method for the reverse SDE (SEEDS-2, SDE-DPM-Solver++ 2S), two evaluations a step.

    In the data form dY = x0_hat drho + dB_rho, rho = (alpha/sigma)^2, Y = x alpha/sigma^2, the midpoint rule in
    lambda: both the middle state and the end see the same Brownian path over rho.
    """

    name: ClassVar[str] = "seeds-2"

    @property
    def facts(self) -> Facts:
        source = "Gonzalez et al. 2023 (2305.14267); Lu et al. 2022 (2211.01095)"
        return Facts(2, 2, "none", stochastic=True, strong_order=1, source=source)

    def step(self, state: Tensor, leg: Leg) -> Asking[Tensor]:
        schedule = leg.schedule
        ends = (schedule.log_snr(leg.t0), schedule.log_snr(leg.t1))
        if not all(map(math.isfinite, ends)):
            return (yield from ddim_step(state, leg))
        middle = schedule.t_from_log_snr(0.5 * sum(ends))
        first = (yield Query(state, leg.t0)).x0
        half = self._move(state, first, leg, middle)
        second = (yield Query(half, middle)).x0
        return self._move(state, second, leg, leg.t1)

    def _move(self, x: Tensor, x0: Tensor, leg: Leg, t: float) -> Tensor:
        """The exact solution at t for constant x0, from x at leg.t0 along the run's noise."""
        schedule = leg.schedule
        rho0, rho1 = (math.exp(schedule.log_snr(s)) for s in (leg.t0, t))
        before, after = (schedule.sigma(s) ** 2 / schedule.alpha(s) for s in (leg.t0, t))
        drift = torch.add(x * (after / before), x0, alpha=after * (rho1 - rho0))
        return torch.add(drift, leg.source.increment(rho0, rho1), alpha=after)


@dataclass(frozen=True)
class LCM(Solver):
    """Consistency steps: jump to x0_hat and add fresh noise of the next level; for consistency-distilled models."""

    name: ClassVar[str] = "lcm"

    @property
    def facts(self) -> Facts:
        return Facts(
            1, 1, "none", stochastic=True, source="Song et al. 2023 (2303.01469); Luo et al. 2023 (2310.04378)"
        )

    def step(self, state: Tensor, leg: Leg) -> Asking[Tensor]:
        prediction = yield Query(state, leg.t0)
        alpha, sigma = leg.schedule.alpha(leg.t1), leg.schedule.sigma(leg.t1)
        mean = prediction.mix(alpha, 0.0)
        return mean if sigma == 0.0 else torch.add(mean, unit_noise(leg), alpha=sigma)
