"""Editing without an inversion, and with a controlled one: FlowEdit and RF-Inversion, on any Gaussian path.

Both are written for rectified flows; in the flow variable u = x / (alpha + sigma), tau = sigma / (alpha + sigma),
in which every path is one (see `variables`), they hold for all.

FlowEdit (Kulikov et al. 2024, 2412.08629): with fresh noise n at every step, u_s = (1 - tau) x + tau n and
u_t = z + u_s - x, the edit z goes by  z += (tau1 - tau0) [v(u_t, target) - v(u_s, source)].

RF-Inversion (Rout et al. 2024, 2410.10792): upwards  du/dtau = v + gamma ((y - u)/(1 - tau) - v) towards a noise y,
downwards  du/dtau = v + eta ((u - x)/tau - v) towards the source x, over a window of the way.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import grids, noise
from ..batches import finite
from ..denoisers.base import Condition, Denoiser
from ..errors import InputError, NonFiniteError
from ..gradients import follows
from ..grids import Grid
from ..integrate import check_state
from ..metrics.images import rmse
from ..variables import FLOW


@dataclass(frozen=True)
class FlowingEdit:
    """An edit that left no latent behind."""

    x: Tensor
    """Shape (B, ...)."""
    distance: Tensor
    """Root mean square of the edited samples less the sources, shape (B,)."""
    nfe: int
    """Model evaluations a sample."""
    steps: int


@follows("x")
def flow_edit(
    model: Denoiser,
    x: Tensor,
    target: Condition,
    *,
    source: Condition = None,
    source_guidance: float = 1.0,
    guidance: float = 3.0,
    steps: int = 50,
    strength: float | None = None,
    grid: str | Grid = "uniform",
    average: int = 1,
    seed: int = 0,
    index: int = 0,
) -> FlowingEdit:
    """FlowEdit: move x from the source to the target condition along the difference of the two fields.

    x: shape (B, ...), float32 or float64. strength: how far up the path to start, in (0, 1]; 0.66 of a named grid by
    default, and all of a `Grid`. average: noises a step. Nothing is stored; two evaluations a step and noise; the same
    conditions and guidance give x back exactly.
    """
    check_state("x", x, model.shape)
    if average < 1:
        raise InputError(f"average: got {average}, expected at least one noise a step")
    times = grids.partway(grid, model.schedule, steps, strength, 0.66).times
    here, there = _conditioned(model, source, source_guidance), _conditioned(model, target, guidance)
    schedule, edited = model.schedule, x.clone()
    rows = range(index, index + len(x))
    for k, (t0, t1) in enumerate(itertools.pairwise(times)):
        tau, scale = FLOW.time(schedule, t0), FLOW.scale(schedule, t0)
        step = FLOW.time(schedule, t1) - tau
        change = torch.zeros_like(x)
        for repeat in range(average):
            where = (k, repeat, 3)
            noisy = (1.0 - tau) * x + tau * noise.like(x, seed, noise.PERTURBATION, where, rows)
            change += there((edited + noisy - x) * scale, t0).flow - here(noisy * scale, t0).flow
        edited = edited + (step / average) * change
    return _edit(x, edited, 2 * average * (len(times) - 1), len(times) - 1)


@follows("x")
def rf_inversion(
    model: Denoiser,
    x: Tensor,
    target: Condition,
    *,
    source: Condition = None,
    guidance: float = 3.0,
    gamma: float = 0.5,
    eta: float = 0.9,
    window: tuple[float, float] = (0.0, 0.4),
    steps: int = 28,
    grid: str | Grid = "uniform",
    seed: int = 0,
    index: int = 0,
) -> FlowingEdit:
    """RF-Inversion: Euler up with a pull towards typical noise, Euler down with a pull towards the source.

    gamma: strength of the pull upwards, in [0, 1]; 0 is the plain inversion. eta: that of the pull downwards, on the
    share `window` of the steps, counted from the noisy end. Not exact, in any setting; two evaluations a step in all.
    """
    check_state("x", x, model.shape)
    if not (0.0 <= gamma <= 1.0 and 0.0 <= eta <= 1.0):
        raise InputError(f"rf_inversion: gamma and eta lie in [0, 1], got {gamma} and {eta}")
    times = grids.make(grid, model.schedule, steps).times
    schedule = model.schedule
    up, down = _conditioned(model, source, 1.0), _conditioned(model, target, guidance)
    goal = noise.like(x, seed, noise.PERTURBATION, (1, 0, 1), range(index, index + len(x)))
    clock = [FLOW.time(schedule, t) for t in times]
    scales = [FLOW.scale(schedule, t) for t in times]
    n = len(times) - 1
    u = x / scales[n]
    for k in range(n, 0, -1):
        slope = up(u * scales[k], times[k]).flow
        pull = (goal - u) / (1.0 - clock[k])
        u = u + (clock[k - 1] - clock[k]) * (slope + gamma * (pull - slope))
    for k in range(n):
        slope = down(u * scales[k], times[k]).flow
        if window[0] * n <= k < window[1] * n:
            slope = slope + eta * ((u - x / scales[n]) / clock[k] - slope)
        u = u + (clock[k + 1] - clock[k]) * slope
    return _edit(x, u * scales[n], 2 * n, n)


def _edit(x: Tensor, edited: Tensor, nfe: int, steps: int) -> FlowingEdit:
    if not finite(edited):
        raise NonFiniteError("the edit became NaN or infinite; less guidance or more steps may help")
    return FlowingEdit(edited, rmse(edited, x), nfe, steps)


def _conditioned(model: Denoiser, given: Any, guidance: float) -> Denoiser:
    return model.condition(given).guided(guidance if given is not None else 1.0)
