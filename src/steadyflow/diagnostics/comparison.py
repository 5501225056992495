"""`compare`: what a variant of a model or of a sampler costs, against the exact journey of the plain model.

A quantised or half-precision network, cached features, fewer calls, a tiled decoder: each changes the sample a little,
and one distance between two runs does not say why. Let z be the start, G the exact generation map of the plain model,
x^ what the variant returns, x_P what the plain model returns under the variant's sampler, and x_64 the same in float64.
Then

    x^ - G(z) = (x^ - x_P)          model
              + (x_P - x_64)        rounding
              + (x_64 - G(z))       discretisation and amplification

holds exactly. In which step each part arises is found without a linearisation, too.

Model and rounding, by runs that change hands: let D_k be the end of the run whose first k steps are the variant's, and
whose others the plain model makes from the whole state that the solver has then, its history included. D_0 is x_P and
D_K is x^, so that the changes D_k - D_{k-1} sum to x^ - x_P; each is 0 where the network has answered as the plain one
does, whatever the solver keeps of its past. Rounding is divided in the same way, with the run of x_P and float64 in
place of the variant and the plain model.

Discretisation, by the exact flow: let y_k be the states of the float64 run at the times t_k, phi_k the exact flow from
t_k to t_{k+1}, and E_k that from t_k to the end. With

    l_k = s_k (y_{k+1} - phi_k(y_k)),    c_k = E_{k+1}(y_{k+1}) - E_{k+1}(phi_k(y_k)),    sum_k c_k = x_64 - G(z),

l_k is the error that step k makes and c_k what the exact flow makes of it by the end; the sum telescopes, as
E_{k+1}(phi_k(y_k)) = E_k(y_k). s_k is how large the path's state of unit variance is at the end, over how large it is
after step k, so that l_k is in the units of the samples on every path. "discretisation" is the sum of the l_k, and
"amplification" what the exact flow adds to it. The errors of a solver with a memory are those of its steps with that
memory: a leapfrog that oscillates makes some in every step.

With a codec, the terms are differences of the images to which G(z), G(z) + sum_k l_k, x_64, x_P and x^ decode, and
"codec" is what the variant's own decoder changes of the last. As for `diagnose` (see `budget`), each term is reported
by its part along the whole error, so that the terms add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Unpack, cast

import torch
from torch import Tensor

from .._integrate import shown_bar
from .._internal import strict_json
from .._internal.given import number
from .._internal.tensors import rms
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..tasks._options import Options
from . import _caches, comparison_figure
from ._compared import models, planned
from ._exact_flow import ExactFlow
from ._exchanged import exchanged, recorded
from .budget import Codec, along, in_precision

COMPARED = ("model", "discretisation", "rounding", "amplification", "codec")
"""The names of the terms of a comparison; one without a codec has no "codec"."""
_BETWEEN = ("discretisation", "amplification", "rounding", "model")
"""The terms that lead from the exact journey's end to the variant's sample, in their order."""
_PARTS = ("model", "rounding", "discretisation")
"""The parts of an error that are found step by step; that of the discretisation has its amplification."""
_LOOSE, _TIGHT = 1e-5, 1e-10
"""The largest and the smallest tolerance of the reference solves, unless one is given."""
_TENSORS = ("error", "plain", "change", "uncertainty", "made")
_NOTHING = 1e-300


@dataclass(frozen=True)
class Comparison:
    """What a variant costs, per sample, as root mean squares."""

    error: Tensor
    """The distance of the variant's sample from the end of the exact journey, shape (B,)."""
    plain: Tensor
    """That of the plain model with the plain sampler, shape (B,)."""
    change: Tensor
    """The distance of the variant's sample from that of the plain model under the same sampler, shape (B,)."""
    terms: dict[str, Tensor]
    """Each term's part along the whole error, shape (B,); they sum to `error`. See `COMPARED`."""
    uncertainty: Tensor
    """The uncertainty of the end of the exact journey, shape (B,)."""
    times: tuple[float, ...]
    """Path times from which the K steps of the variant's run begin; a reading of the clean estimate counts as one."""
    made: Tensor
    """The errors that the steps make with the plain network in float64, shape (K, B), in the units of the samples."""
    reached: dict[str, Tensor]
    """What each step changes of the sample by the end, shape (K, B), through "model", "rounding" and "discretisation":
    the last is what the exact flow makes of `made`."""
    x: Tensor
    """The variant's samples, shape (B, ...)."""
    exact: Tensor
    """The ends of the exact journeys, float64, shape (B, ...)."""
    precision: torch.dtype
    """The precision in which the network of the exact journeys computed."""
    nfe: int
    """Evaluations of the plain model per sample that the comparison cost."""

    @property
    def main(self) -> str:
        """Which of "model", "discretisation" and "rounding" changes the samples most, by the median over them."""
        return max(_PARTS, key=lambda name: self.reached[name].sum(0).median().item())

    def step(self, term: str | None = None) -> int:
        """The step, from 1, in which most of what a term changes of the samples arises, by the median over them.

        Args:
            term: "model", "discretisation" or "rounding"; by default the change of the model, and the main one where
                the variant has the plain model.

        Raises:
            InputError: It is none of the three.
        """
        term = self._term(term)
        return 1 + int(self.reached[term].median(1).values.argmax())

    def share(self, term: str | None = None) -> float:
        """The share of that step in what all steps change.

        Args:
            term: As for `step`.
        """
        found = self.reached[self._term(term)].median(1).values
        return (found.max() / found.sum().clamp_min(_NOTHING)).item()

    def _term(self, term: str | None) -> str:
        if term is None:
            return "model" if bool((self.reached["model"] > 0).any()) else self.main
        if term not in _PARTS:
            raise InputError(f"term: got {term!r}, expected one of {', '.join(_PARTS)}")
        return term

    def figures(self) -> dict[str, Any]:
        """Everything that is a number, ready for JSON: None for a number that is not finite."""
        found: dict[str, Any] = {name: getattr(self, name).tolist() for name in _TENSORS}
        for name in ("terms", "reached"):
            found[name] = {term: value.tolist() for term, value in getattr(self, name).items()}
        found["step"] = {name: self.step(name) for name in _PARTS}
        found |= {"times": self.times, "precision": str(self.precision).removeprefix("torch."), "nfe": self.nfe}
        return strict_json.plain(found)

    def summary(self) -> str:
        """The comparison as text: the errors, the budget, and the steps at which the terms arise."""
        error, plain, change = (one.median().item() for one in (self.error, self.plain, self.change))
        unsure = self.uncertainty.mean().item()
        lines = [
            f"distance from the exact journey (rms, median): variant {error:.3g}, plain {plain:.3g}",
            f"distance from the plain model under the same sampler: {change:.3g}",
            f"the budget, mean over the samples, sums to {self.error.mean().item():.3g} +- {unsure:.1g}",
        ]
        for name, term in self.terms.items():
            where = self._where(name) if name in _PARTS and bool((self.reached[name] > 0).any()) else ""
            lines.append(f"  {name:<14} {term.mean().item():+.3g}{where}")
        if self.precision != torch.float64:
            lines.append(
                f"the exact journey is that of the network in {str(self.precision).removeprefix('torch.')}, whose "
                "rounding it has: give the plain model in float64 as `precise`"
            )
        return "\n".join(lines)

    def _where(self, name: str) -> str:
        """In which step a term arises, in words."""
        k = self.step(name) - 1
        where = f"  {self.share(name):.0%} in step {k + 1} of {len(self.times)}, from t = {self.times[k]:.3g}"
        if name != "discretisation":
            return where
        grown = (self.reached[name][k] / self.made[k].clamp_min(_NOTHING)).median().item()
        return f"{where}, which the exact flow makes {grown:.2g} times as large"

    def draw(self, path: str | Path) -> Path:
        """Draw the budget as bars, and the error by step, into a file.

        Args:
            path: The file, of a kind that matplotlib writes.

        Returns:
            The path.

        Raises:
            MissingExtraError: matplotlib is not installed.
            StorageError: The file cannot be written.
        """
        return comparison_figure.draw(self, path)


