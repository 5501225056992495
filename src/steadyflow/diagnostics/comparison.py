"""`compare`: what a variant of a model or of a sampler costs, against the exact journey of the plain model.

A quantised or half-precision network, cached features, fewer calls, a tiled decoder: each changes the sample a little,
and one distance between two runs does not say why. With z the start, G the exact generation map of the plain model,
x^ what the variant returns, and x_P and x_64 the runs of the plain model under the variant's sampler in the working
precision and in float64,

    x^ - G(z) = (x^ - x_P)            change of the model
              + (x_P - x_64)          rounding in the working precision
              + (x_64 - G(z))         discretisation

holds exactly. Where each part arises is found along the run. Let y_k be the states that a run visits at the times t_k,
phi_k the exact flow from t_k to t_{k+1}, and E_k that from t_k to the end. Then

    l_k = y_{k+1} - phi_k(y_k),    c_k = E_{k+1}(y_{k+1}) - E_k(y_k),    sum_k c_k = x^ - G(z):

l_k is the error that step k makes, c_k what the exact flow makes of it by the end, and the sum telescopes, without a
linearisation, whatever the solver keeps of its past. The l_k and c_k of the run of x_P, taken from those of x^, leave
the change of the model, step by step. The terms reported are the sums of the l_k, and what the flow adds to them:

    model = sum l_k(x^) - sum l_k(x_P),    discretisation = sum l_k(x_P) - rounding,    amplification = the rest.

As for `diagnose` (see `budget`), each term is reported by its part along the whole error, so that the terms add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from .._integrate import PIDController, Solution, integrate, progress_bar
from .._internal import strict_json
from .._internal.tensors import rms
from ..denoisers.base import Denoiser
from ..errors import ConvergenceError, InputError
from ..grids import Grid
from ..solvers import registry
from ..solvers.base import Solver
from ..tasks._options import Options, Resolved
from ..tasks.sampling import settled
from .budget import Codec, along, in_precision, pushed

COMPARED = ("model", "discretisation", "rounding", "amplification", "codec")
"""The names of the terms of a comparison; one without a codec has no "codec"."""
_REFERENCE = registry.get("dopri5")
_LOOSE = 1e-5
"""The largest tolerance of a reference solve, unless one is given."""
_TENSORS = ("error", "plain", "change", "uncertainty", "made", "reached")
_NO_MEANING = ("noise", "batch_size", "corrections", "callback", "record", "adjoint")


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
    """What the change of the model made within each step, shape (K, B), in the units of the model's samples; of a
    variant that has the plain model, what its sampler made."""
    reached: Tensor
    """What the exact flow makes of that by the end, shape (K, B)."""
    x: Tensor
    """The variant's samples, shape (B, ...)."""
    exact: Tensor
    """The ends of the exact journeys, float64, shape (B, ...)."""
    nfe: int
    """Evaluations of the plain model per sample that the comparison cost."""

    @property
    def step(self) -> int:
        """The step, from 1, at which most of what `reached` the end arose, by the median over the samples."""
        return 1 + int(self.reached.median(1).values.argmax())

    def figures(self) -> dict[str, Any]:
        """Everything that is a number, ready for JSON: None for a number that is not finite."""
        tensors = {name: getattr(self, name).tolist() for name in _TENSORS}
        terms = {name: term.tolist() for name, term in self.terms.items()}
        return strict_json.plain({**tensors, "terms": terms, "times": self.times, "step": self.step, "nfe": self.nfe})

    def summary(self) -> str:
        """The comparison as text: the errors, the budget, and the step at which most arises."""
        error, plain = self.error.median().item(), self.plain.median().item()
        lines = [
            f"distance from the exact journey (rms, median): variant {error:.3g}, plain {plain:.3g}",
            f"distance from the plain model under the same sampler: {self.change.median().item():.3g}",
            f"the budget, mean over the samples, sums to {self.error.mean().item():.3g} "
            f"+- {self.uncertainty.mean().item():.1g}",
            *(f"  {name:<14} {term.mean().item():+.3g}" for name, term in self.terms.items()),
        ]
        if not bool((self.reached > 0).any()):
            return "\n".join(lines)
        found = self.reached.median(1).values
        share = (found[self.step - 1] / found.sum().clamp_min(1e-300)).item()
        grown = self.reached[self.step - 1] / self.made[self.step - 1].clamp_min(1e-300)
        what = "the change of the model" if bool((self.terms["model"] != 0).any()) else "the error of the sampler"
        lines.append(
            f"most of {what} arises at step {self.step} of {len(found)} (t = {self.times[self.step - 1]:.3g}): "
            f"{share:.0%} of it, which grows {grown.median().item():.3g} times by the end"
        )
        return "\n".join(lines)


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
    tolerance: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **options: Unpack[Options],
) -> Comparison:
    """Measure what a variant of a model or of a sampler costs, as a budget against the exact journey of the plain one.

    Both start from the same noise. With K steps it costs two adaptive solves of the plain model a step, in float64.

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
        tolerance: The tolerance of the reference solves; by default a thousandth of the error found, within
            [1e-10, 1e-5].
        dtype: Of the latents that are drawn, and of both runs.
        device: Of the latents that are drawn.
        **options: Those of the plain run; see `Options`.

    Returns:
        The budget of the variant's error, and the steps at which it arises.

    Raises:
        InputError: An argument does not fit, or a solver draws noise.
        ConvergenceError: A reference solve failed.
    """
    if other is None and not changed and other_codec is None:
        raise InputError("compare: give another model, changed options or another codec to compare with")
    if other_codec is not None and codec is None:
        raise InputError("other_codec: only valid with codec, that of the plain model")
    if (n is None) == (x is None):
        raise InputError("compare: give either n (how many to draw) or x (starting latents)")
    plain = model if guidance is None else model.with_guidance(guidance)
    variant = plain if other is None else other if guidance is None else other.with_guidance(guidance)
    if variant.shape != plain.shape:
        raise InputError(f"other: has samples of shape {variant.shape}, but the plain model's are {plain.shape}")
    chosen = Resolved.of(options, compare, refused=_NO_MEANING, defaults={"solver": "auto"})
    chosen, grid, start, _ = settled(plain, chosen, n, x, None, end, dtype, device)
    method, way = chosen.method, grid
    if changed:
        its = Resolved.of(
            {**_without(options, changed), "solver": chosen.solver, **changed}, compare, refused=_NO_MEANING
        )
        its, way, _, _ = settled(plain, its, None, start, None, end, dtype, device)
        method = its.method
    for name, one in (("solver", chosen.method), ("changed", method)):
        if one.properties.stochastic:
            raise InputError(f"{name}: {one.name!r} draws noise, and has no exact journey to be compared with")
    if way.times[0] != grid.times[0]:
        raise InputError(f"changed: starts at t = {way.times[0]:g}, the plain run at {grid.times[0]:g}")
    if chosen.controller is not None:
        raise InputError("steps: a comparison is of a fixed number of steps, not of adaptive ones")
    quiet: dict[str, Any] = {"progress": False, "record": "all"}
    run = integrate(variant, start, way, method, **quiet)
    same = run if variant is plain else integrate(plain, start, way, method, **quiet)
    precise = in_precision(plain, torch.float64)
    double = integrate(precise, start.double(), way, method, progress=False)
    own = same if method == chosen.method and way == grid else integrate(plain, start, grid, chosen.method, **quiet)
    reference = _Reference(precise, way, _LOOSE)
    if tolerance is None:
        loosely = reference.journey(start.double())
        off = rms(run.x.double() - loosely).median().item()
        tolerance = min(max(1e-3 * off, 1e-10), _LOOSE)
    reference.tolerance = tolerance
    exact = reference.journey(start.double())
    unsure = rms(exact - _Reference(precise, way, 10.0 * tolerance).journey(start.double()))
    bar = progress_bar(chosen.progress, way.steps * (1 + (same is not run)), unit="step")
    its_steps = reference.steps(run, bar)
    plain_steps = its_steps if same is run else reference.steps(same, bar)
    bar.close()
    rounding = same.x.double() - double.x
    made, reached = its_steps
    local = {
        "model": made.sum(0) - plain_steps[0].sum(0),
        "discretisation": plain_steps[0].sum(0) - rounding,
        "rounding": rounding,
    }
    error = run.x.double() - exact
    shown, plainly, apart = error, own.x.double() - exact, run.x.double() - same.x.double()
    if codec is not None:
        local = {name: pushed(codec, same.x, vector) for name, vector in local.items()}
        images = codec.decode(run.x).double()
        wanted = codec.decode(exact.to(run.x.dtype)).double()
        its = images if other_codec is None else other_codec.decode(run.x).double()
        local["codec"] = its - images
        shown, plainly = its - wanted, codec.decode(own.x).double() - wanted
        apart = its - codec.decode(same.x).double()
    local["amplification"] = shown - torch.stack(list(local.values())).sum(0)
    size = rms(shown)
    terms = {name: along(local[name], shown) for name in COMPARED if name in local}
    if same is not run:
        made, reached = made - plain_steps[0], reached - plain_steps[1]
    return Comparison(
        error=size,
        plain=rms(plainly),
        change=rms(apart),
        terms=terms,
        uncertainty=unsure,
        times=(*way.times[:-1], *([way.times[-1]] if way.clean else [])),
        made=torch.stack([rms(one) for one in made]),
        reached=torch.stack([rms(one) for one in reached]),
        x=run.x,
        exact=exact,
        nfe=reference.nfe + same.nfe + double.nfe + own.nfe,
    )


