"""Data sets of the experiments, drawn or from what ships in packages: nothing is downloaded."""

from steadyflow.datasets import digits

from .faces import faces
from .triangles import triangles

__all__ = ["digits", "faces", "triangles"]
