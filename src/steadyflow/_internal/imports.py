"""Imports of optional packages, told apart where they fail: the package is missing, or it is there and is broken."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import BrokenExtraError, MissingExtraError, SteadyflowError


@contextmanager
def needing(package: str, *modules: str, extra: str, purpose: str, beside: tuple[str, ...] = ()) -> Iterator[None]:
    """Import optional packages in the body of a `with`, and nothing else.

    Args:
        package: Its name in messages, such as "Pillow".
        *modules: The modules that the body imports, such as "PIL".
        extra: The extra of steadyflow that installs it.
        purpose: What it is needed for, as the subject of "... needs <package>".
        beside: Packages that the body imports and no extra installs.

    Raises:
        MissingExtraError: One of the modules, or a package that holds it, is not there.
        BrokenExtraError: All are there, and importing them raises.
    """
    try:
        yield
    except SteadyflowError:
        raise
    except Exception as error:  # whatever a package's own import raises
        if any(is_missing(error, module) for module in modules):
            raise MissingExtraError(package, extra, purpose, beside) from error
        raise BrokenExtraError(package, purpose, error) from error


def is_missing(error: Exception, module: str) -> bool:
    """Whether importing a module has failed because it is not installed, and not within it.

    Args:
        error: What the import raised.
        module: The module's full name.
    """
    if not isinstance(error, ImportError):
        return False
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return True
    try:  # packages say in words of their own which others they lack
        return importlib.util.find_spec(module.partition(".")[0]) is None
    except ValueError:  # it has begun
        return False
