"""A block for Modular Diffusers that replaces the whole denoising loop.

    blocks = FluxAutoBlocks().get_workflow("text2image")
    steady = SteadyDenoise(blocks.sub_blocks["denoise.denoise"], solver="ees25")
    blocks.sub_blocks["denoise.denoise"] = steady

The replaced block still calls the network, with its guider; only its scheduler's step is left out. The field is
therefore the pipeline's own, and every solver and correction works on it. Modular Diffusers calls itself experimental;
this module was written against diffusers 0.42.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import solvers
from .._integrate import Correction, StepInfo, integrate
from ..denoisers.base import Denoiser
from ..errors import InputError, MissingExtraError
from ..grids import Grid
from ..noise import White
from ..solvers.base import Solver
from ._paths import path_of

try:
    from diffusers.modular_pipelines.modular_pipeline import (
        LoopSequentialPipelineBlocks,
        ModularPipelineBlocks,
        PipelineState,
    )
except ImportError as error:
    raise MissingExtraError("diffusers", "diffusers", "blocks for Modular Diffusers") from error

_STEP = "after_denoiser"
"""The sub-block of a denoising loop that makes the scheduler's step."""


class SteadyDenoise(ModularPipelineBlocks):
    """The denoising loop by any registered solver, with one step per timestep of the pipeline.

    Args:
        block: The loop to replace, such as the denoising step of FLUX, SD3 or SDXL.
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
        if not isinstance(block, LoopSequentialPipelineBlocks) or _STEP not in block.sub_blocks:
            raise InputError(
                f"block: got {type(block).__name__}, expected a pipeline's denoising loop with a sub-block {_STEP!r}"
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
    def inputs(self) -> list[Any]:
        """The inputs of the replaced loop."""
        return self._block.inputs

    @property
    def intermediate_outputs(self) -> list[Any]:
        """The intermediate outputs of the replaced loop."""
        return self._block.intermediate_outputs

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Denoise the state's `latents` over its `timesteps`.

        Args:
            components: The modular pipeline, with its scheduler and network.
            state: The pipeline's state.

        Returns:
            The components, and the state with the result as its `latents`.
        """
        loop = self._block
        values: Any = self.get_block_state(state)
        latents: Tensor = values.latents
        times = [float(t) for t in values.timesteps]
        path = path_of(components.scheduler)
        if path.planner is not None and path.planner.source.scaled:
            raise InputError(
                f"scheduler: the latents of {type(components.scheduler).__name__} are scaled by its noise level; set a "
                "SteadyScheduler from its config first"
            )
        schedule, prediction, scale = path.schedule(1.0), path.prediction, path.time_scale
        last, index = len(times) - 1, 0

        def net(x: Tensor, time: Tensor) -> Tensor:
            values.latents = x.to(latents.dtype)
            for name, part in loop.sub_blocks.items():
                if name != _STEP:
                    part(components, values, i=index, t=time[0])
            return values.noise_pred.to(x.dtype)

        def count(info: StepInfo) -> None:
            nonlocal index
            index = min(info.done, last)

        model = Denoiser(
            net, schedule, prediction=prediction, time_scale=scale, clip=path.clip, name="modular pipeline"
        )
        start = latents.float()
        run = integrate(
            model,
            start,
            Grid.from_timesteps((t / scale for t in times), final=None if times[-1] == 0.0 else 0.0),
            self._solver,
            noise=White.of(start, int(torch.randint(2**62, ())) if self._seed is None else self._seed),
            corrections=self._corrections,
            callback=count,
        )
        values.latents = run.x.to(latents.dtype)
        self.set_block_state(state, values)
        return components, state
