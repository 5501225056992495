"""Nodes that sample: a SAMPLER of any solver, one of a tuned solver with its SIGMAS, and SIGMAS of any grid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from steadyflow import Grid, InputError, Solver, grids, sample_steady
from steadyflow.solvers import Tuned, registry

from . import host
from .paths import levels_of

CATEGORY = "steadyflow"
FOLDER = "steadyflow"
"""The folder of tuned solvers among ComfyUI's models."""
DEFAULT_SOLVER = "ees25"

host.folders.add_model_folder_path(FOLDER, os.path.join(host.folders.models_dir, FOLDER))


class SteadySampler(host.samplers.KSAMPLER):
    """A solver as a sampler of ComfyUI, which the other nodes know by `solver`."""

    def __init__(self, solver: Solver[Any]):
        super().__init__(sample_steady, extra_options={"solver": solver})
        self.solver = solver


def solver_of(sampler: object) -> Solver[Any]:
    """The solver of a SAMPLER.

    Raises:
        InputError: It is another program's.
    """
    if not isinstance(sampler, SteadySampler):
        raise InputError(
            f"sampler: got a {type(sampler).__name__}, expected one of the nodes Sampler (steadyflow) or Tuned Sampler "
            "(steadyflow); ComfyUI's own cannot run backwards"
        )
    return sampler.solver


class Sampler:
    """A SAMPLER of any solver; falling sigmas sample, rising ones invert."""

    CATEGORY = CATEGORY
    DESCRIPTION = "A solver of steadyflow as a sampler, for SamplerCustom, SamplerCustomAdvanced and the other nodes."
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        """Return the inputs, as ComfyUI asks for them."""
        about = "Options of the solver, such as coordinates=noise or eta=0.5; empty for its defaults."
        return {
            "required": {
                "solver": (registry.built_in(), {"default": DEFAULT_SOLVER}),
                "options": ("STRING", {"default": "", "tooltip": about}),
            }
        }

    def make(self, solver: str, options: str) -> tuple[SteadySampler]:
        """Return the sampler.

        Args:
            solver: A solver's name.
            options: Its options as text.
        """
        return (SteadySampler(named_solver(solver, options)),)


def named_solver(solver: str, options: str) -> Solver[Any]:
    """The solver of a name with options as text."""
    name, given = registry.parse(f"{solver}:{options}" if options.strip() else solver)
    return registry.get(name, **given)


class TunedSampler:
    """A SAMPLER that was fitted to a model, with the SIGMAS that belong to it."""

    CATEGORY = CATEGORY
    DESCRIPTION = "A solver that `steadyflow tune` fitted, from models/steadyflow, with the sigmas it was fitted for."
    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        """Return the inputs, as ComfyUI asks for them."""
        files = [name for name in host.folders.get_filename_list(FOLDER) if name.endswith(".json")]
        about = "Model evaluations of a run; the file lists those for which it was fitted."
        return {
            "required": {
                "model": ("MODEL",),
                "file": (files,),
                "calls": ("INT", {"default": 8, "min": 1, "max": 1000, "tooltip": about}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, file: str, **others: Any) -> float:  # noqa: N802  # ComfyUI's name
        """Return what changes with the file."""
        return Path(host.folders.get_full_path_or_raise(FOLDER, file)).stat().st_mtime

    def make(self, model: Any, file: str, calls: int) -> tuple[SteadySampler, Tensor]:
        """Return the sampler and its sigmas.

        Args:
            model: The MODEL, whose kind of noise the sigmas are for.
            file: A tuned solver's file in models/steadyflow.
            calls: The number of model evaluations.
        """
        solver = registry.get(host.folders.get_full_path_or_raise(FOLDER, file))
        assert isinstance(solver, Tuned)  # files hold no others
        chosen = solver.only(calls)
        sigmas = chosen.sigmas(calls, flow=levels_of(model).flow)
        return SteadySampler(chosen), torch.tensor(sigmas, dtype=torch.float32)


class Sigmas:
    """SIGMAS of any grid, between the ends of a model's own noise levels."""

    CATEGORY = CATEGORY
    DESCRIPTION = "The noise levels of a grid of steadyflow, for any sampler."
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "make"
    ENDS: ClassVar = ["zero", "smallest level"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        """Return the inputs, as ComfyUI asks for them."""
        share = "How far up the model's times to begin; the number of steps stays. 1 begins at pure noise."
        return {
            "required": {
                "model": ("MODEL",),
                "grid": (grids.names(), {"default": "quadratic"}),
                "options": ("STRING", {"default": "", "tooltip": "Options of the grid, such as rho=5."}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01, "tooltip": share}),
                "end": (cls.ENDS, {"default": "zero", "tooltip": "Where the last step leads."}),
            }
        }

    def make(self, model: Any, grid: str, options: str, steps: int, strength: float, end: str) -> tuple[Tensor]:
        """Return the sigmas, steps + 1 of them.

        Args:
            model: The MODEL whose levels they lie between.
            grid: The name of a grid.
            options: Its options as text.
            steps: The number of steps.
            strength: How far up the model's times to begin.
            end: "zero", or the model's "smallest level".
        """
        if end not in self.ENDS:
            raise InputError(f"end: got {end!r}, expected {' or '.join(map(repr, self.ENDS))}")
        levels, name = levels_of(model), f"{grid}:{options}" if options.strip() else grid
        clock = levels.clock
        top = grids.start_time(clock, strength)
        made: Grid = grids.make(name, clock, steps, t_max=top, clean=end == "zero")
        return (levels.sigmas(made),)
