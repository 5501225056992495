"""The trained models of the experiments, which `steadyflow.load` finds by the names that this package registers."""

from pathlib import Path

from steadyflow import models
from steadyflow.denoisers import Denoiser

WEIGHTS = Path(__file__).parent / "weights"


def load(name: str) -> Denoiser:
    """Load the model of a registered name, such as "faces"."""
    return models.load(str(WEIGHTS / f"{name}.safetensors"))
