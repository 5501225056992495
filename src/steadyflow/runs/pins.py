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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .._internal import files
from ..datasets.contents import Piece
from ..datasets.sources import Files, Source
from ..errors import MALFORMED, InputError, StorageError
from .database import Database

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


def hashed_inputs(digests: Mapping[int, str]) -> str:
    """What stands for several inputs in a shard: a hash of their hashes.

    Args:
        digests: The hashes by the first samples.
    """
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:32]


class Pins:
    """A list that is there.

    Args:
        base: A connection to it.
    """

    def __init__(self, base: Database):
        self._base = base
        self.incomplete = bool(base.execute("select 1 from pieces where digest = '' limit 1"))
        """Whether there are pieces whose hash is not known."""
        self.learnt = False
        """Whether some of them have been entered."""

    def between(self, start: int, stop: int) -> list[Piece]:
        """The pieces of the samples [start, stop), in order."""
        rows = self._base.execute(
            "select * from pieces where start < ? and start >= "
            "(select coalesce(max(start), 0) from pieces where start <= ?) order by start",
            (stop, start),
        )
        return list(map(self._piece, rows))

    def __len__(self) -> int:
        return int(self._base.execute("select count(*) from pieces")[0][0])

    def all(self) -> Iterator[Piece]:
        """All pieces in order, a few at a time."""
        at = -1
        while rows := self._base.execute("select * from pieces where start > ? order by start limit ?", (at, _AT_ONCE)):
            yield from map(self._piece, rows)
            at = rows[-1][0]

    def _piece(self, row: Sequence[Any]) -> Piece:
        start, stop, name, size, time, digest = row
        try:
            return Piece(int(start), int(stop), os.fsdecode(name), int(size), int(time), str(digest))
        except MALFORMED as error:
            raise self._base.damaged(f"a row is no input: {error}") from error

    def expected(self, start: int, stop: int) -> str | None:
        """What stands for the content of the inputs of some samples; None where not all of it is known."""
        found = {piece.start: piece.digest for piece in self.between(start, stop)}
        return hashed_inputs(found) if found and all(found.values()) else None

    def changes(self, data: Source, *, content: bool, told: Told, whole: bool) -> Changes:
        """Compare all pieces with what is there now.

        Args:
            data: The source as it is now.
            content: Whether by hashes; else by sizes and times.
            told: Is told of the progress.
            whole: Whether the list has all inputs that there were, and not the first ones.

        Returns:
            What differs.
        """
        found, known = Changes(), list[Piece]()
        for old, now in zip(self.all(), _measured(data, self.all(), content, told), strict=True):
            same = (now.size, now.time) == (old.size, old.time)
            if now.size < 0:
                if old.size >= 0 or old.digest:
                    found.gone.append(old)
            elif content and old.digest:
                if now.digest != old.digest:
                    found.changed.append(now)
                elif not same:
                    known.append(now)
            elif not same and old.size >= 0:
                found.changed.append(now)
            elif content or old.size < 0:
                known.append(now)
        self.update(known)
        found.more = list(self._more(data, whole))
        return found

    def _more(self, data: Source, whole: bool) -> Iterator[str]:
        """Names of files that are there and are not in the list, and would be if it were made now."""
        last = self._base.execute("select name from pieces order by start desc limit 1")
        if not last or not isinstance(data, Files):
            return
        self._base.execute("create index if not exists names on pieces (name)")
        for name in data.names():
            key = os.fsencode(name)
            if (whole or key < last[0][0]) and not self._base.execute("select 1 from pieces where name = ?", (key,)):
                yield name

    def update(self, pieces: Iterable[Piece]) -> None:
        """Enter pieces as they are now, in place of what is there of them."""
        for batch in _batches(pieces):
            self._base.many("insert or replace into pieces values (?, ?, ?, ?, ?, ?)", map(_row, batch))

    def learn(self, digests: Mapping[int, str]) -> None:
        """Enter the hashes of pieces that were not known when the list was made.

        Args:
            digests: The hashes by the first samples.
        """
        self.learnt = True
        rows = [(digest, start) for start, digest in digests.items()]
        self._base.many("update pieces set digest = ? where start = ? and digest = ''", rows)

    def digest(self) -> str:
        """Thirty-two hexadecimal digits that stand for the whole list."""
        hashed = hashlib.sha256()
        for piece in self.all():
            about = piece.digest or f"{piece.size} {piece.time}"
            hashed.update(f"{piece.start} {piece.stop} {about} ".encode() + os.fsencode(piece.name) + b"\0")
        return hashed.hexdigest()[:32]
