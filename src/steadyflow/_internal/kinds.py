"""What a model's samples are once they are decoded: pictures, videos, sounds, or numbers of which nothing is known.

A model says so by the shape of what `decode` returns, its `image_shape` (or its `shape`, where it has none):

    pictures      (1 or 3, H, W)
    videos        (1 or 3, F, H, W), with the attribute `fps` where the frame rate is known
    sounds        (channels, samples), with the attribute `sample_rate` in Hz, which may be None
    joined        a mapping of names to such shapes; `decode` returns a dict with these names, "video" and "audio"
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import InputError

Kind = Literal["pictures", "videos", "sounds", "joined", "numbers"]

DEFAULT_FPS = 8.0
"""The frame rate of a video where neither its source nor the model says one."""


def kind_of(model: Any) -> Kind:
    """What the model's samples are once they are decoded.

    Args:
        model: The model.
    """
    said = getattr(model, "image_shape", None)
    if isinstance(said, Mapping):
        return "joined"
    shape = tuple(said or model.shape or ())
    if len(shape) == 3 and shape[0] in (1, 3):
        return "pictures"
    if len(shape) == 4 and shape[0] in (1, 3):
        return "videos"
    known = hasattr(model, "sample_rate") if said else getattr(model, "sample_rate", None) is not None
    return "sounds" if len(shape) == 2 and known else "numbers"


def decoded_shape(model: Any) -> tuple[int, ...]:
    """The shape of one of the model's samples once it is decoded.

    Args:
        model: The model.

    Raises:
        InputError: It is not known, or the samples are joined and have several.
    """
    said = getattr(model, "image_shape", None)
    if isinstance(said, Mapping):
        raise InputError(f"model: the samples of {model.name!r} join {', '.join(map(str, said))}, of a shape each")
    if not (said or model.shape):
        raise InputError(f"model: the shape of the samples of {model.name!r} is not known; give Denoiser(shape=...)")
    return tuple(said or model.shape)


def frame_rate(model: Any) -> float:
    """The frames per second of the model's videos: what the model says, or 8.

    Args:
        model: The model, or None.

    Raises:
        InputError: The model says something else than a positive number.
    """
    said = getattr(model, "fps", None)
    if said is None:
        return DEFAULT_FPS
    try:
        rate = float(said)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0.0 < rate < math.inf:
        raise InputError(f"fps: the model says {said!r}, expected a positive number of frames per second")
    return rate


def sample_rate(model: Any) -> int | None:
    """The sample rate of the model's sounds in Hz, or None where the model does not say it.

    Args:
        model: The model.

    Raises:
        InputError: The model says something else than a positive whole number.
    """
    said = getattr(model, "sample_rate", None)
    if said is None:
        return None
    if isinstance(said, bool) or not hasattr(said, "__index__") or int(said) < 1:
        raise InputError(f"sample_rate: the model says {said!r}, expected a positive whole number of Hz")
    return int(said)


def words(kind: Kind, shape: tuple[int, ...] | None) -> str:
    """What a model's samples are, for a message.

    Args:
        kind: As `kind_of` says.
        shape: The shape of one, where it is known.
    """
    if kind == "pictures" and shape:
        return f"pictures of {shape[2]} x {shape[1]}"
    if kind == "videos" and shape:
        return f"videos of {shape[1]} frames of {shape[3]} x {shape[2]}"
    if kind == "sounds" and shape:
        return f"sounds of {shape[1]} samples in {shape[0]} channel{'s' * (shape[0] != 1)}"
    return "videos with their sound" if kind == "joined" else f"of shape {shape}, and no pictures, videos or sounds"
