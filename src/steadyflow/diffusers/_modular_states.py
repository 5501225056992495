"""What a denoising loop of Modular Diffusers hands to its scheduler, and how a state is put in its place.

A loop's sub-blocks differ in the names of what they compute, in what they keep out of a step (a first frame, a mask),
and in how many states they step at once (video and sound). All of them hand their scheduler an output and a state. So
a stand-in takes the scheduler's place: it makes no step, notes what it is handed, and returns what it is told to. No
name of a family is needed, but for Echo's, whose loop has no scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .._internal.tensors import joined, pieces
from ..errors import InputError
from ._configs import settings_of
from ._scheduler_base import SchedulerBase

STEP = "after_denoiser"
"""The sub-block of a denoising loop that makes the scheduler's step."""


class Handed(NamedTuple):
    """What a scheduler is handed for one state."""

    output: Tensor
    sample: Tensor


class _Level:
    """The sigmas of a stand-in: those of the time at which the network is asked, wherever it is looked up."""

    def __init__(self, loop: Loop):
        self._loop = loop

    def __getitem__(self, index: Any) -> Tensor:
        self._loop.reads_level = True
        return torch.tensor(self._loop.level)

    def __getattr__(self, name: str) -> Any:
        raise InputError(f"block: {self._loop.name} reads scheduler.sigmas.{name}, which its steps do not have here")


