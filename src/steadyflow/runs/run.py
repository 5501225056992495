"""`run_job`: do a job, in a folder or in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._integrate import progress_bar
from ..errors import InputError
from .driving import Care, in_folder, missing
from .engines import Engine, InProcess
from .folder import RunFolder
from .job import Aside
from .jobs import Job, Part
from .pins import CHECKS

SHARDS = 1024
"""At most about so many shards by default."""


@dataclass(frozen=True)
class RunInMemory:
    """A finished run whose parts are in memory; it is read as a `RunFolder` is."""

    job: Job
    blocks: tuple[Part, ...]
    """The results in order, as the engine gave them."""
    starts: tuple[int, ...]
    """The first sample of each."""

    def parts(self) -> Iterator[Part]:
        """The results in order."""
        yield from self.blocks

    def stretches(self) -> Iterator[tuple[int, Part]]:
        """The results in order, each with the index of its first sample."""
        yield from zip(self.starts, self.blocks, strict=True)

    def aside(self) -> list[Aside]:
        """Nothing: what cannot be computed ends a run in memory."""
        return []

    def figures(self) -> dict[str, Any]:
        """Figures of the run."""
        return {"samples": self.job.n, **self.job.figures(self.parts)}


Run = RunFolder | RunInMemory
"""A run that can be read: job, parts() and figures()."""


def run_job(
    job: Job,
    folder: str | Path | None = None,
    *,
    engine: Engine | None = None,
    shard: int | None = None,
    strict: bool | None = None,
    check_inputs: str | None = None,
    recompute_changed: bool | None = None,
    model_version: str | None = None,
    progress: bool | None = None,
    model: Any = None,
) -> Run:
    """Do a job, in memory, or in a folder, where the same call goes on after any interruption.

    In a folder, samples whose input cannot be read, whose computation raises an error, or that kill their worker again
    and again are set aside; the rest is finished, with a warning, and the same call tries them again. In memory, the
    first such sample raises its error.

    Args:
        job: The work.
        folder: Where the run works; without one, all results are kept in memory, and the torch threads are those of the
            process and not of the job.
        engine: What does the work; this process by default. Neither this nor shards nor interruptions change the
            results by a bit.
        shard: In a folder, samples per file, a multiple of the job's block; by default the block, or more where that
            would make more than about a thousand files.
        strict: In a folder, whether the first sample that cannot be computed raises its error.
        check_inputs: How a run that goes on compares its inputs with those that it began with: "content" (the default)
            hashes all of them; "times" looks at names, sizes and times alone, and does not see a file of the same size
            whose time was set back.
        recompute_changed: Whether what comes from inputs that have changed is computed again; else they are refused.
        model_version: A name of your own for the model as it is, where it has parts that cannot be told from others.
        progress: A bar on standard error; by default at a terminal.
        model: The job's, where it has been loaded already.

    Raises:
        InputError: The folder holds another run, or one that another process works on; its inputs are not what they
            were; or the job cannot be done.
        StorageError: The disk is full; what is done stays.
    """
    given = {"shard": shard, "strict": strict, "check_inputs": check_inputs, "recompute_changed": recompute_changed}
    for name, value in (given | {"model_version": model_version}).items():
        if folder is None and value is not None:
            raise InputError(f"{name}: only valid with a folder, in which the run works")
    if check_inputs is not None and check_inputs not in CHECKS:
        raise InputError(f"check_inputs: got {check_inputs!r}, expected one of {', '.join(CHECKS)}")
    threads = torch.get_num_threads()
    try:
        if folder is None:
            return _in_memory(job, engine or InProcess(), progress, model, threads)
        words = {"check_inputs": check_inputs, "recompute_changed": recompute_changed or None}
        given_words = tuple(name for name, value in words.items() if value is not None)
        care = Care(
            bool(strict), check_inputs != "times", bool(recompute_changed), model_version, progress, given_words
        )
        return in_folder(job, Path(folder), engine or InProcess(), shard_size(job, shard), care, model)
    finally:
        torch.set_num_threads(threads)  # the job has set its own


def _in_memory(job: Job, engine: Engine, progress: bool | None, model: Any, threads: int) -> RunInMemory:
    prepared = job.prepare(model)
    torch.set_num_threads(threads)
    if job.n <= job.block:  # one call of the verb, which has a bar of its own
        prepared, progress = dataclasses.replace(prepared, progress=progress), False
    parts: dict[int, Part] = {}
    bar = progress_bar(progress, job.n, unit="sample")
    try:
        for done in engine.run(prepared.job, prepared, missing(job, [], job.block)):
            if isinstance(done, Aside):  # by an engine whose workers died of it
                raise InputError(f"{done.name}: {done.cause}")
            parts[done.start] = done.part
            bar.update(done.stop - done.start)
    finally:
        bar.close()
    starts = tuple(sorted(parts))
    return RunInMemory(prepared.job, tuple(parts[start] for start in starts), starts)


def shard_size(job: Job, wanted: int | None) -> int:
    """Samples per shard. Raises `InputError` for one that is no multiple of the block."""
    if wanted is None:
        return job.block * max(1, -(-job.n // (job.block * SHARDS)))
    if wanted < 1 or wanted % job.block:
        raise InputError(f"shard: got {wanted}, expected a multiple of the block of {job.block} samples")
    return wanted
