"""Noise schedules: the Gaussian path x_t = alpha(t) x0 + sigma(t) eps.

A schedule is a *family* (how alpha and sigma follow from the signal-to-noise ratio) and a *time law*
(how that ratio follows from the path time t, which grows with noise). With

    log_snr(t) = ln(alpha^2 / sigma^2)

the families are

    variance preserving   alpha^2 = sigmoid(log_snr),     sigma^2 = sigmoid(-log_snr)
    variance exploding    alpha   = 1,                    sigma   = exp(-log_snr / 2)
    flow                  alpha   = sigmoid(log_snr / 2), sigma   = sigmoid(-log_snr / 2)

so that every schedule is one pair of inverse functions, t -> log_snr -> t, which is exact at both ends:
log_snr is +inf where sigma = 0 and -inf where alpha = 0.

Every method takes a Python float (and returns one, computed in float64 without touching a device) or a
tensor (and returns a tensor of its shape and dtype).

Sources: Ho et al. 2020 (linear), Rombach et al. 2022 (scaled linear), Nichol & Dhariwal 2021 (cosine),
Karras et al. 2022 (EDM), Liu et al. 2022 and Esser et al. 2024 (rectified flow, shift).
"""

import bisect
import dataclasses
import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import MALFORMED, InputError, UnknownNameError

Scalar = TypeVar("Scalar", float, Tensor, float | Tensor)
"""A float or a tensor; a function of one returns the same kind."""
Made = TypeVar("Made")


# Elementary functions on floats and tensors alike, with the limits at infinity that `math` refuses.


