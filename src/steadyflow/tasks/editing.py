"""`reconstruct` and `edit`: there and back, under the same condition or under another."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..denoisers.base import Condition, Denoiser
from ..errors import InputError
from ..metrics.images import rmse
from ..solvers.base import Solver
from .inversion import Inversion, invert
from .sampling import Sample


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
    solver: str | Solver = "ees25",
    **options: Any,
) -> Edit:
    """Invert x under the source condition at guidance 1, and generate under the target at `guidance`.

    x: shape (B, ...), float32 or float64. target, source: labels or embeddings for `model.condition`; without
    a source the inversion is unconditional. `strength` below 1 keeps more of the source. The other options
    are those of `invert`. To make many edits of one source, invert once and call `Inversion.decode` often.
    """
    if target is None:
        raise InputError("target: an edit needs a condition to move to")
    inversion = invert(model.condition(source).guided(1.0), x, solver=solver, **options)
    back = _decode(inversion, model.condition(target).guided(guidance), options)
    return Edit(back.x, rmse(back.x, x), inversion, inversion.nfe + back.nfe, inversion.steps)


def _decode(inversion: Inversion, model: Denoiser, options: dict[str, Any]) -> Sample:
    shared = {key: options[key] for key in ("progress", "batch_size") if key in options}
    return inversion.decode(model, **shared)
