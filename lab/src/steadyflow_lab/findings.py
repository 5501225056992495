"""What an experiment gives: its numbers, and each claim of the paper with a verdict on it.

A verdict is decided by intervals, from the paper's own definition at the paper's own parameters, and could have come
out the other way. Where a claim holds only under conditions, the verdict is "holds in part" and `here` names them;
where a statement is true but bounds nothing at the paper's parameters, it "says nothing".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from steadyflow.metrics.statistics import Estimate

HOLDS, PARTLY, FAILS, EMPTY, OPEN = "holds", "holds in part", "does not hold", "says nothing", "not decided"
VERDICTS = (HOLDS, PARTLY, FAILS, EMPTY, OPEN)


@dataclass(frozen=True)
class Size:
    """How much of an experiment to do, and from which seed."""

    name: str
    n: int = 100_000
    """Samples of DDIM and of short runs."""
    long: int = 100_000
    """Samples of runs of a thousand evaluations."""
    images: int = 400
    seed: int = 0

    @property
    def quick(self) -> bool:
        """Whether this is the form that is done in a minute."""
        return self.name == "quick"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and what was found."""

    label: str
    """Its number in the paper, such as "T4.2" or "figure 5"."""
    says: str
    paper: str
    """The paper's own number, or what it says instead of one."""
    here: str
    """Ours, with its interval."""
    verdict: str

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict: got {self.verdict!r}, expected one of {VERDICTS}")


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
    claims: list[Claim]
    """What the paper, or this project, claims about it; empty for an experiment that only measures."""
    heads: list[str]
    rows: list[list[str]]
    note: str = ""
    curves: list[Curve] = field(default_factory=list)
    axes: tuple[str, str] = ("", "")
    scales: tuple[str, str] = ("linear", "linear")

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(claim.verdict == HOLDS for claim in self.claims)

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Finding:
        """Make a finding from its JSON."""
        made = {
            "claims": [Claim(**claim) for claim in fields["claims"]],
            "curves": [Curve(**line) for line in fields["curves"]],
            "axes": tuple(fields["axes"]),
            "scales": tuple(fields["scales"]),
        }
        return cls(**{**fields, **made})


def verdict(holds: bool, otherwise: str = FAILS) -> str:
    """Give the verdict on a claim that was decided by a comparison."""
    return HOLDS if holds else otherwise


def decide(inside: Iterable[bool], outside: Iterable[bool]) -> str:
    """Give the verdict on a claim about several cases, each decided by its interval.

    inside: whether a case's interval lies within what the claim says; outside: whether it lies without. It holds if all
    are inside, fails if all are outside, holds in part if there are both, and is not decided otherwise.
    """
    yes, no = list(inside), list(outside)
    if all(yes):
        return HOLDS
    if all(no):
        return FAILS
    return PARTLY if any(yes) and any(no) else OPEN


RATE = ["sampler", "interpolated", "invalid"]
"""The headings of a table of rates."""


def percent(e: Estimate) -> str:
    """Write a rate with its interval, in per cent."""
    return f"{e.value:.3%} [{e.low:.3%}, {e.high:.3%}]"


def short(e: Estimate) -> str:
    """Write a rate with its interval, in per cent to about two digits."""
    digits = 0 if e.value >= 0.1 else 1 if e.value >= 0.01 else 3
    return f"{e.value:.{digits}%} [{e.low:.{digits}%}, {e.high:.{digits}%}]"


def shown(e: Estimate, how: str = "{:.2f}") -> str:
    """Write an estimate with its interval."""
    return f"{how.format(e.value)} [{how.format(e.low)}, {how.format(e.high)}]"


def curve(label: str, x: Sequence[float], values: Sequence[Estimate]) -> Curve:
    """Make a line of rates with their intervals."""
    low, high = [e.low for e in values], [e.high for e in values]
    return Curve(label, [float(v) for v in x], [e.value for e in values], low, high)


def draw(finding: Finding, figure: Any) -> None:
    """Draw the finding's curves with their intervals on a matplotlib figure."""
    axes = figure.subplots()
    for line in finding.curves:
        if line.label.startswith("_"):  # what the others are seen against; it has no entry in the legend
            axes.plot(line.x, line.y, "-", lw=0.8, color="0.8", zorder=0)
            continue
        axes.plot(line.x, line.y, "o-", ms=3, label=line.label)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, alpha=0.2)
    axes.set(xlabel=finding.axes[0], ylabel=finding.axes[1], title=finding.title)
    axes.set(xscale=finding.scales[0], yscale=finding.scales[1])
    axes.legend(frameon=False)
