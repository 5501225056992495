"""`diagnose`: why a reconstruction or an edit fails, and what to change.

The error budget (`budget`) says where the error of a round trip, or of an edit, comes from; the recommendation
(`remedies`) names the cause and a remedy that was tried on a few of the images. `Diagnosis.verify` tries it on all of
them, and `report` shows everything on a page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from .._integrate import check_state, shown_bar
from .._internal import strict_json
from .._internal.tensors import rms
from ..denoisers.base import Condition, Denoiser
from ..errors import InputError, NonFiniteError
from ..tasks._options import DEFAULT_GRID, Options, Resolved
from ..tasks.choosing import resolved_for_inversion
from .budget import TERMS, Budget, Codec, budget, exact_edit
from .remedies import Recommendation, Setting, recommend


@dataclass(frozen=True)
class Verification:
    """What the recommendation gained on all images."""

    error: Tensor
    """The root mean square error of each image, shape (B,)."""
    gain: float
    """The median error before over the median error after."""
    predicted: float
    """The gain that was found on the images on which remedies were tried."""


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found."""

    budget: Budget
    """Where the error comes from."""
    recommendation: Recommendation
    """The cause, and what to change."""
    setting: Setting
    """The round trip that was diagnosed."""
    images: Tensor
    """The images, shape (B, ...)."""
    model: Denoiser
    """The model of the way up."""
    codec: Codec | None = None
    target: Denoiser | None = None
    """The model of the way back, where an edit was diagnosed."""
    verified: Verification | None = None
    """What the recommendation gained on all images; None where it was not verified."""

    @property
    def measured(self) -> Tensor:
        """The root mean square error of each image's reconstruction, or of its edit, shape (B,)."""
        return self.budget.measured

    @property
    def total(self) -> Tensor:
        """The sum of the budget's terms for each image, shape (B,)."""
        return self.budget.total

    @property
    def terms(self) -> dict[str, Tensor]:
        """The budget's terms by name, each of shape (B,); they sum to `total`. See `budget.TERMS`."""
        return self.budget.terms

    @property
    def cause(self) -> str:
        """The name of the cause, one of those in `remedies.CAUSES`."""
        return self.recommendation.cause

    @property
    def linear(self) -> Tensor:
        """Whether the linear theory behind the budget holds for each image, shape (B,)."""
        return self.budget.linear

    @property
    def reconstruction(self) -> Tensor:
        """The images after the round trip, or after the edit, shape (B, ...)."""
        return self.budget.reconstruction

    def verify(self) -> Verification:
        """Carry out the recommendation on all images, and compare the errors before and after."""
        advised, wanted = self.recommendation.setting, self.budget.exact
        error = advised.errors(self.model, self.images, self.codec, target=self.target, wanted=wanted)
        before, after = self.measured.median().item(), error.median().item()
        gain = before / max(after, 1e-300) if math.isfinite(before) else math.inf
        return Verification(error, gain, self.recommendation.gain)

    def figures(self) -> dict[str, Any]:
        """Everything that is a number or a text, ready for JSON: None for a number that is not finite."""
        found, advice = self.budget, self.recommendation
        figures: dict[str, Any] = {
            "measured": found.measured.tolist(),
            "total": found.total.tolist(),
            "terms": {name: term.tolist() for name, term in found.terms.items()},
            "uncertainty": {name: term.tolist() for name, term in found.uncertainty.items()},
            "remainder": found.remainder.tolist(),
            "linear": found.linear.tolist(),
            "coefficient": found.coefficient.tolist(),
            "nfe": found.nfe,
            "change": None if found.change is None else found.change.tolist(),
            "cause": self.cause,
            "recommendation": {"text": advice.text, "call": advice.call, "error": advice.error, "gain": advice.gain},
            "tried": advice.tried,
            "verified": None
            if self.verified is None
            else {"error": self.verified.error.tolist(), "gain": self.verified.gain},
        }
        return strict_json.plain(figures)

    def summary(self) -> str:
        """The diagnosis as text: error, budget, how far to trust it, and the recommendation."""
        found = self.budget
        median, mean = found.measured.median().item(), found.measured.mean().item()
        largest = found.measured.max().item()
        what = "reconstruction error" if self.target is None else "distance to the exact edit"
        lines = [f"{what} (rms): median {median:.3g}, mean {mean:.3g}, largest {largest:.3g}"]
        if found.change is not None:
            share = (found.measured / found.change.clamp_min(1e-300)).median().item()
            lines.append(
                f"the exact edit changes the images by {found.change.median().item():.3g} (median); "
                f"the numerical error is {share:.2g} of that"
            )
        if math.isfinite(median):
            lines.append(f"the budget, mean over the images, sums to {found.total.mean().item():.3g}")
            for name, term in found.terms.items():
                if bool((term != 0).any()):
                    open_part = found.uncertainty[name].mean().item()
                    lines.append(f"  {name:<14} {term.mean().item():+.3g}  +- {open_part:.1g}")
            lines.append(f"  {'remainder':<14} {found.remainder.mean().item():.3g}")
            lines.append(
                f"amplification of the inversion error: {found.coefficient.median().item():.3g} times (median)"
            )
            share = found.linear.double().mean().item()
            lines.append(
                "the linear theory holds for all images"
                if share == 1.0
                else f"the linear theory holds for {share:.0%} of the images; for the others the budget is a guide only"
            )
        lines += [f"cause: {self.cause}", self.recommendation.text, f"  {self.recommendation.call}"]
        if self.verified is not None:
            after = self.verified.error.median().item()
            lines.append(
                f"verified: median error {after:.3g}, {self.verified.gain:.3g} times lower "
                f"(predicted {self.verified.predicted:.3g})"
            )
        return "\n".join(lines)


