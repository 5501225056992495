"""Counting solid shapes in images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, MissingExtraError


def count_shapes(images: Tensor, *, contrast: float = 0.25, depth: float = 1.0) -> Tensor:
    """How many solid convex shapes are in each image, shape (n,), integers.

    images: (n, 1, h, w) in [-1, 1], bright shapes on black. What is brighter than `contrast` of the way from black to
    white belongs to a shape. Within that, each peak of the distance to the background is one shape, if it stands out
    by more than `depth` pixels from the saddle to a higher one: shapes that touch at a corner or over part of an edge
    are told apart, as a convex shape has one peak. Specks with a peak of `depth` pixels or less do not count. The
    image's edge is no background: a shape that it cuts counts.

    Raises `MissingExtraError` without scikit-image.
    """
    try:
        from scipy.ndimage import distance_transform_edt, label
        from skimage.morphology import h_maxima
    except ImportError as error:
        raise MissingExtraError("scikit-image", "data", "counting shapes") from error
    if images.ndim != 4 or images.shape[1] != 1 or not bool(images.isfinite().all()):
        raise InputError(f"images: got shape {tuple(images.shape)}, expected finite (n, 1, h, w)")
    if not 0.0 < contrast < 1.0 or depth <= 0.0:
        raise InputError(f"count_shapes: expected 0 < contrast < 1 and depth > 0, got {contrast} and {depth}")
    counts = []
    for image in (images[:, 0].cpu().numpy() + 1.0) / 2.0:
        distance = np.asarray(distance_transform_edt(image > contrast))
        peaks = h_maxima(distance, depth) if (distance > depth).any() else distance * 0
        counts.append(int(label(peaks, [[1, 1, 1]] * 3)[1]))  # pyright: ignore[reportIndexIssue, reportArgumentType]
    return torch.tensor(counts, dtype=torch.long, device=images.device)
