"""Data that ships in packages: nothing is downloaded."""

from .digits import digits
from .faces import faces

__all__ = ["digits", "faces"]
