"""Masks over pixels as weights over a model's samples, which `edit` takes."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from .._internal.kinds import decoded_shape, kind_of, words
from .._internal.pooling import pooled
from ..denoisers.base import Denoiser
from ..errors import InputError


def mask_for(model: Denoiser, white: Tensor) -> Tensor:
    """Make the `mask` of an edit from one over pixels: what counts is the whitest pixel behind each place of a sample.

    A place of a video's latent lies before all frames that may be behind it: where a codec keeps the first frame by
    itself, those that follow are counted from there.

    A model whose samples are packed into rows of tokens says which pixels lie behind each by a method
    `mask_weights(white)`, which is given (1 or F, H, W) and returns weights that broadcast against a batch of samples.

    Args:
        model: The model of pictures or videos.
        white: 1 where the edit may change something and 0 where it may not, shape (H, W) or (1, H, W); for videos also
            (F, H, W). H and W are those of the pictures or frames.

    Returns:
        Weights in [0, 1], shape (1, 1, h, w), or (1, 1, f, h, w) for videos.

    Raises:
        InputError: The mask does not fit, or the model does not say which pixels lie behind its samples' places.
    """
    kind = kind_of(model)
    if kind not in ("pictures", "videos"):
        known = getattr(model, "image_shape", None) if kind == "joined" else model.shape
        about = words(kind, None if kind == "joined" or not known else tuple(known))
        raise InputError(f"mask: is for pictures and videos; the samples of {model.name!r} are {about}")
    size = decoded_shape(model)
    if white.ndim == 2:
        white = white[None]
    frames = size[1] if kind == "videos" else 1
    if white.ndim != 3 or tuple(white.shape[1:]) != size[-2:] or white.shape[0] not in (1, frames):
        accepted = f"(1 or {frames}, {size[-2]}, {size[-1]})" if frames > 1 else f"(1, {size[-2]}, {size[-1]})"
        raise InputError(f"mask: got shape {tuple(white.shape)}, expected {accepted}")
    if not bool(((white >= 0) & (white <= 1)).all()):
        raise InputError("mask: expected weights in [0, 1]")
    own = getattr(model, "mask_weights", None)
    if own is not None:
        return cast(Tensor, own(white))
    shape = model.shape or ()
    if kind == "pictures" and len(shape) == 3:
        return pooled(white, shape[1:])
    if kind == "videos" and len(shape) == 4:
        return pooled(white, shape[1:], frames)
    raise _unknown(model)


def _unknown(model: Denoiser) -> InputError:
    return InputError(
        f"mask: which pixels lie behind the numbers of a sample of shape {model.shape} is not known; give weights that "
        "broadcast against the samples to `edit`, or a model with a method `mask_weights`"
    )
