"""The stability region of a method: how much its step amplifies, for any registered solver, from its own step code.

On the test equation u' = lambda u a step of size h multiplies the solver's whole state (all its tensors) by a
matrix that depends on z = h lambda alone; the method is stable where the matrix's spectral radius is at most 1. The
matrix is found by running `Solver.step` on unit states, for many complex z at once, so that no formula is
written twice.

A tuned solver has no single step. Its region is that of a whole run of N calls, with h the length of the run in flow
coordinates over N: the run multiplies the start by R(z), and it is stable where |R(z)| <= max(1, |R(0)|), as a fitted
scheme keeps a constant to rounding only. So that it compares with others, what counts as its spectral radius is the
share of a call, (|R(z)| / max(1, |R(0)|))^(1/N). A solver of several numbers of calls is given as `tuned.only(calls)`.

Where a model puts z along a run is found by `eigenvalues`, and how much a model's generation map amplifies by
`amplification`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import solvers
from .._integrate import StepLoop, drive
from .._integrate.steps import Model
from .._internal import plots
from .._internal.numerics import last_where
from ..coordinates import DATA, Coordinates, by_name
from ..grids import Grid
from ..prediction import Prediction, PredictionType
from ..schedules import VE, RectifiedFlow
from ..solvers import Plain, Scheme, Tuned
from ..solvers.base import Solver, Step
from ..solvers.state import flatten_state
from .eigenvalues import Stiffness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STEP = 2.0**-20
"""The size of the steps, around 1/2 in the coordinates' time: small, so that they are equal in any clock."""
_AT = " at "
_SHOWN = ["ddim", "midpoint", "rk4", "ees25", "ees27", "rex-euler", "edict", "bdia", "alf", "dpmpp-2m"]
_KINDS: dict[str, PredictionType] = {"noise": "epsilon", "data": "sample", "flow": "flow"}


