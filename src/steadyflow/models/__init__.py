"""Small networks, their training, and the bundled trained weights."""

from .bundled import load, names, pipeline_folder, save

__all__ = ["load", "names", "pipeline_folder", "save"]
