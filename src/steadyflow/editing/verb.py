"""`edit`: samples from one condition to another, by any method."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from .._integrate import check_state
from .._internal.autograd import gradients
from ..denoisers.base import Condition, Denoiser
from ..denoisers.smoothing import Smoothing
from ..errors import InputError
from ..tasks._options import Options, Resolved
from ..tasks.inversion import Inversion
from .base import Edit, EditMethod, EditRequest, SmoothedWays, apply_smoothing, get


def edit(
    model: Denoiser,
    x: Tensor | None,
    target: Condition,
    *,
    source: Condition = None,
    method: str | EditMethod = "inversion",
    guidance: float | Tensor | None = None,
    source_guidance: float | Tensor | None = None,
    mask: Tensor | None = None,
    smoothing: Smoothing | float | None = None,
    smooth: SmoothedWays = "both",
    inversion: Inversion | None = None,
    **options: Unpack[Options],
) -> Edit:
    """Move samples from the source's condition to the target's.

    To make many edits of one source, invert once and give the `inversion`, or call `Inversion.decode`.

    Args:
        model: The model of the data.
        x: Samples, shape (B, ...), float32 or float64; None is enough where an inversion is given.
        target: What to move to: labels, embeddings or prompts, as for `Denoiser.with_condition`.
        source: What the samples are; without it the way up is unconditional.
        method: A way of editing or its name: "inversion" (by latent), "direct", "rf-inversion", "flow-edit",
            "flow-align", "dvrf", "noise-maps", "uni-edit", "pmi", "dna-edit", "flow-opt". Its options may follow the
            name, as in "uni-edit:omega=3,empty=false". See `steadyflow.editing`, also for the options of each.
        guidance: The scale of classifier-free guidance towards the target; the model's own by default.
        source_guidance: That of the way up; the model's own by default. Below 1 it leans on the unconditional field,
            which is smoother.
        mask: Where the edit may change something, weights in [0, 1] that broadcast against x, (B or 1, ...). Elsewhere
            methods that invert bring every step back to the inversion's state, which keeps one state per step in
            memory; "flow-edit", "flow-align" and "dvrf" do not move; the others refuse it. From a mask over pixels,
            `steadyflow.editing.mask_for` makes one.
        smoothing: Averages the field over neighbours (`Denoiser.with_smoothing`).
        smooth: On which ways: the "inversion", the "generation", or "both".
        inversion: One of x that was made before, for methods that make one.
        **options: See `Options`. `strength` below 1 keeps more of the source. All methods but "inversion" and
            "direct" have the published solver, spacing and strength as defaults (`EditMethod.defaults`).

    Raises:
        InputError: An argument does not fit, or the method cannot honour it.
        NotInvertibleError: The solver has no inverse, for a method that needs one.
        NonFiniteError: The run diverged.
    """
    chosen = get(method)
    if target is None:
        raise InputError("target: an edit needs a condition to move to")
    _check_honoured(chosen, options, mask=mask, inversion=inversion, smoothing=smoothing)
    defaults = dict(chosen.defaults)
    if not isinstance(options.get("grid", ""), str):
        defaults.pop("strength", None)  # a Grid fixes its range itself
    resolved = Resolved.of(options, f"method {chosen.name!r}", defaults=defaults)
    if smoothing is None and smooth != "both":
        raise InputError("smooth: only valid with smoothing, of which it says the way")
    if inversion is not None:
        _check_free(resolved)
        for name, value in (("source", source), ("source_guidance", source_guidance)):
            if value is not None:
                raise InputError(f"{name}: the inversion that is given has fixed it")
        if smoothing is not None and smooth != "generation":
            raise InputError("smooth: the inversion that is given was made without; say smooth='generation'")
        if x is None:
            x = torch.full_like(inversion.latent, torch.nan)  # so that the distance is not a number
    if x is None:
        raise InputError("x: give samples, or an inversion of them")
    if inversion is None:
        check_state("x", x, model.shape)
    if mask is not None:
        _check_mask(mask, x)
    there, here = model.with_condition(target), model.with_condition(source)
    there = there if guidance is None else there.with_guidance(guidance)
    if source_guidance is not None and source is not None:
        here = here.with_guidance(source_guidance)
    elif isinstance(source_guidance, Tensor) or source_guidance not in (None, 1.0):
        raise InputError("source_guidance: without a source the way up is unconditional, and has nothing to guide it")
    here, there = apply_smoothing(smoothing, here, there, smooth)
    with gradients(x, everything=resolved.adjoint is not None):
        return chosen.edit(EditRequest(x, here, there, mask, resolved.aimed(there), inversion, (source, target)))


def _check_honoured(method: EditMethod, options: Any, **others: Any) -> None:
    """Raise `InputError` for what the method cannot honour."""
    wanted = {**options, **{name: value for name, value in others.items() if value is not None}}
    for name, why in method.refuses.items():
        if name in wanted:
            raise InputError(f"{name}: method {method.name!r} cannot honour it: {why}")


def _check_mask(mask: Tensor, x: Tensor) -> None:
    """Raise `InputError` for weights that do not broadcast against x, or that might be meant in another way."""
    try:
        mask.expand_as(x)
    except RuntimeError as error:
        raise InputError(f"mask: shape {tuple(mask.shape)} fits no samples {tuple(x.shape)}") from error
    if mask.ndim == x.ndim - 1 and len(mask) == len(x) > 1:
        raise InputError(
            f"mask: got shape {tuple(mask.shape)} for samples {tuple(x.shape)}, which may be one per sample or one for "
            "all; give it as many dimensions as the samples have"
        )


def _check_free(options: Resolved) -> None:
    """Raise `InputError` for what an inversion that is given has fixed."""
    fixed = ("solver", "steps", "nfe", "grid", "strength", "t_min", "t_max", "seed", "index", "noise")
    for name in sorted(options.given):
        if name in fixed:
            raise InputError(f"{name}: the inversion that is given has fixed it")


__all__ = ["edit"]
