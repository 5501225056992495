"""A run as a part of the caller's graph, whose tensors are computed again where they are needed.

Torch's checkpointing records each step and drops what it would hold. A step that is made again begins at the state
before it, which was kept, or is recovered from the end by the solver's inverse. As the graph is the run's own,
gradients of gradients pass as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import checkpoint as checkpointing

from ..errors import InputError
from ..solvers.base import Step
from ..solvers.state import flatten_state
from .graphs import Random, copied, detached
from .tape import DRAWS, Tape


class GraphTape(Tape):
    """A `Tape` of which gradients of gradients can be taken. The arguments are those of `Tape`."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        _, model, _, state, *_ = given
        self.model, self.state = model, state
        self._versions = [part._version for part in self._starts]

    def take(self, step: Step) -> int:
        k = len(self._steps)
        self._steps.append(step)
        build, parts = flatten_state(self.state)
        if self._keeps(k, step):
            self._kept[k] = detached(self.state)
        wants = [part.requires_grad for part in parts]
        calls, after = -1, build
        begun: list[list[Tensor]] = [parts]
        random = Random.now(self._device)

        def run(_: Tensor) -> tuple[Tensor, ...]:
            nonlocal calls, after
            live = calls < 0
            # a network that differentiates inside asks for its step again before it is made
            values = begun[0] if begun else flatten_state(self._before_again(k))[1]
            if not live:
                values = [v.detach().requires_grad_(w) for v, w in zip(values, wants, strict=True)]
            else:
                calls = 0
            made = self._make(self.model, build(values), step, k, live)
            if live:
                calls = made.calls
                if self._reversible and made.corrected:
                    self._uncorrected[k] = made.plain
                    self._kept[k + 1] = detached(made.after)
                after, ends = flatten_state(made.after)
                return tuple(ends)
            return tuple(flatten_state(made.after)[1])

        del parts  # the run holds no tensor of its steps
        recomputed = cast(Any, checkpointing).checkpoint
        found = cast("tuple[Tensor, ...]", recomputed(run, torch.empty(0, device=self._device), use_reentrant=False))
        begun.clear()
        if self._reversible and random.used():
            raise InputError(DRAWS)
        self.state = after(found)
        return calls

    def finish(self, recorded: Sequence[int], samples: list[Tensor]) -> tuple[Any, list[Tensor]]:
        end, self.state = self.state, copied(self.state) if self._reversible else None
        return end, samples

    def _before_again(self, k: int) -> Any:
        """Return the state before step k, in whatever order the graph asks for it."""
        if any(part._version != version for part, version in zip(self._starts, self._versions, strict=True)):
            raise RuntimeError("adjoint: the start of the run has been modified by an inplace operation since")
        self._check_constants()
        if k in self._kept:
            return self._kept[k]
        if not self._reversible:
            return self._before(k)
        if k not in self._recent:
            known = [j for j in (*self._kept, *self._recent) if j > k]
            nearest = min(known, default=len(self._steps))
            if nearest not in self._recent:
                end = self._kept.get(nearest)
                self._recent = {nearest: detached(self.state) if end is None else end}
            for j in reversed(range(k, nearest)):
                self._recover(j)
        return self._recent[k]
