"""Networks that keep something from call to call, such as the step caches of diffusers.

Their answers depend on the calls before, so that they have no field, and a run of theirs must begin afresh. diffusers
keeps its caches in hooks, in the attribute `_diffusers_hook` of the modules that have one; a network of one's own says
that it has a cache by a method `reset_cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..denoisers.base import Denoiser


def keeps_state(model: Denoiser) -> bool:
    """Whether a model's network keeps something from call to call."""
    return any(True for _ in _resets(model))


@contextmanager
def afresh(model: Denoiser) -> Iterator[None]:
    """Let a model's network forget all calls before and after a run."""
    try:
        for forget in _resets(model):
            forget()
        yield
    finally:
        for forget in _resets(model):
            forget()


def _resets(model: Denoiser) -> Iterator[Callable[[], Any]]:
    """What makes each cache of a model forget."""
    own = getattr(model.net, "reset_cache", None)
    if callable(own):
        yield own
    for module in _modules(model):
        for part in module.modules():
            hooks = getattr(part.__dict__.get("_diffusers_hook"), "hooks", {})
            for hook in hooks.values():
                if getattr(hook, "_is_stateful", False):
                    yield lambda hook=hook, part=part: hook.reset_state(part)


def _modules(model: Denoiser) -> list[nn.Module]:
    """The torch modules of a model: its network, or the parts of its pipeline."""
    if isinstance(model.net, nn.Module):
        return [model.net]
    pipe: Any = getattr(model, "pipe", None)
    parts: list[Any] = [] if pipe is None else list(pipe.components.values())
    return [part for part in parts if isinstance(part, nn.Module)]
