"""`reconstruct` and `edit`: there and back, under the same condition or under another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from ..denoisers.base import Condition, Denoiser
from ..denoisers.smoothing import Smoothing
from ..errors import InputError
from ..metrics.images import rmse
from ..solvers.base import Solver
from .anchor import Anchor
from .inversion import Inversion, invert
from .sampling import Sample

Smoothed = Literal["both", "inversion", "generation"]


@dataclass(frozen=True)
class Reconstruction:
    """A round trip."""

    x: Tensor
    """What came back, shape (B, ...)."""
    error: Tensor
    """Root mean square of what came back less what was sent, a sample; shape (B,)."""
    inversion: Inversion
    nfe: int
    """Model evaluations a sample, both ways."""
    steps: int
    """Solver steps each way."""


@dataclass(frozen=True)
class Edit:
    """Samples moved from one condition to another."""

    x: Tensor
    """The edited samples, shape (B, ...)."""
    distance: Tensor
    """Root mean square of the edited samples less the sources, a sample; shape (B,)."""
    inversion: Inversion
    nfe: int
    """Model evaluations a sample, both ways."""
    steps: int
    """Solver steps each way."""


def reconstruct(model: Denoiser, x: Tensor, *, solver: str | Solver = "ees25", **options: Any) -> Reconstruction:
    """Invert x and generate it again with the same model, solver and grid.

    x: shape (B, ...), float32 or float64. The options are those of `invert`.
    """
    inversion = invert(model, x, solver=solver, **options)
    back = _decode(inversion, model, options)
    return Reconstruction(back.x, rmse(back.x, x), inversion, inversion.nfe + back.nfe, inversion.steps)


def edit(
    model: Denoiser,
    x: Tensor,
    target: Condition,
    *,
    source: Condition = None,
    guidance: float = 3.0,
    source_guidance: float = 1.0,
    smoothing: Smoothing | float | None = None,
    smooth: Smoothed = "both",
    mask: Tensor | None = None,
    solver: str | Solver = "ees25",
    **options: Any,
) -> Edit:
    """Invert x under the source condition, and generate under the target at `guidance`.

    x: shape (B, ...), float32 or float64. target, source: labels, embeddings or prompts for `model.condition`; without
    a source the inversion is unconditional. `strength` below 1 keeps more of the source.
    source_guidance: of the inversion; below 1 it leans on the unconditional field, which is smoother.
    smoothing: averages the field over neighbours (`Denoiser.smoothed`) on the way up, down, or both, as `smooth` says.
    mask: where the edit may change something, weights in [0, 1] that broadcast against x, (B or 1, ...); elsewhere
        every step is brought back to the inversion's state, which keeps one state a step in memory.
    The other options are those of `invert`. To make many edits of one source, invert once and call `Inversion.decode`.
    """
    if target is None:
        raise InputError("target: an edit needs a condition to move to")
    above, below = model.condition(source).guided(source_guidance), model.condition(target).guided(guidance)
    above, below = either_way(lambda m: m if smoothing is None else m.smoothed(smoothing), above, below, smooth)
    held: list[Anchor] = []
    if mask is not None:
        if options.get("batch_size") is not None:
            raise InputError("mask: goes with the whole batch at once, without batch_size")
        options["record"] = "all"
    inversion = invert(above, x, solver=solver, **options)
    if mask is not None:
        assert inversion.trajectory is not None
        held.append(Anchor(inversion.trajectory, keep=1.0 - mask.to(x)))
    back = _decode(inversion, below, options, held)
    return Edit(back.x, rmse(back.x, x), inversion, inversion.nfe + back.nfe, inversion.steps)


def either_way(
    change: Callable[[Denoiser], Denoiser], above: Denoiser, below: Denoiser, when: Smoothed
) -> tuple[Denoiser, Denoiser]:
    """The models of the way up and of the way down, changed on those that `when` says.

    Raises `InputError` for another word than "both", "inversion" or "generation".
    """
    if when not in get_args(Smoothed):
        raise InputError(f"smooth: got {when!r}, expected {', '.join(get_args(Smoothed))}")
    return change(above) if when != "generation" else above, change(below) if when != "inversion" else below


def _decode(inversion: Inversion, model: Denoiser, options: dict[str, Any], held: Sequence[Anchor] = ()) -> Sample:
    shared = {key: options[key] for key in ("progress", "batch_size") if key in options}
    return inversion.decode(model, corrections=held, **shared)