def _without(options: Options, changed: Options) -> dict[str, Any]:
    """The options of the plain run that the variant's do not stand in place of: steps and nfe for each other."""
    pairs = ({"steps", "nfe"},)
    gone = {name for pair in pairs if pair & changed.keys() for name in pair}
    return {name: value for name, value in options.items() if name not in gone}


class _Reference:
    """The exact flow of a model from the times of a grid."""

    def __init__(self, model: Denoiser, grid: Grid, tolerance: float):
        self.model, self.grid, self.tolerance, self.nfe = model, grid, tolerance, 0

    def journey(self, x: Tensor, k: int = 0) -> Tensor:
        """From the grid's time k to its end."""
        times = self.grid.times
        if k == len(times) - 1 and not self.grid.clean:
            return x
        ends = (times[k],) if k == len(times) - 1 else (times[k], times[-1])
        return self._solved(x, Grid(ends, clean=self.grid.clean))

    def steps(self, run: Solution, bar: Any) -> tuple[Tensor, Tensor]:
        """The error that each step of a run makes, and what becomes of it by the end, each of shape (K, B, ...)."""
        assert run.trajectory is not None
        states, times = run.trajectory.x.double(), self.grid.times
        made, reached, before = list[Tensor](), list[Tensor](), self.journey(states[0])
        for k in range(len(states) - 1):
            last = k == len(states) - 2
            after = states[k + 1] if last else self.journey(states[k + 1], k + 1)
            there = before if last else self._solved(states[k], Grid(times[k : k + 2]))
            made.append(states[k + 1] - there)
            reached.append(after - before)
            before = after
            bar.update()
        return torch.stack(made), torch.stack(reached)

    def _solved(self, x: Tensor, grid: Grid) -> Tensor:
        solver: Solver[Any] = _REFERENCE
        try:
            control = None if len(grid) == 1 else PIDController(self.tolerance, self.tolerance, max_steps=5000)
            found = integrate(self.model, x, grid, solver, controller=control, progress=False)
        except ConvergenceError as error:
            raise ConvergenceError(f"compare: the reference solve failed ({error}); give a larger tolerance") from error
        self.nfe += found.nfe
        return found.x
