"""Saved states are those of the solver that the file names: checked where a file is read, before anything runs.

A state is of the kind that the solver starts with, its fields have the types that its class declares, and all its
tensors have the shape and the precision of the sample.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import MALFORMED, CorruptFileError, SteadyflowError
from ..schedules import RectifiedFlow
from .base import Solver
from .state import flatten_state

_NUMBERS = (bool, int, float, str)


def check_saved(solver: Solver[Any], state: Any) -> Tensor:
    """Check that a state from a file is one of a solver.

    Args:
        solver: The solver.
        state: The state.

    Returns:
        Its sample, shape (B, ...).

    Raises:
        CorruptFileError: It is none; the message names the solver and what does not fit.
    """
    who = f"the state of solver {solver.name!r}"
    try:
        started = cast(object, solver.start(torch.zeros(1, 1, device="cpu"), RectifiedFlow(), 0.5))
        kind = type(started)
        if type(state) is not kind:
            raise _wrong(who, _name(type(state)), _name(kind))
        _check_fields(who, state, solver.properties.states)
        within = solver.within(state)
        if within is not None:
            check_saved(*within)
        x = solver.output(state)
    except CorruptFileError:
        raise
    except (*MALFORMED, SteadyflowError) as error:
        raise CorruptFileError(f"{who} does not fit it ({error})") from error
    if x.dtype not in (torch.float32, torch.float64) or x.ndim < 2 or len(x) == 0:
        raise _wrong(f"the sample of {who}", _described(x), "float32 or float64 of shape (batch, ...)")
    for tensor in flatten_state(state)[1]:
        if tensor.shape != x.shape or tensor.dtype != x.dtype:
            raise _wrong(f"a tensor of {who}", _described(tensor), f"{_described(x)}, as its sample is")
    return x


def check_tensors(tensors: Mapping[str, Tensor], *parts: object) -> None:
    """Check that the tensors of a file are those of what was read from it, each once.

    Args:
        tensors: The tensors by name.
        *parts: What was read.

    Raises:
        CorruptFileError: One is missing there, or there are others.
    """
    used = [id(tensor) for part in parts for tensor in _all_tensors(part)]
    extra = [name for name, tensor in tensors.items() if id(tensor) not in used]
    if extra:
        raise CorruptFileError(f"holds tensors that belong to nothing: {', '.join(sorted(extra)[:3])}")
    if len(set(used)) < len(used):
        raise CorruptFileError("holds one tensor in the place of two")


def check_rows(condition: object, samples: int, name: str = "condition") -> None:
    """Check that a condition has one entry for all samples, or one for each.

    Args:
        condition: The condition.
        samples: Their number.
        name: What messages call it.

    Raises:
        CorruptFileError: It has another number.
    """
    if isinstance(condition, Mapping):
        for key, value in cast("Mapping[str, object]", condition).items():
            check_rows(value, samples, f"{name} {key!r}")
        return
    rows = condition.ndim > 0 if isinstance(condition, Tensor) else isinstance(condition, list | tuple)
    if rows and len(cast("Sequence[Any]", condition)) not in (1, samples):
        raise _wrong(f"the {name}", f"{len(cast('Sequence[Any]', condition))} rows", f"1 or {samples}, of the samples")


def _check_fields(who: str, state: Any, most: int) -> None:
    """Raise `CorruptFileError` unless the fields of a named tuple have the types that it declares."""
    hints = _hints(cast("type[Any]", type(state)))
    lengths: dict[str, int] = {}
    for name, value in zip(hints, state if hints else (), strict=True):
        if not _fits(value, hints[name]):
            raise _wrong(f"{name!r} in {who}", _name(type(value)), _name(hints[name]))
        if typing.get_args(hints[name])[1:] == (...,):
            lengths[name] = len(value)
    if lengths and (len({*lengths.values()}) > 1 or max(lengths.values()) > most):
        raise _wrong(who, f"{lengths} entries", f"equal numbers, at most {most}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a declared type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is types.NoneType:
        return value is None
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = cast("tuple[Any, ...]", value)
        if inner[1:] == (...,):
            return all(_fits(item, inner[0]) for item in items)
        return len(items) == len(inner) and all(map(_fits, items, inner))
    if hint in _NUMBERS:
        return type(value) is hint or (hint is float and type(value) is int)
    if not isinstance(hint, type):
        return True
    return isinstance(value, hint) and all(map(_fits, value, _hints(hint).values()) if _hints(hint) else ())


def _hints(kind: type[Any]) -> dict[str, Any]:
    """The declared types of the fields of a named tuple; empty for other classes."""
    return typing.get_type_hints(kind) if hasattr(kind, "_fields") else {}


def _all_tensors(part: object) -> list[Tensor]:
    if isinstance(part, Mapping):
        return [tensor for value in cast("Mapping[str, object]", part).values() for tensor in _all_tensors(value)]
    return flatten_state(part)[1]


def _wrong(what: str, got: str, expected: str) -> CorruptFileError:
    return CorruptFileError(f"{what}: got {got}, expected {expected}")


def _described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("torch.", "")
