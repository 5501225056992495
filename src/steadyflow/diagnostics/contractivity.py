"""Does a step contract? The local Lipschitz constants of a solver's steps along a run (2606.07835).

Errors that have been made die out if every step map T contracts, |T(x) - T(y)| <= L |x - y| with L < 1. Locally L is
the largest singular value of T's Jacobian, here in a variable's terms (see `variables`): in model space a step of a VP
path also shrinks or grows by the schedule's own scale, which says nothing of stability.

For DDIM in the noise variable, with r = chi1 / chi0 the ratio of the noise levels and A = d x0_hat / d y,

    J = r I + (1 - r) A,        so that  L <= 1  wherever the largest singular value of A is at most 1,

and where it is not, as between modes, L = r + (1 - r) |A| grows with the step: that is the trap. Guidance w adds
(w - 1) times the difference of two such A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers.base import Denoiser
from ..errors import InputError
from ..gradients import follows
from ..grids import Grid
from ..integrate import answer, check_state
from ..noise import NoiseSource
from ..solvers import registry
from ..solvers.base import Solver, legs
from ..variables import VariableName, by_name
from .instability import singular_values
from .maps import StepMap


@dataclass(frozen=True)
class Contractivity:
    """The local Lipschitz constant of each step along a run, for each sample."""

    times: tuple[float, ...]
    """The grid, steps + 1."""
    lipschitz: Tensor
    """Shape (steps, B): the largest singular value of the step's Jacobian."""

    @property
    def certified(self) -> Tensor:
        """The share of samples at which each step contracts, shape (steps,)."""
        return (self.lipschitz < 1.0).double().mean(1)

    @property
    def worst(self) -> Tensor:
        """The product over the steps, shape (B,): no error made at the start grows by more, to first order."""
        return self.lipschitz.double().prod(0)


@follows("x")
def contractivity(
    model: Denoiser,
    x: Tensor,
    grid: Grid,
    solver: str | Solver = "ddim",
    *,
    variable: VariableName = "noise",
    products: int = 6,
    noise: NoiseSource | None = None,
) -> Contractivity:
    """The Lipschitz constants along the run from x, shape (B, ...), at the grid's first time.

    products: rounds of the power iteration a step, one Jacobian product and one transposed product each; at most the
    dimension of a sample. With fewer than that many it is a lower bound. The history of a multistep solver is held.

    Raises `InputError` for a start of another shape, and for a grid that begins or ends where the variable is singular.
    """
    check_state("x", x, model.shape)
    grid.check_domain(model.schedule)
    method, frame, schedule = registry.get(solver), by_name(variable), model.schedule
    if any(frame.scale(schedule, t) == 0.0 for t in grid):
        raise InputError(f"contractivity: the {variable} variable is singular on this grid; use variable='flow'")
    rounds = min(products, x[0].numel())
    state, rows = method.start(x, schedule, grid.times[0]), []
    for leg in legs(schedule, grid, noise, clean=model.answers_clean):
        step = StepMap(model, method, leg, state)
        values = singular_values(step, step.x, 1, products=rounds).values[:, 0]
        rows.append(values * (frame.scale(schedule, leg.t0) / frame.scale(schedule, leg.t1)))
        state, _ = answer(method.travel(state, leg), model)
    return Contractivity(grid.times, torch.stack(rows))
