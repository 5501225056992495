"""Bisection, for all that looks for an edge."""

from collections.abc import Callable


def last_where(holds: Callable[[float], bool], low: float, high: float, rounds: int = 200) -> float:
    """Where a condition that holds at `low` and not at `high` ceases to: halved `rounds` times, or as far as floats go.

    The end at which it was last seen to hold.
    """
    for _ in range(rounds):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
