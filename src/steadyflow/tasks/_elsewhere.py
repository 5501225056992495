"""A warning where a tuned solver is used with another model or guidance than those that it was fitted for."""

import warnings

from .._internal import strict_json
from ..denoisers.base import Denoiser
from ..denoisers.fingerprints import fingerprint
from ..schedules import Schedule
from ..solvers.tuned import Tuned


def warn_of_path(solver: Tuned, schedule: Schedule) -> None:
    """Warn where a solver was fitted on another path, for those who do not see the model.

    Args:
        solver: The solver.
        schedule: The path of the run.
    """
    if solver.schedule and not _same_path(solver.schedule, schedule):
        _warn([f"to {solver.model!r}, on another path than this one"])


def warn_elsewhere(solver: Tuned, model: Denoiser) -> None:
    """Warn, with the numbers, where what was measured of a tuned solver says nothing about a run.

    Args:
        solver: The solver.
        model: The model of the run.
    """
    found: list[str] = []
    low, high = solver.guidance
    if not low - 1e-9 <= model.guidance <= high + 1e-9:
        fitted = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        found.append(f"at guidance {fitted}, and this run has {model.guidance:g}")
    own = fingerprint(model) if solver.fingerprint else ""
    if own != solver.fingerprint:
        path = "" if _same_path(solver.schedule, model.schedule) else ", on another path"
        found.append(f"to {solver.model!r} ({solver.fingerprint}), and this model is {model.name!r} ({own}){path}")
    if found:
        _warn(found)


def _same_path(known: str, schedule: Schedule) -> bool:
    """Whether a path is the one that was described, whatever the ends and the shift of its time."""
    try:
        fitted = strict_json.loads(known)
    except ValueError:
        return False
    own = strict_json.loads(strict_json.dumps(schedule.spec(), default=str))
    free = ("t_min", "t_max", *(("shift",) if own.get("type") == "RectifiedFlow" else ()))
    return {k: v for k, v in fitted.items() if k not in free} == {k: v for k, v in own.items() if k not in free}


def _warn(found: list[str]) -> None:
    warnings.warn(
        f"solver 'tuned': it was fitted {'; '.join(found)}; what was measured for it does not hold here", stacklevel=5
    )
