"""What two runs that are compared are made of: the models, the solvers, the grids and the start, checked."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .._integrate import Progress, check_state_type
from .._internal.given import device_of
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..schedules import Schedule
from ..solvers.base import Solver
from ..solvers.tuned import Tuned
from ..tasks._elsewhere import warn_elsewhere
from ..tasks._options import Options, Resolved
from ..tasks.sampling import settled
from . import _caches

NO_MEANING = ("noise", "batch_size", "corrections", "callback", "record", "adjoint")
"""Options that have no meaning for a comparison."""
_SHARED = ("seed", "index", "progress")
"""Options that both runs share."""
_SPACED = ("steps", "nfe", "strength", "t_min", "t_max")
"""Options that say where the steps of a named grid lie."""


class Planned(NamedTuple):
    """Two runs from one start."""

    start: Tensor
    """The latents, shape (B, ...)."""
    grid: Grid
    """The times of the plain run."""
    solver: Solver[Any]
    """Its method."""
    its_grid: Grid
    """The times of the variant's run."""
    its_solver: Solver[Any]
    """Its method."""
    progress: Progress

    @property
    def alike(self) -> bool:
        """Whether both runs have the same sampler."""
        return self.solver == self.its_solver and self.grid == self.its_grid


def models(
    model: Denoiser, other: Denoiser | None, precise: Denoiser | None, guidance: float | None
) -> tuple[Denoiser, Denoiser, Denoiser | None]:
    """The plain model, the variant and the plain model in float64, under the guidance.

    Args:
        model: The plain model.
        other: The variant; the plain model by default.
        precise: The plain model in float64, if it was given.
        guidance: The scale of guidance of all; their own by default.

    Raises:
        InputError: They are not about the same samples on the same path, or one keeps state that spoils its runs.
    """
    for name, one in (("other", other), ("precise", precise)):
        if one is None:
            continue
        if one.shape != model.shape:
            raise InputError(f"{name}: has samples of shape {one.shape}, but the plain model's are {model.shape}")
        if one.schedule != model.schedule:
            raise InputError(f"{name}: is over {one.schedule}, but the plain model over {model.schedule}")
        if (one.condition is None) != (model.condition is None):
            has, lacks = ("the plain model", name) if one.condition is None else (name, "the plain model")
            raise InputError(f"{name}: {has} has a condition and {lacks} has none; give both one")
    for name, one in (("model", model), ("precise", precise)):
        if one is not None and _caches.keeps_state(one):
            raise InputError(
                f"{name}: its network keeps something from call to call (a cache?), so that it has no exact journey; "
                "give a copy of it without"
            )
    if guidance is not None:
        model = model.with_guidance(guidance)
        other = None if other is None else other.with_guidance(guidance)
        precise = None if precise is None else precise.with_guidance(guidance)
    return model, model if other is None else other, precise


def planned(
    model: Denoiser,
    n: int | None,
    x: Tensor | None,
    end: Literal["clean", "path"] | None,
    dtype: torch.dtype,
    device: torch.device | str,
    options: Options,
    changed: Options,
) -> Planned:
    """The two runs.

    Args:
        model: The plain model, under its guidance.
        n: How many samples to draw, or None with x.
        x: Starting latents, shape (B, ...).
        end: As `sample` takes it.
        dtype: Of the latents that are drawn.
        device: Of the latents that are drawn.
        options: Those of the plain run.
        changed: Those of the variant's run that differ.

    Raises:
        InputError: An argument does not fit, or the runs have not the same ends.
    """
    if end not in ("clean", "path", None):
        raise InputError(f"end: got {end!r}, expected 'clean' or 'path'")
    if (n is None) == (x is None):
        raise InputError("compare: give either n (how many to draw) or x (starting latents)")
    if n is not None:
        dtype, device = check_state_type(dtype), torch.device(device_of(device))
    chosen = Resolved.of(options, "compare", refused=NO_MEANING, defaults={"solver": "auto"})
    own = Resolved.of(changed, "the options that are `changed`", refused=(*NO_MEANING, *_SHARED))
    _check_fixed("steps", chosen)
    _check_fixed("changed", own)
    chosen, grid, start, _ = settled(model, chosen, n, x, None, end, dtype, device)
    start = start.detach()
    its, way = chosen, grid
    if changed:
        its = chosen.changed(**_replaced(changed), **{name: getattr(own, name) for name in changed})
        its, way, _, _ = settled(model, its, None, start, None, end, dtype, device)
    for name, one in (("solver", chosen.method), ("changed", its.method)):
        if one.properties.stochastic:
            raise InputError(f"{name}: {one.name!r} draws noise, and has no exact journey to be compared with")
        if isinstance(one, Tuned):
            warn_elsewhere(one, model)
    _check_ends(model.schedule, grid, way)
    return Planned(start, grid, chosen.method, way, its.method, chosen.progress)


def _check_fixed(name: str, options: Resolved) -> None:
    """Raise `InputError` for adaptive steps."""
    if options.controller is not None:
        raise InputError(f"{name}: a comparison is of a fixed number of steps, not of adaptive ones")


def _replaced(changed: Options) -> dict[str, None]:
    """The options of the plain run that do not carry over to the variant's, where what has changed says as much."""
    names = set[str]()
    solver = changed.get("solver")
    if {"steps", "nfe"} & changed.keys():
        names |= {"steps", "nfe"}
    if isinstance(changed.get("grid"), Grid):
        names |= {*_SPACED}
    if solver is not None and Resolved(solver=solver).auto is None and Resolved(solver=solver).method.has_own_grid:
        names |= {*_SPACED, "grid"} - {"nfe"}
    return dict.fromkeys(names - changed.keys())


def _check_ends(schedule: Schedule, grid: Grid, way: Grid) -> None:
    """Raise `InputError` unless two grids lead from one time to one end.

    A grid that ends without noise, as those of tuned solvers do, has the end of one that reads the clean estimate.
    """
    (top, last, data), (its_top, its_last, its_data) = (
        (one.times[0], one.times[-1], one.clean or schedule.at(one.times[-1]).sigma == 0.0) for one in (grid, way)
    )
    same_end = grid.clean == way.clean and math.isclose(last, its_last, rel_tol=1e-9)
    if math.isclose(top, its_top, rel_tol=1e-9) and (same_end or (data and its_data and grid.clean != way.clean)):
        return
    raise InputError(
        f"changed: the variant's run goes {_words(way)}, the plain one {_words(grid)}; give t_min and t_max with which "
        "both are equal"
    )


def _words(grid: Grid) -> str:
    """Where a grid leads, in words."""
    return f"from t = {grid.times[0]:g} to {grid.times[-1]:g}" + " and the clean estimate" * grid.clean
