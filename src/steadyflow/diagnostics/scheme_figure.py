"""A picture of a tuned solver: its stability region per call, and the times of its calls, beside plain solvers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .. import grids, schedules, solvers
from .._internal import plots, strict_json
from ..coordinates import FLOW
from ..errors import MALFORMED, SteadyflowError
from ..schedules import RectifiedFlow, Schedule
from ..solvers import Plain, Tuned
from . import stability_region

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BESIDE = {"ddim": "#e6550d", "dpmpp-2m": "#31a354", "ees25": "#756bb1"}
"""The plain solvers whose regions are drawn as lines, and their colours."""
GRIDS = ("uniform", "quadratic", "karras", "log-snr", "kl-optimal")
"""The plain grids whose times are drawn."""


def scheme_figure(
    solver: Tuned, calls: int | None = None, *, schedule: Schedule | None = None, resolution: int = 121
) -> Figure:
    """Draw where a tuned solver is stable and where its calls lie, a row for each number of calls.

    On the left is its stability region (see `stability_region`), with the borders of plain solvers, all per evaluation.
    On the right are the times tau of its calls, from noise on the left to data, above those of named grids with as many
    calls.

    Args:
        solver: The solver.
        calls: One of its numbers of calls; all by default.
        schedule: The path on which the named grids lie; the one for which it was fitted, or a flow's where that is not
            known.
        resolution: The number of points along each side of a region.

    Raises:
        InputError: It was not fitted for this number of calls.
        MissingExtraError: matplotlib is not installed.
    """
    budgets = solver.budgets if calls is None else (solver.at(calls).calls,)
    path = _fitted_path(solver) if schedule is None else schedule
    panel = plots.figure(9.0, 2.9 * len(budgets))
    axes = panel.subplots(len(budgets), 2, squeeze=False)
    real, imaginary = np.linspace(-4.5, 1.0, resolution), np.linspace(-3.5, 3.5, resolution)
    z = real[None, :] + 1j * imaginary[:, None]
    borders = {name: stability_region.spectral_radius(name, z) for name in BESIDE}
    for budget, (region, nodes) in zip(budgets, axes, strict=True):
        one = solver.only(budget)
        method = one.entries[0].down
        cost = (method.solver.properties.evaluations or 1) if isinstance(method, Plain) else 1
        radius = stability_region.spectral_radius(one, z)
        region.contourf(real / cost, imaginary / cost, radius, levels=[0.0, 1.0 + 1e-9], colors=["#9ecae1"])
        for name, colour in BESIDE.items():
            each = solvers.get(name).properties.evaluations or 1
            region.contour(
                real / each, imaginary / each, borders[name], levels=[1.0 + 1e-9], colors=colour, linewidths=0.8
            )
            region.plot([], [], color=colour, lw=0.8, label=name)
        region.axhline(0, color="#999", lw=0.5)
        region.axvline(0, color="#999", lw=0.5)
        region.set(xlim=(-4.5, 1.0), ylim=(-3.5, 3.5), xlabel="Re z per evaluation", ylabel="Im z")
        what = f", {method.solver.name} on {method.grid}" if isinstance(method, Plain) else ""
        region.set_title(f"{budget} calls{what}", fontsize=9)
        region.legend(fontsize=7, loc="upper left", frameon=False)
        rows = {"tuned": _times(one, path), **_named(solver, path, budget)}
        for k, times in enumerate(rows.values()):
            look = {"mew": 2.0, "color": "#08519c"} if k == 0 else {"mew": 1.0, "color": "#333"}
            nodes.plot(times, [-k] * len(times), "|", ms=12, **look)
        nodes.set_yticks([-k for k in range(len(rows))], list(rows))
        nodes.set(xlim=(1.03, -0.03), ylim=(-len(rows) + 0.4, 0.6), xlabel="tau of the calls, from noise to data")
    return panel


def _fitted_path(solver: Tuned) -> Schedule:
    """The path for which a solver was fitted; a flow's where that cannot be told."""
    try:
        spec = strict_json.loads(solver.schedule)
        return schedules.from_spec({k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()})
    except (*MALFORMED, SteadyflowError):
        return RectifiedFlow()


def _times(solver: Tuned, path: Schedule) -> list[float]:
    """The times of the steps of a solver of one number of calls, of a scheme those of its calls."""
    grid = solver.own_grid(path)
    return [FLOW.time(path.at(t)) for t in (grid.times if grid.clean else grid.times[:-1])]


def _named(solver: Tuned, path: Schedule, calls: int) -> dict[str, list[float]]:
    """The times of named grids between the same ends, by name; of those that exist on this path."""
    own = solver.own_grid(path, calls)
    found: dict[str, list[float]] = {}
    for name in GRIDS:
        try:
            grid = grids.make(name, path, calls, t_max=own.times[0], clean=True)
        except SteadyflowError:
            continue
        taus = [FLOW.time(path.at(t)) for t in (grid.times if grid.clean else grid.times[:-1])]
        if all(map(math.isfinite, taus)):
            found[name] = taus
    return found
