"""Edits of real videos, and how consistent they stay from frame to frame: the pipeline "moving" and a judge of frames.

Held-out videos of a moving digit are edited from their own caption to another, every other one to another digit, the
rest to another ink. What the edit should leave is known exactly: what lies behind, and the path of the digit. Beside
the methods stand two references: the sources as the codec gives them back, unedited, and the truth, which is a real
digit of what was asked for on the same path. Evaluations count one way, the two branches of guidance as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

import steadyflow as sf
from steadyflow import editing, metrics, solvers
from steadyflow.metrics.statistics import Estimate, average

from ..datasets.mnist import mnist
from ..datasets.moving import COLOURS, DIGITS, FRAMES, SIDE, Moving, caption, draw, moving
from ..findings import shown
from ..models import WEIGHTS, load
from ..moving_judge import MovingJudge
from .methods import AUTO

NFE = 48
"""Evaluations each way."""
GUIDANCE = 3.0
DILATED = 3
"""How many pixels around the exact ink of the source an edit may change."""
CHUNK = 8
_INK = 0.6  # a pixel this far from what lies behind counts as ink, of colours in [-1, 1]
_LEAST = 4.0  # ink below this, in units of `_INK` and pixels, has no place
_AXIS = torch.arange(SIDE) + 0.5

Method = tuple[str, dict[str, Any]]
"""A way of editing by its name, and further words of `steadyflow.edit`, such as its solver."""
METHODS: tuple[Method, ...] = (
    ("inversion", {"solver": "ddim"}),
    ("inversion", {"solver": "ees25"}),
    ("inversion", {"solver": solvers.get("rex-midpoint", **AUTO)}),
    ("direct", {}),
    ("flow-edit", {}),
    ("flow-align", {}),
    ("rf-inversion", {}),
    *(
        (method, {"solver": solver})
        for method in ("masactrl", "plug-and-play", "value-injection")
        for solver in ("ees25", solvers.get("rex-midpoint", **AUTO))
    ),
)
REFERENCES = ("unedited", "truth")


@dataclass(frozen=True)
class Task:
    """Videos, their captions, and where they are to go."""

    given: Moving
    digits: Tensor
    """What they are to show, (n,), as `colours`."""
    colours: Tensor
    sources: list[str]
    targets: list[str]
    truth: Tensor
    """Real digits of what is asked for on the paths of the sources, (n, 3, 9, 32, 32)."""


@dataclass(frozen=True)
class Seen:
    """What is seen of the edits of some videos; one number for each."""

    success: Tensor
    """The share of frames in which the judge reads the digit and the ink that were asked for."""
    steady: Tensor
    """The share of frames that are read as most of them are."""
    background: Tensor
    """The root mean square change outside the ink of the source, dilated, of colours in [-1, 1]."""
    flicker: Tensor
    """`metrics.flicker_difference` to the source."""
    shimmer: Tensor
    """`metrics.flicker` where the path of the source is taken out, so that a digit that follows it stands still."""
    strays: Tensor
    """The mean distance of the ink's centre from the path of the source, pixels; NaN where a frame has no ink."""
    wobble: Tensor
    """The same where a distance that stays is taken out."""


@dataclass(frozen=True)
class Row:
    """A line of the table: means over videos, with 95 % intervals."""

    method: str
    edits: str
    """"digit", "colour", or "all"."""
    videos: int
    lost: int
    """How many videos have a frame without ink, which have no place."""
    means: dict[str, Estimate | None]
    """By the names of `Seen`; None where fewer than two videos have the number."""


@cache
def judge() -> MovingJudge:
    """Load the judge of frames, once per process."""
    network = MovingJudge()
    weights = load_file(WEIGHTS / "moving-judge.safetensors")
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    return network.eval().requires_grad_(False)


