"""Operators on pictures: a part of the pixels, a blur, and a coarser picture.

Inpainting      y = x[mask], the mask True where something is measured
Blur            y_ij = sum_kl K_kl x_(i-k)(j-l), k and l counted from the middle of K
Downsampling    y_ij = mean of x over block ij
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional

from .._internal.given import number, whole
from .._internal.tensors import finite
from ..errors import InputError, UnknownNameError
from .base import Operator, check_floats, numbers

Padding = Literal["replicate", "reflect", "circular", "zeros"]
"""What a blur sees beyond the edges of a picture."""


@dataclass(frozen=True, eq=False)
class Inpainting(Operator):
    """The entries of a sample where a mask is True, as vectors (B, m).

    Args:
        mask: True or 1 where something is measured, False or 0 where it is missing. It has a sample's shape, or one
            that broadcasts against it, such as (H, W) for pictures (C, H, W). The picture that `steadyflow restore`
            takes as `--mask` is the opposite, white where something is missing.

    Raises:
        InputError: The mask holds other values, or is True nowhere.
    """

    mask: Tensor

    def __post_init__(self):
        mask = numbers("mask", self.mask)
        if mask.dtype != torch.bool:
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise InputError("mask: expected truth values, or the numbers 0 and 1")
            mask = mask == 1
        if mask.ndim == 0 or not bool(mask.any()):
            raise InputError(
                f"mask: got shape {tuple(mask.shape)} and no entry that is measured, expected at least one"
            )
        object.__setattr__(self, "mask", mask)

    def __call__(self, x: Tensor) -> Tensor:
        try:
            mask = self.mask.to(x.device).expand(x.shape[1:])
        except RuntimeError as error:
            raise InputError(
                f"mask: shape {tuple(self.mask.shape)} fits no samples of shape {tuple(x.shape[1:])}"
            ) from error
        return x[:, mask]

    def sample_shape(self, measured: tuple[int, ...]) -> tuple[int, ...] | None:
        return tuple(self.mask.shape) if measured == (int(self.mask.sum()),) else None


@dataclass(frozen=True, eq=False)
class Blur(Operator):
    """A convolution over the last two dimensions: a single bright point becomes the kernel, its point spread function.

    What is measured has the sample's shape.

    Args:
        sigma: The standard deviation, in pixels, of a Gaussian kernel, which is cut off at four standard deviations.
            Give either this or a kernel.
        kernel: The kernel, shape (h, w), both odd. It is used as it is, without being normalised.
        padding: What lies beyond the edges: their own values ("replicate"), the picture mirrored ("reflect") or
            repeated ("circular"), or "zeros".

    Raises:
        InputError: Neither or both of sigma and kernel are given, sigma is not a positive number (below 1000), or the
            kernel is not of that shape or not finite.
        UnknownNameError: There is no such padding.
    """

    sigma: float | None = None
    kernel: Tensor | None = None
    padding: Padding = "replicate"

    def __post_init__(self):
        if (self.sigma is None) == (self.kernel is None):
            raise InputError("blur: give either sigma or a kernel")
        if self.padding not in get_args(Padding):
            raise UnknownNameError("padding", self.padding, get_args(Padding))
        if self.kernel is None:
            sigma = number("sigma", self.sigma, "a positive number of pixels")
            if not 0.0 < sigma < 1e3:
                raise InputError(f"sigma: got {sigma}, expected a positive number of pixels, below 1000")
            reach = max(1, math.ceil(4.0 * sigma))
            line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
            line = line / line.sum()
            kernel = torch.outer(line, line)
        else:
            kernel = numbers("kernel", self.kernel)
            kernel = kernel if kernel.is_floating_point() else kernel.double()
            if kernel.ndim != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
                raise InputError(f"kernel: got shape {tuple(kernel.shape)}, expected (h, w), both odd")
            if not finite(kernel):
                raise InputError("kernel: expected finite numbers, got NaN or infinity")
        object.__setattr__(self, "kernel", kernel)

    def __call__(self, x: Tensor) -> Tensor:
        check_floats(x)
        if x.ndim < 3:
            raise InputError(f"x: got shape {tuple(x.shape)}, but a blur is of pictures (B, ..., H, W)")
        kernel = cast(Tensor, self.kernel).to(x)
        down, across = kernel.shape[0] // 2, kernel.shape[1] // 2
        planes = x.reshape(-1, 1, *x.shape[-2:])
        sides = (across, across, down, down)
        if self.padding in ("reflect", "circular") and (down >= x.shape[-2] or across >= x.shape[-1]):
            raise InputError(
                f"kernel: {kernel.shape[0]} x {kernel.shape[1]} reaches over the whole of a picture of "
                f"{x.shape[-2]} x {x.shape[-1]}; use padding 'replicate' or 'zeros'"
            )
        mode = "constant" if self.padding == "zeros" else self.padding
        turned = kernel.flip(0, 1)[None, None]  # torch's conv2d correlates
        return functional.conv2d(functional.pad(planes, sides, mode=mode), turned).view(x.shape)

    def sample_shape(self, measured: tuple[int, ...]) -> tuple[int, ...] | None:
        return measured


@dataclass(frozen=True)
class Downsampling(Operator):
    """The means over blocks of factor x factor pixels of the last two dimensions, shape (B, ..., H/factor, W/factor).

    Args:
        factor: The side of a block, in pixels; it must divide the height and the width.

    Raises:
        InputError: The factor is not a whole number of at least 1.
    """

    factor: int

    def __post_init__(self):
        object.__setattr__(self, "factor", whole("factor", self.factor, 1))

    def __call__(self, x: Tensor) -> Tensor:
        check_floats(x)
        f = self.factor
        if x.ndim < 3 or x.shape[-2] % f or x.shape[-1] % f:
            raise InputError(
                f"factor: got {f}, but samples of shape {tuple(x.shape[1:])}; expected a divisor of height and width"
            )
        height, width = x.shape[-2] // f, x.shape[-1] // f
        return x.reshape(*x.shape[:-2], height, f, width, f).mean((-3, -1))

    def sample_shape(self, measured: tuple[int, ...]) -> tuple[int, ...] | None:
        return (*measured[:-2], measured[-2] * self.factor, measured[-1] * self.factor) if len(measured) > 1 else None
