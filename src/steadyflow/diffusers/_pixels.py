"""Checks of pictures in [-1, 1]."""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from ..errors import InputError


def check_pixels(images: Tensor) -> None:
    """Check that images may lie in [-1, 1].

    Args:
        images: The images.

    Raises:
        InputError: They are integers, or reach far beyond.
    """
    if not images.is_floating_point():
        raise InputError(f"images: got {images.dtype}, expected floats in [-1, 1]: images / 127.5 - 1 for bytes")
    if not images.numel():
        return
    least, largest = (float(v) for v in images.aminmax())
    if not math.isfinite(least + largest):
        raise InputError("images: some values are not finite")
    if max(-least, largest) > 8.0:
        raise InputError(
            f"images: got values up to {largest:.4g}, expected [-1, 1]: images / 127.5 - 1 for values in [0, 255]"
        )
    if least >= 0.0 and 0.0 < largest <= 1.0:
        warnings.warn(
            "images: all values lie in [0, 1], where [-1, 1] is expected: 2 * images - 1 if they are in [0, 1]",
            stacklevel=3,
        )