@cache
def task(n: int, seed: int = 0) -> Task:
    """Give n held-out videos, the even ones another digit to become and the odd ones another ink."""
    drawn = moving("test", n, torch.Generator().manual_seed(seed))
    even = torch.arange(n) % 2 == 0
    digits = torch.where(even, (drawn.digit + 3) % len(DIGITS), drawn.digit)
    colours = torch.where(even, drawn.colour, (drawn.colour + 1) % len(COLOURS))
    targets = [caption(int(d), int(c), int(w)) for d, c, w in zip(digits, colours, drawn.direction, strict=True)]
    known, labels = mnist("test")
    others = [known[labels == digit] for digit in range(len(DIGITS))]
    written = torch.stack([others[int(d)][k % len(others[int(d)])] for k, d in enumerate(digits)])
    written = torch.where(even[:, None, None, None], written, drawn.writing)
    inks = torch.tensor(list(COLOURS.values()))[colours]
    truth, _ = draw(written, inks, drawn.centres, (drawn.grounds + 1.0) / 2.0)
    return Task(drawn, digits, colours, list(map(drawn.caption, range(n))), targets, 2.0 * truth - 1.0)


def centres(videos: Tensor, grounds: Tensor) -> Tensor:
    """Where the ink of videos is, by what differs from what lies behind.

    Args:
        videos: (n, 3, F, H, W) in [-1, 1].
        grounds: What lies behind, (n, 3, H, W).

    Returns:
        The centres in pixels, x then y, (n, F, 2); NaN where a frame has no ink.
    """
    ink = ((videos - grounds[:, :, None]).norm(dim=1) / _INK - 1.0).clamp(min=0.0)
    mass = ink.sum((-1, -2))
    found = torch.stack([(ink.sum(-2) * _AXIS).sum(-1), (ink.sum(-1) * _AXIS).sum(-1)], -1) / mass[..., None]
    return torch.where(mass[..., None] < _LEAST, torch.nan, found)


