"""Pictures, videos and sounds, as pipelines return them and as their VAEs take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._internal import files
from ..errors import InputError
from ._configs import settings_of


def encoded(vae: Any, image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One picture, video or sound in the latents of a VAE, with the mean of its posterior.

    Args:
        vae: The VAE.
        image: The picture, shape (1, ...).
        shape: The shape of the latents that its decoder takes for one sample, (z, ...).

    Raises:
        InputError: It encodes to another shape.
    """
    weight = next(vae.parameters())
    image = image.to(device=weight.device, dtype=weight.dtype)
    if image.ndim == 4 and len(shape) == 5:
        image = image.unsqueeze(2)  # a picture is a video of one frame
    elif image.ndim == 5 and len(shape) == 4:
        image = image[0].transpose(0, 1)  # a video, frame by frame
    if image.ndim != len(shape):
        raise InputError(
            f"encode: the vae takes {len(shape)} dimensions, a sample is of shape {tuple(image.shape[1:])}, for which "
            "the pipeline has no way in (its vae may be one of spectrograms); give latents instead"
        )
    with torch.no_grad():
        found = vae.encode(image)
    if isinstance(found, tuple):
        z = found[0]
    elif hasattr(found, "latent_dist"):
        z = found.latent_dist.mode()
    else:
        z = found.latent if hasattr(found, "latent") else found.latents
    if tuple(z.shape) != shape:
        raise InputError(f"encode: the vae encodes to shape {tuple(z.shape)}, its decoder is given {shape}")
    return z


_PICTURES = ("images", "image", "frames", "videos", "video", "audios", "audio")


def by_name(result: Any) -> dict[str, Any]:
    """What a pipeline returns, by name."""
    if isinstance(result, Mapping):
        return {name: value for name, value in result.items() if name in _PICTURES} or dict(result)
    if isinstance(result, tuple):
        return {"images": result[0]}
    return {name: value for name in _PICTURES if (value := getattr(result, name, None)) is not None}


def as_tensor(name: str, value: Any) -> Tensor | None:
    """A pipeline's output as a batch in [-1, 1], (B, c, h, w), (B, c, frames, h, w) or (B, c, samples)."""
    if isinstance(value, list):
        if not value or not all(isinstance(v, Tensor) for v in value):
            return None
        value = torch.stack(value) if value[0].ndim < 5 else torch.cat(value)
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            return None
    value = value.float()
    if name.startswith("audio"):
        return value if value.ndim == 3 else value.reshape(len(value), 1, -1)
    if value.ndim == 5:  # (B, frames, c, h, w)
        value = value.transpose(1, 2)
    return 2.0 * value - 1.0


def sampling_rate(pipe: Any) -> int | None:
    """The samples per second of a pipeline's sounds, as its parts say it; None where they do not."""
    for part in ("vocoder", "audio_vae", "vae"):
        settings = settings_of(getattr(pipe, part, None))
        for name in ("output_sampling_rate", "sampling_rate", "sample_rate"):
            value = settings.get(name)
            if isinstance(value, int):
                return value
    return None


def digest(value: Any) -> str:
    """Text that stands for an input of a pipeline's call: equal for equal numbers and pictures.

    Raises:
        InputError: The input is of a kind that cannot be compared.
    """
    if isinstance(value, torch.Generator):
        return "generator " + files.digest((), {"state": value.get_state()})
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        return files.digest((str(value.dtype), tuple(value.shape)), {"value": value.detach().cpu().contiguous()})
    if hasattr(value, "tobytes") and hasattr(value, "mode"):  # a picture of Pillow
        if value.mode == "P":
            value = value.convert("RGBA")
        data = torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8)
        return files.digest((value.mode, tuple(value.size)), {"value": data})
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {digest(v)}" for key, v in sorted(value.items(), key=str)) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(digest(v) for v in value) + ")"
    if isinstance(value, str | int | float | bool | None):
        return repr(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return digest({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    raise InputError(
        f"call: an input of type {type(value).__name__} cannot be compared with another, as runs that are resumed need"
    )
