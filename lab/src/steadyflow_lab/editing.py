"""What is kept against what is changed: edits of real pictures by many solvers at equal evaluations (2605.16399).

The bundled pipeline "ink" edits held-out pictures of handwritten digits: each is inverted under its own caption and
generated under another, once with another digit, once in another ink. Kept is what lies outside the strokes (PSNR and
SSIM against the original); changed is judged by a network that reads digit and ink off the picture. Evaluations count
one way, the two branches of guidance as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from steadyflow import solvers
from steadyflow._internal import tensors
from steadyflow._version import __version__
from steadyflow.datasets.ink import INKS, WORDS, Pictures, caption, ink
from steadyflow.denoisers.smoothing import Smoothing
from steadyflow.diffusers.pipeline_model import PipelineModel, load_pipeline
from steadyflow.errors import NonFiniteError
from steadyflow.metrics import psnr, rmse, ssim
from steadyflow.metrics.features import structure_distance, weights_hash
from steadyflow.metrics.statistics import Estimate, average, wilson
from steadyflow.models import pipeline_folder
from steadyflow.runs.engines import Engine, InProcess
from steadyflow.solvers.base import steps_for
from steadyflow.tasks import invert

from .cached_results import cached_results
from .judge import Judge
from .models import WEIGHTS
from .watching import Largest

SMOOTH = Smoothing(0.2)
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ddim", {}),
    ("heun", {}),
    ("rk4", {}),
    ("ees25", {}),
    ("ees27", {}),
    ("edict", {}),
    ("bdia", {}),
    ("belm", {}),
    ("rex-euler", {}),
    ("rex-midpoint", {}),
    ("rex-midpoint", {"coupling": "auto"}),
    ("rex-rk4", {}),
    ("ddim", {"smoothing": SMOOTH}),
    ("ees25", {"smoothing": SMOOTH}),
    ("rex-midpoint", {"smoothing": SMOOTH}),
)
QUICK = (("ddim", {}), ("ees25", {}), ("rex-midpoint", {}))
GUIDANCES = (1.0, 2.0, 3.0, 5.0, 7.5)
BLOWN = 3.0
"""A latent beyond this many times the largest number in the sources' latents counts as blown up."""


class InkExtractor:
    """The trained judge as an extractor.

    Its alignment is the probability of the digit and the ink that a caption names.
    """

    name = "judge of ink pictures"

    def __init__(self):
        self._judge = Judge(len(WORDS), len(INKS))
        weights = load_file(WEIGHTS / "judge.safetensors")
        self._judge.load_state_dict({name: value.float() for name, value in weights.items()})
        self._judge.eval().requires_grad_(False)

    @property
    def hash(self) -> str:
        """The hash of the weights."""
        return weights_hash([self._judge])

    def features(self, images: Tensor) -> Tensor:
        """Give the features that the judge reads, (B, 96)."""
        return self._judge.features(images)

    def patches(self, images: Tensor) -> Tensor:
        """Give the features of each part of the picture, (B, 16, 96)."""
        return self._judge.body[:8](images).flatten(2).transpose(1, 2)

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give the log-probabilities of the digits (B, 10) and of the inks (B, 4)."""
        digit, colour = self._judge(images)
        return functional.log_softmax(digit, 1), functional.log_softmax(colour, 1)

    def alignment(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Give the probability that the judge gives to all that the prompt names, (B,)."""
        digit, colour = self.read(images)
        total = torch.zeros(len(images))
        for k, prompt in enumerate(prompts):
            words = prompt.split()
            total[k] += sum(digit[k, WORDS.index(w)] for w in words if w in WORDS)
            total[k] += sum(colour[k, list(INKS).index(w)] for w in words if w in INKS)
        return total.exp()


@dataclass(frozen=True)
class Task:
    """Pictures, their captions, and where they are to go."""

    name: str
    pictures: Pictures
    sources: list[str]
    targets: list[str]


