"""Distances between batches of images, one number per pair, over whole images or over a region of them.

Videos, (B, C, F, H, W), are taken frame by frame where a measure looks at the places of pixels, and the number is the
mean over their frames; `videos.per_frame` gives one for each frame.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._internal.imports import needing
from .._internal.tensors import rms
from ..errors import InputError


def rmse(x: Tensor, y: Tensor) -> Tensor:
    """The root mean square difference of each pair.

    Args:
        x: Samples, shape (B, ...).
        y: Samples of the same shape.

    Returns:
        The distance of each pair, shape (B,).

    Raises:
        InputError: The shapes differ.
    """
    _check("rmse", x, y)
    return rms(x - y)


def mse(x: Tensor, y: Tensor, *, region: Tensor | None = None) -> Tensor:
    """The mean square difference of each pair.

    Args:
        x: Samples, shape (B, ...).
        y: Samples of the same shape.
        region: The weights of a mean over a region, shape (B or 1, ...), broadcast against the samples; by default all
            numbers count alike.

    Returns:
        The distance of each pair, shape (B,); NaN where the region is empty.

    Raises:
        InputError: The shapes differ, or the region does not fit them.
    """
    _check("mse", x, y)
    return _mean((x - y).square(), region)


def psnr(x: Tensor, y: Tensor, *, span: float, region: Tensor | None = None) -> Tensor:
    """The peak signal-to-noise ratio of each pair, in dB.

    Args:
        x: Samples, shape (B, ...).
        y: Samples of the same shape.
        span: The length of the interval of all possible values.
        region: As in `mse`.

    Returns:
        The ratio of each pair, shape (B,).

    Raises:
        InputError: The shapes differ, or the region does not fit them.
    """
    return 20.0 * math.log10(span) - 10.0 * torch.log10(mse(x, y, region=region))


def ssim(x: Tensor, y: Tensor, *, span: float, region: Tensor | None = None) -> Tensor:
    """The structural similarity (Wang et al. 2004) of each pair of images, by torchmetrics.

    Args:
        x: Images, shape (B, C, H, W), or videos, shape (B, C, F, H, W).
        y: Images or videos of the same shape.
        span: The length of the interval of all possible values.
        region: The weights by which local similarities are averaged, as in `mse`.

    Returns:
        The similarity of each pair, shape (B,).

    Raises:
        InputError: The shapes differ, or the region does not fit them.
        MissingExtraError: torchmetrics is not installed.
    """
    _check("ssim", x, y)
    torchmetrics = _torchmetrics()
    options: dict[str, Any] = {"data_range": span, "reduction": "none", "return_full_image": True}
    _, local = torchmetrics.structural_similarity_index_measure(as_frames(x), as_frames(y), **options)
    return _mean(local if x.ndim == 4 else _as_videos(local, len(x)), region)


def ms_ssim(x: Tensor, y: Tensor, *, span: float) -> Tensor:
    """The structural similarity over several scales (Wang et al. 2003) of each pair of images, by torchmetrics.

    There are five scales where the image has the size for them, else as many as fit, their weights scaled to a sum
    of 1.

    Args:
        x: Images, shape (B, C, H, W), or videos, shape (B, C, F, H, W).
        y: Images or videos of the same shape.
        span: The length of the interval of all possible values.

    Returns:
        The similarity of each pair, shape (B,).

    Raises:
        InputError: The shapes differ, or the images have fewer than 11 pixels in a direction.
        MissingExtraError: torchmetrics is not installed.
    """
    _check("ms_ssim", x, y)
    as_frames(x)
    side = min(x.shape[-2:])
    if side < _WINDOW:
        raise InputError(f"ms_ssim: images of {x.shape[-2]}x{x.shape[-1]} are smaller than its window of {_WINDOW}")
    fit = max(n for n in range(1, 6) if side >= 2**n and side // max(1, n - 1) ** 2 >= _WINDOW)
    betas = tuple(w / sum(_SCALES[:fit]) for w in _SCALES[:fit])
    measure: Callable[..., Tensor] = _torchmetrics().multiscale_structural_similarity_index_measure
    found = measure(as_frames(x), as_frames(y), data_range=span, reduction="none", betas=betas, normalize="relu")
    return found.view(len(x), -1).mean(1)


def as_frames(x: Tensor) -> Tensor:
    """Images as they are, and the frames of videos as images.

    Args:
        x: Images, shape (B, C, H, W), or videos, shape (B, C, F, H, W).

    Returns:
        Images, shape (B, C, H, W); of videos, shape (B F, C, H, W), the frames of a video one after the other.

    Raises:
        InputError: x has another number of dimensions.
    """
    if x.ndim not in (4, 5):
        raise InputError(f"images: got shape {tuple(x.shape)}, expected (B, C, H, W), or (B, C, F, H, W) for videos")
    return x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)


def _as_videos(frames: Tensor, n: int) -> Tensor:
    """The inverse of `as_frames` for n videos."""
    return frames.view(n, -1, *frames.shape[1:]).transpose(1, 2)


_WINDOW = 11
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _check(name: str, x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise InputError(f"{name}: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected equal ones")


def _mean(values: Tensor, region: Tensor | None) -> Tensor:
    """The mean of each sample's values, weighted by the region."""
    if region is None:
        return values.flatten(1).mean(1)
    try:
        weights = region.to(values).expand_as(values).flatten(1)
    except RuntimeError as error:
        raise InputError(f"region: {tuple(region.shape)} does not fit samples {tuple(values.shape)}") from error
    return (values.flatten(1) * weights).sum(1) / weights.sum(1)


def _torchmetrics() -> ModuleType:
    with needing("torchmetrics", "torchmetrics", extra="metrics", purpose="SSIM"):
        from torchmetrics.functional import image
    return image
