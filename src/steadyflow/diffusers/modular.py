"""A block for Modular Diffusers that replaces the whole denoising loop.

    blocks = FluxAutoBlocks().get_workflow("text2image")
    steady = SteadyDenoise(blocks.sub_blocks["denoise.denoise"], solver="ees25")
    blocks.sub_blocks["denoise.denoise"] = steady

The replaced loop still runs, with its guider; only its scheduler's step is left out. The field is therefore the
pipeline's own, and every solver and correction works on it. What the loop does to its state between steps, such as the
blending of an inpainting mask, comes after every step, as in the loop. Modular Diffusers calls itself experimental;
this module was written against diffusers 0.42.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import solvers
from .._integrate import Correction, StepInfo, integrate
from .._internal.imports import needing
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..noise import White
from ..prediction import Clip, PredictionType
from ..schedules import RectifiedFlow, Schedule
from ..solvers.base import Solver
from ._configs import settings_of, special_path
from ._identify import parameters_of
from ._paths import Path, path_of
from ._planner import time_of_ratio

with needing("diffusers", "diffusers", extra="diffusers", purpose="a block for Modular Diffusers"):
    from diffusers.modular_pipelines.modular_pipeline import (
        LoopSequentialPipelineBlocks,
        ModularPipelineBlocks,
        PipelineState,
    )

    from ._modular_states import STEP, Loop, is_echo


class SteadyDenoise(ModularPipelineBlocks):
    """The denoising loop by any registered solver, with one step per timestep of the pipeline.

    A loop that steps several states at once, such as LTX-2's video and sound, has them joined in one: corrections are
    given it in shape (B, n). Where a loop changes its state between steps, multistep solvers keep their history, and
    other solvers that keep more than their state start afresh.

    Args:
        block: The loop to replace, such as the denoising step of FLUX, Qwen-Image or Wan.
        solver: A solver or its name in `steadyflow.solvers`.
        corrections: Called after every step, as in `steadyflow.sample`.
        seed: Of the noise of stochastic solvers, which is addressed by sample; fresh noise by default.
        **options: The options of a solver that is given by name.

    Raises:
        InputError: The block is not a denoising loop.
    """

    def __init__(
        self,
        block: ModularPipelineBlocks,
        solver: str | Solver[Any] = "ees25",
        *,
        corrections: Sequence[Correction] = (),
        seed: int | None = None,
        **options: Any,
    ):
        super().__init__()
        if not isinstance(block, LoopSequentialPipelineBlocks) or STEP not in block.sub_blocks:
            raise InputError(
                f"block: got {type(block).__name__}, expected a pipeline's denoising loop with a sub-block {STEP!r}"
            )
        self._block, self._solver = block, solvers.get(solver, **options)
        self._corrections, self._seed = tuple(corrections), seed
        self.model_name = block.model_name

    @property
    def description(self) -> str:
        """The description that diffusers shows."""
        return f"The denoising loop by steadyflow's {self._solver.name!r}."

    @property
    def expected_components(self) -> list[Any]:
        """The expected components of the replaced loop."""
        return self._block.expected_components

    @property
    def expected_configs(self) -> list[Any]:
        """The expected configs of the replaced loop."""
        return self._block.expected_configs

    @property
    def inputs(self) -> list[Any]:
        """The inputs of the replaced loop."""
        return self._block.inputs

    @property
    def intermediate_outputs(self) -> list[Any]:
        """The intermediate outputs of the replaced loop."""
        return self._block.intermediate_outputs

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Denoise the pipeline's state over its timesteps.

        Args:
            components: The modular pipeline, with its scheduler and network.
            state: The pipeline's state.

        Returns:
            The components, and the state with the result.

        Raises:
            InputError: The pipeline has something that the solver cannot honour.
        """
        loop: Any = copy.copy(self._block)  # whose own call prepares the state, and passes it on
        loop.set_progress_bar_config(disable=True)

        def loop_step(components: Any, values: Any, i: int, **_: Any) -> tuple[Any, Any]:
            if i == 0:
                self._denoise(components, values)
            return components, values

        loop.loop_step = loop_step
        return loop(components, state)

    def _denoise(self, components: Any, values: Any) -> None:
        plan = (
            _plan_of_echo(values.sigmas) if is_echo(self._block) else _plan_of(components.scheduler, values.timesteps)
        )
        schedule, scale = plan.schedule, plan.scale
        self._solver.check_grid(schedule, plan.grid)
        loop = Loop(self._block, components, values, plan.timesteps, self._solver.name)
        try:
            clocks = [float(schedule.model_time(t)) * scale for t in plan.grid.times[: len(plan.timesteps)]]
            start, first = loop.start(plan.timesteps[0], schedule.sigma(plan.grid.times[0]))
            known: list[Tensor] = [first]

            def net(x: Tensor, time: Tensor) -> Tensor:
                now = float(time[0])
                k = next((k for k, clock in enumerate(clocks) if abs(clock - now) <= 1e-6 * clocks[0]), None)
                if known:
                    output = known.pop()  # the network was asked here to see what the loop hands over
                    if k == 0 and torch.equal(x, start):
                        return output
                told = (now if plan.echo else time[0]) if k is None else plan.timesteps[k]
                return loop(x, told, float(schedule.sigma(plan.grid.times[k] if k is not None else now / scale)))

            model = Denoiser(
                net,
                schedule,
                prediction="sample" if loop.reads_level else plan.prediction,
                time_scale=scale,
                clip=plan.clip,
                name="modular pipeline",
            )

            def settle(info: StepInfo) -> Any:
                changed = loop.settle(info.x)
                if changed is None:
                    return None
                return info.solver.with_sample(info.state, changed, schedule, info.t)

            x = integrate(
                model,
                start,
                plan.grid,
                self._solver,
                noise=White.of(start, int(torch.randint(2**62, ())) if self._seed is None else self._seed),
                corrections=(*self._corrections, settle),
            ).x
            for _ in range(plan.grid.steps, len(plan.timesteps)):  # a last step from t = 0 to itself, which may clip
                level = schedule.at(plan.grid.times[-1])
                loop.settle(x if plan.clip is None else model(x, level.t).ddim(level.alpha, level.sigma))
        finally:
            loop.close()


