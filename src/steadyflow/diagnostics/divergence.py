"""The divergence of a map's output with respect to its input, a sample: four ways to estimate tr J.

exact         the sum over all axes of e^T J e, one product an axis
vjp, jvp      Hutchinson: the mean of v^T J v over random signs v, unbiased; its variance is 2 sum_{i != j} of the
              squared symmetric part of J (Hutchinson 1990)
difference    the same with J v = (f(x + h v) - f(x - h v)) / 2h, for models without derivatives
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..noise import PERTURBATION, normal

DivergenceMethod = Literal["exact", "vjp", "jvp", "difference"]
METHODS: tuple[DivergenceMethod, ...] = ("exact", "vjp", "jvp", "difference")


class Differentiable(Protocol):
    """A map from (B, ...) to (B, ...), samples apart, with its Jacobian's products."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def jvp(self, x: Tensor, u: Tensor) -> Tensor: ...
    def vjp(self, x: Tensor, w: Tensor) -> Tensor: ...


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
        axes = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        total = sum(_along(x, field.vjp(x, w := axis.view(1, *x.shape[1:]).expand_as(x)), w) for axis in axes)
        return torch.as_tensor(total)[None]
    rows = range(len(x)) if samples is None else samples
    found = []
    for k in range(probes):
        v = normal(seed, PERTURBATION, (k, 5, 0), rows, x.shape[1:], dtype=x.dtype, device=x.device).sign()
        if method == "vjp":
            product = field.vjp(x, v)
        elif method == "jvp":
            product = field.jvp(x, v)
        else:
            h = torch.finfo(x.dtype).eps ** (1.0 / 3.0) * float(x.square().mean().sqrt().clamp_min(1e-3))
            product = (field(x + h * v) - field(x - h * v)) / (2.0 * h)
        found.append(_along(x, product, v))
    return torch.stack(found)


def _along(x: Tensor, product: Tensor, v: Tensor) -> Tensor:
    return (product * v).reshape(len(x), -1).sum(1)
