"""Paths in continuous time: variance preserving, variance exploding, and the straight path of flow matching."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from ..errors import InputError
from ._functions import Scalar, arctan2, cbrt, exp, expm1, log, sigmoid, sin, softplus, sqrt
from .base import Schedule


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """The family of paths with alpha^2 + sigma^2 = 1; a subclass defines `log_snr`."""

    def _alpha(self, log_snr: Scalar) -> Scalar:
        return sqrt(sigmoid(log_snr))

    def _sigma(self, log_snr: Scalar) -> Scalar:
        return sqrt(sigmoid(-log_snr))

    def _log_snr_from_alpha(self, alpha: Scalar) -> Scalar:
        return log(alpha * alpha) - log((1.0 - alpha) * (1.0 + alpha))

    def _log_snr_from_sigma(self, sigma: Scalar) -> Scalar:
        return log((1.0 - sigma) * (1.0 + sigma)) - log(sigma * sigma)


def _log_snr_of_decay(decay: Scalar) -> Scalar:
    """Return the log-SNR of a variance-preserving path with alpha = exp(-decay / 2)."""
    return -log(expm1(decay))


def _decay_of_log_snr(log_snr: Scalar) -> Scalar:
    """Return the inverse of `_log_snr_of_decay`."""
    return softplus(-log_snr)


@dataclass(frozen=True)
class VPLinear(VariancePreserving):
    """Variance preserving with beta(t) = beta_min + (beta_max - beta_min) t, t in [0, 1].

    The defaults are the continuous limit of 1,000 betas from 1e-4 to 0.02 (Ho et al. 2020; Song et al. 2021).

    Args:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
        t_min: The last time of a default grid.
        t_max: The first time of a default grid.

    Raises:
        InputError: Not 0 < beta_min < beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        _check_betas(self.beta_min, self.beta_max)

    def log_snr(self, t: Scalar) -> Scalar:
        slope = self.beta_max - self.beta_min
        return _log_snr_of_decay(t * (self.beta_min + 0.5 * slope * t))

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        slope, decay = self.beta_max - self.beta_min, _decay_of_log_snr(log_snr)
        # the root of slope t^2 / 2 + beta_min t = decay, in the form that does not cancel
        return 2.0 * decay / (self.beta_min + sqrt(self.beta_min**2 + 2.0 * slope * decay))


@dataclass(frozen=True)
class VPScaledLinear(VariancePreserving):
    """Variance preserving with sqrt(beta) linear in t, t in [0, 1]: the schedule of Stable Diffusion.

    The defaults are the continuous limit of its 1,000 betas from 0.00085 to 0.012.

    Args:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
        t_min: The last time of a default grid.
        t_max: The first time of a default grid.

    Raises:
        InputError: Not 0 < beta_min < beta_max.
    """

    beta_min: float = 0.85
    beta_max: float = 12.0
    t_min: float = 2e-3
    t_max: float = 1.0

    def __post_init__(self):
        _check_betas(self.beta_min, self.beta_max)

    @cached_property
    def _roots(self) -> tuple[float, float]:
        """sqrt(beta) at t = 0, and its slope."""
        return math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)

    def log_snr(self, t: Scalar) -> Scalar:
        start, slope = self._roots
        return _log_snr_of_decay(t * (start * start + t * (start * slope + t * slope * slope / 3.0)))

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        start, slope = self._roots
        decay = _decay_of_log_snr(log_snr)
        root = cbrt(start**3 + 3.0 * slope * decay)  # = start + slope t
        # (root - start) / slope, in the form that does not cancel
        return 3.0 * decay / (root * root + root * start + start * start)


