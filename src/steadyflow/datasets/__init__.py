"""Data that ships in packages or is drawn: nothing is downloaded."""

from .digits import digits
from .ink import ink

__all__ = ["digits", "ink"]
