"""The errors that steadyflow raises. A message names the argument, the value it got, and what is accepted.

All errors derive from `SteadyflowError` and from the built-in exception that fits, so that
`except ValueError` works as well.
"""

import difflib
from collections.abc import Iterable
from typing import Any, cast

MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""The exceptions that parsing the contents of a malformed file may raise."""


class SteadyflowError(Exception):
    """Base of every error that steadyflow raises on purpose; they can be pickled, to reach another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        kind, arguments, *state = cast("tuple[Any, ...]", super().__reduce__())
        return _rebuilt, (kind, arguments), *state


def _rebuilt(kind: type[SteadyflowError], arguments: tuple[Any, ...]) -> SteadyflowError:
    """An error with its message, whatever its class makes one of."""
    made = kind.__new__(kind, *arguments)
    builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    builtin.__init__(made, *arguments)
    return made


class InputError(SteadyflowError, ValueError):
    """An argument has a value, a shape or a type that is not accepted."""


class UnknownNameError(InputError):
    """A name (of a solver, a grid, a model) is not registered.

    Args:
        what: What is named, e.g. "solver".
        name: The name that was given.
        known: The registered names; the nearest ones are suggested.
        hint: A sentence, without its full stop, to show instead of that suggestion.
    """

    def __init__(self, what: str, name: object, known: Iterable[str], hint: str = ""):
        known = sorted(known)
        near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
        if hint:
            hint += "."
        else:
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "no known name is similar."
        super().__init__(f"unknown {what} {name!r}: {hint} Known: {', '.join(known)}")


class SingularTimeError(SteadyflowError, ArithmeticError):
    """A prediction or a change of variables was requested at a time at which it does not exist."""


class NonFiniteError(SteadyflowError, ArithmeticError):
    """NaN or infinity appeared in the state during a run."""


class ConvergenceError(SteadyflowError, ArithmeticError):
    """A fixed-point iteration did not reach its tolerance."""


class NotInvertibleError(SteadyflowError, TypeError):
    """A solver without an inverse, such as a stochastic one, was used to invert."""


class CorruptFileError(SteadyflowError, ValueError):
    """A file is damaged, truncated, or not of the expected kind."""


class StorageError(SteadyflowError, OSError):
    """A file or a run could not be written: the disk is full, or write permission is missing."""


class MissingExtraError(SteadyflowError, ImportError):
    """An optional package is not installed.

    Args:
        package: The package that is missing.
        extra: The extra of steadyflow that installs it.
        purpose: What the package is needed for, as the subject of "... needs <package>".
        beside: Packages of no extra that are to be installed as well.
    """

    def __init__(self, package: str, extra: str, purpose: str, beside: Iterable[str] = ()):
        install = " ".join(["pip install", f"'steadyflow[{extra}]'", *beside])
        super().__init__(f"{purpose} needs {package}; install it with: {install}")


class BrokenExtraError(SteadyflowError, ImportError):
    """An optional package is installed and cannot be used: it, or something that it needs, is damaged or does not fit.

    Args:
        package: The package.
        purpose: What the package is needed for, as the subject of "... needs <package>".
        cause: What it raised.
    """

    def __init__(self, package: str, purpose: str, cause: Exception):
        what = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        super().__init__(f"{purpose} needs {package}, which is installed but cannot be used ({what})")
