"""What Stein corrections are worth (arXiv 2606.07835): the coefficient, its bound, its cost, and few-step samples."""

from .figures import PAPER

__all__ = ["PAPER"]
