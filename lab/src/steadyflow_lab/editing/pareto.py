"""Which way of editing changes what was asked for, and keeps the rest: all of them on scenes, at equal evaluations.

Each way (`ways`) edits the same held-out pictures (`scenes`) for the same number of evaluations of the network in all,
ways up and down and copies of the source together, the two branches of guidance as one. Success is what the judge
reads; the background's error is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from steadyflow.metrics.statistics import Estimate, average, wilson

from ..datasets.scenes import SIZES
from ..findings import EMPTY, FAILS, HOLDS, OPEN, PARTLY, Claim, Finding, curve, shown
from ..studies import Bench
from .methods import paired_rates
from .scenes import KINDS, SceneEdits, codec_error, looked_at, scene_task
from .ways import BUDGET, CHOICES, FEW, FEW_WAYS, INJECTED, QUICK, WAYS, Way, edit_scenes

TASK = 96
"""Pictures of the task, of which the first are edited."""
SCENES = 48
"""How many are edited in every way."""
TRIED = 24
"""How many layers and shares of the steps are tried on: pictures of another seed."""
CHUNK = 24
"""Pictures of a cell."""
GUIDANCES = (1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Row:
    """What one way gave at one guidance, of every picture."""

    way: str
    guidance: float
    seen: SceneEdits
    nfe: int

    def success(self, chosen: Sequence[int] | None = None) -> Estimate:
        """Give the rate of success with its interval, of some of the pictures."""
        hits = self.seen.done if chosen is None else [self.seen.done[k] for k in chosen]
        return wilson(sum(hits), len(hits))

    def background(self) -> Estimate:
        """Give the mean error of the background with its interval."""
        return average(torch.tensor(self.seen.background, dtype=torch.float64))

    def both(self, chosen: Sequence[int]) -> str:
        """Say what the success and the error of some of the pictures are."""
        errors = [self.seen.background[k] for k in chosen]
        return f"{self.success(chosen).value:.0%}, {sum(errors) / max(1, len(errors)):.3f}"


def choices(bench: Bench) -> Finding:
    """Try layers and shares of the steps on pictures that the comparison of the ways does not have."""
    tried, n = (CHOICES[::7], 2) if bench.size.quick else (CHOICES, TRIED)
    rows = study(replace(bench, size=replace(bench.size, seed=bench.size.seed + 100)), tried, (2.5,), n=n)
    ranked = sorted(rows, key=_score, reverse=True)
    cells = [
        [f"`{row.way}`", f"{row.guidance:g}", _percent(row.success()), shown(row.background(), "{:.3f}")]
        for row in ranked
    ]
    note = (
        f"{n} held-out scenes of another seed, {BUDGET} evaluations per edit, ees25; sorted by success minus ten times "
        "the error of the background."
    )
    title = "Layers and steps of injection, on scenes"
    return Finding("scenes-choices", title, [], ["way", "w", "success", "background"], cells, note)


def few(bench: Bench) -> Finding:
    """Compare solvers of plain inversion, a tuned one among them, where calls are few."""
    ways, guidances = (FEW_WAYS[-1:], (2.5,)) if bench.size.quick else (FEW_WAYS, GUIDANCES)
    n = 2 if bench.size.quick else SCENES
    rows = study(bench, ways, guidances, FEW, n)
    cells = [
        [f"`{row.way}`", f"{row.guidance:g}", _percent(row.success()), shown(row.background(), "{:.3f}"), str(row.nfe)]
        for row in rows
    ]
    by = {(row.way, row.guidance): row for row in rows}
    note = (
        f"{n} held-out scenes, {FEW} evaluations per edit in all; the tuned solver was fitted to round "
        "trips of other pictures (`scripts/tune_scenes.py`)."
    )
    heads = ["way", "w", "success", "background", "evaluations"]
    claims = [] if bench.size.quick else [_tuned(by)]
    return Finding("scenes-few", "Few evaluations, on scenes", claims, heads, cells, note)


@dataclass(frozen=True)
class Piece:
    """What is seen of a chunk of the pictures, and the evaluations of an edit."""

    seen: SceneEdits
    nfe: int


def piece(n: int, seed: int, budget: int, item: tuple[Way, float, int]) -> Piece:
    """Edit and judge a chunk of the pictures.

    Args:
        n: How many are edited in all, of `TASK`.
        seed: Of the task.
        budget: Evaluations of an edit in all.
        item: The way, the guidance, and the first picture of the chunk.
    """
    way, guidance, start = item
    edited, nfe = edit_scenes(way, guidance, TASK, seed, start, min(start + CHUNK, n), budget)
    return Piece(looked_at(scene_task(TASK, seed), edited, start), nfe)


def read_piece(fields: Any) -> Piece:
    """Make a piece from its JSON."""
    return Piece(SceneEdits(**fields["seen"]), int(fields["nfe"]))


def study(
    bench: Bench, ways: Sequence[Way], guidances: Sequence[float], budget: int = BUDGET, n: int = SCENES
) -> list[Row]:
    """Edit the pictures in every way at every guidance; each chunk is kept as it comes.

    Args:
        bench: Where the cells are kept, and the seed.
        ways: The ways.
        guidances: Towards the target.
        budget: Evaluations of an edit in all.
        n: How many pictures.
    """
    seed = bench.size.seed
    items = [(way, w, start) for start in range(0, n, CHUNK) for way in ways for w in guidances]
    cells = [(f"{_plain(way.label)}-{w:g}-{start:03d}", (way, w, start)) for way, w, start in items]
    found = bench.cells(f"editing-pareto-{budget}", partial(piece, n, seed, budget), cells, read_piece)
    parts: dict[tuple[str, float], list[Piece]] = {(way.label, w): [] for way in ways for w in guidances}
    for (way, w, _), one in zip(items, found, strict=True):
        parts[way.label, w].append(one)
    return [
        Row(label, w, _joined([part.seen for part in some]), max(part.nfe for part in some))
        for (label, w), some in parts.items()
    ]


def _plain(label: str) -> str:
    return label.replace(", ", "-").replace(" ", "-")


def _joined(parts: Sequence[SceneEdits]) -> SceneEdits:
    names = ("done", "asked", "background", "blown")
    return SceneEdits(*([value for part in parts for value in getattr(part, name)] for name in names))


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in both success and background, by falling success.

    Args:
        rows: The rows.
    """
    ranked = sorted(rows, key=lambda row: (-row.success().value, row.background().value))
    kept: list[Row] = []
    for row in ranked:
        if not kept or row.background().value < kept[-1].background().value:
            kept.append(row)
    return kept


