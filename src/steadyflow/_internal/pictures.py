"""Pictures: batches of images as arrays of eight bits, and Pillow."""

import io
import math
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError
from .imports import needing


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
    canvas = torch.full((rows * columns, channels, h, w), -1.0, device="cpu")
    canvas[:n] = x.detach().cpu().float()
    canvas = canvas.view(rows, columns, channels, h, w).permute(0, 3, 1, 4, 2)
    canvas = canvas.reshape(rows * h, columns * w, channels)
    pixels = ((canvas + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels[:, :, 0] if channels == 1 else pixels


_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")


def as_seen(image: Any, *, grey: bool, name: str) -> Any:
    """A picture as viewers show it, in eight bits.

    It is turned as its EXIF orientation says; grey of 16 bits is scaled; a colour profile is applied; palettes and CMYK
    become colours; what is transparent lies over white, and of an animation the first frame is taken, both with a
    warning.

    Args:
        image: A picture of Pillow.
        grey: Whether to return grey ("L") instead of colour ("RGB").
        name: What messages call it.

    Raises:
        InputError: Its values have no known range.
    """
    from PIL import Image, ImageOps

    frames, kind, profile = getattr(image, "n_frames", 1), image.format, image.info.get("icc_profile")
    if frames > 1 and kind != "MPO":  # phones' second image of a photograph is no frame of it
        warnings.warn(f"{name}: has {frames} frames, of which the first is taken", stacklevel=4)
        image.seek(0)
    clear = image.info.get("transparency")
    image = ImageOps.exif_transpose(image)
    alpha = None
    if image.mode in _SIXTEEN or (image.mode == "I" and kind == "PNG"):
        values = np.asarray(image).astype(np.float64)
        if isinstance(clear, int):
            alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
        image = Image.fromarray((values / 257.0).round().clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise InputError(f"{name}: its pixels are of mode {image.mode!r}, whose range is not known; store 8 or 16 bits")
    elif "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        alpha = image.convert("RGBA").getchannel("A")
        image = image.convert("LA").convert("L") if image.mode in ("LA", "La") else image.convert("RGBA").convert("RGB")
    image = _in_srgb(image, profile, name)
    if alpha is not None and np.asarray(alpha).min() < 255:
        warnings.warn(f"{name}: is transparent in places, which lie over white here", stacklevel=4)
        white = Image.new("RGB", image.size, (255, 255, 255))
        image = Image.composite(image.convert("RGB"), white, alpha)
    return image.convert("L" if grey else "RGB")


_PLAIN = ("sRGB", "sRGB built-in", "sRGB IEC61966-2.1", "sRGB IEC61966-2-1")
"""Descriptions of profiles that change nothing; others with sRGB in their name may have another curve."""


def _in_srgb(image: Any, profile: bytes | None, name: str) -> Any:
    """The picture in the colours of sRGB."""
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if not profile:
        return image
    from PIL import ImageCms

    try:
        own: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if ImageCms.getProfileDescription(own).strip() in _PLAIN:
            return image
        space = str(own.profile.xcolor_space).strip()
        if space == "GRAY" and image.mode == "RGB":
            image = image.convert("L")
        elif space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        return ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        warnings.warn(f"{name}: its colour profile is damaged and is left out", stacklevel=5)
        return image


def pillow() -> ModuleType:
    """Pillow's module `Image`.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    with needing("Pillow", "PIL", extra="data", purpose="reading and writing pictures"):
        from PIL import Image
    return Image
