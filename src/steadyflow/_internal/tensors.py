"""Arithmetic on batches (B, ...): linear combinations in few passes over memory, and norms and products per sample."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


def linear_combination(factors: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of factors * tensors, in one fused pass per term.

    Args:
        factors: One number per tensor; a tensor of factor 0 is not read.
        tensors: Tensors of one shape, which are not written to.

    Returns:
        The sum. It is the tensor itself, not a copy, where only one counts and its factor is 1.
    """
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
    """The sum first * x + factors * others.

    Args:
        first: The factor of x.
        x: A tensor.
        factors: The factors of the others.
        others: Tensors of x's shape.

    Returns:
        The sum, as `linear_combination` computes it.
    """
    return linear_combination((first, *factors), (x, *others))


def finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite. Waits for the device, from which it reads."""
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())  # the sum of large numbers may overflow


def broadcast(value: Tensor, x: Tensor) -> Tensor:
    """Shape one value per sample so that it broadcasts against a batch.

    Args:
        value: One value per sample, shape (B,), or one for all, shape ().
        x: The batch, shape (B, ...).

    Returns:
        The values, shape (B, 1, ..., 1), or () where there is one for all; floating-point values in x's type.
    """
    value = value.to(x.dtype) if value.is_floating_point() else value
    return value.view(-1, *[1] * (x.ndim - 1)) if value.ndim else value


def padded(value: Any, multiple: int) -> Any:
    """A tensor (n, ...) with its last row repeated until their number is a multiple; anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) % multiple == 0:
        return value
    return torch.cat([value, value[-1:].expand(-len(value) % multiple, *value.shape[1:])])


def dot(x: Tensor, y: Tensor) -> Tensor:
    """The scalar product of each sample of x with that of y, shape (B,)."""
    return (x * y).flatten(1).sum(1)


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample, shape (B,)."""
    return x.flatten(1).norm(dim=1)


def unit(x: Tensor) -> Tensor:
    """Each sample divided by its Euclidean norm; zero where the sample is zero."""
    return x / broadcast(norm(x).clamp_min(torch.finfo(x.dtype).tiny), x)


def rms(x: Tensor) -> Tensor:
    """The root mean square of each sample's numbers, shape (B,)."""
    return x.flatten(1).square().mean(1).sqrt()


def max_abs(x: Tensor) -> Tensor:
    """The largest absolute value of each sample's numbers, shape (B,)."""
    return x.flatten(1).abs().amax(1)


def integers(x: Tensor) -> list[int]:
    """The numbers of an integer tensor of shape (n,), as a list."""
    return cast("list[int]", x.tolist())


def basis_vectors(x: Tensor) -> list[Tensor]:
    """The unit vectors along all axes of a sample, each expanded to x's shape (B, ...)."""
    units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return [one.view(1, *x.shape[1:]).expand_as(x) for one in units]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Several states of a batch as one, shape (B, n); a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], dim=1)


def pieces(x: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The states that were joined in one.

    Args:
        x: The state, shape (B, n); for a single one, of its own shape.
        sizes: Their shapes, without the batch.
    """
    if len(sizes) == 1:
        return [x]
    parts = x.split([math.prod(size) for size in sizes], dim=1)
    return [part.reshape(len(x), *size) for part, size in zip(parts, sizes, strict=True)]
