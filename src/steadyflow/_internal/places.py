"""Where a file is written: at the end of links, into streams, and never in place of either.

A file is made whole under another name and then takes its place. That would cut a link off from its target, a second
name from its file, and put a plain file where a pipe or a device was. Those are written through.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, StorageError

PART = ".part"
"""The suffix of files that are being written."""
_NAMED = 100
"""How many bytes of a file's name are in the one under which it is made; some file systems take names of 143 bytes."""


@dataclass(frozen=True)
class Place:
    """Where a file is to be."""

    path: Path
    """As it was given."""
    target: Path
    """The same without links."""
    there: os.stat_result | None
    """What is there now."""
    descriptor: int | None = None
    """The number of the stream of this process that it is, as /dev/stdout is."""

    @property
    def stream(self) -> bool:
        """Whether it takes bytes and keeps none."""
        pipe = self.there is not None and (stat.S_ISFIFO(self.there.st_mode) or stat.S_ISCHR(self.there.st_mode))
        return pipe or self.descriptor is not None

    @property
    def shared(self) -> bool:
        """Whether the file has other names."""
        return self.there is not None and self.there.st_nlink > 1

    def part(self) -> tuple[Path, bool]:
        """A new, empty file in which to write, and whether it can take the place, else it is to be copied there.

        Raises:
            OSError: None can be made.
        """
        prefix = os.fsencode(self.target.name)[:_NAMED].decode("ascii", "ignore")
        if self.stream:
            return _temporary(None, prefix), False
        self.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _temporary(self.target.parent, prefix), not self.shared
        except PermissionError:
            if self.there is None:
                raise
            return _temporary(None, prefix), False  # the file may be written, its folder may not

    def settle(self, part: Path) -> None:
        """Give a part what the file here has: its owner, where that is allowed, and its mode."""
        if self.there is None:
            os.chmod(part, 0o666 & ~_umask())
            return
        if hasattr(os, "chown"):
            with contextlib.suppress(PermissionError):
                os.chown(part, self.there.st_uid, self.there.st_gid)
        os.chmod(part, stat.S_IMODE(self.there.st_mode))

    def copy(self, part: Path) -> None:
        """Copy a part into the stream, or into the file that has other names.

        Raises:
            OSError: It takes no bytes, or nobody reads the pipe.
        """
        if self.descriptor is not None:
            for printed in (sys.stdout, sys.stderr):
                printed.flush()
            handle = os.dup(self.descriptor)
        elif self.stream:  # at a pipe that nobody reads, this is an error and no waiting
            try:
                handle = os.open(self.path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
            except OSError as error:
                unread = error.errno == errno.ENXIO
                raise (StorageError("a pipe that nobody reads") if unread else error) from None
            os.set_blocking(handle, True)
        else:
            handle = os.open(self.target, os.O_WRONLY | os.O_TRUNC)
        with os.fdopen(handle, "wb") as out, part.open("rb") as source:
            shutil.copyfileobj(source, out)
            if not self.stream:
                out.flush()
                os.fsync(handle)


def find(path: str | Path) -> Place:
    """Find where a file is to be written.

    Args:
        path: As it was given.

    Raises:
        OSError: There is a folder, or something else that takes no bytes; or a link leads nowhere.
        ValueError: It is no path.
    """
    path = Path(path)
    descriptor = _descriptor(path)
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        there = path.stat()
    except FileNotFoundError:
        if path.is_symlink() and not target.parent.is_dir():
            raise StorageError(f"is a link to {target}, whose folder does not exist") from None
        return Place(path, target, None)
    place = Place(path, target, there, descriptor)
    if stat.S_ISDIR(there.st_mode):
        raise StorageError("is a folder, expected the name of a file")
    if not place.stream and not stat.S_ISREG(there.st_mode):
        kind = "socket" if stat.S_ISSOCK(there.st_mode) else "device of blocks"
        raise StorageError(f"is a {kind}, expected a file, a pipe or a stream")
    if descriptor is None and not os.access(path, os.W_OK):
        raise StorageError("is protected against writing")
    return place


def check_writable(path: str | Path, name: str = "out", *, folder: bool = False) -> None:
    """Check, before any work, that a file or the files in a folder can be written; nothing is left there.

    Args:
        path: The file, or the folder.
        name: What the option is called.
        folder: Whether it is a folder, which may be missing.

    Raises:
        InputError: It cannot be written.
    """
    try:
        place = None if folder else find(path)
        if place is not None and place.stream:
            return
        inside = Path(path) if place is None else place.target.parent
        nearest = next(there for there in (inside, *inside.absolute().parents) if os.path.lexists(there))
        if not nearest.is_dir():
            raise StorageError(f"{nearest} is no folder")
        _check_names(Path(path) if place is None else place.target, nearest)
        try:
            tempfile.TemporaryFile(dir=nearest).close()
        except PermissionError as error:
            if place is None or place.there is None:
                raise StorageError(f"{nearest} is no folder that can be written to") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: {str(path)!r} cannot be written: {_why(error)}") from error


def _check_names(path: Path, nearest: Path) -> None:
    """Raise `StorageError` for a name on the way that is longer than the disk takes."""
    if not hasattr(os, "pathconf"):
        return
    most = os.pathconf(nearest, "PC_NAME_MAX")
    for part in path.parts:
        if len(os.fsencode(part)) > most:
            raise StorageError(f"a name of {len(os.fsencode(part))} bytes, at most {most} accepted")


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _descriptor(path: Path) -> int | None:
    """The number of the open file of this process that a path names."""
    for _ in range(40):
        folder = os.path.realpath(path.parent)
        if folder == f"/proc/{os.getpid()}/fd" and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


def _temporary(folder: Path | None, prefix: str) -> Path:
    handle, name = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=PART)
    os.close(handle)
    return Path(name)


def _umask() -> int:
    """The process's file-mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
