"""The verbs: sample, invert, reconstruct, edit."""

from .editing import Edit, Reconstruction, edit, reconstruct
from .inversion import Inversion, invert
from .sampling import Sample, sample

__all__ = ["Edit", "Inversion", "Reconstruction", "Sample", "edit", "invert", "reconstruct", "sample"]
