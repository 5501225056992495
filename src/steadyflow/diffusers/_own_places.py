"""Where the steps of a tuned solver lie in a pipeline: over its own grid alone, one network call a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..grids import Grid
from ..schedules import RectifiedFlow, Schedule
from ..solvers import registry
from ..solvers.base import Solver
from ..solvers.tuned import Tuned
from ..tasks._elsewhere import warn_of_path
from ._planner import Places, numbers, whole


def check_tuned(solver: Solver[Any], schedule: Schedule) -> None:
    """Warn where a tuned solver was fitted on another path; nothing else of a model is known to a scheduler.

    Args:
        solver: The solver.
        schedule: The scheduler's path.
    """
    if isinstance(solver, Tuned):
        warn_of_path(solver, schedule)


def as_settings(solver: Any) -> tuple[str, dict[str, Any]] | None:
    """A solver that was given as an object or as its spec, as the fields of a config; None for a name.

    Args:
        solver: What was given as `solver`.

    Raises:
        InputError: It is something else.
    """
    if solver is None or isinstance(solver, str):
        return None
    if not isinstance(solver, Solver | dict):
        raise InputError(f"solver: got {solver!r}, expected a name, the path of a tuned solver, a solver or its spec")
    spec: dict[str, Any] = dict(solver) if isinstance(solver, dict) else solver.spec()
    registry.from_spec(spec)  # refuses what is none
    return spec.pop("name"), spec


def own_places(solver: Tuned, schedule: Schedule, steps: Any, rising: bool, told: Callable[[float], float]) -> Places:
    """The places of a tuned solver's calls; of an inversion, in falling order.

    Args:
        solver: The solver.
        schedule: The path.
        steps: The number of calls.
        rising: Whether it inverts.
        told: What the network is told at a time.

    Raises:
        InputError: It was not fitted for this number of calls, or not for inversions.
    """
    if whole(steps, None) not in solver.budgets:
        budgets = ", ".join(map(str, solver.budgets))
        raise InputError(f"num_inference_steps: got {steps}, but this tuned solver was fitted for {budgets} calls")
    grid = _falling(solver, schedule, steps, rising)
    times = grid.times if grid.clean else grid.times[:-1]
    return Places(times, tuple(map(told, times)), None if grid.clean else grid.times[-1])


def calls_of_list(
    solver: Tuned, schedule: Schedule, listed: Mapping[str, Sequence[float]], time_of: Callable[[str, float], float]
) -> int:
    """The number of calls for which lists are those of a tuned solver's own grid.

    Pipelines of flow models list 1, (n - 1)/n, ..., 1/n where the user gives no sigmas: that is the number n.

    Args:
        solver: The solver.
        schedule: The path.
        listed: "timesteps", or noise levels, "sigmas", by these names, with or without that of the end, or both.
        time_of: The path time of a value of a list.

    Raises:
        InputError: They are others.
    """
    found: set[int] = set()
    for name, given in listed.items():
        values = numbers(name, given)
        n = len(values)
        even = isinstance(schedule, RectifiedFlow) and name == "sigmas"
        if even and all(math.isclose(v, 1.0 - i / n, abs_tol=1e-6) for i, v in enumerate(values)):
            found.add(n)
        else:
            found.add(_recognised(solver, schedule, name, [time_of(name, value) for value in values]))
    if len(found) != 1:
        raise InputError(f"{', '.join(listed)}: are for {sorted(found)} calls; {solver.foreign}")
    return found.pop()


def _recognised(solver: Tuned, schedule: Schedule, name: str, times: list[float]) -> int:
    """The number of calls whose grid has these times, with or without its end."""
    low, high = schedule.domain
    inside = all(low <= t <= high for t in times)
    for calls in solver.budgets if inside else ():
        own = _falling(solver, schedule, calls, False)
        shown = times
        if not own.clean and len(times) == len(own) - 1:
            shown = [*times, own.times[-1]]
        elif own.clean and len(times) == len(own) + 1 and times[-1] <= min(times):
            shown = times[:-1]  # the end
        try:
            return solver.only(calls).recognised(schedule, Grid(tuple(shown), clean=own.clean)).calls
        except InputError:
            continue
    raise InputError(f"{name}: got {len(times)} values that are none of its own grids; {solver.foreign}")


def _falling(solver: Tuned, schedule: Schedule, calls: int, rising: bool) -> Grid:
    grid = solver.own_grid(schedule, calls, rising=rising)
    return grid.reversed() if rising else grid
