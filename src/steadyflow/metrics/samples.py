"""Distances between two sets of samples, or of their features."""

import warnings
from typing import Literal

import torch
from torch import Tensor

from .._internal.tensors import finite, unit
from ..errors import InputError
from ..noise import PERTURBATION, like


def sliced_wasserstein(x: Tensor, y: Tensor, *, directions: int = 128, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance of two sets of samples (Bonneel et al. 2015).

    It is the root mean square, over random directions, of the 2-Wasserstein distances of the projections, which on the
    line are those between quantiles.

    Args:
        x: One set, shape (n, ...), n at least 2.
        y: The other, shape (m, ...).
        directions: The number of random directions.
        seed: Of the directions.

    Returns:
        The distance, in the samples' units.

    Raises:
        InputError: A set does not fit the other, has fewer than two members, or is not finite.
    """
    x, y = _flat(x, y)
    along = unit(like(x, seed, PERTURBATION, (0, 4, 0), range(directions)))
    n = max(len(x), len(y))
    at = (torch.arange(n, dtype=x.dtype, device=x.device) + 0.5) / n
    total = 0.0
    for part in along.split(16):
        squares = (_quantiles(x @ part.T, at) - _quantiles(y @ part.T, at)).square()
        total += float(squares.mean(0).sum())
    return (total / directions) ** 0.5


def energy_distance(x: Tensor, y: Tensor, *, chunk: int = 2048) -> float:
    """The energy distance 2 E|X-Y| - E|X-X'| - E|Y-Y'| of two sets of samples (Szekely & Rizzo 2013).

    Args:
        x: One set, shape (n, ...), n at least 2.
        y: The other, shape (m, ...).
        chunk: How many samples of x to compare with all of y at a time.

    Returns:
        The unbiased estimate, which may be below zero; its mean is zero where both sets come from one distribution.

    Raises:
        InputError: A set does not fit the other, has fewer than two members, or is not finite.
    """
    x, y = _flat(x, y)
    between = _mean_distance(x, y, chunk)
    within = [_mean_distance(z, z, chunk) * len(z) / (len(z) - 1) for z in (x, y)]
    return 2.0 * between - sum(within)


def frechet_distance(x: Tensor, y: Tensor, *, singular: Literal["warn", "refuse", "allow"] = "warn") -> float:
    """The Frechet distance |mean difference|^2 + tr(A + B - 2 (A B)^1/2), with covariances A, B (Heusel et al. 2017).

    It is exact in float64: the trace of the root is the sum of the singular values of a product of factors of A and B,
    which has no error where they are singular. Of finite sets of one distribution it is above zero, by an excess that
    shrinks only as 1/n; compare what was computed with equal numbers, or take `kernel_distance`.

    Args:
        x: Features of one set of images, shape (n, d).
        y: Features of the other, shape (m, d).
        singular: What to do about a set of d members or fewer, whose covariance is singular: "warn", "refuse", or
            "allow", where only distances from equal numbers are compared.

    Raises:
        InputError: A set does not fit the other, has fewer than two members, is not finite, or is refused.
    """
    x, y = _flat(x, y)
    if singular not in ("warn", "refuse", "allow"):
        raise InputError(f"frechet_distance: singular is {singular!r}, expected 'warn', 'refuse' or 'allow'")
    n, m, d = len(x), len(y), x.shape[1]
    if min(n, m) <= d and singular != "allow":
        told = (
            f"frechet_distance: got {n} and {m} samples of {d} features; of {d} or fewer the covariance is singular, "
            "and the distance is far above 0 even where both sets have one distribution; take more, or kernel_distance"
        )
        if singular == "refuse":
            raise InputError(told)
        warnings.warn(told, stacklevel=2)
    a, b = _root(x), _root(y)
    cross = torch.linalg.svdvals(a @ b.T).sum()
    found = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2.0 * cross
    return max(found.item(), 0.0)


def kernel_distance(x: Tensor, y: Tensor, *, chunk: int = 2048) -> tuple[float, float]:
    """The squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018), and its error.

    The estimate has no bias at any number of samples, so that it serves where there are too few for `frechet_distance`,
    if the sets are independent. Edits and their own sources are not: it is then too low; see `feature_distance`.
    The error is the jackknife's over both sets, whose square is on average no smaller than the variance (Efron & Stein
    1981); it is up to about 1.4 times too large where both sets have one distribution.

    Args:
        x: Features of one set of images, shape (n, d), n at least 3.
        y: Features of the other, shape (m, d), m at least 3.
        chunk: How many samples to compare with all others at a time.

    Returns:
        The unbiased estimate, which may be below zero, and its standard error.

    Raises:
        InputError: A set does not fit the other, has fewer than three members, or is not finite.
    """
    x, y = _flat(x, y)
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise InputError(f"kernel_distance: got {n} and {m} samples, expected at least 3 of each")
    within_x, within_y = (_kernel_sums(z, z, chunk) - _kernel(z.square().sum(1), z) for z in (x, y))
    across_x, across_y = _kernel_sums(x, y, chunk), _kernel_sums(y, x, chunk)
    xx, yy, xy = within_x.sum(), within_y.sum(), across_x.sum()
    value = xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2.0 * xy / (n * m)
    without_x = (xx - 2.0 * within_x) / ((n - 1) * (n - 2)) - 2.0 * (xy - across_x) / ((n - 1) * m)
    without_y = (yy - 2.0 * within_y) / ((m - 1) * (m - 2)) - 2.0 * (xy - across_y) / (n * (m - 1))
    variance = sum((len(z) - 1) * z.var(correction=0) for z in (without_x, without_y))
    return value.item(), float(variance) ** 0.5


def _flat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[1:] != y.shape[1:] or x.ndim < 2 or min(len(x), len(y)) < 2:
        raise InputError(
            f"samples: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (n, ...) and (m, ...), n and m >= 2"
        )
    for name, z in (("x", x), ("y", y)):
        if not finite(z):
            raise InputError(f"{name}: NaN or infinity in a sample")
    return x.flatten(1).double(), y.flatten(1).double()


def _quantiles(values: Tensor, at: Tensor) -> Tensor:
    """The empirical quantiles of each column at the given levels."""
    ordered = values.sort(0).values
    return ordered[(at * len(values)).long().clamp(max=len(values) - 1)]


def _mean_distance(x: Tensor, y: Tensor, chunk: int) -> float:
    return sum(float(torch.cdist(part, y).sum()) for part in x.split(chunk)) / (len(x) * len(y))


def _root(x: Tensor) -> Tensor:
    """A matrix R with R^T R the covariance of the samples."""
    centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return centred if len(x) <= x.shape[1] else torch.linalg.qr(centred, mode="r").R


def _kernel(products: Tensor, x: Tensor) -> Tensor:
    """The cubic kernel of inner products of samples."""
    return (products / x.shape[1] + 1.0) ** 3


def _kernel_sums(x: Tensor, y: Tensor, chunk: int) -> Tensor:
    """Of each sample of x, the sum of its kernel with all of y."""
    return torch.cat([_kernel(part @ y.T, x).sum(1) for part in x.split(chunk)])
