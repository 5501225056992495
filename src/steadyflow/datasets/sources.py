"""Sources of the samples that a run works on: read a few at a time, by any process that sees the path."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .._internal import extensions, files
from .._internal.kinds import Kind, kind_of
from ..denoisers import Denoiser
from ..denoisers.mixtures import MixtureDenoiser
from ..errors import InputError
from . import arrays, media
from .digits import digits

Labels = int | Tensor | list[str] | None
"""One label for all samples; one label or caption per sample; or None where nothing is known."""


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

    @abstractmethod
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that stand for the data."""


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
        frames: Which frames of videos to take, "start:stop" or "start:stop:stride", from 0; all by default.

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
    else:
        found = Files(model, path, n, resize, label, frames)
    if len(found) == 0:
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

    def __len__(self) -> int:
        return self._n

    def rows(self, start: int, stop: int) -> tuple[Tensor, Labels]:
        return arrays.read(self._path, self._shape, rows=(start, stop)), self._label

    def fingerprint(self) -> str:
        return fingerprint_of([self._path])


class Files(Source):
    """A picture, a video or a sound, or those of a folder in the order of their names (see `media.listed`).

    Args:
        model: The model that the samples are for.
        path: The file or the folder.
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
        self._paths = list(_listed(str(path), model))[:n]
        self._model, self._resize, self._label = model, resize, label
        self._frames = None if frames is None else slice_of(frames)

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self, start: int, stop: int) -> tuple[Tensor, Labels]:
        how = {"resize": self._resize, "frames": self._frames}
        images = torch.cat([media.read(path, self._model, **how) for path in self._paths[start:stop]])
        encode = getattr(self._model, "encode", None)
        return images if encode is None else encode(images), self._label

    def fingerprint(self) -> str:
        inside = [p for path in self._paths for p in (sorted(path.iterdir()) if path.is_dir() else [path])]
        names = "\n".join(f"{path.name} {path.stat().st_size}" for path in inside)
        return hashlib.sha256(names.encode()).hexdigest()[:16]


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
        raise InputError(f"frames: got {frames!r}, expected start:stop or start:stop:stride, counted from 0")
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
        return hashlib.sha256(files.content(self._x)).hexdigest()[:16]


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


def _listed(path: str, model: Denoiser) -> tuple[Path, ...]:
    """The samples behind a path; folders are looked through once for each kind of model."""
    key = path, kind_of(model)
    if not Path(path).is_dir():
        return tuple(media.listed(path, model))
    if key not in _FOLDERS:
        while len(_FOLDERS) >= _KEPT:
            _FOLDERS.pop(next(iter(_FOLDERS)))
        _FOLDERS[key] = tuple(media.listed(path, model))
    return _FOLDERS[key]


_FOLDERS: dict[tuple[str, Kind], tuple[Path, ...]] = {}
_KEPT = 4


def fingerprint_of(paths: Iterable[str | Path], pieces: int = 64, size: int = 65536) -> str:
    """Hash files, and all files in folders.

    What is hashed of a file is its length, and pieces of it at equal distances, among them its beginning and its end.

    Args:
        paths: The files and folders.
        pieces: The number of pieces of a file, at least 2.
        size: The length of a piece in bytes.

    Returns:
        Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256()
    for given in map(Path, paths):
        for path in sorted(given.rglob("*")) if given.is_dir() else [given]:
            if path.is_dir():
                continue
            length = path.stat().st_size
            digest.update(str(length).encode())
            with path.open("rb") as file:
                for k in range(pieces):
                    file.seek(max(0, length - size) * k // (pieces - 1))
                    digest.update(file.read(size))
    return digest.hexdigest()[:16]
