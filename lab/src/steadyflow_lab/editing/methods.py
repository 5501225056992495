"""The solvers that are compared, by one notation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steadyflow import solvers
from steadyflow.metrics.statistics import Estimate, average, wilson
from steadyflow.solvers.base import Solver

Method = tuple[str, dict[str, Any]]
"""A solver's name and its options."""

AUTO: dict[str, Any] = {"coordinates": "flow", "coupling": "auto"}
"""The coupling of ours that follows the path."""
PLAIN: tuple[Method, ...] = (("ddim", {}), ("rk4", {}))
NEAR: tuple[Method, ...] = (("ees25", {}), ("ees27", {}))
"""What the paper proposes."""
PUBLISHED: tuple[Method, ...] = (
    ("alf", {}),
    ("belm", {}),
    ("bdia", {}),
    ("edict", {}),
    ("reversible-heun", {}),
    ("rex-euler", {}),
    ("rex-midpoint", {}),
    ("rex-rk4", {}),
)
"""Exactly reversible, with their published couplings."""
OURS: tuple[Method, ...] = (("rex-midpoint", AUTO),)
METHODS = (*PLAIN, *NEAR, *PUBLISHED, *OURS)
GUIDANCES = (1.0, 3.0, 7.5)


def label(method: Method) -> str:
    """Name a method in words."""
    name, options = method
    if options == AUTO:
        return f"{name}, flow, auto"
    return name + "".join(
        f", {key} {value:g}" if isinstance(value, float) else f", {value}" for key, value in options.items()
    )


def solver_of(method: Method) -> Solver[Any]:
    """Make a method's solver."""
    return solvers.get(method[0], **method[1])


def exact(method: Method) -> bool:
    """Whether a method is exactly reversible."""
    return solver_of(method).properties.inverse == "exact"


def mean(values: Sequence[float] | Tensor) -> Estimate:
    """Give a mean with its bootstrap interval."""
    return average(torch.as_tensor(values, dtype=torch.float64))


def median(values: Sequence[float] | Tensor, resamples: int = 2000) -> Estimate:
    """Give a median with its bootstrap interval; infinite numbers are allowed."""
    x = torch.as_tensor(values, dtype=torch.float64)
    rows = torch.randint(len(x), (resamples, len(x)), generator=torch.Generator().manual_seed(0))
    drawn = x[rows].median(1).values.sort().values
    return Estimate(x.median().item(), drawn[int(0.025 * resamples)].item(), drawn[int(0.975 * resamples)].item())


def ratio(values: Tensor, others: Tensor) -> Estimate:
    """Give the geometric mean of the ratios of pairs of positive numbers, with its bootstrap interval."""
    logs = (values.double().clamp(1e-300, 1e30) / others.double().clamp(1e-300, 1e30)).log()
    e = average(logs)
    return Estimate(math.exp(e.value), math.exp(e.low), math.exp(e.high))


def paired_rates(mine: Sequence[bool], theirs: Sequence[bool], level: float = 0.95) -> Estimate:
    """Give the difference of two rates on the same pictures, by Wilson's intervals of what only one of them hits.

    The two are put together by the squares of their distances (Newcombe 1998), so that the interval has a width where
    no picture differs.
    """
    n = len(mine)
    only = wilson(sum(a and not b for a, b in zip(mine, theirs, strict=True)), n, level)
    other = wilson(sum(b and not a for a, b in zip(mine, theirs, strict=True)), n, level)
    value = only.value - other.value
    low = value - math.hypot(only.value - only.low, other.high - other.value)
    return Estimate(value, low, value + math.hypot(only.high - only.value, other.value - other.low))
