"""Distances between batches, a number a sample."""

import math

import torch
from torch import Tensor

from ..errors import InputError


def rmse(x: Tensor, y: Tensor) -> Tensor:
    """Root mean square difference of each sample, shape (B, ...) -> (B,)."""
    if x.shape != y.shape:
        raise InputError(f"rmse: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected equal ones")
    return (x - y).flatten(1).square().mean(1).sqrt()


def psnr(x: Tensor, y: Tensor, *, span: float) -> Tensor:
    """Peak signal-to-noise ratio of each sample in dB, for values that span an interval of length `span`."""
    return 20.0 * (math.log10(span) - torch.log10(rmse(x, y)))
