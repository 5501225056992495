"""Sources of the samples that a run works on: read a few at a time, by any process that sees the path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._internal import extensions
from .._internal.kinds import kind_of
from ..denoisers import Denoiser
from ..denoisers.mixtures import MixtureDenoiser
from ..errors import CorruptFileError, InputError
from . import arrays, contents, media
from .contents import Piece
from .digits import digits

Labels = int | Tensor | list[str] | None
"""One label for all samples; one label or caption per sample; or None where nothing is known."""


CHUNKS = "chunks"
"""The choice of frames that cuts one film into samples of the model's length."""


class Read(NamedTuple):
    """Some samples, as far as they could be read."""

    x: Tensor | None
    """One row per sample, of which those in `bad` stand for nothing; None where none could be read."""
    given: Any
    """What is known of them."""
    bad: Mapping[int, Exception]
    """Why a sample could not be read, by its index."""
    digests: Mapping[int, str]
    """The hash of what was read, by the index of the first sample of a piece."""


class Source(ABC):
    """Samples by index, with their labels or captions."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> tuple[Tensor, Labels]:
        """Read some of the samples.

        Args:
            start: The index of the first.
            stop: The index after the last.

        Returns:
            The samples in the model's space, shape (stop - start, ...), and what is known of them.
        """

    def read(self, start: int, stop: int, pieces: Sequence[Piece] = ()) -> Read:
        """Read what can be read of some of the samples.

        Args:
            start: The index of the first.
            stop: The index after the last.
            pieces: What they were when they were listed, if they were; what has changed since is not read.
        """
        return Read(*self.rows(start, stop), {}, {})

    def pieces(self, block: int) -> Iterator[Piece] | None:
        """What the samples are read from, in any order and not hashed; None where nothing is read from files.

        Args:
            block: How many rows of an array make a piece.
        """
        return None

    def total(self) -> int:
        """How many inputs there are, those beyond the number that was asked for included."""
        return len(self)

    def measured(self, piece: Piece, content: bool = True) -> Piece:
        """A piece as it is now: its size, its time and, if that is wanted, its hash.

        Args:
            piece: The piece.
            content: Whether to hash it.

        Raises:
            OSError: It is gone, or cannot be read.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that stand for data that are in memory."""
        return ""


def open_source(
    model: Denoiser,
    path: str | None,
    n: int | None = None,
    resize: bool = False,
    label: int | None = None,
    frames: str | None = None,
) -> Source:
    """Open the samples of a file or folder, or the held-out data that belong to a model.

    Args:
        model: The model that the samples are for.
        path: A picture, a video, a sound, or a folder of them (see `media.listed`), .npy or .safetensors; by default
            the held-out data of the model, if we or an installed extension package have any. Pictures, videos and
            sounds are encoded where the model works on latents; a file of latents is used as it is.
        n: The number of samples, the first ones, at most; by default all, or 16 of the model's own data.
        resize: Whether to scale pictures and frames to the model's size and to resample sounds to its rate; else
            others are refused.
        label: The class of all samples; of the model's own data, those of this class are taken.
        frames: Which frames of videos to take, "start:stop" or "start:stop:stride", from 0; all by default. Or
            "chunks": all of one film, cut into samples of the model's length (see `films.Film`).

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: A file is damaged, or not what its name says.
        InputError: The samples do not fit the model, or the model has no data of its own.
    """
    if path is None and resize:
        raise InputError("resize: held-out data have the model's size; give it for pictures of an input")
    if frames is not None and (path is None or media.is_array(path) or kind_of(model) != "videos"):
        raise InputError("frames: says which frames of videos to take, and the input holds none")
    if path is None:
        found = _held_out(model, 16 if n is None else n, label)
        if len(found) == 0:
            raise InputError(f"label: there are no held-out data of {label}")
        return found
    if n is not None and n < 1:
        raise InputError(f"n: got {n}, expected at least 1")
    if media.is_array(path):
        if resize:
            raise InputError(f"resize: {path} holds no pictures, and nothing else is scaled")
        found = Rows(model, path, n, label)
    elif frames == CHUNKS:
        from .films import Film

        found = Film(model, path, n, resize, label)
    else:
        found = Files(model, path, n, resize, label, frames)
    if not isinstance(found, Files) and len(found) == 0:
        raise InputError(f"input: {path} holds no samples")
    return found


class Rows(Source):
    """An array in a file: .npy, which is mapped, or .safetensors.

    Args:
        model: The model that the samples are for.
        path: The file.
        n: The number of samples, the first ones, at most; all by default.
        label: The class of all samples.
    """

    def __init__(self, model: Denoiser, path: str | Path, n: int | None, label: int | None):
        self._path, self._shape, self._label = Path(path), _shape_of(model), label
        self._n = arrays.length(path, self._shape)
        self._n = self._n if n is None else min(n, self._n)
        self._mark = contents.mark(self._path)

    def __len__(self) -> int:
        return self._n

    def rows(self, start: int, stop: int) -> tuple[Tensor, Labels]:
        found = self._part(start, stop)
        if contents.mark(self._path) != self._mark:
            raise InputError(f"input: {self._path} was changed while it was being read")
        return found, self._label

    def read(self, start: int, stop: int, pieces: Sequence[Piece] = ()) -> Read:
        if not pieces:
            return Read(*self.rows(start, stop), {}, {})
        bad, digests, found = dict[int, Exception](), dict[int, str](), dict[Piece, Tensor]()
        for piece in pieces:
            try:
                x = self._part(piece.start, piece.stop)
                if len(x) != piece.stop - piece.start:
                    raise InputError(f"input: {piece.name} are gone, as {self._path} is shorter than it was")
                digests[piece.start] = contents.digest_of(x)
                _check_same(piece, digests[piece.start], self._path)
                found[piece] = x
            except READING as error:
                bad |= dict.fromkeys(range(max(start, piece.start), min(stop, piece.stop)), error)
        if not found:
            return Read(None, self._label, bad, digests)
        like = next(iter(found.values()))
        parts = [found.get(p, like.new_zeros(p.stop - p.start, *self._shape)) for p in pieces]
        first = pieces[0].start
        return Read(torch.cat(parts)[start - first : stop - first], self._label, bad, digests)

    def pieces(self, block: int) -> Iterator[Piece]:
        for start in range(0, self._n, block):
            stop = min(start + block, self._n)
            yield Piece(start, stop, f"{self._path.name}, rows {start} to {stop - 1}")

    def measured(self, piece: Piece, content: bool = True) -> Piece:
        size, time = contents.size_and_time(self._path)
        digest = contents.digest_of(self._part(piece.start, piece.stop)) if content else piece.digest
        return piece._replace(size=size, time=time, digest=digest)

    def _part(self, start: int, stop: int) -> Tensor:
        return arrays.read(self._path, self._shape, rows=(start, stop))


class Files(Source):
    """A picture, a video or a sound, or those of a folder in the order of their names (see `media.listed`).

    Args:
        model: The model that the samples are for.
        path: The file or the folder; a folder is looked through where something is asked that needs it, so that who is
            given its pieces never looks.
        n: The number of samples, the first ones, at most; all by default.
        resize: Whether to scale them to the model's size and rate.
        label: The class of all samples.
        frames: Which frames of videos to take, as in `open_source`.
    """

    def __init__(
        self,
        model: Denoiser,
        path: str | Path,
        n: int | None,
        resize: bool,
        label: int | None,
        frames: str | None = None,
    ):
        self._path, self._n = Path(path), n
        self._model, self._resize, self._label = model, resize, label
        self._frames = None if frames is None else slice_of(frames)
        if not self._path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")

    @cached_property
    def _paths(self) -> list[Path]:
        return media.listed(self._path, self._model)[: self._n]

    @cached_property
    def _total(self) -> int:
        return sum(1 for _ in media.scanned(self._path, self._model))

    def total(self) -> int:
        return self._total

    def __len__(self) -> int:
        return self._total if self._n is None else min(self._n, self._total)

    def rows(self, start: int, stop: int) -> tuple[Tensor, Labels]:
        found = [self._one(k, path) for k, path in enumerate(self._paths[start:stop], start)]
        return self._encoded(torch.cat(found)), self._label

    def read(self, start: int, stop: int, pieces: Sequence[Piece] = ()) -> Read:
        bad, digests, found = dict[int, Exception](), dict[int, str](), dict[int, Tensor]()
        listed = {piece.start: piece for piece in pieces}
        for k in range(start, stop):
            piece = listed.get(k)
            path = self._paths[k] if piece is None else self._at(piece)
            try:
                before = contents.mark(path) if piece is not None else None
                x = self._one(k, path)
                if piece is not None:
                    digests[k] = contents.digest(path)  # after the reading, so that what was read is what is hashed
                    _check_same(piece, digests[k], path)
                    if contents.mark(path) != before:
                        raise InputError(f"{path}: was changed while it was being read")
                found[k] = x
            except READING as error:
                bad[k] = error
        if not found:
            return Read(None, self._label, bad, digests)
        like = next(iter(found.values()))
        images = torch.cat([found.get(k, torch.zeros_like(like)) for k in range(start, stop)])
        return Read(self._encoded(images), self._label, bad, digests)

    def pieces(self, block: int) -> Iterator[Piece]:
        for name in self.names():
            yield Piece(-1, -1, name)

    def names(self) -> Iterator[str]:
        """The names of all files in the folder that the model takes, in any order; an empty one for a single file."""
        return media.scanned(self._path, self._model)

    def measured(self, piece: Piece, content: bool = True) -> Piece:
        path = self._at(piece)
        size, time = contents.size_and_time(path)
        return piece._replace(size=size, time=time, digest=contents.digest(path) if content else piece.digest)

    def _at(self, piece: Piece) -> Path:
        return self._path / piece.name if piece.name else self._path

    def _one(self, k: int, path: Path) -> Tensor:
        """Sample k, which is in a file."""
        return media.read(path, self._model, resize=self._resize, frames=self._frames)

    def _encoded(self, images: Tensor) -> Tensor:
        encode = getattr(self._model, "encode", None)
        return images if encode is None else encode(images)


READING = (InputError, CorruptFileError, OSError, MemoryError)
"""What a file that is damaged, gone, too large or of another kind raises where it is read."""


def _check_same(piece: Piece, digest: str, path: Path) -> None:
    """Raise `InputError` where a piece is not what it was when it was listed."""
    unknown = not piece.digest and piece.size >= 0
    if (piece.digest and piece.digest != digest) or (unknown and contents.size_and_time(path) != piece[3:5]):
        raise InputError(f"{piece.name}: was changed after the run began")


def slice_of(frames: str) -> slice:
    """A choice of frames, such as "16:48" or "::2", as a slice.

    Args:
        frames: The choice.

    Raises:
        InputError: It is none.
    """
    parts = frames.split(":")
    try:
        start, stop, stride = (int(v) if v.strip() else None for v in (*parts, *[""] * (3 - len(parts))))
    except ValueError:
        start = stop = stride = -1
    if len(parts) not in (2, 3) or any(v is not None and v < 0 for v in (start, stop)):
        raise InputError(f"frames: got {frames!r}, expected start:stop or start:stop:stride, counted from 0, or chunks")
    if (stride is not None and stride < 1) or (stop is not None and stop <= (start or 0)):
        raise InputError(f"frames: got {frames!r}, expected start below stop and a stride of at least 1")
    return slice(start, stop, stride)


class InMemory(Source):
    """Samples in memory.

    Args:
        x: The samples, shape (n, ...).
        given: What is known of them.
    """

    def __init__(self, x: Tensor, given: Labels = None):
        self._x, self._given = x, given

    def __len__(self) -> int:
        return len(self._x)

    def rows(self, start: int, stop: int) -> tuple[Tensor, Labels]:
        given = self._given
        return self._x[start:stop], given if given is None or isinstance(given, int) else given[start:stop]

    def fingerprint(self) -> str:
        return contents.digest_of(self._x)[:16]


def _shape_of(model: Denoiser) -> tuple[int, ...]:
    """The shape of one of the model's samples."""
    if model.shape is None:
        raise InputError(f"model: the shape of the samples of {model.name!r} is not known; give Denoiser(shape=...)")
    return model.shape


def _held_out(model: Denoiser, n: int, label: int | None) -> Source:
    """Held-out data of a model that we or an extension know, with labels or captions."""
    if n < 1:
        raise InputError(f"n: got {n}, expected at least 1")
    if model.name == "ink":
        from .ink import ink

        pictures = ink("held-out", n, torch.Generator().manual_seed(0))
        encode = getattr(model, "encode")  # noqa: B009  # a pipeline's
        return InMemory(encode(pictures.images), [pictures.caption(k) for k in range(n)])
    if model.name == "mixture" and isinstance(model, MixtureDenoiser):
        return InMemory(model.mixture.sample(n, label=label), label)
    known = digits if model.name == "digits" else extensions.find(extensions.DATASETS, model.name)
    if known is None:
        hint = extensions.hint(extensions.DATASETS, model.name)
        why = f"the held-out data of {hint}" if hint else "this model has no data of its own; give --input"
        raise InputError(f"input: {why}")
    images, labels = known("held-out")
    if label is not None:
        images, labels = images[labels == label], labels[labels == label]
    return InMemory(images[:n], labels[:n])
