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
from .._internal.kinds import kind_of
from ..datasets import media
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


def check_export(path: str | Path, model: Any = None, *, n: int = 1, decoded: bool = True) -> None:
    """Raise `InputError` for a kind of file that `export` does not write.

    Args:
        path: Where the samples are to be written.
        model: The model, if it is known; what its samples are is then looked at, too.
        n: How many samples there will be.
        decoded: Whether they are decoded; else latents are written.
    """
    media.check_writes(path, model, n=n, decoded=decoded)


def export(run: Run, path: str | Path, decode: Callable[[Tensor], Any] | None = None, *, model: Any = None) -> Path:
    """Write all samples of a finished run to one place.

    A .npy, and the files in a folder, are written part by part and never in memory as a whole. A .safetensors file, and
    a picture or a video, in which all samples lie side by side, are.

    Args:
        run: The run.
        path: A .npy, a .safetensors, a picture, a video, a sound, or a folder for one file per sample: a PNG, a folder
            of frames, or a sound. Files are written whole or not at all.
        decode: From latents to images; by default the latents are written.
        model: The model, which says what its samples are: a frame rate and a sample rate are known with it alone.

    Returns:
        The path.

    Raises:
        InputError: The run is not finished or has no samples, the kind of file is another, or a sheet would be too
            large.
        CorruptFileError: A shard is damaged.
        StorageError: It cannot be written.
        MissingExtraError: The package that writes such files is not installed.
    """
    path, decoded = Path(path), decode is not None or not hasattr(model, "decode")
    check_export(path, model, n=run.job.n, decoded=decoded)
    how: dict[str, Any] = {"model": model, "fps": _rate(run.job, model), "decoded": decoded}
    decode = decode or _as_they_are
    if path.suffix.lower() == ".npy":
        _write_array(run, path, decode)
    elif path.suffix:
        media.write(path, _whole(run, path, decode), **how)
    else:
        at = 0
        for x in results(run):
            media.write_each(path, decode(x), at, **how)
            at += len(x)
    return path


def _as_they_are(x: Tensor) -> Tensor:
    return x


def _rate(job: Job, model: Any) -> float | None:
    """The frame rate of the video that a run began with, or of the first of several; None where there was none."""
    given = getattr(job, "input", None)
    if given is None or model is None or kind_of(model) not in ("videos", "joined") or media.is_array(given):
        return None
    return media.rate_of(media.listed(given, model)[0]) if Path(given).exists() else None


def _write_array(run: Run, path: Path, decode: Callable[[Tensor], Any]) -> None:
    with files.replacing(path) as part:
        whole, at = None, 0
        for latents in results(run):
            shown = decode(latents)
            if not isinstance(shown, Tensor):
                raise InputError(f"out: the samples decode to {', '.join(shown)}; a .npy holds one; give .safetensors")
            x = shown.cpu().numpy()
            if whole is None:
                shape = (run.job.n, *x.shape[1:])
                whole = np.lib.format.open_memmap(part, mode="w+", dtype=x.dtype, shape=shape)
            whole[at : at + len(x)] = x
            at += len(x)
        assert whole is not None
        whole.flush()


def _whole(run: Run, path: Path, decode: Callable[[Tensor], Any]) -> Tensor | dict[str, Tensor]:
    """All samples in memory, or several things of each by name."""
    found: list[Any] = []
    for x in results(run):
        shown = decode(x)
        found.append(shown.cpu() if isinstance(shown, Tensor) else {name: v.cpu() for name, v in shown.items()})
        size = media.numbers(found[0]) * run.job.n
        if run.job.n > 1 and path.suffix.lower() not in media.ARRAYS and size > SHEET:
            raise InputError(f"out: a sheet of {run.job.n} pictures is too large; give a folder for one per sample")
    if isinstance(found[0], Tensor):
        return torch.cat(found)
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}
