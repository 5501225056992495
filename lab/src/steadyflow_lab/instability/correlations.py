"""Rank correlations given other numbers, and how often one group exceeds another, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from steadyflow._internal.numerics import middle, ranks
from steadyflow.errors import InputError
from steadyflow.metrics.statistics import Estimate

RESAMPLES, LEVEL = 2000, 0.95


def partial_spearman(x: Tensor, y: Tensor, given: Sequence[Tensor], *, seed: int = 0) -> Estimate:
    """Give the rank correlation of x and y given other numbers, with a percentile bootstrap interval.

    It is the correlation of what a linear regression on the ranks of `given` leaves of the ranks of x and of y, which
    is -P01 / sqrt(P00 P11) for P the inverse of the correlation matrix of all ranks (x first, y second).

    x, y, and each of `given`: shape (n,). Raises `InputError` for too few numbers, or numbers that are not finite.
    """
    columns = torch.stack([_ranks(values) for values in (x, y, *given)])
    n = columns.shape[1]
    if n < len(columns) + 2:
        raise InputError(f"partial correlation: {n} samples are too few for {len(columns)} columns")
    rows = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    drawn = _partial(columns[:, rows].movedim(0, 1))
    return _estimate(float(_partial(columns[None])), drawn)


def exceeds(x: Tensor, y: Tensor, *, seed: int = 0) -> Estimate:
    """Give how often a number of x exceeds one of y (ties count half), with a percentile bootstrap interval.

    It is the area under the ROC curve, and Mann and Whitney's U over the number of pairs. x: shape (n,); y: (m,).
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = x.double(), y.double()
    wins = (x[:, None] > y).double() + 0.5 * (x[:, None] == y).double()
    rows, columns = (torch.randint(len(v), (RESAMPLES, len(v)), generator=generator) for v in (x, y))
    counts = torch.zeros(RESAMPLES, len(x), dtype=torch.float64).scatter_add_(1, rows, torch.ones_like(rows).double())
    other = torch.zeros(RESAMPLES, len(y), dtype=torch.float64).scatter_add_(
        1, columns, torch.ones_like(columns).double()
    )
    drawn = (counts @ wins * other).sum(1) / wins.numel()
    return _estimate(wins.mean().item(), drawn)


def median(x: Tensor, *, seed: int = 0) -> Estimate:
    """Give the median of numbers, shape (n,), with a percentile bootstrap interval."""
    rows = torch.randint(len(x), (RESAMPLES, len(x)), generator=torch.Generator().manual_seed(seed))
    return _estimate(_median(x.double()[None]).item(), _median(x.double()[rows]))


def kind(e: Estimate, sign: Literal[-1, 1] = 1) -> str:
    """Say whether an interval lies beyond 0 on the side of `sign`, on the other one, or on both."""
    low, high = (e.low, e.high) if sign > 0 else (-e.high, -e.low)
    return "yes" if low > 0.0 else "no" if high < 0.0 else "open"


def _partial(columns: Tensor) -> Tensor:
    """Give the partial correlation of the first two of the columns, shape (..., k, n) -> (...)."""
    centred = columns - columns.mean(-1, keepdim=True)
    scaled = centred / centred.norm(dim=-1, keepdim=True)
    precision = torch.linalg.pinv(scaled @ scaled.mT, hermitian=True)
    return -precision[..., 0, 1] / (precision[..., 0, 0] * precision[..., 1, 1]).sqrt()


def _median(rows: Tensor) -> Tensor:
    """Give the median of each row, the mean of the two middle numbers of an even count."""
    return rows.quantile(0.5, dim=1)


def _estimate(value: float, drawn: Tensor) -> Estimate:
    return Estimate(value, *middle(drawn[drawn.isfinite()], LEVEL))


def _ranks(x: Tensor) -> Tensor:
    """Give ranks from 1, ties sharing their mean."""
    if x.ndim != 1 or not bool(x.isfinite().all()):
        raise InputError("partial correlation: expected finite numbers, one per sample")
    return ranks(x)


def batches(n: int, size: int) -> list[tuple[int, int]]:
    """Cut n samples into ranges of at most `size`."""
    return list(pairwise([*range(0, n, size), n]))
