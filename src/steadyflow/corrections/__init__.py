"""What may change a state between steps."""

from ..tasks.anchor import Anchor
from .escape import Escape
from .restart import Restart
from .stein import MomentMatching, Relaxed, Stein, edm_scalings, shift_bound

__all__ = ["Anchor", "Escape", "MomentMatching", "Relaxed", "Restart", "Stein", "edm_scalings", "shift_bound"]
