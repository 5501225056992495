"""The grids of tuned solvers: where their calls lie on a path, and to which call a step of a run belongs."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from ..coordinates import FLOW
from ..errors import InputError
from ..grids import Grid
from ..schedules import Schedule
from .schemes import Entry, Plain, Scheme, time_on

if TYPE_CHECKING:
    from .tuned import Tuned

FOR_SAMPLING = (
    "solver 'tuned': it was fitted for sampling alone and cannot invert; fit one for round trips with "
    "sf.tune(model, x=..., task='round trip')"
)
"""What to say where a solver that was fitted for sampling is to invert."""
_CLOSE = 1e-5
"""How far in tau the times of a run may be from a scheme's: the rounding of times that others store."""


class Place(NamedTuple):
    """The call of a tuned solver to which a step belongs."""

    entry: Entry
    scheme: Scheme | Plain
    call: int
    last: bool


@lru_cache(maxsize=256)
def grid_of(solver: Tuned, schedule: Schedule, calls: int, rising: bool) -> Grid:
    """Return the grid of a tuned solver.

    Args:
        solver: The solver.
        schedule: The path.
        calls: The number of calls each way.
        rising: Whether for inversion.

    Raises:
        InputError: It has none for this path, number of calls or direction.
    """
    entry = solver.at(calls)
    if rising:
        if solver.kind == "sample":
            raise InputError(FOR_SAMPLING)
        if isinstance(entry.up, Scheme):
            return entry.up.grid(schedule)
    if isinstance(entry.down, Scheme):
        return entry.down.grid(schedule)
    ends = (time_on(schedule, tau) for tau in (solver.tau_max, solver.tau_min))
    grid = entry.down.on(schedule, entry.calls, *ends, clean=solver.kind == "sample")
    return grid.reversed() if rising else grid


def is_same_grid(schedule: Schedule, own: Grid, grid: Grid) -> bool:
    """Whether two grids are the same but for the rounding of times that others store."""
    if len(own) != len(grid) or own.rising != grid.rising or own.clean != grid.clean:
        return False
    pairs = zip(own.times, grid.times, strict=True)
    return all(_same(schedule, a, b) for a, b in pairs)


def _same(schedule: Schedule, a: float, b: float) -> bool:
    return a == b or abs(FLOW.time(schedule.at(a)) - FLOW.time(schedule.at(b))) <= _CLOSE


def entry_over(solver: Tuned, schedule: Schedule, grid: Grid) -> Entry:
    """Return what a tuned solver does over a grid of its own; see `Tuned.recognised`.

    Args:
        solver: The solver.
        schedule: The path.
        grid: The grid, falling or rising.

    Raises:
        InputError: The grid is none of its own, or that of several numbers of calls.
    """
    found: list[Entry] = []
    for entry in () if grid.rising and solver.kind == "sample" else solver.entries:
        if is_same_grid(schedule, grid_of(solver, schedule, entry.calls, grid.rising), grid):
            found.append(entry)
    if not found:
        raise InputError(solver.foreign)
    if any((entry.down, entry.up) != (found[0].down, found[0].up) for entry in found):
        several = ", ".join(str(entry.calls) for entry in found)
        raise InputError(f"solver 'tuned': has this grid for {several} calls; give one of them, or only(calls)")
    return found[0]


@lru_cache(maxsize=4096)
def place_of(
    solver: Tuned, schedule: Schedule, t0: float, t1: float, index: int, count: int, reads: bool
) -> Place | None:
    """Find the entry to which a step belongs, and which of its calls the step is; None if it belongs to none."""
    rising = t1 > t0
    for entry in solver.entries:
        if rising and solver.kind == "sample":
            continue
        grid = grid_of(solver, schedule, entry.calls, rising)
        n = len(grid) - 1
        call = index if reads or not rising else count - 1 - index
        if count != n or not 0 <= call <= n or (call == n and not grid.clean):
            continue
        ends = [(grid.times[call], t0)] if reads else [(grid.times[call], t0), (grid.times[call + 1], t1)]
        if all(_same(schedule, a, b) for a, b in ends):
            scheme = entry.up if rising and entry.up is not None else entry.down
            last = isinstance(scheme, Scheme) and call == scheme.calls - 1
            return Place(entry, scheme, call, last)
    return None
