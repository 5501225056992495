"""Run the figures of a paper one after the other; a folder holds what is done, so that the same call goes on.

A paper is a table of figures, each a function from a `Bench` to a `Finding`. A bench says how much to do and where: its
engine counts what has been done for the progress bar, and its folder keeps the cells of a long figure as they come.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from steadyflow.errors import UnknownNameError
from steadyflow.runs.engines import Engine, InProcess

from .cached_results import cached_results, stored
from .findings import Finding, Size

Item = TypeVar("Item")
Result = TypeVar("Result")


class Progress(Protocol):
    """What is told how far a study has come."""

    def figure(self, name: str) -> None:
        """A figure begins."""
        ...

    def expect(self, units: int) -> None:
        """So many more pieces of work of the figure are known."""
        ...

    def advance(self) -> None:
        """One of them is done."""
        ...


class _Counted(Engine):
    """An engine that tells a progress what it does."""

    def __init__(self, engine: Engine, progress: Progress):
        self._engine, self._progress = engine, progress

    def run(self, job, prepared, ranges):
        return self._engine.run(job, prepared, ranges)

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        items = list(items)
        self._progress.expect(len(items))
        for done in self._engine.each(function, items):
            self._progress.advance()
            yield done


@dataclass(frozen=True)
class Bench:
    """How much of a figure to do, and where."""

    size: Size
    engine: Engine = dataclasses.field(default_factory=InProcess)
    folder: Path | None = None
    """Where the cells of a long figure are kept as they come."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Give function(item) for every item, in their order; the engine may spread them."""
        return list(self.engine.map(function, items))

    def cells(
        self,
        name: str,
        function: Callable[[Item], Result],
        items: Sequence[tuple[str, Item]],
        read: Callable[[Any], Result],
        **settings: Any,
    ) -> list[Result]:
        """Give function(item) for each cell (its name, item); each is kept as it comes, and found again by a rerun.

        name: of the figure. read: a result, a dataclass or a list of them, from its JSON. settings: what else decides
        the results.
        """
        form = "-quick" if self.size.quick else ""
        named = [(f"cells/{name}{form}-{cell}", item) for cell, item in items]
        found = dict(cached_results(self.engine, function, named, self.folder, {**_stamp(self.size), **settings}, read))
        return [found[k] for k in range(len(items))]


@dataclass(frozen=True)
class Paper:
    """A paper, and the figures that hold its claims."""

    name: str
    """As in `steadyflow lab run NAME`."""
    arxiv: str
    figures: dict[str, Callable[[Bench], Finding]]
    full: Size
    quick: Size
    page: str
    """Its page in docs/papers."""

    def size(self, quick: bool = False) -> Size:
        """Give how much is done."""
        return self.quick if quick else self.full


def run_figures(
    paper: Paper,
    chosen: Sequence[str] = (),
    *,
    quick: bool = False,
    folder: str | Path | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Make the findings of the chosen figures of a paper, of all by default.

    quick: the small form. folder: where each finding is written as JSON once it is there, and read again instead of
    computed, if it is of the same size and was made by the same code and models. engine: where the pieces of a figure
    are done; in this process by default.

    Raises `UnknownNameError` for a figure, `CorruptFileError` for a damaged file in the folder.
    """
    for name in chosen:
        if name not in paper.figures:
            raise UnknownNameError("figure", name, paper.figures)
    size, place, names = paper.size(quick), engine or InProcess(), list(chosen or paper.figures)
    place = place if progress is None else _Counted(place, progress)
    bench = Bench(size, place, None if folder is None else Path(folder))

    def one(name: str) -> Finding:
        if progress is not None:
            progress.figure(name)
        return paper.figures[name](bench)

    cells = [(result_name(paper, name, quick), name) for name in names]
    found = dict(cached_results(InProcess(), one, cells, folder, _stamp(size), Finding.read))
    return [found[k] for k in range(len(names))]


def result_name(paper: Paper, figure: str, quick: bool = False) -> str:
    """Give the name of a figure's file, without its ending."""
    return f"{paper.name}-{figure}{'-quick' if quick else ''}"


def read_findings(paper: Paper, folder: str | Path) -> dict[str, Finding]:
    """Read the findings of the full form that a folder holds, of this size, by figure; made by whatever code."""
    found = {}
    for figure in paper.figures:
        finding = stored(Path(folder) / f"{result_name(paper, figure)}.json", _stamp(paper.full), Finding.read)
        if finding is not None:
            found[figure] = finding
    return found


def _stamp(size: Size) -> dict[str, Any]:
    return {"size": dataclasses.asdict(size)}
