"""Sources of the samples that a run works on: read a few at a time, by any process that sees the path."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .._internal import extensions, files
from ..denoisers import Denoiser
from ..denoisers.mixtures import MixtureDenoiser
from ..errors import InputError
from . import arrays
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
    model: Denoiser, path: str | None, n: int | None = None, resize: bool = False, label: int | None = None
) -> Source:
    """Open the samples of a file or folder, or the held-out data that belong to a model.

    Args:
        model: The model that the samples are for.
        path: A picture, a folder of pictures, .npy or .safetensors; by default the held-out data of the model, if we or
            an installed extension package have any. Pictures are encoded where the model works on latents; a file of
            latents is used as it is.
        n: The number of samples, the first ones, at most; by default all, or 16 of the model's own data.
        resize: Whether to scale pictures to the model's size; else pictures of another size are refused.
        label: The class of all samples; of the model's own data, those of this class are taken.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFileError: A file is damaged, or not what its name says.
        InputError: The samples do not fit the model, or the model has no data of its own.
    """
    if path is None and resize:
        raise InputError("resize: held-out data have the model's size; give it for pictures of an input")
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


class Pictures(Source):
    """A picture, or the pictures of a folder in the order of their names.

    Args:
        model: The model that the samples are for.
        path: The file or the folder.
        n: The number of samples, the first ones, at most; all by default.
        resize: Whether to scale pictures to the model's size.
        label: The class of all samples.
    """

    def __init__(self, model: Denoiser, path: str | Path, n: int | None, resize: bool, label: int | None):
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        self._paths = list(_pictures(str(path)))[:n] if path.is_dir() else [path]
        self._model, self._resize, self._label = model, resize, label

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self, start: int, stop: int) -> tuple[Tensor, Labels]:
        shape = getattr(self._model, "image_shape", None) or _shape_of(self._model)
        images = torch.cat([arrays.read(path, shape, resize=self._resize) for path in self._paths[start:stop]])
        encode = getattr(self._model, "encode", None)
        return images if encode is None else encode(images), self._label

    def fingerprint(self) -> str:
        names = "\n".join(f"{path.name} {path.stat().st_size}" for path in self._paths)
        return hashlib.sha256(names.encode()).hexdigest()[:16]


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


def _is_pictures(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() not in (".npy", ".safetensors")


@lru_cache(maxsize=4)
def _pictures(folder: str) -> tuple[Path, ...]:
    return tuple(arrays.pictures(folder))


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
