"""`gits`: the grid of a few steps that suits a model, found along fine trajectories of it."""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from typing import Any, TypedDict, Unpack, cast

import numpy as np
import torch
from torch import Tensor

from .._integrate import Progress, check_state_type
from .._internal.given import device_of, number, whole
from .._internal.tensors import rms
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..solvers.base import Solver
from ._batched import run_batched
from ._options import Resolved
from .sampling import latents

FINE = 60
"""Steps of the fine trajectories."""
SAMPLES = 64
"""Fine trajectories, where neither their number nor their starts are given."""
_NO_MEANING = ("steps", "nfe", "noise", "corrections", "callback", "record", "adjoint")


class FineOptions(TypedDict, total=False):
    """The options of fine trajectories, with the meaning that they have for all verbs (see `Options`)."""

    solver: str | Solver[Any]
    """A deterministic solver, or its name; "midpoint" by default."""
    grid: str | Grid
    """The spacing of the times among which to choose, "kl-optimal" by default, or the times themselves."""
    strength: float | None
    t_min: float | None
    t_max: float | None
    seed: int
    index: int
    batch_size: int | None
    progress: Progress


def gits(
    model: Denoiser,
    steps: int,
    *,
    n: int | None = None,
    x: Tensor | None = None,
    guidance: float | None = None,
    fine: int | None = None,
    gamma: float = 1.0,
    clean: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **options: Unpack[FineOptions],
) -> Grid:
    """Find the grid of N steps with the least accumulated error of Euler's method (GITS, Chen et al. 2024, 2405.11326).

    Fine trajectories x(t_0), ..., x(t_M) of the model are solved first. With the model's prediction at x(t_i), the
    error of one DDIM step from there to any later t_j is

        c_ij = mean over trajectories of |x_i + step - x_j| / (alpha_j + sigma_j),

    the root mean square in flow coordinates, in which DDIM is Euler's method and the path has the same size at both
    ends. Dynamic programming then finds the times i_0 = 0 < i_1 < ... < i_N = M that minimise

        c_{i_0 i_1} + gamma c_{i_1 i_2} + ... + gamma^{N-1} c_{i_{N-1} i_N}.

    It costs one fine solve, and one more evaluation at each of its times, once for any number of later runs.

    The authors measure in the space of x/alpha, by default not this distance but by how much the steps change a
    trajectory's distance from the straight line through its ends, and have gamma = 1.15. With the cost above, the plain
    sum led to smaller errors of DDIM on all mixtures tried.

    Args:
        model: The model of the data, under a condition if it has one.
        steps: The number of steps N.
        n: How many trajectories to solve, 64 by default; they start as samples do (see `sample`).
        x: The starts of the trajectories at the noisy end instead, shape (B, ...).
        guidance: The scale of classifier-free guidance; the model's own by default.
        fine: The number M of fine steps; 60 by default.
        gamma: What an error weighs more than one in the step before it; above 1, early steps become longer.
        clean: Whether the last of the steps is the clean estimate, as runs of `sample` end, if the path still has noise
            at the last time. For inversions, False.
        dtype: Of the latents that are drawn.
        device: Of the latents that are drawn.
        **options: Those of the fine trajectories: `solver`, "midpoint" by default; `grid`, the spacing of the times
            among which to choose, or the times themselves, "kl-optimal" by default; `t_min`, `t_max`, `strength`;
            `seed`, `index`, `batch_size`, which bounds the memory, and `progress`.

    Returns:
        The grid, to be given to a verb as `grid=`.

    Raises:
        InputError: An argument does not fit, or there are more steps than fine ones.
        NonFiniteError: A trajectory diverged.
    """
    gamma = number("gamma", gamma, "a positive number")
    if not 0.0 < gamma < float("inf"):
        raise InputError(f"gamma: got {gamma!r}, expected a positive number")
    steps, fine = whole("steps", steps, 1), None if fine is None else whole("fine", fine, 1)
    if x is None:
        dtype, device = check_state_type(dtype), device_of(device)
    if n is not None and x is not None:
        raise InputError("gits: give either n (how many trajectories) or x (their starts)")
    defaults = {"solver": "midpoint", "grid": "kl-optimal"}
    chosen = Resolved.of(options, gits, refused=_NO_MEANING, defaults=defaults)
    if chosen.auto is not None or chosen.method.properties.stochastic or chosen.method.has_own_grid:
        raise InputError(f"solver: got {chosen.solver!r}, expected a deterministic one without a grid of its own")
    if isinstance(chosen.grid, Grid):
        if fine is not None:
            raise InputError("fine: only valid with a named grid; a Grid already fixes the fine times")
    else:
        chosen = chosen.changed(steps=FINE if fine is None else fine)
    model = model if guidance is None else model.with_guidance(guidance)
    grid = chosen.falling(model)
    clean = clean and model.schedule.at(grid.times[-1]).sigma > 0.0
    if steps - clean > grid.steps:
        raise InputError(f"steps: got {steps}, expected at most {grid.steps + clean} with {grid.steps} fine steps")
    if steps == 1 and clean:
        return Grid(grid.times[:1], clean=True)
    if x is None:
        x = latents(model, SAMPLES if n is None else n, grid, chosen, model.moments, dtype, device)
    indices = least_cost_path(costs(model, x, grid, chosen), steps - clean, gamma)
    return Grid(tuple(grid.times[i] for i in indices), clean=clean)


def costs(model: Denoiser, x: Tensor, grid: Grid, options: Resolved) -> np.ndarray[Any, Any]:
    """The errors c_ij of single DDIM steps between the times of a grid, shape (M + 1, M + 1); infinite unless i < j.

    Args:
        model: The model.
        x: The starts, shape (B, ...).
        grid: The fine times.
        options: Of the fine run.

    Raises:
        NonFiniteError: A trajectory diverged.
    """
    levels = [model.schedule.at(t) for t in grid.times]
    count, size = len(levels), options.batch_size or len(x)
    total = torch.zeros(count, count, dtype=torch.float64, device=x.device if x.device.type != "mps" else "cpu")
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        part = model.slice(start, start + len(rows)) if len(rows) < len(x) else model
        run = run_batched(part, grid, options.method, options.changed(record="all", batch_size=None), x=rows)
        assert run.trajectory is not None
        states = run.trajectory.x
        with torch.no_grad():
            for i in range(count - 1):
                prediction = part(states[i], levels[i].t)
                for j in range(i + 1, count):
                    missed = rms(prediction.ddim(levels[j].alpha, levels[j].sigma) - states[j]).sum()
                    total[i, j] += missed / (levels[j].alpha + levels[j].sigma)
    found = cast(Any, total).cpu().numpy() / len(x)
    found[np.tril_indices(count)] = np.inf
    return found


def least_cost_path(cost: np.ndarray[Any, Any], steps: int, gamma: float = 1.0) -> list[int]:
    """The indices 0 = i_0 < ... < i_N = M of the path with the least sum of gamma^k cost[i_k, i_(k+1)].

    Args:
        cost: The cost of a step from i to j, shape (M + 1, M + 1); infinite unless i < j.
        steps: The number of steps N, at most M.
        gamma: The weight of a step as a multiple of that of the step before it.
    """
    count = len(cost)
    ahead = np.full(count, np.inf)  # the least cost from each index to the end in k steps
    ahead[-1] = 0.0
    following: list[np.ndarray[Any, Any]] = []
    for _ in range(steps):
        through = cost + gamma * ahead[None, :]
        following.append(through.argmin(axis=1))
        ahead = through.min(axis=1)
    path = [0]
    for choice in reversed(following):
        path.append(int(choice[path[-1]]))
    return path
