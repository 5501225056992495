"""What parts of a run say of how they were made, and figures over parts that need not be in memory together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .._integrate import Solution
from .job import Part


def made(found: Solution, **facts: Any) -> dict[str, str]:
    """The texts of a part: how a solution was made, with some of the facts given otherwise."""
    told = {"solver": found.solver.name, "steps": found.steps, "nfe": found.nfe, **facts}
    return {"made": json.dumps(told)}


def facts_of(part: Part) -> dict[str, Any]:
    """What `made` wrote about a part."""
    return json.loads(part.metadata["made"])


def moments(batches: Iterable[Tensor]) -> dict[str, float]:
    """Mean, standard deviation and largest |x| over batches that need not be in memory together."""
    count, largest = 0, 0.0
    sums: list[float] = []
    squares: list[float] = []
    for x in batches:
        values = x.double().flatten(1)
        count, largest = count + x.numel(), max(largest, values.abs().max().item())
        sums += values.sum(1).tolist()  # one per sample, so that their exact sum is the same however they are cut up
        squares += values.square().sum(1).tolist()
    mean = math.fsum(sums) / count
    return {"mean": mean, "std": max(math.fsum(squares) / count - mean**2, 0.0) ** 0.5, "max |x|": largest}
