"""What a run inverts or diagnoses: samples that can be read a few at a time, by any process that sees the path."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._internal import extensions, files
from ..errors import InputError
from . import arrays
from .digits import digits


class Source(ABC):
    """Samples by index, with what is known of them."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, start: int, stop: int) -> tuple[Tensor, Any]:
        """The samples [start, stop) in the model's space, (stop - start, ...), and their labels or captions or None."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that stand for the data."""


def open_source(
    model: Any, path: str | None, n: int | None = None, resize: bool = False, label: int | None = None
) -> Source:
    """Samples of a file or folder, or held-out data of a model that we or an installed extension package know.

    Args:
        model: The model that the samples are for.
        path: A picture, a folder of pictures, .npy or .safetensors; the model's own data by default. Pictures are
            encoded where the model works on latents, a file of latents is taken as it is.
        n: At most so many, the first; by default all, or 16 of the model's own data.
        resize: Scale pictures to the model's size; else others are refused.
        label: The class of all of them; of the model's own data, those of this class are taken.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: A file is not what its name says.
        InputError: The samples do not fit the model, or the model has no data of its own.
    """
    if path is None and resize:
        raise InputError("resize: held-out data have the model's size; it goes with the pictures of an input")
    if path is None:
        found = _held_out(model, 16 if n is None else n, label)
        if len(found) == 0:
            raise InputError(f"label: there are no held-out data of {label}")
        return found
    if n is not None and n < 1:
        raise InputError(f"n: got {n}, expected at least 1")
    if resize and not _is_pictures(Path(path)):
        raise InputError(f"resize: {path} holds no pictures, and nothing else is scaled")
    found = Pictures(model, path, n, resize, label) if _is_pictures(Path(path)) else Rows(model, path, n, label)
    if len(found) == 0:
        raise InputError(f"input: {path} holds no samples")
    return found


class Rows(Source):
    """An array in a file: .npy, which is mapped, or .safetensors."""

    def __init__(self, model: Any, path: str | Path, n: int | None, label: int | None):
        self._path, self._shape, self._label = Path(path), model.shape, label
        self._n = arrays.length(path, model.shape)
        self._n = self._n if n is None else min(n, self._n)

    def __len__(self):
        return self._n

    def rows(self, start, stop):
        return arrays.read(self._path, self._shape, rows=(start, stop)), self._label

    def fingerprint(self):
        return fingerprint_of([self._path])


class Pictures(Source):
    """A picture, or the pictures of a folder in the order of their names."""

    def __init__(self, model: Any, path: str | Path, n: int | None, resize: bool, label: int | None):
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        self._paths = list(_pictures(str(path)))[:n] if path.is_dir() else [path]
        self._model, self._resize, self._label = model, resize, label

    def __len__(self):
        return len(self._paths)

    def rows(self, start, stop):
        shape = getattr(self._model, "image_shape", self._model.shape)
        images = [arrays.read(path, shape, resize=self._resize) for path in self._paths[start:stop]]
        x = torch.cat(images)
        return (self._model.encode(x) if hasattr(self._model, "encode") else x), self._label

    def fingerprint(self):
        names = "\n".join(f"{path.name} {path.stat().st_size}" for path in self._paths)
        return hashlib.sha256(names.encode()).hexdigest()[:16]


class InMemory(Source):
    """Samples in memory."""

    def __init__(self, x: Tensor, given: Any = None):
        self._x, self._given = x, given

    def __len__(self):
        return len(self._x)

    def rows(self, start, stop):
        given = self._given
        return self._x[start:stop], given if given is None or isinstance(given, int) else given[start:stop]

    def fingerprint(self):
        return hashlib.sha256(files.content(self._x)).hexdigest()[:16]


def _held_out(model: Any, n: int, label: int | None) -> Source:
    """Held-out data of a model that we or an extension know, with labels or captions."""
    if n < 1:
        raise InputError(f"n: got {n}, expected at least 1")
    if model.name == "ink":
        from .ink import ink

        pictures = ink("held-out", n, torch.Generator().manual_seed(0))
        return InMemory(model.encode(pictures.images), [pictures.caption(k) for k in range(n)])
    if model.name == "mixture":
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


def _is_pictures(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() not in (".npy", ".safetensors")


@lru_cache(maxsize=4)
def _pictures(folder: str) -> tuple[Path, ...]:
    return tuple(arrays.pictures(folder))


def fingerprint_of(paths: Iterable[str | Path], pieces: int = 64, size: int = 65536) -> str:
    """Sixteen hexadecimal digits that stand for files, and for all files of folders.

    What is hashed of a file is its length, and pieces of it at equal distances, its beginning and end among them.
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
