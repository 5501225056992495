"""The experiments of arXiv 2506.18290: what inaccurate reconstruction has to do with instability."""

from .figures import PAPER

__all__ = ["PAPER"]
