"""The divergence of a map's output with respect to its input, a sample: four ways to estimate tr J.

exact         the sum over all axes of e^T J e, one product an axis
vjp, jvp      Hutchinson: the mean of v^T J v over random signs v, unbiased; its variance is 2 sum_{i != j} of the
              squared symmetric part of J (Hutchinson 1990)
difference    the same with J v = (f(x + h v) - f(x - h v)) / 2h, for models without derivatives
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from .._internal.tensors import basis_vectors, dot
from ..errors import InputError, UnknownNameError
from ..noise import PERTURBATION, like

DivergenceMethod = Literal["exact", "vjp", "jvp", "difference"]
METHODS: tuple[DivergenceMethod, ...] = ("exact", "vjp", "jvp", "difference")


class Differentiable(Protocol):
    """A map from (B, ...) to (B, ...), samples apart, with its Jacobian's products."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def jvp(self, x: Tensor, u: Tensor) -> Tensor:
        """J u at x."""
        ...

    def pullback(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """v -> J^T v at x."""
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
    """Estimates of tr J at x, shape (probes, B); a single row for "exact".

    probes: random sign vectors. They are addressed by seed, probe and sample, so that the same are used again for the
    same seed; samples: the indices of the rows, 0, 1, ... by default.
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
    h = torch.finfo(x.dtype).eps ** (1.0 / 3.0) * float(x.square().mean().sqrt().clamp_min(1e-3))
    return along(lambda v: (field(x + h * v) - field(x - h * v)) / (2.0 * h), drawn)


def signs(x: Tensor, probes: int, seed: int, use: int, samples: Sequence[int] | None = None) -> Iterator[Tensor]:
    """Random signs, each of x's shape, addressed by seed, probe, what they are for, and sample."""
    for k in range(probes):
        yield like(x, seed, PERTURBATION, (k, use, 0), samples).sign()


def along(product: Callable[[Tensor], Tensor], directions: Iterable[Tensor]) -> Tensor:
    """v . product(v) for each direction v of shape (B, ...), shape (directions, B)."""
    return torch.stack([dot(product(v), v) for v in directions])
