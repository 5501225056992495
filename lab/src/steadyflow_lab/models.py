"""The trained models of the experiments, which `steadyflow.load` finds by the names that this package registers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from steadyflow import models
from steadyflow.denoisers import Denoiser

if TYPE_CHECKING:
    from steadyflow.diffusers import PipelineModel

WEIGHTS = Path(__file__).parent / "weights"


def load(name: str) -> Denoiser:
    """Load the model of a registered name, such as "faces"."""
    return models.load(str(WEIGHTS / f"{name}.safetensors"))


def load_scenes(name: str = "scenes") -> PipelineModel:
    """Load the pipeline over photographs as a model.

    Its third text encoder is not there, for which the pipeline appends zeros to every prompt, 256 by default; the model
    was trained with one as well, and is asked with one here, at a quarter of the cost.

    Args:
        name: The registered name.
    """
    from steadyflow.diffusers import load_pipeline

    return cast("PipelineModel", load_pipeline(WEIGHTS / name, max_sequence_length=1))
