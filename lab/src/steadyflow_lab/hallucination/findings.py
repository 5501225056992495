"""What an experiment gives: its numbers beside the paper's claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from steadyflow.metrics.statistics import Estimate

from ..theory.interpolation import INVALID
from .drawing import Outcome


@dataclass(frozen=True)
class Size:
    """How much of an experiment to do."""

    n: int = 100_000
    """Samples of DDIM and of short runs."""
    long: int = 100_000
    """Samples of runs of a thousand evaluations."""
    images: int = 1000


FULL, QUICK = Size(), Size(4000, 2000, 64)


@dataclass(frozen=True)
class Curve:
    """A line of a picture, with a band."""

    label: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None


@dataclass(frozen=True)
class Finding:
    """What an experiment gave."""

    figure: str
    title: str
    claim: str
    """What the paper says."""
    holds: bool | None
    """Whether that holds here; None where the figure makes no claim that a number decides."""
    heads: list[str]
    rows: list[list[str]]
    note: str = ""
    curves: list[Curve] = field(default_factory=list)
    axes: tuple[str, str] = ("", "")


RATE = ["sampler", "interpolated", "invalid"]
"""The headings of a table of rates."""


def percent(e: Estimate) -> str:
    """Write a rate with its interval, in per cent."""
    return f"{e.value:.3%} [{e.low:.3%}, {e.high:.3%}]"


def invalid(outcome: Outcome) -> str:
    """Write the share of samples that are left out of the rate."""
    return f"{(outcome.classes.kind == INVALID).double().mean():.3%}"


def mean_rate(values: list[Estimate]) -> float:
    """Give the mean of rates over equal numbers of starts."""
    return math.fsum(e.value for e in values) / len(values)


def curve(label: str, x: Sequence[float], values: list[Estimate]) -> Curve:
    """Make a line of rates with their intervals."""
    low, high = [e.low for e in values], [e.high for e in values]
    return Curve(label, [float(v) for v in x], [e.value for e in values], low, high)