def figure(bench: Bench) -> Finding:
    """Compare all ways of editing on scenes."""
    ways, guidances, n = (QUICK, (4.0,), 4) if bench.size.quick else (WAYS, GUIDANCES, SCENES)
    rows = study(bench, ways, guidances, n=n)
    task = scene_task(TASK, bench.size.seed)
    by = {(row.way, row.guidance): row for row in rows}
    best = {way.label: _best([by[way.label, w] for w in guidances]) for way in ways}
    leading = {(row.way, row.guidance) for row in front(rows)}
    chosen = {kind: [k for k, found in enumerate(task.kinds[:n]) if found == kind] for kind in KINDS}
    sides = task.pictures.size[:n].tolist()
    chosen |= {name: [k for k, side in enumerate(sides) if side == which] for which, name in enumerate(SIZES)}
    heads = ["way", "w", "success", "background", *chosen, "on the front at w ="]
    cells = []
    for label, row in sorted(best.items(), key=lambda one: _score(one[1]), reverse=True):
        ahead = [f"{w:g}" for w in guidances if (label, w) in leading]
        cells.append(
            [
                f"`{label}`",
                f"{row.guidance:g}",
                _percent(row.success()),
                shown(row.background(), "{:.3f}"),
                *(row.both(some) for some in chosen.values()),
                ", ".join(ahead) or "no",
            ]
        )
    floor = average(codec_error(task)[:n].double())
    note = (
        f"{n} held-out scenes; a quarter each is edited to another digit, another colour, another place, or no digit; "
        f"{BUDGET} evaluations per edit in all. Success: the judge reads the digit, the colour and the place that were "
        "asked for, or no digit. Background: root mean square error outside the pixels that the edit concerns, on a "
        f"scale from 0 to 1, relative to what the codec makes of the source (itself off by {shown(floor, '{:.3f}')}). "
        "Each way is shown at the guidance w with the largest success minus ten times the error of the background; the "
        "columns for kinds of edit and sizes of the digit give both."
    )
    claims = (
        []
        if bench.size.quick
        else [_near(by, guidances), _without(by, guidances), _aligned(by, guidances), _leads(rows)]
    )
    named = list(dict.fromkeys([*(row.way for row in front(rows)), "inversion, ddim", "inversion, ees25", "flow-edit"]))
    curves = [
        curve(
            way.label if way.label in named[:8] else f"_{way.label}",
            [by[way.label, w].background().value for w in guidances],
            [by[way.label, w].success() for w in guidances],
        )
        for way in ways
    ]
    axes = ("error of the background", "success")
    return Finding(
        "scenes", "Which way of editing, on scenes", claims, heads, cells, note, curves, axes, ("log", "linear")
    )


def _score(row: Row) -> float:
    return row.success().value - 10.0 * row.background().value


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=_score)


def _percent(e: Estimate) -> str:
    return f"{e.value:.0%} [{e.low:.0%}, {e.high:.0%}]"


def _paired(a: Row, b: Row) -> tuple[Estimate, Estimate]:
    """Success and background error of a less those of b, on the same pictures."""
    errors = torch.tensor(a.seen.background, dtype=torch.float64) - torch.tensor(b.seen.background, dtype=torch.float64)
    return paired_rates(a.seen.done, b.seen.done), average(errors)


