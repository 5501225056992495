"""The demonstration: pictures are inverted, generated again and edited, weakly and strongly, with solvers side by side.

Of every solver it says how far the pictures that come back are from those that went, and how far its edits are from
those of a fine solve, which make no error to speak of. What is edited is the bundled pipeline's own held-out scenes,
whose edits a judge can read and whose backgrounds are known exactly, or a picture of the user's in a model of theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steadyflow import solvers
from steadyflow._internal.kinds import kind_of
from steadyflow.denoisers.base import Denoiser
from steadyflow.diagnostics.diagnosis import Diagnosis, diagnose
from steadyflow.errors import InputError, NonFiniteError
from steadyflow.solvers.base import Solver
from steadyflow.solvers.tuned import Tuned
from steadyflow.tasks import Inversion, invert

from .editing.scenes import SceneEdits, looked_at, scene_model, scene_task
from .editing.ways import TUNED
from .watching import Largest

NFE = 24
"""Evaluations of the network each way."""
GUIDANCES = (2.5, 7.5)
FINE = 4
"""How many times as many evaluations the fine solve makes, by RK4."""
DIAGNOSED = 2
"""How many of the pictures are diagnosed."""
DIVERGED = float("inf")


@dataclass(frozen=True)
class Subject:
    """What is edited: samples of a model, what they are, and what they are to become."""

    model: Denoiser
    x: Tensor
    """In the model's space, shape (B, ...)."""
    source: Any
    """The conditions that the samples are under."""
    target: Any
    words: Sequence[str]
    """What each edit is, in words."""
    judge: Callable[[Tensor], SceneEdits] | None = None
    """Says of edited samples whether they are what was asked for, and what has become of their backgrounds."""
    tuned: str | None = None
    """The file of a solver tuned for the model, if there is one."""


@dataclass(frozen=True)
class Row:
    """What one solver gave; the medians over the pictures, as root mean squares of their range of 1."""

    solver: str
    nfe: int
    """Evaluations each way."""
    back: float
    """The error of the pictures that come back."""
    edit: Mapping[float, float]
    """The difference between the edits and those of the fine solve, by guidance."""
    background: Mapping[float, float]
    """How much the edits have changed outside of what they concern, by guidance; empty without a judge."""
    done: Mapping[float, int]
    """How many edits the judge takes for what was asked, by guidance; empty without a judge."""
    largest: float
    """The largest number of any state on the way."""
    seconds: float


@dataclass(frozen=True)
class Shown:
    """What one solver made of the pictures, decoded."""

    back: Tensor
    edits: Mapping[float, Tensor]
    """By guidance."""


@dataclass(frozen=True)
class Study:
    """What the demonstration gave."""

    rows: list[Row]
    subject: Subject
    pictures: Tensor
    """The samples, decoded."""
    shown: Mapping[str, Shown]
    """By solver."""
    fine: Shown
    guidances: tuple[float, ...]
    diagnosis: Diagnosis | None
    """Of the first solver's round trip, with the remedy tried."""
    seconds: float

    @property
    def strongest(self) -> float:
        """The largest of the guidances."""
        return max(self.guidances)


def scenes(n: int) -> Subject:
    """Held-out scenes of the bundled pipeline, a quarter each with another digit, colour or place, or none.

    Args:
        n: How many.
    """
    task = scene_task(n)
    words = [f"{source}: {target}" for source, target in zip(task.sources, task.targets, strict=True)]
    tuned = str(TUNED) if TUNED.is_file() else None
    return Subject(
        scene_model(), task.latents, task.sources, task.targets, words, lambda edited: looked_at(task, edited), tuned
    )


