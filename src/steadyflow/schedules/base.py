"""Noise schedules: the Gaussian path x_t = alpha(t) x0 + sigma(t) eps.

A schedule combines a *family* (how alpha and sigma follow from the signal-to-noise ratio) with a *time law*
(how that ratio follows from the path time t, which grows with noise). With

    log_snr(t) = ln(alpha^2 / sigma^2)

the families are

    variance preserving   alpha^2 = sigmoid(log_snr),     sigma^2 = sigmoid(-log_snr)
    variance exploding    alpha   = 1,                    sigma   = exp(-log_snr / 2)
    flow                  alpha   = sigmoid(log_snr / 2), sigma   = sigmoid(-log_snr / 2)

so that every schedule is one pair of inverse functions, t -> log_snr -> t, which is exact at both ends:
log_snr is +inf where sigma = 0 and -inf where alpha = 0.

Every method takes a Python float (and returns one, computed in float64 without touching a device) or a
tensor (and returns a tensor of its shape and dtype). `Schedule.at` returns all numbers of the path at one time.

Sources: Ho et al. 2020 (linear), Rombach et al. 2022 (scaled linear), Nichol & Dhariwal 2021 (cosine),
Karras et al. 2022 (EDM), Liu et al. 2022 and Esser et al. 2024 (rectified flow, shift).
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..errors import MALFORMED, InputError, UnknownNameError
from ._functions import Scalar, exp, log


class Level(NamedTuple):
    """The numbers of a path at one time."""

    t: float
    """The path time."""
    alpha: float
    """The factor of the data."""
    sigma: float
    """The factor of the noise."""
    log_snr: float
    """ln(alpha^2 / sigma^2), infinite where either factor is 0."""
    ratio: float
    """sigma / alpha, the noise level of variance-exploding coordinates; inf where alpha is 0."""


class Schedule(ABC):
    """A path x_t = alpha(t) x0 + sigma(t) eps, with t growing from data to noise.

    All times are in the schedule's own unit (usually 0..1; sigma for `VE`; the table's index for `Tabulated`).

    A subclass is a frozen dataclass with `t_min` and `t_max` among its fields. A subclass of an existing family, such
    as `VariancePreserving`, only needs to define `log_snr`; unless it also defines `t_from_log_snr`, that inverse is
    computed by bisection.
    """

    t_min: float
    """The last time of a default grid, at the data end."""
    t_max: float
    """The first time of a default grid, at the noise end."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        _TYPES[cls.__name__] = cls

    @lru_cache(maxsize=4096)  # noqa: B019  # a path is a value: equal ones share their levels
    def at(self, t: float) -> Level:
        """Return the numbers of the path at time t; they are computed once for each time and cached."""
        return Level(t, self.alpha(t), self.sigma(t), self.log_snr(t), self.ratio(t))

    @property
    def domain(self) -> tuple[float, float]:
        """The smallest and the largest time at which the path is defined; (0, 1) unless a subclass overrides it."""
        return 0.0, 1.0

    @abstractmethod
    def log_snr(self, t: Scalar) -> Scalar:
        """Return ln(alpha^2 / sigma^2) at time t, a strictly decreasing function."""

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        """Return the time at which the log-SNR has this value, the inverse of `log_snr`.

        This default bisects `domain`, and returns an end of it for values that the path does not reach.

        Args:
            log_snr: ln(alpha^2 / sigma^2), a float or a tensor of any shape.

        Raises:
            NotImplementedError: The domain is unbounded, so the subclass must define this method.
        """
        low, high = self.domain
        if not math.isfinite(high):
            raise NotImplementedError(
                f"{type(self).__name__}: a path with an unbounded domain must define t_from_log_snr"
            )
        if isinstance(log_snr, Tensor):
            a, b = torch.full_like(log_snr, low), torch.full_like(log_snr, high)
            for _ in range(80):
                middle = 0.5 * (a + b)
                above = self.log_snr(middle) > log_snr
                a, b = torch.where(above, middle, a), torch.where(above, b, middle)
            return 0.5 * (a + b)
        for _ in range(80):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.log_snr(middle) > log_snr else (low, middle)
        return cast(Scalar, 0.5 * (low + high))

    @abstractmethod
    def _alpha(self, log_snr: Scalar) -> Scalar: ...

    @abstractmethod
    def _sigma(self, log_snr: Scalar) -> Scalar: ...

    @abstractmethod
    def _log_snr_from_alpha(self, alpha: Scalar) -> Scalar: ...

    @abstractmethod
    def _log_snr_from_sigma(self, sigma: Scalar) -> Scalar: ...

    def alpha(self, t: Scalar) -> Scalar:
        """Return the factor of the data at time t."""
        return self._alpha(self.log_snr(t))

    def sigma(self, t: Scalar) -> Scalar:
        """Return the factor of the unit Gaussian noise at time t."""
        return self._sigma(self.log_snr(t))

    def ratio(self, t: Scalar) -> Scalar:
        """Return sigma / alpha at time t, the noise level of variance-exploding coordinates; inf where alpha = 0."""
        return exp(-0.5 * self.log_snr(t))

    def t_from_alpha(self, alpha: Scalar) -> Scalar:
        """Return the time at which alpha has this value."""
        return self.t_from_log_snr(self._log_snr_from_alpha(alpha))

    def t_from_sigma(self, sigma: Scalar) -> Scalar:
        """Return the time at which sigma has this value."""
        return self.t_from_log_snr(self._log_snr_from_sigma(sigma))

    def t_from_ratio(self, ratio: Scalar) -> Scalar:
        """Return the time at which sigma / alpha has this value."""
        return self.t_from_log_snr(-2.0 * log(ratio))

    def model_time(self, t: Scalar) -> Scalar:
        """Return the number that networks of this path take as their time at path time t; t itself by default."""
        return t

    def to_knot(self, t: float) -> float:
        """Return the distance of a time to the nearest one where the path is not smooth; infinite by default."""
        return math.inf

    @property
    def t_range(self) -> tuple[float, float]:
        """The range of a default grid, (t_min, t_max)."""
        return self.t_min, self.t_max

    def spec(self) -> dict[str, Any]:
        """Return a JSON-able description of the schedule; `from_spec` is the inverse."""
        fields = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}
        return {"type": type(self).__name__, **fields}


_TYPES: dict[str, type[Schedule]] = {}
"""Every schedule class by its name."""


@lru_cache(maxsize=256)
def levels(schedule: Schedule, times: tuple[float, ...]) -> tuple[Level, ...]:
    """Return the numbers of the path at all times of a grid."""
    return tuple(schedule.at(t) for t in times)


def from_spec(spec: dict[str, Any]) -> Schedule:
    """Rebuild the schedule that `Schedule.spec` described.

    Args:
        spec: The name of the class under "type", and the values of its fields.

    Raises:
        UnknownNameError: No schedule has that name.
        InputError: The schedule cannot be made from these values.
    """
    options = dict(spec)
    name = options.pop("type", None)
    known = {key: kind for key, kind in _TYPES.items() if not kind.__abstractmethods__}
    if not isinstance(name, str) or name not in known:
        raise UnknownNameError("schedule", name, [one for one in known if not one.startswith("_")])
    try:
        return known[name](**options)
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError(f"schedule {name!r}: {error}") from error
