"""Where a model puts z = h lambda along a run: what the stability region of a solver is held against.

The dominant eigenvalue of the slope's Jacobian in the solver's coordinates, times the step, by power iteration with
Jacobian-vector products.
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
    """Where a model puts z = h lambda along a grid: one row per step."""

    times: tuple[float, ...]
    """The times where the steps begin."""
    z: Tensor
    """Dominant real part of h J per step and sample, shape (steps, B)."""


@no_grad_unless("x")
def stiffness(
    model: Denoiser,
    x: Tensor,
    grid: Grid,
    *,
    solver: str | Solver[Any] = "ees25",
    iterations: int = 20,
) -> Stiffness:
    """The stiffest z that a sampling run from x over a falling grid meets, by power iteration.

    x: starting latents, shape (B, ...). At each step's start J is the Jacobian of the slope in the solver's coordinates
    (frame "noise": d eps_hat / d (x/alpha)), and z the Rayleigh quotient of its dominant direction, times the
    step: negative where the field contracts. The solver only carries the state along.
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
    """The Rayleigh quotient v.Jv of the dominant direction of the field's Jacobian, a sample; shape (B,)."""
    v = like(x, 0, PERTURBATION, (0, 7, 0))
    quotient = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        v = unit(v)
        product = torch.func.jvp(field, (x,), (v,))[1]
        quotient = dot(v, product)
        v = product
    return quotient
