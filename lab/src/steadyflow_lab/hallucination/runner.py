"""Run experiments one after the other; a folder holds what is done, so that the same call goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from steadyflow._version import __version__
from steadyflow.errors import UnknownNameError
from steadyflow.runs.engines import Engine

from ..cached_results import cached_results
from .drawing import HERE
from .figures import ALONE, FIGURES
from .findings import FULL, QUICK, Curve, Finding, Size


def run_figures(
    chosen: Sequence[str] = (),
    *,
    quick: bool = False,
    folder: str | Path | None = None,
    engine: Engine | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Make the findings of the chosen figures, of all by default.

    quick: reduced numbers of samples. folder: where each finding is written as JSON once it is there, and read again
    instead of computed, if it is of the same size and version. engine: where samples are drawn, in batches by their
    index, or figures of few samples are made; in this process by default. progress: called with each figure.

    Raises `UnknownNameError` for a figure, `CorruptFileError` for a damaged file in the folder.
    """
    for name in chosen:
        if name not in FIGURES:
            raise UnknownNameError("figure", name, FIGURES)
    size, names = QUICK if quick else FULL, list(chosen or FIGURES)
    stamp = {"version": __version__, **dataclasses.asdict(size)}
    cells = [(f"hallucination-{name}{'-quick' if quick else ''}", name) for name in names]
    place, found = engine or HERE, {}
    whole, cut = ([cell for cell in cells if (cell[1] in ALONE) == alone] for alone in (True, False))
    for part, over, within in ((whole, place, ()), (cut, HERE, (place,))):
        for k, finding in cached_results(over, partial(_figure, size, within), part, folder, stamp, _finding):
            found[part[k][1]] = finding
            if progress is not None:
                progress(part[k][1])
    return [found[name] for name in names]


def _figure(size: Size, within: tuple[Engine, ...], name: str) -> Finding:
    return FIGURES[name](size, *within)


def draw(finding: Finding, figure: Any) -> None:
    """Draw the finding's curves with their intervals on a matplotlib figure."""
    axes = figure.subplots()
    for line in finding.curves:
        axes.plot(line.x, line.y, "o-", ms=3, label=line.label)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, alpha=0.2)
    axes.set(xlabel=finding.axes[0], ylabel=finding.axes[1], title=finding.title)
    axes.legend(frameon=False)


def _finding(fields: dict[str, Any]) -> Finding:
    """Make a finding from its JSON."""
    curves, axes = [Curve(**line) for line in fields["curves"]], tuple(fields["axes"])
    return Finding(**{**fields, "curves": curves, "axes": axes})
