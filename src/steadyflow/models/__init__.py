"""Small networks, their training, and the trained models that ship with the library."""

from .bundled import load, names, pipeline_folder, save

__all__ = ["load", "names", "pipeline_folder", "save"]
