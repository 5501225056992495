"""Elementary functions of a float or a tensor, with the limits at infinity that `math` refuses."""

import math
from typing import TypeVar, cast

import torch
from torch import Tensor

Scalar = TypeVar("Scalar", float, Tensor)
"""A float or a tensor; a function of one returns the same kind."""


def exp(x: Scalar) -> Scalar:
    """e^x; inf where it overflows."""
    if isinstance(x, Tensor):
        return x.exp()
    return math.exp(x) if x < 709.0 else math.inf


def log(x: Scalar) -> Scalar:
    """ln x; -inf at 0 and, for floats, below."""
    if isinstance(x, Tensor):
        return x.log()
    return math.log(x) if x > 0.0 else -math.inf


def sqrt(x: Scalar) -> Scalar:
    """The square root of x >= 0."""
    if isinstance(x, Tensor):
        return x.sqrt()
    return math.sqrt(x)


def expm1(x: Scalar) -> Scalar:
    """e^x - 1 without cancellation; inf where it overflows."""
    if isinstance(x, Tensor):
        return x.expm1()
    return math.expm1(x) if x < 709.0 else math.inf


def log1p(x: Scalar) -> Scalar:
    """ln(1 + x) without cancellation; -inf at -1 and, for floats, below."""
    if isinstance(x, Tensor):
        return x.log1p()
    return math.log1p(x) if x > -1.0 else -math.inf


def asinh(x: Scalar) -> Scalar:
    """The inverse hyperbolic sine of x."""
    if isinstance(x, Tensor):
        return x.asinh()
    return math.asinh(x)


def sigmoid(x: Scalar) -> Scalar:
    """1 / (1 + e^-x)."""
    if isinstance(x, Tensor):
        return x.sigmoid()
    return 1.0 / (1.0 + math.exp(-x)) if x > -709.0 else 0.0


def softplus(x: Scalar) -> Scalar:
    """ln(1 + e^x) without overflow."""
    if isinstance(x, Tensor):
        return torch.logaddexp(x, torch.zeros_like(x))
    return math.log1p(math.exp(x)) if x < 36.0 else x


def sin(x: Scalar) -> Scalar:
    """The sine of x."""
    if isinstance(x, Tensor):
        return x.sin()
    return math.sin(x)


def arctan2(y: Scalar, x: Scalar) -> Scalar:
    """The angle of the point (x, y)."""
    if isinstance(y, Tensor):
        return torch.atan2(y, cast(Tensor, x))
    return math.atan2(y, cast(float, x))


def cbrt(x: Scalar) -> Scalar:
    """The cube root of x >= 0."""
    if isinstance(x, Tensor):
        return x.pow(1 / 3)
    return math.cbrt(x)
