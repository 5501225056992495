"""Pictures: batches of images as arrays of eight bits, and Pillow."""

import math
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError, MissingExtraError


def sheet(x: Tensor, columns: int | None = None) -> npt.NDArray[np.uint8]:
    """Arrange a batch of images on one picture.

    Args:
        x: Images in [-1, 1], shape (B, 1 or 3, h, w).
        columns: The number of images in a row; by default about the square root of B.

    Returns:
        The picture, uint8, shape (H, W) or (H, W, 3).

    Raises:
        InputError: x has another shape.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"x: got shape {tuple(x.shape)}, expected images of shape (B, 1 or 3, h, w)")
    n, channels, h, w = x.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    canvas = torch.full((rows * columns, channels, h, w), -1.0)
    canvas[:n] = x.detach().cpu().float()
    canvas = canvas.view(rows, columns, channels, h, w).permute(0, 3, 1, 4, 2)
    canvas = canvas.reshape(rows * h, columns * w, channels)
    pixels = ((canvas + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels[:, :, 0] if channels == 1 else pixels


def pillow() -> ModuleType:
    """Pillow's module `Image`.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Pillow", "data", "reading and writing pictures") from error
    return Image
