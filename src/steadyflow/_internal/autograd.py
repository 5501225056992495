"""When gradients are recorded: only where the start of a run requires them, whatever a model's parameters do."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from ..errors import InputError

Result = TypeVar("Result")
Given = ParamSpec("Given")


def grad_enabled_by(x: object) -> torch.set_grad_enabled:
    """Make a context that records gradients only where they are recorded outside and the start requires them.

    Args:
        x: The start; anything but a tensor requires none.
    """
    wanted = isinstance(x, Tensor) and x.requires_grad
    return torch.set_grad_enabled(torch.is_grad_enabled() and wanted)


def gradients(x: object, *, everything: bool) -> torch.set_grad_enabled:
    """Make a context like `grad_enabled_by`, in which `everything` may require gradients, and not the start alone."""
    return torch.set_grad_enabled(torch.is_grad_enabled()) if everything else grad_enabled_by(x)


def check_derivatives() -> None:
    """Raise `InputError` under `torch.inference_mode()`, where every derivative would silently be 0."""
    if torch.is_inference_mode_enabled():
        raise InputError("derivatives: there are none under torch.inference_mode(); use torch.no_grad()")


def no_grad_unless(name: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Make a decorator for functions that record gradients only where one of their arguments requires them.

    A user's network may well have parameters that do; without this, a loop over its outputs would retain the graph of
    them all.

    Args:
        name: The name of the function's parameter.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def guarded(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            with grad_enabled_by(signature.bind(*args, **kwargs).arguments[name]):
                return function(*args, **kwargs)

        return guarded

    return decorate