class _StandIn:
    """A scheduler that makes no step: it notes what it is handed, and returns what it is told to."""

    def __init__(self, own: Any, loop: Loop):
        self._own, self._loop, self.sigmas = own, loop, _Level(loop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        generator: Any = None,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Note what is handed over, and return the next piece of the state; the sample itself if none is told."""
        asked = [k for k, v in options.items() if v is not None]
        if eta or asked:
            raise InputError(
                f"{asked[0] if asked else 'eta'}: an option of the scheduler's step, which the solver takes the place "
                "of; leave it out, or take a stochastic solver"
            )
        loop = self._loop
        loop.handed.append(Handed(model_output, sample))
        told = sample if loop.told is None else next(loop.told).to(sample.dtype)
        return (told,) if not return_dict else SimpleNamespace(prev_sample=told)

    def _in_step(self, method: str, *args: Any) -> Tensor:
        """Call a method of the scheduler as after the step that was just made."""
        own = self._own
        before = getattr(own, "_step_index", None)
        if not hasattr(own, "_step_index") or isinstance(own, SchedulerBase):
            return getattr(own, method)(*args)
        own._step_index = self._loop.first + self._loop.index + 1
        try:
            return getattr(own, method)(*args)
        finally:
            own._step_index = before

    def add_noise(self, *args: Any) -> Tensor:
        """The scheduler's, at the end of the step."""
        return self._in_step("add_noise", *args)

    def scale_noise(self, *args: Any) -> Tensor:
        """The scheduler's, at the end of the step."""
        return self._in_step("scale_noise", *args)


class _Components:
    """A pipeline's components with a stand-in for the scheduler."""

    def __init__(self, components: Any, scheduler: Any):
        self.__dict__.update(_components=components, scheduler=scheduler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._components, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._components, name, value)


class _Watched:
    """The timesteps of a loop, which note whether they are read."""

    def __init__(self, values: Any):
        self.values, self.read = values, False

    def __len__(self) -> int:
        self.read = True
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        self.read = True
        return self.values[index]

    def __getattr__(self, name: str) -> Any:
        self.read = True
        return getattr(self.values, name)


class _EchoStep:
    """Echo's estimates of video and sound, handed over in the place of their renoising; a first frame is held."""

    def __call__(self, components: Any, values: Any, i: int, sigma: float) -> tuple[Any, Any]:
        held = values.first_frame_token_count if values.first_frame_tokens is not None else 0
        video, step = values.latents, components.scheduler.step
        moved = step(values.predicted_video_x0[:, held:], sigma, video[:, held:], return_dict=False)[0]
        values.latents = torch.cat([video[:, :held], moved], dim=1) if held else moved
        values.audio_latents = step(values.predicted_audio_x0, sigma, values.audio_latents, return_dict=False)[0]
        return components, values


def is_echo(block: Any) -> bool:
    """Whether a loop is Echo's, which renoises estimates of the data and has no scheduler."""
    return type(block.sub_blocks.get(STEP)).__name__ == "EchoLoopAfterDenoiser"


def memories(block: Any, components: Any) -> Iterator[str]:
    """What a loop's components carry from one call of the network to the next."""
    for spec in block.expected_components:
        part = getattr(components, spec.name, None)
        momentum = [k for k, v in settings_of(part).items() if "momentum" in k and v is not None]
        if momentum and "guid" in spec.name:
            yield f"{spec.name}: {type(part).__name__} has {momentum[0]}={settings_of(part)[momentum[0]]}"
        if getattr(part, "is_cache_enabled", False):
            yield f"{spec.name}: {type(part).__name__} has a cache"


class Loop:
    """A denoising loop whose state is one tensor.

    Args:
        block: The loop.
        components: The pipeline.
        values: The loop's block state.
        timesteps: Its timesteps.
        solver: What steps, as it is called in messages.
    """

    def __init__(self, block: Any, components: Any, values: Any, timesteps: Sequence[Any], solver: str):
        echo = is_echo(block)
        own: Any = None if echo else components.scheduler
        names, parts = list(block.sub_blocks), list(block.sub_blocks.values())
        at = names.index(STEP)
        self.name = type(block).__name__
        self._denoise, self._after = parts[:at], parts[at + 1 :]
        self._step: Any = _EchoStep() if echo else parts[at]
        self._word = "sigma" if echo else "t"
        self._values, self._timesteps, self._solver = values, timesteps, solver
        self._components = _Components(components, _StandIn(own, self))
        self._memories = [*memories(block, components)]
        self._calls, self.index, self.level, self.reads_level = 0, 0, 0.0, False
        self.first = 0 if echo else max(len(own.timesteps) - len(timesteps), 0)
        self.handed: list[Handed] = []
        self.told: Iterator[Tensor] | None = None
        self._replaced: dict[str, Any] = {}
        for name, value in [*vars(values).items()]:
            if isinstance(value, (SchedulerMixin, SchedulerBase)):
                if type(value) is not type(own) or not _same(value, own):
                    raise InputError(f"{name}: has other times than the pipeline's scheduler; one solver steps both")
                self._replaced[name] = value
                setattr(values, name, _StandIn(value, self))

    def start(self, timestep: Any, level: float) -> tuple[Tensor, Tensor]:
        """Ask the network at the loop's own state.

        Args:
            timestep: The first timestep.
            level: The noise level there.

        Returns:
            The state and the network's output, in one tensor each.

        Raises:
            InputError: The loop hands its scheduler nothing that could be followed.
        """
        self.level = level
        if hasattr(self._values, "timesteps"):
            watched = self._values.timesteps = _Watched(self._timesteps)
            self._ask(timestep)
            self._values.timesteps = self._timesteps
            if watched.read and self._solver not in ("ddim", "euler"):
                raise InputError(
                    f"solver: {self.name} tells its network where every step ends, so that it predicts whole steps and "
                    f"no field; got {self._solver!r}, expected 'ddim' or 'euler'"
                )
        else:
            self._ask(timestep)
        handed = self._read(timestep)
        if not handed:
            raise InputError(f"block: the sub-block {STEP!r} of {self.name} hands no scheduler anything")
        if len({len(one.sample) for one in handed}) != 1 or any(one.sample.ndim < 2 for one in handed):
            shapes = ", ".join(str(tuple(one.sample.shape)) for one in handed)
            raise InputError(f"block: {self.name} steps states of shapes {shapes}, which are no batches of one size")
        self._shapes = [one.sample.shape for one in handed]
        self._homes = [self._home(k, one.sample, timestep) for k, one in enumerate(handed)]
        return joined([one.sample.float() for one in handed]), self._output(handed)

    def __call__(self, x: Tensor, timestep: Any, level: float) -> Tensor:
        """What the network says of a state: its output, or its estimate of the data where the loop reads sigmas.

        Args:
            x: The state.
            timestep: What the network is told.
            level: The noise level.
        """
        self.level = level
        self._write(x, timestep)
        self._ask(timestep)
        handed = self._read(timestep)
        if not self._are(self._pieces(x), [one.sample for one in handed]):
            raise InputError(f"block: {self.name} changes its state before {STEP!r}, which is no field along a path")
        return self._output(handed)

    def settle(self, x: Tensor) -> Tensor | None:
        """End a step as the loop does; None where it leaves the state as it is.

        Args:
            x: The state at the end of the step.
        """
        timestep = self._timesteps[self.index]
        self._run([self._step], timestep, self._pieces(x))
        self._run(self._after, timestep)
        values = self._values
        if all(self._homes):
            now = [getattr(values, str(home)) for home in self._homes]
        else:
            now = [one.sample for one in self._read(timestep)]
        self.index, self._calls = min(self.index + 1, len(self._timesteps) - 1), 0
        return None if self._are(self._pieces(x), now) else joined([piece.float() for piece in now])

    def close(self) -> None:
        """Give the loop back its own schedulers."""
        for name, value in self._replaced.items():
            setattr(self._values, name, value)

    def _run(self, blocks: Sequence[Any], timestep: Any, told: Sequence[Tensor] | None = None) -> None:
        self.handed, self.told = [], None if told is None else iter(told)
        for block in blocks:
            block(self._components, self._values, i=self.index, **{self._word: timestep})

    def _ask(self, timestep: Any) -> None:
        """Run what comes before the step."""
        self._calls += 1
        if self._calls > 1 and self._memories:
            raise InputError(
                f"{self._memories[0]}, which counts every call of the network as a step; {self._solver!r} calls it "
                "several times a step: take a solver of one call, such as 'ddim' or 'dpmpp-2m', or switch it off"
            )
        self._run(self._denoise, timestep)

    def _read(self, timestep: Any) -> list[Handed]:
        """What the scheduler is handed for a step from here; nothing changes."""
        kept = dict(vars(self._values))
        self._run([self._step], timestep)
        vars(self._values).clear()
        vars(self._values).update(kept)
        return self.handed

    def _write(self, x: Tensor, timestep: Any) -> None:
        """Put a state where the loop's sub-blocks look for it."""
        pieces = self._pieces(x)
        if not all(self._homes):  # beside what is held, as at the end of a step
            self._run([self._step], timestep, pieces)
            back = [one.sample for one in self._read(timestep)]
            if not self._are(pieces, back):
                raise InputError(f"block: {self.name} changes its state in {STEP!r} beyond its scheduler's step")
            return
        for home, piece in zip(self._homes, pieces, strict=True):
            setattr(self._values, str(home), piece.to(getattr(self._values, str(home)).dtype))

    @staticmethod
    def _are(pieces: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
        """Whether the pieces of a state are these, in their precision."""
        return all(torch.equal(a.to(b.dtype), b) for a, b in zip(pieces, others, strict=True))

    def _home(self, k: int, sample: Tensor, timestep: Any) -> str | None:
        """The name of the value that the scheduler is handed as its k-th state; None if it is part of one."""
        for name, value in [*vars(self._values).items()]:
            if (
                isinstance(value, Tensor)
                and value.shape == sample.shape
                and torch.equal(value.to(sample.dtype), sample)
            ):
                moved = value + 1
                setattr(self._values, name, moved)
                after = self._read(timestep)[k].sample
                setattr(self._values, name, value)
                if torch.equal(after, moved.to(after.dtype)):
                    return name
        return None

    def _output(self, handed: Sequence[Handed]) -> Tensor:
        outputs = [one.output for one in handed]
        if self.reads_level:  # the outputs were made of estimates of the data, which are regular where sigma is 0
            outputs = [one.sample - self.level * one.output for one in handed]
        return joined([output.float() for output in outputs])

    def _pieces(self, x: Tensor) -> list[Tensor]:
        return pieces(x, [shape[1:] for shape in self._shapes])


def _same(first: Any, second: Any) -> bool:
    """Whether two schedulers step at the same times."""
    return all(
        torch.equal(torch.as_tensor(getattr(first, k)), torch.as_tensor(getattr(second, k)))
        for k in ("timesteps", "sigmas")
        if hasattr(second, k)
    )
