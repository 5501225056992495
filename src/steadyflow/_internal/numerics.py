"""Root finding: bisection for the edge of a condition."""

from collections.abc import Callable


def last_where(holds: Callable[[float], bool], low: float, high: float, rounds: int = 200) -> float:
    """Find where a condition that holds at one end of an interval and not at the other ceases to hold.

    Args:
        holds: The condition.
        low: The end at which it holds.
        high: The end at which it does not, above or below the other.
        rounds: How often to halve the interval; it ends earlier where floats can be halved no further.

    Returns:
        The last number at which it was found to hold.
    """
    for _ in range(rounds):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
