"""The verbs: sample, invert, reconstruct, edit; and the ways to edit that keep something else than a latent."""

from .choosing import Choice
from .editing import Edit, Reconstruction, edit, reconstruct
from .flowing import FlowingEdit, flow_edit, rf_inversion
from .inversion import Inversion, choose_solver, invert
from .noise_maps import NoiseMaps, noise_maps
from .sampling import Sample, sample

__all__ = [
    "Choice",
    "Edit",
    "FlowingEdit",
    "Inversion",
    "NoiseMaps",
    "Reconstruction",
    "Sample",
    "choose_solver",
    "edit",
    "flow_edit",
    "invert",
    "noise_maps",
    "reconstruct",
    "rf_inversion",
    "sample",
]