def compared(model: Denoiser, nfe: int = NFE, tuned: str | None = None) -> dict[str, tuple[Solver[Any], int]]:
    """The solvers of the demonstration, with the evaluations that each has for one way.

    The exactly reversible one runs in the coordinates of noise, as published, where the path has them.

    Args:
        model: What they are for.
        nfe: Evaluations each way.
        tuned: The file of a solver that was tuned for the model, which brings a number of evaluations of its own.
    """
    schedule = model.schedule
    singular = schedule.at(schedule.t_max).alpha == 0.0
    found: dict[str, tuple[Solver[Any], int]] = {
        "ddim": (solvers.get("ddim"), nfe),
        "rk4": (solvers.get("rk4"), nfe),
        "ees25, near-reversible": (solvers.get("ees25"), nfe),
        "rex, exactly reversible": (
            solvers.get("rex-midpoint", coordinates="flow" if singular else "noise"),
            nfe,
        ),
        "rex, automatic coupling": (solvers.get("rex-midpoint", coordinates="flow", coupling="auto"), nfe),
    }
    if tuned is not None:
        solver = solvers.get(tuned)
        if not isinstance(solver, Tuned):
            raise InputError(f"tuned: got {tuned!r}, expected the file of a tuned solver (.json)")
        if solver.properties.inverse == "none":
            raise InputError(f"tuned: {tuned} was fitted to sampling; the demonstration takes one for round trips")
        found |= {f"tuned for {calls} calls": (solver, calls) for calls in solver.budgets}
    return found


