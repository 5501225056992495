"""Videos: files read frame by frame, as viewers show them, and written, by PyAV.

The kind of a file is what its suffix says, so that a playlist that calls itself a video opens nothing else.
"""

import io
import itertools
import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import CorruptFileError, InputError, MissingExtraError, StorageError
from . import files, sounds
from .pictures import sheet

VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".gif")
"""The suffixes of the videos that are read and written; ".gif" is a picture, too."""
_DEMUXERS = {".webm": "matroska", ".mkv": "matroska", ".gif": "gif"}
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
_MAX_PIXELS = 64_000_000
_FASTEST_GIF = 50.0
_UNEVEN = 1.5
"""How many times as long as the shortest a frame may last before the file counts as one of uneven frames."""
_HDR = {16: "PQ", 18: "HLG"}


def pyav() -> ModuleType:
    """PyAV, the module `av`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import av
        import av.error
        import av.filter
    except ImportError as error:
        raise MissingExtraError("PyAV", "video", "reading and writing videos") from error
    av.logging.set_level(av.logging.PANIC)  # what FFmpeg has to say comes as an error of ours
    return av


def read(path: Path, shape: tuple[int, ...], *, resize: bool = False, frames: slice | None = None) -> Tensor:
    """Read the first frames of a video.

    They are upright, and over white where they are transparent; frames that last unequally long are taken one by one,
    with a warning.

    Args:
        path: The file.
        shape: The shape of one sample, (1 or 3, F, H, W): grey or colour.
        resize: Whether to scale the frames to H x W; else those of another size are refused.
        frames: Which frames of the file to take; all by default. Of more than F the first are taken, with a warning.

    Returns:
        The frames in [-1, 1], float32, shape (1, *shape).

    Raises:
        CorruptFileError: The file is damaged, or not what its name says.
        InputError: There are fewer frames, or they have another size.
        MissingExtraError: PyAV or Pillow is not installed.
    """
    channels, count, height, width = shape
    chosen = slice(None) if frames is None else frames
    found: list[Tensor] = []
    times: list[float] = []
    seen = _Seen(path)
    with _opened(path) as (container, stream):
        declared = int(stream.frames or 0)
        decoded = itertools.islice(container.decode(stream), chosen.start, chosen.stop, chosen.step)
        for frame in decoded:
            if len(found) == count:
                warn_of_more(path, declared, count, frames)
                break
            found.append(picture_of(seen.upright(frame), (channels, height, width), path, resize))
            times.append(frame.time if frame.time is not None else math.nan)
    if len(found) < count:
        which = "" if frames is None else f" between {frames_text(frames)}"
        raise InputError(
            f"{path}: has {len(found)} frame{'s' * (len(found) != 1)}{which}, but the model's videos have {count}; give "
            "a longer one, or a model of fewer frames"
        )
    seen.tell(times)
    return torch.stack(found, 1)[None]


def rate_of(path: Path) -> float | None:
    """The frames per second that a file says it has, or None.

    Args:
        path: The file.

    Raises:
        CorruptFileError: The file is damaged, or not what its name says.
        MissingExtraError: PyAV is not installed.
    """
    with _opened(path) as (_, stream):
        rate = stream.average_rate or stream.guessed_rate
        return float(rate) if rate else None


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
        _encode(str(part), path.suffix.lower(), pictures, fps, sound)


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
    _encode(buffer, ".mp4", tiled(x), fps, None)
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


def frames_text(frames: slice) -> str:
    """A choice of frames as the command line takes it, such as "10:20"."""
    first, *rest = ("" if v is None else str(v) for v in (frames.start, frames.stop, frames.step))
    return ":".join([first, *(rest if rest[-1] else rest[:-1])])


def warn_of_more(path: Path, declared: int, count: int, frames: slice | None) -> None:
    """Warn that of more frames the first are taken.

    Args:
        path: The file.
        declared: How many frames it has, 0 where it does not say.
        count: How many are taken.
        frames: Which of the file's frames were chosen before, if any.
    """
    has = "more frames than the model takes" if frames is not None or declared <= count else f"{declared} frames"
    warnings.warn(f"{path}: has {has}, of which the first {count} are taken", stacklevel=5)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file and its video stream, with errors of FFmpeg as ours."""
    av = pyav()
    try:
        kind = _DEMUXERS.get(path.suffix.lower(), "mov")
        with path.open("rb") as file, av.open(file, format=kind, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video in it")
            stream = container.streams.video[0]
            if stream.width * stream.height > _MAX_PIXELS:
                raise InputError(f"{path}: {stream.width} x {stream.height} pixels, at most {_MAX_PIXELS} accepted")
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, EOFError, OverflowError, ZeroDivisionError) as error:
        raise CorruptFileError(f"{path}: no {path.suffix.lower()} video, or a damaged one ({error})") from error