def _compared(
    by: dict[tuple[str, float], Row], pairs: Sequence[tuple[str, str]], guidances: Sequence[float]
) -> tuple[list[str], int, int]:
    """What pairs of ways give, and in how many settings the first keeps more background, and less, for certain."""
    words, better, worse = [], 0, 0
    one = len({first for first, _ in pairs}) < len(pairs)  # one way against several, which are then named instead
    for first, second in pairs:
        for w in guidances:
            success, background = _paired(by[first, w], by[second, w])
            name = f"against {second}" if one else first
            words.append(f"{name} at {w:g}: {shown(success, '{:+.2f}')}, {shown(background, '{:+.4f}')}")
            better, worse = better + (background.high < 0.0), worse + (background.low > 0.0)
    return words, better, worse


def _near(by: dict[tuple[str, float], Row], guidances: Sequence[float]) -> Claim:
    """What near-reversibility is worth where features are injected: against an exact solver."""
    words, better, worse, total = _against(by, guidances, "rex-midpoint, auto")
    return Claim(
        "near-reversible, injected",
        "with injected features, a near-reversible solver (ees25) keeps as much of the background as an exact one at "
        "equal evaluations: no larger error in any setting",
        "not stated",
        f"larger error in {worse} of {total} settings, smaller in {better}. Paired differences in success and in error "
        f"of the background: {words}",
        HOLDS if not worse else FAILS if worse > total / 2 else PARTLY,
    )


def _tuned(by: dict[tuple[str, float], Row]) -> Claim:
    """Whether a tuned solver keeps more background than the best plain one at few calls."""
    others = [way.label for way in FEW_WAYS if way.label != "inversion, tuned"]
    pairs = [("inversion, tuned", other) for other in others]
    words, better, worse = _compared(by, pairs, GUIDANCES)
    total = len(pairs) * len(GUIDANCES)
    return Claim(
        "tuned, few calls",
        f"a solver tuned for round trips keeps more of the background than every plain one at {FEW} evaluations",
        "not stated",
        f"smaller error in {better} of {total} settings, larger in {worse}. Paired differences in success and in error "
        f"of the background: {'; '.join(words)}",
        HOLDS if better == total else FAILS if not better else PARTLY,
    )


def _without(by: dict[tuple[str, float], Row], guidances: Sequence[float]) -> Claim:
    """What reversibility is worth at all where features are injected: against DDIM."""
    words, better, worse, total = _against(by, guidances, "ddim")
    return Claim(
        "reversible, injected",
        "with injected features, a near-reversible solver keeps more of the background than DDIM at equal evaluations",
        "not stated",
        f"smaller error in {better} of {total} settings, larger in {worse}. Paired differences in success and in error "
        f"of the background: {words}",
        HOLDS if better == total else FAILS if not better else PARTLY,
    )


def _against(by: dict[tuple[str, float], Row], guidances: Sequence[float], other: str) -> tuple[str, int, int, int]:
    """Every way that injects with ees25, against the same with another solver."""
    pairs = [(f"{method}, ees25", f"{method}, {other}") for method in INJECTED]
    words, better, worse = _compared(by, pairs, guidances)
    return "; ".join(words), better, worse, len(pairs) * len(guidances)


def _aligned(by: dict[tuple[str, float], Row], guidances: Sequence[float]) -> Claim:
    """Whether FlowAlign keeps more of the source than FlowEdit."""
    words, better, worse = _compared(by, [("flow-align", "flow-edit")], guidances)
    return Claim(
        "FlowAlign",
        "its regularised path keeps more of the source than FlowEdit does at the same guidance",
        "structure is preserved better (2505.23145); no number comparable with ours",
        f"smaller error at {better} of {len(guidances)} guidances, larger at {worse}. Paired differences in success "
        f"and in error of the background: {'; '.join(words)}",
        HOLDS if better == len(guidances) else FAILS if not better and worse else PARTLY if better else OPEN,
    )


def _leads(rows: Sequence[Row]) -> Claim:
    """Whether what injects leads, as on the published benchmarks."""
    ahead = front(rows)
    groups = {way.label: way.group for way in WAYS}
    shares = {
        name: sum(groups[row.way] == name for row in ahead) for name in ("injection", "inversion", "no inversion")
    }
    led = "; ".join(f"{row.way} at {row.guidance:g}" for row in ahead)
    return Claim(
        "injection leads",
        "the front of success against error of the background consists of ways that inject the source's features",
        "every leader of the published benchmarks injects; no number to compare with",
        f"on the front: {led}. Of these, with injection {shares['injection']}, with plain inversion "
        f"{shares['inversion']}, without an inversion {shares['no inversion']}",
        HOLDS if shares["injection"] == len(ahead) else PARTLY if shares["injection"] else FAILS if ahead else EMPTY,
    )
