"""Paths of other libraries: sub-VP, and the affine paths of flow matching.

    SubVP            alpha = exp(-D / 2),  sigma = 1 - exp(-D),  D = beta_min t + (beta_max - beta_min) t^2 / 2
    LinearVP         alpha = 1 - t,        sigma = sqrt(1 - alpha^2)
    PolynomialFlow   alpha = (1 - t)^n,    sigma = 1 - alpha
    NoisyFlow        alpha = 1 - t,        sigma = floor + (top - floor) t
    SmoothedFlow     alpha = 1 - t,        sigma = sqrt(t^2 + floor^2)

Sources: Song et al. 2021, eq. 29 (sub-VP); Lipman et al. 2023, eq. 20, and Tong et al. 2024, eq. 14, for flow matching
with a floor of noise; the scheduler classes of Meta's flow_matching for the linear VP and the polynomial path.
"""

import math
from dataclasses import dataclass

from ..errors import InputError
from ._functions import Scalar, asinh, exp, expm1, log, log1p, sigmoid, softplus, sqrt
from .base import Schedule
from .continuous import VariancePreserving, VPLinear


@dataclass(frozen=True)
class SubVP(Schedule):
    """The path of the sub-VP SDE: alpha as in `VPLinear`, and sigma = 1 - alpha^2, t in [0, 1].

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
        VPLinear(self.beta_min, self.beta_max)

    def log_snr(self, t: Scalar) -> Scalar:
        decay = t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)
        return -decay - 2.0 * log(-expm1(-decay))

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        slope, decay = self.beta_max - self.beta_min, 2.0 * self._half_decay(log_snr)
        return 2.0 * decay / (self.beta_min + sqrt(self.beta_min**2 + 2.0 * slope * decay))

    def _half_decay(self, log_snr: Scalar) -> Scalar:
        """-ln alpha: sigma / alpha is twice its hyperbolic sine."""
        return asinh(0.5 * exp(-0.5 * log_snr))

    def _alpha(self, log_snr: Scalar) -> Scalar:
        return exp(-self._half_decay(log_snr))

    def _sigma(self, log_snr: Scalar) -> Scalar:
        return -expm1(-2.0 * self._half_decay(log_snr))

    def _log_snr_from_alpha(self, alpha: Scalar) -> Scalar:
        return 2.0 * log(alpha) - 2.0 * log((1.0 - alpha) * (1.0 + alpha))

    def _log_snr_from_sigma(self, sigma: Scalar) -> Scalar:
        return log(1.0 - sigma) - 2.0 * log(sigma)


@dataclass(frozen=True)
class LinearVP(VariancePreserving):
    """Variance preserving with alpha = 1 - t, t in [0, 1].

    Args:
        t_min: The last time of a default grid.
        t_max: The first time of a default grid.
    """

    t_min: float = 1e-3
    t_max: float = 1.0

    def log_snr(self, t: Scalar) -> Scalar:
        return 2.0 * log(1.0 - t) - log(t * (2.0 - t))

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        return sigmoid(-log_snr) / (1.0 + self._alpha(log_snr))


class _Flow(Schedule):
    """The family of paths with alpha + sigma = 1; a subclass defines `log_snr`."""

    def _alpha(self, log_snr: Scalar) -> Scalar:
        return sigmoid(0.5 * log_snr)

    def _sigma(self, log_snr: Scalar) -> Scalar:
        return sigmoid(-0.5 * log_snr)

    def _log_snr_from_alpha(self, alpha: Scalar) -> Scalar:
        return 2.0 * (log(alpha) - log(1.0 - alpha))

    def _log_snr_from_sigma(self, sigma: Scalar) -> Scalar:
        return 2.0 * (log(1.0 - sigma) - log(sigma))


@dataclass(frozen=True)
class PolynomialFlow(_Flow):
    """The straight path with alpha = (1 - t)^n, t in [0, 1].

    The velocity in t, n (1 - t)^(n - 1) (eps - x0), vanishes or is infinite at t = 1 unless n is 1, so the default
    range stops at alpha = 0.001.

    Args:
        n: The power.
        t_min: The last time of a default grid.
        t_max: The first time of a default grid; by default where alpha = 0.001, or 1 for n = 1.

    Raises:
        InputError: The power is not positive.
    """

    n: float = 1.0
    t_min: float = 0.0
    t_max: float = math.nan

    def __post_init__(self):
        if not 0.0 < self.n < math.inf:
            raise InputError(f"n: got {self.n}, expected a positive number")
        if math.isnan(self.t_max):
            object.__setattr__(self, "t_max", 1.0 if self.n == 1 else 1.0 - 1e-3 ** (1.0 / self.n))

    def log_snr(self, t: Scalar) -> Scalar:
        decay = self.n * log1p(-t)  # ln alpha
        return 2.0 * (decay - log(-expm1(decay)))

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        return -expm1(-softplus(-0.5 * log_snr) / self.n)


@dataclass(frozen=True)
class NoisyFlow(Schedule):
    """The straight path to data with noise of a standard deviation `floor`, t in [0, 1].

    Args:
        floor: sigma at t = 0.
        top: sigma at t = 1.
        t_min: The last time of a default grid.
        t_max: The first time of a default grid.

    Raises:
        InputError: Not 0 <= floor < top.
    """

    floor: float = 1e-3
    top: float = 1.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.floor < self.top < math.inf:
            raise InputError(f"floor, top: got {self.floor} and {self.top}, expected 0 <= floor < top")

    def log_snr(self, t: Scalar) -> Scalar:
        return 2.0 * (log(1.0 - t) - log(self.floor + (self.top - self.floor) * t))

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        # with a floor, alpha / sigma is at most 1 / floor; without one it is infinite at t = 0
        q = exp(0.5 * log_snr)
        above = self.top - self.floor
        return (1.0 - self.floor * q) / (1.0 + above * q) if self.floor else 1.0 / (1.0 + above * q)

    def _alpha(self, log_snr: Scalar) -> Scalar:
        return 1.0 - self.t_from_log_snr(log_snr)

    def _sigma(self, log_snr: Scalar) -> Scalar:
        return self.floor + (self.top - self.floor) * self.t_from_log_snr(log_snr)

    def _log_snr_from_alpha(self, alpha: Scalar) -> Scalar:
        return self.log_snr(1.0 - alpha)

    def _log_snr_from_sigma(self, sigma: Scalar) -> Scalar:
        return self.log_snr((sigma - self.floor) / (self.top - self.floor))

    def alpha(self, t: Scalar) -> Scalar:
        return 1.0 - t

    def sigma(self, t: Scalar) -> Scalar:
        return self.floor + (self.top - self.floor) * t


@dataclass(frozen=True)
class SmoothedFlow(Schedule):
    """The straight path with noise of a fixed standard deviation added at every time, t in [0, 1].

    Args:
        floor: The standard deviation of that noise, and sigma at t = 0.
        t_min: The last time of a default grid.
        t_max: The first time of a default grid.

    Raises:
        InputError: The floor is not positive.
    """

    floor: float = 0.1
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self):
        if not 0.0 < self.floor < math.inf:
            raise InputError(f"floor: got {self.floor}, expected a positive number; without noise use RectifiedFlow()")

    def log_snr(self, t: Scalar) -> Scalar:
        return 2.0 * log(1.0 - t) - log(t * t + self.floor**2)

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        snr = exp(log_snr)
        # the root of (snr - 1) t^2 + 2 t = 1 - floor^2 snr, in the form that does not cancel
        square = self.floor**2
        return (1.0 - square * snr) / (1.0 + sqrt(snr * (1.0 + square - square * snr)))

    def _alpha(self, log_snr: Scalar) -> Scalar:
        return 1.0 - self.t_from_log_snr(log_snr)

    def _sigma(self, log_snr: Scalar) -> Scalar:
        return self.sigma(self.t_from_log_snr(log_snr))

    def _log_snr_from_alpha(self, alpha: Scalar) -> Scalar:
        return self.log_snr(1.0 - alpha)

    def _log_snr_from_sigma(self, sigma: Scalar) -> Scalar:
        return self.log_snr(sqrt((sigma - self.floor) * (sigma + self.floor)))

    def alpha(self, t: Scalar) -> Scalar:
        return 1.0 - t

    def sigma(self, t: Scalar) -> Scalar:
        return sqrt(t * t + self.floor**2)