def compare(
    model: Denoiser,
    other: Denoiser | None = None,
    *,
    changed: Options | None = None,
    n: int | None = None,
    x: Tensor | None = None,
    guidance: float | None = None,
    end: Literal["clean", "path"] | None = None,
    codec: Codec | None = None,
    other_codec: Codec | None = None,
    precise: Denoiser | None = None,
    tolerance: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **options: Unpack[Options],
) -> Comparison:
    """Measure what a variant of a model or of a sampler costs, as a budget against the exact journey of the plain one.

    Both start from the same noise. With K steps it costs about K adaptive solves of the plain model in float64, and K
    runs of it that begin at each of the steps. The variant is asked by its own run alone, in its order; what a cache of
    its network holds is forgotten before and after.

    Args:
        model: The plain model, under a condition if it has one.
        other: The variant, such as a quantised network or one with a cache; the plain model by default.
        changed: The options of the variant's run that differ, such as {"solver": "ddim", "steps": 8}.
        n: How many samples to draw, as `sample` does.
        x: Starting latents instead, shape (B, ...), float32 or float64.
        guidance: The scale of guidance of both; the models' own by default.
        end: "clean" data, or the state at the end of the "path", as `sample` takes it.
        codec: Decodes samples of both to images, whose differences are then reported.
        other_codec: That of the variant, such as a decoder that works in tiles.
        precise: The plain model in float64, whose journey is the exact one. By default a copy of its network where that
            is a torch module; other networks keep their precision, that of a pipeline included.
        tolerance: The tolerance of the reference solves; by default a thousandth of the error found, within
            [1e-10, 1e-5], and no less than the rounding of the network.
        dtype: Of the latents that are drawn, and of both runs.
        device: Of the latents that are drawn.
        **options: Those of the plain run; see `Options`. What draws noise, looks at a run or changes it has no meaning
            here.

    Returns:
        The budget of the variant's error, and the steps at which it arises.

    Raises:
        InputError: An argument does not fit, or a solver draws noise.
        NonFiniteError: A run diverged; it says whose.
        ConvergenceError: A reference solve failed.
    """
    if other is None and not changed and other_codec is None:
        raise InputError("compare: give another model, changed options or another codec to compare with")
    if other_codec is not None and codec is None:
        raise InputError("other_codec: only valid with codec, that of the plain model")
    if tolerance is not None and not 0.0 < number("tolerance", tolerance) < 1.0:
        raise InputError(f"tolerance: got {tolerance}, expected a number between 0 and 1")
    plain, variant, precise = models(model, other, precise, guidance)
    precise = in_precision(plain, torch.float64) if precise is None else precise
    with torch.no_grad():
        plan = planned(plain, n, x, end, dtype, device, options, changed or {})
        start, sampler = plan.start, (plan.its_grid, plan.its_solver)
        with _caches.afresh(variant):
            run = recorded("the variant's run", variant, start, *sampler)
        same = run if variant is plain else recorded("the plain model's run", plain, start, *sampler)
        own = same if plan.alike else recorded("the plain run", plain, start, plan.grid, plan.solver)
        fine = recorded("the plain model's run in float64", precise, start.double(), *sampler)
        flow = ExactFlow(precise, plan.its_grid, tolerance or _LOOSE)
        unsure = _settle(flow, run.end, start, tolerance, precise)
        with shown_bar(plan.progress, 3 * plan.its_grid.steps) as bar:
            changed_by, spent = exchanged(run, same, bar)
            rounded_by, spent_too = exchanged(same, fine, bar)
            steps = flow.errors(fine.samples, bar)
        seen = _Eye(codec, start.dtype)
        marks = (steps.exact, steps.exact + steps.total, fine.end, same.end, run.end)
        images = [seen(mark) for mark in marks]
        its = images[-1] if other_codec is None else _Eye(other_codec, start.dtype)(run.end)
        between = [after - before for before, after in pairwise(images)]
        local: dict[str, Tensor] = dict(zip(_BETWEEN, between, strict=True))
        if codec is not None:
            local["codec"] = its - images[-1]
        error = its - images[0]
        own_runs = {id(one): one.solution.nfe for one in (same, own, fine)}
        times = plan.its_grid.times
        return Comparison(
            error=rms(error),
            plain=rms(seen(own.end) - images[0]),
            change=rms(its - images[-2]),
            terms={name: along(local[name], error) for name in COMPARED if name in local},
            uncertainty=rms(seen(steps.exact + unsure) - images[0]),
            times=times if plan.its_grid.clean else times[:-1],
            made=steps.made,
            reached={"model": changed_by, "rounding": rounded_by, "discretisation": steps.reached},
            x=run.solution.x,
            exact=steps.exact,
            precision=_precision(precise),
            nfe=flow.nfe + spent + spent_too + sum(own_runs.values()),
        )


