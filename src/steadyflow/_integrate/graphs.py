"""What a step that is made once more must find as it was, and where a graph begins."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import InputError
from ..solvers.state import flatten_state


class Random(NamedTuple):
    """The states of torch's generators."""

    cpu: Tensor
    own: Tensor | None
    device: torch.device

    @classmethod
    def now(cls, device: torch.device) -> Random:
        own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return cls(torch.get_rng_state(), own, device)

    def used(self) -> bool:
        """Whether numbers have been drawn since."""
        now = Random.now(self.device)
        own = self.own is not None and now.own is not None and not torch.equal(self.own, now.own)
        return own or not torch.equal(self.cpu, now.cpu)

    @contextlib.contextmanager
    def restored(self) -> Generator[None]:
        devices = [] if self.own is None else [self.device]
        with cast(Any, torch.random).fork_rng(devices, device_type=self.device.type if devices else "cuda"):
            torch.set_rng_state(self.cpu)
            if self.own is not None:
                torch.get_device_module(self.device).set_rng_state(self.own, self.device)
            yield


def autocast_now(kind: str) -> Callable[[], torch.autocast]:
    """Return what makes autocast as it is now, for a type of device."""
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    cached = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cached)


def graph_leaves(ends: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors at which the graph of some tensors begins."""
    found: dict[int, Tensor] = {}
    waiting: list[Any] = [end.grad_fn for end in ends if end.grad_fn is not None]
    seen: set[Any] = set(waiting)
    while waiting:
        node = waiting.pop()
        if type(node).__name__ == "AccumulateGrad":
            found[id(node.variable)] = node.variable
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return list(found.values())


def detached(state: Any) -> Any:
    """Return a solver's state without its graph; the memory is the same."""
    build, parts = flatten_state(state)
    return build([part.detach() for part in parts])


def copied(state: Any) -> Any:
    """Return a solver's state without its graph, in memory of its own."""
    build, parts = flatten_state(state)
    return build([part.detach().clone() for part in parts])


def leaves_in(value: Any) -> tuple[list[tuple[Tensor, Tensor]], Any]:
    """Return a value with leaves in place of the tensors in it that are computed with a graph, and pairs of both.

    The graph that leads to them is then followed once, and not once a step.

    Args:
        value: A tensor, or a tuple, mapping or dataclass of such values; anything else is left as it is.
    """
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    found = _leafed(value, pairs)
    return [*pairs.values()], found if pairs else value


def _leafed(value: Any, pairs: dict[int, tuple[Tensor, Tensor]]) -> Any:
    if isinstance(value, Tensor):
        if value.grad_fn is None:
            return value
        return pairs.setdefault(id(value), (value.detach().requires_grad_(), value))[0]
    if isinstance(value, tuple):
        items = cast(tuple[Any, ...], value)
        parts = [_leafed(item, pairs) for item in items]
        if all(part is item for part, item in zip(parts, items, strict=True)):
            return items
        return type(items)(*parts) if hasattr(items, "_fields") else tuple(parts)
    if isinstance(value, Mapping):
        entries = cast(Mapping[Any, Any], value)
        found = {key: _leafed(item, pairs) for key, item in entries.items()}
        return found if any(found[key] is not entries[key] for key in found) else entries
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = [field.name for field in dataclasses.fields(value) if field.init]
        parts = {name: _leafed(getattr(value, name), pairs) for name in own}
        changed = {name: part for name, part in parts.items() if part is not getattr(value, name)}
        return dataclasses.replace(value, **changed) if changed else value
    return value


@contextlib.contextmanager
def silenced(leaves: Sequence[Tensor]) -> Generator[None]:
    """Keep the hooks of leaves from acting on parts of a gradient, which will act on the whole."""
    hooks = [cast("dict[Any, Any] | None", leaf._backward_hooks) for leaf in leaves]
    kept = [(found, dict(found)) for found in hooks if found]
    try:
        for found, _ in kept:
            found.clear()
        yield
    finally:
        for found, own in kept:
            found.update(own)


def unhooked() -> contextlib.AbstractContextManager[None]:
    """Hide what is computed from whoever counts the tensors that a graph saves, as checkpointing does."""

    def same(x: Any) -> Any:
        return x

    return cast(Any, torch.autograd.graph).saved_tensors_hooks(same, same)


def check_autograd(starts: Sequence[Tensor]) -> None:
    """Refuse starts that another kind of differentiation follows, which would lose them without a word.

    Raises:
        InputError: They carry a tangent of forward mode, or belong to torch.func.
    """
    for x in starts:
        if _of_functions(x):
            raise InputError("adjoint: the start belongs to torch.func, which goes with adjoint='none' alone")
        if _in_dual_level() and cast(Any, forward_ad).unpack_dual(x).tangent is not None:
            raise InputError("adjoint: the start has a tangent of forward mode, which goes with adjoint='none' alone")


def _of_functions(x: Tensor) -> bool:
    """Whether a tensor is one of torch.func, where torch tells."""
    told = getattr(getattr(cast(Any, torch)._C, "_functorch", None), "is_functorch_wrapped_tensor", None)
    return told is not None and bool(told(x))


def _in_dual_level() -> bool:
    return cast(Any, forward_ad)._current_level >= 0