def study(
    subject: Subject | None = None,
    *,
    nfe: int = NFE,
    guidances: Sequence[float] = GUIDANCES,
    tuned: str | None = None,
    explain: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Study:
    """Run the demonstration.

    Args:
        subject: What is edited; eight of the bundled scenes by default.
        nfe: Evaluations each way; the fine solve takes four times as many.
        guidances: Towards the target.
        tuned: The file of a solver tuned for the model; that of the subject by default.
        explain: Whether to diagnose the first solver's round trip, and to try the remedy.
        progress: Called with every part as it ends.

    Raises:
        InputError: The model's samples are not pictures, or `nfe` is less than a single step of a solver takes.
    """
    began = time.perf_counter()
    subject = scenes(8) if subject is None else subject
    if kind_of(subject.model) != "pictures":
        raise InputError(f"the demonstration is for pictures, which the samples of {subject.model.name!r} are not")
    tell = progress or (lambda _: None)
    pictures = picture(subject.model, subject.x)
    fine, _ = _made(subject, solvers.get("rk4"), FINE * nfe, guidances, pictures, None)
    tell("the fine solve")
    rows, shown = [], {}
    for name, (solver, calls) in compared(subject.model, nfe, tuned or subject.tuned).items():
        started = time.perf_counter()
        shown[name], measured = _made(subject, solver, calls, guidances, pictures, fine)
        rows.append(Row(name, seconds=time.perf_counter() - started, **measured))
        tell(name)
    found = _explained(subject, nfe) if explain else None
    if explain:
        tell("the diagnosis")
    seconds = time.perf_counter() - began
    return Study(rows, subject, pictures, shown, fine, tuple(guidances), found, seconds)


def picture(model: Denoiser, x: Tensor) -> Tensor:
    """Decode samples, of which those that are not finite become a picture all the same.

    Args:
        model: The model.
        x: The samples, shape (B, ...).
    """
    x = x.nan_to_num(0.0, 1e3, -1e3).clamp(-1e3, 1e3)
    decode = getattr(model, "decode", None)
    return (x if decode is None else decode(x)).float().clamp(-1.0, 1.0).cpu()


def _made(
    subject: Subject,
    solver: Solver[Any],
    nfe: int,
    guidances: Sequence[float],
    pictures: Tensor,
    fine: Shown | None,
) -> tuple[Shown, dict[str, Any]]:
    """What a solver makes of the pictures, and, where there is something to compare it with, its figures."""
    model, largest = subject.model, Largest()
    inversion = invert(model.with_condition(subject.source), subject.x, solver=solver, nfe=nfe, source_guidance=1.0)
    back = _decoded(inversion, None, 1.0, largest)
    target = model.with_condition(subject.target)
    edits = {w: _decoded(inversion, target, w, largest) for w in guidances}
    made = Shown(picture(model, back), {w: picture(model, x) for w, x in edits.items()})
    if fine is None:
        return made, {}
    seen = {} if subject.judge is None else {w: subject.judge(x) for w, x in edits.items()}
    broken = {w: not bool(x.isfinite().all()) for w, x in edits.items()}
    return made, {
        "nfe": inversion.nfe,
        "back": _difference(made.back, pictures),
        "edit": {w: DIVERGED if broken[w] else _difference(x, fine.edits[w]) for w, x in made.edits.items()},
        "background": {w: torch.tensor(found.background).median().item() for w, found in seen.items()},
        "done": {w: sum(found.done) for w, found in seen.items()},
        "largest": DIVERGED if any(broken.values()) else largest.value,
    }


def _decoded(inversion: Inversion, target: Denoiser | None, guidance: float, largest: Largest) -> Tensor:
    """Generate from an inversion; all infinite where the solver diverges."""
    try:
        return inversion.decode(target, guidance=guidance, callback=largest).x
    except NonFiniteError:
        return torch.full_like(inversion.latent, DIVERGED)


def _difference(a: Tensor, b: Tensor) -> float:
    """The median over the pictures of the root mean square of their difference, of a range of 1."""
    return ((a - b) / 2.0).square().flatten(1).mean(1).sqrt().median().item()


def _explained(subject: Subject, nfe: int) -> Diagnosis:
    """The diagnosis of a round trip of some of the pictures by DDIM, with its remedy tried."""
    some = slice(0, DIAGNOSED)
    given = subject.source[some] if isinstance(subject.source, list | Tensor) else subject.source
    model = subject.model.with_condition(given)
    return diagnose(model, subject.x[some], solver="ddim", nfe=nfe, tolerance=1e-3, verify=True)


def table(result: Study) -> tuple[list[str], list[list[str]]]:
    """Give the rows as text: the headings, and a list of cells per row."""
    heads = ["solver", "nfe", "round trip", *(f"edit {w:g}" for w in result.guidances)]
    judged = result.subject.judge is not None
    if judged:
        heads += [f"done {w:g}" for w in result.guidances] + [f"around {w:g}" for w in result.guidances]
    n = len(result.pictures)
    cells = [
        [
            row.solver,
            str(row.nfe),
            _error(row.back),
            *(_error(row.edit[w]) for w in result.guidances),
            *(f"{row.done[w]}/{n}" for w in result.guidances if judged),
            *(_error(row.background[w]) for w in result.guidances if judged),
            f"{row.largest:.1f}",
            f"{row.seconds:.1f}",
        ]
        for row in result.rows
    ]
    return [*heads, "max |x|", "seconds"], cells


def _error(value: float) -> str:
    """An error of the range 1 in per cent, or in powers of ten where it is tiny."""
    if value == DIVERGED:
        return "diverged"
    return f"{value:.1%}" if value >= 1e-3 else f"{value:.0e}"


def sentence(result: Study) -> str:
    """What the figures show, in words; each part only where they do."""
    w, rows = result.strongest, {row.solver: row for row in result.rows}
    first, near, exact = rows["ddim"], rows["ees25, near-reversible"], rows["rex, exactly reversible"]
    it, them = ("picture", "it") if len(result.pictures) == 1 else ("pictures", "them")
    said = []
    if exact.back < 1e-4 and exact.edit[w] > 2.0 * near.edit[w]:
        broken = "diverges" if exact.edit[w] == DIVERGED else f"is off by {_error(exact.edit[w])} of the range"
        said.append(
            f"The exactly reversible solver brings the {it} back to rounding ({_error(exact.back)}), and its edit at "
            f"guidance {w:g} {broken}."
        )
    if first.back > 10.0 * near.back:
        said.append(f"DDIM does not bring {them} back ({_error(first.back)}).")
    if near.back < 0.1 * first.back and near.edit[w] < 0.5 * exact.edit[w]:
        said.append(
            f"The near-reversible one brings {them} back ({_error(near.back)}), and its edit is within "
            f"{_error(near.edit[w])} of a fine solve."
        )
    return " ".join(said) or "Here no solver is far ahead of the others; the figures are below."


def title(result: Study) -> str:
    """What the demonstration shows in a few words."""
    rows = {row.solver: row for row in result.rows}
    near, exact = rows["ees25, near-reversible"], rows["rex, exactly reversible"]
    if exact.back < 1e-4 and exact.edit[result.strongest] > 2.0 * near.edit[result.strongest]:
        return "Exact is not the same as stable"
    return "The same edit with solvers side by side"
