"""Choosing a solver for the user: by trying a few on a few of the samples, before the verb runs.

For an inversion at a given budget of evaluations each way, the candidates are tried on up to eight samples, under the
condition and the guidance that will be asked for, and the best is taken. What is compared is the error of the round
trip; where the way back has another guidance or condition, also the distance of the edit to that of a reference
solve with eight times the budget. With `exact`, only exactly reversible solvers are tried, and the edit decides, or
the distance of the latent to the reference's where there is none.

For sampling, "auto" is the plain solver that is recommended for all models (see `recommended`), and `Auto` tries as
well; what is compared is the distance to a reference solve from the same latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from .. import solvers
from .._integrate import Solution, unrecorded
from .._internal.given import whole
from ..denoisers.base import Denoiser
from ..errors import InputError, SteadyflowError
from ..grids import Grid
from ..metrics.images import rmse
from ..solvers.base import Solver
from ._batched import run_batched
from ._options import Auto, Options, Resolved
from .recommended import REASON, with_recommended

_NO_MEANING = ("solver", "steps", "seed", "index", "noise", "batch_size", "callback", "record", "progress", "adjoint")
"""The options that the choice of a deterministic solver has no use for."""

_Named = tuple[tuple[str, dict[str, Any]], ...]

APPROXIMATE: _Named = (
    ("midpoint", {}),
    ("rk4", {}),
    ("ees25", {}),
    ("ees27", {}),
    ("rk4", {"coordinates": "data"}),
    ("ees27", {"coordinates": "data"}),
)
EXACT: _Named = (
    ("rex-euler", {"coordinates": "flow", "coupling": "auto"}),
    ("rex-midpoint", {"coordinates": "flow", "coupling": "auto"}),
    ("rex-rk4", {"coordinates": "flow", "coupling": "auto"}),
    ("belm", {}),
    ("alf", {}),
)
SAMPLING: _Named = (
    ("ddim", {}),
    ("dpmpp-2m", {}),
    ("dpmpp-3m", {}),
    ("unipc", {}),
    ("deis", {}),
    ("midpoint", {}),
    ("ees25", {}),
    ("rk4", {}),
)
GRIDS = ("quadratic", "uniform")
_FINER = 8
"""How many times the budget a reference solve has."""


@dataclass(frozen=True)
class Choice:
    """A solver for a model and a budget."""

    solver: Solver[Any]
    steps: int
    grid: str | Grid
    reason: str
    """In one sentence."""
    errors: dict[str, float]
    """Of all candidates, "solver option on grid" -> the error by which they were judged."""
    nfe: int
    """Model evaluations that the trial spent, per sample tried."""


@dataclass(frozen=True)
class _Candidate:
    label: str
    options: Resolved
    grid: Grid


def choose_solver(
    model: Denoiser,
    x: Tensor,
    *,
    exact: bool = False,
    target: Denoiser | None = None,
    samples: int = 8,
    **options: Unpack[Options],
) -> Choice:
    """The best solver, coordinates and grid for inverting samples like x, by trial.

    Args:
        model: The model of the way up.
        x: Samples, shape (B, ...); the first `samples` are tried.
        exact: The round trip must be exact.
        target: The model of the way back, if it is another condition or guidance of this one.
        samples: How many samples to try.
        **options: The run that the choice is for; `nfe` is its budget. See `Options`.

    Raises:
        InputError: The budget pays for no candidate.
    """
    samples = whole("samples", samples, 1)
    chosen = Resolved.of(options, choose_solver, refused=_NO_MEANING)
    return _choose(Auto(exact, target, samples), chosen, model, x)


def resolved_for_inversion(options: Resolved, model: Denoiser, x: Tensor) -> tuple[Resolved, str]:
    """The options with a solver in the place of `Auto`, and why it was chosen."""
    auto = options.auto
    return (options, "") if auto is None else _applied(options, _choose(auto, options, model, x))


def resolved_for_sampling(
    options: Resolved, model: Denoiser, start: Callable[[Grid], Tensor], clean: bool
) -> tuple[Resolved, str]:
    """The same for a run from noise; `start` gives the latents at a grid's noisy end. "auto" is what is recommended."""
    if options.solver == "auto":
        chosen = with_recommended(options, model, clean=clean)
        named = "solver" in options.given
        return chosen, REASON.format(chosen.method.name) if named else ""
    auto = options.auto
    if auto is None:
        return options, ""
    if auto.exact or auto.target is not None:
        raise InputError("solver: exact and target of sf.Auto are about inversions, not about sampling")

    def run(one: Denoiser, candidate: Resolved, grid: Grid) -> Solution:
        x = start(grid)[: auto.samples]
        return run_batched(one, grid, candidate.method, _quiet(candidate), x=x)

    _check(options)
    here = _few(model, auto.samples)
    fine = _fine(options)
    reference = run(here, fine, fine.falling(model, clean=clean))
    spent = reference.nfe
    tried: dict[str, tuple[float, _Candidate]] = {}
    for candidate in _candidates(options, model, SAMPLING, clean):
        try:
            found = run(here, candidate.options, candidate.grid)
            spent += found.nfe
            error = rmse(found.x, reference.x).median().item()
        except SteadyflowError:
            error = float("inf")
        tried[candidate.label] = error, candidate
    choice = _best(tried, spent, "candidate", "distance to a fine solve", len(reference.x), _cost(options, ""))
    return _applied(options, choice)


