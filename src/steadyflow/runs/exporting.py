"""The samples or latents of a finished run, out of its shards: one .npy, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from .. import arrays, files
from ..errors import InputError
from ..tasks import Inversion
from .folder import RunFolder
from .jobs import Part


def results(run: RunFolder) -> Iterator[Tensor]:
    """The samples or latents shard by shard, (m, ...). Raises `InputError` for a run of diagnoses."""
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
