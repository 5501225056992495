"""The source and its edit as one batch: what the edit takes of the source's attention is there in the same call.

An exactly or nearly reversible solver leads the source's half back along its own way up, so that its features are made
anew where they are needed, and none is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from ..._integrate import StepInfo
from ...denoisers.base import Denoiser
from ...denoisers.conditions import Rows, expand, join
from ...errors import InputError
from ...prediction import Prediction
from ...solvers.state import concat_states, flatten_state, slice_state
from .sharing import Sharing

S = TypeVar("S")
"""A solver's state."""


@dataclass(frozen=True, eq=False)
class Pair(Denoiser):
    """Two models over one network, of the first and of the second half of a batch."""

    source: Denoiser = field(default=cast(Denoiser, None), repr=False)
    target: Denoiser = field(default=cast(Denoiser, None), repr=False)
    sharing: Sharing = field(default=cast(Sharing, None), repr=False)

    @classmethod
    def of(cls, source: Denoiser, target: Denoiser, sharing: Sharing) -> Pair:
        """Put two models together.

        Args:
            source: The model of the source.
            target: That of the edit.
            sharing: What the edit takes.
        """
        return cls(**_as(target), source=source, target=target, sharing=sharing)

    @property
    def cost(self) -> int:
        return self.source.cost + self.target.cost

    def __call__(self, x: Tensor, t: float | Tensor) -> Prediction:
        if isinstance(t, Tensor):
            raise InputError("method: attention is shared at one time for the whole batch")
        here, there = x.chunk(2)
        if is_served(self.source) or self.source.condition is None or self.target.condition is None:
            make_ready(self.source, here)
            with self.sharing.taking(t) as taken:
                first = self.source(here, t)
            make_ready(self.target, there)
            with self.sharing.giving(t, taken):
                second = self.target(there, t)
            outputs = [first.output, second.output]
            kind = first.kind
        else:
            outputs, kind = self._together(here, there, t), self.target.prediction
        level = self.schedule.at(t)
        prediction = Prediction(x, torch.cat(outputs), kind, level.alpha, level.sigma)
        clip = None if kind != self.target.prediction else self.target.clip
        return prediction if clip is None else prediction.clipped(clip)

    def _together(self, here: Tensor, there: Tensor, t: float) -> list[Tensor]:
        """The outputs of both, of one call of the network."""
        states: list[Tensor] = []
        conditions: list[Rows] = []
        for model, x in ((self.source, here), (self.target, there)):
            for condition in (model.null, model.condition) if model.guides else (model.condition,):
                states.append(x)
                conditions.append(expand(condition, x))
        own = 2 if self.source.guides else 1
        blocks: list[int | None] = [None] * own
        blocks += [0 if self.source.guides else own - 1, own - 1] if self.target.guides else [own - 1]
        joined = conditions[0]
        for more in conditions[1:]:
            joined = join(joined, more)
        with self.sharing.together(t, blocks, len(blocks) - 1):
            output = self.target.evaluate(torch.cat(states), t, joined)
        parts = output.chunk(len(blocks))
        return [_guided(self.source, here, parts[:own]), _guided(self.target, there, parts[own:])]


@dataclass(frozen=True, eq=False)
class Storing(Denoiser):
    """A model of the source that leaves behind, of every time, what an edit takes."""

    inner: Denoiser = field(default=cast(Denoiser, None), repr=False)
    sharing: Sharing = field(default=cast(Sharing, None), repr=False)

    @classmethod
    def of(cls, inner: Denoiser, sharing: Sharing) -> Self:
        """Watch a model.

        Args:
            inner: The model.
            sharing: What is taken, and where it is kept.
        """
        return cls(**_as(inner), inner=inner, sharing=sharing)

    @property
    def cost(self) -> int:
        return self.inner.cost

    def __call__(self, x: Tensor, t: float | Tensor) -> Prediction:
        assert isinstance(t, float)
        make_ready(self.inner, x)
        with self.sharing.taking(t) as taken:
            found = self.inner(x, t)
        self.sharing.keep(t, taken)
        return found


class Restoring(Storing):
    """A model of the edit that is given what a source has left behind, call by call."""

    def __call__(self, x: Tensor, t: float | Tensor) -> Prediction:
        assert isinstance(t, float)
        make_ready(self.inner, x)
        with self.sharing.giving(t, self.sharing.next(t)):
            return self.inner(x, t)


def _as(model: Denoiser) -> dict[str, Any]:
    """The fields that every model has."""
    return {one.name: getattr(model, one.name) for one in fields(Denoiser)}


def _guided(model: Denoiser, x: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """The output of a model from those of its branches."""
    return parts[0] if len(parts) == 1 else torch.lerp(parts[0], parts[1], model.weight(x))


def is_served(model: Denoiser) -> bool:
    """Whether a pipeline's own call answers for the model, which cannot be asked for two conditions at once."""
    return hasattr(model, "server")


def make_ready(model: Denoiser, x: Tensor) -> None:
    """Open a served pipeline's call before anyone looks into its network, which runs while it is opened."""
    if is_served(model):
        served = cast(Any, model)
        served.server.ready(served.request, len(x))


def network_of(model: Denoiser) -> nn.Module:
    """The network behind a model.

    Args:
        model: One whose `net` is a module, or one over a pipeline.

    Raises:
        InputError: There is none that could be looked into.
    """
    pipe = getattr(model, "pipe", None)
    for second in ("transformer_2", "unet_2"):
        if getattr(pipe, second, None) is not None:
            raise InputError(f"method: {type(pipe).__name__} has a {second} beside its first network; not supported")
    for found in (getattr(pipe, "transformer", None), getattr(pipe, "unet", None), model.net):
        if isinstance(found, nn.Module):
            return found
    raise InputError(
        f"method: {model.name!r} is no torch module and no pipeline, so that there is no attention to inject into"
    )


def doubled(state: S) -> S:
    """A solver's state of the source twice: once to lead back, and once to be edited."""
    return concat_states([state, state])


def half(state: S, n: int) -> S:
    """The edit's half of a state of 2 n samples."""
    return slice_state(state, n, 2 * n)


@dataclass(frozen=True)
class Keep:
    """A correction that makes an edit its source outside a mask, with everything that the solver carries."""

    weights: Callable[[Tensor], Tensor]
    """Given the samples: where the edit may differ, in [0, 1]."""

    def __call__(self, info: StepInfo) -> Any:
        n = len(info.x) // 2
        here, there = (slice_state(info.state, *ends) for ends in ((0, n), (n, 2 * n)))
        build, ours = flatten_state(there)
        _, theirs = flatten_state(here)
        weights = self.weights(info.x[n:])
        mixed = [
            source.lerp(edit, weights.to(edit)) if edit.shape == info.x[n:].shape else edit
            for source, edit in zip(theirs, ours, strict=True)
        ]
        return concat_states([here, build(mixed)])
