"""Masks over pixels on the grid of a latent: what counts is the whitest pixel behind each place."""

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError


def pooled(white: Tensor, size: tuple[int, ...], frames: int | None = None) -> Tensor:
    """A mask over pixels on the grid of a latent.

    Args:
        white: The mask, shape (1 or F, H, W).
        size: The size of the latent, (h, w), or (f, h, w) for videos.
        frames: The number F of a video's frames; None for pictures.

    Returns:
        The mask, shape (1, 1, *size).

    Raises:
        InputError: Which frames lie behind the latent's places in time is not known.
    """
    small = functional.adaptive_max_pool2d(white[:, None], list(size[-2:]))[:, 0]
    return small[None] if frames is None else _over_time(small, frames, size[0])[None]


def _over_time(white: Tensor, frames: int, places: int) -> Tensor:
    """The largest of the frames that may lie behind each place in time, shape (1, places, h, w)."""
    if len(white) == 1:
        return white.expand(places, *white.shape[1:])[None]
    found: list[Tensor] = []
    if frames % places == 0:
        found.append(white.view(places, frames // places, *white.shape[1:]).amax(1))
    if places > 1 and (frames - 1) % (places - 1) == 0:
        each = (frames - 1) // (places - 1)
        rest = white[1:].view(places - 1, each, *white.shape[1:]).amax(1)
        found.append(torch.cat([white[:1], rest]))
    if not found:
        raise InputError(
            f"mask: which of {frames} frames lie behind each of {places} places is not known; give one picture for all "
            "frames, or a model with a method `mask_weights`"
        )
    return torch.stack(found).amax(0)[None]
