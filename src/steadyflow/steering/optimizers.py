"""The optimisers by name, and their state in a form that can be saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from .._internal.tensors import broadcast
from ..errors import InputError, UnknownNameError

Optimizer = torch.optim.Optimizer
Factory = Callable[..., Optimizer]
"""Called as `factory([tensor, ...], lr=rate)`, as the optimisers of torch are."""

NAMES: dict[str, Factory] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "plain": torch.optim.SGD}
"""Adam; steps along the gradient with its norm set to sqrt(d), so that they have the root mean square `rate`; and plain
steps of `rate` times the gradient."""


def make(given: object, leaves: Iterable[Tensor], rate: float) -> Optimizer:
    """An optimiser of some tensors.

    Args:
        given: A name, or a factory.
        leaves: The tensors.
        rate: The size of a step.

    Raises:
        InputError: It is neither, or what it makes is no optimiser that takes a gradient and makes a step.
    """
    if isinstance(given, str):
        if given not in NAMES:
            raise UnknownNameError("optimizer", given, NAMES)
        return NAMES[given](list(leaves), lr=rate)
    accepted = f"expected {', '.join(map(repr, NAMES))} or a factory such as torch.optim.RMSprop"
    if not callable(given):
        raise InputError(f"optimizer: got {given!r}, {accepted}")
    try:
        made = cast(object, given(list(leaves), lr=rate))
    except TypeError as error:
        raise InputError(
            f"optimizer: cannot be called as torch.optim.Adam([tensor, ...], lr=rate) is ({error})"
        ) from error
    if not isinstance(made, Optimizer):
        raise InputError(f"optimizer: its factory returned a {type(made).__name__}, {accepted}")
    if isinstance(made, torch.optim.LBFGS):
        why = "asks for the reward several times a step and couples the samples"
        raise InputError(f"optimizer: got LBFGS, which {why}; {accepted}")
    return made


def name_of(given: object) -> str:
    """What stands for an optimiser where calls are compared."""
    return given if isinstance(given, str) else f"{getattr(given, '__module__', '')}.{_named(given)}"


def _named(given: object) -> str:
    return str(getattr(given, "__qualname__", type(given).__qualname__))


def clipped(found: Mapping[str, Tensor], most: float | None, *, normalised: bool) -> dict[str, Tensor]:
    """Gradients with their norm bounded, or set to sqrt(d), for each sample.

    Args:
        found: The gradients by name, each (B, ...).
        most: The largest norm; None for any.
        normalised: Whether to set it to the root of the number of values of a sample.
    """
    parts = [part.reshape(len(part), -1) for part in found.values()]
    size = torch.cat(parts, dim=1)
    length = size.norm(dim=1)
    tiny = torch.finfo(size.dtype).tiny
    if normalised:
        scale = torch.where(length > 0, math.sqrt(size.shape[1]) / length.clamp_min(tiny), 0.0)
    elif most is not None:
        scale = (most / length.clamp_min(tiny)).clamp_max(1.0)
    else:
        return dict(found)
    return {name: part * broadcast(scale.to(part.dtype), part) for name, part in found.items()}


def packed(optimizer: Optimizer) -> dict[str, Any]:
    """The state of an optimiser as nested mappings, tuples, tensors and numbers, in memory of its own.

    Raises:
        InputError: It holds something else, so that the work could not be saved.
    """
    return cast("dict[str, Any]", _plain(optimizer.state_dict()))


def _plain(part: object) -> Any:
    if isinstance(part, Tensor):
        return part.detach().clone()
    if isinstance(part, Mapping):
        return {str(key): _plain(value) for key, value in cast("Mapping[Any, Any]", part).items()}
    if isinstance(part, list | tuple):
        return tuple(_plain(value) for value in cast("list[Any]", part))
    if part is None or isinstance(part, bool | int | float | str):
        return part
    raise InputError(f"optimizer: its state holds a {type(part).__name__}, which cannot be saved")


def unpack(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Put an optimiser where another of its kind stood.

    Args:
        optimizer: The optimiser.
        state: What `packed` gave.

    Raises:
        InputError: It belongs to an optimiser of another kind.
    """
    try:
        groups = [{**group, "params": list(group["params"])} for group in state["param_groups"]]
        entries = {int(key): dict(value) for key, value in state["state"].items()}
        own = optimizer.state_dict()["param_groups"]
        if [set(group) for group in own] != [set(group) for group in groups]:
            raise ValueError("its settings have other names")
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"resume: the state of the optimiser does not fit this one ({error})") from error
