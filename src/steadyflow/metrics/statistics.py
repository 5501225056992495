"""Correlations, means and rates with confidence intervals."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._internal.numerics import middle, ranks
from .._internal.tensors import finite
from ..errors import InputError


@dataclass(frozen=True)
class Estimate:
    """A number with a confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def pearson(x: Tensor, y: Tensor, *, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Estimate:
    """Pearson's correlation of pairs of numbers, with a percentile bootstrap interval.

    Args:
        x: One number of each pair, shape (n,), n at least 3.
        y: The other, shape (n,).
        resamples: The number of bootstrap samples.
        level: The confidence level of the interval.
        seed: Of the bootstrap samples.

    Raises:
        InputError: The shapes do not fit, or a number is not finite.
    """
    return _bootstrapped(x, y, resamples, level, seed)


def spearman(x: Tensor, y: Tensor, *, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Estimate:
    """Spearman's rank correlation of pairs of numbers, with a percentile bootstrap interval.

    Args:
        x: One number of each pair, shape (n,), n at least 3.
        y: The other, shape (n,).
        resamples: The number of bootstrap samples.
        level: The confidence level of the interval.
        seed: Of the bootstrap samples.

    Raises:
        InputError: The shapes do not fit, or a number is not finite.
    """
    return _bootstrapped(ranks(x), ranks(y), resamples, level, seed)


def wilson(hits: int, n: int, level: float = 0.95) -> Estimate:
    """The rate hits / n with Wilson's score interval (Wilson 1927).

    Args:
        hits: The number of hits.
        n: The number of trials.
        level: The confidence level of the interval.

    Raises:
        InputError: Not 0 <= hits <= n, or no trials.
    """
    if not 0 <= hits <= n or n < 1:
        raise InputError(f"wilson: expected 0 <= hits <= n and n >= 1, got {hits} of {n}")
    z = math.sqrt(2.0) * torch.erfinv(torch.tensor(level, dtype=torch.float64, device="cpu")).item()
    rate, square = hits / n, z * z / n
    centre = (rate + square / 2.0) / (1.0 + square)
    half = z / (1.0 + square) * math.sqrt(rate * (1.0 - rate) / n + square / (4.0 * n))
    return Estimate(rate, max(0.0, centre - half), min(1.0, centre + half))


def average(x: Tensor, *, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of numbers, with a percentile bootstrap interval.

    Args:
        x: The numbers, shape (n,), n at least 2.
        resamples: The number of bootstrap samples.
        level: The confidence level of the interval.
        seed: Of the bootstrap samples.

    Raises:
        InputError: The shape does not fit, or a number is not finite.
    """
    if x.ndim != 1 or len(x) < 2:
        raise InputError(f"average: expected a sample of at least 2 numbers, got shape {tuple(x.shape)}")
    if not finite(x):
        raise InputError("average: NaN or infinity in the sample")
    x = x.double()
    drawn = x[torch.randint(len(x), (resamples, len(x)), generator=torch.Generator().manual_seed(seed))].mean(1)
    return Estimate(x.mean().item(), *middle(drawn, level))


def _bootstrapped(x: Tensor, y: Tensor, resamples: int, level: float, seed: int) -> Estimate:
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3:
        raise InputError(
            f"correlation: expected two samples of one length >= 3, got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    if not bool((x.isfinite() & y.isfinite()).all()):
        raise InputError("correlation: NaN or infinity in a sample")
    x, y = x.double(), y.double()
    rows = torch.randint(len(x), (resamples, len(x)), generator=torch.Generator().manual_seed(seed))
    drawn = _correlation(x[rows], y[rows])
    return Estimate(_correlation(x, y).item(), *middle(drawn[drawn.isfinite()], level))


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
