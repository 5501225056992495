"""`reconstruct`: there and back under one condition."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Unpack

from torch import Tensor

from .._integrate import Solution, check_state
from ..denoisers.base import Denoiser
from ..metrics.images import rmse
from ._options import Options, Resolved
from .inversion import Inversion, decode_options, run_inversion


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Solution):
    """A round trip; `x` is what came back, and `nfe` counts the evaluations of both ways."""

    error: Tensor
    """Root mean square of what came back less what was sent, per sample; shape (B,)."""
    inversion: Inversion
    """The way up."""


def reconstruct(
    model: Denoiser,
    x: Tensor,
    *,
    guidance: float | Tensor | None = None,
    source_guidance: float | Tensor | None = None,
    **options: Unpack[Options],
) -> Reconstruction:
    """Invert x and generate it again with the same model, solver and grid.

    Args:
        model: The model of the data, under the samples' own condition if it has one.
        x: Samples, shape (B, ...), float32 or float64.
        guidance: The scale of classifier-free guidance on the way back; that of the way up by default.
        source_guidance: That of the way up; the model's own by default.
        **options: See `Options`; `record`, `callback` and `corrections` act on both ways.

    Raises:
        NotInvertibleError: The solver has no inverse.
        InputError: An argument does not fit.
        NonFiniteError: The run diverged.
    """
    check_state("x", x, model.shape)
    model = model if source_guidance is None else model.with_guidance(source_guidance)
    resolved = Resolved.of(options, reconstruct)
    resolved = resolved.aimed(None if guidance is None else model.with_guidance(guidance))
    inversion = run_inversion(model, x, resolved)
    back = inversion.decode(guidance=guidance, **decode_options(resolved))
    fields = {field.name: getattr(back, field.name) for field in dataclasses.fields(Solution)}
    fields |= {"nfe": inversion.nfe + back.nfe, "reason": inversion.reason}
    return Reconstruction(**fields, error=rmse(back.x, x), inversion=inversion)
