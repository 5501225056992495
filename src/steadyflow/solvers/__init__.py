"""Solvers: one family a file, tableaux as data, a registry with each solver's properties.

Each family registers its methods and lists its classes; what it lists can be imported from here.
"""

# The order of the families is that of the registry's table.
# isort: off
from . import ancestral, fixed_point, hybrid, multistep, reversible, rex, runge_kutta, singlestep, stochastic
from . import res, stork, er_sde, sa_solver, schemes, tuned
from .ancestral import *  # noqa: F403
from .base import Properties, Queries, Query, Solver, Step, each_step, steps_for
from .er_sde import *  # noqa: F403
from .fixed_point import *  # noqa: F403
from .hybrid import *  # noqa: F403
from .multistep import *  # noqa: F403
from .registry import from_spec, get, names, parse, register
from .res import *  # noqa: F403
from .reversible import *  # noqa: F403
from .rex import *  # noqa: F403
from .runge_kutta import *  # noqa: F403
from .sa_solver import *  # noqa: F403
from .schemes import *  # noqa: F403
from .singlestep import *  # noqa: F403
from .state import solver_state
from .stochastic import *  # noqa: F403
from .stork import *  # noqa: F403
from .tableaux import Tableau
from .tuned import *  # noqa: F403

# isort: on

__all__ = [
    "Properties",
    "Queries",
    "Query",
    "Solver",
    "Step",
    "Tableau",
    "each_step",
    "from_spec",
    "get",
    "names",
    "parse",
    "register",
    "solver_state",
    "steps_for",
]
__all__ += ancestral.__all__
__all__ += runge_kutta.__all__
__all__ += rex.__all__
__all__ += reversible.__all__
__all__ += singlestep.__all__
__all__ += multistep.__all__
__all__ += fixed_point.__all__
__all__ += stochastic.__all__
__all__ += hybrid.__all__
__all__ += res.__all__
__all__ += stork.__all__
__all__ += er_sde.__all__
__all__ += sa_solver.__all__
__all__ += schemes.__all__
__all__ += tuned.__all__
