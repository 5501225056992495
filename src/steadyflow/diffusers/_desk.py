"""What a served pipeline sees in place of its scheduler: it steps nothing and hands everything over.

A pipeline's loop asks its scheduler for `timesteps`, goes over them, and hands `step` what its networks said. `Desk`
is a copy of that scheduler, of a class derived from its own (pipelines ask for the class), whose `timesteps` is a live
iterator over the times that are asked for, and whose `step` hands out the output and returns the next state. The state
is therefore the path's own x = alpha x0 + sigma eps, and nothing is scaled.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError


class Counter(Protocol):
    """Who takes what is handed over the desk (see `_line.Line`)."""

    name: str
    """The class of the pipeline."""
    steps: int
    """How many steps the pipeline is told to take."""
    count: int
    """The number of iterations that have begun."""
    first: float
    """The network's time at the first, which nobody has asked for."""

    def planned(self, desk: Any, given: dict[str, Any]) -> None:
        """The pipeline has planned its run."""
        ...

    def times(self) -> Iterator[float]:
        """The network's times that are asked for, one after another."""
        ...

    def handed(self, part: int, output: Tensor, sample: Tensor, timestep: Any) -> Tensor:
        """The pipeline hands over an output; returns the next state."""
        ...

    def level(self) -> float:
        """The noise level at the time that is asked for."""
        ...

    def current(self) -> float:
        """The network's time that is asked for."""
        ...

    def register(self, desk: Any) -> int:
        """A desk is opened; returns its number."""
        ...


class Live(torch.Tensor):
    """`scheduler.timesteps`, whose iterator yields the times that are asked for; slices and moves keep it."""

    counter: Counter
    whole: bool

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[0], Live) and isinstance(args[1], int):
            return args[0]._at(args[1])
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        if func.__name__ not in _KEEPING or not isinstance(found, Tensor) or not isinstance(args[0], Live):
            return found
        return args[0]._like(found) if found.ndim else found.as_subclass(Tensor)

    def _like(self, values: Tensor) -> Live:
        made = values.as_subclass(Live)
        made.counter, made.whole = self.counter, self.whole
        return made

    def __iter__(self) -> Iterator[Tensor]:
        for time in self.counter.times():
            yield self._one(time)

    def _one(self, time: float) -> Tensor:
        whole = self.whole and time == round(time)
        return torch.full((), int(time) if whole else time, dtype=torch.int64 if whole else None, device=self.device)

    def _at(self, index: int) -> Tensor:
        """The time by the number of its step, which is known for the present one alone."""
        _check_index(index, self.counter, "time")
        return self._one(self.counter.current())

    def __deepcopy__(self, memo: dict[int, Any]) -> Live:
        return self


_KEEPING = frozenset(("__getitem__", "to", "cpu", "cuda", "clone", "detach", "contiguous", "float", "double"))


class Levels(torch.Tensor):
    """`scheduler.sigmas`: the level at the time that is asked for, whatever step it is asked by."""

    counter: Counter
    least: float

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    def __getitem__(self, key: Any) -> Tensor:
        plain = self.as_subclass(Tensor)
        if isinstance(key, slice):
            return plain[key]
        if isinstance(key, int):
            _check_index(key, self.counter, "noise level")
        return torch.full((), max(self.counter.level(), self.least), dtype=plain.dtype, device=plain.device)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        made = self.as_subclass(Tensor).to(*args, **kwargs).as_subclass(Levels)
        made.counter, made.least = self.counter, self.least
        return made


def _check_index(index: int, counter: Counter, what: str) -> None:
    """Refuse what pipelines read of steps to come; the step before may be asked for, as CogVideoX does in vain.

    Args:
        index: The number of the step.
        counter: Who counts them.
        what: What is read.
    """
    if counter.count and index not in (counter.count - 1, counter.count - 2):
        raise InputError(
            f"pipeline: {counter.name} reads the {what} of another step than the present one (to blend in a mask, or "
            "for a step of its own), so that its output does not depend on the latents and the time alone; for masks "
            "there is sf.edit(mask=...) on the pipeline without one"
        )