@dataclass(frozen=True)
class VPCosine(VariancePreserving):
    """Variance preserving with alpha = cos(theta(t)) / cos(theta(0)), theta = pi/2 (t + s)/(1 + s), t in [0, 1].

    alpha is exactly 0 at t = 1, so the default range stops at alpha = 0.0066, where `VPLinear` stops.
    Source: Nichol & Dhariwal 2021.

    Args:
        s: The offset of theta, which keeps beta from vanishing at t = 0.
        t_min: The last time of a default grid.
        t_max: The first time of a default grid.
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9958

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1.0 + self.s)

    def log_snr(self, t: Scalar) -> Scalar:
        rate, start = self._rate, self._rate * self.s
        cosine = sin(rate * (1.0 - t))  # cos(theta), exactly 0 at t = 1
        return 2.0 * log(cosine) - log(sin(rate * t) * sin(rate * t + 2.0 * start))

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        start = self._rate * self.s
        alpha2, sigma2 = sigmoid(log_snr), sigmoid(-log_snr)
        # cos(theta) = alpha cos(start), hence sin(theta)^2 = sigma^2 + alpha^2 sin(start)^2
        sine = sqrt(sigma2 + alpha2 * math.sin(start) ** 2)
        return arctan2(sine, sqrt(alpha2) * math.cos(start)) / self._rate - self.s


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding, alpha = 1 and sigma = t, t >= 0: the path of EDM (Karras et al. 2022).

    Its networks are usually wrapped by EDM's preconditioning, with `prediction="sample"`.

    Args:
        t_min: The last time, and noise level, of a default grid.
        t_max: The first time, and noise level, of a default grid.
    """

    t_min: float = 0.002
    t_max: float = 80.0

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, math.inf

    def log_snr(self, t: Scalar) -> Scalar:
        return -2.0 * log(t)

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        return exp(-0.5 * log_snr)

    def _alpha(self, log_snr: Scalar) -> Scalar:
        return torch.ones_like(log_snr) if isinstance(log_snr, Tensor) else cast(Scalar, 1.0)

    def _sigma(self, log_snr: Scalar) -> Scalar:
        return exp(-0.5 * log_snr)

    def _log_snr_from_alpha(self, alpha: Scalar) -> Scalar:
        raise InputError("t_from_alpha: alpha is 1 at every time of a variance-exploding path; use t_from_sigma")

    def _log_snr_from_sigma(self, sigma: Scalar) -> Scalar:
        return -2.0 * log(sigma)


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """The straight path alpha = 1 - sigma, with sigma = shift t / (1 + (shift - 1) t), t in [0, 1].

    Networks of this path take sigma as their time (see `model_time`).

    Args:
        shift: A value above 1 spends more of the grid at high noise, as Stable Diffusion 3 does at high resolution
            (Esser et al. 2024, eq. 23).
        t_min: The last time of a default grid.
        t_max: The first time of a default grid.

    Raises:
        InputError: The shift is not positive.
    """

    shift: float = 1.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self):
        if not self.shift > 0:
            raise InputError(f"shift: got {self.shift}, expected a positive number")

    def log_snr(self, t: Scalar) -> Scalar:
        return 2.0 * (log(1.0 - t) - log(self.shift * t))

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        return sigmoid(-0.5 * log_snr - math.log(self.shift))

    def model_time(self, t: Scalar) -> Scalar:
        if isinstance(t, Tensor) and t.requires_grad:  # sigma has no derivative by way of the log-SNR at either end
            return self.shift * t / (1.0 + (self.shift - 1.0) * t)
        return self.sigma(t)

    def _alpha(self, log_snr: Scalar) -> Scalar:
        return sigmoid(0.5 * log_snr)

    def _sigma(self, log_snr: Scalar) -> Scalar:
        return sigmoid(-0.5 * log_snr)

    def _log_snr_from_alpha(self, alpha: Scalar) -> Scalar:
        return 2.0 * (log(alpha) - log(1.0 - alpha))

    def _log_snr_from_sigma(self, sigma: Scalar) -> Scalar:
        return 2.0 * (log(1.0 - sigma) - log(sigma))


def _check_betas(beta_min: float, beta_max: float) -> None:
    if not 0 < beta_min < beta_max < math.inf:
        raise InputError(f"betas: expected 0 < beta_min < beta_max, got {beta_min} and {beta_max}")
