"""The solvers by name. Registering one is all it takes to be listed, tested and usable everywhere."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import MALFORMED, InputError, UnknownNameError
from ..variables import VariableName
from .ancestral import DDIM, DDPM
from .base import Solver
from .fixed_point import AIDI, FireFlow, ReNoise
from .hybrid import Hybrid
from .multistep import DEIS, IPNDM, LMS, DPMpp2M, DPMpp3M, DPMppSDE, UniPC
from .reversible import ALF, BDIA, BELM, EDICT, Coupling, ImplicitMidpoint, ReversibleHeun
from .rex import Rex, RexSDE
from .runge_kutta import EES25, EES27, METHODS
from .singlestep import DPMpp2S, DPMSolver2, DPMSolver3
from .stochastic import LCM, SEEDS2, EDMStochastic

_MAKERS: dict[str, Callable[..., Solver]] = {}


def register(name: str, maker: Callable[..., Solver]) -> None:
    """Make `maker(**options) -> Solver` available under a name, which must be free."""
    if name in _MAKERS:
        raise InputError(f"solver name {name!r} is taken")
    _MAKERS[name] = maker


def _rex(method: str) -> Callable[..., Solver]:
    """The maker of Rex over one method, whose name is then no option."""

    def make(variable: VariableName = "noise", coupling: Coupling = 0.999) -> Solver:
        return Rex(method, variable, coupling)

    return make


def _hybrid(
    deterministic: str | Solver | dict[str, Any] = "ddim",
    stochastic: str | Solver | dict[str, Any] = "ddpm",
    noisy: int = 5,
    after: int = 0,
) -> Solver:
    """The maker of a hybrid, whose parts are given by name, as solvers, or as they were saved."""
    quiet, loud = (from_spec(part) if isinstance(part, dict) else get(part) for part in (deterministic, stochastic))
    return Hybrid(quiet, loud, noisy, after)


for _solver in (DDIM, DDPM, *METHODS, EES25, EES27):
    register(_solver.name, _solver)
for _solver in METHODS:
    register(f"rex-{_solver.name}", _rex(_solver.name))
for _method in ("euler-maruyama", "shark"):
    register(RexSDE(_method).name, partial(RexSDE, _method))
for _solver in (ReversibleHeun, ALF, EDICT, BDIA, BELM, ImplicitMidpoint):
    register(_solver.name, _solver)
for _solver in (DPMSolver2, DPMSolver3, DPMpp2S, DPMpp2M, DPMpp3M, UniPC, DEIS, IPNDM, LMS, FireFlow, AIDI, ReNoise):
    register(_solver.name, _solver)
for _order in (1, 2, 3):
    register(DPMppSDE(_order).name, partial(DPMppSDE, _order))
for _solver in (SEEDS2, EDMStochastic, LCM):
    register(_solver.name, _solver)
register(Hybrid.name, _hybrid)


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
    try:
        return maker(**options)
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError(f"solver {solver!r}: {error}") from error


def from_spec(spec: dict[str, Any]) -> Solver:
    """The solver that `Solver.spec` described. Raises as `get` does."""
    options = {str(key): value for key, value in spec.items()}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UnknownNameError("solver", name, _MAKERS)
    return get(name, **options)


def facts_table() -> tuple[list[str], list[list[str]]]:
    """All solvers and their facts as text: the headings, and a list of cells a solver."""
    heads = ["solver", "order", "nfe/step", "inverse", "order back", "stable on", "source"]
    rows = []
    for name in names():
        facts = get(name).facts
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
    heads, rows = facts_table()
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *([f"`{row[0]}`", *row[1:]] for row in rows))]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
