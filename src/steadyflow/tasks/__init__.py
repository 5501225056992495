"""The verbs that go once over the path or there and back: sample, invert, reconstruct; and the choice of a solver and
of steps."""

from ._options import Auto, Options
from .choosing import Choice, choose_solver
from .inversion import DecodeOptions, Inversion, invert
from .placing import gits
from .recommended import recommended
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
    "gits",
    "invert",
    "recommended",
    "reconstruct",
    "sample",
]
