"""What parts of a run say of how they were made, and figures over parts that need not be in memory together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .._integrate import Solution
from .._internal import strict_json
from .job import Part


def made(found: Solution, **facts: Any) -> dict[str, str]:
    """The texts of a part: how a solution was made, with some of the facts given otherwise."""
    told = {"solver": found.solver.name, "steps": found.steps, "nfe": found.nfe, **facts}
    return {"made": strict_json.dumps(told)}


def facts_of(part: Part) -> dict[str, Any]:
    """What `made` wrote about a part."""
    return strict_json.loads(part.metadata["made"])


def moments(batches: Iterable[Tensor]) -> dict[str, float]:
    """Mean, standard deviation and largest |x| over batches that need not be in memory together."""
    count, largest, total, squares = 0, 0.0, ExactSum(), ExactSum()
    for x in batches:
        values = x.double().flatten(1)
        count, largest = count + x.numel(), max(largest, values.abs().max().item())
        total.add(values.sum(1).tolist())  # one per sample, so that the sum is the same however they are cut up
        squares.add(values.square().sum(1).tolist())
    mean = total.value / count
    return {"mean": mean, "std": max(squares.value / count - mean**2, 0.0) ** 0.5, "max |x|": largest}


class ExactSum:
    """A sum of numbers that come a few at a time, rounded once: the same whatever their order.

    What is kept is a few numbers whose exact sum it is (Shewchuk, Discrete & Computational Geometry 18, 1997).
    """

    def __init__(self):
        self._parts: list[float] = []

    def add(self, values: Iterable[float]) -> None:
        """Add numbers."""
        parts = self._parts
        for x in values:
            kept = 0
            for y in parts:
                if abs(x) < abs(y):
                    x, y = y, x
                high = x + y
                low = y - (high - x)
                if low:
                    parts[kept] = low
                    kept += 1
                x = high
            parts[kept:] = [x]

    @property
    def value(self) -> float:
        """The sum."""
        return math.fsum(self._parts)
