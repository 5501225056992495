"""Small numerics: bisection for the edge of a condition, ranks, the middle of what was drawn."""

from collections.abc import Callable

import torch
from torch import Tensor


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


def ranks(x: Tensor) -> Tensor:
    """Rank numbers from 1, ties sharing their mean.

    Args:
        x: The numbers, shape (n,).

    Returns:
        The ranks in float64, shape (n,).
    """
    _, place, counts = x.double().unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1.0) / 2.0)[place]


def middle(drawn: Tensor, level: float) -> tuple[float, float]:
    """Find the ends of the middle share of what was drawn.

    Args:
        drawn: The numbers, shape (n,), float64.
        level: The share.
    """
    tail = (1.0 - level) / 2.0
    low, high = drawn.quantile(torch.tensor([tail, 1.0 - tail], dtype=torch.float64, device=drawn.device)).tolist()
    return low, high
