"""What goes into diffusers pipelines: schedulers over any solver, their inverses, and models over whole pipelines."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  # looked for where saved pipelines load

from .adapters.pipelines import PipelineModel, from_diffusers
from .adapters.schedulers import (
    SteadyFlowInverseScheduler,
    SteadyFlowScheduler,
    SteadyInverseScheduler,
    SteadyScheduler,
)

__all__ = [
    "PipelineModel",
    "SteadyFlowInverseScheduler",
    "SteadyFlowScheduler",
    "SteadyInverseScheduler",
    "SteadyScheduler",
    "from_diffusers",
]
