"""Corrections: what may change the state of a run between its steps."""

from .anchor import Anchor
from .calibrated import Calibrated
from .escape import Escape, EscapeRecord
from .restart import Restart
from .scaling import MomentMatching, Relaxed, ScalingRecord
from .stein import Stein, SteinRecord

__all__ = [
    "Anchor",
    "Calibrated",
    "Escape",
    "EscapeRecord",
    "MomentMatching",
    "Relaxed",
    "Restart",
    "ScalingRecord",
    "Stein",
    "SteinRecord",
]
