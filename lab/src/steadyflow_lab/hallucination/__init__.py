"""The experiments of arXiv 2605.06831, one function a figure, and the comparison of remedies."""

from .figures import PAPER

__all__ = ["PAPER"]
