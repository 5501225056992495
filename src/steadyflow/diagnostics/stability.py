"""The map of stability: how much a step amplifies, for any registered solver, from its own step code.

On the test equation u' = lambda u a step of size h multiplies the solver's whole state (all its tensors) by a
matrix that depends on z = h lambda alone; the method is stable where the matrix's spectral radius is at most 1. The
matrix is found by running `Solver.step` on unit states, for many complex z at once, so that no formula is
written twice.

`placement` finds where a model puts z along a run: the dominant eigenvalue of the slope's Jacobian in the solver's
variable, times the step, by power iteration with Jacobian-vector products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import plots, solvers
from ..batches import dot, unit
from ..bisection import last_where
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..gradients import follows
from ..grids import Grid
from ..integrate import answer
from ..noise import PERTURBATION, like
from ..prediction import Prediction, PredictionType
from ..schedules import VE
from ..solvers.base import Solver, legs, take_apart
from ..variables import DATA, by_name

_STEP = 2.0**-20
"""The size of the steps, around 1/2 in the variable's time: small, so that they are equal in any clock."""
_KINDS: dict[str, PredictionType] = {"noise": "epsilon", "data": "sample", "flow": "flow"}


def amplification(solver: str | Solver, z: Any) -> np.ndarray:
    """The spectral radius of one step of the solver at each z, an array of complex numbers; same shape.

    The steps are of equal size. Methods that alternate or remember are taken over two steps, and the square root.
    """
    method = solvers.get(solver)
    values = np.atleast_1d(np.asarray(z, dtype=complex))
    flat = torch.from_numpy(values.ravel().copy())
    first, second = _matrices(method, flat)
    both = second @ first
    radius = torch.linalg.eigvals(both).abs().amax(dim=1).sqrt()
    return radius.numpy().reshape(values.shape)


