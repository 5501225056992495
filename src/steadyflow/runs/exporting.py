"""The samples of a finished run: in order, to a file, or to a folder of pictures.

A sample that was set aside has NaN in arrays, so that row k stays sample k; no file in a folder; and a grey place in a
sheet of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._internal import files
from .._internal.kinds import frame_rate, kind_of
from ..datasets import films, media
from ..datasets.sources import CHUNKS
from ..errors import InputError
from .jobs import Job
from .run import Run

SHEET = 64_000_000
"""Numbers in the largest sheet of pictures."""


def results(run: Run) -> Iterator[Tensor]:
    """The samples or latents of a finished run part by part, (m, ...), NaN where they were set aside.

    Raises `InputError` for a run of diagnoses.
    """
    at, like = 0, None
    for start, part in run.stretches():
        x = run.job.samples(part)
        like = x[:1]
        if at < start:
            yield _absent(like, start - at)
        yield x
        at = start + len(x)
    if like is not None and at < run.job.n:
        yield _absent(like, run.job.n - at)


def _absent(like: Tensor, n: int) -> Tensor:
    """Rows that say nothing."""
    return torch.full((n, *like.shape[1:]), float("nan"), dtype=like.dtype)


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
    elif _is_film(run, path):
        films.write(path, films.joined(_chunks(run, decode)), frame_rate(model) if how["fps"] is None else how["fps"])
    elif path.suffix:
        media.write(path, _whole(run, path, decode), **how)
    else:
        for start, part in run.stretches():
            media.write_each(path, decode(run.job.samples(part)), start, **how)
        for one in run.aside():
            for k in range(one.start, one.stop):
                _remove_earlier(path, k)
    return path


def _is_film(run: Run, path: Path) -> bool:
    """Whether the samples are chunks of one film, which is to be written as such; an array holds the chunks."""
    if getattr(run.job, "frames", None) != CHUNKS or path.suffix.lower() in media.ARRAYS:
        return False
    return any("frame" in part.tensors for _, part in islice(run.stretches(), 1))


def _chunks(run: Run, decode: Callable[[Tensor], Any]) -> Iterator[tuple[int, Tensor]]:
    """The first frames of the chunks, and the chunks."""
    for _, part in run.stretches():
        for k, first in enumerate(part.tensors["frame"].tolist()):
            yield first, decode(run.job.samples(part)[k : k + 1])[0].cpu()


def _remove_earlier(folder: Path, k: int) -> None:
    """Remove what an earlier export wrote of a sample that has been set aside since."""
    for path in folder.glob(f"{k:09d}*"):
        if path.is_file() and path.suffix in (".png", ".wav", ".mp4") and path.stem == f"{k:09d}":
            path.unlink()
        elif path.is_dir() and path.name == f"{k:09d}":
            for frame in path.glob("*.png"):
                frame.unlink()


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
        for start, found in run.stretches():
            shown = decode(run.job.samples(found))
            if not isinstance(shown, Tensor):
                raise InputError(f"out: the samples decode to {', '.join(shown)}; a .npy holds one; give .safetensors")
            x = shown.cpu().numpy()
            if whole is None:
                shape = (run.job.n, *x.shape[1:])
                whole = np.lib.format.open_memmap(part, mode="w+", dtype=x.dtype, shape=shape)
            whole[at:start] = np.nan
            whole[start : start + len(x)] = x
            at = start + len(x)
        assert whole is not None
        whole[at:] = np.nan
        whole.flush()


def _whole(run: Run, path: Path, decode: Callable[[Tensor], Any]) -> Tensor | dict[str, Tensor]:
    """All samples in memory, or several things of each by name."""
    plain = path.suffix.lower() in media.ARRAYS
    found: list[Any] = []
    at = 0
    for start, part in run.stretches():
        shown = decode(run.job.samples(part))
        one = shown.cpu() if isinstance(shown, Tensor) else {name: v.cpu() for name, v in shown.items()}
        if at < start:
            found.append(_gap(one, start - at, plain))
        found.append(one)
        at = start + len(one if isinstance(one, Tensor) else next(iter(one.values())))
        size = media.numbers(one) * run.job.n
        if run.job.n > 1 and not plain and size > SHEET:
            raise InputError(f"out: a sheet of {run.job.n} pictures is too large; give a folder for one per sample")
    if at < run.job.n:
        found.append(_gap(found[-1], run.job.n - at, plain))
    if isinstance(found[0], Tensor):
        return torch.cat(found)
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def _gap(like: Any, n: int, plain: bool) -> Any:
    """What stands for n samples that were set aside: NaN among numbers, and grey among pictures."""
    if isinstance(like, Tensor):
        return _absent(like, n) if plain else torch.zeros(n, *like.shape[1:], dtype=like.dtype)
    return {name: _gap(value, n, plain) for name, value in like.items()}
