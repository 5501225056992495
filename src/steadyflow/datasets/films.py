"""Films that are longer than a model's videos: cut into consecutive samples, and joined again.

Chunk k begins at frame k F, where the model's videos have F frames; the last chunk ends with the film, so that it may
begin among the frames of the one before. Those it shares with it are dropped where the chunks are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from .._internal import video_writing, videos
from .._internal.kinds import decoded_shape
from .._internal.videos import VIDEOS
from ..denoisers import Denoiser
from ..errors import InputError
from . import media
from .contents import Piece
from .sources import Files


class Film(Files):
    """The chunks of one film: a video, or a folder with its frames.

    Args:
        model: The model of videos that the chunks are for.
        path: The film, or a folder that holds nothing else.
        n: The number of chunks, the first ones, at most; all by default.
        resize: Whether to scale frames to the model's size.
        label: The class of all chunks.

    Raises:
        InputError: There are several films.
    """

    def __init__(self, model: Denoiser, path: str | Path, n: int | None, resize: bool, label: int | None):
        super().__init__(model, path, n, resize, label)
        films = media.listed(path, model)
        if len(films) > 1:
            raise InputError(f"frames: chunks are cut of one film, and {path} holds {len(films)}; give one of them")
        self._film, self._length = films[0], decoded_shape(model)[1]

    @cached_property
    def starts(self) -> list[int]:
        """The first frame of each chunk, those beyond the number that was asked for included."""
        is_video = self._film.suffix.lower() in VIDEOS and not self._film.is_dir()
        total = videos.count(self._film) if is_video else len(media.stills_in(self._film))
        return starts_of(total, self._length, self._film)

    @cached_property
    def _paths(self) -> list[Path]:
        return [self._film] * len(self.starts)

    @cached_property
    def _total(self) -> int:
        return len(self.starts)

    def _one(self, k: int, path: Path) -> Tensor:
        first = self.starts[k]
        return media.read(path, self._model, resize=self._resize, frames=slice(first, first + self._length))

    def pieces(self, block: int) -> Iterator[Piece]:
        for k, first in enumerate(self.starts[: self._n]):
            yield Piece(k, k + 1, f"{self._film.name}, frames {first} to {first + self._length - 1}")

    def names(self) -> Iterator[str]:
        return iter(())  # a film has no chunks beyond those that it is cut into

    def _at(self, piece: Piece) -> Path:
        return self._film


def starts_of(total: int, length: int, path: Path) -> list[int]:
    """The first frames of the chunks of a film.

    Args:
        total: How many frames the film has.
        length: How many a chunk has.
        path: What messages call the film.

    Raises:
        InputError: The film is shorter than a chunk.
    """
    if total < length:
        raise InputError(f"{path}: has {total} frames, but the model's videos have {length}; give a longer one")
    return [min(first, total - length) for first in range(0, total, length)]


def joined(chunks: Iterable[tuple[int, Tensor]]) -> Iterator[Tensor]:
    """Chunks as one film, without the frames that an earlier chunk has; grey where one is missing between others.

    Args:
        chunks: The first frame of each and its frames, (C, F, H, W), in order.

    Yields:
        The film part by part, each (1, C, frames, H, W).
    """
    at = 0
    for first, x in chunks:
        if first > at:
            yield torch.zeros(1, len(x), first - at, *x.shape[2:], dtype=x.dtype)
        at, known = first + x.shape[1], max(0, at - first)
        yield x[None, :, known:]


def write(path: str | Path, film: Iterator[Tensor], fps: float) -> None:
    """Write a film that is never in memory as a whole: to a video, or to a folder with a folder of its frames.

    Args:
        path: The file, of a kind that `media.write` knows, or a name without a suffix.
        film: Parts of the film in order, each (1, C, frames, H, W), in [-1, 1]; at least one.
        fps: The frames per second.

    Raises:
        StorageError: It cannot be written.
        MissingExtraError: The package that writes it is not installed.
    """
    path = Path(path)
    if path.suffix:
        head = next(film)
        video_writing.write_parts(path, chain([head], film), (int(head.shape[-2]), int(head.shape[-1])), fps)
        return
    media.write_frames(path / f"{0:09d}", film)
