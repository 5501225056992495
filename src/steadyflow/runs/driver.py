"""`carry_out`: begin a run, or go on with it, until it is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..integrate import progress_bar
from .engines import Engine, InProcess
from .folder import RunFolder, Shard
from .jobs import Job

SHARDS = 1024
"""At most about so many shards by default."""


def carry_out(
    job: Job,
    folder: str | Path,
    *,
    engine: Engine | None = None,
    shard: int | None = None,
    progress: bool | None = None,
    model: Any = None,
) -> RunFolder:
    """Do a job in a folder, or what is left of it there; the same call goes on after any interruption.

    engine: in this process by default. shard: samples a file, a multiple of the job's block; by default the block, or
    more where that would make more than about a thousand files. None of these, nor interruptions, change the results
    by a bit. progress: a bar on standard error; by default at a terminal. model: the job's, where it has been loaded
    already.

    Raises `InputError` for a folder with another run or one that another process works on, `StorageError` where the
    disk is full; what is done stays.
    """
    size, threads = shard_size(job, shard), torch.get_num_threads()
    try:
        return _carried_out(job, folder, engine or InProcess(), size, progress, model)
    finally:
        torch.set_num_threads(threads)  # the job has set its own


def _carried_out(
    job: Job, folder: str | Path, engine: Engine, size: int, progress: bool | None, model: Any
) -> RunFolder:
    prepared = job.prepare(model)
    with RunFolder.held(folder, job, prepared.fingerprints()) as (run, writer):
        kept, _ = writer.resume()
        done = sum(one.stop - one.start for one in kept)
        bar = progress_bar(progress, job.n, unit="sample")
        try:
            bar.update(done)
            for result in engine.run(job, prepared, missing(job, kept, size)):
                writer.add(*result)
                bar.update(result.stop - result.start)
        finally:
            bar.close()
    return run


def shard_size(job: Job, wanted: int | None) -> int:
    """Samples a shard. Raises `InputError` for one that is no multiple of the block."""
    if wanted is None:
        return job.block * max(1, -(-job.n // (job.block * SHARDS)))
    if wanted < 1 or wanted % job.block:
        raise InputError(f"shard: got {wanted}, expected a multiple of the block of {job.block} samples")
    return wanted


def missing(job: Job, kept: list[Shard], size: int) -> Iterator[tuple[int, int]]:
    """The ranges that are not done, cut into shards."""
    at = 0
    for start, stop in [*((one.start, one.stop) for one in kept), (job.n, job.n)]:
        for begin in range(at, start, size):
            yield begin, min(begin + size, start)
        at = stop