def tasks(n: int, seed: int = 0) -> list[Task]:
    """Make two tasks of the same n held-out pictures: to give them another digit, or another ink."""
    pictures = ink("held-out", n, torch.Generator().manual_seed(seed))
    sources = [pictures.caption(k) for k in range(n)]
    inks = list(INKS)
    digits, colours = pictures.digits.tolist(), pictures.inks.tolist()
    other = [caption((d + 3) % 10, inks[c]) for d, c in zip(digits, colours, strict=True)]
    recoloured = [caption(d, inks[(c + 1) % len(inks)]) for d, c in zip(digits, colours, strict=True)]
    return [Task("digit", pictures, sources, other), Task("ink", pictures, sources, recoloured)]


@dataclass(frozen=True)
class Row:
    """What one method gave at one guidance on one task."""

    task: str
    method: str
    guidance: float
    kept: Estimate
    """PSNR outside the strokes, dB."""
    similar: Estimate
    """SSIM outside the strokes."""
    aligned: Estimate
    """The judge's probability of the target."""
    success: Estimate
    """Share of pictures whose target is the likeliest reading."""
    structure: Estimate
    """Structure distance to the source."""
    blown: float
    """Share of pictures whose latent blew up."""
    largest: float
    """Largest |latent| on the way."""
    round_trip: float
    """Median RMSE of the latents' own round trip."""