def spectral_radius(solver: str | Solver[Any], z: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Compute the spectral radius of a step of a solver on the test equation.

    It is the square root of the spectral radius of two successive steps of equal size, as some methods alternate or
    remember.

    Args:
        solver: The method, or its name.
        z: One or more complex numbers h lambda.

    Returns:
        The spectral radius at each z, in an array of its shape; shape (1,) for a single number.
    """
    method = solvers.get(solver)
    if isinstance(method, Tuned):
        plain = method.at().down
        method = plain.solver if isinstance(plain, Plain) else method
    values = np.atleast_1d(np.asarray(z, dtype=complex))
    flat = torch.from_numpy(values.ravel().copy())
    if isinstance(method, Tuned):
        return _share_of_a_call(method, flat).numpy().reshape(values.shape)
    first, second = _matrices(method, flat)
    both = second @ first
    radius = torch.linalg.eigvals(both).abs().amax(dim=1).sqrt()
    return radius.numpy().reshape(values.shape)


def _share_of_a_call(solver: Tuned, z: Tensor) -> Tensor:
    """The spectral radius of a tuned solver's call, shape (n,), from a run on the test equation."""
    schedule = RectifiedFlow()
    grid = solver.own_grid(schedule)
    count = cast(Scheme, solver.at().down).calls
    h = (grid.times[0] - (0.0 if grid.clean else grid.times[-1])) / count
    points = torch.cat([z, torch.zeros(1, dtype=z.dtype)])

    def model(x: Tensor, t: float) -> Prediction:
        level = schedule.at(t)
        u = torch.view_as_complex(x.reshape(-1, 2).contiguous())
        slope = torch.view_as_real(-points / h * u).reshape(x.shape)  # the run goes down in tau
        return Prediction(x, slope, "flow", level.alpha, level.sigma)

    state = solver.start(_unit(points, 1.0), schedule, grid.times[0])
    loop = StepLoop(model, solver, schedule, grid, state)
    for _ in loop:
        pass
    factor = torch.view_as_complex(solver.output(loop.state).contiguous()).abs()
    return (factor[:-1] / factor[-1].clamp_min(1.0)) ** (1.0 / count)


def _matrices(solver: Solver[Any], z: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices of two consecutive steps, shape (n, T, T) complex, T the tensors of the state."""
    schedule, coordinates = VE(), by_name(solver.coordinates)
    toward = 1.0 if coordinates is DATA else -1.0  # sampling runs up in the data coordinates' time, else down

    def model(x: Tensor, t: float) -> Prediction:
        """The field du/dtau = lambda u in the solver's coordinates, complex numbers as pairs."""
        level = schedule.at(t)
        u = torch.view_as_complex(x.reshape(-1, 2).contiguous()) / coordinates.scale(level)
        slope = torch.view_as_real(toward * z / _STEP * u).reshape(x.shape)
        return Prediction(x, slope, _KINDS[solver.coordinates], level.alpha, level.sigma)

    times = tuple(coordinates.when(schedule, 0.5 + toward * k * _STEP) for k in range(9))
    begin = schedule.at(times[0])
    state = solver.start(_unit(z, coordinates.scale(begin)), schedule, begin.t)
    loop = StepLoop(model, solver, schedule, Grid(times), state, keep_before=True)
    matrices: list[Tensor] = []
    for step in loop:
        if step.index in (6, 7):  # the history is full, and the last step is like no other
            matrices.append(_matrix(solver, loop.before, step, coordinates, model, z))
    return matrices[0], matrices[1]


def _matrix(solver: Solver[Any], before: Any, step: Step, coordinates: Coordinates, model: Model, z: Tensor) -> Tensor:
    """The matrix of one step on the tensors of the state before it, a column for each of them."""
    template, parts = flatten_state(before)
    scales = [_scale(solver, part, coordinates.scale(step.start)) for part in range(len(parts))]
    columns: list[Tensor] = []
    for j in range(len(parts)):
        inputs = [_unit(z, scales[i]) if i == j else torch.zeros_like(parts[0]) for i in range(len(parts))]
        after, _ = drive(solver.step(template(inputs), step), model)
        _, out = flatten_state(after)
        outs = [_scale(solver, part, coordinates.scale(step.end)) for part in range(len(out))]
        columns.append(torch.stack([torch.view_as_complex(o) / s for o, s in zip(out, outs, strict=True)], 1))
    return torch.stack(columns, 2)


def _unit(z: Tensor, scale: float) -> Tensor:
    return torch.tensor([scale, 0.0], dtype=torch.float64).repeat(len(z), 1)


def _scale(solver: Solver[Any], part: int, scale: float) -> float:
    """Model space over the solver's coordinates for the state's tensor number `part` (slopes have none)."""
    return scale if part < solver.points else 1.0


def real_interval(solver: str | Solver[Any], limit: float = 20.0) -> float:
    """Find the largest r such that a solver is stable on [-r, 0], from its own steps, to 1e-5.

    Args:
        solver: The method, or its name.
        limit: Where to stop looking.

    Returns:
        r, at most `limit`.
    """
    return _interval(solver, -1.0, limit)


def imaginary_interval(solver: str | Solver[Any], limit: float = 20.0) -> float:
    """Find the largest r such that a solver is stable on i [0, r], from its own steps, to 1e-5.

    Args:
        solver: The method, or its name.
        limit: Where to stop looking.

    Returns:
        r, at most `limit`.
    """
    return _interval(solver, 1j, limit)


def _interval(solver: str | Solver[Any], direction: complex, limit: float) -> float:
    method = solvers.get(solver)

    def stable(r: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        return spectral_radius(method, direction * r) <= 1.0 + 1e-9

    radii = np.concatenate([np.geomspace(1e-4, 0.1, 60), np.linspace(0.1, limit, 800)[1:]])
    inside = stable(radii)
    if inside.all():
        return limit
    first = int(np.argmin(inside))
    if first == 0:
        return 0.0
    return last_where(lambda r: bool(stable(np.array([r]))[0]), float(radii[first - 1]), float(radii[first]), 30)


def figure(
    names: list[str] | None = None,
    *,
    stiffness: dict[str, Stiffness] | None = None,
    resolution: int = 121,
) -> Figure:
    """Draw stability regions, one panel per solver: per step and, dashed, per evaluation; see `scheme_figure`, too.

    Args:
        names: Registered deterministic solvers, or files of tuned ones; a selection by default. A tuned solver has a
            panel for each of its numbers of calls.
        stiffness: Where models put z, by label, to be marked in each panel.
        resolution: The number of points along each side of a panel.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UnknownNameError: A solver is not registered.
    """
    panels = _each_budget(names or _SHOWN)
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    panel = plots.figure(2.6 * columns, 2.7 * rows)
    axes = panel.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    real, imaginary = np.linspace(-4.5, 1.0, resolution), np.linspace(-3.5, 3.5, resolution)
    z = real[None, :] + 1j * imaginary[:, None]
    for axis, name in zip(axes, panels, strict=False):
        method = _of_panel(name)
        radius = spectral_radius(method, z)
        axis.contourf(real, imaginary, radius, levels=[0.0, 1.0 + 1e-9], colors=["#9ecae1"])
        cost = method.properties.evaluations or 1
        if cost > 1:
            axis.contour(real / cost, imaginary / cost, radius, levels=[1.0 + 1e-9], colors="#08519c", linestyles="--")
        axis.axhline(0, color="#999", lw=0.5)
        axis.axvline(0, color="#999", lw=0.5)
        for k, (label, place) in enumerate((stiffness or {}).items()):
            points = place.z.flatten().detach().cpu().numpy()
            axis.plot(points, np.full(points.shape, 0.15 * (k + 1)), "|", ms=5, alpha=0.4, label=label)
        axis.set_title(f"{Path(name).name}, [{-real_interval(method, 6.0):.3g}, 0]", fontsize=9)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    if stiffness:
        axes[0].legend(fontsize=7, loc="upper left", frameon=False)
    panel.supxlabel("Re z per step (dashed: per evaluation)")
    panel.supylabel("Im z")
    return panel


def _each_budget(names: list[str]) -> list[str]:
    """The names of the panels: of a tuned solver, one for each number of calls."""
    panels: list[str] = []
    for name in names:
        method = solvers.get(name)
        panels += [f"{name}{_AT}{calls}" for calls in method.budgets] if isinstance(method, Tuned) else [name]
    return panels


def _of_panel(name: str) -> Solver[Any]:
    plain, at, calls = name.rpartition(_AT)
    method = solvers.get(plain if at else name)
    return method.only(int(calls)) if isinstance(method, Tuned) else method


__all__ = ["figure", "imaginary_interval", "real_interval", "spectral_radius"]
