"""A path given by a table of alpha^2, as for discrete-time models."""

import bisect
import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import InputError
from ._functions import Scalar, log
from .continuous import VariancePreserving


@dataclass(frozen=True)
class Tabulated(VariancePreserving):
    """A discrete variance-preserving path: `alphas_cumprod[i]` = alpha^2 at time t = i.

    Between the entries log_snr is linear in t, so that times may be any float in [0, N - 1]. A last entry
    of 0 (zero terminal SNR) is allowed; over the last cell alpha, not log_snr, is then linear in t.

    Args:
        alphas_cumprod: N >= 2 strictly decreasing values in [0, 1); a tensor of shape (N,) is converted.
        t_min: The last time of a default grid.
        t_max: The first time of a default grid; N - 1 by default.

    Raises:
        InputError: The table is too short, does not decrease, or leaves [0, 1).
    """

    alphas_cumprod: tuple[float, ...]
    t_min: float = 0.0
    t_max: float = math.nan

    def __post_init__(self):
        given = cast("tuple[float, ...] | Tensor", self.alphas_cumprod)
        table = tuple(float(a) for a in (_numbers(given) if isinstance(given, Tensor) else given))
        if len(table) < 2:
            raise InputError(f"alphas_cumprod: got {len(table)} entries, expected at least 2")
        if not all(a > b for a, b in itertools.pairwise(table)):
            raise InputError("alphas_cumprod: expected strictly decreasing values")
        if not (table[0] < 1.0 and table[-1] >= 0.0):
            raise InputError(
                f"alphas_cumprod: expected values in [0, 1) from large to small, got {table[0]}..{table[-1]}"
            )
        object.__setattr__(self, "alphas_cumprod", _shared(table))
        if math.isnan(self.t_max):
            object.__setattr__(self, "t_max", float(len(table) - 1))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.alphas_cumprod, self.t_min, self.t_max))  # computed once: levels are looked up at every step

    def __repr__(self) -> str:
        table = self.alphas_cumprod
        return f"Tabulated({len(table)} levels, {table[0]:.6g} to {table[-1]:.6g})"

    @classmethod
    def linear(cls, n: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> "Tabulated":
        """Return the table of DDPM (Ho et al. 2020).

        Args:
            n: The number of betas, equally spaced.
            beta_min: The first beta.
            beta_max: The last beta.
        """
        return cls._from_betas(torch.linspace(beta_min, beta_max, n, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, n: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012) -> "Tabulated":
        """Return the table of Stable Diffusion (Rombach et al. 2022).

        Args:
            n: The number of betas, whose square roots are equally spaced.
            beta_min: The first beta.
            beta_max: The last beta.
        """
        roots = torch.linspace(math.sqrt(beta_min), math.sqrt(beta_max), n, dtype=torch.float64)
        return cls._from_betas(roots**2)

    @classmethod
    def _from_betas(cls, betas: Tensor) -> "Tabulated":
        return cls(tuple(_numbers((1.0 - betas).cumprod(0))))

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, float(len(self.alphas_cumprod) - 1)

    @property
    def _terminal_zero(self) -> bool:
        return self.alphas_cumprod[-1] == 0.0

    @cached_property
    def _falling(self) -> list[float]:
        """log_snr at the entries where it is finite."""
        return [log(a) - math.log1p(-a) for a in self.alphas_cumprod if a > 0.0]

    @cached_property
    def _rising(self) -> list[float]:
        return [-level for level in self._falling]

    def log_snr(self, t: Scalar) -> Scalar:
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

    def _last_alpha(self, t: Scalar) -> Scalar:
        """Return alpha in the last cell of a table that ends in 0: linear, from the last positive entry."""
        return math.sqrt(self.alphas_cumprod[-2]) * (len(self.alphas_cumprod) - 1 - t)

    def to_knot(self, t: float) -> float:
        return abs(t - round(t))

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
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

    def _last_time(self, alpha: Scalar) -> Scalar:
        """Return the inverse of `_last_alpha`."""
        return len(self.alphas_cumprod) - 1 - alpha / math.sqrt(self.alphas_cumprod[-2])


@lru_cache(maxsize=256)
def _shared(table: tuple[float, ...]) -> tuple[float, ...]:
    """The one tuple for all equal tables, so that equal paths are compared at once where levels are looked up."""
    return table


def _numbers(values: Tensor) -> list[float]:
    return cast(Any, values.double()).tolist()  # torch leaves the type of `tolist` open
