"""Measures of videos: any measure of pictures frame by frame, and how a video changes from frame to frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .images import as_frames


def per_frame(measure: Callable[..., Tensor], x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """Measure each pair of frames by a distance of pictures, such as `psnr`; its mean over the frames is a video's.

    Args:
        measure: The distance of pairs of pictures, (n, C, H, W), which returns (n,).
        x: Videos, shape (B, C, F, H, W).
        y: Videos of the same shape.
        **options: What else the measure takes, such as `span`.

    Returns:
        The distance of each frame, shape (B, F).

    Raises:
        InputError: These are no videos of one shape.
    """
    if x.shape != y.shape:
        raise InputError(f"per_frame: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected equal ones")
    return measure(as_frames(x), as_frames(y), **options).view(len(x), x.shape[2])


def flicker(x: Tensor) -> Tensor:
    """The mean absolute change from frame to frame, VBench's temporal flickering (Huang et al. 2024).

    It needs no other video, and counts what moves as well as what flickers: compare videos of one scene.

    Args:
        x: Videos, shape (B, C, F, H, W).

    Returns:
        The change of each video, in its units, shape (B,).

    Raises:
        InputError: These are no videos, or have a single frame.
    """
    return _changes(x).abs().flatten(1).mean(1)


def flicker_difference(x: Tensor, y: Tensor) -> Tensor:
    """The mean absolute difference of two videos' changes from frame to frame, as dtSSD (Erofeev et al. 2015) has it.

    It is zero where a video differs from the other by one picture that stands still, and sees what flickers in one of
    them alone, however much both move.

    Args:
        x: Videos, shape (B, C, F, H, W).
        y: Videos of the same shape.

    Returns:
        The difference of each pair, in the videos' units, shape (B,).

    Raises:
        InputError: These are no videos of one shape, or have a single frame.
    """
    if x.shape != y.shape:
        raise InputError(f"flicker_difference: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected equal ones")
    return (_changes(x) - _changes(y)).abs().flatten(1).mean(1)


def _changes(x: Tensor) -> Tensor:
    if x.ndim != 5 or x.shape[2] < 2:
        raise InputError(f"videos: got shape {tuple(x.shape)}, expected (B, C, F, H, W) with at least two frames")
    return torch.diff(x, dim=2)
