"""Runs experiments one after the other; a folder keeps what is done, so that the same call goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ... import files
from ..._version import __version__
from ...errors import CorruptFileError, UnknownNameError
from .figures import FIGURES
from .findings import FULL, QUICK, Curve, Finding


def run_figures(
    chosen: Sequence[str] = (),
    *,
    quick: bool = False,
    folder: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """The findings of the chosen figures, of all by default.

    quick: reduced numbers of samples. folder: where each finding is kept as JSON once it is there, and read again
    instead of computed, if it is of the same size and version. progress: told the figure that begins.

    Raises `UnknownNameError` for a figure, `CorruptFileError` for a damaged file in the folder.
    """
    for name in chosen:
        if name not in FIGURES:
            raise UnknownNameError("figure", name, FIGURES)
    size, found = QUICK if quick else FULL, []
    stamp = {"version": __version__, **dataclasses.asdict(size)}
    for name in chosen or FIGURES:
        if progress is not None:
            progress(name)
        path = None if folder is None else Path(folder) / f"hallucination-{name}{'-quick' if quick else ''}.json"
        finding = None if path is None else _kept(path, stamp)
        if finding is None:
            finding = FIGURES[name](size)
            if path is not None:
                _keep(path, stamp, finding)
        found.append(finding)
    return found


def draw(finding: Finding, figure: Any) -> None:
    """The finding's curves with their intervals."""
    axes = figure.subplots()
    for line in finding.curves:
        axes.plot(line.x, line.y, "o-", ms=3, label=line.label)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, alpha=0.2)
    axes.set(xlabel=finding.axes[0], ylabel=finding.axes[1], title=finding.title)
    axes.legend(frameon=False)


def _kept(path: Path, stamp: dict[str, Any]) -> Finding | None:
    """The finding in a file, or None where there is none of this size and version."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["stamp"] != stamp:
            return None
        fields = data["finding"]
        fields["curves"] = [Curve(**line) for line in fields["curves"]]
        fields["axes"] = tuple(fields["axes"])
        return Finding(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{path}: not a finding of this experiment ({error}); delete it to run it anew"
        ) from error


def _keep(path: Path, stamp: dict[str, Any], finding: Finding) -> None:
    """Write a finding whole or not at all."""
    with files.replacing(path) as part:
        part.write_text(
            json.dumps({"stamp": stamp, "finding": dataclasses.asdict(finding)}, indent=2), encoding="utf-8"
        )
