"""Schedulers for diffusers pipelines over any solver, their inverses, and models over whole pipelines."""

from .._internal.imports import needing as _needing

with _needing("diffusers", "diffusers", extra="diffusers", purpose="the use of diffusers pipelines"):
    import diffusers as _diffusers  # noqa: F401

from ._saved import load_pipeline
from ._scheduler_base import SteadyOutput
from .pipeline_model import Latents, PipelineModel, from_diffusers
from .schedulers import (
    SteadyFlowInverseScheduler,
    SteadyFlowScheduler,
    SteadyInverseScheduler,
    SteadyScheduler,
)
from .served import ServedModel

__all__ = [
    "Latents",
    "PipelineModel",
    "ServedModel",
    "SteadyFlowInverseScheduler",
    "SteadyFlowScheduler",
    "SteadyInverseScheduler",
    "SteadyOutput",
    "SteadyScheduler",
    "from_diffusers",
    "load_pipeline",
]
