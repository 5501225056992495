"""What the verbs share: a batch travels over a grid, in chunks, with noise addressed by sample index."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.base import Denoiser
from ..errors import InputError, UnknownNameError
from ..grids import Grid
from ..integrate import Callback, Correction, Progress, Record, Trajectory, integrate, progress_bar
from ..noise import SOURCES
from ..solvers.base import Solver, State, cut, join


@dataclass(frozen=True)
class Options:
    """How a journey is carried out; none of these change its numbers, but `corrections` and `noise`.

    seed, index, noise: the noise of stochastic solvers. Row i of the batch is sample `index + i`, and gets the
        noise of that sample whatever the batch: "brownian" noise is one path for all grids, "white" noise is
        cheaper and new for every interval.
    batch_size: samples that travel together; all by default.
    """

    seed: int = 0
    index: int = 0
    noise: str = "brownian"
    corrections: Iterable[Correction] = ()
    callback: Callback | None = None
    record: Record = None
    progress: Progress = None
    batch_size: int | None = None

    def __post_init__(self):
        if self.noise not in SOURCES:
            raise UnknownNameError("noise", self.noise, SOURCES)
        if not isinstance(self.index, int) or not 0 <= self.index < 2**63:
            raise InputError(f"index: got {self.index!r}, expected a whole number from 0 to 2^63 - 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch_size: got {self.batch_size}, expected at least 1")


@dataclass(frozen=True)
class Arrival:
    """The end of a journey."""

    state: State
    nfe: int
    trajectory: Trajectory | None


def travel(
    model: Denoiser,
    grid: Grid,
    solver: Solver,
    options: Options,
    *,
    x: Tensor | None = None,
    state: State = None,
) -> Arrival:
    """Take a whole batch (given as x, or as a solver's state) over the grid, chunk by chunk."""
    first = solver.output(state) if x is None else x
    n = len(first)
    size = options.batch_size or n
    corrections = tuple(options.corrections)
    chunks = range(0, n, size)
    bar = progress_bar(options.progress, len(chunks) * grid.steps)
    runs = []
    try:
        for start in chunks:
            stop = min(start + size, n)
            rows = range(options.index + start, options.index + stop)
            noise = SOURCES[options.noise].of(first, options.seed, rows)
            run = integrate(
                model.rows(start, stop) if len(chunks) > 1 else model,
                None if x is None else x[start:stop],
                grid,
                solver,
                state=None if state is None else cut(state, start, stop),
                noise=noise,
                corrections=corrections,
                callback=options.callback,
                record=options.record,
                progress=bar,
            )
            runs.append(run)
    finally:
        if bar is not options.progress:
            bar.close()
    trajectory = None
    if runs[0].trajectory is not None:
        states = torch.cat([run.trajectory.x for run in runs], dim=1)
        trajectory = Trajectory(runs[0].trajectory.times, states)
    return Arrival(join([run.state for run in runs]), max(run.nfe for run in runs), trajectory)
