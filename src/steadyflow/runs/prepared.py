"""A job with its model and data in memory, and the work on some of its samples."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._integrate import Progress
from .._version import __version__
from ..datasets import contents, media
from ..datasets.contents import Piece
from ..datasets.films import Film
from ..datasets.sources import Read
from ..errors import InputError, MissingExtraError, StorageError
from ..loading import identity
from ..tasks import Inversion
from .edits import rows_of
from .job import TRIAL, Aside, Block, Data, Job, Part, Stretch


class ChangedError(InputError):
    """A file that all samples depend on was changed under the run."""


_FATAL = (MissingExtraError, StorageError, ImportError, ChangedError)
"""What ends a run, as it is the same for all samples."""


def nothing(start: int, stop: int) -> Sequence[Piece]:
    """No pieces, where there is no list of the inputs."""
    return ()


@dataclass(frozen=True)
class Prepared:
    """A job with its model and data in memory."""

    job: Job
    model: Any
    data: Data | None
    progress: Progress = False
    """Of the verbs, for work of a single block."""
    pieces: Callable[[int, int], Sequence[Piece]] = nothing
    """What samples are read from, as it was when it was listed."""
    strict: bool = True
    """Whether a sample that cannot be computed raises its error, instead of being set aside."""
    known: Mapping[str, Any] | None = None
    """Its `facts`, where they have been found already."""
    marks: dict[str, Any] = field(default_factory=dict[str, Any])
    """What other files looked like when they were last compared."""

    def _block(self, read: Read, start: int, stop: int) -> Block:
        job = self.job
        x = None if read.x is None else read.x.to(job.device, job.dtype)
        return Block(job.conditioned(self.model, read.given), x, read.given, start, stop, self.progress)

    def block(self, start: int, stop: int) -> Block:
        """What the verb is called with for the samples [start, stop), all of which must be readable."""
        read = self._read(start, stop, self.pieces(start, stop))
        for error in read.bad.values():
            raise error
        return self._block(read, start, stop)

    def settled(self) -> Prepared:
        """The job with the solver and the times that "auto" chooses for the first of its samples; checked."""
        prepared = self
        if self.job.is_open:
            prepared = dataclasses.replace(self, job=self.job.settled(self._trial(min(self.job.n, TRIAL))))
        prepared.job.resolved().falling(self.model, clean=self.job.task == "sample")
        return prepared

    def _trial(self, n: int) -> Block:
        """Those of the first n samples that can be read, for the choice of a solver."""
        if self.strict:
            return self.block(0, n)
        read = self._read(0, n, self.pieces(0, n))
        if len(read.bad) == n:
            raise read.bad[0]
        kept = [k for k in range(n) if k not in read.bad]
        if read.bad and read.x is not None:
            given = read.given
            if _each(given, n):
                given = given[kept] if isinstance(given, Tensor) else [given[k] for k in kept]
            read = Read(read.x[kept], given, {}, {})
        return self._block(read, 0, len(kept))

    def unreadable(self, sample: int) -> bool:
        """Whether a sample can still not be read."""
        return self.data is not None and bool(self.data.read(sample, sample + 1, self.pieces(sample, sample + 1)).bad)

    def work(self, start: int, stop: int, together: int | None = None) -> Iterator[Stretch | Aside]:
        """The results of the samples [start, stop), in stretches of whole blocks as far as nothing is set aside.

        Args:
            start: The first sample.
            stop: The one after the last.
            together: How many samples to compute together; the job's block by default.
        """
        size, whole = together or self.job.block, list[Stretch]()
        for a in range(start, stop, size):
            for one in self._work(a, min(a + size, stop), together or 0):
                simple = isinstance(one, Stretch) and (one.start, one.stop) == (a, min(a + size, stop))
                if simple and isinstance(one, Stretch) and (not whole or whole[-1].together == one.together):
                    whole.append(one)
                    continue
                if whole:
                    yield self._joined(whole)
                    whole = []
                if simple and isinstance(one, Stretch):
                    whole.append(one)
                else:
                    yield one
        if whole:
            yield self._joined(whole)

    def _joined(self, found: list[Stretch]) -> Stretch:
        part = self.job.joined([one.part for one in found])
        digests = {k: digest for one in found for k, digest in one.digests.items()}
        return Stretch(found[0].start, found[-1].stop, part, min(one.together for one in found), digests)

    def _work(self, start: int, stop: int, together: int) -> list[Stretch | Aside]:
        """The results of samples that are computed together."""
        listed = self.pieces(start, stop)
        found = self._read(start, stop, listed)
        if self.strict:
            for error in found.bad.values():
                raise error
            return [Stretch(start, stop, self._part(self._block(found, start, stop)), together, found.digests)]
        names = {piece.start: piece.name for piece in listed}
        if len(found.bad) == stop - start:
            return _together([self._aside(k, names, found.bad[k]) for k in range(start, stop)], found.bad)
        if found.bad and not self.job.alone:
            first = next(iter(found.bad))
            words = f"is judged together with {names.get(first, f'sample {first}')}, which cannot be read"
            return [self._aside(k, names, found.bad.get(k, words)) for k in range(start, stop)]
        whole = self._tried(found, start, stop, together)
        if not found.bad:
            return whole
        cut = [[one] if isinstance(one, Aside) else self._without(one, found, names) for one in whole]
        return [one for several in cut for one in several]

    def _read(self, start: int, stop: int, listed: Sequence[Piece]) -> Read:
        if self.data is None:
            return Read(None, getattr(self.job, "label", None), {}, {})
        return self.data.read(start, stop, listed)

    def _without(self, whole: Stretch, found: Read, names: dict[int, str]) -> list[Stretch | Aside]:
        """A stretch cut where a sample stood for one that could not be read."""
        cut: list[Stretch | Aside] = []
        at, start, stop = whole.start, whole.start, whole.stop
        for k in [*sorted(k for k in found.bad if start <= k < stop), stop]:
            if at < k:
                read = {piece: digest for piece, digest in found.digests.items() if at <= piece < k}
                part = self.job.cut(whole.part, at - start, k - start)
                cut.append(Stretch(at, k, part, whole.together, read))
            if k < stop:
                cut.append(self._aside(k, names, found.bad[k]))
            at = k + 1
        return cut

    def _tried(self, read: Read, start: int, stop: int, together: int) -> list[Stretch | Aside]:
        """The results of a block: by halves where memory does not suffice, and set aside where an error is raised."""
        try:
            return [Stretch(start, stop, self._part(self._block(read, start, stop)), together, read.digests)]
        except _FATAL:
            raise
        except Exception as error:
            if not is_want_of_memory(error):
                name = f"samples {start} to {stop - 1}"
                return [Aside(start, stop, name, f"{type(error).__name__}: {error}", "error")]
        if stop - start == 1:
            return [Aside(start, stop, f"sample {start}", "needs more memory than there is", "error")]
        half = start + (stop - start) // 2
        found: list[Stretch | Aside] = []
        for a, b in ((start, half), (half, stop)):
            found += self._tried(_rows(read, a - start, b - start, stop - start), a, b, b - a)
        parts = [one for one in found if isinstance(one, Stretch)]
        if len(parts) < len(found):
            return found
        size = min(one.together for one in parts)
        return [Stretch(start, stop, self.job.joined([one.part for one in parts]), size, read.digests)]

    def _part(self, block: Block) -> Part:
        part = self.job.part(self.job.call(block))
        if isinstance(self.data, Film) and "x" in part.tensors:  # where chunks lie in their film, to join them by
            part.tensors["frame"] = torch.tensor(self.data.starts[block.start : block.stop])
        if self.known is not None and "files" in self.known:
            self._check_files(str(self.known["files"]))
        return part

    def _check_files(self, known: str) -> None:
        """Raise `ChangedError` where another file, such as a mask, is not what it was when the run began."""
        others = self.job.other_files()
        marks = tuple(map(contents.mark, others)) if all(Path(path).exists() for path in others) else None
        if marks is not None and self.marks.get("files") == marks:
            return
        if marks is None or contents.together(others) != known:
            raise ChangedError(f"files: {', '.join(others)} changed under the run; bring back what was there")
        self.marks["files"] = marks

    def _aside(self, k: int, names: dict[int, str], why: Exception | str) -> Aside:
        cause = why if isinstance(why, str) else f"{type(why).__name__}: {why}"
        return Aside(k, k + 1, names.get(k, f"sample {k}"), cause)

    @property
    def facts(self) -> dict[str, Any]:
        """What stands for the model, for data in memory, and for the other files; and versions that decide the bits."""
        if self.known is not None:
            return dict(self.known)
        job, model = self.job, identity(self.model, self.job.model)
        source = self.data
        watched = source is None or source.pieces(job.block) is not None
        about: dict[str, Any] = {"model": dict(model.parts), "versions": versions(job, model.packages)}
        if model.unknown:
            about["unknown"] = list(model.unknown)
        if not watched and source is not None:
            about["input"] = source.fingerprint()
        others = job.other_files()
        return {**about, "files": contents.together(others)} if others else about


def _together(aside: list[Aside], why: Mapping[int, Exception]) -> list[Stretch | Aside]:
    """Samples that were set aside one by one, those in a row with the same error as one."""
    found: list[Aside] = []
    for one in aside:
        if found and why[found[-1].start] is why[one.start]:
            found[-1] = dataclasses.replace(found[-1], stop=one.stop)
        else:
            found.append(one)
    return list(found)


def _each(given: Any, n: int) -> bool:
    """Whether what is known of n samples is something of each."""
    return isinstance(given, Tensor | list) and (isinstance(given, list) or given.ndim > 0) and len(given) == n


def _rows(read: Read, start: int, stop: int, n: int) -> Read:
    """Some of n samples, with what is known of them."""
    given, x = read.given, read.x
    if isinstance(given, Inversion):
        given = rows_of(given, start, stop)
    elif _each(given, n):
        given = given[start:stop]
    return Read(None if x is None else x[start:stop], given, {}, {})


def versions(job: Job, packages: Sequence[str]) -> dict[str, str]:
    """The versions that decide the bits of a result, by package.

    Args:
        job: The work.
        packages: The modules of installed packages that compute a model's answers.
    """
    found = {
        "steadyflow": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    given = [getattr(job, word, None) for word in ("input", "mask")]
    read = [path for path in [*given, *job.other_files()] if path is not None and not media.is_array(path)]
    for module in [*packages, *(("PIL", "av", "scipy") if read else ())]:
        version = _version_of(module)
        if version is not None:
            found[module] = version
    return dict(sorted(found.items()))


@functools.cache
def _version_of(module: str) -> str | None:
    try:
        names = [module] if module != "PIL" else ["pillow"]
        return metadata.version(names[0])
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(module, [])
        return metadata.version(names[0]) if names else None


def is_want_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def with_pieces(prepared: Prepared, pieces: Sequence[Piece]) -> Prepared:
    """A job that knows the pieces of the samples it will be asked for.

    Args:
        prepared: The job.
        pieces: The pieces.
    """

    def between(start: int, stop: int) -> Sequence[Piece]:
        return [piece for piece in pieces if piece.start < stop and start < piece.stop]

    return dataclasses.replace(prepared, pieces=between)


def refuse_unknown(facts: dict[str, Any], version: str | None) -> None:
    """Raise `InputError` where a model has parts that nothing stands for, and no name was given for it.

    Args:
        facts: As `Prepared.facts` has them.
        version: The name.
    """
    unknown = facts.get("unknown", ())
    if unknown and version is None:
        raise InputError(
            f"model: it cannot be told whether {', '.join(unknown)} will be the same when the run goes on; give the "
            "model as it is now a name of your own (model_version, --model-version)"
        )


def differences(there: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two sets of facts, in words.

    Args:
        there: The facts of a run that is there.
        wanted: Those of the run that is to go on with it.
        prefix: What to call the place of these facts.
    """
    found = []
    for key in sorted({*there, *wanted}):
        a, b = there.get(key), wanted.get(key)
        if key == "asked":
            continue  # what it was settled to is compared
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{key}." if prefix == "" and key != "job" else prefix)
        elif a != b:
            found.append(f"{prefix}{key} is {a!r} there and {b!r} here")
    return found