class Handed(tuple):  # pyright: ignore[reportMissingTypeArgument]  # two tensors
    """The result of `step`, by index as well as by name; LCM's pipelines read the estimate of the data too."""

    __slots__ = ()
    prev_sample = property(lambda self: self[0])
    pred_original_sample = property(lambda self: self[1])
    denoised = property(lambda self: self[1])


class DeskMixin:
    """Everything in which a `Desk` differs from the scheduler that it stands for."""

    counter: Counter
    part: int
    order = 1
    init_noise_sigma = property(lambda self: 1.0, lambda self, value: None)
    step_index = property(lambda self: None, lambda self, value: None)
    begin_index = property(lambda self: None, lambda self, value: None)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        **more: Any,
    ) -> None:
        """Plan the live run; what is asked for is noted, and left aside."""
        given = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas, "mu": mu, **more}
        self.counter.planned(self, given)
        count = self.counter.steps
        self.num_inference_steps = count
        live = torch.full((count,), self.counter.first, dtype=torch.float32, device=device).as_subclass(Live)
        live.counter, live.whole = self.counter, self._whole
        levels = torch.full((count + 1,), self.counter.level(), dtype=torch.float32).as_subclass(Levels)
        levels.counter, levels.least = self.counter, _FLOOR
        self.__dict__["_live"], self.__dict__["_levels"] = live, levels

    timesteps = property(lambda self: self.__dict__.get("_live"), lambda self, value: None)
    sigmas = property(lambda self: self.__dict__.get("_levels"), lambda self, value: None)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Runs have no beginning."""

    def index_for_timestep(self, *args: Any, **kwargs: Any) -> int:
        """Times have no index."""
        return 0

    def scale_model_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The sample itself: the network's input is the state."""
        return sample

    def scale_noise(self, sample: Tensor, timestep: Any = None, noise: Tensor | None = None) -> Tensor:
        """The noise, with which a run of full strength begins."""
        return sample if noise is None else noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any = None) -> Tensor:
        """The noise, with which a run of full strength begins."""
        return noise

    def step(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Handed:
        """Hand over an output, and return the next state."""
        given = self._step_signature.bind(self, *args, **kwargs).arguments
        if given.get("per_token_timesteps") is not None:
            raise InputError(
                f"pipeline: {self.counter.name} gives every token a time of its own, so that its state is no sample of "
                "one time of a path"
            )
        output, sample, timestep = given["model_output"], given["sample"], given["timestep"]
        following = self.counter.handed(self.part, output, sample, timestep)
        return Handed((following, following))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Another desk of the same call: the pipeline steps a second state of its own, such as LTX-2's audio."""
        return _open(type(self), self.__dict__, self.counter)

    _step_signature: inspect.Signature
    _whole: bool


_FLOOR = 1e-3
"""The least level that is told: LTX-2 divides by it, and multiplies by it again."""


def desk_for(scheduler: Any, counter: Counter) -> Any:
    """A stand-in for a pipeline's scheduler.

    Args:
        scheduler: The scheduler, diffusers' or ours.
        counter: Who takes what is handed over.

    Raises:
        InputError: Its `step` is not one of diffusers'.
    """
    whole = not getattr(scheduler, "timesteps", torch.zeros(1)).is_floating_point()
    return _open(_stand_in(type(scheduler)), {**scheduler.__dict__, "_whole": whole}, counter)


@lru_cache(maxsize=64)
def _stand_in(kind: type) -> type:
    signature = inspect.signature(kind.step)  # pyright: ignore[reportAttributeAccessIssue]
    if not {"model_output", "timestep", "sample"} <= signature.parameters.keys():
        raise InputError(
            f"scheduler: {kind.__name__}.step takes {', '.join(signature.parameters)}, expected model_output, timestep "
            "and sample among them"
        )
    return type(kind.__name__, (DeskMixin, kind), {"_step_signature": signature})


def _open(kind: Any, state: dict[str, Any], counter: Counter) -> Any:
    desk = object.__new__(kind)
    desk.__dict__.update(state)
    desk.__dict__["counter"] = counter
    desk.__dict__["part"] = counter.register(desk)
    return desk
