"""The stiffness of a model: where it puts z = h lambda along a run, to compare with a method's stability region.

lambda is the dominant eigenvalue of the slope's Jacobian in the solver's coordinates, found by power iteration with
Jacobian-vector products, and h the step. `stability_region` says for which z a method is stable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import solvers
from .._integrate import StepLoop
from .._internal.autograd import no_grad_unless
from .._internal.tensors import dot, unit
from ..coordinates import by_name
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..noise import PERTURBATION, like
from ..solvers.base import Solver


@dataclass(frozen=True)
class Stiffness:
    """Where a model puts z = h lambda along a grid."""

    times: tuple[float, ...]
    """The times where the steps begin."""
    z: Tensor
    """The dominant real part of h J for each step and sample, shape (steps, B); NaN where the coordinates are singular
    or the time is infinite."""


@no_grad_unless("x")
def stiffness(
    model: Denoiser,
    x: Tensor,
    grid: Grid,
    *,
    solver: str | Solver[Any] = "ees25",
    iterations: int = 20,
) -> Stiffness:
    """Find the stiffest z that a sampling run meets at each step, by power iteration.

    Where a step begins, J is the Jacobian of the slope in the solver's coordinates (in the noise coordinates,
    d eps_hat / d (x/alpha)), and z is the Rayleigh quotient of its dominant direction, times the step: negative where
    the field contracts. The solver only carries the state along.

    Args:
        model: The model of the data.
        x: The latents where the run begins, shape (B, ...).
        grid: The times of the run, falling.
        solver: The method, or its name.
        iterations: Rounds of the power iteration per step, one Jacobian-vector product each.

    Raises:
        InputError: The grid rises.
    """
    if grid.rising:
        raise InputError("stiffness: expected a falling grid (a sampling run)")
    method, schedule = solvers.get(solver), model.schedule
    coordinates = by_name(method.coordinates)
    state = method.start(x, schedule, grid.times[0])
    defined = model.defined_at_zero_noise
    loop = StepLoop(model, method, schedule, grid, state, defined_at_zero_noise=defined, keep_before=True)
    rows: list[Tensor] = []
    for step in loop:
        h = coordinates.time(step.end) - coordinates.time(step.start)
        scale, before = coordinates.scale(step.start), method.output(loop.before)
        if math.isfinite(h) and scale > 0:
            found = _dominant(lambda v, t=step.t0: coordinates.slope(model(v, t)), before, iterations)
            rows.append(h * scale * found)
        else:
            rows.append(torch.full((len(x),), math.nan, dtype=x.dtype, device=x.device))
    return Stiffness(tuple(grid.times[: len(rows)]), torch.stack(rows))


def _dominant(field: Callable[[Tensor], Tensor], x: Tensor, iterations: int) -> Tensor:
    """The Rayleigh quotient v . J v of the dominant direction of the field's Jacobian, per sample, shape (B,)."""
    v = like(x, 0, PERTURBATION, (0, 7, 0))
    quotient = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        v = unit(v)
        product = torch.func.jvp(field, (x,), (v,))[1]
        quotient = dot(v, product)
        v = product
    return quotient
