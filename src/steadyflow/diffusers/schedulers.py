"""Schedulers for diffusers pipelines over any registered solver, and their inverses.

    pipe.scheduler = SteadyScheduler.from_config(pipe.scheduler.config, solver="ees25")

`SteadyScheduler` is for models over a table of betas, `SteadyFlowScheduler` for flow models. How they step is in
`_scheduler_base`; this module defines their paths and the places of their steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import grids, solvers
from ..errors import InputError
from ..grids import Grid
from ..prediction import PredictionType
from ..schedules import RectifiedFlow, Tabulated
from ._scheduler_base import TABLE_SCHEDULERS, SchedulerBase, SchedulerMixin, register_to_config

__all__ = [
    "SchedulerMixin",  # diffusers looks for it in the module that a saved pipeline names, to know how to load
    "SteadyFlowInverseScheduler",
    "SteadyFlowScheduler",
    "SteadyInverseScheduler",
    "SteadyScheduler",
]


class SteadyScheduler(SchedulerBase):
    """A scheduler for epsilon, v and sample models over a table of betas, such as Stable Diffusion, SDXL and DDPM.

    Args:
        num_train_timesteps: As in diffusers' schedulers, like the following ones; they come from a pipeline's config.
        beta_start: See `num_train_timesteps`.
        beta_end: See `num_train_timesteps`.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas: The table itself, instead of the four arguments above.
        prediction_type: "epsilon", "sample" or "v_prediction".
        timestep_spacing: "leading", "trailing" or "linspace".
        steps_offset: Added to the timesteps of "leading" spacing.
        set_alpha_to_one: Whether to end with the clean estimate, which takes one more network call. If False, a run
            ends at the table's first entry, as the configs of Stable Diffusion ask for and as inversions need.
        rescale_betas_zero_snr: Whether the table is rescaled so that its last entry is pure noise.
        solver: A name of `steadyflow.solvers`.
        solver_options: The options of the solver.
        grid: A name of `steadyflow.grids`, which replaces `timestep_spacing`.
        seed: Of the noise of stochastic solvers, where no generator is given.

    Raises:
        InputError: A value is not accepted, or the solver has no fixed number of network calls per step.
        NotInvertibleError: An inverse scheduler was asked for with a solver that has no inverse.
    """

    _required_fields = ("beta_start", "trained_betas")
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
        set_alpha_to_one: bool = True,
        rescale_betas_zero_snr: bool = False,
        solver: str = "ees25",
        solver_options: dict[str, Any] | None = None,
        grid: str | None = None,
        seed: int = 0,
    ):
        n = num_train_timesteps
        if trained_betas is not None:
            self.betas = torch.as_tensor(trained_betas, dtype=torch.float64)
        elif beta_schedule == "linear":
            self.betas = torch.linspace(beta_start, beta_end, n, dtype=torch.float64)
        elif beta_schedule == "scaled_linear":
            self.betas = torch.linspace(beta_start**0.5, beta_end**0.5, n, dtype=torch.float64) ** 2
        elif beta_schedule == "squaredcos_cap_v2":
            bars = [math.cos((k / n + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(n + 1)]
            self.betas = torch.tensor([min(1.0 - b / a, 0.999) for a, b in itertools.pairwise(bars)])
        else:
            raise InputError(
                f"beta_schedule: got {beta_schedule!r}, expected 'linear', 'scaled_linear' or 'squaredcos_cap_v2'"
            )
        if prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise InputError(
                f"prediction_type: got {prediction_type!r}, expected 'epsilon', 'sample' or 'v_prediction'; "
                "flow models take SteadyFlowScheduler"
            )
        table = (1.0 - self.betas.double()).cumprod(0)
        if rescale_betas_zero_snr:
            roots = table.sqrt()
            table = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        self.alphas_cumprod = table.float()
        self._initialize(Tabulated(tuple(table.tolist())))

    @property
    def prediction(self) -> PredictionType:
        return self._settings.prediction_type

    def _named_grid(self, steps: int) -> Grid:
        if self._settings.grid is not None:
            return grids.make(self._settings.grid, self.schedule, steps)
        last = int(self.schedule.domain[1])
        n, spacing = last + 1, self._settings.timestep_spacing
        if spacing == "leading":
            times = [k * (n // steps) + self._settings.steps_offset for k in reversed(range(steps))]
        elif spacing == "trailing":
            times = [round(n - k * n / steps) - 1 for k in range(steps)]
        elif spacing == "linspace":
            times = [round(last * (1.0 - k / max(steps - 1, 1))) for k in range(steps)]
        else:
            raise InputError(f"timestep_spacing: got {spacing!r}, expected 'leading', 'trailing' or 'linspace'")
        if max(times) <= 0:
            raise InputError(f"timestep_spacing: {spacing!r} puts {steps} step(s) at timestep 0; use 'trailing'")
        return _down_to(min(float(t), float(last)) for t in times)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Plan a run; afterwards `timesteps` has one entry per network call.

        Args:
            num_inference_steps: The number of solver steps.
            device: The device of `timesteps`.
            timesteps: Falling timesteps of the table between which to step, instead of a number of steps; 0 is
                appended.
            sigmas: Falling noise levels sigma/alpha between which to step, instead of a number of steps; those below
                the table's least count as its clean end.

        Raises:
            InputError: Not exactly one of the three is given, or the steps do not fit the table.
        """
        given = [v for v in (timesteps, sigmas) if v is not None] or [num_inference_steps]
        if len(given) != 1 or given[0] is None:
            raise InputError("set_timesteps: give one of num_inference_steps, timesteps and sigmas")
        if timesteps is not None:
            grid = _down_to(float(t) for t in timesteps)
        elif sigmas is not None:
            least = self.schedule.at(0.0).ratio
            grid = _down_to(0.0 if s <= least else self.schedule.t_from_ratio(float(s)) for s in sigmas)
        else:
            assert num_inference_steps is not None
            if num_inference_steps < 1 or num_inference_steps > self._settings.num_train_timesteps:
                raise InputError(f"num_inference_steps: got {num_inference_steps}, expected 1 to {len(self)}")
            grid = self._named_grid(num_inference_steps)
        self.num_inference_steps = grid.steps
        self._plan_over(grid, device)

    @property
    def _ends_clean(self) -> bool:
        return bool(self._settings.set_alpha_to_one) and not self.rising


