"""Distances between two sets of samples."""

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


def _flat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[1:] != y.shape[1:] or x.ndim < 2 or min(len(x), len(y)) < 2:
        raise InputError(f"samples: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (n, ...) and (m, ...)")
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