def diagnose(
    model: Denoiser,
    images: Tensor,
    *,
    target: Condition = None,
    guidance: float | None = None,
    source_guidance: float | None = None,
    codec: Codec | None = None,
    tolerance: float | None = None,
    verify: bool = False,
    **options: Unpack[Options],
) -> Diagnosis:
    """Find where the error of reconstructing or editing images comes from, name its cause and recommend a remedy.

    It costs some hundreds to thousands of evaluations per sample, in float64.

    Args:
        model: The model of the data, under the images' own condition if it has one.
        images: The images, shape (B, ...), float32 or float64.
        target: A condition to edit to, as `edit` takes it. The error is then the distance to the edit that an exact
            solver would make; what that changes is reported beside it (`Budget.change`).
        guidance: The scale of classifier-free guidance on the way back; that of the way up by default, and the model's
            own towards a target.
        source_guidance: The scale of guidance on the way up; the model's own by default.
        codec: Encodes images to the model's samples and back, where the model works on latents.
        tolerance: The tolerance of the reference solves; by default a thousandth of the error found, within
            [1e-10, 1e-5].
        verify: Whether to carry out the recommendation on all images, to report what it gains (`Diagnosis.verified`).
        **options: The round trip that is to be explained; see `Options`. What addresses noise, looks at a run or
            changes it has no meaning here.

    Returns:
        The budget of the error, its cause, and the recommendation.

    Raises:
        NotInvertibleError: The solver is stochastic.
        InputError: An argument does not fit.
    """
    check_state("images", images, model.shape if codec is None else None)
    resolved = Resolved.of(options, diagnose, refused=_NO_MEANING)
    there = None if target is None else model.with_condition(target, guidance=guidance)
    model = model if source_guidance is None else model.with_guidance(source_guidance)
    if resolved.auto is not None:
        back = None if guidance is None else model.with_guidance(guidance)
        resolved = resolved.aimed(back if there is None else there)
        samples = images if codec is None else codec.encode(images)
        resolved, _ = resolved_for_inversion(resolved, model, samples)
    if resolved.controller is not None:
        raise InputError("steps: a diagnosis is of a fixed number of steps, not of adaptive ones")
    method = resolved.method
    method.check_invertible()
    times = resolved.falling(model)
    named = not method.has_own_grid and isinstance(resolved.grid, str | None)
    whole = all(getattr(resolved, name) is None for name in ("strength", "t_min", "t_max"))
    grid = (resolved.grid or DEFAULT_GRID) if named else times
    ends = None if whole and named else (times.times[-1], times.times[0])
    setting = Setting(method, times.steps, grid, guidance=guidance, ends=ends, edits=there is not None)
    _, back = setting.models(model, there)
    with shown_bar(resolved.progress, 2 + verify, unit="part") as bar:
        try:
            words = {"solver": method, "grid": times, "back": back, "codec": codec, "tolerance": tolerance}
            found = budget(model, images, **words, edit=there is not None)
        except NonFiniteError:
            wanted = None if there is None else exact_edit(model, there, images, grid=times, codec=codec)
            found = _diverged(images, wanted)
        bar.update()
        advice = recommend(setting, found, model, images, codec, target=there)
        result = Diagnosis(found, advice, setting, images, model, codec, there)
        bar.update()
        if verify:
            result = replace(result, verified=result.verify())
            bar.update()
        return result


_NO_MEANING = ("seed", "index", "noise", "batch_size", "corrections", "callback", "record", "adjoint")


def _diverged(images: Tensor, wanted: Tensor | None) -> Budget:
    """The budget of a round trip, or of an edit to what was wanted, that did not stay finite."""
    nothing = torch.full((len(images),), math.nan, dtype=torch.float64, device="cpu")
    terms = {name: nothing for name in TERMS if name != "codec" and (name != "guidance" or wanted is None)}
    return Budget(
        measured=torch.full_like(nothing, math.inf),
        total=torch.full_like(nothing, math.inf),
        terms=terms,
        uncertainty=terms,
        remainder=nothing,
        linear=torch.zeros(len(images), dtype=torch.bool, device="cpu"),
        coefficient=nothing,
        latent_error=nothing,
        times=(),
        growth=nothing[None][:0],
        reconstruction=torch.full_like(images, math.nan),
        nfe=0,
        exact=wanted,
        change=None if wanted is None else rms(wanted - images.double()),
    )
