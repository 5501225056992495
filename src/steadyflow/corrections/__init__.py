"""Corrections: what may change the state of a run between its steps."""

from .anchor import Anchor
from .escape import Escape, EscapeRecord
from .restart import Restart
from .scaling import MomentMatching, Relaxed
from .stein import Stein, SteinRecord

__all__ = ["Anchor", "Escape", "EscapeRecord", "MomentMatching", "Relaxed", "Restart", "Stein", "SteinRecord"]
