"""Videos, written by PyAV: H.264, VP9, FFV1 which loses nothing, and GIF with a palette of its own."""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..errors import InputError, StorageError
from . import files, sounds
from .pictures import sheet
from .videos import pyav

_MUXERS = {".mov": "mov", ".webm": "webm", ".mkv": "matroska", ".gif": "gif"}
_CODECS: dict[str, tuple[str, ...]] = {
    ".webm": ("libvpx-vp9", "libvpx"),
    ".mkv": ("ffv1",),  # which loses nothing
    ".gif": ("gif",),
}
_H264 = ("libx264", "libopenh264", "h264_videotoolbox", "mpeg4")
_OPTIONS = {
    "libx264": {"crf": "14", "preset": "medium"},
    "libvpx-vp9": {"crf": "18", "b": "0", "row-mt": "1"},
    "libvpx": {"crf": "8", "b": "8M"},
}
_SOUND_CODECS = {".mp4": "aac", ".m4v": "aac", ".mov": "aac", ".webm": "libopus", ".mkv": "pcm_s16le"}
_OPUS = 48_000
_FASTEST_GIF = 50.0


def check_writes(path: Path, *, sound: bool = False, fps: float | None = None) -> None:
    """Check that a kind of video can be written.

    Args:
        path: Where it is to be written.
        sound: Whether with a sound.
        fps: Its frames per second, where they are known.

    Raises:
        InputError: The kind has no sound, or is not as fast.
        MissingExtraError: PyAV is not installed.
    """
    kind = path.suffix.lower()
    pyav()
    if sound and kind not in _SOUND_CODECS:
        raise InputError(f"{path}: {kind} has no sound; expected {', '.join(_SOUND_CODECS)}")
    if kind == ".gif" and fps is not None and fps > _FASTEST_GIF:
        raise InputError(f"{path}: {fps:g} frames per second, but a GIF shows at most {_FASTEST_GIF:g}; write an .mp4")


def write(path: Path, x: Tensor, fps: float, sound: tuple[Tensor, int] | None = None) -> None:
    """Write videos side by side as one; an existing file is replaced whole or not at all.

    Args:
        path: The file, whose suffix says the kind: H.264 for .mp4, .m4v and .mov, VP9 for .webm, FFV1 for .mkv, which
            loses nothing, and .gif.
        x: Videos in [-1, 1], shape (B, 1 or 3, F, h, w).
        fps: Their frames per second.
        sound: A sound in [-1, 1], shape (1 or 2, samples), and its sample rate.

    Raises:
        InputError: x has another shape, or the kind cannot hold it.
        StorageError: The file cannot be written.
        MissingExtraError: PyAV is not installed.
    """
    check_writes(path, sound=sound is not None, fps=fps)
    pictures = tiled(x)
    with files.replacing(path) as part:
        _encode(str(part), path.suffix.lower(), pictures, pictures[0].shape, fps, sound)


def write_parts(path: Path, parts: Iterable[Tensor], size: tuple[int, ...], fps: float) -> None:
    """Write a video that comes in parts, as `write` does.

    Args:
        path: The file.
        parts: Successive frames in [-1, 1], each of shape (1, 1 or 3, frames, h, w).
        size: (h, w).
        fps: The frames per second.

    Raises:
        InputError: The kind cannot hold it.
        StorageError: The file cannot be written.
        MissingExtraError: PyAV is not installed.
    """
    check_writes(path, fps=fps)
    with files.replacing(path) as part:
        pictures = (picture for x in parts if x.shape[2] for picture in tiled(x))
        _encode(str(part), path.suffix.lower(), pictures, size, fps, None)


def mp4(x: Tensor, fps: float) -> bytes:
    """Videos side by side as an MP4 in memory.

    Args:
        x: Videos in [-1, 1], shape (B, 1 or 3, F, h, w).
        fps: Their frames per second.

    Raises:
        InputError: x has another shape.
        MissingExtraError: PyAV is not installed.
    """
    buffer = io.BytesIO()
    pictures = tiled(x)
    _encode(buffer, ".mp4", pictures, pictures[0].shape, fps, None)
    return buffer.getvalue()