class SteadyFlowScheduler(SchedulerBase):
    """A scheduler for flow models, such as SD3 and FLUX: x_t = (1 - sigma) x0 + sigma eps, network time 1000 sigma.

    Solvers that take coordinates use the flow coordinates by default, which are regular at both ends.

    Args:
        num_train_timesteps: As in diffusers' FlowMatchEulerDiscreteScheduler, like the following ones.
        shift: See `num_train_timesteps`; it is applied once.
        use_dynamic_shifting: Whether the shift follows from `mu` of `set_timesteps`.
        base_shift: Read by pipelines to compute `mu`, like the following three.
        max_shift: See `base_shift`.
        base_image_seq_len: See `base_shift`.
        max_image_seq_len: See `base_shift`.
        time_shift_type: "exponential" or "linear", the meaning of `mu`.
        sigma_max: Larger sigmas are moved here, for methods that cannot begin at pure noise, such as EDICT and ALF.
        sigma_min: Smaller sigmas are moved here, for methods that cannot end at clean data, such as Rex for SDEs.
        solver: A name of `steadyflow.solvers`.
        solver_options: The options of the solver.
        grid: A name of `steadyflow.grids`, which replaces the equal steps before the shift.
        seed: Of the noise of stochastic solvers, where no generator is given.

    Raises:
        InputError: A value is not accepted, or the solver has no fixed number of network calls per step.
        NotInvertibleError: An inverse scheduler was asked for with a solver that has no inverse.
    """

    _integer_timesteps = False
    _required_fields = ("shift", "use_dynamic_shifting")
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
        solver: str = "ees25",
        solver_options: dict[str, Any] | None = None,
        grid: str | None = None,
        seed: int = 0,
    ):
        if time_shift_type not in ("exponential", "linear"):
            raise InputError(f"time_shift_type: got {time_shift_type!r}, expected 'exponential' or 'linear'")
        if not 0.0 <= sigma_min < sigma_max <= 1.0:
            raise InputError(f"sigma_min, sigma_max: got {sigma_min}, {sigma_max}, expected 0 <= min < max <= 1")
        self._initialize(RectifiedFlow())

    def _solver_options(self) -> dict[str, Any]:
        options = super()._solver_options()
        if "coordinates" in options or solvers.get(self._settings.solver, **options).coordinates != "noise":
            return options
        try:
            solvers.get(self._settings.solver, **options, coordinates="flow")
        except InputError:  # the solver has no choice of coordinates
            return options
        return {**options, "coordinates": "flow"}

    @property
    def prediction(self) -> PredictionType:
        return "flow"

    def _network_time(self, t: float) -> float:
        return t * self._settings.num_train_timesteps

    def _path_time(self, timestep: float) -> float:
        return min(max(timestep / self._settings.num_train_timesteps, 0.0), 1.0)

    def _named_grid(self, steps: int) -> Grid:
        if self._settings.grid is not None:
            return grids.make(self._settings.grid, self.schedule, steps)
        low, top = self._settings.sigma_min, self._settings.sigma_max
        return _down_to((max(top * (1.0 - k / steps), low) for k in range(steps + 1)), low)

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
            sigmas: Falling sigmas between which to step, before the shift, instead of a number of steps; 0 is appended.
            mu: The strength of a dynamic shift.
            timesteps: Falling timesteps, 1000 sigma, between which to step as they are; 0 is appended.

        Raises:
            InputError: None of the three is given, or `mu` is missing where the config asks for a dynamic shift.
        """
        if timesteps is not None:
            grid = _down_to((self._path_time(float(t)) for t in timesteps), self._settings.sigma_min)
        else:
            if sigmas is not None:
                plain = _down_to(float(s) for s in sigmas)
            elif num_inference_steps is not None and num_inference_steps >= 1:
                plain = self._named_grid(num_inference_steps)
            else:
                raise InputError("set_timesteps: give num_inference_steps >= 1, sigmas or timesteps")
            low, high = self._settings.sigma_min, self._settings.sigma_max
            grid = _down_to((min(max(self._shifted(s, mu), low), high) for s in plain), low)
        self.num_inference_steps = grid.steps
        self._plan_over(grid, device)

    def _shifted(self, s: float, mu: float | None) -> float:
        """A sigma after the shift."""
        if s in (0.0, 1.0):
            return s
        config = self._settings
        if not config.use_dynamic_shifting:
            return config.shift * s / (1.0 + (config.shift - 1.0) * s)
        if mu is None:
            raise InputError("set_timesteps: the config has use_dynamic_shifting, which needs mu")
        factor = math.exp(mu) if config.time_shift_type == "exponential" else mu
        return factor / (factor + (1.0 / s - 1.0))

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


def _down_to(times: Iterable[float], end: float = 0.0) -> Grid:
    """The falling grid through the times, without repeated ones, down to `end`."""
    kept: list[float] = []
    for t in times:
        if not kept or t != kept[-1]:
            kept.append(t)
    if kept and kept[-1] != end:
        kept.append(end)
    return Grid(tuple(kept))
