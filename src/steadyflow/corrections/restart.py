"""Restart: go back up with fresh noise and come down again (Xu et al. 2023, 2306.14878).

Forward noise from time t to a noisier t' keeps the marginals: x' = (alpha'/alpha) x + sqrt(sigma'^2 - (alpha'/alpha)^2
sigma^2) eps. What the run had decided between t' and t is decided anew, so that errors made there are forgotten.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._integrate import StepInfo, integrate
from ..errors import InputError
from ..grids import Grid
from ..noise import RENOISING, White, like
from ..solvers import registry
from ..solvers.base import Solver


@dataclass(frozen=True)
class Restart:
    """A correction that renoises every sample once, late in a run, and denoises it again over the grid's own times.

    It costs rounds * back steps per sample.

    Args:
        remaining: The number of steps that are left when it acts.
        back: How many steps of the grid to go back up.
        rounds: How often.
        solver: That of the way down again, any with one state.

    Raises:
        InputError: The grid has fewer steps than `back`.
    """

    remaining: int = 5
    back: int = 15
    rounds: int = 1
    solver: str | Solver[Any] = "ddim"

    def __post_init__(self):
        check_rounds(self.remaining, self.back, self.rounds)

    def __call__(self, info: StepInfo) -> Tensor | None:
        if info.remaining != self.remaining:
            return None
        x, rows = info.x, torch.arange(len(info.x))
        for number in range(self.rounds):
            x = renoise(info, x, rows, self.back, number, self.solver)
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


def renoise(info: StepInfo, x: Tensor, rows: Tensor, back: int, number: int, solver: str | Solver[Any]) -> Tensor:
    """Samples `rows` of the batch, x of shape (m, ...), renoised `back` steps up the grid and denoised again.

    number: of the round; the noise of a sample is addressed by its index, the step and the round.
    """
    if info.grid.rising:
        raise InputError("restart: only valid in sampling; on the way up there is nothing to denoise")
    if back > info.done:
        raise InputError(f"restart: {back} steps back from step {info.done}; take a smaller back or a finer grid")
    if info.noise is None:
        raise InputError("restart: the run has no noise source; give integrate(noise=...)")
    grid = Grid(info.grid.times[info.done - back : info.done + 1], clean=info.step.reads_clean)
    start, end = info.model.schedule.at(grid.times[0]), info.step.end
    ratio = start.alpha / end.alpha
    spread = math.sqrt(max(start.sigma**2 - (ratio * end.sigma) ** 2, 0.0))
    source = info.noise
    samples = [source.samples[i] for i in rows.tolist()]
    address = (info.done, number, 0)
    fresh = like(x, source.seed, RENOISING, address, samples)
    noise = _Round.of(x, source.seed, samples)
    noise.where = 1 + number + (info.done << 32)
    model = info.model.select(rows)
    return integrate(
        model, ratio * x + spread * fresh, grid, registry.get(solver), noise=noise, progress=False
    ).x
