"""What is in files: hashes of all of it, and what tells at a glance that a file has been written to."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .._internal import files

_DIGITS = 32
_AT_ONCE = 2**20


class Piece(NamedTuple):
    """What some samples are read from: a file or a folder of frames, or some rows of an array."""

    start: int
    """The index of its first sample, or -1 where that is not settled."""
    stop: int
    name: str
    """Of the file in its folder, or of the rows."""
    size: int = 0
    """Of the file, or of all files in the folder, in bytes."""
    time: int = 0
    """When it was last written to, in nanoseconds, as the file system says."""
    digest: str = ""
    """The hash of its content; empty where it is not known."""


def inside(path: Path) -> Iterator[Path]:
    """All files in a folder and below, in the order of their names; of a file, itself.

    Args:
        path: The file or folder.
    """
    if not path.is_dir():
        yield path
        return
    yield from (p for p in sorted(path.rglob("*")) if not p.is_dir())


def digest(path: str | Path) -> str:
    """Hash the content of a file, or the names and contents of all files in a folder.

    Args:
        path: The file or folder.

    Returns:
        Thirty-two hexadecimal digits.

    Raises:
        OSError: It is not there, or cannot be read.
    """
    path, hashed = Path(path), hashlib.sha256()
    for one in inside(path):
        if one != path:
            hashed.update(b"\0" + os.fsencode(one.relative_to(path)) + b"\0")
        if not stat.S_ISREG(one.stat().st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(one))
        with one.open("rb", buffering=0) as file:
            while data := file.read(_AT_ONCE):
                hashed.update(data)
    return hashed.hexdigest()[:_DIGITS]


def digest_of(x: Tensor) -> str:
    """Hash a tensor with its type and shape.

    Args:
        x: The tensor.

    Returns:
        Thirty-two hexadecimal digits.
    """
    return hashlib.sha256(files.content(x)).hexdigest()[:_DIGITS]


def together(paths: Iterable[str | Path]) -> str:
    """Hash the contents of several files and folders, in their order.

    Args:
        paths: The files and folders.

    Returns:
        Thirty-two hexadecimal digits.

    Raises:
        OSError: One is not there, or cannot be read.
    """
    return hashlib.sha256(" ".join(map(digest, paths)).encode()).hexdigest()[:_DIGITS]


def size_and_time(path: str | Path) -> tuple[int, int]:
    """The size of a file, or of all files in a folder, in bytes, and the last time of writing in nanoseconds.

    Args:
        path: The file or folder.

    Raises:
        OSError: It is not there.
    """
    states = [one.stat() for one in inside(Path(path))]
    return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)


def mark(path: str | Path) -> tuple[tuple[int, ...], ...]:
    """What changes when a file, or one in a folder, is written to or replaced.

    Args:
        path: The file or folder.

    Raises:
        OSError: It is not there.
    """
    states = [one.stat() for one in inside(Path(path))]
    return tuple((state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for state in states)
