"""`run_job`: do a job, in a folder or in memory; `export`: its samples to a file, or to a folder of pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._integrate import progress_bar
from .._internal import files
from ..datasets import arrays
from ..errors import InputError
from .engines import Engine, InProcess
from .folder import RunFolder, Shard
from .jobs import Job, Part, Prepared

SHARDS = 1024
"""At most about so many shards by default."""
SHEET = 64_000_000
"""Numbers in the largest sheet of pictures."""


@dataclass(frozen=True)
class RunInMemory:
    """A finished run whose parts are in memory; it is read as a `RunFolder` is."""

    job: Job
    blocks: tuple[Part, ...]
    """The results in order, as the engine gave them."""

    def parts(self) -> Iterator[Part]:
        """The results in order."""
        yield from self.blocks

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
    progress: bool | None = None,
    model: Any = None,
) -> Run:
    """Do a job, in memory, or in a folder, where the same call goes on after any interruption.

    Args:
        job: The work.
        folder: Where the run works; without one, all results are kept in memory, and the torch threads are those of the
            process and not of the job.
        engine: What does the work; this process by default. Neither this nor shards nor interruptions change the
            results by a bit.
        shard: In a folder, samples per file, a multiple of the job's block; by default the block, or more where that
            would make more than about a thousand files.
        progress: A bar on standard error; by default at a terminal.
        model: The job's, where it has been loaded already.

    Raises:
        InputError: The folder holds another run, or one that another process works on; or the job cannot be done.
        StorageError: The disk is full; what is done stays.
    """
    if folder is None and shard is not None:
        raise InputError("shard: only valid with a folder, in whose files it counts the samples")
    threads = torch.get_num_threads()
    try:
        if folder is None:
            return _in_memory(job, engine or InProcess(), progress, model, threads)
        return _in_folder(job, folder, engine or InProcess(), shard_size(job, shard), progress, model)
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
            parts[done.start] = done.part
            bar.update(done.stop - done.start)
    finally:
        bar.close()
    return RunInMemory(prepared.job, tuple(parts[start] for start in sorted(parts)))


def _in_folder(job: Job, folder: str | Path, engine: Engine, size: int, progress: bool | None, model: Any) -> RunFolder:
    prepared: Prepared = job.prepare(model)
    job = prepared.job
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
    """Samples per shard. Raises `InputError` for one that is no multiple of the block."""
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


def results(run: Run) -> Iterator[Tensor]:
    """The samples or latents of a finished run part by part, (m, ...). Raises `InputError` for a run of diagnoses."""
    for part in run.parts():
        yield run.job.samples(part)


def check_export(path: str | Path) -> None:
    """Raise `InputError` for a kind of file that `export` does not write."""
    kind = Path(path).suffix.lower()
    if kind not in ("", ".npy", ".safetensors", *arrays.PICTURES):
        raise InputError(
            f"out: {Path(path).name} is of an unknown kind; expected a .npy or a folder for pictures, .safetensors, or "
            f"one picture ({', '.join(arrays.PICTURES)})"
        )


def export(run: Run, path: str | Path, decode: Callable[[Tensor], Tensor] = lambda x: x) -> Path:
    """Write all samples of a finished run to one place.

    A .npy, and pictures in a folder, are written part by part and never in memory as a whole. A .safetensors file and a
    picture, which is a sheet of all samples, are.

    Args:
        run: The run.
        path: A .npy, a .safetensors, a picture, or a folder for one PNG per sample. Files are written whole or not at
            all.
        decode: From latents to images.

    Returns:
        The path.

    Raises:
        InputError: The run is not finished or has no samples, the kind of file is another, or a sheet would be too
            large.
        CorruptFileError: A shard is damaged.
        StorageError: It cannot be written.
    """
    path = Path(path)
    check_export(path)
    if path.suffix.lower() == ".npy":
        _write_array(run, path, decode)
    elif path.suffix:
        arrays.write(path, _whole(run, path, decode))
    else:
        at = 0
        for x in results(run):
            for image in decode(x):
                arrays.write(path / f"{at:09d}.png", image[None])
                at += 1
    return path


def _write_array(run: Run, path: Path, decode: Callable[[Tensor], Tensor]) -> None:
    with files.replacing(path) as part:
        whole, at = None, 0
        for latents in results(run):
            x = decode(latents).cpu().numpy()
            if whole is None:
                shape = (run.job.n, *x.shape[1:])
                whole = np.lib.format.open_memmap(part, mode="w+", dtype=x.dtype, shape=shape)
            whole[at : at + len(x)] = x
            at += len(x)
        assert whole is not None
        whole.flush()


def _whole(run: Run, path: Path, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """All samples in memory."""
    found: list[Tensor] = []
    for x in results(run):
        found.append(decode(x).cpu())
        size = found[0][0].numel() * run.job.n
        if path.suffix.lower() in arrays.PICTURES and size > SHEET:
            raise InputError(f"out: a sheet of {run.job.n} pictures is too large; give a folder for one per sample")
    return torch.cat(found)
