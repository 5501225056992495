"""The divergence of a map's output with respect to its input, per sample: four ways to estimate tr J.

exact         the sum over all axes of e^T J e, with one product per axis
vjp, jvp      Hutchinson: the mean of v^T J v over random signs v, unbiased; its variance is 2 sum_{i != j} of the
              squared symmetric part of J (Hutchinson 1990)
difference    the same with J v = (f(x + h v) - f(x - h v)) / 2h, for models without derivatives
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from .._internal.tensors import basis_vectors, broadcast, dot, rms
from ..errors import InputError, UnknownNameError
from ..noise import PERTURBATION, like

DivergenceMethod = Literal["exact", "vjp", "jvp", "difference"]
METHODS: tuple[DivergenceMethod, ...] = ("exact", "vjp", "jvp", "difference")


class Differentiable(Protocol):
    """A map from (B, ...) to (B, ...) that treats each sample by itself, with the products of its Jacobian."""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the map to x."""
        ...

    def jvp(self, x: Tensor, u: Tensor) -> Tensor:
        """Multiply the Jacobian J at x by a direction: J u, shape (B, ...)."""
        ...

    def pullback(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The function v -> J^T v at x, which may be called more than once."""
        ...


def divergence(
    field: Differentiable,
    x: Tensor,
    *,
    method: DivergenceMethod = "vjp",
    probes: int = 1,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> Tensor:
    """Estimate the divergence tr J of a map, per sample.

    Args:
        field: The map.
        x: Where to take the Jacobian, shape (B, ...).
        method: "exact", "vjp", "jvp" or "difference"; see the top of this module.
        probes: The number of random sign vectors. "exact" needs none.
        seed: Of the sign vectors, which are addressed by seed, probe and sample: the same seed draws the same ones.
        samples: The indices of the rows of x, which address their sign vectors; 0, 1, ... by default.

    Returns:
        One estimate per probe and sample, shape (probes, B); shape (1, B) for "exact".

    Raises:
        UnknownNameError: There is no such method.
        InputError: There are fewer than one probe.
    """
    if method not in METHODS:
        raise UnknownNameError("divergence", method, METHODS)
    if probes < 1:
        raise InputError(f"probes: got {probes}, expected at least 1")
    if method == "exact":
        return along(field.pullback(x), basis_vectors(x)).sum(0, keepdim=True)
    drawn = signs(x, probes, seed, 5, samples)
    if method == "vjp":
        return along(field.pullback(x), drawn)
    if method == "jvp":
        return along(lambda v: field.jvp(x, v), drawn)
    h = broadcast(torch.finfo(x.dtype).eps ** (1.0 / 3.0) * rms(x).clamp_min(1e-3), x)  # of each sample alone
    return along(lambda v: (field(x + h * v) - field(x - h * v)) / (2.0 * h), drawn)


def signs(x: Tensor, probes: int, seed: int, use: int, samples: Sequence[int] | None = None) -> Iterator[Tensor]:
    """Draw vectors of random signs, one after the other.

    Args:
        x: The batch whose shape, type and device they take, shape (B, ...).
        probes: How many to draw.
        seed: Of the signs.
        use: A number that separates the signs of one purpose from those of another.
        samples: The indices of the rows of x; 0, 1, ... by default.

    Yields:
        Signs of x's shape, which depend on seed, probe, use and sample alone.
    """
    for k in range(probes):
        yield like(x, seed, PERTURBATION, (k, use, 0), samples).sign()


def along(product: Callable[[Tensor], Tensor], directions: Iterable[Tensor]) -> Tensor:
    """Project a linear map's products onto their own directions.

    Args:
        product: The map v -> J v, or v -> J^T v.
        directions: The directions v, each of shape (B, ...).

    Returns:
        v . product(v) for each direction and sample, shape (directions, B).
    """
    return torch.stack([dot(product(v), v) for v in directions])
