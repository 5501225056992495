"""Elementary functions of a float or a tensor, with the limits at infinity that `math` refuses."""

import math
from typing import Any

import torch
from torch import Tensor


def exp(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.exp()
    return math.exp(x) if x < 709.0 else math.inf


def log(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.log()
    return math.log(x) if x > 0.0 else -math.inf


def sqrt(x: Any) -> Any:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def expm1(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.expm1()
    return math.expm1(x) if x < 709.0 else math.inf


def sigmoid(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.sigmoid()
    return 1.0 / (1.0 + math.exp(-x)) if x > -709.0 else 0.0


def softplus(x: Any) -> Any:
    """ln(1 + e^x) without overflow."""
    if isinstance(x, Tensor):
        return torch.logaddexp(x, torch.zeros_like(x))
    return math.log1p(math.exp(x)) if x < 36.0 else x


def sin(x: Any) -> Any:
    return x.sin() if isinstance(x, Tensor) else math.sin(x)


def arctan2(y: Any, x: Any) -> Any:
    return torch.atan2(y, x) if isinstance(y, Tensor) else math.atan2(y, x)


def cbrt(x: Any) -> Any:
    return x.pow(1 / 3) if isinstance(x, Tensor) else math.cbrt(x)
