"""`scheduler.timesteps`: one entry per network call, which knows which calls make up a step.

Pipelines cut this tensor by numbers of their own counting, and a number that fits methods of one call a step can fall
within a step of several. Every cut is therefore read back into the number of steps that it stands for:

    timesteps[k order :]     strength: k steps are left out (order is the number of calls a step)
    timesteps[k :]           strength, where the pipeline was given a list and counts calls: of n steps in m calls,
                             n k / m are left out, rounded as the pipeline rounds (`up`)
    timesteps[len - k :]     denoising_start: k calls of the steps that begin below a cutoff, which the pipeline has
                             counted by comparing; entries compare by the time at which their step begins
    timesteps[: k]           denoising_end: every step that has begun is finished
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import InputError, SingularTimeError


@dataclass(frozen=True)
class Plan:
    """Which network calls make up a step, and where a run may begin."""

    starts: tuple[int, ...]
    """The indices of the calls at which steps begin, then the number of all calls."""
    up: bool
    """Whether a beginning within a step moves to the next step rather than to its own."""
    each: int = 1
    """The number of calls of the method's steps, of which the first and the last may have fewer."""
    listed: bool = False
    """Whether the caller listed the steps, and counts calls."""
    fixed: str = ""
    """Why a run cannot begin in the middle; empty where it can."""
    least: int = 0
    """The first call at which a run can begin."""
    barred: str = ""
    """Why it cannot begin before."""
    whole: str = ""
    """Why a run cannot end before its last step; empty where it can."""


class Timesteps(torch.Tensor):
    """The network's times; everything but slices, comparisons and moves gives plain tensors.

    `plan` says how; `first` is the index of this tensor's first entry in the whole plan.
    """

    plan: Plan
    first: int
    _whole: Tensor
    _compared: list[bool]

    __torch_function__ = cast(Any, torch._C._disabled_torch_function_impl)

    @staticmethod
    def of(times: Tensor, plan: Plan) -> Timesteps:
        """Wrap a plan's times.

        Args:
            times: All of them, shape (calls,).
            plan: What makes up a step.
        """
        return _make(times, plan, 0, len(times))

    def begin(self, index: int) -> int:
        """The call at which a run begins that is asked to begin at one of the whole plan.

        Raises:
            InputError: Runs of this solver cannot begin in the middle.
        """
        if index <= 0:
            return 0
        self.check_begin(max(index, self.plan.least))
        plan = self.plan
        if index > plan.starts[-1]:
            raise InputError(f"timesteps: asked to begin at entry {index} of {plan.starts[-1]}")
        total, steps = plan.starts[-1], len(plan.starts) - 1
        if self._compared or (not plan.listed and plan.up):
            at = bisect.bisect_left(plan.starts, index)
        elif not plan.listed:
            at = index // plan.each
        else:
            calls = total - index if plan.up else index  # kept, or left out: what the pipeline has rounded down
            least, most = steps * calls / total, steps * (calls + 1) / total
            if math.floor(least) != math.ceil(most) - 1:
                raise InputError(
                    f"timesteps: {index} of {total} network calls is no whole number of the {steps} steps that were "
                    "listed; give num_inference_steps, or a solver of one call a step"
                )
            at = steps - math.floor(least) if plan.up else math.floor(least)
        return plan.starts[min(at, steps)]

    def check_begin(self, index: int) -> None:
        """Check that a run can begin at a call of the whole plan.

        Raises:
            SingularTimeError: The method is not defined there.
            InputError: Runs of this solver cannot begin in the middle.
        """
        if index > 0 and self.plan.fixed:
            raise InputError(f"timesteps: a run cannot begin in the middle, as {self.plan.fixed}")
        if index < self.plan.least:
            raise SingularTimeError(self.plan.barred)

    def begins(self, index: int) -> bool:
        """Whether a step begins at a call of the whole plan."""
        return index in self.plan.starts

    def __getitem__(self, key: Any) -> Tensor:
        plain = self.as_subclass(torch.Tensor)
        if not isinstance(key, slice) or key.step not in (None, 1):
            return plain[key]
        low, high, _ = key.indices(len(plain))
        if low > 0:
            low = self.begin(self.first + low) - self.first
        if high not in (0, 1, len(plain)):  # a peek at the first one is no cut
            if self.plan.whole:
                raise InputError(f"timesteps: a run cannot end in the middle, as {self.plan.whole}")
            high = self._end(self.first + high) - self.first
        low = min(max(low, 0), len(plain))
        if low == len(plain) > 0 and key.start not in (None, len(plain)):
            raise InputError(
                f"timesteps: the cut [{key.start}:] leaves no step, as what is left of the config's last step has no "
                "length; take more steps or a greater strength"
            )
        return _make(self._whole, self.plan, self.first + low, self.first + max(high, low), self._compared)

    def _end(self, index: int) -> int:
        return self.plan.starts[bisect.bisect_left(self.plan.starts, index)]

    def __iter__(self) -> Iterator[Tensor]:
        self.check_begin(self.first)
        last = self.first + len(self)
        stop = last if last == self.first else self._end(last)  # a loop over a single entry makes its whole step
        return iter(self._whole[self.first : stop])

    def _by_step(self) -> Tensor:
        """For each entry, the time at which its step begins; whoever compares counts calls."""
        self._compared.append(True)
        index = range(self.first, self.first + len(self))
        return self._whole[[self.plan.starts[bisect.bisect_right(self.plan.starts, k) - 1] for k in index]]

    def __lt__(self, other: Any) -> Tensor:
        return self._by_step() < other

    def __le__(self, other: Any) -> Tensor:
        return self._by_step() <= other

    def __gt__(self, other: Any) -> Tensor:
        return self._by_step() > other

    def __ge__(self, other: Any) -> Tensor:
        return self._by_step() >= other

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._of(self._whole.to(*args, **kwargs))

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._of(self._whole.cpu(*args, **kwargs))

    def cuda(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._of(self._whole.cuda(*args, **kwargs))

    def _of(self, whole: Tensor) -> Timesteps:
        return _make(whole, self.plan, self.first, self.first + len(self), self._compared)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _make, (self._whole, self.plan, self.first, self.first + len(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Timesteps:
        return self._of(self._whole.clone())


def _make(whole: Tensor, plan: Plan, first: int, stop: int, compared: list[bool] | None = None) -> Timesteps:
    made = whole[first:stop].as_subclass(Timesteps)
    made.plan, made.first, made._whole = plan, first, whole
    made._compared = [] if compared is None else compared
    return made
