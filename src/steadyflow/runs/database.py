"""The small databases of a run's folder, and the lock of the process that works on it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ..errors import CorruptFileError, InputError, StorageError

PATIENCE = 60.0
"""Seconds to wait for a database that another program holds."""


@contextlib.contextmanager
def connected(path: Path, patience: float = PATIENCE) -> Iterator[sqlite3.Connection]:
    """Make a context with a connection to a database, which says what went wrong in words.

    Args:
        path: The file.
        patience: How many seconds to wait where another program holds it.

    Yields:
        The connection, in which each statement is a transaction unless one is begun.

    Raises:
        StorageError: It cannot be used, or another program holds it for longer.
        CorruptFileError: It is damaged.
    """
    connection = None
    try:
        connection = sqlite3.connect(os.fsencode(path), timeout=patience, isolation_level=None)
        yield connection
    except sqlite3.OperationalError as error:
        raise StorageError(f"{path}: {reason(error, patience)}; what is done stays") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError) as error:
        raise CorruptFileError(f"{path}: damaged ({error}); delete it, and the same command goes on") from error
    finally:
        if connection is not None:
            connection.close()


def is_held(error: sqlite3.OperationalError) -> bool:
    """Whether a statement failed because another program holds the database."""
    return "locked" in str(error)


def reason(error: sqlite3.OperationalError, patience: float = PATIENCE) -> str:
    """Why a database could not be used, in words.

    Args:
        error: What was raised.
        patience: How many seconds were waited.
    """
    if is_held(error):
        return f"another program, such as a database browser, has held it for {patience:g} s ({error}); close that"
    return f"cannot be used ({error})"


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Make a context in which this process alone holds a lock, which the system releases when the process dies.

    The lock belongs to the open file and not to the process, so that reading or copying the file elsewhere in the
    process does not release it.

    Args:
        path: The file to lock, which is made.
        refusal: What to say where another process holds it.

    Raises:
        InputError: Another process, or another part of this one, holds it.
        StorageError: The file cannot be made, or its file system knows no locks.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made ({error})") from error
    try:
        try:
            _take(handle)
        except BlockingIOError as error:
            raise InputError(refusal) from error
        except OSError as error:
            raise StorageError(f"{path}: cannot be locked ({error}); give a folder on another file system") from error
        yield
    finally:
        os.close(handle)


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
