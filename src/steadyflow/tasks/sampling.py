"""`sample`: from noise to data."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Unpack

import torch
from torch import Tensor

from .. import noise
from .._integrate import Solution, check_state, check_state_type, level_at
from .._internal.given import device_of, whole
from .._internal.tensors import finite
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ._batched import run_batched
from ._options import Options, Resolved
from .choosing import resolved_for_sampling

Moments = tuple[float | Tensor, float | Tensor]


def sample(
    model: Denoiser,
    *,
    n: int | None = None,
    x: Tensor | None = None,
    guidance: float | Tensor | None = None,
    end: Literal["clean", "path"] | None = None,
    moments: Moments | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **options: Unpack[Options],
) -> Solution:
    """Draw n samples, or denoise the given starting latents.

    What is returned is data: where the path still has noise at its last time, the last of the evaluations is made
    there and read as the clean estimate, as k-diffusion does. The number of steps, or of evaluations, is the one that
    was asked for; a grid given as times is followed, and the reading comes on top, unless the grid is `firm`, as those
    of schedulers are.

    Args:
        model: The model of the data, under a condition if it has one.
        n: How many to draw; the latents of sample i depend on `seed` and `index + i` alone. They have the path's
            standard deviation sigma at the noisy end, and `dtype` and `device`.
        x: Starting latents at the grid's noisy end instead, shape (B, ...), float32 or float64.
        guidance: The scale of classifier-free guidance; the model's own by default.
        end: "clean" data, or the state at the end of the "path", with the noise that it has there; by default as a
            `firm` grid ends, else "clean".
        moments: Mean and variance of the data, numbers or of a sample's shape; only valid with n. With them the latents
            have the path's own moments at the noisy end, alpha mean and alpha^2 variance + sigma^2, as a start part of
            the way up needs. The model's own by default, if it knows them.
        dtype: Of the latents that are drawn.
        device: Of the latents that are drawn.
        **options: See `Options`. Without a solver, and with "auto", it is the one of `recommended`.

    Returns:
        The solution; `x` has shape (n, ...).

    Raises:
        InputError: An argument does not fit.
        NonFiniteError: The run diverged.
    """
    if end not in ("clean", "path", None):
        raise InputError(f"end: got {end!r}, expected 'clean' or 'path'")
    if n is not None:
        dtype, device = check_state_type(dtype), device_of(device)
    if (n is None) == (x is None):
        raise InputError("sample: give either n (how many to draw) or x (starting latents)")
    model = model if guidance is None else model.with_guidance(guidance)
    chosen = Resolved.of(options, sample, defaults={"solver": "auto"})
    if x is not None and moments is not None:
        raise InputError("moments: only valid with n; with x the start is already given")
    chosen, grid, begin, reason = settled(model, chosen, n, x, moments, end, dtype, device)
    found = run_batched(model, grid, chosen.method, chosen, x=begin)
    return replace(found, seed=chosen.seed if x is None else found.seed, reason=reason)


def settled(
    model: Denoiser,
    chosen: Resolved,
    n: int | None,
    x: Tensor | None,
    moments: Moments | None,
    end: Literal["clean", "path"] | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[Resolved, Grid, Tensor, str]:
    """What a run of `sample` is made of, and of others that begin and end as it does.

    Args:
        model: The model, under its guidance.
        chosen: The options.
        n: How many samples to draw, or None with x.
        x: Starting latents, shape (B, ...).
        moments: Mean and variance of the data; the model's own by default, with n.
        end: "clean", "path" or None, as `sample` takes it.
        dtype: Of the latents that are drawn.
        device: Of the latents that are drawn.

    Returns:
        The options with a solver, the grid, the start, and why this solver.

    Raises:
        InputError: The start does not fit the model, or the end not the solver.
    """
    firm = end is None and isinstance(chosen.grid, Grid) and chosen.grid.firm
    clean = chosen.grid.clean if firm and isinstance(chosen.grid, Grid) else end != "path"
    moments = model.moments if moments is None and x is None else moments

    def start(grid: Grid) -> Tensor:
        return latents(model, n, grid, chosen, moments, dtype, device) if x is None else x

    chosen, reason = resolved_for_sampling(chosen, model, start, clean)
    grid = chosen.falling(model, clean=clean)
    if chosen.own_grid(model, rising=False) is not None and clean != _ends_clean(grid, model):
        ends = "end='clean', by which it was fitted" if not clean else "end='path': it was fitted for round trips"
        raise InputError(f"end: solver {chosen.method.name!r} has its own end; give {ends}")
    begin = start(grid)
    check_state("x", begin, model.shape)
    return chosen, grid, begin, reason


def _ends_clean(grid: Grid, model: Denoiser) -> bool:
    return grid.clean or model.schedule.at(grid.times[-1]).sigma == 0.0


def latents(
    model: Denoiser,
    n: int | None,
    grid: Grid,
    options: Resolved,
    moments: Moments | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """The starts of n samples at a grid's noisy end, shape (n, ...).

    Args:
        model: The model of the data.
        n: How many.
        grid: The grid, which falls.
        options: Of the run; the seed and the first index count.
        moments: Mean and variance of the data, if known.
        dtype: Of the latents.
        device: Of the latents.

    Raises:
        InputError: The number or the moments do not fit, or the model does not say the shape of a sample.
    """
    n = whole("n", n, 1)
    if model.shape is None:
        raise InputError("n: the model does not say the shape of a sample; give Denoiser(shape=...) or x")
    rows = range(options.index, options.index + n)
    start = noise.initial(options.seed, rows, model.shape, dtype=dtype, device=device)
    level = model.schedule.at(grid.times[0])
    alpha, sigma = level.alpha, level.sigma
    if grid.tensor is not None and options.adjoint is not None and torch.is_grad_enabled():
        alpha, sigma = (number.to(start) for number in level_at(model.schedule, grid.tensor[0]))
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
    return alpha * mean + (alpha**2 * variance + sigma**2).sqrt() * start
