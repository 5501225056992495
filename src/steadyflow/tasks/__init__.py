"""The verbs that go once over the path or there and back: sample, invert, reconstruct; and the choice of a solver."""

from ._options import Auto, Options
from .choosing import Choice, choose_solver
from .inversion import DecodeOptions, Inversion, invert
from .reconstruction import Reconstruction, reconstruct
from .sampling import sample

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
