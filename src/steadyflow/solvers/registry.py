"""The solvers by name. Registering one is all it takes to be listed, tested and usable everywhere.

Each family registers its own methods where they are defined; `steadyflow.solvers` imports the families.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

from ..errors import MALFORMED, InputError, UnknownNameError
from .base import Solver

_MAKERS: dict[str, Callable[..., Solver[Any]]] = {}


def register(name: str, maker: Callable[..., Solver[Any]]) -> None:
    """Make `maker(**options)` available under a name, which must be free."""
    if name in _MAKERS:
        raise InputError(f"solver name {name!r} is taken")
    _MAKERS[name] = maker


def names() -> list[str]:
    """All registered names, in the order of registration."""
    return list(_MAKERS)


def get(solver: str | Solver[Any], **options: Any) -> Solver[Any]:
    """The solver of a name with the given options; a `Solver` passes through.

    Raises `UnknownNameError` (with the nearest names) for a name, `InputError` for an option it does not take.
    """
    if isinstance(solver, Solver):
        if options:
            raise InputError(f"solver: options {sorted(options)} go with a name, not with a solver object")
        return solver
    if solver not in _MAKERS:
        raise UnknownNameError("solver", solver, _MAKERS)
    maker = _MAKERS[solver]
    accepted = inspect.signature(maker).parameters
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise InputError(f"solver {solver!r}: no option {unknown[0]!r}; it takes {', '.join(accepted) or 'none'}")
    try:
        return maker(**options)
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError(f"solver {solver!r}: {error}") from error


def from_spec(spec: dict[str, Any]) -> Solver[Any]:
    """The solver that `Solver.spec` described. Raises as `get` does."""
    options = {str(key): value for key, value in spec.items()}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UnknownNameError("solver", name, _MAKERS)
    return get(name, **options)


def properties_table() -> tuple[list[str], list[list[str]]]:
    """All solvers and their facts as text: the headings, and a list of cells a solver."""
    heads = ["solver", "order", "nfe/step", "inverse", "order back", "stable on", "source"]
    rows = []
    for name in names():
        facts = get(name).properties
        inverse = "none (stochastic)" if facts.inverse == "none" else facts.inverse
        back = "" if facts.antisymmetric_order is None else str(facts.antisymmetric_order)
        cost = "until converged" if facts.evaluations is None else str(facts.evaluations)
        interval = facts.real_interval
        words = {None: "", math.inf: "all z < 0", 0.0: "z = 0 alone"}
        stable = words.get(interval, f"[-{interval or 0.0:.4g}, 0]")
        rows.append([name, str(facts.order), cost, inverse, back, stable, facts.source])
    return heads, rows


def solver_table() -> str:
    """The same in Markdown."""
    heads, rows = properties_table()
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *([f"`{row[0]}`", *row[1:]] for row in rows))]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