def tiled(x: Tensor) -> list[npt.NDArray[np.uint8]]:
    """Videos side by side, as a list of colour frames.

    Args:
        x: Videos in [-1, 1], shape (B, 1 or 3, F, h, w).

    Returns:
        The frames, uint8, shape (H, W, 3) each.

    Raises:
        InputError: x has another shape.
    """
    if x.ndim != 5 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise InputError(f"x: got shape {tuple(x.shape)}, expected videos of shape (B, 1 or 3, F, h, w)")
    pictures = (sheet(x[:, :, k]) for k in range(x.shape[2]))
    return [p if p.ndim == 3 else np.repeat(p[:, :, None], 3, 2) for p in pictures]


def _encode(
    file: Any,
    kind: str,
    pictures: Iterable[npt.NDArray[np.uint8]],
    size: tuple[int, ...],
    fps: float,
    sound: tuple[Tensor, int] | None,
) -> None:
    av = pyav()
    rate = Fraction(fps).limit_denominator(1001)
    try:
        with av.open(file, "w", format=_MUXERS.get(kind, "mp4"), options={"fflags": "bitexact"}) as container:
            stream = _stream(av, container, kind, size, rate)
            track = None if sound is None else _track(container, kind, *sound)
            raw = (av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures)
            for k, frame in enumerate(_with_palette(av, raw, size, rate) if kind == ".gif" else raw):
                frame.pts, frame.time_base = k, 1 / rate
                container.mux(stream.encode(_in_colours(frame, stream)))
            container.mux(stream.encode(None))
            if sound is not None:
                _add_sound(av, container, track, sound)
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, OSError):
            raise
        raise StorageError(f"video: FFmpeg could not write a {kind} ({error})") from error


def _stream(av: ModuleType, container: Any, kind: str, size: tuple[int, ...], rate: Fraction) -> Any:
    """The video stream of the first codec that is there."""
    names = _CODECS.get(kind, _H264)
    for name in names:
        try:
            stream = container.add_stream(name, rate=rate, options=_OPTIONS.get(name, {}))
        except (av.error.FFmpegError, ValueError):
            continue
        stream.height, stream.width = size[:2]
        even = not any(side % 2 for side in size[:2])
        stream.pix_fmt = {"ffv1": "bgr0", "gif": "pal8"}.get(name, "yuv420p" if even else "yuv444p")
        context = stream.codec_context
        if stream.pix_fmt.startswith("yuv"):
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = 1
        return stream
    raise InputError(f"video: this FFmpeg has none of {', '.join(names)}, which a {kind} needs")


def _in_colours(frame: Any, stream: Any) -> Any:
    """A frame in the pixel format of its stream."""
    if not stream.pix_fmt.startswith("yuv"):
        return frame if frame.format.name == stream.pix_fmt else frame.reformat(format=stream.pix_fmt)
    return frame.reformat(
        format=stream.pix_fmt, dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
    )


def _with_palette(av: ModuleType, frames: Iterator[Any], size: tuple[int, ...], rate: Fraction) -> Iterator[Any]:
    """Frames in the 256 colours that suit them all."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=size[1], height=size[0], format="rgb24", time_base=1 / rate)
    split, make = graph.add("split"), graph.add("palettegen", "reserve_transparent=0")
    use, sink = graph.add("paletteuse"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(make, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for k, frame in enumerate(frames):
        frame.pts, frame.time_base = k, 1 / rate
        graph.push(frame)
    graph.push(None)
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def _track(container: Any, kind: str, x: Tensor, rate: int) -> Any:
    """The sound stream, which has to be there before the first frame."""
    track = container.add_stream(_SOUND_CODECS[kind], rate=_OPUS if kind == ".webm" else rate)
    track.layout = sounds.layout(x)
    return track


def _add_sound(av: ModuleType, container: Any, track: Any, sound: tuple[Tensor, int]) -> None:
    x, rate = sound
    layout = sounds.layout(x)
    values = x.detach().cpu().float().clamp(-1.0, 1.0).numpy()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), format="fltp", layout=layout)
    frame.sample_rate = rate
    resampler = av.AudioResampler(format=track.format, layout=layout, rate=track.rate, frame_size=track.frame_size or 0)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(track.encode(part))
    container.mux(track.encode(None))
