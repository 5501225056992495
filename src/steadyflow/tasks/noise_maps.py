"""Inversion into noise maps: edit-friendly DDPM and LEDITS++, for any ancestral solver.

The noisy states of a sample are drawn *independently* of each other, x_t = alpha_t x0 + sigma_t eps_t, and the noise
of every step is then whatever brings the solver from one to the next, z = (x_t1 - mean(x_t0)) / spread. Replaying the
maps with the same model gives the sample back exactly; with another condition it edits. The maps are larger than
ordinary noise and correlated, which is what carries the picture's structure.

Sources: Huberman-Spiegelglas et al. 2023 (2304.06140), with `ddpm`; Brack et al. 2023 (LEDITS++, 2311.16711), with
`dpmpp-2m-sde`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import grids, noise, solvers
from ..denoisers.base import Denoiser
from ..errors import InputError, NotInvertibleError
from ..gradients import follows
from ..grids import Grid
from ..integrate import Progress, check_state, integrate
from ..noise import NoiseSource
from ..prediction import Prediction
from ..solvers.base import Leg, Solver, legs
from .sampling import Sample


class _Replay(NoiseSource):
    """A noise source that hands out given maps, one a step, in order."""

    def __init__(self, maps: list[Tensor]):
        self._maps, self._next = maps, 0

    def unit(self, a, b):
        drawn = self._maps[self._next]
        self._next += 1
        return drawn

    def increment(self, a, b):
        raise InputError("noise maps: this solver asks for increments of a path; use ddpm or a multistep SDE solver")


@dataclass(frozen=True)
class NoiseMaps:
    """A sample as a noisy start and a noise map for every step; memory grows with the steps."""

    start: Tensor
    """The state at the noisy end, shape (B, ...)."""
    maps: Tensor
    """Shape (steps, B, ...)."""
    solver: Solver
    grid: Grid
    model: Denoiser
    nfe: int
    """Model evaluations a sample, to find the maps."""

    def decode(
        self, model: Denoiser | None = None, guidance: float | None = None, *, progress: Progress = None
    ) -> Sample:
        """Replay the maps: with the same model (the default) exactly the sample, with another condition an edit."""
        model = model or self.model
        model = model if guidance is None else model.guided(guidance)
        run = integrate(model, self.start, self.grid, self.solver, noise=_Replay(list(self.maps)), progress=progress)
        return Sample(run.x, run.nfe, self.grid.steps, self.solver, self.grid, 0)


@follows("x")
def noise_maps(
    model: Denoiser,
    x: Tensor,
    *,
    solver: str | Solver = "ddpm",
    steps: int = 50,
    grid: str | Grid = "uniform",
    strength: float | None = None,
    seed: int = 0,
    index: int = 0,
) -> NoiseMaps:
    """Find the noise maps of x: one evaluation a step.

    x: shape (B, ...), float32 or float64, the state at the grid's clean end. solver: a stochastic one with one unit of
    noise a step: "ddpm" (edit-friendly), "dpmpp-sde", "dpmpp-2m-sde" (LEDITS++), "dpmpp-3m-sde". strength: how far up
    to start, 0.64 of a named grid by default (the published defaults skip 36 % of the way), and all of a `Grid`.

    Raises `NotInvertibleError` for a solver that draws no noise, or more than one unit a step.
    """
    method = solvers.get(solver)
    facts = method.facts
    if not facts.stochastic or facts.evaluations != 1 or facts.inverse == "exact":
        raise NotInvertibleError(f"noise maps: {method.name!r} does not draw one unit of noise a step; use 'ddpm'")
    check_state("x", x, model.shape)
    times = grids.partway(grid, model.schedule, steps, strength, 0.64)
    rows = range(index, index + len(x))

    def noisy(k: int) -> Tensor:
        """An independent noisy state at time k; x itself at the clean end."""
        if k == times.steps:
            return x
        drawn = noise.like(x, seed, noise.PERTURBATION, (k, 0, 2), rows)
        t = times.times[k]
        return model.schedule.alpha(t) * x + model.schedule.sigma(t) * drawn

    begin = noisy(0)
    state = method.start(begin, model.schedule, times.times[0])
    maps, asked = [], 0
    none, one = torch.zeros_like(x), torch.ones_like(x)
    for k, leg in enumerate(legs(model.schedule, times)):
        asking = method.step(state, _with(leg, none))
        query = next(asking)
        prediction = model(query.x, query.t)
        asked += model.cost
        mean = method.output(_finish(asking, prediction))
        again = method.step(state, _with(leg, one))
        next(again)
        spread = method.output(_finish(again, prediction)) - mean
        scale = spread.flatten()[0].abs()
        z = none if bool(scale == 0) else (noisy(k + 1) - mean) / scale
        maps.append(z)
        last = method.step(state, _with(leg, z))
        next(last)
        state = _finish(last, prediction)
    return NoiseMaps(begin, torch.stack(maps), method, times, model, asked)


def _with(leg: Leg, drawn: Tensor) -> Leg:
    return replace(leg, noise=_Replay([drawn]))


def _finish(asking, prediction: Prediction):
    """The state that a step of one query ends in."""
    try:
        asking.send(prediction)
    except StopIteration as stop:
        return stop.value
    raise NotInvertibleError("noise maps: the solver asked for a second evaluation in a step")
