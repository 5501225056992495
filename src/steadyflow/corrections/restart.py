"""Restart: go back up with fresh noise and come down again (Xu et al. 2023, 2306.14878).

Forward noise from time t to a noisier t' preserves the marginals:

    x' = (alpha'/alpha) x + sqrt(sigma'^2 - (alpha'/alpha)^2 sigma^2) eps.

What the run had decided between t' and t is decided again, so that errors made there are forgotten.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._integrate import Solution, StepInfo, integrate
from .._internal.tensors import integers
from ..errors import InputError
from ..grids import Grid
from ..noise import RENOISING, White, like
from ..solvers import registry
from ..solvers.base import Solver


@dataclass(frozen=True)
class Restart:
    """A correction that renoises every sample late in a run, and denoises it again over the grid's own times.

    It costs rounds * back steps per sample, of as many evaluations as the solver takes for one.

    Args:
        remaining: The number of steps that are left when it acts.
        back: How many steps of the grid to go back up.
        rounds: How often to do so, one time after the other.
        solver: The solver of the way down again, or its name; any that carries one state.

    Raises:
        InputError: An option is out of range, or the run has made fewer than `back` steps when the correction acts.
    """

    remaining: int = 5
    back: int = 15
    rounds: int = 1
    solver: str | Solver[Any] = "ddim"

    def __post_init__(self):
        check_rounds(self.remaining, self.back, self.rounds)
        check_solver(self.solver)

    def __call__(self, info: StepInfo) -> Tensor | None:
        if not is_due(info, self.remaining, "restart"):
            return None
        x, rows = info.x, torch.arange(len(info.x), device="cpu")
        for number in range(self.rounds):
            x = renoise(info, x, rows, self.back, number, self.solver).x
        return x


def is_due(info: StepInfo, remaining: int, name: str) -> bool:
    """Whether a correction that acts once, with this many steps left, acts now.

    Raises:
        InputError: The run is too short for that ever to be so.
    """
    left = info.remaining
    if info.done == 1 and left < remaining:
        raise InputError(
            f"{name}: acts with {remaining} steps left, but the run has {info.total}; use a smaller remaining"
        )
    return left == remaining


def check_rounds(remaining: int, back: int, rounds: int) -> None:
    """Refuse options out of range.

    Args:
        remaining: The number of steps that are left when a correction acts.
        back: How many steps it goes back.
        rounds: How often.

    Raises:
        InputError: A number is too small.
    """
    if remaining < 0 or back < 1 or rounds < 1:
        raise InputError(
            f"restart: expected remaining >= 0, back >= 1 and rounds >= 1, got {remaining}, {back} and {rounds}"
        )


def check_solver(solver: str | Solver[Any]) -> None:
    """Refuse a solver that cannot make a part of a run.

    Args:
        solver: The solver of the way down again, or its name.

    Raises:
        InputError: It runs over a grid of its own alone.
    """
    method = registry.get(solver)
    if method.has_own_grid:
        raise InputError(
            f"restart: solver {method.name!r} runs over its own grid alone, from the noise on; name a plain one for "
            "the way down again"
        )


class _Round(White):
    """Noise for the way down again, which depends on the round: neither the run's own, nor that of another round."""

    where: int
    """A number that stands for the step and the round."""

    def _normal(self, stream: int, node: tuple[int, int, int]) -> Tensor:
        # the stream too, as an interval has both an increment and an area
        return super()._normal(RENOISING, (node[0], node[1], self.where + (stream << 24)))


def renoise(info: StepInfo, x: Tensor, rows: Tensor, back: int, number: int, solver: str | Solver[Any]) -> Solution:
    """Renoise some samples of a batch and denoise them again.

    The noise of a sample is addressed by its index, the step and the round.

    Args:
        info: Where the run stands.
        x: The samples, shape (m, ...).
        rows: Their numbers in the batch, shape (m,).
        back: How many steps of the grid to go back up.
        number: The number of the round.
        solver: The solver of the way down again, or its name.

    Returns:
        The run down again, with samples of shape (m, ...).

    Raises:
        InputError: The run inverts, has made fewer than `back` steps, or has no noise source.
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
    samples = [source.samples[i] for i in integers(rows)]
    address = (info.done, number, 0)
    fresh = like(x, source.seed, RENOISING, address, samples)
    noise = _Round.of(x, source.seed, samples)
    noise.where = 1 + number + (info.done << 32)
    model = info.model.select(rows)
    return integrate(model, ratio * x + spread * fresh, grid, registry.get(solver), noise=noise, progress=False)
