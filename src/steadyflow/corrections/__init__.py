"""Corrections: what may change the state of a run between its steps, or its model before it begins."""

from .anchor import Anchor
from .calibrated import Calibrated
from .escape import Escape, EscapeRecord
from .guided import PosteriorDenoiser
from .posterior import Posterior
from .restart import Restart
from .scaling import MomentMatching, Relaxed, ScalingRecord
from .stein import Stein, SteinRecord

__all__ = [
    "Anchor",
    "Calibrated",
    "Escape",
    "EscapeRecord",
    "MomentMatching",
    "Posterior",
    "PosteriorDenoiser",
    "Relaxed",
    "Restart",
    "ScalingRecord",
    "Stein",
    "SteinRecord",
]