def _exp(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.exp()
    return math.exp(x) if x < 709.0 else math.inf


def _log(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.log()
    return math.log(x) if x > 0.0 else -math.inf


def _sqrt(x: Any) -> Any:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def _expm1(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.expm1()
    return math.expm1(x) if x < 709.0 else math.inf


def _sigmoid(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.sigmoid()
    return 1.0 / (1.0 + math.exp(-x)) if x > -709.0 else 0.0


def _softplus(x: Any) -> Any:
    """ln(1 + e^x) without overflow."""
    if isinstance(x, Tensor):
        return torch.logaddexp(x, torch.zeros_like(x))
    return math.log1p(math.exp(x)) if x < 36.0 else x


def _sin(x: Any) -> Any:
    return x.sin() if isinstance(x, Tensor) else math.sin(x)


def _arctan2(y: Any, x: Any) -> Any:
    return torch.atan2(y, x) if isinstance(y, Tensor) else math.atan2(y, x)


def _cbrt(x: Any) -> Any:
    return x.pow(1 / 3) if isinstance(x, Tensor) else math.cbrt(x)


class Memo(dict[Any, Any]):
    """A dictionary of what is remembered; when there is too much of it, all is forgotten."""

    LIMIT = 4096

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) >= self.LIMIT:
            self.clear()
        super().__setitem__(key, value)


def _remembered(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A method of a time that keeps its answers for single times: solvers ask for the same few over and over."""

    @functools.wraps(function)
    def answer(self: Any, t: Any) -> Any:
        if type(t) is not float:
            return function(self, t)
        memo = self._memos[function]
        value = memo.get(t)
        if value is None:
            value = memo[t] = function(self, t)
        return value

    return answer


@dataclass(frozen=True)
class Schedule(ABC):
    """A path x_t = alpha(t) x0 + sigma(t) eps, with t growing from data to noise.

    `t_min` and `t_max` bound the default time grid; `domain` bounds the times at which the path is
    defined at all. All times are in the schedule's own unit (usually 0..1; sigma for `VE`; the table's
    index for `Tabulated`).
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "log_snr" in cls.__dict__:
            cls.log_snr = _remembered(cls.log_snr)  # type: ignore[method-assign]

    @cached_property
    def _memos(self) -> defaultdict[Hashable, Memo]:
        return defaultdict(Memo)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_memos"}

    def remembered(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gave when it was first asked for under this key: a leg's numbers are the same for every batch.

        The key says all that the value depends on beside the schedule. The value is shared, so it is not to be changed;
        it may be forgotten, and made again.
        """
        memo = self._memos["remembered"]
        value = memo.get(key)
        if value is None:
            value = memo[key] = make()
        return value

    @property
    def domain(self) -> tuple[float, float]:
        """Smallest and largest time at which the path is defined, [0, 1] unless a path says otherwise."""
        return 0.0, 1.0

    @abstractmethod
    def log_snr(self, t: Scalar) -> Scalar:
        """ln(alpha^2 / sigma^2) at time t; strictly decreasing."""

    @abstractmethod
    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        """The time at which the log-SNR has this value."""

    @abstractmethod
    def _alpha(self, log_snr: Scalar) -> Scalar: ...

    @abstractmethod
    def _sigma(self, log_snr: Scalar) -> Scalar: ...

    @abstractmethod
    def _log_snr_from_alpha(self, alpha: Scalar) -> Scalar: ...

    @abstractmethod
    def _log_snr_from_sigma(self, sigma: Scalar) -> Scalar: ...

    @_remembered
    def alpha(self, t: Scalar) -> Scalar:
        """The factor of the data at time t."""
        return self._alpha(self.log_snr(t))

    @_remembered
    def sigma(self, t: Scalar) -> Scalar:
        """The factor of the unit Gaussian noise at time t."""
        return self._sigma(self.log_snr(t))

    @_remembered
    def ratio(self, t: Scalar) -> Scalar:
        """sigma / alpha at time t (the noise level of the variance-exploding frame); inf where alpha = 0."""
        return _exp(-0.5 * self.log_snr(t))

    def t_from_alpha(self, alpha: Scalar) -> Scalar:
        """The time at which alpha has this value."""
        return self.t_from_log_snr(self._log_snr_from_alpha(alpha))

    def t_from_sigma(self, sigma: Scalar) -> Scalar:
        """The time at which sigma has this value."""
        return self.t_from_log_snr(self._log_snr_from_sigma(sigma))

    def t_from_ratio(self, ratio: Scalar) -> Scalar:
        """The time at which sigma / alpha has this value."""
        return self.t_from_log_snr(-2.0 * _log(ratio))

    def model_time(self, t: Scalar) -> Scalar:
        """What a network of this path is conditioned on at time t; the path time itself by default."""
        return t

    @property
    def t_range(self) -> tuple[float, float]:
        """The default range of travel, (t_min, t_max)."""
        return self.t_min, self.t_max  # type: ignore[attr-defined]  # each subclass declares both

    def spec(self) -> dict[str, Any]:
        """A JSON-able description; `from_spec` is its inverse."""
        return {"type": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1."""

    def _alpha(self, log_snr):
        return _sqrt(_sigmoid(log_snr))

    def _sigma(self, log_snr):
        return _sqrt(_sigmoid(-log_snr))

    def _log_snr_from_alpha(self, alpha):
        return _log(alpha * alpha) - _log((1.0 - alpha) * (1.0 + alpha))

    def _log_snr_from_sigma(self, sigma):
        return _log((1.0 - sigma) * (1.0 + sigma)) - _log(sigma * sigma)


def _log_snr_of_decay(decay):
    """Log-SNR of a variance-preserving path with alpha = exp(-decay / 2)."""
    return -_log(_expm1(decay))


def _decay_of_log_snr(log_snr):
    return _softplus(-log_snr)


@dataclass(frozen=True)
class VPLinear(VariancePreserving):
    """Variance preserving with beta(t) = beta_min + (beta_max - beta_min) t, t in [0, 1].

    The defaults are the continuous limit of 1,000 betas from 1e-4 to 0.02 (Ho et al. 2020; Song et al. 2021).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        _check_betas(self.beta_min, self.beta_max)

    def log_snr(self, t):
        slope = self.beta_max - self.beta_min
        return _log_snr_of_decay(t * (self.beta_min + 0.5 * slope * t))

    def t_from_log_snr(self, log_snr):
        slope, decay = self.beta_max - self.beta_min, _decay_of_log_snr(log_snr)
        # the root of slope t^2 / 2 + beta_min t = decay, in the form that does not cancel
        return 2.0 * decay / (self.beta_min + _sqrt(self.beta_min**2 + 2.0 * slope * decay))


@dataclass(frozen=True)
class VPScaledLinear(VariancePreserving):
    """Variance preserving with sqrt(beta) linear in t, t in [0, 1]: the schedule of Stable Diffusion.

    The defaults are the continuous limit of its 1,000 betas from 0.00085 to 0.012.
    """

    beta_min: float = 0.85
    beta_max: float = 12.0
    t_min: float = 2e-3
    t_max: float = 1.0

    def __post_init__(self):
        _check_betas(self.beta_min, self.beta_max)

    @cached_property
    def _roots(self):
        return math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)

    def log_snr(self, t):
        start, slope = self._roots
        return _log_snr_of_decay(t * (start * start + t * (start * slope + t * slope * slope / 3.0)))

    def t_from_log_snr(self, log_snr):
        start, slope = self._roots
        decay = _decay_of_log_snr(log_snr)
        root = _cbrt(start**3 + 3.0 * slope * decay)  # = start + slope t
        # (root - start) / slope, in the form that does not cancel
        return 3.0 * decay / (root * root + root * start + start * start)


@dataclass(frozen=True)
class VPCosine(VariancePreserving):
    """Variance preserving with alpha = cos(theta(t)) / cos(theta(0)), theta = pi/2 (t + s)/(1 + s).

    alpha is exactly 0 at t = 1, so the default range stops at alpha = 0.0066, where `VPLinear` stops.
    Source: Nichol & Dhariwal 2021.
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9958

    @property
    def _rate(self):
        return 0.5 * math.pi / (1.0 + self.s)

    def log_snr(self, t):
        rate, start = self._rate, self._rate * self.s
        cosine = _sin(rate * (1.0 - t))  # cos(theta), exactly 0 at t = 1
        return 2.0 * _log(cosine) - _log(_sin(rate * t) * _sin(rate * t + 2.0 * start))

    def t_from_log_snr(self, log_snr):
        start = self._rate * self.s
        alpha2, sigma2 = _sigmoid(log_snr), _sigmoid(-log_snr)
        # cos(theta) = alpha cos(start), hence sin(theta)^2 = sigma^2 + alpha^2 sin(start)^2
        sine = _sqrt(sigma2 + alpha2 * math.sin(start) ** 2)
        return _arctan2(sine, _sqrt(alpha2) * math.cos(start)) / self._rate - self.s


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding, alpha = 1 and sigma = t: the frame of EDM (Karras et al. 2022).

    Its networks are usually wrapped by EDM's preconditioning, with `prediction="sample"`.
    """

    t_min: float = 0.002
    t_max: float = 80.0

    @property
    def domain(self):
        return 0.0, math.inf

    def log_snr(self, t):
        return -2.0 * _log(t)

    def t_from_log_snr(self, log_snr):
        return _exp(-0.5 * log_snr)

    def _alpha(self, log_snr: Any) -> Any:
        return torch.ones_like(log_snr) if isinstance(log_snr, Tensor) else 1.0

    def _sigma(self, log_snr):
        return _exp(-0.5 * log_snr)

    def _log_snr_from_alpha(self, alpha):
        raise InputError("t_from_alpha: alpha is 1 at every time of a variance-exploding path; use t_from_sigma")

    def _log_snr_from_sigma(self, sigma):
        return -2.0 * _log(sigma)


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """The straight path alpha = 1 - sigma, with sigma = shift t / (1 + (shift - 1) t), t in [0, 1].

    `shift` above 1 spends more of the grid at high noise, as Stable Diffusion 3 does at high resolution
    (Esser et al. 2024, eq. 23). Networks of this path are conditioned on sigma (see `model_time`).
    """

    shift: float = 1.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self):
        if not self.shift > 0:
            raise InputError(f"shift: got {self.shift}, expected a positive number")

    def log_snr(self, t):
        return 2.0 * (_log(1.0 - t) - _log(self.shift * t))

    def t_from_log_snr(self, log_snr):
        return _sigmoid(-0.5 * log_snr - math.log(self.shift))

    def model_time(self, t):
        return self.sigma(t)

    def _alpha(self, log_snr):
        return _sigmoid(0.5 * log_snr)

    def _sigma(self, log_snr):
        return _sigmoid(-0.5 * log_snr)

    def _log_snr_from_alpha(self, alpha):
        return 2.0 * (_log(alpha) - _log(1.0 - alpha))

    def _log_snr_from_sigma(self, sigma):
        return 2.0 * (_log(1.0 - sigma) - _log(sigma))


@dataclass(frozen=True)
class Tabulated(VariancePreserving):
    """A discrete variance-preserving model: `alphas_cumprod[i]` = alpha^2 at time t = i.

    Between the entries log_snr is linear in t, so that times may be any float in [0, N - 1]. A last entry
    of 0 (zero terminal SNR) is allowed; there alpha, not log_snr, is linear over the last cell.
    """

    alphas_cumprod: tuple[float, ...]
    t_min: float = 0.0
    t_max: float = math.nan

    def __post_init__(self):
        table = self.alphas_cumprod
        if isinstance(table, Tensor):
            table = table.double().tolist()
        table = tuple(float(a) for a in table)
        if len(table) < 2:
            raise InputError(f"alphas_cumprod: got {len(table)} entries, expected at least 2")
        if not all(a > b for a, b in itertools.pairwise(table)):
            raise InputError("alphas_cumprod: expected strictly decreasing values")
        if not (table[0] < 1.0 and table[-1] >= 0.0):
            raise InputError(
                f"alphas_cumprod: expected values in [0, 1) from large to small, got {table[0]}..{table[-1]}"
            )
        object.__setattr__(self, "alphas_cumprod", table)
        if math.isnan(self.t_max):
            object.__setattr__(self, "t_max", float(len(table) - 1))

    def __repr__(self) -> str:
        table = self.alphas_cumprod
        return f"Tabulated({len(table)} levels, {table[0]:.6g} to {table[-1]:.6g})"

    @classmethod
    def linear(cls, n: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> "Tabulated":
        """The table of DDPM: n betas, linear."""
        return cls._from_betas(torch.linspace(beta_min, beta_max, n, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, n: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012) -> "Tabulated":
        """The table of Stable Diffusion: n betas whose square roots are linear."""
        roots = torch.linspace(math.sqrt(beta_min), math.sqrt(beta_max), n, dtype=torch.float64)
        return cls._from_betas(roots**2)

    @classmethod
    def _from_betas(cls, betas: Tensor) -> "Tabulated":
        return cls(tuple((1.0 - betas).cumprod(0).tolist()))

    @property
    def domain(self):
        return 0.0, float(len(self.alphas_cumprod) - 1)

    @property
    def _terminal_zero(self) -> bool:
        return self.alphas_cumprod[-1] == 0.0

    @cached_property
    def _falling(self) -> list[float]:
        """log_snr at the entries, from the first to the last finite one."""
        return [_log(a) - math.log1p(-a) for a in self.alphas_cumprod if a > 0.0]

    @cached_property
    def _rising(self) -> list[float]:
        return [-level for level in self._falling]

    def log_snr(self, t: Any) -> Any:
        knots = self._falling
        if isinstance(t, Tensor):
            table = torch.tensor(knots, dtype=t.dtype, device=t.device)
            cell = t.detach().floor().long().clamp(0, len(knots) - 2)
            inside = table[cell] + (t - cell) * (table[cell + 1] - table[cell])
            if not self._terminal_zero:
                return inside
            return torch.where(t > len(knots) - 1, self._log_snr_from_alpha(self._last_alpha(t)), inside)
        if self._terminal_zero and t > len(knots) - 1:
            return self._log_snr_from_alpha(self._last_alpha(t))
        cell = min(max(int(t), 0), len(knots) - 2)
        return knots[cell] + (t - cell) * (knots[cell + 1] - knots[cell])

    def _last_alpha(self, t):
        """alpha in the last cell of a table that ends in 0: linear, from the last positive entry."""
        return math.sqrt(self.alphas_cumprod[-2]) * (len(self.alphas_cumprod) - 1 - t)

    def t_from_log_snr(self, log_snr: Any) -> Any:
        knots = self._rising
        if isinstance(log_snr, Tensor):
            table = torch.tensor(knots, dtype=log_snr.dtype, device=log_snr.device)
            cell = (torch.searchsorted(table, -log_snr.detach().contiguous()) - 1).clamp(0, len(knots) - 2)
            inside = cell + (-log_snr - table[cell]) / (table[cell + 1] - table[cell])
            if not self._terminal_zero:
                return inside
            return torch.where(-log_snr > knots[-1], self._last_time(self._alpha(log_snr)), inside)
        if self._terminal_zero and -log_snr > knots[-1]:
            return self._last_time(self._alpha(log_snr))
        cell = min(max(bisect.bisect_left(knots, -log_snr) - 1, 0), len(knots) - 2)
        return cell + (-log_snr - knots[cell]) / (knots[cell + 1] - knots[cell])

    def _last_time(self, alpha):
        return len(self.alphas_cumprod) - 1 - alpha / math.sqrt(self.alphas_cumprod[-2])


def _check_betas(beta_min: float, beta_max: float) -> None:
    if not 0 < beta_min < beta_max < math.inf:
        raise InputError(f"betas: expected 0 < beta_min < beta_max, got {beta_min} and {beta_max}")


_TYPES = {cls.__name__: cls for cls in (VPLinear, VPScaledLinear, VPCosine, VE, RectifiedFlow, Tabulated)}


def from_spec(spec: dict[str, Any]) -> Schedule:
    """The schedule that `Schedule.spec` described.

    Raises `UnknownNameError` for a type that is not ours, `InputError` for what that type cannot be made of.
    """
    options = dict(spec)
    name = options.pop("type", None)
    if not isinstance(name, str) or name not in _TYPES:
        raise UnknownNameError("schedule", name, _TYPES)
    try:
        if "alphas_cumprod" in options:
            options["alphas_cumprod"] = tuple(options["alphas_cumprod"])
        return _TYPES[name](**options)
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError(f"schedule {name!r}: {error}") from error