class _Seen:
    """Frames as viewers show them, and what there is to say of them all, once."""

    def __init__(self, path: Path):
        self._path, self._clear, self._hdr = path, False, ""

    def upright(self, frame: Any) -> npt.NDArray[np.uint8]:
        """A frame in colours of eight bits, shape (H, W, 3), turned as the file says and over white."""
        if frame.width * frame.height > _MAX_PIXELS:
            raise InputError(f"{self._path}: {frame.width} x {frame.height} pixels, at most {_MAX_PIXELS} accepted")
        self._hdr = self._hdr or _HDR.get(int(getattr(frame, "color_trc", 0) or 0), "")
        if any(component.is_alpha for component in frame.format.components):
            pixels = frame.to_ndarray(format="rgba").astype(np.float32)
            alpha = pixels[:, :, 3:] / 255.0
            self._clear = self._clear or bool((alpha < 1.0).any())
            seen = (pixels[:, :, :3] * alpha + 255.0 * (1.0 - alpha)).round().clip(0, 255).astype(np.uint8)
        else:
            seen = frame.to_ndarray(format="rgb24")
        return _turned(seen, frame)

    def tell(self, times: list[float]) -> None:
        """Warn of what a reader may not expect."""
        if self._clear:
            warnings.warn(f"{self._path}: is transparent in places, which lie over white here", stacklevel=4)
        if self._hdr:
            warnings.warn(f"{self._path}: has high dynamic range ({self._hdr}), which is not mapped", stacklevel=4)
        lasts = np.diff(times)
        if len(lasts) and np.isfinite(lasts).all() and lasts.max() > _UNEVEN * max(float(lasts.min()), 1e-9):
            warnings.warn(
                f"{self._path}: its frames last from {1e3 * lasts.min():.0f} to {1e3 * lasts.max():.0f} ms; they are "
                "taken one by one, as if each lasted as long",
                stacklevel=4,
            )


def _turned(pixels: npt.NDArray[np.uint8], frame: Any) -> npt.NDArray[np.uint8]:
    """A frame turned and mirrored as its display matrix says, by quarters of a turn."""
    for one in getattr(frame, "side_data", ()):
        if getattr(one.type, "name", "") == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=5i", bytes(one)[:20])
            break
    else:
        return pixels
    if abs(b) + abs(c) > abs(a) + abs(d):  # x' = c y: rows become columns
        pixels = pixels.transpose(1, 0, 2)
        across, down = c, b
    else:
        across, down = a, d
    pixels = pixels[:, ::-1] if across < 0 else pixels
    return np.ascontiguousarray(pixels[::-1] if down < 0 else pixels)


def picture_of(pixels: npt.NDArray[np.uint8], shape: tuple[int, int, int], path: Path, resize: bool) -> Tensor:
    """A frame as a picture of a shape.

    Args:
        pixels: The frame in colours, shape (h, w, 3).
        shape: (1 or 3, H, W).
        path: What messages call it.
        resize: Whether to scale it; else one of another size is refused.

    Returns:
        The picture in [-1, 1], of the shape.

    Raises:
        InputError: It has another size.
        MissingExtraError: Pillow is not installed.
    """
    from .pictures import pillow

    channels, height, width = shape
    if pixels.shape[:2] != (height, width) and not resize:
        raise InputError(
            f"{path}: the video is {pixels.shape[1]} x {pixels.shape[0]}, the model's samples are {width} x {height}; "
            "resize it, or pass --resize"
        )
    if pixels.shape[:2] != (height, width) or channels == 1:
        image_module = pillow()
        image = image_module.fromarray(pixels)
        image = image.convert("L") if channels == 1 else image
        if image.size != (width, height):
            image = image.resize((width, height), image_module.Resampling.LANCZOS)
        pixels = np.asarray(image)
    values = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1.0
    return values.view(height, width, channels).permute(2, 0, 1)


def _encode(
    file: Any, kind: str, pictures: list[npt.NDArray[np.uint8]], fps: float, sound: tuple[Tensor, int] | None
) -> None:
    av = pyav()
    rate = Fraction(fps).limit_denominator(1001)
    try:
        with av.open(file, "w", format=_MUXERS.get(kind, "mp4")) as container:
            stream = _stream(av, container, kind, pictures[0].shape, rate)
            track = None if sound is None else _track(container, kind, *sound)
            raw = (av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures)
            for k, frame in enumerate(_with_palette(av, raw, pictures[0].shape, rate) if kind == ".gif" else raw):
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


Joined = Mapping[str, Tensor]
"""What a model of videos with their sound decodes to: "video", (B, 1 or 3, F, H, W), and "audio", (B, channels, n)."""