class _Plan(NamedTuple):
    """Where a loop steps, on which path."""

    schedule: Schedule
    prediction: PredictionType
    clip: Clip | None
    scale: float
    """The network's time at the path's time 1."""
    timesteps: Any
    """What the loop tells its network."""
    grid: Grid
    echo: bool = False
    """Whether the loop is Echo's, which is told noise levels."""


def _plan_of_echo(sigmas: Sequence[float]) -> _Plan:
    grid = Grid.from_timesteps(sigmas)
    return _Plan(RectifiedFlow(), "sample", None, 1.0, [*grid.times[:-1]], grid, echo=True)


def _plan_of(scheduler: Any, timesteps: Tensor) -> _Plan:
    """The plan of a pipeline's scheduler.

    Args:
        scheduler: The scheduler.
        timesteps: The timesteps of the loop, which are its last ones.

    Raises:
        InputError: It is on no path that is followed, or its state is scaled.
    """
    name = type(scheduler).__name__
    special = special_path(scheduler)
    if special is not None:
        raise InputError(f"scheduler: the path of this {name} is {special[0]!r}, neither a flow nor a table of betas")
    path = path_of(scheduler)
    if path.planner is not None and path.planner.source.scaled:
        raise InputError(
            f"scheduler: the latents of {name} are scaled by its noise level; set a SteadyScheduler from its config "
            "first"
        )
    schedule = path.schedule(1.0)
    times, end = _places(scheduler, path, schedule, timesteps)
    if len(set(times)) < len(times):
        raise InputError(f"scheduler: {name} lists times twice, {len(timesteps)} in all; set one of one call a step")
    if end is not None and times[-1] > end:
        times.append(end)
    grid = Grid(tuple(times), clean=end is None)
    return _Plan(schedule, path.prediction, path.clip, path.time_scale, timesteps, grid)


def _places(scheduler: Any, path: Path, schedule: Schedule, timesteps: Tensor) -> tuple[list[float], float | None]:
    """The path times at which steps begin, and at which the last one ends; None for the clean estimate.

    Args:
        scheduler: The scheduler.
        path: Its path.
        schedule: The schedule of the path.
        timesteps: The timesteps of the loop.
    """
    flow, config = path.kind == "flow", settings_of(scheduler)
    named = [float(t) / path.time_scale for t in timesteps]
    if path.planner is None:
        if len(scheduler.timesteps) != scheduler.grid.steps:
            raise InputError(
                f"scheduler: the solver of this {type(scheduler).__name__} calls the network several times a step; "
                "give it solver='ddim', as the block has a solver of its own"
            )
        end = scheduler.grid.times[-1]
        return named, None if scheduler.grid.clean else scheduler.schedule.sigma(end) if flow else end
    source = path.planner.source
    if not flow and not hasattr(scheduler, "sigmas"):
        first = source.end == "first" or (source.end == "config" and not config["set_alpha_to_one"])
        return [min(t, schedule.domain[1]) for t in named], 0.0 if first else None
    levels, count = [float(s) for s in scheduler.sigmas], len(timesteps)
    tail = len(levels) == len(scheduler.timesteps) + 1 and torch.equal(
        torch.as_tensor(scheduler.timesteps)[-count:].cpu().double(), torch.as_tensor(timesteps).cpu().double()
    )
    if not tail:
        raise InputError(
            f"timesteps: are not the last ones of {type(scheduler).__name__}, which has {len(scheduler.timesteps)}; "
            "set them by the pipeline's own block"
        )
    times, last = levels[-count - 1 : -1], levels[-1]
    if flow:
        return times, last if "final_sigmas_type" in parameters_of(type(scheduler).__name__) else 0.0
    times = [time_of_ratio(schedule, level) for level in times]
    return times, None if last == 0.0 else time_of_ratio(schedule, last)
