"""Contractivity: the local Lipschitz constants of a solver's steps along a run (2606.07835).

Errors that have been made die out if every step map T contracts, |T(x) - T(y)| <= L |x - y| with L < 1. Locally L is
the largest singular value of T's Jacobian, here in terms of given coordinates (see `steadyflow.coordinates`): in model
space a step of a VP path also shrinks or grows by the schedule's own scale, which says nothing about stability.

For DDIM in the noise coordinates, with r = chi1 / chi0 the ratio of the noise levels and A = d x0_hat / d y,

    J = r I + (1 - r) A,        so that  L <= 1  wherever the largest singular value of A is at most 1,

and where it is not, as between modes, L = r + (1 - r) |A| grows with the step: that is the trap. Guidance w adds
(w - 1) times the difference of two such A.

`contractivity_report` shows the constants of the way back from the latents of samples as a table and as a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._integrate import StepLoop, check_state
from .._internal.autograd import no_grad_unless
from ..coordinates import CoordinatesName, by_name
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..jacobians.maps import StepMap
from ..jacobians.spectra import singular_values
from ..noise import NoiseSource
from ..solvers import registry
from ..solvers.base import Solver, clean_level


@dataclass(frozen=True)
class Contractivity:
    """The local Lipschitz constant of each step along a run, per sample."""

    times: tuple[float, ...]
    """The times of the grid."""
    lipschitz: Tensor
    """The largest singular value of each step's Jacobian, shape (steps, B); on a clean grid the last row is that of the
    last evaluation."""

    @property
    def certified(self) -> Tensor:
        """The share of samples at which each step contracts, shape (steps,)."""
        return (self.lipschitz < 1.0).double().mean(1)

    @property
    def worst(self) -> Tensor:
        """The product over the steps, shape (B,): to first order, no error made at the start grows by more."""
        return self.lipschitz.double().prod(0)


@no_grad_unless("x")
def contractivity(
    model: Denoiser,
    x: Tensor,
    grid: Grid,
    solver: str | Solver[Any] = "ddim",
    *,
    coordinates: CoordinatesName = "noise",
    products: int = 6,
    noise: NoiseSource | None = None,
) -> Contractivity:
    """Find the local Lipschitz constant of each step of a run.

    The history of a multistep solver is held fixed.

    Args:
        model: The model of the data.
        x: The state at the grid's first time, shape (B, ...).
        grid: The times of the run.
        solver: The method, or its name.
        coordinates: The coordinates in terms of which the constants are.
        products: Rounds of the power iteration per step, one Jacobian product and one transposed product each; at most
            the dimension of a sample. With fewer than that many the constant is a lower bound.
        noise: The source for stochastic solvers.

    Raises:
        InputError: x does not fit the model, or the coordinates are singular at a time of the grid.
    """
    check_state("x", x, model.shape)
    grid.check_domain(model.schedule)
    method, used, schedule = registry.get(solver), by_name(coordinates), model.schedule
    ends = [schedule.at(t) for t in grid]
    if grid.clean:
        ends.append(clean_level(schedule, ends[-1]))
    if any(used.scale(level) == 0.0 for level in ends):
        raise InputError(f"contractivity: {coordinates} coordinates are singular on this grid; use coordinates='flow'")
    rounds = min(products, x[0].numel())
    state, defined = method.start(x, schedule, grid.times[0]), model.defined_at_zero_noise
    how = {"noise": noise, "defined_at_zero_noise": defined, "keep_before": True}
    loop, rows = StepLoop(model, method, schedule, grid, state, **how), list[Tensor]()
    for step in loop:
        stepping = StepMap(model, method, step, loop.before)
        values = singular_values(stepping, stepping.x, 1, products=rounds).values[:, 0]
        rows.append(values * (used.scale(step.start) / used.scale(step.end)))
    return Contractivity(grid.times, torch.stack(rows))
