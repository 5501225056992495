"""What all schedulers share: a solver that is asked for, call by call, by a loop that is not ours.

A pipeline owns its loop and calls the network once for each entry of `scheduler.timesteps`; the scheduler's `step`
feeds the answer to a `Stepper` and hands out where the solver wants the network next. A method of several stages
therefore has several entries a step, all planned before the run by the solver's own code on a single number.

The state is kept in float32 or better, whatever the pipeline computes in. If a callback changes the latents between two
steps, the solver starts afresh from them; within a step that cannot be, and is refused.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import solvers
from .._integrate import Stepper, plan
from .._internal.tensors import broadcast
from ..errors import InputError, MissingExtraError
from ..grids import Grid
from ..noise import NoiseSource, White
from ..prediction import Prediction, PredictionType, defined_at_zero_noise
from ..schedules import Schedule
from ..solvers.base import Solver

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
    from diffusers.utils.outputs import BaseOutput
except ImportError as error:
    raise MissingExtraError("diffusers", "diffusers", "schedulers for diffusers pipelines") from error


__all__ = ["TABLES", "GeneratorNoise", "SchedulerMixin", "Steady", "SteadyOutput", "register_to_config"]

TABLES = [member.name for member in KarrasDiffusionSchedulers if not member.name.startswith("EDM")]
"""diffusers' schedulers over tables of betas."""


@dataclass
class SteadyOutput(BaseOutput):
    """What `step` returns."""

    prev_sample: Tensor
    """Where the network is wanted next; at the end of the timesteps, the result."""


