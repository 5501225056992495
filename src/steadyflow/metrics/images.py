"""Distances between batches of images, a number a sample; over the whole frame or over a region."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._internal.tensors import rms
from ..errors import InputError, MissingExtraError


def rmse(x: Tensor, y: Tensor) -> Tensor:
    """Root mean square difference of each sample, shape (B, ...) -> (B,)."""
    _check("rmse", x, y)
    return rms(x - y)


def mse(x: Tensor, y: Tensor, *, region: Tensor | None = None) -> Tensor:
    """Mean square difference of each sample over a region, (B, ...) -> (B,); NaN where the region is empty.

    region: weights that broadcast against the samples, (B or 1, ...); the whole frame by default.
    """
    _check("mse", x, y)
    return _mean((x - y).square(), region)


def psnr(x: Tensor, y: Tensor, *, span: float, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each sample in dB, for values that span an interval of length `span`."""
    return 20.0 * math.log10(span) - 10.0 * torch.log10(mse(x, y, region=region))


def ssim(x: Tensor, y: Tensor, *, span: float, region: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each image, (B, C, H, W) -> (B,), by torchmetrics.

    region: the local similarities are averaged over it, not over the frame. Raises `MissingExtraError` without
    torchmetrics.
    """
    _check("ssim", x, y)
    torchmetrics = _torchmetrics()
    options: dict[str, Any] = {"data_range": span, "reduction": "none", "return_full_image": True}
    _, local = torchmetrics.structural_similarity_index_measure(x, y, **options)
    return _mean(local, region)


def ms_ssim(x: Tensor, y: Tensor, *, span: float) -> Tensor:
    """SSIM over several scales (Wang et al. 2003) of each image, (B, C, H, W) -> (B,), by torchmetrics.

    Five scales where the image has the size for them, else as many as fit, their weights scaled to a sum of 1.

    Raises `MissingExtraError` without torchmetrics, `InputError` for images of fewer than 11 pixels a side.
    """
    _check("ms_ssim", x, y)
    side = min(x.shape[-2:])
    if side < _WINDOW:
        raise InputError(f"ms_ssim: images of {x.shape[-2]}x{x.shape[-1]} are smaller than its window of {_WINDOW}")
    fit = max(n for n in range(1, 6) if side >= 2**n and side // max(1, n - 1) ** 2 >= _WINDOW)
    betas = tuple(w / sum(_SCALES[:fit]) for w in _SCALES[:fit])
    measure: Callable[..., Tensor] = _torchmetrics().multiscale_structural_similarity_index_measure
    return measure(x, y, data_range=span, reduction="none", betas=betas, normalize="relu")


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


def _torchmetrics() -> Any:
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise MissingExtraError("torchmetrics", "metrics", "SSIM") from error
    return image
