"""The errors a user meets. Each names the argument, the value it got, and what is accepted.

All derive from `SteadyflowError`, and from the built-in that fits, so that
`except ValueError` keeps working.
"""

import difflib
from collections.abc import Iterable

MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What taking apart the contents of a file may raise where they are not what they should be."""


class SteadyflowError(Exception):
    """Base of every error that steadyflow raises on purpose."""


class InputError(SteadyflowError, ValueError):
    """An argument has a value, a shape or a type that is not accepted."""


class UnknownNameError(InputError):
    """A name (of a solver, a grid, a model) that is not registered."""

    def __init__(self, what: str, name: object, known: Iterable[str], hint: str = ""):
        known = sorted(known)
        near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
        if hint:
            hint += "."
        else:
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "it is none of them."
        super().__init__(f"unknown {what} {name!r}: {hint} Known: {', '.join(known)}")


class SingularTimeError(SteadyflowError, ArithmeticError):
    """The model, or a change of variable, was asked for at a time where it has no value."""


class NonFiniteError(SteadyflowError, ArithmeticError):
    """NaN or infinity appeared in the state during a run."""


class ConvergenceError(SteadyflowError, ArithmeticError):
    """A fixed-point iteration did not reach its tolerance."""


class NotInvertibleError(SteadyflowError, TypeError):
    """A solver that has no inverse (a stochastic one, say) was asked to invert."""


class CorruptFileError(SteadyflowError, ValueError):
    """A file is damaged, truncated, or not of the kind it was taken for."""


class StorageError(SteadyflowError, OSError):
    """A file or a run could not be written: the disk is full, or not ours to write."""


class MissingExtraError(SteadyflowError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs {package}; install it with: pip install 'steadyflow[{extra}]'")
