"""Data sets that ship in packages or are drawn at random; nothing is downloaded."""

from .digits import digits
from .ink import ink

__all__ = ["digits", "ink"]
