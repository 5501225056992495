"""Operations on solver states, which are carried from step to step: slicing by sample, flattening, and saving.

A state is a tensor, or a named tuple of tensors and numbers registered with `@solver_state`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .._internal import strict_json
from ..errors import MALFORMED, CorruptFileError

S = TypeVar("S")
Kind = TypeVar("Kind", bound=type)

_STATES: dict[str, type] = {}


def solver_state(cls: Kind) -> Kind:
    """Register a named tuple as a solver state, so that runs with such a state can be saved; a class decorator."""
    _STATES[cls.__name__] = cls
    return cls


def slice_state(state: S, start: int, stop: int) -> S:
    """Return the state of the samples [start, stop) of a batch.

    Args:
        state: The state of the batch.
        start: The first sample.
        stop: One past the last sample.
    """
    if isinstance(state, Tensor):
        return cast(S, state[start:stop])
    if isinstance(state, tuple):
        parts = cast(tuple[Any, ...], state)
        return cast(S, _rebuild(type(parts), [slice_state(part, start, stop) for part in parts]))
    return state


def concat_states(states: Sequence[S]) -> S:
    """Return one state from those of successive batches.

    Args:
        states: At least one state; numbers in them are equal, as batches of a run make the same steps.
    """
    first = states[0]
    if len(states) == 1:
        return first
    if isinstance(first, Tensor):
        return cast(S, torch.cat(cast(list[Tensor], list(states))))
    if isinstance(first, tuple):
        parts = zip(*cast(Sequence[tuple[Any, ...]], states), strict=True)
        return cast(S, _rebuild(type(cast(tuple[Any, ...], first)), [concat_states(part) for part in parts]))
    return first


def _rebuild(kind: Callable[..., tuple[Any, ...]], items: list[Any]) -> tuple[Any, ...]:
    return kind(*items) if hasattr(kind, "_fields") else tuple(items)


def flatten_state(state: S) -> tuple[Callable[[Sequence[Tensor]], S], list[Tensor]]:
    """Take a state apart into tensors.

    Args:
        state: A state, or a tuple or mapping of states.

    Returns:
        A function that builds a state of the same structure from other tensors, and the tensors of this state.
    """
    found: list[Tensor] = []
    return _apart(state, found), found


def _apart(item: Any, found: list[Tensor]) -> Callable[[Sequence[Tensor]], Any]:
    """Add the tensors of an item to those that were found, and return what builds it from others.

    What is returned refers to none of them, and this is no closure that refers to itself: they are free to go.
    """
    if isinstance(item, Tensor):
        k = len(found)
        found.append(item)
        return lambda tensors: tensors[k]
    if isinstance(item, tuple):
        parts = [_apart(part, found) for part in cast(tuple[Any, ...], item)]
        kind = type(cast(tuple[Any, ...], item))
        return lambda tensors: _rebuild(kind, [part(tensors) for part in parts])
    if isinstance(item, Mapping):
        entries = {key: _apart(part, found) for key, part in cast(Mapping[Any, Any], item).items()}
        return lambda tensors: {key: part(tensors) for key, part in entries.items()}
    return lambda tensors: item


def serialize_state(state: Any, prefix: str = "state") -> tuple[dict[str, Tensor], str]:
    """Turn a state into named tensors and a JSON text that describes its structure.

    Args:
        state: A state, or a tuple or mapping of states.
        prefix: The beginning of the tensors' names.

    Raises:
        TypeError: The state holds something that cannot be saved.
    """
    tensors: dict[str, Tensor] = {}

    def walk(item: object, path: str) -> dict[str, Any]:
        if isinstance(item, Tensor):
            tensors[path] = item.detach().contiguous()
            return {"tensor": path}
        if isinstance(item, tuple):
            kind = type(cast(Any, item)).__name__
            items = [walk(part, f"{path}.{i}") for i, part in enumerate(cast(tuple[Any, ...], item))]
            return {"tuple": kind if kind in _STATES else "tuple", "items": items}
        if isinstance(item, Mapping):
            entries = cast(Mapping[Any, Any], item).items()
            return {"mapping": {str(key): walk(part, f"{path}.{key}") for key, part in entries}}
        if item is None or isinstance(item, int | str | bool):
            return {"value": item}
        if isinstance(item, float):
            return {"float": item.hex()}
        raise TypeError(f"a solver state may not hold a {type(item).__name__}")

    return tensors, strict_json.dumps(walk(state, prefix))


def deserialize_state(tensors: Mapping[str, Tensor], text: str) -> Any:
    """Rebuild the state that `serialize_state` took apart.

    Args:
        tensors: The tensors by name.
        text: The description of the structure.

    Raises:
        CorruptFileError: The parts do not fit together.
    """

    def build(node: Any) -> Any:
        match node:
            case {"tensor": str(path)}:
                return tensors[path]
            case {"tuple": str(kind), "items": items}:
                values = [build(item) for item in items]
                return tuple(values) if kind == "tuple" else _STATES[kind](*values)
            case {"mapping": items}:
                return {key: build(item) for key, item in items.items()}
            case {"float": str(digits)}:
                return float.fromhex(digits)
            case {"value": value}:
                return value
            case _:
                raise ValueError(f"unknown node {node!r}")

    try:
        return build(strict_json.loads(text))
    except MALFORMED as error:
        raise CorruptFileError(f"the saved solver state cannot be rebuilt: {error}") from error
