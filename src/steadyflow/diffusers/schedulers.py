"""Schedulers for diffusers pipelines over any registered solver, and their inverses.

    pipe.scheduler = SteadyScheduler.from_config(pipe.scheduler.config, solver="ees25")

`SteadyScheduler` is for models over a table of betas, `SteadyFlowScheduler` for flow models. How they step is in
`_scheduler_base`; this module defines their paths and the places of their steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import grids, solvers
from ..errors import InputError
from ..prediction import Prediction, PredictionType
from ..schedules import RectifiedFlow, Tabulated
from ..solvers.tuned import Tuned
from . import _configs
from ._draws import without_variance
from ._planner import Places, numbers, places_of, time_of_ratio, whole
from ._scheduler_base import DEFAULT, TABLE_SCHEDULERS, SchedulerBase, SchedulerMixin, register_to_config
from ._sources import OURS

__all__ = [
    "SchedulerMixin",  # diffusers looks for it in the module that a saved pipeline names, to know how to load
    "SteadyFlowInverseScheduler",
    "SteadyFlowScheduler",
    "SteadyInverseScheduler",
    "SteadyScheduler",
]


class SteadyScheduler(SchedulerBase):
    """A scheduler for epsilon, v and sample models over a table of betas, such as Stable Diffusion, SDXL and DDPM.

    Where the steps lie and how a run ends is asked of diffusers' own scheduler: of the class whose config was given to
    `from_config`, else of DDIMScheduler.

    Args:
        num_train_timesteps: As in diffusers' schedulers, like the following ones; they come from a pipeline's config.
        beta_start: See `num_train_timesteps`.
        beta_end: See `num_train_timesteps`.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas: The table itself, instead of the four arguments above.
        prediction_type: "epsilon", "sample" or "v_prediction".
        timestep_spacing: "leading", "trailing" or "linspace".
        steps_offset: Added to the timesteps of "leading" spacing.
        set_alpha_to_one: Whether the last step leads from the last timestep straight to the clean estimate. If False, a
            run ends at the table's first entry, as the configs of Stable Diffusion ask for and as inversions need. By
            default as the followed class ends.
        rescale_betas_zero_snr: Whether the table is rescaled so that its last entry is pure noise.
        snr_shift_scale: The shift of the table's signal-to-noise ratios, as CogVideoX has it.
        clip_sample: Whether the estimate of the data is clipped, for models of pixels.
        clip_sample_range: The largest value after clipping.
        thresholding: Whether the estimate of the data is thresholded (Saharia et al. 2022), for models of pixels.
        dynamic_thresholding_ratio: The quantile of thresholding.
        sample_max_value: The largest threshold.
        solver: A name of `steadyflow.solvers`, or the path of a tuned solver's file; "ees25" by default. A solver or
            its spec may be given too, which the config then holds as a name and options. Where none is named and a
            pipeline changes the latents at every call, as inpainting does, a multistep method takes over.
        solver_options: The options of the solver.
        grid: A name of `steadyflow.grids`, with options as in "karras:rho=5", which replaces the places of the followed
            class.
        seed: Addresses the noise of stochastic solvers, where no generator is given; fresh noise by default.
        follows: The class of diffusers that places the steps, as `_class_name`, and the fields that it alone reads.

    Raises:
        InputError: A value is not accepted, or the solver has no fixed number of network calls per step.
        NotInvertibleError: An inverse scheduler was asked for with a solver that has no inverse.
    """

    kind = "table"
    _planner: ClassVar[str] = "DDIMScheduler"
    _compatibles = TABLE_SCHEDULERS

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        set_alpha_to_one: bool | None = None,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 1.0,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        solver: str | None = None,
        solver_options: dict[str, Any] | None = None,
        grid: str | None = None,
        seed: int | None = None,
        follows: dict[str, Any] | None = None,
    ):
        if beta_schedule not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            raise InputError(
                f"beta_schedule: got {beta_schedule!r}, expected 'linear', 'scaled_linear' or 'squaredcos_cap_v2'; "
                "give the table of another one as trained_betas"
            )
        if timestep_spacing not in ("leading", "trailing", "linspace"):
            raise InputError(
                f"timestep_spacing: got {timestep_spacing!r}, expected 'leading', 'trailing' or 'linspace'"
            )
        self._plan, fields = self._followed(
            num_train_timesteps=num_train_timesteps if trained_betas is None else len(trained_betas),
            beta_start=beta_start, beta_end=beta_end, beta_schedule=beta_schedule,
            trained_betas=None if trained_betas is None else list(trained_betas),
            prediction_type=prediction_type, timestep_spacing=timestep_spacing, steps_offset=steps_offset,
            set_alpha_to_one=set_alpha_to_one, rescale_betas_zero_snr=rescale_betas_zero_snr,
            snr_shift_scale=snr_shift_scale, clip_sample=clip_sample, clip_sample_range=clip_sample_range,
            thresholding=thresholding, dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            sample_max_value=sample_max_value,
        )  # fmt: skip
        self._predicted: PredictionType = _configs.prediction_of(fields)
        self.betas, table = self._plan.betas, self._plan.table
        self.alphas_cumprod = torch.tensor(table, dtype=torch.float32)
        self._initialize(Tabulated(table))
        self.clip = _configs.clip_of(fields, self._plan.name)
        self._boundary = _configs.boundary_of(fields, self._plan.name)
        self._tells_denoised = self._plan.name in ("LCMScheduler", "TCDScheduler")
        self._learned_variance = _configs.learned_variance(fields)
        _configs.check_method(fields, self.solver.name, self.solver.properties.evaluations)
        self._plan_over(self._named_places(min(self._first_budget, len(table))), None)

    @property
    def prediction(self) -> PredictionType:
        return self._predicted

    def _estimate(self, prediction: Prediction, t: float) -> Prediction:
        if self._boundary is None or self.solver.name != "lcm":
            return prediction
        scaled = (self._boundary * t / 0.5) ** 2  # Luo et al. 2023 (2310.04378), with sigma_data = 0.5
        skip, out = 1.0 / (scaled + 1.0), (scaled / (scaled + 1.0)) ** 0.5
        x0 = out * prediction.x0 + skip * prediction.x
        return Prediction(prediction.x, x0, "sample", prediction.alpha, prediction.sigma)

    def _without_variance(self, output: Tensor, sample: Tensor) -> Tensor:
        mean = without_variance(output, sample) if self._learned_variance else output
        return mean if mean.shape == sample.shape else super()._without_variance(output, sample)

    def _named_places(self, steps: int, **given: Any) -> Places:
        if isinstance(self._chosen, Tuned):
            self._check_own(**given)
            return self._own_places(self._chosen, steps)
        if self._settings.grid is not None:
            times = grids.make(self._settings.grid, self.schedule, steps).times
            return self._ended(places_of(times[:-1], times[-1]))
        return self._ended(self._plan.places(steps, self.schedule, **given))

    def _ended(self, places: Places) -> Places:
        """The places with the end that `set_alpha_to_one` asks for."""
        match self._settings.set_alpha_to_one:
            case None:
                return places
            case True:
                return places._replace(end=None)
            case _:
                return places._replace(end=self.schedule.domain[0] if places.end is None else places.end)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        original_inference_steps: int | None = None,
        strength: float | None = None,
    ) -> None:
        """Plan a run; afterwards `timesteps` has one entry per network call.

        Args:
            num_inference_steps: The number of solver steps.
            device: The device of `timesteps`.
            timesteps: Falling timesteps of the table at which steps begin, instead of a number of steps.
            sigmas: Falling noise levels sigma/alpha at which steps begin, instead of a number of steps; a last 0, and
                levels below the table's least, count as the end.
            original_inference_steps: The number of steps of the distillation, where an LCM config is followed.
            strength: The strength of image-to-image, where an LCM config is followed.

        Raises:
            InputError: Not exactly one of the three is given, or the steps do not fit the table.
        """
        self.read_again()
        listed = [v for v in (timesteps, sigmas) if v is not None]
        given = listed or [num_inference_steps]
        both = listed and num_inference_steps is not None and len(listed[0]) != num_inference_steps
        if len(given) != 1 or given[0] is None or both:
            raise InputError("set_timesteps: give one of num_inference_steps, timesteps and sigmas")
        if listed:
            if original_inference_steps is not None or strength not in (None, 1.0):
                raise InputError("set_timesteps: original_inference_steps and strength do not go with a list")
            places = self._own_listed(timesteps, sigmas) or self._listed_places(timesteps, sigmas)
        else:
            steps = whole(num_inference_steps, len(self.alphas_cumprod))
            more = {"original_inference_steps": original_inference_steps, "strength": strength}
            places = self._named_places(steps, **more)
        self._plan_over(places, device, listed=bool(listed), steps=len(places.times))
        if self._settings.grid is None and not self.rising and self._carried is None:
            self._noise_factor = self._plan.noise_factor(self.schedule.at(self.grid.times[0]))
            if self._settings.set_alpha_to_one is None and not self.grid.clean:
                self._end_factor = self._plan.end_factor(self.schedule.at(self.grid.times[-1]))

    def _time_listed(self, name: str, value: float) -> float:
        return value if name == "timesteps" else time_of_ratio(self.schedule, value)

    def _listed_places(self, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Places:
        """The places of steps that begin at listed timesteps or noise levels."""
        low, high = self.schedule.domain
        if sigmas is not None:
            levels = numbers("sigmas", sigmas)
            least = self.schedule.at(low).ratio * (1.0 - 1e-6)
            while len(levels) > 1 and levels[-1] < least:
                levels.pop()  # the end
            times = [time_of_ratio(self.schedule, s) for s in levels]
        else:
            times = numbers("timesteps", timesteps)
        if not times or min(times) < low or max(times) > high:
            raise InputError(f"set_timesteps: got timesteps {times}, expected some within [{low:g}, {high:g}]")
        times, clean = _falling(times), self._ends_clean
        if not clean and times[-1] == low:
            times.pop()
        if not times or times[0] == low:
            raise InputError("set_timesteps: the run begins at the end of the table, where there is no noise")
        return places_of(times, None if clean else low)

    @property
    def _ends_clean(self) -> bool:
        """Whether a run over listed steps ends with the clean estimate."""
        if self._settings.set_alpha_to_one is not None:
            return bool(self._settings.set_alpha_to_one)
        return self._named_places(min(10, len(self.alphas_cumprod))).end is None


class SteadyFlowScheduler(SchedulerBase):
    """A scheduler for flow models, such as SD3 and FLUX: x_t = (1 - sigma) x0 + sigma eps, network time 1000 sigma.

    Solvers that take coordinates use the flow coordinates by default, which are regular at both ends.

    Args:
        num_train_timesteps: As in diffusers' FlowMatchEulerDiscreteScheduler, like the following ones.
        shift: See `num_train_timesteps`; the `flow_shift` of other configs.
        use_dynamic_shifting: Whether the shift follows from `mu` of `set_timesteps`.
        base_shift: Read by pipelines to compute `mu`, like the following three.
        max_shift: See `base_shift`.
        base_image_seq_len: See `base_shift`.
        max_image_seq_len: See `base_shift`.
        time_shift_type: "exponential" or "linear", the meaning of `mu`.
        sigma_max: Larger sigmas are moved here, for methods that cannot begin at pure noise, such as EDICT and ALF.
        sigma_min: Smaller sigmas are moved here, for methods that cannot end at clean data, such as Rex for SDEs.
        solver: A name of `steadyflow.solvers`; "ees25" by default (see `SteadyScheduler`).
        solver_options: The options of the solver.
        grid: A name of `steadyflow.grids`, with options as in "karras:rho=5", which replaces the places of the followed
            class.
        seed: Addresses the noise of stochastic solvers, where no generator is given; fresh noise by default.
        follows: The class of diffusers that places the steps, as `_class_name`, and the fields that it alone reads.

    Raises:
        InputError: A value is not accepted, or the solver has no fixed number of network calls per step.
        NotInvertibleError: An inverse scheduler was asked for with a solver that has no inverse.
    """

    kind = "flow"
    _integer_timesteps = False
    _planner: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"
    _compatibles: ClassVar[list[str]] = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        time_shift_type: str = "exponential",
        sigma_max: float = 1.0,
        sigma_min: float = 0.0,
        solver: str | None = None,
        solver_options: dict[str, Any] | None = None,
        grid: str | None = None,
        seed: int | None = None,
        follows: dict[str, Any] | None = None,
    ):
        if time_shift_type not in ("exponential", "linear"):
            raise InputError(f"time_shift_type: got {time_shift_type!r}, expected 'exponential' or 'linear'")
        if not 0.0 <= sigma_min < sigma_max <= 1.0:
            raise InputError(
                f"sigma_min, sigma_max: got {sigma_min}, {sigma_max}, expected 0 <= min < max <= 1, as the path of a "
                "flow model has no other noise levels"
            )
        self._plan, fields = self._followed(
            num_train_timesteps=num_train_timesteps, shift=shift, use_dynamic_shifting=use_dynamic_shifting,
            time_shift_type=time_shift_type,
        )  # fmt: skip
        self._initialize(RectifiedFlow())
        self.clip = _configs.clip_of(fields, self._plan.name)
        no_shift = {"exponential": 0.0, "linear": 1.0}[time_shift_type] if use_dynamic_shifting else None
        self._plan_over(self._named_places(self._first_budget, mu=no_shift), None)

    @classmethod
    def _translated(
        cls, name: str | None, fields: dict[str, Any], changes: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        fields = fields if name in OURS else _configs.under_one_shift(fields)
        changes = _configs.under_one_shift(changes)
        return super()._translated(name, fields, changes)

    def _solver_options(self) -> dict[str, Any]:
        options, name = super()._solver_options(), self._settings.solver or DEFAULT
        if "coordinates" in options or solvers.get(name, **options).coordinates != "noise":
            return options
        try:
            solvers.get(name, **options, coordinates="flow")
        except InputError:  # the solver has no choice of coordinates
            return options
        return {**options, "coordinates": "flow"}

    @property
    def prediction(self) -> PredictionType:
        return "flow"

    def _level(self, t: float) -> float:
        return t

    def _network_time(self, t: float) -> float:
        return self._names[t] if t in self._names else self._told_at(t, self._told_shift)

    def _told_at(self, t: float, shift: float | None) -> float:
        """What the network is told at a time where no step begins.

        Args:
            t: The time.
            shift: The shift of the times of which it is told the unshifted ones.
        """
        if shift is None:
            raise InputError(
                "set_timesteps: the timesteps are those of neither the sigmas nor the shifted sigmas, so that nothing "
                f"says what the network is told between them, where solver {self._chosen.name!r} calls it; give lists "
                "that agree, or a solver of one call a step, such as 'dpmpp-2m'"
            )
        told: float = unshifted(t, shift) * self._settings.num_train_timesteps
        return told

    def _path_time(self, timestep: float) -> float:
        time: float = timestep / self._settings.num_train_timesteps
        if self._told_shift is not None:
            time = unshifted(time, 1.0 / self._told_shift)
        return self._by_name.get(timestep, min(time, 1.0) if time <= 1.0 + 1e-6 else time)

    def _own_name(self, t: float) -> float:
        return t * self._settings.num_train_timesteps

    def _own_places(self, solver: Tuned, steps: Any) -> Places:
        places = super()._own_places(solver, steps)
        for name, at, beyond in (
            ("sigma_max", self._settings.sigma_max, max(places.times) > self._settings.sigma_max),
            ("sigma_min", self._settings.sigma_min, min(*places.times, places.end or 0.0) < self._settings.sigma_min),
        ):
            if beyond:
                raise InputError(f"{name}: got {at}, but {solver.foreign}")
        return places

    def _named_places(self, steps: int, **given: Any) -> Places:
        if isinstance(self._chosen, Tuned):
            self._check_own()
            return self._own_places(self._chosen, steps)
        if self._settings.grid is not None:
            grid = grids.make(self._settings.grid, self.schedule, steps, clean=True)
            return self._of_times(grid.times, 0.0) if grid.clean else self._of_times(grid.times[:-1], grid.times[-1])
        return self._bounded(self._plan.places(steps, self.schedule, **given))

    def _of_times(self, times: Sequence[float], end: float) -> Places:
        n = self._settings.num_train_timesteps
        return self._bounded(Places(tuple(times), tuple(t * n for t in times), end))

    def _bounded(self, places: Places) -> Places:
        """The places with sigmas within those of the config."""
        low, high, shift = self._settings.sigma_min, self._settings.sigma_max, places.told_shift
        times = [min(max(t, low), high) for t in places.times]
        kept = [k for k, t in enumerate(times) if t > low and (k == 0 or t < times[k - 1])]
        if not kept:
            raise InputError(f"set_timesteps: no step lies between sigma_min={low} and sigma_max={high}")
        names = [places.names[k] if times[k] == places.times[k] else self._told_at(times[k], shift) for k in kept]
        return Places(tuple(times[k] for k in kept), tuple(names), max(places.end or 0.0, low), shift)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Plan a run; afterwards `timesteps` has one entry per network call.

        Args:
            num_inference_steps: The number of solver steps.
            device: The device of `timesteps`.
            sigmas: Falling sigmas at which steps begin, before the shift, instead of a number of steps.
            mu: The strength of a dynamic shift; it counts where the config has `use_dynamic_shifting`.
            timesteps: Falling timesteps, 1000 sigma, at which steps begin, as they are. Together with sigmas, which are
                shifted, what the network is told there; between them it is told by the same rule: 1000 sigma, or 1000
                times the unshifted sigma.

        Raises:
            InputError: None of the three is given, lengths differ, `mu` is missing where the config asks for a dynamic
                shift, or the lists follow no rule and the solver calls the network between them.
        """
        self.read_again()
        listed = [v for v in (timesteps, sigmas) if v is not None]
        if listed and num_inference_steps is not None and len(listed[0]) != num_inference_steps:
            raise InputError("set_timesteps: give one of num_inference_steps, sigmas and timesteps")
        if not self._settings.use_dynamic_shifting:
            mu = None  # which FLUX's pipelines hand over whatever the config says
        own = self._own_listed(timesteps, sigmas)
        if own is not None:
            places = own
        elif timesteps is not None and sigmas is not None:
            places = self._told_places(numbers("timesteps", timesteps), numbers("sigmas", sigmas), mu)
        elif timesteps is not None:
            n = self._settings.num_train_timesteps
            given = _on_path("timesteps", [t / n for t in numbers("timesteps", timesteps)])
            places = self._of_times(_falling(given), 0.0)
        elif sigmas is not None:
            plan = self._plan if self._plan.takes_sigmas else self._plan.flow_match()
            kept = _falling(_on_path("sigmas", numbers("sigmas", sigmas)))
            places = self._bounded(plan.places(None, self.schedule, sigmas=[s for s in kept if s > 0.0], mu=mu))
        else:
            places = self._named_places(whole(num_inference_steps, None), mu=mu)
        self._plan_over(places, device, listed=bool(listed), steps=len(places.times))

    def _time_listed(self, name: str, value: float) -> float:
        return min(value / self._settings.num_train_timesteps if name == "timesteps" else value, 1.0)

    def _told_places(self, timesteps: list[float], sigmas: list[float], mu: float | None) -> Places:
        """The places of steps at sigmas before the shift, where the network is told given timesteps."""
        if len(timesteps) != len(sigmas):
            raise InputError(
                f"set_timesteps: got {len(timesteps)} timesteps and {len(sigmas)} sigmas, expected as many of both"
            )
        _falling(timesteps)
        _falling(_on_path("sigmas", sigmas))
        pairs = [(t, min(s, 1.0)) for t, s in zip(timesteps, sigmas, strict=True) if s > 0.0]
        plan = self._plan if self._plan.takes_both else self._plan.flow_match()
        given = {"timesteps": [t for t, _ in pairs], "sigmas": [s for _, s in pairs], "mu": mu}
        places, shift = plan.places(None, self.schedule, **given), plan.shift(mu)
        n = self._settings.num_train_timesteps

        def agree(shift: float) -> bool:
            named = zip(places.times, places.names, strict=True)
            return all(abs(unshifted(t, shift) * n - name) < _ROUNDED for t, name in named)

        rule = next((s for s in (shift, 1.0) if agree(s)), None)
        return self._bounded(places._replace(told_shift=rule))

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Add noise to samples: `add_noise` by the name that image-to-image pipelines of flow models call.

        Args:
            sample: The samples x0, shape (B, ...).
            timestep: The network's times, one per sample or one for all.
            noise: Unit Gaussian noise, shape (B, ...).

        Returns:
            The noisy samples, shape (B, ...).
        """
        return self.add_noise(sample, noise, timestep)


class SteadyInverseScheduler(SteadyScheduler):
    """`SteadyScheduler` from data to noise.

    A pipeline that is run with it on encoded latents returns the latents from which `SteadyScheduler` generates them.
    """

    rising = True


class SteadyFlowInverseScheduler(SteadyFlowScheduler):
    """`SteadyFlowScheduler` from data to noise; see `SteadyInverseScheduler`."""

    rising = True


_ROUNDED = 1.0
"""How far a listed timestep may be from that of its sigma: pipelines give whole numbers."""


def unshifted(t: float, shift: float) -> float:
    """The time of a flow that a shift has moved to t; under the inverse of a shift, the shifted one."""
    return t / (shift - (shift - 1.0) * t)


def _on_path(what: str, sigmas: Sequence[float]) -> list[float]:
    """The sigmas of a flow, which lie in [0, 1] and not all at its end; rounding beyond 1 counts as 1.

    Raises:
        InputError: They do not.
    """
    if not sigmas or max(sigmas) <= 0.0 or not all(0.0 <= s <= 1.0 + 1e-6 for s in sigmas):
        raise InputError(f"{what}: got noise levels {list(sigmas)}, expected some within [0, 1], not all of them 0")
    return [min(s, 1.0) for s in sigmas]


def _falling(times: Iterable[float]) -> list[float]:
    """The times without repeated ones.

    Raises:
        InputError: There are none, or they do not fall.
    """
    kept: list[float] = []
    for t in times:
        if not kept or t != kept[-1]:
            kept.append(t)
    if not kept or any(b > a for a, b in itertools.pairwise(kept)):
        raise InputError(f"set_timesteps: got {kept}, expected falling values")
    return kept
