"""Small networks, their training, and the bundled trained weights."""

from .bundled import load, names, save

__all__ = ["load", "names", "save"]
