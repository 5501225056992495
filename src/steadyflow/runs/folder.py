"""A run as a folder: what was asked for, and what is done of it. Nothing in it is ever half-written.

    manifest.json     the job, the versions, and fingerprints of model and data: all that decides the numbers
    index.sqlite      a row per shard: its samples, its digest, and how long it took where
    shards/           safetensors files, each with its samples and digest in its header
    lock.sqlite       held while a process works on the run, and let go by the system when it dies

A shard is written beside its place, brought to the disk and renamed, and then entered into the index; a process that
dies between the two leaves a shard that the next one checks and enters. Wall-clock time is neither read nor written.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._internal import files
from .._version import __version__
from ..errors import MALFORMED, CorruptFileError, InputError, StorageError
from .jobs import Job, Part, digest, from_spec

_SHARD = re.compile(r"shard-(\d{12})-(\d{12})\.safetensors")
_LARGEST_MANIFEST = 1_000_000
_TABLE = """create table if not exists shards (
start integer primary key, stop integer not null, digest text not null, seconds real not null, worker text not null)"""


@dataclass(frozen=True)
class Shard:
    """A finished part of a run."""

    start: int
    stop: int
    digest: str
    seconds: float
    worker: str
    """The kind of processor that computed it."""

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"shard-{self.start:012d}-{self.stop:012d}.safetensors"


def versions() -> dict[str, str]:
    """What else decides the bits of a result."""
    return {
        "steadyflow": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


class RunFolder:
    """The folder of a run.

    `RunFolder.open(path)` looks into one, also while another process works on it; `with RunFolder.held(path, job, ...)`
    begins one or goes on with it, alone.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self.job: Job = from_spec(manifest["job"])

    @classmethod
    @contextlib.contextmanager
    def held(cls, path: str | Path, job: Job, fingerprints: dict[str, str]) -> Iterator[tuple[RunFolder, Writer]]:
        """A new run in an empty or missing folder, or the run of the same job that is there; and what adds to it.

        Args:
            path: The folder.
            job: The work.
            fingerprints: What stands for the model and the data.

        Raises:
            InputError: The folder holds other things or another run, with what differs, or another process works on
                the run.
            StorageError: The folder cannot be made.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or not (_OURS & {p.name for p in path.iterdir()} or _is_empty(path))):
            raise InputError(f"run: {path} holds other things than a run; give a new folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path}: cannot be made ({error})") from error
        with _connected(path / "lock.sqlite") as lock:
            try:
                lock.execute("begin exclusive")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                raise InputError(f"run: another process is working on {path}; wait for it, or stop it") from error
            folder = cls._begun(path, job, fingerprints)
            with _connected(path / "index.sqlite") as index:
                yield folder, Writer(folder, index)

    @classmethod
    def _begun(cls, path: Path, job: Job, fingerprints: dict[str, str]) -> RunFolder:
        manifest = {"format": _FORMAT, "job": job.spec(), "versions": versions(), **fingerprints}
        manifest = json.loads(json.dumps(manifest))
        if not (path / "manifest.json").exists():
            files.write_text(path / "manifest.json", json.dumps(manifest, indent=2))
        found = cls.open(path)
        differing = _differences(found.manifest, manifest)
        if differing:
            raise InputError(
                f"run: {path} holds a run with other settings ({'; '.join(differing)}), whose numbers would not fit; "
                "go on with those, or give a new folder"
            )
        return found

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in a folder.

        Args:
            path: The folder.

        Raises:
            FileNotFoundError: There is none.
            CorruptFileError: Its manifest is not one of a run.
        """
        path = Path(path)
        file = path / "manifest.json"
        if not file.is_file():
            raise FileNotFoundError(f"{path}: no run; it has no manifest.json")
        if file.stat().st_size > _LARGEST_MANIFEST:
            raise CorruptFileError(f"{file}: larger than any manifest ({file.stat().st_size} bytes)")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            if manifest["format"] != _FORMAT:
                raise ValueError(f"format {manifest['format']!r}")
            return cls(path, manifest)
        except MALFORMED as error:
            raise CorruptFileError(f"{file}: not the manifest of a run ({error})") from error

    def shards(self) -> list[Shard]:
        """The finished shards, in order.

        Raises:
            CorruptFileError: The index is damaged or contradicts itself.
        """
        if not (self.path / "index.sqlite").is_file():
            return []
        with _connected(self.path / "index.sqlite") as index:
            return read_index(self, index)

    def parts(self) -> Iterator[Part]:
        """The results, shard by shard in order, each checked against its digest.

        Raises:
            InputError: The run is not finished.
            CorruptFileError: A shard is damaged or missing.
        """
        shards = self.shards()
        if sum(shard.stop - shard.start for shard in shards) != self.job.n:
            done = sum(shard.stop - shard.start for shard in shards)
            raise InputError(f"run: {self.path} has {done} of {self.job.n} samples; run the same command again")
        for shard in shards:
            yield self.read(shard)

    def read(self, shard: Shard) -> Part:
        """The results of a shard.

        Args:
            shard: One of `shards`.

        Raises:
            CorruptFileError: They are not what was written.
        """
        path = self.path / "shards" / shard.file
        try:
            part, about = load_shard(path)
        except FileNotFoundError as error:
            raise CorruptFileError(f"{path}: the index names it, but it is gone; {_ADVICE}") from error
        if about["digest"] != shard.digest:
            raise CorruptFileError(f"{path}: not what was written; {_ADVICE}")
        return part

    def figures(self) -> dict[str, Any]:
        """Figures of a finished run, and what it took."""
        shards = self.shards()
        figures = {"samples": self.job.n, **self.job.figures(self.parts)}
        figures["seconds of work"] = round(sum(shard.seconds for shard in shards), 1)
        figures["computed on"] = ", ".join(sorted({shard.worker for shard in shards}))
        return figures


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a database of the run."""
    connection = sqlite3.connect(path, timeout=0.2, isolation_level=None)
    try:
        yield connection
    except sqlite3.OperationalError as error:
        raise StorageError(f"{path}: cannot be used ({error}); what is done stays") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError) as error:
        raise CorruptFileError(f"{path}: damaged ({error}); delete it, and the same command goes on") from error
    finally:
        connection.close()


_FORMAT = "steadyflow run"
_OURS = {"manifest.json", "index.sqlite", "lock.sqlite", "shards"}


def _is_empty(path: Path) -> bool:
    return next(path.iterdir(), None) is None


_ADVICE = "run the same command again to compute it anew"


class Writer:
    """What the one process that works on a run does to its folder."""

    def __init__(self, folder: RunFolder, index: sqlite3.Connection):
        self._folder, self._index = folder, index
        index.execute("pragma synchronous=full")
        index.execute(_TABLE)

    def resume(self) -> tuple[list[Shard], list[str]]:
        """Check everything that is there; the sound shards, and what was not sound and is now gone.

        Sound shards that are not in the index are entered; unfinished files are removed.
        """
        folder, removed, kept = self._folder, [], []
        place = folder.path / "shards"
        place.mkdir(exist_ok=True)
        for path in [*place.iterdir(), *folder.path.iterdir()]:
            if path.name.endswith(files.PART):
                path.unlink(missing_ok=True)
        entered = {shard.start: shard for shard in read_index(folder, self._index)}
        for shard in entered.values():
            try:
                folder.read(shard)
                kept.append(shard)
            except CorruptFileError:
                removed.append(shard.file)
                self._index.execute("delete from shards where start = ?", (shard.start,))
                (place / shard.file).unlink(missing_ok=True)
        for path in sorted(place.iterdir()):
            shard = self._orphan(path, kept)
            if shard is not None:
                self._enter(shard)
                kept.append(shard)
            elif path.name not in {known.file for known in kept}:
                removed.append(path.name)
                path.unlink(missing_ok=True)
        return sorted(kept, key=lambda shard: shard.start), removed

    def _orphan(self, path: Path, kept: list[Shard]) -> Shard | None:
        """The shard in a file that is not in the index, if it is sound and fits."""
        match = _SHARD.fullmatch(path.name)
        if match is None or any(path.name == shard.file for shard in kept):
            return None
        start, stop = int(match[1]), int(match[2])
        taken = any(start < shard.stop and shard.start < stop for shard in kept)
        if taken or not _aligned(self._folder.job, start, stop):
            return None
        try:
            _, about = load_shard(path)
            return Shard(start, stop, str(about["digest"]), float(about["seconds"]), str(about["worker"]))
        except (CorruptFileError, FileNotFoundError, KeyError, ValueError):
            return None

    def add(self, start: int, stop: int, part: Part, seconds: float, worker: str) -> Shard:
        """Write a shard and enter it.

        Args:
            start: Its first sample.
            stop: The one after its last.
            part: The results.
            seconds: How long they took.
            worker: The kind of processor that computed them.

        Raises:
            StorageError: That fails; then it is not there at all.
        """
        shard = Shard(start, stop, digest(part), seconds, worker)
        path = self._folder.path / "shards" / shard.file
        about = {"digest": shard.digest, "seconds": seconds, "worker": worker}
        files.write(path, part.kind, part.tensors, {**part.metadata, "shard": json.dumps(about)})
        self._enter(shard)
        return shard

    def _enter(self, shard: Shard) -> None:
        row = (shard.start, shard.stop, shard.digest, shard.seconds, shard.worker)
        self._index.execute("insert into shards values (?, ?, ?, ?, ?)", row)


def load_shard(path: Path) -> tuple[Part, dict[str, Any]]:
    """The part in a shard's file, and what its header says of it: digest, seconds, worker.

    Args:
        path: The file.

    Raises:
        CorruptFileError: The part is not what was written.
    """
    tensors, metadata = files.read(path, None)
    kind, text = metadata.pop("kind"), metadata.pop("shard", "")
    for name in ("format", "version"):
        metadata.pop(name)
    part = Part(kind, tensors, metadata)
    try:
        about = json.loads(text)
        sound = about["digest"] == digest(part)
    except MALFORMED as error:
        raise CorruptFileError(f"{path}: not the shard of a run") from error
    if not sound:
        raise CorruptFileError(f"{path}: not what was written; {_ADVICE}")
    return part, about


def read_index(folder: RunFolder, index: sqlite3.Connection) -> list[Shard]:
    """The rows of an index, checked."""
    if not index.execute("select name from sqlite_master where name = 'shards'").fetchone():
        return []
    rows = index.execute("select start, stop, digest, seconds, worker from shards order by start").fetchall()
    try:
        found = [Shard(int(a), int(b), str(c), float(d), str(e)) for a, b, c, d, e in rows]
    except MALFORMED as error:
        raise sqlite3.DatabaseError(f"a row is no shard: {error}") from error
    at = 0
    for shard in found:
        if shard.start < at or not _aligned(folder.job, shard.start, shard.stop):
            raise sqlite3.DatabaseError(f"samples {shard.start} to {shard.stop} overlap others or fit no blocks")
        at = shard.stop
    return found


def _aligned(job: Job, start: int, stop: int) -> bool:
    return 0 <= start < stop <= job.n and start % job.block == 0 and (stop % job.block == 0 or stop == job.n)


def _differences(there: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two manifests, in words."""
    found = []
    for key in sorted({*there, *wanted}):
        a, b = there.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{key}." if prefix == "" and key != "job" else prefix)
        elif a != b:
            found.append(f"{prefix}{key} is {a!r} there and {b!r} here")
    return found
