"""Videos: files read frame by frame by PyAV, as viewers show them.

The kind of a file is what its suffix says, so that a playlist that calls itself a video opens nothing else.
"""

import itertools
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import CorruptFileError, InputError, SteadyflowError
from .files import check_regular
from .imports import needing

VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".gif")
"""The suffixes of the videos that are read and written; ".gif" is a picture, too."""
_DEMUXERS = {".webm": "matroska", ".mkv": "matroska", ".gif": "gif"}
_MAX_PIXELS = 64_000_000
_UNEVEN = 1.5
"""How many times as long as the shortest a frame may last before the file counts as one of uneven frames."""
_HDR = {16: "PQ", 18: "HLG"}


def pyav() -> ModuleType:
    """PyAV, the module `av`.

    Raises:
        MissingExtraError: It is not installed.
    """
    with needing("PyAV", "av", extra="video", purpose="reading and writing videos"):
        import av
        import av.error
        import av.filter
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
        if container.streams.audio:
            warnings.warn(f"{path}: has a sound, which is left out", stacklevel=4)
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
            f"{path}: has {len(found)} frame{'s' * (len(found) != 1)}{which}, but the model's videos have {count}; "
            "give a longer one, or a model of fewer frames"
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


def count(path: Path) -> int:
    """How many frames a video has, by decoding all of it.

    Args:
        path: The file.

    Raises:
        CorruptFileError: The file is damaged, or not what its name says.
        MissingExtraError: PyAV is not installed.
    """
    with _opened(path) as (container, stream):
        return sum(1 for _ in container.decode(stream))


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
    check_regular(path)
    kind = _DEMUXERS.get(path.suffix.lower(), "mov")
    try:
        with path.open("rb") as file:
            try:
                with av.open(file, format=kind, metadata_errors="ignore") as container:
                    yield container, _stream_of(container, path)
            except OSError as error:  # of places that are not in the file
                if isinstance(error, SteadyflowError):
                    raise
                raise CorruptFileError(f"{path}: no {path.suffix.lower()} video, or a damaged one ({error})") from error
    except (av.error.FFmpegError, EOFError, OverflowError, ZeroDivisionError) as error:
        raise CorruptFileError(f"{path}: no {path.suffix.lower()} video, or a damaged one ({error})") from error


def _stream_of(container: Any, path: Path) -> Any:
    """The first video in a file, of a size that can be held."""
    if not container.streams.video:
        raise InputError(f"{path}: has no video in it")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise InputError(f"{path}: is stored by a codec that this FFmpeg does not know")
    if stream.width * stream.height > _MAX_PIXELS:
        raise InputError(f"{path}: {stream.width} x {stream.height} pixels, at most {_MAX_PIXELS} accepted")
    stream.thread_type = "AUTO"
    return stream


class _Seen:
    """Frames as viewers show them, and what there is to say of them all, once."""

    def __init__(self, path: Path):
        self._path, self._clear, self._hdr = path, False, ""

    def upright(self, frame: Any) -> npt.NDArray[np.uint8]:
        """A frame in colours of eight bits, shape (H, W, 3), turned as the file says and over white."""
        if frame.width * frame.height > _MAX_PIXELS:
            raise InputError(f"{self._path}: {frame.width} x {frame.height} pixels, at most {_MAX_PIXELS} accepted")
        if getattr(frame, "is_corrupt", False):
            raise CorruptFileError(f"{self._path}: a frame is damaged")
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
