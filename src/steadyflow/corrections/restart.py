"""Restart: go back up with fresh noise and come down again (Xu et al. 2023, 2306.14878).

Forward noise from time t to a noisier t' keeps the marginals: x' = (alpha'/alpha) x + sqrt(sigma'^2 - (alpha'/alpha)^2
sigma^2) eps. What the run had decided between t' and t is decided anew, so that errors made there are forgotten.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..grids import Grid
from ..integrate import Moment, integrate
from ..noise import RENOISING, White, like
from ..solvers import registry
from ..solvers.base import Solver


@dataclass(frozen=True)
class Restart:
    """A correction that renoises every sample once, late in a run, and denoises it again over the grid's own times.

    remaining: the number of solver steps that are left when it acts. back: how many steps of the grid to go back up.
    rounds: how often. solver: of the way down again, any with one state.

    Costs rounds * back steps a sample. Raises `InputError` where the grid has fewer steps than that.
    """

    remaining: int = 5
    back: int = 15
    rounds: int = 1
    solver: str | Solver = "ddim"

    def __post_init__(self):
        check_rounds(self.remaining, self.back, self.rounds)

    def __call__(self, moment: Moment) -> Tensor | None:
        if moment.steps - moment.step != self.remaining:
            return None
        x, rows = moment.x, torch.arange(len(moment.x))
        for number in range(self.rounds):
            x = again(moment, x, rows, self.back, number, self.solver)
        return x


def check_rounds(remaining: int, back: int, rounds: int) -> None:
    """Raise `InputError` unless the numbers say when to act, how far to go back, and how often."""
    if remaining < 0 or back < 1 or rounds < 1:
        raise InputError(
            f"restart: expected remaining >= 0, back >= 1 and rounds >= 1, got {remaining}, {back} and {rounds}"
        )


class _Round(White):
    """Noise for the way down again, of a round by itself: neither the run's own, nor that of another round."""

    where: int

    def _normal(self, stream, node):
        return super()._normal(RENOISING, (node[0], node[1], self.where))


def again(moment: Moment, x: Tensor, rows: Tensor, back: int, number: int, solver: str | Solver) -> Tensor:
    """Samples `rows` of the batch, x of shape (m, ...), renoised `back` steps up the grid and denoised again.

    number: of the round; the noise of a sample is addressed by its index, the step and the round.
    """
    if moment.grid.rising:
        raise InputError("restart: goes with sampling; on the way up there is nothing to denoise")
    if back > moment.step:
        raise InputError(f"restart: {back} steps back from step {moment.step}; take a smaller back or a finer grid")
    if moment.noise is None:
        raise InputError("restart: the run has no noise source; give integrate(noise=...)")
    schedule, times = moment.model.schedule, moment.grid.times[moment.step - back : moment.step + 1]
    ratio = schedule.alpha(times[0]) / schedule.alpha(times[-1])
    spread = math.sqrt(max(schedule.sigma(times[0]) ** 2 - (ratio * schedule.sigma(times[-1])) ** 2, 0.0))
    source = moment.noise
    samples = [source.samples[i] for i in rows.tolist()]
    address = (moment.step, number, 0)
    fresh = like(x, source.seed, RENOISING, address, samples)
    noise = _Round.of(x, source.seed, samples)
    noise.where = 1 + number + (moment.step << 32)
    model = moment.model.pick(rows)
    return integrate(
        model, ratio * x + spread * fresh, Grid(times), registry.get(solver), noise=noise, progress=False
    ).x
