"""What may change a state between steps."""

from .anchor import Anchor
from .escape import Escape
from .restart import Restart

__all__ = ["Anchor", "Escape", "Restart"]
