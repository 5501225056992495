"""When gradients are recorded: where the start asks for them, whatever a model's parameters do."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Given = ParamSpec("Given")


def grad_enabled_by(x: Any) -> torch.set_grad_enabled:
    """A context that records gradients only where the start x is a tensor that requires them."""
    wanted = isinstance(x, Tensor) and x.requires_grad
    return torch.set_grad_enabled(torch.is_grad_enabled() and wanted)


def no_grad_unless(name: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Makes a function record gradients only where the tensor given for one of its parameters requires them.

    A user's network may well have parameters that do; without this, a loop over its answers would keep them all.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def guarded(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            with grad_enabled_by(signature.bind(*args, **kwargs).arguments[name]):
                return function(*args, **kwargs)

        return guarded

    return decorate
