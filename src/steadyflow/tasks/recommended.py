"""The plain solver to sample with where none is named.

Over the problems of `benchmarks/few_calls.py` (exact mixtures, digits and faces, a flow model, a text-to-image
pipeline; `benchmarks/RESULTS.md`), `fireflow` on the quadratic grid has the smallest error, or is close to it, at 4 to
48 evaluations. On paths whose noise has no bound, times are noise levels, and "kl-optimal" takes the grid's place.
Below three evaluations there is no step of it, and DDIM remains.
"""

from __future__ import annotations

import math

from .. import solvers
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..schedules import Schedule
from ._options import DEFAULT_SOLVER, Resolved

REASON = "{} is the plain solver that is recommended for sampling."
"""What is told where "auto" was asked for."""
_SOLVER, _LAST = "fireflow", "ddim"


def recommended(schedule: Schedule, nfe: int | None = None) -> tuple[str, str]:
    """Return the names of the plain solver and of the grid that sample best with few evaluations.

    Args:
        schedule: The path.
        nfe: The number of evaluations, where it is small enough to matter.
    """
    solver = _LAST if nfe is not None and nfe < 3 else _SOLVER
    return solver, "quadratic" if math.isfinite(schedule.domain[1]) else "kl-optimal"


def with_recommended(options: Resolved, model: Denoiser, *, clean: bool) -> Resolved:
    """The options of sampling with the recommended solver, and with its grid unless another is given.

    Runs with corrections begin afresh after every step, and those with a controller need an estimate of their errors,
    neither of which suits a method that goes on from the step before: they take the solver of the other verbs.

    Args:
        options: The options, in which no solver is named.
        model: The model.
        clean: Whether the run ends with the clean estimate.
    """
    if options.controller is not None or options.corrections:
        return options.changed(solver=DEFAULT_SOLVER)
    solver, grid = recommended(model.schedule)
    chosen = options.changed(solver=solvers.get(solver), grid=grid if options.grid is None else options.grid)
    try:
        chosen.falling(model, clean=clean)
    except InputError:
        return chosen.changed(solver=solvers.get(_LAST))
    return chosen
