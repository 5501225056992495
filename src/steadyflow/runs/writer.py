"""What the one process that works on a run does to its folder."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .._internal import files, strict_json
from ..errors import MALFORMED, CorruptFileError, StorageError
from .database import PATIENCE, Database, HeldError, connected
from .folder import SHARD, RunFolder, Shard, is_part, load_shard, read_aside, read_index
from .job import Aside
from .jobs import Job, Part, digest
from .pins import hashed_inputs

_TABLES = (
    """create table if not exists shards (start integer primary key, stop integer not null, digest text not null,
seconds real not null, worker text not null)""",
    """create table if not exists aside (start integer primary key, stop integer not null, name text not null,
cause text not null, kind text not null)""",
    "create table if not exists small (start integer primary key, together integer not null)",
    "create table if not exists tries (start integer primary key, stop integer not null, count integer not null)",
)
_SHORT = 2.0
"""Seconds to wait for a reader of the index before its entry is put off."""
Statement = tuple[str, tuple[Any, ...]]


@contextlib.contextmanager
def held(path: str | Path, job: Job, facts: dict[str, Any]) -> Iterator[tuple[RunFolder, Writer]]:
    """Make a context with a new run in an empty or missing folder, or the run of the same job, and its writer.

    Args:
        path: The folder.
        job: The work.
        facts: What else decides the numbers, such as what stands for model and data.

    Raises:
        InputError: The folder holds other things or another run, with what differs, or another process works on the
            run.
        StorageError: The folder cannot be made.
    """
    with RunFolder.alone(path) as place:
        folder = RunFolder.begun(place, job, facts)
        with writing(folder) as writer:
            yield folder, writer


@contextlib.contextmanager
def writing(folder: RunFolder) -> Iterator[Writer]:
    """Make a context with what adds to a run; only for the process that holds its lock.

    Args:
        folder: The run.
    """
    with connected(folder.path / "index.sqlite") as index:
        writer = Writer(folder, index)
        yield writer
        writer.finish()


class Writer:
    """What adds to a run.

    An entry into the index that another program keeps from being made is put off, as the shard on the disk says all of
    it: neither a reader nor a database browser stops the work.

    Args:
        folder: The run.
        index: A connection to its index.
    """

    def __init__(self, folder: RunFolder, index: Database):
        self._folder, self._index = folder, index
        self._there: dict[int, Shard] = {}
        self._starts: list[int] = []
        self._put_off: list[Statement] = []
        self._told = False
        self._begun: set[int] = set()
        self.patience = PATIENCE
        index.execute("pragma synchronous=full")
        for table in _TABLES:
            index.execute(table)

    def resume(
        self,
        told: Callable[[int], object] = lambda samples: None,
        inputs: Callable[[int, int], str | None] = lambda start, stop: None,
    ) -> tuple[list[Shard], list[str]]:
        """Check everything that is there; the sound shards in order, and the names of what was not sound.

        Sound shards that are not in the index are entered; what was being written when a process died is removed.

        Args:
            told: Is told of so many more samples that have been checked.
            inputs: What stands for the inputs of samples (see `Pins.expected`); shards of others are not sound.
        """
        folder, unsound = self._folder, list[str]()
        place = folder.path / "shards"
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(f"{place}: cannot be made ({error})") from error
        for path in [*place.iterdir(), *folder.path.iterdir()]:
            if is_part(path.name):
                path.unlink(missing_ok=True)
        for shard in read_index(folder, self._index):
            if self._sound(shard, inputs):
                self._know(shard)
            else:
                unsound.append(shard.file)
                self._do([("delete from shards where start = ?", (shard.start,))])
            told(shard.stop - shard.start)
        for path in sorted(place.iterdir(), key=_longest_first):
            shard = self._orphan(path, inputs)
            if shard is not None:
                self._enter(shard)
        return self.shards(), unsound

    def _sound(self, shard: Shard, inputs: Callable[[int, int], str | None]) -> bool:
        """Whether the file of a shard is what was written, of these inputs."""
        try:
            _, about = self._folder.checked(shard)
        except (CorruptFileError, OSError):
            return False
        return _is_of(inputs(shard.start, shard.stop), about)

    def _orphan(self, path: Path, inputs: Callable[[int, int], str | None]) -> Shard | None:
        """The shard in a file that is not in the index, if it is sound and fits."""
        match = SHARD.fullmatch(path.name)
        if match is None:
            return None
        start, stop = int(match[1]), int(match[2])
        if not start < stop <= self._folder.job.n or self._over(start, stop):
            return None
        try:
            _, about = load_shard(path)
            if (about["start"], about["stop"], about["run"]) != (start, stop, self._folder.mark):
                return None
            facts = str(about["digest"]), float(about["seconds"]), _text(str(about["worker"]))
            shard = Shard(start, stop, *facts, int(about.get("together", 0)))
        except (CorruptFileError, OSError, *MALFORMED):
            return None
        told = 0 <= shard.together < 2**62 and math.isfinite(shard.seconds)
        return shard if told and _is_of(inputs(start, stop), about) else None

    def _over(self, start: int, stop: int) -> list[Shard]:
        """The shards that hold some of these samples."""
        found: list[Shard] = []
        for k in range(bisect_left(self._starts, stop) - 1, -1, -1):
            shard = self._there[self._starts[k]]
            if shard.stop <= start:
                break
            found.append(shard)
        return found

    def _forget(self, shard: Shard) -> None:
        del self._there[shard.start]
        del self._starts[bisect_left(self._starts, shard.start)]

    def _know(self, shard: Shard) -> None:
        self._there[shard.start] = shard
        insort(self._starts, shard.start)

    def add(
        self,
        start: int,
        stop: int,
        part: Part,
        seconds: float,
        worker: str,
        together: int = 0,
        digests: Mapping[int, str] | None = None,
    ) -> Shard:
        """Write a shard and enter it; it takes the place of those that hold some of its samples.

        Args:
            start: Its first sample.
            stop: The one after its last.
            part: The results.
            seconds: How long they took.
            worker: The kind of processor that computed them.
            together: How many samples were computed together, where those were fewer than a block for want of memory.
            digests: The hashes of the inputs that they were computed from, by the first samples.

        Raises:
            StorageError: That fails; then it is not there at all.
        """
        shard = Shard(start, stop, digest(part), seconds, worker, together)
        place = self._folder.path / "shards"
        about = {"start": start, "stop": stop, "digest": shard.digest, "seconds": seconds, "worker": worker}
        about |= {"run": self._folder.mark, **({"together": together} if together else {})}
        about |= {"inputs": hashed_inputs(digests)} if digests else {}
        files.write(place / shard.file, part.kind, part.tensors, {**part.metadata, "shard": strict_json.dumps(about)})
        old = self._over(start, stop)
        self._enter(shard)
        for one in old:
            if one.file != shard.file:
                (place / one.file).unlink(missing_ok=True)
        return shard

    def _enter(self, shard: Shard) -> None:
        for one in self._over(shard.start, shard.stop):
            self._forget(one)
        self._know(shard)
        within = (shard.stop, shard.start)
        row = (shard.start, shard.stop, shard.digest, shard.seconds, shard.worker)
        small = [("insert into small values (?, ?)", (shard.start, shard.together))] if shard.together else []
        tables = ("shards", "aside", "tries")
        self._do(
            [
                *((f"delete from {name} where start < ? and stop > ?", within) for name in tables),
                ("delete from small where start < ? and start >= ?", within),
                ("insert into shards (start, stop, digest, seconds, worker) values (?, ?, ?, ?, ?)", row),
                *small,
            ]
        )

    def set_aside(self, one: Aside) -> None:
        """Enter samples that could not be computed, but for those that have been computed before.

        Args:
            one: The samples and the cause.
        """
        words, at = (_text(one.name), _text(one.cause), one.kind), one.start
        rows = list[Statement]()
        for start, stop in [*sorted((s.start, s.stop) for s in self._over(one.start, one.stop)), (one.stop, one.stop)]:
            if at < start:
                rows.append(("insert into aside values (?, ?, ?, ?, ?)", (at, start, *words)))
            at = stop
        within = (one.stop, one.start)
        self._do([(f"delete from {name} where start < ? and stop > ?", within) for name in ("tries", "aside")] + rows)

    def drop(self, start: int, stop: int) -> None:
        """Remove the shards that hold some of these samples, and what was set aside of them.

        The files go first, so that a process that dies on the way leaves nothing that would be entered again.

        Args:
            start: The first sample.
            stop: The one after the last.
        """
        over, within = self._over(start, stop), (stop, start)
        for one in over:
            (self._folder.path / "shards" / one.file).unlink(missing_ok=True)
            self._forget(one)
        self._do([(f"delete from {name} where start < ? and stop > ?", within) for name in ("shards", "aside")])

    def aside(self) -> list[Aside]:
        """What has been set aside."""
        self.finish()
        return read_aside(self._folder, self._index)

    def try_of(self, start: int, stop: int) -> None:
        """Enter that this process begins with some samples, so that it is known if it dies of them.

        Args:
            start: The first sample.
            stop: The one after the last.
        """
        self._begun.add(start)
        self._do([("insert into tries values (?, ?, 1) on conflict (start) do update set count = count + 1, stop = ?",
                   (start, stop, stop))])  # fmt: skip

    def forget_tries(self) -> None:
        """Forget what was begun, as this process ends in order."""
        begun = [("update tries set count = count - 1 where start = ?", (start,)) for start in sorted(self._begun)]
        self._do([*begun, ("delete from tries where count < 1", ())])

    def shards(self) -> list[Shard]:
        """The shards that are there, in order."""
        return [self._there[start] for start in self._starts]

    def tries(self) -> dict[int, tuple[int, int]]:
        """How often a process has begun with some samples and died: the last sample and the number, by the first."""
        rows = self._index.execute("select start, stop, count from tries")
        try:
            return {int(a): (int(b), int(c)) for a, b, c in rows}
        except MALFORMED as error:
            raise self._index.damaged(f"a row is no count of tries: {error}") from error

    def _do(self, statements: Iterable[Statement]) -> None:
        """Carry statements out in one transaction, after those that were put off; or put them off."""
        due, self._put_off = [*self._put_off, *statements], []  # none is carried out twice, whatever interrupts this
        self._index.wait_for(_SHORT)
        try:
            self._index.all_or_none(due)
        except HeldError:
            self._put_off = due
            if not self._told:
                self._told = True
                warnings.warn(f"{self._path}: another program holds it; the work goes on without it", stacklevel=3)
        finally:
            self._index.wait_for(self.patience)

    @property
    def _path(self) -> Path:
        return self._folder.path / "index.sqlite"

    def finish(self) -> None:
        """Carry out what was put off.

        Raises:
            StorageError: Another program still holds the index after a minute.
        """
        end = time.monotonic() + self.patience
        while self._put_off:
            self._do([])
            if self._put_off and time.monotonic() > end:
                raise StorageError(
                    f"{self._path}: another program, such as a database browser, has held it for {self.patience:g} s; "
                    "all results are in the folder; close that program, and the same command enters them"
                )


def _is_of(expected: str | None, about: Mapping[str, Any]) -> bool:
    """Whether the header of a shard names the inputs that are expected, as far as both are known."""
    return expected is None or about.get("inputs", expected) == expected


def _longest_first(path: Path) -> tuple[int, str]:
    match = SHARD.fullmatch(path.name)
    return (0 if match is None else int(match[1]) - int(match[2])), path.name


def _text(words: str) -> str:
    """Words as they can be stored: names of files may hold bytes that are no text."""
    return words.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
