"""What the shell completes as the value of an option. Nothing here imports torch, which would take seconds at each Tab.

The names are those of `names`, which a script writes from the registries. Where nothing fits, the shell completes
files.
"""

import os
from collections.abc import Callable
from pathlib import Path

from .._internal import extensions
from . import names

Complete = Callable[[str], list[str]]
"""From what has been typed of a value to the values that begin with it."""

TUNED = "STEADYFLOW_SOLVERS"
"""The environment variable that names a folder of tuned solvers, as `solvers.registry` has it."""


def one_of(*values: str) -> Complete:
    """Complete one of some values.

    Args:
        *values: All of them.
    """

    def complete(incomplete: str) -> list[str]:
        return _beginning(incomplete, values)

    return complete


def models(incomplete: str) -> list[str]:
    """Complete the name of a model: a bundled one, or one that an installed package adds."""
    return _beginning(incomplete, (*names.MODELS, *extensions.registered(extensions.MODELS)))


def solver(incomplete: str) -> list[str]:
    """Complete the name of a solver: a plain one, or a tuned one of the user's own folder."""
    return _beginning(incomplete, (*names.SOLVERS, *_tuned()))


def solver_or_auto(incomplete: str) -> list[str]:
    """Complete the name of a solver, or auto."""
    return [*solver(incomplete), *_beginning(incomplete, ("auto",))]


def solvers(incomplete: str) -> list[str]:
    """Complete the last of several names of solvers with commas between them, each named once."""
    return _last_of_several(incomplete, (*names.SOLVERS, *_tuned()))


def plain_solvers(incomplete: str) -> list[str]:
    """Complete the last of several names of plain solvers."""
    return _last_of_several(incomplete, names.SOLVERS)


def _last_of_several(incomplete: str, values: tuple[str, ...]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{value}" for value in _beginning(last, values) if value not in taken]


def _tuned() -> list[str]:
    """The names of the files in the user's own folder of tuned solvers; what is in them is read when one is used."""
    folder = os.environ.get(TUNED, "")
    return sorted(path.stem for path in Path(folder).glob("*.json")) if folder else []


def _beginning(incomplete: str, values: tuple[str, ...]) -> list[str]:
    return [value for value in values if value.startswith(incomplete)]


grid = one_of(*names.GRIDS)
method = one_of(*names.METHODS)
coordinates = one_of("flow", "noise", "data")
device = one_of("cpu", "cuda", "mps")
