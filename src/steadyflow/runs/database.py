"""The small databases of a run's folder, and the lock of the process that works on it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import CorruptFileError, InputError, StorageError

PATIENCE = 60.0
"""Seconds to wait for a database that another program holds."""


class HeldError(StorageError):
    """Another program holds a database for longer than was waited."""


class Database:
    """A database of a run, whose errors say what is wrong in words.

    Each statement is a transaction unless one is begun.

    Args:
        path: The file.
        patience: How many seconds to wait where another program holds it.

    Raises:
        StorageError: It cannot be used, or (`HeldError`) another program holds it for longer.
        CorruptFileError: It is damaged.
    """

    def __init__(self, path: Path, patience: float = PATIENCE):
        self.path, self._patience = path, patience
        with self._in_words():
            self._base = sqlite3.connect(os.fsencode(path), timeout=patience, isolation_level=None)

    def wait_for(self, seconds: float) -> None:
        """Wait so long, from now on, where another program holds it."""
        self._patience = seconds
        self.execute(f"pragma busy_timeout={int(1000 * seconds)}")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows that a statement gives."""
        with self._in_words():
            return self._base.execute(statement, values).fetchall()

    def all_or_none(self, statements: Iterable[tuple[str, Sequence[Any]]]) -> None:
        """Carry statements out in one transaction."""
        with self._in_words():
            if self._base.in_transaction:  # left by an interrupt
                self._base.execute("rollback")
            try:
                self._base.execute("begin immediate")
                for statement, values in statements:
                    self._base.execute(statement, values)
                self._base.execute("commit")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("rollback")
                raise

    def many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Carry a statement out with each of several rows, in one transaction."""
        self.all_or_none((statement, row) for row in rows)

    def close(self) -> None:
        """Close it."""
        self._base.close()

    def damaged(self, why: object) -> CorruptFileError:
        """The error that says that it is damaged."""
        return CorruptFileError(f"{self.path}: damaged ({why}); delete it, and the same command goes on")

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            words = str(error)
            if "locked" in words:
                raise HeldError(
                    f"{self.path}: another program, such as a database browser, has held it for {self._patience:g} s "
                    f"({words}); close that; what is done stays"
                ) from error
            if "no such" in words or "decode" in words or "no column" in words:
                raise self.damaged(error) from error
            raise StorageError(f"{self.path}: cannot be used ({error}); what is done stays") from error
        except (sqlite3.DatabaseError, OverflowError) as error:
            raise self.damaged(error) from error


@contextlib.contextmanager
def connected(path: Path, patience: float = PATIENCE) -> Iterator[Database]:
    """Make a context with a database, which is closed at its end.

    Args:
        path: The file.
        patience: How many seconds to wait where another program holds it.
    """
    base = Database(path, patience)
    try:
        yield base
    finally:
        base.close()


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Make a context in which this process alone holds a lock, which the system releases when the process dies.

    The lock belongs to the open file and not to the process, so that reading or copying the file elsewhere in the
    process does not release it.

    Args:
        path: The file to lock, which is made, and its folder with it.
        refusal: What to say where another process holds it.

    Raises:
        InputError: Another process, or another part of this one, holds it.
        StorageError: The file cannot be made, or its file system knows no locks.
    """
    handle = None
    while handle is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # another process has removed the folder in between
        except OSError as error:
            raise StorageError(f"{path.parent}: cannot be made ({error})") from error
        try:
            _take(handle)
            if not _is_there(handle, path):  # another process had it, and has removed it
                os.close(handle)
                handle = None
        except BlockingIOError as error:
            os.close(handle)
            raise InputError(refusal) from error
        except OSError as error:
            os.close(handle)
            raise StorageError(f"{path}: cannot be locked ({error}); give a folder on another file system") from error
    _HANDLES.add(handle)
    try:
        yield
    finally:
        _HANDLES.discard(handle)
        with contextlib.suppress(OSError):  # closed in a child
            os.close(handle)


_HANDLES: set[int] = set()


def _let_go() -> None:
    """Close in a forked process what the other holds, which would keep the lock after that has died."""
    while _HANDLES:
        with contextlib.suppress(OSError):
            os.close(_HANDLES.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _is_there(handle: int, path: Path) -> bool:
    """Whether an open file is the one that a path names."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _take(handle: int) -> None:
    """Lock an open file, or raise `BlockingIOError` where another holds it."""
    try:
        import fcntl
    except ImportError:
        import msvcrt  # where there is no fcntl

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError as error:
            raise BlockingIOError(str(error)) from error
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
