"""The base class of all schedulers: a solver stepped from outside, one network call at a time.

A pipeline owns its loop and calls the network once for each entry of `scheduler.timesteps`. The scheduler's `step`
feeds the output to a `Stepper` and returns the latents at which the solver wants the next output. A method of several
stages therefore has several entries per step. All of them are planned before the run, by running the solver's own code
on a single number.

The state is kept in float32 or better, whatever the pipeline computes in. If a callback changes the latents between two
steps, the solver starts again from them; a change within a step cannot be honoured, and is refused.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

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


__all__ = [
    "TABLE_SCHEDULERS",
    "GeneratorNoise",
    "SchedulerBase",
    "SchedulerMixin",
    "SteadyOutput",
    "register_to_config",
]

TABLE_SCHEDULERS = [member.name for member in KarrasDiffusionSchedulers if not member.name.startswith("EDM")]
"""The names of diffusers' schedulers over tables of betas."""


@dataclass
class SteadyOutput(BaseOutput):
    """The result of `step`."""

    prev_sample: Tensor
    """The latents for the next network call, or the result after the last one; shape (B, ...)."""


class GeneratorNoise(NoiseSource):
    """Fresh noise for every interval from torch generators, drawn as diffusers' schedulers draw it.

    Args:
        generators: One for the whole batch, or one per sample.
        samples: The number of samples.
        shape: The shape of one sample.
        dtype: The type of the noise that is returned; it is drawn in float32.
        device: The device of the noise that is returned; it is drawn on the generator's own.

    Raises:
        InputError: The number of generators is neither 1 nor `samples`.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        samples: int,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__(generators[0].initial_seed(), range(samples), shape, dtype=dtype, device=device)
        if len(generators) not in (1, samples):
            raise InputError(f"generator: got {len(generators)} of them for a batch of {samples}")
        self._generators = generators

    def unit(self, a: float, b: float) -> Tensor:
        """Standard normal noise, a new draw at every call."""
        size = (len(self.samples) // len(self._generators), *self.shape)
        drawn = [torch.randn(size, generator=g, dtype=torch.float32, device=g.device) for g in self._generators]
        return torch.cat(drawn).to(device=self.device, dtype=self.dtype)

    def increment(self, a: float, b: float) -> Tensor:
        """Gaussian noise of variance |b - a|, a new draw at every call."""
        return self.unit(a, b) * math.sqrt(abs(b - a))


@dataclass(frozen=True)
class _Carried:
    """The end of an inversion, from which this scheduler starts."""

    state: Any
    """The solver's whole state."""
    grid: Grid
    """The grid of the way back."""
    latents: Tensor
    """The latents of the first network call on the way back."""


