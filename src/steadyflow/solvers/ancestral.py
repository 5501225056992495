"""DDIM and its stochastic relatives.

With chi = sigma / alpha, one step from t0 down to t1 is

    s  = eta sigma1 sqrt(1 - chi1^2 / chi0^2)
    x1 = alpha1 x0_hat + sqrt(sigma1^2 - s^2) eps_hat + s z,      z ~ N(0, I).

eta = 0 is DDIM; eta = 1 is the ancestral sampler of DDPM (Song et al. 2021, eq. 16; Ho et al. 2020), which
k-diffusion calls "Euler ancestral". At eta = 1 the mean is exact for fixed x0_hat, and z is the scaled increment of a
Brownian motion over the clock alpha^2 / sigma^2 (the signal-to-noise ratio, which grows during sampling), so that runs
with different numbers of steps can share one noise path.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .._internal.tensors import combine
from ..errors import InputError
from .base import Properties, Queries, Query, Solver, Step, ddim_factors, ddim_step
from .registry import register

__all__ = [
    "DDIM",
    "DDPM",
]


@dataclass(frozen=True)
class DDIM(Solver[Tensor]):
    """DDIM (Song et al. 2021): deterministic at eta = 0, ancestral at eta = 1, stochastic in between.

    Args:
        eta: The share of the ancestral noise, in [0, 1].
        inverse_time: The time at which an inversion evaluates the model: that of the state ("start"), or that of the
            level at which the step ends ("end"), as in prompt-to-prompt and in the inverse scheduler of diffusers.

    Raises:
        InputError: An option is out of range.
    """

    eta: float = 0.0
    inverse_time: Literal["start", "end"] = "start"
    name: ClassVar[str] = "ddim"

    def __post_init__(self):
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta: got {self.eta}, expected a number in [0, 1]")
        if self.inverse_time not in ("start", "end"):
            raise InputError(f"inverse_time: got {self.inverse_time!r}, expected 'start' or 'end'")

    @property
    def properties(self) -> Properties:
        stochastic = self.eta > 0.0
        return Properties(
            order=1,
            evaluations=1,
            inverse="none" if stochastic else "approximate",
            antisymmetric_order=None if stochastic else 1,
            stochastic=stochastic,
            strong_order=1 if stochastic else None,
            real_interval=None if stochastic else 2.0,
            source="Song et al. 2021 (2010.02502)",
        )

    def step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        if self.eta == 0.0:
            return (yield from ddim_step(state, step))
        prediction = yield Query(state, step.t0)
        alpha, sigma = step.end.alpha, step.end.sigma
        before, after = step.start.ratio, step.end.ratio
        spread = self.eta * sigma * math.sqrt(1.0 - (after / before) ** 2)
        if spread == 0.0:
            return prediction.ddim(alpha, sigma)
        mean = prediction.ddim(alpha, math.sqrt(sigma * sigma - spread * spread))
        return torch.add(mean, unit_noise(step), alpha=spread)

    def inverse_step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        self.check_invertible()
        if self.inverse_time == "start":
            return (yield from self.step(state, step))
        a, b = ddim_factors(step.start, step.end)
        return combine(a, state, [b], [(yield Query(state, step.t1)).eps])


@dataclass(frozen=True)
class DDPM(DDIM):
    """The ancestral sampler (Ho et al. 2020): DDIM with eta = 1 by default."""

    eta: float = 1.0
    name: ClassVar[str] = "ddpm"

    @property
    def properties(self) -> Properties:
        return replace(super().properties, source="Ho et al. 2020 (2006.11239)")


def unit_noise(step: Step) -> Tensor:
    """Return standard normal noise, shape (B, ...): the run's increment over the step's signal-to-noise ratios, scaled.

    Args:
        step: A falling step.

    Raises:
        InputError: The run has no noise source.
    """
    before, after = (math.exp(min(level.log_snr, 600.0)) for level in (step.start, step.end))
    if before > 0.0:
        after = min(after, before * 2.0**40)  # a step to clean data: its beginning, which is finite
    return step.source.unit(before, after)


for _solver in (DDIM, DDPM):
    register(_solver.name, _solver)
