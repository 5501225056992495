"""What may change a state between steps."""

from .anchor import Anchor

__all__ = ["Anchor"]
