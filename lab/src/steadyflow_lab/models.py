"""The trained models of the experiments, which `steadyflow.load` finds by the names that this package registers."""

import dataclasses
from pathlib import Path
from typing import Any

from steadyflow import models
from steadyflow.denoisers import Denoiser

WEIGHTS = Path(__file__).parent / "weights"
CALLS: dict[str, dict[str, Any]] = {
    "scenes": {"max_sequence_length": 1},
    "moving": {"height": 32, "width": 32, "num_frames": 9},
}
"""Models that are diffusers pipelines, with the arguments of their calls that their files do not say.

The third text encoder of scenes is not there, for which the pipeline appends zeros to every prompt, 256 by default; the
model was trained with one as well, which costs a quarter.
"""


def load(name: str) -> Denoiser:
    """Load the model of a registered name, such as "faces"."""
    if name in CALLS:
        from steadyflow.diffusers import load_pipeline

        return dataclasses.replace(load_pipeline(WEIGHTS / name, **CALLS[name]), name=name)
    return models.load(str(WEIGHTS / f"{name}.safetensors"))
