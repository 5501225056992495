"""What a step that is made once more must find as it was, and where a graph begins."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor


class Random(NamedTuple):
    """The states of torch's generators."""

    cpu: Tensor
    own: Tensor | None
    device: torch.device

    @classmethod
    def now(cls, device: torch.device) -> Random:
        own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return cls(torch.get_rng_state(), own, device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Random) and all(
            (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
            for a, b in ((self.cpu, other.cpu), (self.own, other.own))
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

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


def graph_leaves(ends: Sequence[Tensor], begun: int) -> tuple[list[Tensor], bool]:
    """Return the tensors at which the graph of some tensors begins, and whether it goes on into an older graph.

    Args:
        ends: The tensors.
        begun: What `clock` told before they were computed.
    """
    older = False
    found: dict[int, Tensor] = {}
    waiting: list[Any] = [end.grad_fn for end in ends if end.grad_fn is not None]
    seen: set[Any] = set(waiting)
    while waiting:
        node = waiting.pop()
        if type(node).__name__ == "AccumulateGrad":
            found[id(node.variable)] = node.variable
            continue
        older = older or node._sequence_nr() < begun
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return list(found.values()), older


def clock() -> int:
    """Return the number of the next operation of this thread that is recorded."""
    with torch.enable_grad():
        node: Any = torch.zeros(()).requires_grad_().clone().grad_fn
    return node._sequence_nr()
