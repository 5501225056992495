"""Stochastic samplers other than the ancestral ones: EDM's churn, a second-order SDE method, consistency steps.

All draw their noise from the run's addressed source. Sources: Karras et al. 2022, algorithm 2 (churn); Gonzalez et
al. 2023 (SEEDS) and Lu et al. 2022 (SDE-DPM-Solver++); Song et al. 2023, Luo et al. 2023 (consistency, LCM).
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..coordinates import NOISE
from ..errors import InputError
from ..schedules import Level
from .ancestral import unit_noise
from .base import Properties, Queries, Query, Solver, Step, ddim_step
from .registry import register
from .runge_kutta import Heun

__all__ = [
    "LCM",
    "SEEDS2",
    "EDMStochastic",
]


@dataclass(frozen=True)
class EDMStochastic(Solver[Tensor]):
    """EDM's sampler: raise the noise level by the share gamma = min(churn / steps, sqrt 2 - 1), then make a Heun step.

    A level that would be raised above the path's noisiest is not raised.

    Args:
        churn: S_churn of the paper; 0 gives the deterministic Heun method.
        s_min: S_tmin, the lowest noise level sigma/alpha at which noise is added.
        s_max: S_tmax, the highest such level.
        s_noise: S_noise, the factor of the added noise.

    Raises:
        InputError: An option is out of range.
    """

    churn: float = 10.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003
    name: ClassVar[str] = "edm-churn"

    def __post_init__(self):
        if not (self.churn >= 0 and 0 <= self.s_min <= self.s_max and self.s_noise > 0):
            raise InputError(
                "edm-churn: expected churn >= 0, 0 <= s_min <= s_max and s_noise > 0, got "
                f"{self.churn}, {self.s_min}, {self.s_max} and {self.s_noise}"
            )

    @property
    def properties(self) -> Properties:
        return Properties(2, 2, "none", stochastic=True, strong_order=1, source="Karras et al. 2022 (2206.00364)")

    def step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        schedule, level = step.schedule, step.start.ratio
        gamma = min(self.churn / step.count, math.sqrt(2.0) - 1.0)
        raised = level * (1.0 + gamma)
        top = schedule.at(schedule.domain[1]).ratio
        onward, x = step, state
        if gamma > 0 and self.s_min <= level <= self.s_max and raised <= top and math.isfinite(raised):
            onward = replace(step, start=schedule.at(schedule.t_from_ratio(raised)))
            spread = self.s_noise * math.sqrt(raised**2 - level**2) * onward.start.alpha
            scaled = state * (NOISE.scale(onward.start) / NOISE.scale(step.start))
            x = torch.add(scaled, unit_noise(step), alpha=spread)
        return (yield from Heun(coordinates="noise").step(x, onward))


@dataclass(frozen=True)
class SEEDS2(Solver[Tensor]):
    """A second-order exponential method for the reverse SDE (SEEDS-2, SDE-DPM-Solver++ 2S); two evaluations per step.

    It is the midpoint rule in lambda for the data form dY = x0_hat drho + dB_rho, rho = (alpha/sigma)^2,
    Y = x alpha/sigma^2. The middle and the end of a step use increments of one Brownian path over rho. A step with an
    infinite log-SNR at an end is a DDIM step.
    """

    name: ClassVar[str] = "seeds-2"

    @property
    def properties(self) -> Properties:
        source = "Gonzalez et al. 2023 (2305.14267); Lu et al. 2022 (2211.01095)"
        return Properties(2, 2, "none", stochastic=True, strong_order=1, source=source)

    def step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        schedule = step.schedule
        ends = step.start.log_snr, step.end.log_snr
        if not all(map(math.isfinite, ends)):
            return (yield from ddim_step(state, step))
        middle = schedule.t_from_log_snr(0.5 * sum(ends))
        first = (yield Query(state, step.t0)).x0
        half = self._move(state, first, step, schedule.at(middle))
        second = (yield Query(half, middle)).x0
        return self._move(state, second, step, step.end)

    def _move(self, x: Tensor, x0: Tensor, step: Step, end: Level) -> Tensor:
        """Return the exact solution at a level for constant x0, from x at the step's start, with the run's noise."""
        rho0, rho1 = (math.exp(level.log_snr) for level in (step.start, end))
        before, after = (level.sigma**2 / level.alpha for level in (step.start, end))
        drift = torch.add(x * (after / before), x0, alpha=after * (rho1 - rho0))
        return torch.add(drift, step.source.increment(rho0, rho1), alpha=after)


@dataclass(frozen=True)
class LCM(Solver[Tensor]):
    """Consistency steps for distilled models: x1 = alpha1 x0_hat + sigma1 z with independent noise z at every step."""

    name: ClassVar[str] = "lcm"

    @property
    def properties(self) -> Properties:
        return Properties(
            1, 1, "none", stochastic=True, source="Song et al. 2023 (2303.01469); Luo et al. 2023 (2310.04378)"
        )

    def step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        prediction = yield Query(state, step.t0)
        alpha, sigma = step.end.alpha, step.end.sigma
        mean = prediction.mix(alpha, 0.0)
        return mean if sigma == 0.0 else torch.add(mean, unit_noise(step), alpha=sigma)


for _solver in (SEEDS2, EDMStochastic, LCM):
    register(_solver.name, _solver)
