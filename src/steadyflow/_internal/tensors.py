"""Arithmetic on batches (B, ...): linear combinations in few passes, and what is taken a sample."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def linear_combination(factors: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of factors * tensors, one fused pass a term; the tensors are left alone, and those of factor 0 unread."""
    first, start, result = 0.0, tensors[0], None
    for factor, tensor in zip(factors, tensors, strict=True):
        if factor == 0.0:
            continue
        if result is not None:
            result.add_(tensor, alpha=factor)
        elif first == 0.0:
            first, start = factor, tensor
        elif first == 1.0:
            result = torch.add(start, tensor, alpha=factor)
        else:
            result = torch.mul(start, first).add_(tensor, alpha=factor)
    if result is not None:
        return result
    return start if first == 1.0 else start * first


def combine(first: float, x: Tensor, factors: Sequence[float], others: Sequence[Tensor]) -> Tensor:
    """first * x + sum of factors * others, as `linear_combination` does it."""
    return linear_combination((first, *factors), (x, *others))


def finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite; reads from the device."""
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())  # the sum of large numbers may overflow


def broadcast(value: Tensor, x: Tensor) -> Tensor:
    """A value a sample, (B,), shaped to go with x, (B, ...), and numbers in its type; one value for all as it is."""
    value = value.to(x.dtype) if value.is_floating_point() else value
    return value.view(-1, *[1] * (x.ndim - 1)) if value.ndim else value


def dot(x: Tensor, y: Tensor) -> Tensor:
    """The scalar product of each sample, (B,)."""
    return (x * y).flatten(1).sum(1)


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample, (B,)."""
    return x.flatten(1).norm(dim=1)


def unit(x: Tensor) -> Tensor:
    """Each sample over its norm; zero where that is zero."""
    return x / broadcast(norm(x).clamp_min(torch.finfo(x.dtype).tiny), x)


def rms(x: Tensor) -> Tensor:
    """The root mean square of each sample's numbers, (B,)."""
    return x.flatten(1).square().mean(1).sqrt()


def max_abs(x: Tensor) -> Tensor:
    """The largest absolute value of each sample's numbers, (B,)."""
    return x.flatten(1).abs().amax(1)


def basis_vectors(x: Tensor) -> list[Tensor]:
    """Every axis of a sample, each of x's shape."""
    units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return [one.view(1, *x.shape[1:]).expand_as(x) for one in units]