class SchedulerBase(SchedulerMixin, ConfigMixin):
    """A scheduler over any solver; subclasses define the path, the grid and what the network predicts."""

    rising = False
    """Whether it goes from data to noise."""

    _required_fields: tuple[str, ...] = ()
    """Config fields of which at least one must be present, as only models of this kind have them."""
    _integer_timesteps = True
    """Whether timesteps that are whole numbers are handed out as integers."""
    _compatibles: ClassVar[list[str]]

    timesteps: Tensor
    """The network's times, one per network call."""
    num_inference_steps: int | None
    """The number of solver steps, None before `set_timesteps`."""

    @classmethod
    def from_config(
        cls, config: dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Create a scheduler from another scheduler's config.

        Args:
            config: The config of any scheduler for the same kind of models.
            return_unused_kwargs: Whether to return the unused keyword arguments as well, as in diffusers.
            **kwargs: Fields to change, such as `solver`.

        Returns:
            The scheduler; with `return_unused_kwargs`, a tuple of it and a dict.

        Raises:
            InputError: The config is that of a scheduler for another kind of models.
        """
        if isinstance(config, Mapping) and not {*config, *kwargs}.intersection(cls._required_fields):
            raise InputError(
                f"from_config: {cls.__name__} needs {' or '.join(cls._required_fields)}, which this config does not "
                "have; SteadyScheduler is for tables of betas, SteadyFlowScheduler for flow models"
            )
        return super().from_config(cast(Any, config), return_unused_kwargs=return_unused_kwargs, **kwargs)

    @property
    def _settings(self) -> Any:
        """The config, with the arguments of `__init__` as attributes."""
        return self.config

    def _initialize(self, schedule: Schedule) -> None:
        """Create the solver and a first plan; called at the end of `__init__`."""
        self.schedule = schedule
        self.solver: Solver[Any] = solvers.get(self._settings.solver, **self._solver_options())
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

    def _solver_options(self) -> dict[str, Any]:
        """The options of the solver."""
        return dict(self._settings.solver_options or {})

    @property
    def _ends_clean(self) -> bool:
        """Whether a run ends with one more network call, which is read as the clean estimate."""
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
        """The number of network calls per step if all steps have equally many, else 1."""
        counts = {len(list(calls)) for _, calls in itertools.groupby(step for step, _ in self._calls)}
        return counts.pop() if len(counts) == 1 else 1

    @property
    def init_noise_sigma(self) -> float:
        """The factor by which pipelines multiply the initial noise: 1, as latents are used as they are."""
        return 1.0

    @property
    def step_index(self) -> int | None:
        """The number of network outputs received, None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """The network call at which a run begins, if it was set."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the next run at a later entry of `timesteps`.

        Args:
            begin_index: The index of the entry, which must be the first of a step.
        """
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample itself: the network's input is the state."""
        return sample

    def __len__(self) -> int:
        return self._settings.num_train_timesteps

    def _plan_over(self, grid: Grid, device: torch.device | str | None) -> None:
        """Plan a run over a falling grid, which an inverse scheduler retraces upwards."""
        self.grid = grid.reversed() if self.rising else Grid(grid.times, clean=self._ends_clean)
        state = self._carried.state if self._carried is not None and self._carried.grid == self.grid else None
        self._calls = plan(
            self.solver,
            self.schedule,
            self.grid,
            White(0, range(1), (1,)),
            defined_at_zero_noise=defined_at_zero_noise(self.prediction),
            state=state,
        )
        times = torch.tensor([self._network_time(t) for _, t in self._calls], dtype=torch.float64)
        whole = self._integer_timesteps and bool((times == times.round()).all())
        self.timesteps = times.to(torch.int64 if whole else torch.float32).to(device)
        self._index: int | None = None
        self._begin_index: int | None = None
        self._stepper: Stepper[Any] | None = None
        self._sent: Tensor | None = None
        self._sent_version = 0

    def _network_time(self, t: float) -> float:
        """The network's time at a time of the path."""
        return t

    def _path_time(self, timestep: float) -> float:
        """The time of the path at a time of the network."""
        return timestep

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """The index of the first entry of `timesteps` that is nearest to a timestep."""
        return int((self.timesteps.double().cpu() - float(timestep)).abs().argmin())

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SteadyOutput | tuple[Tensor]:
        """Take the output of one network call and return the latents for the next.

        Args:
            model_output: The network's output at `sample` and `timestep`, guidance included; shape (B, ...).
            timestep: The entry of `timesteps` for which the network was called.
            sample: The latents for which the network was called; shape (B, ...).
            generator: For stochastic solvers, one generator or one per sample. By default it is `self.generator`, and
                without that the noise follows from the config's `seed`.
            return_dict: Whether to return a `SteadyOutput` instead of a tuple.

        Returns:
            The latents for the next network call; after the last call, the result.

        Raises:
            InputError: The run is over, the shapes differ, or the latents were changed within a step of several calls.
        """
        if model_output.shape != sample.shape:
            raise InputError(f"step: the network returned shape {tuple(model_output.shape)} for {tuple(sample.shape)}")
        if self._index is None:
            self._index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
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
            self._start_stepper(x, k, generator)
        stepper = self._stepper
        assert stepper is not None
        query = stepper.query
        assert query is not None
        level = self.schedule.at(query.t)
        output = model_output.to(query.x.dtype)
        stepper.feed(Prediction(query.x, output, self.prediction, level.alpha, level.sigma))
        self._index += 1
        following = stepper.x if stepper.query is None else stepper.query.x
        self._sent = following.to(sample.dtype)
        inference = self._sent.is_inference()  # such tensors count no versions
        self._sent_version = self._sent.clone() if inference else self._sent._version
        return SteadyOutput(self._sent) if return_dict else (self._sent,)

    def _is_what_was_sent(self, sample: Tensor) -> bool:
        """Whether these are the latents returned last; their values are compared only if the tensor is another."""
        if self._sent is None:
            return False
        if isinstance(self._sent_version, Tensor):
            return torch.equal(sample, self._sent_version)
        if sample is self._sent:
            return sample._version == self._sent_version
        return torch.equal(sample, self._sent)

    def _start_stepper(self, x: Tensor, k: int, generator: torch.Generator | list[torch.Generator] | None) -> None:
        """Begin at step k, from the latents or from the whole state of an inversion."""
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
                noise = White.of(x, self._settings.seed)
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
            defined_at_zero_noise=defined_at_zero_noise(self.prediction),
        )
        query = self._stepper.query
        if state is None and (query is None or not torch.allclose(query.x, x, rtol=1e-4, atol=1e-4)):
            raise InputError(
                f"solver {self.solver.name!r}: it first asks the network elsewhere than at the latents, where the "
                "pipeline has asked; use steadyflow.from_diffusers, which owns the loop"
            )

    @property
    def state(self) -> Any:
        """The solver's state after the last step; for exactly reversible solvers it has two tensors.

        Raises:
            InputError: No step has been made.
        """
        if self._stepper is None:
            raise InputError("state: no step has been taken")
        return self._stepper.state

    def carry(self, inverse: SchedulerBase) -> Tensor:
        """Take over the end of an inversion, and return the latents to give to the pipeline.

        Exactly reversible solvers need both of their states on the way back, and may call the network at the second one
        first, but a pipeline passes on only one. After this call the scheduler runs over the inversion's steps, from
        the latents returned here. Several edits may start from one inversion.

        Args:
            inverse: The inverse scheduler after its run.

        Returns:
            The latents of the first network call, shape (B, ...).

        Raises:
            InputError: The inversion used another solver, has not been run, or this scheduler ends with the clean
                estimate, which the inversion cannot have begun with.
        """
        if self._ends_clean:
            raise InputError("carry: set_alpha_to_one adds a last call that the inversion has not; set it to False")
        if inverse.solver != self.solver:
            raise InputError(f"carry: the inversion used {inverse.solver}, this scheduler has {self.solver}")
        state, grid = self.solver.for_decoding(inverse.state), inverse.grid.reversed()
        stepper = Stepper(
            self.solver,
            self.schedule,
            grid,
            self.solver.output(state),
            state=state,
            defined_at_zero_noise=defined_at_zero_noise(self.prediction),
        )
        assert stepper.query is not None
        self._carried = _Carried(state, grid, stepper.query.x)
        return stepper.query.x

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Add noise to samples: alpha x0 + sigma noise.

        Args:
            original_samples: The samples x0, shape (B, ...).
            noise: Unit Gaussian noise, shape (B, ...).
            timesteps: The network's times, one per sample or one for all.

        Returns:
            The noisy samples, shape (B, ...).
        """
        times = torch.as_tensor(timesteps).double().cpu().reshape(-1)
        levels = [self.schedule.at(self._path_time(float(t))) for t in times]
        alpha, sigma = (
            broadcast(
                torch.tensor(values, dtype=original_samples.dtype, device=original_samples.device), original_samples
            )
            for values in ([level.alpha for level in levels], [level.sigma for level in levels])
        )
        return alpha * original_samples + sigma * noise
