"""DDIM and its stochastic relatives.

With chi = sigma / alpha, one step from t0 down to t1 is

    s  = eta sigma1 sqrt(1 - chi1^2 / chi0^2)
    x1 = alpha1 x0_hat + sqrt(sigma1^2 - s^2) eps_hat + s z,      z ~ N(0, I).

eta = 0 is DDIM; eta = 1 is the ancestral sampler of DDPM (Song et al. 2021, eq. 16; Ho et al. 2020), which
k-diffusion calls "Euler ancestral". At eta = 1 the mean is exact for fixed x0_hat, and z is the increment of a
Brownian motion over the clock alpha^2 / sigma^2 (the signal-to-noise ratio, which grows along sampling), so that runs
with different step counts can share one noise path.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..batches import combine
from ..errors import InputError
from .base import Asking, Facts, Leg, Query, Solver, ddim_factors, ddim_step


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM (Song et al. 2021): deterministic at eta = 0, ancestral at eta = 1, stochastic in between.

    inverse_time: the time at which the model is asked when inverting: that of the state ("start"), or that of the
    level it goes to ("end"), as prompt-to-prompt and the inverse scheduler of diffusers do.
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
    def facts(self) -> Facts:
        stochastic = self.eta > 0.0
        return Facts(
            order=1,
            evaluations=1,
            inverse="none" if stochastic else "approximate",
            antisymmetric_order=None if stochastic else 1,
            stochastic=stochastic,
            strong_order=1 if stochastic else None,
            real_interval=None if stochastic else 2.0,
            source="Song et al. 2021 (2010.02502)",
        )

    def step(self, state: Tensor, leg: Leg) -> Asking[Tensor]:
        if self.eta == 0.0:
            return (yield from ddim_step(state, leg))
        prediction = yield Query(state, leg.t0)
        alpha, sigma = leg.schedule.alpha(leg.t1), leg.schedule.sigma(leg.t1)
        before, after = leg.schedule.ratio(leg.t0), leg.schedule.ratio(leg.t1)
        spread = self.eta * sigma * math.sqrt(1.0 - (after / before) ** 2)
        if spread == 0.0:
            return prediction.mix(alpha, sigma)
        mean = prediction.mix(alpha, math.sqrt(sigma * sigma - spread * spread))
        return torch.add(mean, unit_noise(leg), alpha=spread)

    def inverse_step(self, state: Tensor, leg: Leg) -> Asking[Tensor]:
        self.check_invertible()
        if self.inverse_time == "start":
            return (yield from self.step(state, leg))
        a, b = ddim_factors(leg.schedule, leg.t0, leg.t1)
        return combine(a, state, [b], [(yield Query(state, leg.t1)).eps])


@dataclass(frozen=True)
class DDPM(DDIM):
    """The ancestral sampler (Ho et al. 2020): DDIM with eta = 1."""

    eta: float = 1.0
    name: ClassVar[str] = "ddpm"

    @property
    def facts(self) -> Facts:
        return replace(super().facts, source="Ho et al. 2020 (2006.11239)")


def unit_noise(leg: Leg) -> Tensor:
    """Standard normal noise for a falling leg: the increment over its signal-to-noise ratios, scaled to 1."""
    before, after = (math.exp(min(leg.schedule.log_snr(t), 600.0)) for t in (leg.t0, leg.t1))
    if before > 0.0:
        after = min(after, before * 2.0**40)  # the beginning of a leg to clean data will do, and is a finite number
    return leg.source.unit(before, after)
