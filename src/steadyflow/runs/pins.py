"""The list of what a run works on: settled once, kept in the run's folder, and handed out row by row.

Its rows are *pieces* (see `datasets.contents`): files in the order of their names, or stretches of an array, each with
its size, its time and the hash of its content. Nobody lists or counts anything after it; who reads a piece compares
what was read with its hash. The list lies in a database, so that millions of inputs need no memory.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from .._internal import files
from ..datasets.contents import Piece
from ..datasets.sources import Source
from ..errors import InputError, StorageError

CHECKS = ("content", "times")
"""How inputs are compared with the list: by hashes of all of their content, or by names, sizes and times alone."""
_TABLE = """create table pieces (start integer primary key, stop integer not null, name blob not null,
size integer not null, time integer not null, digest text not null)"""
_AT_ONCE = 4096
_THREADS = min(8, (os.cpu_count() or 1) + 2)
Told = Callable[[int], object]
"""Is told of so many more pieces."""


@dataclass
class Changes:
    """How inputs differ from the list."""

    changed: list[Piece] = field(default_factory=list)
    """Those of another content, as they are now."""
    gone: list[Piece] = field(default_factory=list)
    """Those that are not there, or cannot be read, as they were."""
    more: list[str] = field(default_factory=list)
    """Names that are not in the list."""


def make(path: Path, data: Source, n: int, block: int, *, content: bool, told: Told) -> None:
    """Write the list of the first n samples of a source; a list that is there is replaced whole or not at all.

    Args:
        path: The file of the list.
        data: The source.
        n: How many samples.
        block: How many rows of an array make a piece.
        content: Whether to hash the pieces.
        told: Is told of the progress.

    Raises:
        StorageError: It cannot be written.
        InputError: The source has no such list, or fewer samples.
    """
    with files.replacing(path) as part:
        try:
            base = sqlite3.connect(os.fsencode(part), isolation_level=None)
            try:
                base.execute("pragma cache_size=-65536")
                base.execute(_TABLE)
                base.execute("begin")
                for batch in _batches(_measured(data, _settled(base, data, n, block), content, told)):
                    base.executemany("insert into pieces values (?, ?, ?, ?, ?, ?)", map(_row, batch))
                base.execute("commit")
            finally:
                base.close()
        except sqlite3.Error as error:
            raise StorageError(f"{path}: could not be written ({error})") from error


def _settled(base: sqlite3.Connection, data: Source, n: int, block: int) -> Iterator[Piece]:
    """The pieces of a source with their places: in the order of their names where they have none of their own."""
    found = data.pieces(block)
    if found is None:
        raise InputError("input: nothing is read from files")
    first = next(found)
    if first.start >= 0:
        yield first
        yield from found
        return
    base.execute("create temp table names (name blob primary key) without rowid")
    base.execute("insert into temp.names values (?)", (os.fsencode(first.name),))
    for batch in _batches(found):
        base.executemany("insert into temp.names values (?)", ((os.fsencode(piece.name),) for piece in batch))
    rows = base.execute("select name from temp.names order by name limit ?", (n,))
    for k, (name,) in enumerate(rows):
        yield Piece(k, k + 1, os.fsdecode(name))


def _measured(data: Source, pieces: Iterable[Piece], content: bool, told: Told) -> Iterator[Piece]:
    """The pieces with their sizes, times and hashes, in their order; one that cannot be read has none."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[Piece]] = deque()
        for piece in pieces:
            waiting.append(pool.submit(_one, data, piece, content))
            if len(waiting) >= 16 * _THREADS:
                yield waiting.popleft().result()
                told(1)
        while waiting:
            yield waiting.popleft().result()
            told(1)


def _one(data: Source, piece: Piece, content: bool) -> Piece:
    try:
        return data.measured(piece, content)
    except (OSError, ValueError):
        return piece._replace(size=-1, time=0, digest="")  # what is wrong with it is said where it is needed


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    rest = iter(pieces)
    while batch := list(islice(rest, _AT_ONCE)):
        yield batch