def along(videos: Tensor, paths: Tensor) -> Tensor:
    """Squares of videos around points that move, so that what moves with them stands still.

    Args:
        videos: (n, 3, F, H, W).
        paths: The middles of the squares in pixels, x then y, (n, F, 2).

    Returns:
        The squares, (n, 3, F, 16, 16).
    """
    n, _, frames = videos.shape[:3]
    half = 0.5
    place = torch.zeros(n * frames, 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = half
    place[:, :, 2] = 2.0 * paths.reshape(-1, 2) / SIDE - 1.0
    where = functional.affine_grid(place, [n * frames, 3, SIDE // 2, SIDE // 2], align_corners=False)
    seen = functional.grid_sample(metrics.as_frames(videos), where, padding_mode="border", align_corners=False)
    return seen.view(n, frames, 3, SIDE // 2, SIDE // 2).transpose(1, 2)


def look(job: Task, edited: Tensor, start: int = 0) -> Seen:
    """Measure edited videos.

    Args:
        job: What was asked for.
        edited: The edits of the videos from `start` on, (m, 3, 9, 32, 32) in [-1, 1].
        start: The first of them.
    """
    stop, given = start + len(edited), job.given
    source, grounds, paths = (value[start:stop] for value in (given.videos, given.grounds, given.centres))
    edited = edited.nan_to_num(0.0, 1.0, -1.0).clamp(-1.0, 1.0)
    read = judge()(metrics.as_frames(edited))
    digit, colour = (head.argmax(1).view(-1, FRAMES) for head in read)
    wanted = (digit == job.digits[start:stop, None]) & (colour == job.colours[start:stop, None])
    both = digit * len(COLOURS) + colour
    near = functional.max_pool2d(given.strokes[start:stop, 0], 2 * DILATED + 1, stride=1, padding=DILATED) > 0.05
    away = (~near)[:, None].float()
    change = (away * (edited - source).square()).sum((1, 2, 3, 4)) / (3.0 * away.sum((1, 2, 3, 4)))
    off = centres(edited, grounds) - paths
    return Seen(
        wanted.float().mean(1),
        (both == both.mode(1, keepdim=True).values).float().mean(1),
        change.sqrt(),
        metrics.flicker_difference(edited, source),
        metrics.flicker(along(edited, paths)),
        off.norm(dim=-1).mean(1),
        (off - off.mean(1, keepdim=True)).norm(dim=-1).mean(1),
    )


def label(method: Method) -> str:
    """Name a method in words, such as "inversion, ees25"."""
    name, words = method
    return ", ".join([name, *(getattr(v, "name", v) if k == "solver" else f"{k} {v}" for k, v in words.items())])


def edited_by(model: Any, job: Task, latents: Tensor, start: int, method: Method, **words: Any) -> Tensor:
    """Edit some videos by a method.

    Args:
        model: The model.
        job: What is asked for.
        latents: Those of the videos from `start` on.
        start: The first of them.
        method: The way of editing.
        **words: Others of `steadyflow.edit`, such as `nfe` and `guidance`.

    Returns:
        The videos, (m, 3, 9, 32, 32); NaN where the run diverged.
    """
    stop, (name, more) = start + len(latents), method
    how = {"source": job.sources[start:stop], "method": name, "progress": False, **words, **more}
    try:
        return model.decode(sf.edit(model, latents, job.targets[start:stop], **how).x)
    except sf.NonFiniteError:
        return torch.full_like(job.given.videos[start:stop], torch.nan)


def study(
    methods: Sequence[Method] = METHODS,
    *,
    n: int = 64,
    seed: int = 0,
    nfe: int = NFE,
    guidance: float = GUIDANCE,
    model: Any = None,
) -> list[Row]:
    """Edit held-out videos by several methods at equal evaluations.

    Args:
        methods: The ways of editing.
        n: How many videos.
        seed: Of the videos.
        nfe: Evaluations each way.
        guidance: The scale towards the target.
        model: The model; "moving" by default.

    Returns:
        For each method, and for the two references, what is seen of the edits of the digit, of those of the ink, and
        of all.
    """
    model = load("moving") if model is None else model
    job, rows = task(n, seed), list[Row]()
    latents = torch.cat([model.encode(part) for part in job.given.videos.split(CHUNK)])
    unedited = torch.cat([model.decode(part) for part in latents.split(CHUNK)])
    for name, videos in zip(REFERENCES, (unedited, job.truth), strict=True):
        rows += summary(name, look(job, videos))
    for method in methods:
        found = [
            edited_by(model, job, part, CHUNK * k, method, nfe=_each_way(method, nfe), guidance=guidance)
            for k, part in enumerate(latents.split(CHUNK))
        ]
        rows += summary(label(method), look(job, torch.cat(found)))
    return rows


def _each_way(method: Method, nfe: int) -> int:
    """The evaluations each way that make an edit as dear as one there and back: beside its source it has a third."""
    return 2 * nfe // 3 if isinstance(editing.get(method[0]), editing.injection.Injected) else nfe


def summary(name: str, seen: Seen) -> list[Row]:
    """The lines of one method: edits of the digit, of the ink, and all of them."""
    even = torch.arange(len(seen.success)) % 2 == 0
    rows = []
    for edits, which in (("digit", even), ("colour", ~even), ("all", torch.ones_like(even))):
        values = {field.name: getattr(seen, field.name)[which] for field in fields(Seen)}
        known = {key: value[value.isfinite()] for key, value in values.items()}
        means = {key: average(value) if len(value) > 1 else None for key, value in known.items()}
        rows.append(Row(name, edits, int(which.sum()), int(values["strays"].isnan().sum()), means))
    return rows


def text(rows: Sequence[Row], edits: str = "all") -> str:
    """The table as Markdown.

    Args:
        rows: Those of `study`.
        edits: Which of them.
    """
    names = [field.name for field in fields(Seen)]
    lines = [["method", *names, "without ink"]]
    for row in rows:
        if row.edits == edits:
            cells = ["" if (e := row.means[name]) is None else shown(e, "{:.3f}") for name in names]
            lines.append([row.method, *cells, f"{row.lost} of {row.videos}"])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
