"""A block for Modular Diffusers that takes the place of the whole denoising loop.

    blocks = FluxAutoBlocks().get_workflow("text2image")
    steady = SteadyDenoise(blocks.sub_blocks["denoise.denoise"], solver="ees25")
    blocks.sub_blocks["denoise.denoise"] = steady

The block that it replaces keeps answering for the network, its guider included; only its scheduler's step is left out.
So the field is the pipeline's own, and every solver and correction works on it. Modular Diffusers calls itself
experimental; this was written against diffusers 0.42.
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
from ..noise import SOURCES
from .pipeline_model import path_of

try:
    from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks, ModularPipelineBlocks
except ImportError as error:
    raise MissingExtraError("diffusers", "diffusers", "blocks for Modular Diffusers") from error

_STEP = "after_denoiser"


class SteadyDenoise(ModularPipelineBlocks):
    """The denoising loop by any registered solver: one step for each of the pipeline's timesteps.

    block: the loop that it replaces, such as FLUX's, SD3's or SDXL's denoise step. solver, options: of
    `steadyflow.solvers`, on flow paths by default in the coordinates that is regular at both ends. corrections: as in
    `steadyflow.sample`. seed: of stochastic solvers' noise, by sample.

    Raises `InputError` for a block that is no denoising loop.
    """

    def __init__(
        self,
        block: Any,
        solver: str | solvers.Solver = "ees25",
        *,
        corrections: Sequence[Correction] = (),
        seed: int = 0,
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
        """What diffusers shows of it."""
        return f"The denoising loop by steadyflow's {self._solver.name!r}."

    @property
    def expected_components(self) -> list:
        """Those of the loop that it replaces."""
        return self._block.expected_components

    @property
    def inputs(self) -> list:
        """Those of the loop that it replaces."""
        return self._block.inputs

    @property
    def intermediate_outputs(self) -> list:
        """Those of the loop that it replaces."""
        return self._block.intermediate_outputs

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Denoise `latents` over `timesteps`."""
        loop = self._block
        now: Any = self.get_block_state(state)
        latents: Tensor = now.latents
        times = [float(t) for t in now.timesteps]
        flow = not hasattr(components.scheduler, "alphas_cumprod")
        schedule, prediction = path_of(components.scheduler, flow, 1.0)
        scale = 1000.0 if flow else 1.0
        index = [0]

        def net(x: Tensor, time: Tensor) -> Tensor:
            now.latents = x.to(latents.dtype)
            for name, part in loop.sub_blocks.items():
                if name != _STEP:
                    part(components, now, i=index[0], t=time[0])
            return now.noise_pred.to(x.dtype)

        def count(info: StepInfo) -> None:
            index[0] = min(info.done, info.total - 1)

        model = Denoiser(net, schedule, prediction=prediction, time_scale=scale, name="modular pipeline")
        start = latents.float()
        grid = Grid(tuple([t / scale for t in times] + ([] if times[-1] == 0.0 else [0.0])))
        noise = SOURCES["white"].of(start, self._seed)
        run = integrate(
            model,
            start,
            grid,
            self._solver,
            noise=noise,
            corrections=self._corrections,
            callback=count,
        )
        now.latents = run.x.to(latents.dtype)
        self.set_block_state(state, now)
        return components, state
