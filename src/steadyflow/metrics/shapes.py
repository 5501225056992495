"""Counting solid shapes in images."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .._internal.imports import needing
from ..errors import InputError


def count_shapes(images: Tensor, *, contrast: float = 0.25, depth: float = 1.0) -> Tensor:
    """Count the solid convex shapes in each image.

    What is brighter than `contrast` belongs to a shape. Within that, each peak of the distance to the background is one
    shape, if it stands out by more than `depth` pixels from the saddle to a higher one: shapes that touch at a corner
    or over part of an edge are counted separately, as a convex shape has one peak. Specks with a peak of `depth` pixels
    or less do not count. The image's edge is not background: a shape that it cuts counts.

    Args:
        images: Bright shapes on black, in [-1, 1], shape (n, 1, h, w).
        contrast: The brightness from which on a pixel belongs to a shape, 0 for black and 1 for white.
        depth: By how many pixels a peak must stand out.

    Returns:
        The number of shapes in each image, integers, shape (n,).

    Raises:
        InputError: The images have another shape or are not finite, or an option is out of range.
        MissingExtraError: scikit-image is not installed.
    """
    with needing("scikit-image and SciPy", "scipy", "skimage", extra="data", purpose="counting shapes"):
        from scipy.ndimage import distance_transform_edt, label
        from skimage.morphology import h_maxima
    if images.ndim != 4 or images.shape[1] != 1 or not bool(images.isfinite().all()):
        raise InputError(f"images: got shape {tuple(images.shape)}, expected finite (n, 1, h, w)")
    if not 0.0 < contrast < 1.0 or depth <= 0.0:
        raise InputError(f"count_shapes: expected 0 < contrast < 1 and depth > 0, got {contrast} and {depth}")
    counts: list[int] = []
    for image in (images[:, 0].cpu().numpy() + 1.0) / 2.0:
        distance = np.asarray(distance_transform_edt(image > contrast))
        peaks = h_maxima(distance, depth) if (distance > depth).any() else distance * 0
        _, count = cast("tuple[Any, int]", label(peaks, np.ones((3, 3), dtype=int)))
        counts.append(int(count))
    return torch.tensor(counts, dtype=torch.long, device=images.device)
