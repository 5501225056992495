"""A pipeline's own call, kept suspended: it answers any query (x, t) until it is closed.

The call runs in a thread of its own on a shallow copy of the pipeline (its own scheduler and attributes, the same
modules). The two sides take turns, so that never more than one of them runs:

    ours                                        the pipeline's
    ask(x, t)  -------------------------------> `timesteps` yields t, the networks are called on x
    outputs   <-------------------------------  scheduler.step(output, t, x)
    finish(x) --------------------------------> the loop ends, the pipeline decodes x and returns

Gradients, autocast and CUDA's stream are settings of a thread; every query carries those of whoever asks, so that what
comes back is part of the asker's graph.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ._desk import desk_for


class Left(BaseException):
    """Ends a pipeline's call at our wish; some pipelines catch `Exception`."""


class _Query(NamedTuple):
    parts: Sequence[Tensor]
    time: float
    level: float
    grad: bool
    autocast: tuple[str, bool, torch.dtype]
    stream: Any
    last: bool = False


class Line:
    """One suspended call.

    Args:
        pipe: A shallow copy of the pipeline, whose scheduler is replaced.
        call: The arguments of its call.
        first: The network's time of the first iteration, whose output nobody has asked for.
        level: The noise level at that time.
        steps: How many steps the pipeline is told to take.
        plan_only: Whether to leave once the run is planned, for what the pipeline hands its scheduler.
        echoes: What hears the networks in the first iteration; None for nobody.
        twice: Whether a pipeline of several states is given each in its own turn, which takes a second iteration. The
            pipeline steps its states one after another, and what follows for the first depends on the last; it is
            given memory that is filled later, unless it does more with it at once.
    """

    def __init__(
        self,
        pipe: Any,
        call: dict[str, Any],
        first: float,
        level: float,
        *,
        steps: int,
        plan_only: bool = False,
        echoes: Any = None,
        twice: bool = False,
    ):
        self.steps, self.first, self._level, self._plan_only = steps, first, level, plan_only
        self.echoes = echoes
        self._twice, self._filling = twice, False
        self.name = type(pipe).__name__
        self.plan: dict[str, Any] = {}
        """What the pipeline has handed its scheduler to plan the run."""
        self.samples: dict[int, Tensor] = {}
        """The latents of each of the pipeline's states at the last step."""
        self.outputs: dict[int, Tensor] = {}
        self.told: dict[int, Any] = {}
        """The timestep that the pipeline has handed over with each output."""
        self.result: Any = None
        self.count = 0
        """The number of iterations that have begun."""
        self.loops = 0
        self._parts = 0
        self._buffers: dict[int, Tensor] = {}
        self._query: _Query | None = None
        self._left, self._ended = False, False
        self._error: BaseException | None = None
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._process = os.getpid()
        self._call = inspect.unwrap(type(pipe).__call__)
        pipe.scheduler = desk_for(pipe.scheduler, self)
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run, pipe, call), name=f"steadyflow {self.name}", daemon=True
        )
        self._thread.start()
        self._wait()

    # ---- the side of whoever asks

    @property
    def open(self) -> bool:
        """Whether it can be asked; a forked process has no threads of its parent's."""
        return not (self._left or self._ended) and self._process == os.getpid()

    @property
    def is_mine(self) -> bool:
        """Whether the thread that asks is the pipeline's own."""
        return threading.current_thread() is self._thread

    @property
    def left(self) -> int:
        """How many more times it can be asked."""
        return self.steps - self.count

    def ask(self, parts: Sequence[Tensor], time: float, level: float) -> list[Tensor]:
        """The outputs of the pipeline's networks.

        Args:
            parts: The state, one tensor for each of the pipeline's.
            time: The network's time.
            level: The noise level.
        """
        self._send(parts, time, level, last=False)
        if self._ended:
            raise InputError(f"pipeline: the loop of {self.name} ended by itself after {self.count} iterations")
        return self.answer()

    def answer(self) -> list[Tensor]:
        """The last outputs."""
        return [self.outputs[k] for k in sorted(self.outputs)]

    def finish(self, parts: Sequence[Tensor]) -> Any:
        """What the pipeline returns for final latents; the line is closed after it.

        Args:
            parts: The latents, one tensor for each of the pipeline's states.
        """
        self._send(parts, 0.0, 0.0, last=True)
        self._thread.join()
        return self.result

    def close(self) -> None:
        """Leave the call, and wait until it has been left."""
        if self._process != os.getpid():
            return
        self._left = True
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it is not waiting
                self._go.release()
            if self._thread is not threading.current_thread():
                self._thread.join()

    def _send(self, parts: Sequence[Tensor], time: float, level: float, *, last: bool) -> None:
        kind = parts[0].device.type
        autocast = (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        stream = torch.cuda.current_stream(parts[0].device) if kind == "cuda" else None
        self._query = _Query(parts, time, level, torch.is_grad_enabled(), autocast, stream, last)
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        try:
            self._done.acquire()
        except BaseException:  # interrupted: the thread leaves at its next step
            self._left = True
            with contextlib.suppress(RuntimeError):
                self._go.release()
            raise
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    # ---- the pipeline's side

    def _run(self, pipe: Any, call: dict[str, Any]) -> None:
        try:
            torch.set_grad_enabled(False)
            torch.set_autocast_cache_enabled(False)
            self.result = self._call(pipe, **call)
        except Left:
            pass
        except BaseException as error:
            self._error = error
        finally:
            if self.echoes is not None:
                self.echoes.end()
            self._ended = True
            with contextlib.suppress(RuntimeError):
                self._done.release()

    def register(self, desk: Any) -> int:
        """A desk is opened: one for the pipeline's scheduler, and one for each copy that the pipeline makes."""
        self._parts += 1
        return self._parts - 1

    def planned(self, desk: Any, given: dict[str, Any]) -> None:
        """The pipeline has planned its run."""
        if not self.plan:
            self.plan = given
        if self._plan_only:
            raise Left

    def level(self) -> float:
        """The noise level at the time that is asked for."""
        return self._level if self._query is None else self._query.level

    def current(self) -> float:
        """The network's time that is asked for."""
        return self.first if self._query is None else self._query.time

    def times(self) -> Iterator[float]:
        """The network's times that are asked for, one after another."""
        self.loops += 1
        if self.loops > 1:
            raise InputError(
                f"pipeline: {self.name} goes over its timesteps more than once (pieces of a video, stages), so that "
                "its state at one time is no sample of one path"
            )
        if self.echoes is not None:
            self.echoes.begin()
        while self.count < self.steps:
            query = self._query
            if query is not None and query.last and not self._filling:
                return
            self.count += 1
            filled = self._filling
            yield self.first if query is None else query.time
            if self._buffers or (self._query is query and not filled):
                raise InputError(
                    f"pipeline: {self.name} did not hand every one of its {self._parts} schedulers an output within "
                    "one iteration"
                )

    def handed(self, part: int, output: Tensor, sample: Tensor, timestep: Any) -> Tensor:
        """The pipeline hands over an output; returns the next state.

        Args:
            part: Which of the pipeline's states it is.
            output: What its networks say.
            sample: The latents.
            timestep: The time that it believes in.
        """
        if self.echoes is not None:
            self.echoes.end()
        last = part == self._parts - 1
        if self._filling and self._query is not None:
            self._filling = not last
            self._check_part(part, self._query)
            return self._query.parts[part].to(sample.dtype, copy=True)
        self.outputs[part], self.samples[part], self.told[part] = output, sample, timestep
        if not last and self._twice:
            return sample
        if not last:  # what follows depends on the parts to come: a buffer until then
            self._buffers[part] = torch.empty_like(sample)
            return self._buffers[part]
        self._done.release()
        self._go.acquire()
        query = self._query
        if self._left or query is None:
            raise Left
        torch.set_grad_enabled(query.grad)
        kind, enabled, dtype = query.autocast
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
        if query.stream is not None:
            torch.cuda.set_stream(query.stream)
        if self._twice:
            self._filling = True
            return sample
        self._check_part(part, query)
        for k, buffer in self._buffers.items():
            buffer.copy_(query.parts[k])
        self._buffers = {}
        return query.parts[part].to(sample.dtype, copy=True)

    def _check_part(self, part: int, query: _Query) -> None:
        if part >= len(query.parts):
            raise InputError(
                f"pipeline: {self.name} steps {part + 1} schedulers, at its first iteration it stepped "
                f"{len(query.parts)}; its state is no sample of one path"
            )


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Let a call draw the same every time from torch's own state, which is left as it was.

    Some pipelines encode the pictures of their call by a draw from the VAE's posterior, without their generator.
    Torch's state is the process's, so that other threads that draw from it meanwhile see it too.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield
