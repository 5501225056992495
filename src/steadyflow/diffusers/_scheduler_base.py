"""The base class of all schedulers: a solver stepped from outside, one network call at a time.

A pipeline owns its loop and calls the network once for each entry of `scheduler.timesteps`. The scheduler's `step`
feeds the output to a `Stepper` and returns the latents at which the solver wants the next output. A method of several
stages therefore has several entries per step. All of them are planned before the run, by running the solver's own code
on a single number.

The state is kept in float32 or better, whatever the pipeline computes in. If a callback or a mask changes the latents
between two steps, the solver goes on from them, multistep methods with their history. A change within a step of several
calls can only be honoured by making every call a step of its own, which is done, and told, where the solver was not
chosen by the user; else it is refused.
"""

from __future__ import annotations

import itertools
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from .. import solvers
from .._integrate import Stepper, plan
from .._internal.tensors import broadcast
from ..errors import InputError, SingularTimeError
from ..grids import Grid
from ..noise import NoiseSource, White
from ..prediction import Clip, Prediction, PredictionType, defined_at_zero_noise
from ..schedules import Schedule
from ..solvers.base import Solver
from ..solvers.tuned import Tuned
from ._configured import Configured
from ._draws import GeneratorNoise
from ._own_places import as_settings, calls_of_list, check_tuned, own_places
from ._planner import Places
from ._timesteps import Plan, Timesteps

__all__ = [
    "TABLE_SCHEDULERS",
    "SchedulerBase",
    "SchedulerMixin",
    "SteadyOutput",
    "register_to_config",
]

DEFAULT = "ees25"
"""The solver where none is named."""
CALL_BY_CALL = "dpmpp-2m"
"""What takes over where the latents change at every call and no solver was named."""
_LEAST = 1e-3
"""What `sigmas` says of a call at no noise at all: LTX-2 divides by it, and multiplies by it again."""
_TOLERANCE = 5e-3
"""How far a timestep may be rounded, as a share of the training's: bfloat16 keeps eight bits."""

TABLE_SCHEDULERS = [member.name for member in KarrasDiffusionSchedulers if not member.name.startswith("EDM")]
"""The names of diffusers' schedulers over tables of betas."""


@dataclass
class SteadyOutput(BaseOutput):
    """The result of `step`."""

    prev_sample: Tensor
    """The latents for the next network call, or the result after the last one; shape (B, ...)."""
    denoised: Tensor | None = None
    """The estimate of the data, where an LCM config is followed, whose pipelines decode it; shape (B, ...)."""


@dataclass(frozen=True)
class _Carried:
    """The end of an inversion, from which this scheduler starts."""

    state: Any
    """The solver's whole state."""
    grid: Grid
    """The grid of the way back."""
    latents: Tensor
    """The latents of the first network call on the way back."""


class SchedulerBase(Configured):
    """A scheduler over any solver; subclasses define the path, the grid and what the network predicts."""

    rising = False
    """Whether it goes from data to noise."""

    _integer_timesteps = True
    """Whether timesteps that are whole numbers are handed out as integers."""
    _compatibles: ClassVar[list[str]]

    timesteps: Tensor
    """The network's times, one per network call."""
    sigmas: Tensor
    """The noise level at each network call, as diffusers counts it, and last that of the end."""
    num_inference_steps: int | None
    """The number of solver steps, None before `set_timesteps`."""

    def _initialize(self, schedule: Schedule) -> None:
        """Create the solver and a first plan; called at the end of `__init__`."""
        self.schedule = schedule
        settings = as_settings(self._settings.solver)
        if settings is not None:
            if self._settings.solver_options:
                raise InputError("solver_options: only valid with the name of a solver, not with a solver")
            default = self._internal_dict.get("_use_default_values", ())
            self.register_to_config(  # which is JSON, as configs are
                solver=settings[0],
                solver_options=settings[1],
                _use_default_values=[name for name in default if name != "solver_options"],
            )
            self._config_read = self._config_now()
        self.clip: Clip | None = None
        """Bounds on the estimate of the data, from the config."""
        self._chosen: Solver[Any] = solvers.get(self._settings.solver or DEFAULT, **self._solver_options())
        self.solver: Solver[Any] = self._chosen
        """The method; where none was named and the latents change at every call, another takes over within a run."""
        if self.solver.properties.evaluations is None:
            raise InputError(
                f"solver {self.solver.name!r}: its steps have no fixed number of network calls, which a scheduler must "
                "know beforehand; use steadyflow.from_diffusers, which owns the loop"
            )
        if self.rising:
            self.solver.check_invertible()
        check_tuned(self.solver, schedule)
        seed = self._settings.seed
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise InputError(f"seed: got {seed!r}, expected a whole number or None")
        self.generator: torch.Generator | list[torch.Generator] | None = None
        self._carried: _Carried | None = None
        self.num_inference_steps = None

    def _become(self, made: Any, field: str) -> None:
        if self._carried is not None and (made.schedule, made.solver) != (self.schedule, self._chosen):
            raise InputError(
                f"{field}: was changed in the config, and the inversion that was carried over does not go with it; "
                "make a new scheduler"
            )
        kept = {"generator": self.generator, "_carried": self._carried}
        self.__dict__.update({**vars(made), **kept, "_internal_dict": self._internal_dict})

    def _solver_options(self) -> dict[str, Any]:
        """The options of the solver."""
        return dict(self._settings.solver_options or {})

    @property
    @abstractmethod
    def prediction(self) -> PredictionType:
        """What the network predicts."""

    @property
    def order(self) -> int:
        """The number of network calls per step, but for a last one that only reads the clean estimate.

        It is 1 where the run was planned from a list of timesteps or sigmas, as pipelines then count calls.
        """
        return 1 if self._listed else self._calls_per_step

    @property
    def init_noise_sigma(self) -> float:
        """The factor by which pipelines multiply the first noise.

        It is 1, but for the configs of Euler's relatives with "linspace" or "trailing" spacing: they begin with the
        noise alone, without the share of data that the table has at its end.
        """
        return self._noise_factor

    @property
    def step_index(self) -> int | None:
        """The number of network outputs received, None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """The network call at which a run begins, if it was set."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the next run at a later entry of `timesteps`; within a step, where `timesteps` is cut there.

        Args:
            begin_index: The index of the entry.

        Raises:
            InputError: Runs of this solver cannot begin in the middle.
        """
        self._begin_index = self._times.begin(begin_index)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample itself: the network's input is the state."""
        return sample

    def __len__(self) -> int:
        return self._settings.num_train_timesteps

    @property
    def _first_budget(self) -> int:
        """The number of steps of the first plan, before one is asked for."""
        return self._chosen.budgets[0] if isinstance(self._chosen, Tuned) else 10

    def _own_places(self, solver: Tuned, steps: Any) -> Places:
        """The places of a tuned solver's calls."""
        places = own_places(solver, self.schedule, steps, self.rising, self._own_name)
        self._own_calls = int(steps)
        return places

    def _check_own(self, **given: Any) -> None:
        """Refuse what would place the steps of a tuned solver elsewhere."""
        for name, value in {"grid": self._settings.grid, **given}.items():
            if value is not None and (name, value) != ("strength", 1.0):
                raise InputError(f"{name}: has no meaning with solver 'tuned', which has its own grid")

    def _own_listed(self, timesteps: Any, sigmas: Any) -> Places | None:
        """The places of a tuned solver for lists, which must be its own; None for other solvers, or without a list."""
        listed = {k: v for k, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None}
        if not listed or not isinstance(self._chosen, Tuned):
            return None
        self._check_own()
        if self.rising:
            raise InputError(f"{next(iter(listed))}: an inversion by solver 'tuned' takes its number of calls")
        calls = calls_of_list(self._chosen, self.schedule, listed, self._time_listed)
        return self._own_places(self._chosen, calls)

    @abstractmethod
    def _time_listed(self, name: str, value: float) -> float:
        """The path time of a value of a list of timesteps or noise levels."""

    def _own_name(self, t: float) -> float:
        """What the network is told at a call of a tuned solver."""
        return t

    def _plan_over(
        self, places: Places, device: torch.device | str | None, *, listed: bool = False, steps: int | None = None
    ) -> None:
        """Plan a run over the places of steps, which an inverse scheduler retraces upwards.

        Args:
            places: Where the steps lie.
            device: The device of `timesteps`.
            listed: Whether the places were listed by the caller, who then counts calls instead of steps.
            steps: The number of steps that `num_inference_steps` reports; None before a run is asked for.
        """
        clean = places.end is None and not self.rising
        end = self._first_entry if places.end is None else places.end
        times = places.times if clean or places.times[-1] <= end else (*places.times, end)
        self.grid = Grid(times[::-1] if self.rising else times, clean=clean, firm=True)
        self._names: dict[float, float] = dict(zip(places.times, places.names, strict=True))
        self._by_name: dict[float, float] = {name: time for time, name in reversed(self._names.items())}
        self._listed, self._told_shift = listed, places.told_shift
        self.solver = self._chosen.only(self._own_calls) if isinstance(self._chosen, Tuned) else self._chosen
        self._noise_factor = self._end_factor = 1.0
        state = self._carried.state if self._carried is not None and self._carried.grid == self.grid else None
        self._calls, skipped, barred = self._planned(state)
        starts = [i for i, (k, _) in enumerate(self._calls) if i == 0 or self._calls[i - 1][0] != k]
        counts = [b - a for a, b in zip(starts, [*starts[1:], len(self._calls)], strict=True)]
        self._calls_per_step = max(counts)
        inner = set(counts[1:-1])  # at either end of the path a step of one call may stand for the method's
        uneven = len(inner | {self._calls_per_step}) > 1 or (self.kind == "table" and len({*inner, counts[0]}) > 1)
        fixed = ""
        if uneven or self.solver.properties.startup_evaluations:
            fixed = f"the steps of {self.solver.name!r} differ in their number of network calls"
        own = self._chosen.foreign if isinstance(self._chosen, Tuned) else ""
        told = torch.tensor([self._network_time(t) for _, t in self._calls], dtype=torch.float64)
        whole = self._integer_timesteps and bool((told == told.round()).all())
        told = told.to(torch.int64 if whole else torch.float32).to(device)
        each = self._calls_per_step
        self._told: list[float] = told.tolist()
        gaps = [abs(a - b) for a, b in itertools.pairwise(self._told[k] for k in starts)]
        self._tolerance = min([_TOLERANCE * self._settings.num_train_timesteps, *(gap / 2.0 for gap in gaps if gap)])
        which = Plan(
            (*starts, len(told)), self.kind == "table", each, listed, own or fixed, starts[skipped], barred, own
        )
        self._times = Timesteps.of(told, which)
        self.timesteps = self._times
        levels = [self._level(t) or _LEAST for _, t in self._calls]
        self.sigmas = torch.tensor([*levels, 0.0 if clean else self._level(self.grid.times[-1])], dtype=torch.float32)
        self.num_inference_steps = steps
        self._index: int | None = None
        self._begin_index: int | None = None
        self._stepper: Stepper[Any] | None = None
        self._sent: Tensor | None = None
        self._sent_version: int | Tensor = 0

    def _planned(self, state: Any) -> tuple[list[tuple[int, float]], int, str]:
        """The network calls of the plan; how many steps at the beginning no run can begin with, and why.

        Args:
            state: The state to start from, if one was carried over.
        """

        def calls(grid: Grid) -> list[tuple[int, float]]:
            noise, defined = White(0, range(1), (1,)), self._defined_at_zero_noise
            return plan(self.solver, self.schedule, grid, noise, defined_at_zero_noise=defined, state=state)

        times = self.grid.times
        try:
            return calls(self.grid), 0, ""
        except (OverflowError, ZeroDivisionError) as error:
            raise InputError(
                f"solver {self.solver.name!r}: its steps cannot be computed on this path ({error}); is the table of "
                "betas that of a diffusion model?"
            ) from error
        except SingularTimeError as error:
            if self.rising or len(times) < 3:
                raise
            later = calls(Grid(times[1:], clean=self.grid.clean))  # image-to-image begins there, or later
            each = sum(k == 0 for k, _ in later)
            remedy = "sigma_max=0.98" if self.kind == "flow" else "a later first timestep"
            barred = f"solver {self.solver.name!r} cannot begin at pure noise ({error}); give {remedy} to begin later"
            return [(0, times[0])] * each + [(k + 1, t) for k, t in later], 1, barred

    @property
    def _first_entry(self) -> float:
        """The path time of the data, from which inversions start."""
        return self.schedule.domain[0]

    @property
    def _defined_at_zero_noise(self) -> bool:
        return defined_at_zero_noise(self.prediction) and self.clip is None

    def _level(self, t: float) -> float:
        """The noise level at a path time, as diffusers counts it."""
        return self.schedule.at(t).ratio

    def _network_time(self, t: float) -> float:
        """The network's time at a time of the path."""
        return self._names.get(t, t)

    def _path_time(self, timestep: float) -> float:
        """The time of the path at a time of the network."""
        return self._by_name.get(timestep, timestep)

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """The index of the entry of `timesteps` at which the step from a timestep begins.

        Args:
            timestep: The timestep, which may be rounded.

        Raises:
            InputError: No step begins there.
        """
        t = float(timestep)
        starts = self._times.plan.starts[:-1]
        nearest = min(starts, key=lambda k: abs(self._told[k] - t))
        if self._told[nearest] == t or (t not in self._told and abs(self._told[nearest] - t) <= self._tolerance):
            return nearest
        begins = ", ".join(f"{self._told[k]:g}" for k in starts[:8]) + (", ..." if len(starts) > 8 else "")
        raise InputError(f"step: no step begins at timestep {t:g}; steps begin at {begins}")

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        *,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        per_token_timesteps: Tensor | None = None,
    ) -> SteadyOutput | tuple[Tensor, ...]:
        """Take the output of one network call and return the latents for the next.

        Args:
            model_output: The network's output at `sample` and `timestep`, guidance included; shape (B, ...). Where the
                config's `variance_type` is learned, it may have twice the channels, of which the first half counts.
            timestep: The entry of `timesteps` for which the network was called.
            sample: The latents for which the network was called; shape (B, ...).
            generator: For stochastic solvers, one generator or one per sample. By default it is `self.generator`;
                without that, the noise is addressed by the config's `seed`, or fresh if there is none.
            return_dict: Whether to return a `SteadyOutput` instead of a tuple.
            eta: Only as a check: pipelines pass their own, which must be 0 or that of the solver.
            use_clipped_model_output: Whether DDIM takes the noise that fits to the clipped data, as in diffusers.
            per_token_timesteps: Refused: a solver steps all of a sample from one time to another.

        Returns:
            The latents for the next network call; after the last call, the result.

        Raises:
            InputError: The run is over, the shapes differ, an option cannot be honoured, or the latents were changed
                within a step of several calls of a solver that the user has named.
        """
        if per_token_timesteps is not None:
            raise InputError(
                "per_token_timesteps: the pipeline (LTXCondition) gives every token a time of its own, which only its "
                "own scheduler follows"
            )
        if model_output.shape != sample.shape:
            model_output = self._without_variance(model_output, sample)
        if eta:
            self._check_eta(eta)
        if self._index is None:
            self._index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
            self._times.check_begin(self._index)
        if self._index >= len(self._calls):
            raise InputError("step: the run is over; call set_timesteps before another")
        self._check_time(timestep)
        x = sample.to(torch.promote_types(sample.dtype, torch.float32), copy=True)  # pipelines may write into theirs
        if self._stepper is None:
            self._start_stepper(x, self._calls[self._index][0], generator, half=x.dtype != sample.dtype)
        elif not self._is_what_was_sent(sample):
            if self._sent is not None and sample.shape != self._sent.shape:
                was = tuple(self._sent.shape)
                raise InputError(f"step: got latents of shape {tuple(sample.shape)} within a run of {was}")
            if self._times.begins(self._index):
                self._stepper.replace(x)
                self._check_asked_here(x)
            else:
                self._go_call_by_call(x, generator)
        stepper = self._stepper
        assert stepper is not None
        query = stepper.query
        assert query is not None
        level = self.schedule.at(query.t)
        output = model_output.to(query.x.dtype)
        prediction = Prediction(query.x, output, self.prediction, level.alpha, level.sigma)
        if self.clip is not None:
            prediction = prediction.clipped(self.clip)
            if use_clipped_model_output:
                prediction.plain = None
        prediction = self._estimate(prediction, query.t)
        stepper.feed(prediction)
        self._index += 1
        following = stepper.x * self._end_factor if stepper.query is None else stepper.query.x
        self._sent = following.to(sample.dtype)
        inference = self._sent.is_inference()  # such tensors count no versions
        self._sent_version = self._sent.clone() if inference else self._sent._version
        if not self._tells_denoised:
            return SteadyOutput(self._sent) if return_dict else (self._sent,)
        denoised = prediction.x0.to(sample.dtype)
        return SteadyOutput(self._sent, denoised) if return_dict else (self._sent, denoised)

    def _check_time(self, timestep: float | Tensor) -> None:
        """Check that the call is the one that was planned; a time on an accelerator is not read, as that would wait."""
        assert self._index is not None
        if isinstance(timestep, Tensor) and not timestep.is_cpu:
            return
        planned = self._told[self._index]
        if abs(float(timestep) - planned) > self._tolerance:
            raise InputError(
                f"step: got timestep {float(timestep):g}, planned is {planned:g}; go through `timesteps` in order, "
                "every entry once"
            )

    _tells_denoised = False
    """Whether `step` returns the estimate of the data as well."""

    def _estimate(self, prediction: Prediction, t: float) -> Prediction:
        """What becomes of the network's prediction before the solver sees it."""
        return prediction

    def _without_variance(self, output: Tensor, sample: Tensor) -> Tensor:
        """The mean of an output that has a learned variance in its second half of channels."""
        raise InputError(f"step: the network returned shape {tuple(output.shape)} for {tuple(sample.shape)}")

    def _check_eta(self, eta: float) -> None:
        if getattr(self.solver, "eta", None) != eta:
            raise InputError(
                f"eta: got {eta}, but the solver is {self.solver.name!r} as it was chosen; give from_config(..., "
                f"solver='ddim', solver_options={{'eta': {eta}}})"
            )

    def _is_what_was_sent(self, sample: Tensor) -> bool:
        """Whether these are the latents returned last; their values are compared only if the tensor is another."""
        if self._sent is None:
            return False
        if isinstance(self._sent_version, Tensor):
            return torch.equal(sample, self._sent_version)
        if sample is self._sent:
            return sample._version == self._sent_version
        return torch.equal(sample, self._sent)

    def _go_call_by_call(self, x: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> None:
        """Make each of the remaining calls a step of its own, as the latents were changed within a step."""
        assert self._index is not None
        if self._settings.solver is not None:
            count = self._calls_per_step
            raise InputError(
                f"step: the latents were changed within a step of {self.solver.name!r}, which makes {count} network "
                "calls a step, by a callback or by a pipeline that masks them; change them at a step's end, name a "
                "solver of one call a step, such as 'dpmpp-2m', or give the mask to sf.edit(model, x, ..., mask=...)"
            )
        times = [t for _, t in self._calls[self._index :]]
        clean = self.grid.clean
        times = times if clean or times[-1] == self.grid.times[-1] else [*times, self.grid.times[-1]]
        if any(b >= a for a, b in itertools.pairwise(times)):
            raise InputError("step: the latents were changed within a step; change them at a step's end")
        warnings.warn(
            f"the latents were changed within a step of {self.solver.name!r}, by a mask or a callback, and no solver "
            f"was named: from here on each network call is a step of {CALL_BY_CALL!r}",
            stacklevel=3,
        )
        self.solver = solvers.get(CALL_BY_CALL)
        self.grid = Grid(tuple(times), clean=clean)
        self._calls = [(-1, 0.0)] * self._index + [(k, t) for k, (_, t) in enumerate(self._calls[self._index :])]
        self._times = Timesteps.of(self._times._whole, Plan(tuple(range(len(self._calls) + 1)), True))
        self._start_stepper(x, 0, generator)

    def _start_stepper(
        self, x: Tensor, k: int, generator: torch.Generator | list[torch.Generator] | None, *, half: bool = False
    ) -> None:
        """Begin at step k, from the latents or from the whole state of an inversion."""
        state = None
        if self._carried is not None and self._index == 0:
            if self._carried.grid != self.grid:
                raise InputError("step: the steps differ from those of the inversion that was carried over")
            at = self._carried.latents
            slack = 1e-2 if half else 1e-4  # for the pipeline's type
            if at.shape != x.shape or not torch.allclose(x, at, rtol=slack, atol=slack / 10.0):
                raise InputError(
                    "step: an inversion was carried over, but the latents are not those that `carry` returned; make a "
                    "new scheduler for others"
                )
            state, k = self._carried.state, 0  # its first steps may need no call
        self._stepper = Stepper(
            self.solver,
            self.schedule,
            self.grid,
            x,
            state=state,
            noise=self._noise(x, generator),
            first=k,
            defined_at_zero_noise=self._defined_at_zero_noise,
        )
        if state is None:
            self._check_asked_here(x)

    def _noise(self, x: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> NoiseSource | None:
        """The noise of a run: from generators, addressed by the seed, or fresh."""
        if not self.solver.properties.stochastic:
            return None
        chosen, seed = generator or self.generator, self._settings.seed
        if chosen is None and seed is not None:
            return White.of(x, seed)
        several = [chosen] if isinstance(chosen, torch.Generator) else chosen
        if several is not None and not all(isinstance(g, torch.Generator) for g in several):
            raise InputError(f"generator: got {chosen!r}, expected a torch.Generator or a list of one per sample")
        return GeneratorNoise(several, len(x), x.shape[1:], dtype=x.dtype, device=x.device)

    def _check_asked_here(self, x: Tensor) -> None:
        assert self._stepper is not None
        query = self._stepper.query
        if query is None or not torch.allclose(query.x, x, rtol=1e-4, atol=1e-4):
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
        if self.grid.clean:
            raise InputError(
                "carry: this scheduler ends with the clean estimate, with which no inversion can have begun; give "
                "from_config(..., set_alpha_to_one=False)"
            )
        if inverse.solver != self.solver:
            raise InputError(f"carry: the inversion used {inverse.solver}, this scheduler has {self.solver}")
        state, grid = self.solver.for_decoding(inverse.state), self.solver.way_back(self.schedule, inverse.grid)
        stepper = Stepper(
            self.solver,
            self.schedule,
            grid,
            self.solver.output(state),
            state=state,
            defined_at_zero_noise=self._defined_at_zero_noise,
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
        times = [self._path_time(float(t)) for t in torch.as_tensor(timesteps).double().cpu().reshape(-1)]
        low, high = self.schedule.domain
        if len(times) not in (1, len(original_samples)) or not all(low <= t <= high for t in times):
            raise InputError(
                f"add_noise: got timesteps {torch.as_tensor(timesteps).tolist()} for {len(original_samples)} sample(s)"
                f", expected one for all or one per sample, on the path [{low:g}, {high:g}]"
            )
        levels = [self.schedule.at(t) for t in times]
        alpha, sigma = (
            broadcast(
                torch.tensor(values, dtype=original_samples.dtype, device=original_samples.device), original_samples
            )
            for values in ([level.alpha for level in levels], [level.sigma for level in levels])
        )
        return alpha * original_samples + sigma * noise
