"""Schedulers for diffusers pipelines over any solver, their inverses, and models over whole pipelines."""

from ..errors import MissingExtraError

try:
    import diffusers as _diffusers  # noqa: F401
except ImportError as error:
    raise MissingExtraError("diffusers", "diffusers", "schedulers and models for diffusers pipelines") from error

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