def _row(piece: Piece) -> tuple[object, ...]:
    return (piece.start, piece.stop, os.fsencode(piece.name), piece.size, piece.time, piece.digest)


def _piece(row: tuple[int, int, bytes, int, int, str]) -> Piece:
    start, stop, name, size, time, digest = row
    return Piece(start, stop, os.fsdecode(name), size, time, digest)


class Pins:
    """A list that is there.

    Args:
        base: A connection to it.
    """

    def __init__(self, base: sqlite3.Connection):
        self._base = base

    def between(self, start: int, stop: int) -> list[Piece]:
        """The pieces of the samples [start, stop), in order."""
        rows = self._base.execute(
            "select * from pieces where start < ? and start >= "
            "(select coalesce(max(start), 0) from pieces where start <= ?) order by start",
            (stop, start),
        )
        return list(map(_piece, rows))

    def __len__(self) -> int:
        return int(self._base.execute("select count(*) from pieces").fetchone()[0])

    def all(self) -> Iterator[Piece]:
        """All pieces in order, a few at a time."""
        at = -1
        while rows := self._base.execute(
            "select * from pieces where start > ? order by start limit ?", (at, _AT_ONCE)
        ).fetchall():
            yield from map(_piece, rows)
            at = rows[-1][0]

    def changes(self, data: Source, block: int, *, content: bool, told: Told, there: int | None) -> Changes:
        """Compare all pieces with what is there now.

        Args:
            data: The source as it is now.
            block: How many rows of an array make a piece.
            content: Whether by hashes; else by sizes and times.
            told: Is told of the progress.
            there: How many inputs there were when the list was made, where those that have come are to be found.

        Returns:
            What differs.
        """
        found, known = Changes(), list[Piece]()
        for old, now in zip(self.all(), _measured(data, self.all(), content, told), strict=True):
            if now.size < 0:
                if old.size >= 0 or old.digest:
                    found.gone.append(old)
            elif content and old.digest:
                if now.digest != old.digest:
                    found.changed.append(now)
            elif (now.size, now.time) != (old.size, old.time) and old.size >= 0:
                found.changed.append(now)
            elif content or old.size < 0:
                known.append(now)
        self.update(known)
        if there is not None and data.total() + len(found.gone) > there:
            found.more = [piece.name for piece in data.pieces(block) or () if piece.start < 0 and not self._has(piece)]
        return found

    def _has(self, piece: Piece) -> bool:
        self._base.execute("create index if not exists names on pieces (name)")
        row = self._base.execute("select 1 from pieces where name = ?", (os.fsencode(piece.name),)).fetchone()
        return row is not None

    def update(self, pieces: Iterable[Piece]) -> None:
        """Enter pieces as they are now, in place of what is there of them."""
        for batch in _batches(pieces):
            self._base.execute("begin immediate")
            self._base.executemany("insert or replace into pieces values (?, ?, ?, ?, ?, ?)", map(_row, batch))
            self._base.execute("commit")

    def learn(self, digests: Mapping[int, str]) -> None:
        """Enter the hashes of pieces that were not hashed when the list was made.

        Args:
            digests: The hashes by the first samples.
        """
        self._base.execute("begin immediate")
        rows = [(digest, start) for start, digest in digests.items()]
        self._base.executemany("update pieces set digest = ? where start = ? and digest = ''", rows)
        self._base.execute("commit")

    def digest(self) -> str:
        """Thirty-two hexadecimal digits that stand for the whole list."""
        hashed = hashlib.sha256()
        for piece in self.all():
            about = piece.digest or f"{piece.size} {piece.time}"
            hashed.update(f"{piece.start} {piece.stop} {about} ".encode() + os.fsencode(piece.name) + b"\0")
        return hashed.hexdigest()[:32]
