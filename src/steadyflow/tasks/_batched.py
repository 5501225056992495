"""A batch over a grid, in chunks, with noise addressed by sample index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._integrate import Solution, Trajectory, conditioned, integrate, shown_bar
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..noise import SOURCES
from ..solvers.base import Solver
from ..solvers.state import concat_states, slice_state
from ..solvers.tuned import Tuned
from ._elsewhere import warn_elsewhere
from ._options import Resolved


def run_batched(
    model: Denoiser,
    grid: Grid,
    solver: Solver[Any],
    options: Resolved,
    *,
    x: Tensor | None = None,
    state: Any = None,
) -> Solution:
    """A whole batch, given as x or as a solver's state, over the grid, chunk by chunk."""
    if isinstance(solver, Tuned):
        warn_elsewhere(solver, model)
    model = conditioned(model, options.corrections, grid, solver)  # before the batch is cut up
    first = solver.output(state) if x is None else x
    n, controller = len(first), options.controller
    size = options.batch_size or n
    chunks = range(0, n, size)
    if len(chunks) > 1:
        model.check_batch(n)  # before it is cut up
    if controller is not None and len(chunks) > 1:
        raise InputError("batch_size: a controller chooses one grid for the whole batch; leave batch_size out")
    total, runs = None if controller is not None else len(chunks) * grid.steps, list[Solution]()
    with shown_bar(options.progress, total) as bar:
        for start in chunks:
            stop = min(start + size, n)
            rows = range(options.index + start, options.index + stop)
            runs.append(
                integrate(
                    model.slice(start, stop) if len(chunks) > 1 else model,
                    None if x is None else x[start:stop],
                    grid,
                    solver,
                    state=None if state is None else slice_state(state, start, stop),
                    noise=SOURCES[options.noise].of(first, options.seed, rows),
                    controller=controller,
                    corrections=options.corrections,
                    callback=options.callback,
                    record=options.record,
                    progress=bar,
                    adjoint=options.adjoint,
                )
            )
    stochastic = solver.properties.stochastic
    return replace(
        runs[0],
        state=concat_states([run.state for run in runs]),
        nfe=max(run.nfe for run in runs),
        trajectory=joined_trajectories([run.trajectory for run in runs]),
        seed=options.seed if stochastic else None,
        noise=options.noise if stochastic else None,
        index=options.index,
    )


def joined_trajectories(parts: list[Trajectory | None]) -> Trajectory | None:
    """The recorded states of a whole batch from those of its parts; None where nothing was recorded."""
    known = [part for part in parts if part is not None]
    return Trajectory(known[0].times, torch.cat([part.x for part in known], dim=1)) if known else None
