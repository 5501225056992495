"""Edits of held-out scenes whose truth is known: what was asked for, and which pixels it concerns.

Pictures of real digits over real photographs (`steadyflow_lab.datasets.scenes`) that the pipeline and its judge were
not trained on. Every fourth one is given another digit, another colour, another place, or no digit. The pixels that an
edit may change are known exactly: the square of the digit (and that of its new place), or its strokes for a colour and
for none. Everything else is background, whose error needs no proxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from steadyflow.diffusers import PipelineModel

from ..datasets.scenes import COLOURS, DIGITS, PLACES, SIDE, SIZES, Scenes, caption, scenes
from ..models import WEIGHTS, load
from ..scenes_judge import SceneJudge, Seen

KINDS = ("digit", "colour", "place", "remove")
_MARGIN = 3
"""Pixels around a square or a stroke that an edit may change, as antialiasing and the codec blur its edge."""


@dataclass(frozen=True)
class SceneTask:
    """Held-out pictures, what they are to become, and where."""

    pictures: Scenes
    kinds: list[str]
    """Of each picture, one of `KINDS`."""
    sources: list[str]
    targets: list[str]
    wanted: Tensor
    """(n, 4): digit (10 for none), colour, size and place after the edit."""
    masks: Tensor
    """Where the edit may change something, bool, shape (n, 1, 64, 64)."""
    latents: Tensor
    """The pictures in the pipeline's latents."""
    decoded: Tensor
    """What the codec makes of them."""

    def __len__(self) -> int:
        return len(self.kinds)


@dataclass(frozen=True)
class SceneEdits:
    """What is seen of edited pictures; one entry each."""

    done: list[bool]
    """Whether the judge sees the digit, the colour and the place that were asked for, or that there is none."""
    asked: list[bool]
    """Whether it sees the one thing that was to change, whatever became of the rest."""
    background: list[float]
    """Root mean square error outside the mask against the source as the codec gives it, of a range of 1."""
    blown: list[bool]
    """Whether the edit is not finite, or has a latent beyond three times the largest of the sources."""


@cache
def judge() -> SceneJudge:
    """Load the judge, once per process."""
    made = SceneJudge()
    weights = load_file(WEIGHTS / "scenes-judge.safetensors")
    made.load_state_dict({name: value.float() for name, value in weights.items()})
    return made.eval().requires_grad_(False)


@cache
def scene_model() -> PipelineModel:
    """Load the pipeline that is edited with, once per process."""
    return cast(PipelineModel, load("scenes"))


@cache
def scene_task(n: int, seed: int = 0) -> SceneTask:
    """Draw n held-out pictures with an edit each.

    Args:
        n: How many.
        seed: Of the pictures and of the edits.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    pictures = scenes("test", n, generator, empty=0.0)
    facts = torch.stack([pictures.digit, pictures.colour, pictures.size, pictures.place], 1)
    wanted, kinds = facts.clone(), [KINDS[k % len(KINDS)] for k in range(n)]
    others = torch.rand(n, 3, generator=generator)
    for k, kind in enumerate(kinds):
        if kind == "remove":
            wanted[k, 0] = len(DIGITS)
        else:
            column, names = {"digit": (0, DIGITS), "colour": (1, COLOURS), "place": (3, PLACES)}[kind]
            step = 1 + int(others[k, 0] * (len(names) - 1))
            wanted[k, column] = (wanted[k, column] + step) % len(names)
    rows = [(row[0], row[1], row[2], row[3]) for row in wanted.tolist()]
    grounds = pictures.ground.tolist()
    targets = [caption(*row, ground) for row, ground in zip(rows, grounds, strict=True)]
    model = scene_model()
    latents = model.encode(pictures.images)
    return SceneTask(
        pictures,
        kinds,
        [pictures.caption(k) for k in range(n)],
        targets,
        wanted,
        _masks(pictures, wanted, kinds),
        latents,
        model.decode(latents).clamp(-1.0, 1.0),
    )


def _masks(pictures: Scenes, wanted: Tensor, kinds: Sequence[str]) -> Tensor:
    """Where each edit may change something."""
    width = 2 * _MARGIN + 1
    strokes = functional.max_pool2d(pictures.strokes, width, stride=1, padding=_MARGIN) > 0.05
    axis = torch.arange(SIDE) + 0.5
    squares = strokes.clone()
    for k, kind in enumerate(kinds):
        if kind in ("colour", "remove"):
            continue
        side = list(SIZES.values())[int(wanted[k, 2])]
        for place in (int(pictures.place[k]), int(wanted[k, 3])):
            x, y = list(PLACES.values())[place]
            reach = 1.4 * side / 2 + _MARGIN  # with the pixel by which a digit may lie off
            inside = ((axis - x).abs() <= reach)[None, :] & ((axis - y).abs() <= reach)[:, None]
            squares[k, 0] |= inside
    return squares


def looked_at(task: SceneTask, edited: Tensor, start: int = 0) -> SceneEdits:
    """Judge edited latents of the pictures from `start` on.

    Args:
        task: The pictures.
        edited: The latents, (m, 8, 16, 16); not finite where a run diverged.
        start: The first picture.
    """
    stop = start + len(edited)
    limit = 3.0 * task.latents.abs().max().item()
    blown = ~(edited.flatten(1).abs().amax(1) <= limit)
    cut = edited.nan_to_num(0.0, limit, -limit).clamp(-limit, limit)
    images = scene_model().decode(cut).clamp(-1.0, 1.0)
    seen: Seen = judge()(images)
    wanted, kinds = task.wanted[start:stop], task.kinds[start:stop]
    read = torch.stack([part.argmax(1) for part in seen[:4]], 1)
    right = read == wanted
    none = torch.tensor([kind == "remove" for kind in kinds])
    done = torch.where(none, right[:, 0], right[:, 0] & right[:, 1] & right[:, 3])
    asked = right[torch.arange(len(kinds)), torch.tensor([0 if k == "remove" else _COLUMN[k] for k in kinds])]
    outside = (~task.masks[start:stop]).to(images)
    square = ((images - task.decoded[start:stop]) / 2.0).square() * outside
    area = 3.0 * outside.flatten(1).sum(1)
    background = (square.flatten(1).sum(1) / area).sqrt()
    return SceneEdits((done & ~blown).tolist(), (asked & ~blown).tolist(), background.tolist(), blown.tolist())


_COLUMN = {"digit": 0, "colour": 1, "place": 3}


def codec_error(task: SceneTask) -> Tensor:
    """What the codec itself loses of the background, root mean square of a range of 1: the floor of all edits, (n,)."""
    outside = (~task.masks).to(task.decoded)
    square = ((task.decoded - task.pictures.images) / 2.0).square() * outside
    return (square.flatten(1).sum(1) / (3.0 * outside.flatten(1).sum(1))).sqrt()
