"""The verbs that go once over the path or there and back: sample, invert, reconstruct; and the choice of a solver."""

from ._options import Auto, Options
from .choose_solver import Choice, choose_solver
from .invert import DecodeOptions, Inversion, invert
from .reconstruct import Reconstruction, reconstruct
from .sample import sample

__all__ = [
    "Auto",
    "Choice",
    "DecodeOptions",
    "Inversion",
    "Options",
    "Reconstruction",
    "choose_solver",
    "invert",
    "reconstruct",
    "sample",
]
