"""`run_job`: begin a run, or go on with it, until it is done; `export`: its samples out of its shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._integrate import progress_bar
from .._internal import files
from ..datasets import arrays
from ..errors import InputError
from ..tasks import Inversion
from .engines import Engine, InProcess
from .folder import RunFolder, Shard
from .jobs import Job, Part

SHARDS = 1024
"""At most about so many shards by default."""


def run_job(
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


def results(run: RunFolder) -> Iterator[Tensor]:
    """The samples or latents of a finished run shard by shard, (m, ...). Raises `InputError` for a run of diagnoses."""
    reading: dict[str, Callable[[Part], Tensor]] = {
        "sample": lambda part: part.tensors["x"],
        "invert": lambda part: Inversion.unpacked(part.tensors, part.metadata).latent,
    }
    if run.job.task not in reading:
        raise InputError(f"export: a run of {run.job.task!r} has no samples; see `steadyflow runs show`")
    yield from (reading[run.job.task](part) for part in run.parts())


def export(run: RunFolder, path: str | Path, decode: Callable[[Tensor], Tensor] = lambda x: x) -> Path:
    """Write all samples to a .npy, whole or not at all, or each to a PNG in a folder; never all in memory.

    decode: from latents to images, for pictures. Raises `InputError` for a run that is not finished or other kinds of
    files, `CorruptFileError` for a damaged shard, `StorageError` where it cannot be written.
    """
    path = Path(path)
    if path.suffix == ".npy":
        with files.replacing(path) as part:
            whole, at = None, 0
            for x in results(run):
                if whole is None:
                    shape = (run.job.n, *x.shape[1:])
                    whole = np.lib.format.open_memmap(part, mode="w+", dtype=x.numpy().dtype, shape=shape)
                whole[at : at + len(x)] = x.numpy()
                at += len(x)
            assert whole is not None
            whole.flush()
        return path
    if path.suffix:
        raise InputError(f"export: got {path.name}, expected a .npy or a folder for pictures")
    at = 0
    for x in results(run):
        for image in decode(x):
            arrays.write(path / f"{at:09d}.png", image[None])
            at += 1
    return path
