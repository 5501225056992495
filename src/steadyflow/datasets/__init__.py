"""Data that ships in packages: nothing is downloaded."""

from .digits import digits

__all__ = ["digits"]
