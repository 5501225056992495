"""What the adapters share: a foreign network as a torch module, its condition as keywords, and its numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..schedules import Schedule

TOLERANCE = 2e-4
"""How far a path may be from the other library's own numbers, which are in float32; relative to 1 or more."""


class Adapted(nn.Module):
    """A foreign network, called as the network of a `Denoiser`; a module is registered, with its parameters.

    Args:
        inner: The foreign network, a module or any function.
        extra: The keyword under which a condition that is no mapping is passed.
        fixed: Keyword arguments of every call.
    """

    def __init__(self, inner: Callable[..., Any], extra: str | None = None, fixed: Mapping[str, Any] | None = None):
        super().__init__()
        if not callable(inner):
            raise InputError(f"network: got {inner!r}, expected something to call")
        self.inner = inner
        self.extra = extra
        self.fixed = dict(fixed or {})

    def keywords(self, condition: Any) -> dict[str, Any]:
        """Return the keyword arguments of a call under a condition.

        Args:
            condition: None, a mapping of keywords, or the value of the keyword `extra`.

        Raises:
            InputError: The condition is no mapping and there is no keyword for it, or a keyword is given twice.
        """
        if condition is None:
            return self.fixed
        if not isinstance(condition, Mapping):
            if self.extra is None:
                raise InputError(
                    "condition: got one value, but not the keyword under which the network takes it; give extra='...', "
                    "or a condition {keyword: value}"
                )
            condition = {self.extra: condition}
        twice = self.fixed.keys() & condition.keys()
        if twice:
            raise InputError(f"condition: {', '.join(sorted(twice))} is fixed for every call")
        return {**self.fixed, **condition}


def network_dtype(inner: Any) -> torch.dtype | None:
    """Return the type of a module's first floating-point parameter or buffer; None where there is none."""
    if not isinstance(inner, nn.Module):
        return None
    tensors: Iterable[Tensor] = (*inner.parameters(), *inner.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)


def lineage(thing: object) -> list[str]:
    """Return the names of a thing's class and of the classes that it derives from."""
    return [kind.__name__ for kind in type(thing).__mro__]


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's parameters; of a module, those of its `forward`."""
    target = cast("Callable[..., Any]", function.forward) if isinstance(function, nn.Module) else function
    try:
        return list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return []


def number(value: Any, name: str) -> float:
    """Return a number that may be a tensor of one element.

    Args:
        value: The number.
        name: Of the argument or attribute, for the message.

    Raises:
        InputError: It is no number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: got {value!r}, expected a number") from error


def check_path(
    schedule: Schedule, times: Iterable[float], theirs: Callable[[float], tuple[Any, Any]], whose: str
) -> None:
    """Check that a path is that of another object, by its own numbers.

    Args:
        schedule: Our path.
        times: Path times.
        theirs: The factors of the data and of the noise at a path time, as the other object computes them.
        whose: What the other object is, for the message.

    Raises:
        InputError: They differ.
    """
    for t in times:
        alpha, sigma = (number(value, whose) for value in theirs(t))
        ours = schedule.alpha(t), schedule.sigma(t)
        for mine, other in zip(ours, (alpha, sigma), strict=True):
            if not abs(mine - other) <= TOLERANCE * max(1.0, abs(other)):
                raise InputError(
                    f"path: {whose} is not the path of its class: at t = {t:g} it has alpha, sigma = {alpha:.6g}, "
                    f"{sigma:.6g}, where {schedule!r} has {ours[0]:.6g}, {ours[1]:.6g}"
                )
