"""The experiments of arXiv 2605.16399: what edits by exactly and by nearly reversible solvers keep and change."""

from .figures import PAPER

__all__ = ["PAPER"]