def study(
    *,
    n: int = 96,
    nfe: int = 48,
    guidances: Sequence[float] = GUIDANCES,
    methods: Sequence[tuple[str, dict[str, Any]]] = METHODS,
    folder: str | Path | None = None,
    engine: Engine | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Try all methods at the same evaluations each way, over both tasks and the guidance scales.

    folder: where the rows of each method are written as JSON, and read again instead of computed. engine: where the
    methods are tried, in this process by default. progress: called with each method that is done.
    """
    names = [_label(name, options) for name, options in methods]
    stamp = {"version": __version__, "n": n, "nfe": nfe, "guidances": list(guidances)}
    cells = [(f"editing-{re.sub('[^a-z0-9.]+', '-', label)}", m) for label, m in zip(names, methods, strict=True)]
    work, found = partial(_method, n, nfe, tuple(guidances)), {}
    for k, rows in cached_results(engine or InProcess(), work, cells, folder, stamp, _rows):
        found[k] = rows
        if progress is not None:
            progress(names[k])
    return [row for k in range(len(names)) for row in found[k]]


def _label(name: str, options: dict[str, Any]) -> str:
    """Name a method in words."""
    smoothing = options.get("smoothing")
    label = name + "".join(f", {k}={v}" for k, v in options.items() if k != "smoothing")
    return label + (f", smoothed {smoothing.radius}" if smoothing else "")


def _rows(data: list[dict[str, Any]]) -> list[Row]:
    """Make rows from their JSON."""

    def value(entry: Any) -> Any:
        return Estimate(**entry) if isinstance(entry, dict) else entry

    return [Row(**{name: value(entry) for name, entry in fields.items()}) for fields in data]


@cache
def _setting(n: int) -> tuple[PipelineModel, InkExtractor, list[Task], Tensor]:
    """Load the model, the judge, the tasks and the latents of their pictures, once per process."""
    model, jobs = bundled(), tasks(n)
    return model, InkExtractor(), jobs, model.encode(jobs[0].pictures.images)


def _method(n: int, nfe: int, guidances: tuple[float, ...], method: tuple[str, dict[str, Any]]) -> list[Row]:
    """Make the rows of one method."""
    model, judge, jobs, latents = _setting(n)
    name, options = method
    label, limit, rows = _label(name, options), BLOWN * latents.abs().max().item(), []
    solver = solvers.get(name, **{k: v for k, v in options.items() if k != "smoothing"})
    field = model.with_smoothing(options.get("smoothing"))
    inversion = invert(
        field.with_condition(jobs[0].sources), latents, solver=solver, steps=steps_for(solver, nfe // field.cost)
    )
    back = rmse(inversion.decode().x, latents).median().item()
    for task in jobs:
        for guidance in guidances:
            seen = Largest()
            try:
                edited = inversion.decode(field.with_condition(task.targets), guidance, callback=seen).x
            except NonFiniteError:
                edited, seen.value = torch.full_like(latents, torch.inf), torch.inf
            rows.append(_row(task, label, guidance, model, judge, edited, limit, seen.value, back))
    return rows


def _row(
    task: Task,
    label: str,
    guidance: float,
    model: PipelineModel,
    judge: InkExtractor,
    edited: Tensor,
    limit: float,
    largest: float,
    back: float,
) -> Row:
    """Judge the edits of a task; what blew up is decoded with its numbers cut at the limit."""
    blown = (tensors.max_abs(edited) > limit) | ~edited.flatten(1).isfinite().all(1)
    edited = edited.nan_to_num(0.0, limit, -limit).clamp(-limit, limit)
    images = model.decode(edited).clamp(-1.0, 1.0)
    source = task.pictures.images
    paper = (~task.pictures.strokes).float()
    aligned = judge.alignment(images, task.targets)
    wanted = [_reading(prompt) for prompt in task.targets]
    seen = zip(*(part.argmax(1).tolist() for part in judge.read(images)), strict=True)
    hits = sum(a == b for a, b in zip(seen, wanted, strict=True))
    some = paper.flatten(1).sum(1) > 0
    return Row(
        task.name,
        label,
        guidance,
        average(psnr(images, source, span=2.0, region=paper)[some]),
        average(ssim(images, source, span=2.0, region=paper)[some]),
        average(aligned),
        wilson(hits, len(images)),
        average(structure_distance(judge, images, source)),
        blown.float().mean().item(),
        largest,
        back,
    )


def _reading(prompt: str) -> tuple[int, int]:
    words = prompt.split()
    digit = next(WORDS.index(w) for w in words if w in WORDS)
    return digit, next(list(INKS).index(w) for w in words if w in INKS)


def table(rows: Sequence[Row], task: str) -> tuple[list[str], list[list[str]]]:
    """Give the headings and the cells for a task."""
    heads = ["method", "guidance", "paper PSNR", "paper SSIM", "alignment", "success", "structure x1e3", "blown up"]
    heads += ["largest |z|", "round trip"]
    cells = []
    for row in rows:
        if row.task == task:
            cells.append(
                [
                    row.method,
                    f"{row.guidance:g}",
                    _interval(row.kept, "{:.2f}"),
                    f"{row.similar.value:.3f}",
                    _interval(row.aligned, "{:.3f}"),
                    f"{row.success.value:.1%}",
                    f"{1000 * row.structure.value:.2f}",
                    f"{row.blown:.1%}",
                    f"{row.largest:.3g}",
                    f"{row.round_trip:.1e}",
                ]
            )
    return heads, cells


def _interval(value: Estimate, how: str) -> str:
    return f"{how.format(value.value)} [{how.format(value.low)}, {how.format(value.high)}]"


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw kept against changed, one curve per method over guidance, one panel per task."""
    names = list(dict.fromkeys(row.task for row in rows))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, task in zip(panels, names, strict=True):
        for k, method in enumerate(dict.fromkeys(row.method for row in rows)):
            line = [row for row in rows if row.task == task and row.method == method]
            style = (
                "o--" if "smoothed" in method else "s:" if method.startswith(("rex", "edict", "bdia", "belm")) else "o-"
            )
            axes.plot(
                [r.aligned.value for r in line], [r.kept.value for r in line], style, ms=3, lw=1, color=f"C{k % 10}",
                label=method,
            )  # fmt: skip
        axes.set(xlabel="alignment with the target", ylabel="PSNR of the paper, dB", title=f"another {task}")
    panels[-1].legend(frameon=False, fontsize=7)


def pictures(
    model: PipelineModel, methods: Sequence[str], *, n: int = 6, guidance: float = 5.0, nfe: int = 48
) -> Tensor:
    """Make a sheet to look at: the sources, and one row of edits per method; (rows * n, 3, 32, 32)."""
    task = tasks(n)[0]
    latents, rows = model.encode(task.pictures.images), [task.pictures.images]
    for name in methods:
        solver = solvers.get(name)
        inversion = invert(model.with_condition(task.sources), latents, solver=solver, steps=steps_for(solver, nfe))
        edited = inversion.decode(model.with_condition(task.targets), guidance).x
        rows.append(model.decode(edited.clamp(-1e3, 1e3)).clamp(-1.0, 1.0))
    return torch.cat(rows)


def bundled() -> PipelineModel:
    """Load the pipeline that the study edits with."""
    return load_pipeline(pipeline_folder("ink"))
