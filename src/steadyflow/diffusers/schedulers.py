"""Schedulers for diffusers pipelines over any registered solver, and their inverses.

    pipe.scheduler = SteadyScheduler.from_config(pipe.scheduler.config, solver="ees25")

How they step is in `scheduling`; here are the two kinds of models they are for, and their steps' places.
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
from ._scheduler_base import TABLES, SchedulerMixin, Steady, register_to_config

__all__ = [
    "SchedulerMixin",  # by which diffusers finds how to load what a saved pipeline names here
    "SteadyFlowInverseScheduler",
    "SteadyFlowScheduler",
    "SteadyInverseScheduler",
    "SteadyScheduler",
]


class SteadyScheduler(Steady):
    """For epsilon, v and sample models over a table of betas (Stable Diffusion, SDXL, DDPM): any registered solver.

    num_train_timesteps to rescale_betas_zero_snr: as in diffusers' schedulers, from whose config they come.
    set_alpha_to_one: end with the clean prediction, one more network call; False ends at the table's first entry,
        as Stable Diffusion's configs ask and as runs that are to be inverted must.
    solver, solver_options: of `steadyflow.solvers`. grid: one of `steadyflow.grids`; by default `timestep_spacing`.
    seed: of the noise of stochastic solvers where no generator is given.
    """

    needed = ("beta_start", "trained_betas")
    _compatibles = TABLES

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
        self._begin(Tabulated(tuple(table.tolist())))

    @property
    def prediction(self) -> PredictionType:
        return self._own.prediction_type

    def _named_grid(self, steps: int) -> Grid:
        if self._own.grid is not None:
            return grids.make(self._own.grid, self.schedule, steps)
        last = int(self.schedule.domain[1])
        n, spacing = last + 1, self._own.timestep_spacing
        if spacing == "leading":
            times = [k * (n // steps) + self._own.steps_offset for k in reversed(range(steps))]
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
        device: Any = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Plan a run of `num_inference_steps` solver steps, or over given falling timesteps or noise levels.

        timesteps: of the table, falling; 0 is appended. sigmas: sigma/alpha, falling; those below the table's least
        count as its clean end. `self.timesteps` then has one entry a network call.
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
            if num_inference_steps < 1 or num_inference_steps > self._own.num_train_timesteps:
                raise InputError(f"num_inference_steps: got {num_inference_steps}, expected 1 to {len(self)}")
            grid = self._named_grid(num_inference_steps)
        self.num_inference_steps = grid.steps
        self._plan_over(grid, device)

    @property
    def _ends_clean(self) -> bool:
        return bool(self._own.set_alpha_to_one) and not self.rising


class SteadyFlowScheduler(Steady):
    """For flow models (SD3, FLUX), x_t = (1 - sigma) x0 + sigma eps and networks told 1000 sigma: any solver.

    shift, use_dynamic_shifting, base_shift, max_shift, base_image_seq_len, max_image_seq_len, time_shift_type: as in
    diffusers' FlowMatchEulerDiscreteScheduler; the shift is applied once. solver, solver_options, grid, seed: as in
    `SteadyScheduler`; a grid of ours replaces the equal steps before the shift. Methods that step in a variable take
    "flow", which is regular at both ends. sigma_max, sigma_min: larger and smaller sigmas are moved there, for methods
    that cannot begin at pure noise (EDICT, ALF and others say so) or end at clean data (Rex for SDEs).
    """

    _integers = False
    needed = ("shift", "use_dynamic_shifting")
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
        self._begin(RectifiedFlow())

    def _options(self) -> dict[str, Any]:
        own = super()._options()
        if getattr(solvers.get(self._own.solver, **own), "coordinates", None) != "noise" or "coordinates" in own:
            return own
        try:
            solvers.get(self._own.solver, **own, coordinates="flow")
        except InputError:  # not defined in it
            return own
        return {**own, "coordinates": "flow"}

    @property
    def prediction(self) -> PredictionType:
        return "flow"

    def _network_time(self, t: float) -> float:
        return t * self._own.num_train_timesteps

    def _path_time(self, timestep: float) -> float:
        return min(max(timestep / self._own.num_train_timesteps, 0.0), 1.0)

    def _named_grid(self, steps: int) -> Grid:
        if self._own.grid is not None:
            return grids.make(self._own.grid, self.schedule, steps)
        low, top = self._own.sigma_min, self._own.sigma_max
        return _down_to((max(top * (1.0 - k / steps), low) for k in range(steps + 1)), low)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Plan a run of `num_inference_steps` solver steps, or over given falling sigmas or timesteps (1000 sigma).

        sigmas are shifted like our own, timesteps are taken as they are; a last 0 is appended. mu: of dynamic shifting.
        """
        if timesteps is not None:
            grid = _down_to((self._path_time(float(t)) for t in timesteps), self._own.sigma_min)
        else:
            if sigmas is not None:
                plain = _down_to(float(s) for s in sigmas)
            elif num_inference_steps is not None and num_inference_steps >= 1:
                plain = self._named_grid(num_inference_steps)
            else:
                raise InputError("set_timesteps: give num_inference_steps >= 1, sigmas or timesteps")
            low, high = self._own.sigma_min, self._own.sigma_max
            grid = _down_to((min(max(self._shifted(s, mu), low), high) for s in plain), low)
        self.num_inference_steps = grid.steps
        self._plan_over(grid, device)

    def _shifted(self, s: float, mu: float | None) -> float:
        if s in (0.0, 1.0):
            return s
        config = self._own
        if not config.use_dynamic_shifting:
            return config.shift * s / (1.0 + (config.shift - 1.0) * s)
        if mu is None:
            raise InputError("set_timesteps: the config has use_dynamic_shifting, which needs mu")
        factor = math.exp(mu) if config.time_shift_type == "exponential" else mu
        return factor / (factor + (1.0 / s - 1.0))

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """(1 - sigma) x0 + sigma noise at a network time, as image-to-image pipelines of flow models ask for it."""
        return self.add_noise(sample, noise, timestep)


class SteadyInverseScheduler(SteadyScheduler):
    """`SteadyScheduler` from data to noise: run a pipeline with it on encoded latents to find those that make them."""

    rising = True


class SteadyFlowInverseScheduler(SteadyFlowScheduler):
    """`SteadyFlowScheduler` from data to noise."""

    rising = True


def _down_to(times: Iterable[float], end: float = 0.0) -> Grid:
    """The falling grid through the times, repeated ones once, and to the end."""
    kept: list[float] = []
    for t in times:
        if not kept or t != kept[-1]:
            kept.append(t)
    if kept and kept[-1] != end:
        kept.append(end)
    return Grid(tuple(kept))
