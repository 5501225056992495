"""The solvers by name. A registered solver is listed, tested and usable everywhere.

Each family registers its own methods where they are defined; `steadyflow.solvers` imports the families.
"""

import inspect
import math
import os
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast, get_type_hints

from .._internal import named
from ..errors import MALFORMED, CorruptFileError, InputError, StorageError, UnknownNameError
from .base import Solver

FOLDER = "STEADYFLOW_SOLVERS"
"""The environment variable that names a folder of tuned solvers, which are available by the names of their files."""

_MAKERS: dict[str, Callable[..., Solver[Any]]] = {}
_UNLISTED: set[str] = set()


def register(name: str, maker: Callable[..., Solver[Any]], *, listed: bool = True) -> None:
    """Make a solver available under a name.

    Args:
        name: A name that is not taken.
        maker: Called as `maker(**options)`, returns the solver; usually its class.
        listed: Whether `names` tells it; not for solvers that only `from_spec` and files make.

    Raises:
        InputError: The name is taken.
    """
    if name in _MAKERS:
        raise InputError(f"solver: the name {name!r} is taken")
    _MAKERS[name] = maker
    if not listed:
        _UNLISTED.add(name)


def names() -> list[str]:
    """Return all names: those that are registered, in the order of registration, and those of the user's own folder.

    The folder is named by the environment variable STEADYFLOW_SOLVERS; a file in it that is no tuned solver is named in
    a warning.
    """
    return [*(name for name in _MAKERS if name not in _UNLISTED), *_in_folder()]


def built_in() -> list[str]:
    """Return the registered names of plain solvers."""
    return [name for name in _MAKERS if name not in _UNLISTED]


def _folder() -> Path | None:
    given = os.environ.get(FOLDER, "")
    return Path(given) if given else None


def _in_folder() -> list[str]:
    """The names of the tuned solvers in the user's own folder."""
    folder = _folder()
    if folder is None:
        return []
    if not folder.is_dir():
        warnings.warn(f"{FOLDER}: {folder} is no folder", stacklevel=3)
        return []
    found: list[str] = []
    for path in sorted(folder.glob("*.json")):
        why = f"the name {path.stem!r} is that of a registered solver" if path.stem in _MAKERS else _broken(path)
        if why:
            warnings.warn(f"{FOLDER}: left out {path}: {why}", stacklevel=3)
        else:
            found.append(path.stem)
    return found


def _broken(path: Path) -> str:
    """Why a file cannot be read; empty if it can."""
    try:
        _from_file(str(path))
    except (CorruptFileError, StorageError) as error:
        return str(error)
    return ""


def get(solver: str | os.PathLike[str] | Solver[Any], **options: Any) -> Solver[Any]:
    """Return the solver with a name, or that of a file.

    Args:
        solver: The name, or the path of a tuned solver's file (.json); a `Solver` is returned unchanged. Files in the
            folder that the environment variable STEADYFLOW_SOLVERS names have the names of their files.
        **options: The options of the solver with that name.

    Raises:
        UnknownNameError: No solver has that name; the message lists the nearest ones.
        InputError: The solver does not have an option or does not accept its value, or options come with a `Solver` or
            a file.
        CorruptFileError: The file is damaged or foreign.
        StorageError: The file cannot be read.
    """
    if isinstance(solver, Solver):
        if options:
            raise InputError(f"solver: the options {sorted(options)} are only valid with a name, not with a Solver")
        return solver
    solver = os.fspath(solver) if isinstance(solver, os.PathLike) else solver
    if not isinstance(cast(object, solver), str):
        raise UnknownNameError("solver", solver, names())
    path = None if solver in _MAKERS else _file_of(solver)
    if path is not None:
        if options:
            raise InputError(f"solver: the options {sorted(options)} are only valid with a name, not with a file")
        return _from_file(path)
    if solver not in _MAKERS:
        raise UnknownNameError("solver", solver, names())
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


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a solver and its options, from "ddim" or "ees25:coordinates=noise,x=0.1", for `get`.

    Args:
        text: A registered name, and after a colon the options, separated by commas: numbers, true or false, words, and
            tuples with a slash between their entries.

    Raises:
        UnknownNameError: No registered solver has that name.
        InputError: The text is malformed, the solver does not have an option, or a value is of another type.
    """
    name = named.name_of(text)
    if not isinstance(name, str) or name not in _MAKERS or name in _UNLISTED:
        raise UnknownNameError("solver", name, built_in())
    maker = _MAKERS[name]
    accepted = inspect.signature(maker).parameters
    types = get_type_hints(maker.func if isinstance(maker, partial) else maker)
    options: dict[str, Any] = {}
    for option, value in named.options_of("solver", text, "ees25:coordinates=noise,x=0.1").items():
        if option not in accepted:
            raise InputError(f"solver {name!r}: no option {option!r}; it takes {', '.join(accepted) or 'none'}")
        try:
            options[option] = named.value_of(value, types[option])
        except ValueError as error:
            raise InputError(f"solver {name!r}: {option}: got {value!r}, {error}") from error
    return name, options


def _file_of(name: str) -> str | None:
    """The file that a name stands for: its own path, or one in the user's folder."""
    if name.endswith(".json"):
        return name
    folder = _folder()
    if folder is None or not name or Path(name).name != name:
        return None
    path = folder / f"{name}.json"
    return str(path) if path.is_file() else None


def _from_file(path: str) -> Solver[Any]:
    """The tuned solver in a file, read once for each of its versions."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise StorageError(f"{path}: could not be read ({error.strerror or error})") from error
    return _loaded(path, found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=64)
def _loaded(path: str, *version: int) -> Solver[Any]:
    from .tuned import Tuned  # which registers itself here

    return Tuned.load(path)


def from_spec(spec: dict[str, Any]) -> Solver[Any]:
    """Rebuild the solver that `Solver.spec` described.

    Args:
        spec: The name under "name", and the options.

    Raises:
        UnknownNameError: No solver has that name.
        InputError: The solver does not have an option or does not accept its value.
    """
    options = {str(key): value for key, value in spec.items()}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UnknownNameError("solver", name, names())
    return get(name, **options)


def properties_table(chosen: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Return a table of solvers and their properties as text: the headings, and one list of cells per solver.

    Args:
        chosen: Names or files; all that are registered by default.
    """
    heads = ["solver", "order", "nfe/step", "inverse", "order back", "stable on", "source"]
    rows: list[list[str]] = []
    for name in names() if chosen is None else chosen:
        facts = get(name).properties
        inverse = "none (stochastic)" if facts.inverse == "none" and facts.stochastic else facts.inverse
        back = "" if facts.antisymmetric_order is None else str(facts.antisymmetric_order)
        cost = "until converged" if facts.evaluations is None else str(facts.evaluations)
        interval = facts.real_interval
        words = {None: "", math.inf: "all z < 0", 0.0: "z = 0 alone"}
        stable = words.get(interval, f"[-{interval or 0.0:.4g}, 0]")
        rows.append([name, str(facts.order), cost, inverse, back, stable, facts.source])
    return heads, rows


def solver_table() -> str:
    """Return the table of all solvers and their properties in Markdown."""
    heads, rows = properties_table()
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *([f"`{row[0]}`", *row[1:]] for row in rows))]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
