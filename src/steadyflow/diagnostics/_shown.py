"""What a report shows of samples: pictures as a strip, videos as strips of frames with a film, sounds to listen to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._internal import html, plots
from .._internal.kinds import Kind, decoded_shape, frame_rate, kind_of, sample_rate
from .diagnosis import Diagnosis

_PICTURES, _VIDEOS, _SOUNDS, _FRAMES = 16, 4, 4, 8


@dataclass(frozen=True)
class Shown:
    """One figure of a report, for its template; whatever is empty is not shown."""

    alt: str
    png: str = ""
    film: dict[str, str] = field(default_factory=dict[str, str])
    """A film as `html.film` gives it."""
    sounds: list[str] = field(default_factory=list[str])
    """Sounds as WAV files in base64 text."""


def shown(found: Diagnosis) -> list[Shown]:
    """The figures of a diagnosis: the source, what came back, and by how much that is off.

    The samples of a model of latents are decoded, where the diagnosis was made without its codec.

    Args:
        found: The diagnosis.

    Raises:
        MissingExtraError: Pillow or matplotlib is not installed, or SciPy where there are sounds.
    """
    kind, decode = _kind(found)
    count = {"pictures": _PICTURES, "videos": _VIDEOS, "sounds": _SOUNDS}.get(kind, 0)
    if not count:
        return []
    exact = found.budget.exact
    source, back = found.images[:count], found.reconstruction[:count]
    wanted = source if exact is None else exact[:count].to(source.dtype)
    if decode is not None:
        with torch.no_grad():
            back = decode(back)
            source, wanted = decode(source), decode(wanted)
        if not isinstance(source, Tensor):
            return []
    largest = (back - wanted).abs().max().clamp_min(1e-30)
    parts = [
        ("Source", source),
        *([] if exact is None else [("The edit of an exact solver", wanted)]),
        ("Reconstruction" if found.target is None else "The edit", back),
        (f"Difference, scaled to the range of the {_NOUNS[kind]} (largest {largest:.2g})", (back - wanted) / largest),
    ]
    return [_figure(kind, text, x, found.model) for text, x in parts]


_NOUNS = {"pictures": "picture", "videos": "video", "sounds": "sound"}


def _kind(found: Diagnosis) -> tuple[Kind, Any]:
    """What the samples of a diagnosis are, and what decodes them where they are latents."""
    images, model = found.images, found.model
    decode = getattr(model, "decode", None)
    if found.codec is None and decode is not None and tuple(images.shape[1:]) == model.shape:
        return kind_of(model), decode
    known = getattr(model, "image_shape", None) or model.shape
    kind = kind_of(model) if known else "numbers"
    if kind in _NOUNS and tuple(images.shape[1:]) == decoded_shape(model):
        return kind, None
    return ("pictures" if images.ndim == 4 and images.shape[1] in (1, 3) else "numbers"), None


def _figure(kind: Kind, text: str, x: Tensor, model: Any) -> Shown:
    x = x.detach().cpu().float()
    if kind == "pictures":
        return Shown(text, html.strip(x))
    if kind == "videos":
        count = x.shape[2]
        chosen = torch.linspace(0, count - 1, min(count, _FRAMES)).round().long()
        frames = x[:, :, chosen].transpose(1, 2).flatten(0, 1)
        which = "all frames" if len(chosen) == count else f"{len(chosen)} of {count} frames"
        return Shown(f"{text}, {which}", html.strip(frames, columns=len(chosen)), html.film(x, frame_rate(model)))
    rate = sample_rate(model)
    return Shown(text, _waves(x, rate), sounds=[] if rate is None else [html.wav(one, rate) for one in x])


def _waves(x: Tensor, rate: int | None) -> str:
    """The waveforms of sounds, one above the other."""
    figure = plots.figure(9.0, 0.6 + 1.1 * len(x))
    axes = figure.subplots(len(x), 1, sharex=True, squeeze=False)[:, 0]
    times = torch.arange(x.shape[2]).double() / (rate or 1)
    stride = max(1, x.shape[2] // 20_000)
    for k, (one, axis) in enumerate(zip(x, axes, strict=True)):
        for channel in one:
            axis.plot(times[::stride].numpy(), channel[::stride].numpy(), lw=0.5)
        axis.set(ylabel=str(k))
    axes[-1].set(xlabel="sample" if rate is None else "time (s)")
    return html.png(figure)


__all__ = ["Shown", "shown"]
