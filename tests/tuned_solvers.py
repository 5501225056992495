"""Tuned solvers made of plain ones, whose numbers they give: the oracle of the tests of tuned solvers."""

import json

import steadyflow as sf
from steadyflow.coordinates import FLOW
from steadyflow.solvers import Entry, Plain, Tuned
from steadyflow.tuning.schemes import scheme_of


def falling(solver, schedule, calls, *, clean=True, grid="quadratic"):
    """The grid on which a plain solver makes at most so many calls."""
    low, high = schedule.t_range
    return Plain(sf.solvers.get(solver), grid).on(schedule, calls, high, low, clean=clean)


def made(entries, schedule, **facts):
    """A tuned solver of given entries for a whole path."""
    low, high = (FLOW.time(schedule.at(t)) for t in schedule.t_range)
    facts = {"model": "a model", "schedule": json.dumps(schedule.spec(), default=str), **facts}
    return Tuned(tuple(entries), high, low, **facts)


def sampler(schedule, budgets=(8,), solver="dpmpp-2m", **facts):
    """One that is a plain solver on a quadratic grid, for each number of calls."""
    method = sf.solvers.get(solver)
    entries = [Entry(n, scheme_of(method, schedule, falling(solver, schedule, n))) for n in budgets]
    return made(entries, schedule, **facts)


def tripper(schedule, budgets=(9,), solver="ees25", **facts):
    """One for round trips that is a plain solver both ways."""
    method, entries = sf.solvers.get(solver), []
    for n in budgets:
        grid = falling(solver, schedule, n, clean=False)
        back = grid.reversed()
        entries.append(Entry(n, scheme_of(method, schedule, grid), scheme_of(method, schedule, back)))
    return made(entries, schedule, kind="round trip", **facts)


def replaced(schedule, calls=8, solver="midpoint"):
    """One in whose place a plain solver was better."""
    return made([Entry(calls, Plain(sf.solvers.get(solver), "quadratic"))], schedule)