def _precision(model: Denoiser) -> torch.dtype:
    """The precision in which a model computes from a float64 state: that of its network, or of its pipeline."""
    return model.dtype or getattr(getattr(model, "pipe", None), "dtype", torch.float64)


def _settle(flow: ExactFlow, end: Tensor, start: Tensor, tolerance: float | None, precise: Denoiser) -> Tensor:
    """Set the tolerance of the reference where none is given, and return the uncertainty of its end."""
    x = start.double()
    if tolerance is None:
        rounding = torch.finfo(_precision(precise)).eps
        flow.tolerance = max(_LOOSE, rounding)
        off = rms(end - flow.end(x)).median().item()
        tolerance = min(max(1e-3 * off, _TIGHT, rounding), flow.tolerance)
    flow.tolerance = 10.0 * tolerance
    coarse = flow.end(x)
    flow.tolerance = tolerance
    return coarse - flow.end(x)


@dataclass(frozen=True)
class _Eye:
    """Shows samples as the codec's images, or as they are; both in float64."""

    codec: Codec | None
    dtype: torch.dtype
    """Of the samples that the codec is given."""

    def __call__(self, x: Tensor) -> Tensor:
        if self.codec is None:
            return x
        shown = self.codec.decode(x.to(self.dtype))
        if not isinstance(cast(object, shown), Tensor):
            raise InputError(f"codec: decodes to {type(shown).__name__}, expected one tensor; compare without a codec")
        return shown.double()
