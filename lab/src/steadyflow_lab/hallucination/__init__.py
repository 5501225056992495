"""The experiments of arXiv 2605.06831, one function a figure, and the comparison of remedies."""

from .figures import FIGURES
from .findings import Finding
from .runner import run_figures

__all__ = ["FIGURES", "Finding", "run_figures"]
