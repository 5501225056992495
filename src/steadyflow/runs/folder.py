"""A run as a folder: what was asked for, and what is done of it. Nothing in it is ever half-written.

    manifest.json     the job, the versions, and what stands for model and data: all that decides the numbers
    inputs.sqlite     the list of the inputs, with their sizes and hashes (see `pins`)
    index.sqlite      a row per shard: its samples, its digest, and how long it took where; and what was set aside, why
    shards/           safetensors files, each with its samples and digest in its header
    lock              held while a process works on the run, and let go by the system when it dies

A shard is written beside its place, brought to the disk and renamed, and then entered into the index; a process that
dies between the two leaves a shard that the next one checks and enters. Wall-clock time is neither read nor written.
Files that are none of these are left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .._internal import files, strict_json
from ..errors import MALFORMED, CorruptFileError, InputError
from .database import Database, connected, locked
from .job import Aside
from .jobs import Job, Part, digest, from_spec
from .prepared import differences

SHARD = re.compile(r"shard-(\d{12})-(\d{12})\.safetensors")
_LARGEST_MANIFEST = 16_000_000
_FORMAT = "steadyflow run"
OURS = {"manifest.json", "index.sqlite", "index.sqlite-journal", "inputs.sqlite", "inputs.sqlite-journal", "lock",
        "lock.sqlite", "shards"}  # fmt: skip
"""What is in the folder of a run, that of earlier versions included."""
ADVICE = "run the same command again to compute it anew"


@dataclass(frozen=True)
class Shard:
    """A finished part of a run."""

    start: int
    stop: int
    digest: str
    seconds: float
    worker: str
    """The kind of processor that computed it."""
    together: int = 0
    """How many samples were computed together where memory was too small for a block; else 0."""

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"shard-{self.start:012d}-{self.stop:012d}.safetensors"


class RunFolder:
    """The folder of a run.

    `RunFolder.open(path)` looks into one, also while another process works on it; `with writer.held(path, job, ...)`
    begins one or goes on with it, alone.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self.job: Job = from_spec(manifest["job"])

    @classmethod
    @contextlib.contextmanager
    def alone(cls, path: str | Path) -> Iterator[Path]:
        """Make a context in which no other process works on a folder, which is made.

        Raises:
            InputError: The folder holds other things, or another process works on the run.
            StorageError: The folder cannot be made.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"run: {path} is no folder; give a new one")
        if path.exists() and not _may_be_ours(path):
            raise InputError(f"run: {path} holds other things than a run; give a new folder")
        with locked(path / "lock", f"run: another process is working on {path}; wait for it, or stop it"):
            new = not any((path / name).exists() for name in ("manifest.json", "shards", "index.sqlite"))
            try:
                yield path
            finally:
                if new and not (path / "manifest.json").exists():  # nothing has begun
                    left = [entry.name for entry in path.iterdir() if is_part(entry.name)]
                    for name in (*left, "inputs.sqlite", "lock"):
                        (path / name).unlink(missing_ok=True)
                    with contextlib.suppress(OSError):
                        path.rmdir()

    @cached_property
    def mark(self) -> str:
        """What stands for the job, the model and the versions: shards say of which run they are."""
        about = {key: value for key, value in self.manifest.items() if key not in ("asked", "input")}
        if isinstance(self.manifest.get("input"), str):
            about["input"] = self.manifest["input"]
        return hashlib.sha256(strict_json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def begun(cls, path: Path, job: Job, facts: dict[str, Any]) -> RunFolder:
        """A new run in a folder, or the one that is there; raises `InputError` where that is another one."""
        manifest = strict_json.loads(strict_json.dumps({"format": _FORMAT, "job": job.spec(), **facts}))
        if not (path / "manifest.json").exists():
            files.write_text(path / "manifest.json", strict_json.dumps(manifest, indent=2))
        found = cls.open(path)
        differing = differences(found.manifest, manifest)
        if differing:
            raise InputError(
                f"run: {path} holds a run with other settings ({'; '.join(differing)}), whose numbers would not fit; "
                "go on with those, or give a new folder"
            )
        return found

    def noting(self, **facts: Any) -> RunFolder:
        """The run with some facts in its manifest changed."""
        manifest = {**self.manifest, **strict_json.loads(strict_json.dumps(facts))}
        files.write_text(self.path / "manifest.json", strict_json.dumps(manifest, indent=2))
        return RunFolder(self.path, manifest)

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
            manifest = strict_json.loads(file.read_text(encoding="utf-8"))
            if manifest["format"] != _FORMAT:
                raise ValueError(f"format {manifest['format']!r}")
            return cls(path, manifest)
        except MALFORMED as error:
            raise CorruptFileError(f"{file}: not the manifest of a run ({error})") from error

    def shards(self) -> list[Shard]:
        """The finished shards, in order.

        Raises:
            CorruptFileError: The index is damaged or contradicts itself.
            StorageError: Another program holds it.
        """
        return self._entered(read_index)

    def aside(self) -> list[Aside]:
        """The samples that were set aside, in order, with the cause.

        Raises:
            CorruptFileError: The index is damaged or contradicts itself.
            StorageError: Another program holds it.
        """
        return self._entered(read_aside)

    def _entered(self, reading: Any) -> list[Any]:
        if not (self.path / "index.sqlite").exists():
            return []
        with connected(self.path / "index.sqlite") as index:
            return reading(self, index)

    def foreign(self) -> list[str]:
        """The names of files in the folder that are none of the run's."""
        place = self.path / "shards"
        found = [p.name for p in self.path.iterdir() if p.name not in OURS and not is_part(p.name)]
        known = {shard.file for shard in self.shards()}
        inner = place.iterdir() if place.is_dir() else ()
        return sorted([*found, *(f"shards/{p.name}" for p in inner if p.name not in known and not is_part(p.name))])

    def stretches(self) -> Iterator[tuple[int, Part]]:
        """The results, shard by shard in order, each checked against its digest, with the index of its first sample.

        Raises:
            InputError: The run is not finished.
            CorruptFileError: A shard is damaged or missing.
        """
        shards, aside = self.shards(), self.aside()
        done = sum(shard.stop - shard.start for shard in shards)
        if done + sum(one.stop - one.start for one in aside) != self.job.n:
            raise InputError(f"run: {self.path} has {done} of {self.job.n} samples; run the same command again")
        if not shards:
            raise InputError(f"run: none of the {self.job.n} samples of {self.path} have been computed")
        for shard in shards:
            yield shard.start, self.read(shard)

    def parts(self) -> Iterator[Part]:
        """The results alone, as in `stretches`."""
        for _, part in self.stretches():
            yield part

    def read(self, shard: Shard) -> Part:
        """The results of a shard.

        Args:
            shard: One of `shards`.

        Raises:
            CorruptFileError: They are not what was written.
        """
        return self.checked(shard)[0]

    def checked(self, shard: Shard) -> tuple[Part, dict[str, Any]]:
        """As `read`, with what the file's header says of them."""
        path = self.path / "shards" / shard.file
        try:
            part, about = load_shard(path)
        except FileNotFoundError as error:
            raise CorruptFileError(f"{path}: the index names it, but it is gone; {ADVICE}") from error
        if about["digest"] != shard.digest or about.get("run", self.mark) != self.mark:
            raise CorruptFileError(f"{path}: not what was written; {ADVICE}")
        return part, about

    def figures(self) -> dict[str, Any]:
        """Figures of a finished run, and what it took."""
        shards = self.shards()
        if not shards:
            raise InputError(f"run: none of the {self.job.n} samples of {self.path} have been computed")
        figures = {"samples": self.job.n, **self.job.figures(self.parts)}
        figures["seconds of work"] = round(sum(shard.seconds for shard in shards), 1)
        figures["computed on"] = ", ".join(sorted({shard.worker for shard in shards}))
        small = [shard.together for shard in shards if shard.together]
        if small:
            figures["for want of memory"] = f"{len(small)} shards were computed by {min(small)} samples"
        return figures


