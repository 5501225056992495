"""`sample`: from noise to data."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import grids, noise, solvers
from ..batches import finite
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..integrate import Callback, Correction, Progress, Record, Trajectory, check_state
from ..solvers.base import Solver
from .journey import Options, travel


@dataclass(frozen=True)
class Sample:
    """Samples, and what they cost."""

    x: Tensor
    """Shape (n, ...)."""
    nfe: int
    """Model evaluations a sample. A guided evaluation counts once and costs the network two."""
    steps: int
    solver: Solver
    grid: Grid
    seed: int
    trajectory: Trajectory | None = None
    """The recorded states, if asked for."""


def sample(
    model: Denoiser,
    *,
    n: int | None = None,
    x: Tensor | None = None,
    solver: str | Solver = "ddim",
    steps: int = 50,
    grid: str | Grid = "quadratic",
    t_max: float | None = None,
    t_min: float | None = None,
    seed: int = 0,
    index: int = 0,
    noise: str = "brownian",
    moments: tuple[float | Tensor, float | Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    corrections: Iterable[Correction] = (),
    record: Record = None,
    callback: Callback | None = None,
    progress: Progress = None,
    batch_size: int | None = None,
) -> Sample:
    """Draw n samples, or denoise the given starting latents.

    n: how many to draw; the latents of sample i depend on `seed` and `index + i` alone. They have the path's
        standard deviation sigma(t_max), and `dtype` and `device`.
    moments: mean and variance of the data, numbers or of a sample's shape. With them the latents of n have the path's
        own at t_max, alpha mean and alpha^2 variance + sigma^2, as a start part of the way up needs.
    x: starting latents at the grid's noisy end instead, shape (B, ...), float32 or float64.
    solver, steps, grid: see `steadyflow.solvers` and `steadyflow.grids`; `t_max` and `t_min` bound a named grid.
    noise, seed, index, batch_size: see `Options`. record, callback, corrections, progress: see `integrate`.

    Raises `InputError` for arguments that do not fit, `NonFiniteError` where the run diverges.
    """
    method = solvers.get(solver)
    times = grids.make(grid, model.schedule, steps, t_max=t_max, t_min=t_min)
    if (n is None) == (x is None):
        raise InputError("sample: give either n (how many to draw) or x (starting latents)")
    if x is None:
        x = _latents(model, n, times, seed, index, moments, dtype, device)
    elif moments is not None:
        raise InputError("moments: go with n; x says itself where it starts")
    check_state("x", x, model.shape)
    options = Options(seed, index, noise, corrections, callback, record, progress, batch_size)
    arrival = travel(model, times, method, options, x=x)
    return Sample(method.output(arrival.state), arrival.nfe, times.steps, method, times, seed, arrival.trajectory)


def _latents(model, n, times: Grid, seed, index, moments, dtype, device) -> Tensor:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise InputError(f"n: got {n!r}, expected a whole number of at least 1")
    if model.shape is None:
        raise InputError("n: the model does not say the shape of a sample; give Denoiser(shape=...) or x")
    start = noise.initial(seed, range(index, index + n), model.shape, dtype=dtype, device=device)
    alpha, sigma = model.schedule.alpha(times.times[0]), model.schedule.sigma(times.times[0])
    if moments is None:
        return start * sigma
    mean, variance = (torch.as_tensor(value, dtype=dtype, device=device) for value in moments)
    if not bool((variance >= 0).all()) or not finite(mean):
        raise InputError("moments: expected a finite mean and a variance of at least 0")
    try:
        mean, variance = mean.expand(model.shape), variance.expand(model.shape)
    except RuntimeError as error:
        shapes = tuple(mean.shape), tuple(variance.shape)
        raise InputError(f"moments: shapes {shapes} do not fit samples of shape {tuple(model.shape)}") from error
    return alpha * mean + (alpha * alpha * variance + sigma * sigma).sqrt() * start