def _matrices(solver: Solver, z: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices of two consecutive steps, shape (n, T, T) complex, T the tensors of the state."""
    schedule, variable = VE(), by_name(solver.frame)
    toward = 1.0 if variable is DATA else -1.0  # sampling runs up in the data variable's time, else down

    def model(x: Tensor, t: float) -> Prediction:
        """The field du/dtau = lambda u in the solver's variable, complex numbers as pairs."""
        u = torch.view_as_complex(x.reshape(-1, 2).contiguous()) / variable.scale(schedule, t)
        slope = torch.view_as_real(toward * z / _STEP * u).reshape(x.shape)
        return Prediction(x, slope, _KINDS[solver.frame], schedule.alpha(t), schedule.sigma(t))

    times = [variable.when(schedule, 0.5 + toward * k * _STEP) for k in range(9)]
    journey = list(legs(schedule, Grid(tuple(times))))
    state = solver.start(_unit(z, variable.scale(schedule, times[0])), schedule, times[0])
    for leg in journey[:6]:  # fill the history
        state, _ = answer(solver.step(state, leg), model)
    matrices = []
    for leg in journey[6:8]:
        template, parts = take_apart(state)
        scales = [_scale(solver, part, variable.scale(schedule, leg.t0)) for part in range(len(parts))]
        columns = []
        for j in range(len(parts)):
            inputs = [_unit(z, scales[i]) if i == j else torch.zeros_like(parts[0]) for i in range(len(parts))]
            after, _ = answer(solver.step(template(inputs), leg), model)
            _, out = take_apart(after)
            outs = [_scale(solver, part, variable.scale(schedule, leg.t1)) for part in range(len(out))]
            columns.append(torch.stack([torch.view_as_complex(o) / s for o, s in zip(out, outs, strict=True)], 1))
        matrices.append(torch.stack(columns, 2))
        state, _ = answer(solver.step(state, leg), model)
    return matrices[0], matrices[1]


def _unit(z: Tensor, scale: float) -> Tensor:
    return torch.tensor([scale, 0.0], dtype=torch.float64).repeat(len(z), 1)


def _scale(solver: Solver, part: int, scale: float) -> float:
    """Model space over the solver's variable for the state's tensor number `part` (slopes have none)."""
    return scale if part < solver.points else 1.0


def real_interval(solver: str | Solver, limit: float = 20.0) -> float:
    """The largest r such that the solver is stable on [-r, 0], found from its own steps, to 1e-5; at most `limit`."""
    return _interval(solver, -1.0, limit)


def imaginary_interval(solver: str | Solver, limit: float = 20.0) -> float:
    """The largest r such that the solver is stable on i [0, r], found from its own steps, to 1e-5; at most `limit`."""
    return _interval(solver, 1j, limit)


def _interval(solver: str | Solver, direction: complex, limit: float) -> float:
    method = solvers.get(solver)

    def stable(r: np.ndarray) -> np.ndarray:
        return amplification(method, direction * r) <= 1.0 + 1e-9

    radii = np.concatenate([np.geomspace(1e-4, 0.1, 60), np.linspace(0.1, limit, 800)[1:]])
    inside = stable(radii)
    if inside.all():
        return limit
    first = int(np.argmin(inside))
    if first == 0:
        return 0.0
    return last_where(lambda r: bool(stable(np.array([r]))[0]), float(radii[first - 1]), float(radii[first]), 30)


@dataclass(frozen=True)
class Placement:
    """Where a model puts z = h lambda along a grid: one row a leg."""

    times: tuple[float, ...]
    """The legs' starting times."""
    z: Tensor
    """Dominant real part of h J a leg and sample, shape (steps, B)."""


@follows("x")
def placement(
    model: Denoiser,
    grid: Grid,
    x: Tensor,
    *,
    solver: str | Solver = "ees25",
    iterations: int = 20,
) -> Placement:
    """The stiffest z that a sampling run from x over a falling grid meets, by power iteration.

    x: starting latents, shape (B, ...). At each leg's start J is the Jacobian of the slope in the solver's variable
    (frame "noise": d eps_hat / d (x/alpha)), and z the Rayleigh quotient of its dominant direction, times the
    step: negative where the field contracts. The solver only carries the state along.
    """
    if grid.rising:
        raise InputError("placement: expected a falling grid (a sampling run)")
    method = solvers.get(solver)
    variable = by_name(method.frame)
    state = method.start(x, model.schedule, grid.times[0])
    rows = []
    for leg in legs(model.schedule, grid, clean=model.answers_clean):
        here = method.output(state)
        h = variable.time(model.schedule, leg.t1) - variable.time(model.schedule, leg.t0)
        scale = variable.scale(model.schedule, leg.t0)
        if math.isfinite(h) and scale > 0:
            rows.append(h * scale * _dominant(lambda v, t=leg.t0: variable.slope(model(v, t)), here, iterations))
        else:
            rows.append(torch.full((len(x),), math.nan, dtype=x.dtype, device=x.device))
        state, _ = answer(method.step(state, leg), model)
    return Placement(grid.times[:-1], torch.stack(rows))


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


def figure(
    names: list[str] | None = None,
    *,
    placements: dict[str, Placement] | None = None,
    resolution: int = 121,
) -> Any:
    """A matplotlib figure of the stability regions: a panel a solver, per step and, dashed, per evaluation.

    names: registered deterministic solvers; a selection by default. placements: marks of where models put z, a
    label each. Raises `MissingExtraError` without matplotlib.
    """
    names = names or ["ddim", "midpoint", "rk4", "ees25", "ees27", "rex-euler", "edict", "bdia", "alf", "dpmpp-2m"]
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    panel = plots.figure(2.6 * columns, 2.7 * rows)
    axes = panel.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    real, imaginary = np.linspace(-4.5, 1.0, resolution), np.linspace(-3.5, 3.5, resolution)
    z = real[None, :] + 1j * imaginary[:, None]
    for axis, name in zip(axes, names, strict=False):
        method = solvers.get(name)
        radius = amplification(method, z)
        axis.contourf(real, imaginary, radius, levels=[0.0, 1.0 + 1e-9], colors=["#9ecae1"])
        cost = method.facts.evaluations or 1
        if cost > 1:
            axis.contour(real / cost, imaginary / cost, radius, levels=[1.0 + 1e-9], colors="#08519c", linestyles="--")
        axis.axhline(0, color="#999", lw=0.5)
        axis.axvline(0, color="#999", lw=0.5)
        for k, (label, place) in enumerate((placements or {}).items()):
            points = place.z.flatten().detach().cpu().numpy()
            axis.plot(points, np.full(points.shape, 0.15 * (k + 1)), "|", ms=5, alpha=0.4, label=label)
        axis.set_title(f"{name}, [{-real_interval(method, 6.0):.3g}, 0]", fontsize=9)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    if placements:
        axes[0].legend(fontsize=7, loc="upper left", frameon=False)
    panel.supxlabel("Re z per step (dashed: per evaluation)")
    panel.supylabel("Im z")
    return panel


__all__ = ["Placement", "amplification", "figure", "imaginary_interval", "placement", "real_interval"]
