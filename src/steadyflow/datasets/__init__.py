"""Data that ships in packages or is drawn: nothing is downloaded."""

from .digits import digits
from .faces import faces
from .ink import ink
from .triangles import triangles

__all__ = ["digits", "faces", "ink", "triangles"]
