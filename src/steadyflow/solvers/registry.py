"""The solvers by name. Registering one is all it takes to be listed, tested and usable everywhere."""

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import InputError, UnknownNameError
from .ancestral import DDIM, DDPM
from .base import Solver
from .runge_kutta import EES25, EES27, RK4, SSPRK3, Euler, Heun, Midpoint, Ralston

_MAKERS: dict[str, Callable[..., Solver]] = {}


def register(name: str, maker: Callable[..., Solver]) -> None:
    """Make `maker(**options) -> Solver` available under a name, which must be free."""
    if name in _MAKERS:
        raise InputError(f"solver name {name!r} is taken")
    _MAKERS[name] = maker


for _solver in (DDIM, DDPM, Euler, Midpoint, Heun, Ralston, SSPRK3, RK4, EES25, EES27):
    register(_solver.name, _solver)


def names() -> list[str]:
    """All registered names, in the order of registration."""
    return list(_MAKERS)


def get(solver: str | Solver, **options: Any) -> Solver:
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
    return maker(**options)


def from_spec(spec: dict[str, Any]) -> Solver:
    """The solver that `Solver.spec` described."""
    options = dict(spec)
    return get(options.pop("name"), **options)