class GeneratorNoise(NoiseSource):
    """Fresh noise for every interval from a torch generator, or one a sample, as diffusers' schedulers draw it."""

    def __init__(self, generators: Sequence[torch.Generator], samples: int, shape: Sequence[int], **options: Any):
        super().__init__(generators[0].initial_seed(), range(samples), shape, **options)
        if len(generators) not in (1, samples):
            raise InputError(f"generator: got {len(generators)} of them for a batch of {samples}")
        self._generators = generators

    def unit(self, a: float, b: float) -> Tensor:
        """Standard normal noise, a new draw at every call."""
        size = (len(self.samples) // len(self._generators), *self.shape)
        drawn = [torch.randn(size, generator=g, dtype=torch.float32, device=g.device) for g in self._generators]
        return torch.cat(drawn).to(device=self.device, dtype=self.dtype)

    def increment(self, a: float, b: float) -> Tensor:
        """Gaussian of variance |b - a|, a new draw at every call."""
        return self.unit(a, b) * math.sqrt(abs(b - a))


@dataclass(frozen=True)
class _Carried:
    """Where an inversion ended: the solver's whole state, the way back, and where the network is asked first."""

    state: Any
    grid: Grid
    latents: Tensor


class Steady(SchedulerMixin, ConfigMixin):
    """What the schedulers share; a subclass says the path, the grid and what the network predicts."""

    rising = False
    """Whether it goes from data to noise."""
    needed: tuple[str, ...] = ()
    """Fields one of which a config must have, as only models of this kind do."""

    _compatibles: ClassVar[list[str]]
    timesteps: Tensor
    num_inference_steps: int | None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler from another's config, with `solver=` and other fields changed, as for all of diffusers.

        Raises `InputError` for the config of a scheduler of another kind of models.
        """
        fields: Any = config
        if isinstance(fields, Mapping) and not any(field in fields or field in kwargs for field in cls.needed):
            raise InputError(
                f"from_config: {cls.__name__} needs {' or '.join(cls.needed)}, which this config has not; "
                "SteadyScheduler is for tables of betas, SteadyFlowScheduler for flow models"
            )
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @property
    def _own(self) -> Any:
        """The config, whose entries are those of `__init__`."""
        return self.config

    def _begin(self, schedule: Schedule) -> None:
        """To be called at the end of `__init__`."""
        self.schedule = schedule
        self.solver: Solver[Any] = solvers.get(self._own.solver, **self._options())
        if self.solver.properties.evaluations is None:
            raise InputError(
                f"solver {self.solver.name!r}: its steps have no fixed number of network calls, which a scheduler must "
                "know beforehand; use steadyflow.from_diffusers, which owns the loop"
            )
        if self.rising:
            self.solver.check_invertible()
        self.generator: torch.Generator | list[torch.Generator] | None = None
        self._carried: _Carried | None = None
        self.num_inference_steps = None
        self._plan_over(self._named_grid(10), None)

    @property
    def _defined_at_zero_noise(self) -> bool:
        """Whether the network can be asked at sigma = 0."""
        return defined_at_zero_noise(self.prediction)

    def _options(self) -> dict[str, Any]:
        """The options of the solver."""
        return dict(self._own.solver_options or {})

    @property
    def _ends_clean(self) -> bool:
        """Whether a run ends with one more call, which is read as the clean estimate."""
        return False

    @abstractmethod
    def _named_grid(self, steps: int) -> Grid:
        """The falling grid for a number of steps."""

    @property
    @abstractmethod
    def prediction(self) -> PredictionType:
        """What the network predicts."""

    @property
    def order(self) -> int:
        """Network calls a step where all steps have equally many, else 1."""
        counts = {len(list(calls)) for _, calls in itertools.groupby(step for step, _ in self._calls)}
        return counts.pop() if len(counts) == 1 else 1

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the latents to start from: 1, as the noise has it, and latents that were found."""
        return 1.0

    @property
    def step_index(self) -> int | None:
        """The number of network calls answered, None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """The network call at which a run begins, if it was set."""
        return self._first

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the next run at an entry of `timesteps`, which must be the first of a step."""
        self._first = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample: the network's input is the state itself."""
        return sample

    def __len__(self) -> int:
        return self._own.num_train_timesteps

    def _plan_over(self, grid: Grid, device: Any) -> None:
        self.grid = grid.reversed() if self.rising else Grid(grid.times, clean=self._ends_clean)
        state = self._carried.state if self._carried is not None and self._carried.grid == self.grid else None
        noise, defined = White(0, range(1), (1,)), self._defined_at_zero_noise
        calls = plan(self.solver, self.schedule, self.grid, noise, defined_at_zero_noise=defined, state=state)
        self._calls = calls
        times = torch.tensor([self._network_time(t) for _, t in calls], dtype=torch.float64)
        whole = self._integers and bool((times == times.round()).all())
        self.timesteps = times.to(torch.int64 if whole else torch.float32).to(device)
        self._index: int | None = None
        self._first: int | None = None
        self._stepper: Stepper[Any] | None = None
        self._sent: Tensor | None = None
        self._version = 0

    _integers = True

    def _network_time(self, t: float) -> float:
        return t

    def index_for_timestep(self, timestep: Any) -> int:
        """The first entry of `timesteps` that is nearest to a timestep."""
        return int((self.timesteps.double().cpu() - float(timestep)).abs().argmin())

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SteadyOutput | tuple[Tensor]:
        """Answer the pending network call.

        model_output: what the network returned at `sample` and `timestep`, guidance included, shape (B, ...).
        sample: the latents that the network was given, shape (B, ...).
        generator: for stochastic solvers, one or one a sample; else `self.generator`, else noise addressed by the
            config's `seed`.

        Raises `InputError` for a step after the last, for shapes that differ, and where the latents were changed within
        a step of several stages.
        """
        if model_output.shape != sample.shape:
            raise InputError(f"step: the network returned shape {tuple(model_output.shape)} for {tuple(sample.shape)}")
        if self._index is None:
            self._index = self.index_for_timestep(timestep) if self._first is None else self._first
        if self._index >= len(self._calls):
            raise InputError("step: the run is over; call set_timesteps before another")
        k, _ = self._calls[self._index]
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        begins = self._index == 0 or self._calls[self._index - 1][0] != k
        if self._stepper is None or not self._is_what_was_sent(sample):
            if not begins:
                raise InputError(
                    f"step: the latents were changed within a step of {self.order} network calls, by a callback or by "
                    "a pipeline that masks them; change them at a step's end, or use a solver of one call, as ddim is"
                )
            self._start(x, k, generator)
        stepper = self._stepper
        assert stepper is not None
        assert stepper.query is not None
        query = stepper.query
        level = self.schedule.at(query.t)
        output = model_output.to(query.x.dtype)
        stepper.feed(Prediction(query.x, output, self.prediction, level.alpha, level.sigma))
        self._index += 1
        return self._answer(stepper.x if stepper.query is None else stepper.query.x, sample, return_dict)

    def _is_what_was_sent(self, sample: Tensor) -> bool:
        """Whether these are the latents of the last answer; values are compared only where the tensor is another."""
        if sample is self._sent:
            return sample._version == self._version
        return self._sent is not None and torch.equal(sample, self._sent)

    def _start(self, x: Tensor, k: int, generator: torch.Generator | list[torch.Generator] | None) -> None:
        """Begin at step k from the latents, or from the whole state that an inversion left."""
        state = None
        if self._carried is not None and self._index == 0:
            if self._carried.grid != self.grid:
                raise InputError("step: the steps differ from those of the inversion that was carried over")
            at = self._carried.latents
            if at.shape != x.shape or not torch.allclose(x, at, rtol=1e-2, atol=1e-3):  # but for the pipeline's dtype
                raise InputError(
                    "step: an inversion was carried over, but the latents are not those that `carry` returned; make a "
                    "new scheduler for others"
                )
            state, k = self._carried.state, 0  # its first steps may need no call
        noise = None
        if self.solver.properties.stochastic:
            chosen = generator or self.generator
            if chosen is None:
                noise = White.of(x, self._own.seed)
            else:
                several = chosen if isinstance(chosen, list) else [chosen]
                noise = GeneratorNoise(several, len(x), x.shape[1:], dtype=x.dtype, device=x.device)
        self._stepper = Stepper(
            self.solver,
            self.schedule,
            self.grid,
            x,
            state=state,
            noise=noise,
            first=k,
            defined_at_zero_noise=self._defined_at_zero_noise,
        )
        asked = self._stepper.query
        if state is None and (asked is None or not torch.allclose(asked.x, x, rtol=1e-4, atol=1e-4)):
            raise InputError(
                f"solver {self.solver.name!r}: it first asks the network elsewhere than at the latents, where the "
                "pipeline has asked; use steadyflow.from_diffusers, which owns the loop"
            )

    def _answer(self, x: Tensor, sample: Tensor, return_dict: bool) -> SteadyOutput | tuple[Tensor]:
        self._sent = x.to(sample.dtype)
        self._version = self._sent._version
        return SteadyOutput(self._sent) if return_dict else (self._sent,)

    @property
    def state(self) -> Any:
        """The solver's state after the last step: for an exactly reversible solver, both of its tensors."""
        if self._stepper is None:
            raise InputError("state: no step has been taken")
        return self._stepper.state

    def carry(self, inverse: Steady) -> Tensor:
        """The latents to start the next runs from, with all that an inverse scheduler ended with.

        Exactly reversible solvers need both of their states on the way back, and may ask the network at the second one
        first; a pipeline carries only one. From here on this scheduler runs over the inversion's steps, from the
        latents returned; several edits may start from one inversion.

        Raises `InputError` for another solver than the inversion's, and where this run would not end where it began.
        """
        if self._ends_clean:
            raise InputError("carry: set_alpha_to_one adds a last call that the inversion has not; set it to False")
        if inverse.solver != self.solver:
            raise InputError(f"carry: the inversion used {inverse.solver}, this scheduler has {self.solver}")
        state, grid = self.solver.for_decoding(inverse.state), inverse.grid.reversed()
        defined = self._defined_at_zero_noise
        latents = self.solver.output(state)
        stepper = Stepper(self.solver, self.schedule, grid, latents, state=state, defined_at_zero_noise=defined)
        assert stepper.query is not None
        self._carried = _Carried(state, grid, stepper.query.x)
        return stepper.query.x

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise at the given network times, (B,) or one for all."""
        times = torch.as_tensor(timesteps).double().cpu().reshape(-1)
        x = original_samples
        alpha, sigma = (
            broadcast(torch.tensor([f(self._path_time(float(t))) for t in times], dtype=x.dtype, device=x.device), x)
            for f in (self.schedule.alpha, self.schedule.sigma)
        )
        return alpha * x + sigma * noise

    def _path_time(self, timestep: float) -> float:
        return timestep