_PART = re.compile(rf"({SHARD.pattern}|manifest\.json|inputs\.sqlite)[a-z0-9_]{{8}}{re.escape(files.PART)}")


def is_part(name: str) -> bool:
    """Whether a file is one of the run's that is being written, or was when its process died."""
    return _PART.fullmatch(name) is not None


def _may_be_ours(path: Path) -> bool:
    """Whether a folder is empty, or has something in it that a run has."""
    names = {entry.name for entry in path.iterdir()}
    return bool(names & OURS) or all(map(is_part, names))


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
        about = strict_json.loads(text)
        sound = about["digest"] == digest(part)
    except MALFORMED as error:
        raise CorruptFileError(f"{path}: not the shard of a run") from error
    if not sound:
        raise CorruptFileError(f"{path}: not what was written; {ADVICE}")
    return part, about


def read_index(folder: RunFolder, index: Database) -> list[Shard]:
    """The rows of an index, checked."""
    names = {name for (name,) in index.execute("select name from sqlite_master")}
    if "shards" not in names:
        return []
    rows = index.execute("select start, stop, digest, seconds, worker from shards order by start")
    try:
        small = dict(index.execute("select start, together from small")) if "small" in names else {}
        found = [Shard(int(a), int(b), str(c), float(d), str(e), int(small.get(a, 0))) for a, b, c, d, e in rows]
    except MALFORMED as error:
        raise index.damaged(f"a row is no shard: {error}") from error
    _check_apart(found, folder.job.n, index)
    return found


def read_aside(folder: RunFolder, index: Database) -> list[Aside]:
    """What an index says was set aside, checked."""
    if not index.execute("select name from sqlite_master where name = 'aside'"):
        return []
    rows = index.execute("select start, stop, name, cause, kind from aside order by start")
    try:
        found = [Aside(int(a), int(b), str(c), str(d), str(e)) for a, b, c, d, e in rows]
    except MALFORMED as error:
        raise index.damaged(f"a row is nothing that was set aside: {error}") from error
    _check_apart(found, folder.job.n, index)
    return found


def _check_apart(found: Sequence[Shard | Aside], n: int, index: Database) -> None:
    """Raise `CorruptFileError` unless stretches of samples, in order, do not overlap and lie within a run of n."""
    at = 0
    for one in found:
        if one.start < at or not one.start < one.stop <= n:
            raise index.damaged(f"samples {one.start} to {one.stop} overlap others or are none of the run")
        at = one.stop
