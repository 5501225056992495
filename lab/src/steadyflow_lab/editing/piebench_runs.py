"""Runs of PIE-Bench: several settings over all pictures, in batches that are kept as they come.

A setting is a solver, a guidance scale and a smoothing. Each batch of pictures of a setting is a cell of its own in the
folder, so that an interruption loses no more than the batch in hand; the same call goes on. Every setting has its own
fingerprint in the result file, over the protocol, the feature extractors and all that decides its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from steadyflow import __version__, edit
from steadyflow.datasets import arrays
from steadyflow.diffusers.pipeline_model import PipelineModel
from steadyflow.editing.base import SmoothedWays
from steadyflow.errors import InputError
from steadyflow.loading import fingerprint as weights_of
from steadyflow.metrics import Extractor
from steadyflow.runs.engines import InProcess
from steadyflow.solvers import get
from steadyflow.solvers.base import steps_for

from ..cached_results import cached_results
from ..precision import load_in
from .piebench import METRICS, PROTOCOL, SIDE, Item, Score, fingerprint, items, score, sized, summary

BATCH = 4


@dataclass(frozen=True)
class Setting:
    """How all pictures are edited.

    Raises `InputError` for a radius below 0, or a way that is none.
    """

    solver: str
    guidance: float
    nfe: int = 48
    smooth: float = 0.0
    """The radius over which the field is averaged; 0 for none."""
    when: str = "inversion"
    """On which way: "inversion", "generation" or "both"."""

    def __post_init__(self):
        if self.smooth < 0.0 or self.when not in get_args(SmoothedWays):
            known = ", ".join(get_args(SmoothedWays))
            raise InputError(f"smooth: got {self.smooth:g} ({self.when}), expected a radius and one of {known}")

    @property
    def name(self) -> str:
        """In words."""
        smooth = f", smoothed {self.smooth:g} ({self.when})" if self.smooth else ""
        return f"{self.solver}, guidance {self.guidance:g}{smooth}"

    def facts(self, model: str, device: str, dtype: str) -> dict[str, Any]:
        """What decides the numbers, for the fingerprint."""
        smoothing = {"radius": self.smooth, "when": self.when} if self.smooth else None
        spec = get(self.solver).spec()
        facts = {"model": model, "solver": spec, "nfe": self.nfe, "guidance": self.guidance, "smoothing": smoothing}
        return {**facts, "device": device, "dtype": dtype, "version": __version__}

    def options(self) -> dict[str, Any]:
        """The words of `steadyflow.edit`."""
        solver = get(self.solver)
        words: dict[str, Any] = {"solver": solver, "steps": steps_for(solver, self.nfe), "guidance": self.guidance}
        return {**words, "smoothing": self.smooth, "smooth": self.when} if self.smooth else words


@dataclass(frozen=True)
class Batch:
    """The scores of some pictures."""

    scores: list[Score]


def load(name: str, device: str = "cpu", dtype: str = "float32") -> PipelineModel:
    """Load a pipeline whose networks compute in a precision.

    Raises `InputError` for a model that is no pipeline, `UnknownNameError` for a precision.
    """
    model = load_in(name, device, dtype)
    if not isinstance(model, PipelineModel):
        raise InputError(f"model: {name!r} is no diffusers pipeline; PIE-Bench needs one that takes prompts")
    return model


def run(
    model: PipelineModel,
    data: str | Path,
    settings: Sequence[Setting],
    *,
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = BATCH,
    extractors: dict[str, Extractor] | None = None,
    perceptual: bool = False,
    limit: int | None = None,
    folder: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Edit and score every picture of the benchmark in every setting; give what belongs into the result file.

    name: of the model. extractors: under "clip" and "dino", where their weights are at hand. perceptual: LPIPS, with
    torchvision. folder: where batches are kept, and found again. progress: called with each picture that is done.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, expected at least 1")
    extractors = extractors or {}
    hashes = {key: extractor.hash for key, extractor in extractors.items()}
    pictures, results = items(data, limit), []
    weights, contents = weights_of(model), [item.content for item in pictures]
    starts = range(0, len(pictures), batch_size)
    for setting in settings:
        facts = setting.facts(name, device, dtype)
        mark = fingerprint(hashes, **facts, lpips=perceptual, weights=weights, data=contents)
        cells = [(f"cells/piebench-{mark}-{start:05d}-{batch_size}", start) for start in starts]
        work = partial(_batch, model, pictures, setting, batch_size, extractors, perceptual)
        found: dict[int, Batch] = {}
        for k, batch in cached_results(InProcess(), work, cells, folder, {"fingerprint": mark}, _read):
            found[k] = batch
            if progress is not None:
                for one in batch.scores:
                    progress(one.key)
        scores = [score for k in range(len(cells)) for score in found[k].scores]
        results.append(_as_json(setting, scores, hashes, mark, facts))
    return results


def table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Give the means as text: the headings, and one row a setting."""
    rows = [[one["setting"], *(f"{one['means'][key]:.4g}" for key in METRICS), one["fingerprint"]] for one in results]
    return ["setting", *METRICS, "fingerprint"], rows


def _as_json(
    setting: Setting, scores: Sequence[Score], hashes: dict[str, str], mark: str, facts: dict[str, Any]
) -> dict[str, Any]:
    return {
        "setting": setting.name,
        "fingerprint": mark,
        "protocol": PROTOCOL,
        "extractors": hashes,
        "settings": facts,
        "means": summary(scores),
        "scores": [asdict(score) for score in scores],
    }


def _read(fields: dict[str, Any]) -> Batch:
    return Batch([Score(**one) for one in fields["scores"]])


def _batch(
    model: PipelineModel,
    pictures: Sequence[Item],
    setting: Setting,
    batch_size: int,
    extractors: dict[str, Extractor],
    perceptual: bool,
    start: int,
) -> Batch:
    """Edit and score the pictures of one batch."""
    chosen = pictures[start : start + batch_size]
    images = torch.cat([arrays.read(item.path, model.image_shape, resize=True) for item in chosen])
    targets, sources = [item.target for item in chosen], [item.source for item in chosen]
    edited = edit(model, model.encode(images), targets, source=sources, **setting.options(), progress=False).x
    shown = sized(model.decode(edited).float().cpu())
    return Batch(list(_scores(chosen, shown, extractors, perceptual)))


def _scores(
    chosen: Sequence[Item], shown: torch.Tensor, extractors: dict[str, Extractor], perceptual: bool
) -> Iterator[Score]:
    for item, picture in zip(chosen, shown, strict=True):
        original = arrays.read(item.path, (3, SIDE, SIDE), resize=True)
        yield Score(item.key, item.category, score(original, picture[None], item, extractors, perceptual))