def _choose(auto: Auto, options: Resolved, model: Denoiser, x: Tensor) -> Choice:
    _check(options)
    few = x[: auto.samples]
    here = _few(model, len(few)) if len(x) > len(few) else model
    there = auto.target
    if there is not None and len(x) > len(few):
        there = _few(there, len(few))

    def up(candidate: Resolved, grid: Grid) -> Solution:
        return run_batched(here, grid.reversed(), candidate.method, _quiet(candidate), x=few)

    def down(one: Denoiser, candidate: Resolved, found: Solution, grid: Grid) -> Solution:
        state = candidate.method.for_decoding(found.state)
        return run_batched(one, grid, candidate.method, _quiet(candidate), state=state)

    spent, reference = 0, None
    if there is not None or auto.exact:
        fine = _fine(options)
        grid = fine.falling(model)
        inverted = up(fine, grid)
        edited = down(there or here, fine, inverted, grid)
        reference, spent = (inverted.x, edited.x), inverted.nfe + edited.nfe
    tried: dict[str, tuple[float, _Candidate]] = {}
    for candidate in _candidates(options, model, EXACT if auto.exact else APPROXIMATE, False):
        errors: list[Tensor] = []
        try:
            found = up(candidate.options, candidate.grid)
            spent += found.nfe
            if not auto.exact:
                back = down(here, candidate.options, found, candidate.grid)
                errors.append(rmse(back.x, few))
                spent += back.nfe
            if reference is not None and there is None:
                errors.append(rmse(found.x, reference[0]))
            elif reference is not None and there is not None:
                back = down(there, candidate.options, found, candidate.grid)
                errors.append(rmse(back.x, reference[1]))
                spent += back.nfe
            error = torch.stack(errors).amax(0).median().item()
        except SteadyflowError:
            error = float("inf")
        tried[candidate.label] = error, candidate
    kind = "exactly reversible candidate" if auto.exact else "candidate"
    what = "edit error" if reference is not None else "round-trip error"
    return _best(tried, spent, kind, what, len(few), _cost(options, " each way"))


def _check(options: Resolved) -> None:
    if options.steps is not None:
        raise InputError("steps: solver 'auto' compares solvers at equal evaluations; give nfe instead")


def _cost(options: Resolved, ways: str) -> str:
    """What every candidate was given, in words."""
    return "over the same times" if isinstance(options.grid, Grid) else f"at {options.budget} evaluations{ways}"


def _fine(options: Resolved) -> Resolved:
    """The options of a reference solve."""
    return options.changed(solver="rk4", nfe=None if isinstance(options.grid, Grid) else _FINER * options.budget)


def _few(model: Denoiser, samples: int) -> Denoiser:
    return model.slice(0, samples)


def _quiet(options: Resolved) -> Resolved:
    """The options of a trial: what looks at the run is for the run itself."""
    own = tuple(unrecorded(correction) for correction in options.corrections)
    return options.changed(callback=None, record=None, progress=False, batch_size=None, corrections=own, adjoint=None)


def _candidates(options: Resolved, model: Denoiser, named: _Named, clean: bool) -> Iterator[_Candidate]:
    """What can be tried within the budget, over the grid that was asked for, if one was."""
    spacings: tuple[str | Grid, ...] = GRIDS if options.grid is None else (options.grid,)
    for name, given in named:
        for grid in spacings:
            nfe = None if isinstance(grid, Grid) else options.budget
            candidate = options.changed(solver=solvers.get(name, **given), grid=grid, nfe=nfe)
            words = [name, *(f"{key}={value}" for key, value in given.items())]
            try:
                times = candidate.falling(model, clean=clean)
            except InputError:  # the budget pays for no step of it, or the spacing cannot cover the range
                continue
            yield _Candidate(" ".join([*words, "on", grid if isinstance(grid, str) else "the grid"]), candidate, times)


def _best(
    tried: dict[str, tuple[float, _Candidate]], spent: int, kind: str, what: str, samples: int, cost: str
) -> Choice:
    finite = {label: entry for label, entry in tried.items() if entry[0] < float("inf")}
    if not finite:
        raise InputError(f"solver 'auto': no candidate can do this {cost}; give more evaluations or a narrower grid")
    best = min(finite, key=lambda label: finite[label][0])
    error, candidate = finite[best]
    reason = (
        f"{best}, {candidate.grid.steps} steps, had the smallest {what} ({error:.1e}) of {len(tried)} {kind}s tried on "
        f"{samples} sample(s) {cost}."
    )
    grid = candidate.options.grid
    assert grid is not None
    errors = {label: entry[0] for label, entry in tried.items()}
    return Choice(candidate.options.method, candidate.grid.steps, grid, reason, errors, spent)


def _applied(options: Resolved, choice: Choice) -> tuple[Resolved, str]:
    steps = None if isinstance(choice.grid, Grid) else choice.steps
    return options.changed(solver=choice.solver, steps=steps, nfe=None, grid=choice.grid), choice.reason
