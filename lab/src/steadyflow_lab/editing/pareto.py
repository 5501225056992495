"""Which way of editing changes what was asked for, and keeps the rest: all of them on scenes, at equal evaluations.

Each way edits the same held-out pictures (`scenes`) for the same number of evaluations of the network in all, ways up
and down and copies of the source together, the two branches of guidance as one. Success is what the judge reads; the
background's error is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

import steadyflow as sf
from steadyflow import editing, solvers
from steadyflow.errors import InputError, NonFiniteError
from steadyflow.metrics.statistics import Estimate, average, wilson

from ..datasets.scenes import SIZES
from ..findings import EMPTY, FAILS, HOLDS, OPEN, PARTLY, Claim, Curve, Finding, shown
from ..studies import Bench
from .methods import paired_rates
from .scenes import KINDS, SceneEdits, codec_error, looked_at, scene_model, scene_task

BUDGET = 96
"""Evaluations of the network for an edit, all ways together."""
CHUNK = 24
"""Pictures of a cell."""
GUIDANCES = (1.0, 2.0, 4.0, 7.0, 10.0)
FREE = 0.01
"""A background error that no one sees, of a range of 1."""


@dataclass(frozen=True)
class Way:
    """A way of editing, with everything but the guidance."""

    label: str
    method: str
    options: dict[str, Any]
    """Those of the method."""
    solver: tuple[str, dict[str, Any]] | None = None
    """Of methods that take any."""

    @property
    def group(self) -> str:
        """What kind of way it is."""
        if self.method in ("inversion", "direct"):
            return "inversion"
        return "injection" if self.method in _INJECTED else "no inversion"


_INJECTED = ("prompt-to-prompt", "plug-and-play", "masactrl", "value-injection")
_AUTO: dict[str, Any] = {"coordinates": "flow", "coupling": "auto"}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("ddim", {}),
    "rk4": ("rk4", {}),
    "ees25": ("ees25", {}),
    "ees27": ("ees27", {}),
    "rex-euler": ("rex-euler", {"coordinates": "flow"}),
    "rex-midpoint": ("rex-midpoint", {"coordinates": "flow"}),
    "rex-midpoint, auto": ("rex-midpoint", _AUTO),
}
"""DDIM, a classical method, the near-reversible ones, two exact ones with their published couplings, and ours.

Exact ones in the coordinates of noise do not start from the noisy end of a flow model, where alpha is 0."""
WAYS: tuple[Way, ...] = (
    *(Way(f"inversion, {name}", "inversion", {}, solver) for name, solver in SOLVERS.items()),
    Way("direct, ees25", "direct", {}, SOLVERS["ees25"]),
    *(
        Way(name, name, {})
        for name in (
            "flow-edit", "flow-align", "dvrf", "rf-inversion", "uni-edit", "pmi", "dna-edit", "flow-opt", "noise-maps",
        )
    ),
    *(
        Way(f"{method}, {name}", method, {}, SOLVERS[name])
        for method in _INJECTED
        for name in ("ddim", "ees25", "rex-midpoint, auto")
    ),
)  # fmt: skip
QUICK = tuple(way for way in WAYS if way.label in ("inversion, ees25", "flow-edit", "masactrl, ees25"))


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

    def background(self, chosen: Sequence[int] | None = None) -> Estimate:
        """Give the mean error of the background with its interval, of some of the pictures."""
        errors = torch.tensor(self.seen.background, dtype=torch.float64)
        return average(errors if chosen is None else errors[list(chosen)])


def edit_scenes(way: Way, guidance: float, n: int, seed: int, start: int, stop: int) -> tuple[torch.Tensor, int]:
    """Edit some of the pictures: the latents, and the evaluations that were made.

    Args:
        way: How.
        guidance: Towards the target; the source is without.
        n: The pictures of the task.
        seed: Of the task.
        start: The first that is edited.
        stop: One past the last.
    """
    task, model = scene_task(n, seed), scene_model()
    method = editing.get(way.method, **way.options)
    words: dict[str, Any] = {"guidance": guidance, "source_guidance": 1.0, "progress": False, "index": start}
    if way.solver is not None:
        words["solver"] = solvers.get(way.solver[0], **way.solver[1])
    for nfe in _budgets(way):
        try:
            found = sf.edit(
                model,
                task.latents[start:stop],
                task.targets[start:stop],
                source=task.sources[start:stop],
                method=method,
                nfe=nfe,
                **words,
            )
        except NonFiniteError:
            return torch.full_like(task.latents[start:stop], torch.inf), BUDGET
        except InputError as error:
            if "nfe" in str(error):
                continue
            raise
        if found.nfe <= BUDGET:
            return found.x, found.nfe
    raise ValueError(f"{way.label}: no number of evaluations each way fits the budget of {BUDGET}")


def _budgets(way: Way) -> Sequence[int]:
    """The numbers of evaluations each way that are tried, falling: a copy of the source takes a third of the whole."""
    if way.group == "injection":
        return range(BUDGET // 3, 0, -1)
    return range(BUDGET // 2, 0, -1)


_LAYERS = ((0.0, 1.0), (0.0, 0.5), (0.33, 1.0), (0.5, 1.0), (0.67, 1.0))
_SHARES = (0.2, 0.4, 0.6, 0.8)
CHOICES: tuple[Way, ...] = tuple(
    Way(
        f"{method}, layers {layers[0]:g} to {layers[1]:g}, {share:g}",
        method,
        {"layers": layers, **given},
        ("ees25", {}),
    )
    for method, option in (
        ("prompt-to-prompt", "self_share"),
        ("plug-and-play", "attention_share"),
        ("masactrl", "steps"),
        ("value-injection", "share"),
    )
    for layers in _LAYERS
    for share in _SHARES
    for given in ({option: (round(1.0 - share, 2), 1.0) if option == "steps" else share},)
)
"""Which layers and which share of the steps, of each way that injects; masactrl's are the last steps, not the first."""


def choices(bench: Bench) -> Finding:
    """Try layers and shares of the steps on pictures that the comparison of the ways does not have."""
    guidances = (2.0, 4.0)
    tried = CHOICES[::7] if bench.size.quick else CHOICES
    own = replace(bench, size=replace(bench.size, seed=bench.size.seed + 100))
    rows = study(own, tried, guidances)
    ranked = sorted(rows, key=_score, reverse=True)
    cells = [
        [f"`{row.way}`", f"{row.guidance:g}", _percent(row.success()), shown(row.background(), "{:.3f}")]
        for row in ranked
    ]
    note = (
        f"{bench.size.images} held-out scenes of another seed, {BUDGET} evaluations an edit, ees25; by success less "
        "ten times the background's error."
    )
    title = "Layers and steps of injection, on scenes"
    return Finding("scenes-choices", title, [], ["way", "w", "success", "background"], cells, note)


def piece(n: int, seed: int, item: tuple[Way, float, int]) -> tuple[SceneEdits, int]:
    """Edit and judge a chunk of the pictures."""
    way, guidance, start = item
    edited, nfe = edit_scenes(way, guidance, n, seed, start, min(start + CHUNK, n))
    return looked_at(scene_task(n, seed), edited, start), nfe


def read_piece(fields: Any) -> tuple[SceneEdits, int]:
    """Make a piece from its JSON."""
    return SceneEdits(**fields[0]), int(fields[1])


def study(bench: Bench, ways: Sequence[Way], guidances: Sequence[float]) -> list[Row]:
    """Edit the pictures in every way at every guidance; each chunk is kept as it comes.

    Args:
        bench: How many pictures, and where the cells are kept.
        ways: The ways.
        guidances: Towards the target.
    """
    n, seed = bench.size.images, bench.size.seed
    items = [(way, w, start) for way in ways for w in guidances for start in range(0, n, CHUNK)]
    cells = [(f"{_plain(way.label)}-{w:g}-{start:03d}", (way, w, start)) for way, w, start in items]
    found = bench.cells("editing-pareto", partial(piece, n, seed), cells, read_piece, budget=BUDGET)
    parts: dict[tuple[str, float], list[tuple[SceneEdits, int]]] = {}
    for (way, w, _), one in zip(items, found, strict=True):
        parts.setdefault((way.label, w), []).append(one)
    return [
        Row(label, w, _joined([seen for seen, _ in some]), max(nfe for _, nfe in some))
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
    ways, guidances = (QUICK, (4.0,)) if bench.size.quick else (WAYS, GUIDANCES)
    rows = study(bench, ways, guidances)
    task = scene_task(bench.size.images, bench.size.seed)
    by = {(row.way, row.guidance): row for row in rows}
    best = {way.label: _best([by[way.label, w] for w in guidances]) for way in ways}
    leading = {(row.way, row.guidance) for row in front(rows)}
    chosen = {kind: [k for k, found in enumerate(task.kinds) if found == kind] for kind in KINDS}
    sides = task.pictures.size.tolist()
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
                *(f"{row.success(some).value:.0%}, {row.background(some).value:.3f}" for some in chosen.values()),
                ", ".join(ahead) or "no",
            ]
        )
    floor = average(codec_error(task).double())
    note = (
        f"{len(task)} held-out scenes, a quarter each with another digit, colour or place, or none; {BUDGET} "
        "evaluations an edit in all. Success: the judge reads the digit, the colour and the place that were asked for, "
        "or none. Background: root mean square error outside the pixels that the edit concerns, of a range of 1, "
        f"against what the codec makes of the source (itself off by {shown(floor, '{:.3f}')}). Of each way the "
        "guidance w with the best success less ten times the background's error; the columns of kinds and of the "
        "digit's sizes give both."
    )
    claims = (
        []
        if bench.size.quick
        else [_near(by, guidances), _without(by, guidances), _aligned(by, guidances), _leads(rows)]
    )
    shown_ways = dict.fromkeys([*(row.way for row in front(rows)), "inversion, ddim", "inversion, ees25", "flow-edit"])
    curves = [
        Curve(
            label,
            [by[label, w].background().value for w in guidances],
            [by[label, w].success().value for w in guidances],
        )
        for label in list(shown_ways)[:9]
        if (label, guidances[0]) in by
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
    for first, second in pairs:
        for w in guidances:
            success, background = _paired(by[first, w], by[second, w])
            words.append(f"{first} at {w:g}: {shown(success, '{:+.2f}')}, {shown(background, '{:+.4f}')}")
            better, worse = better + (background.high < 0.0), worse + (background.low > 0.0)
    return words, better, worse


def _near(by: dict[tuple[str, float], Row], guidances: Sequence[float]) -> Claim:
    """What near-reversibility is worth where features are injected: against an exact solver."""
    words, better, worse, total = _against(by, guidances, "rex-midpoint, auto")
    return Claim(
        "near-reversible, injected",
        "with injected features a near-reversible solver (ees25) keeps as much background as an exact one at equal "
        "evaluations: not more error in any setting",
        "ours",
        f"more error in {worse} of {total} settings, less in {better}. Paired differences in success and in error: "
        + words,
        HOLDS if not worse else FAILS if worse > total / 2 else PARTLY,
    )


def _without(by: dict[tuple[str, float], Row], guidances: Sequence[float]) -> Claim:
    """What reversibility is worth at all where features are injected: against DDIM."""
    words, better, worse, total = _against(by, guidances, "ddim")
    return Claim(
        "reversible, injected",
        "with injected features a near-reversible solver keeps more background than DDIM at equal evaluations",
        "ours",
        f"less error in {better} of {total} settings, more in {worse}. Paired differences: {words}",
        HOLDS if better == total else FAILS if not better else PARTLY,
    )


def _against(by: dict[tuple[str, float], Row], guidances: Sequence[float], other: str) -> tuple[str, int, int, int]:
    """Every way that injects with ees25, against the same with another solver."""
    pairs = [(f"{method}, ees25", f"{method}, {other}") for method in _INJECTED]
    words, better, worse = _compared(by, pairs, guidances)
    return "; ".join(words), better, worse, len(pairs) * len(guidances)


def _aligned(by: dict[tuple[str, float], Row], guidances: Sequence[float]) -> Claim:
    """Whether FlowAlign keeps more of the source than FlowEdit."""
    words, better, worse = _compared(by, [("flow-align", "flow-edit")], guidances)
    return Claim(
        "FlowAlign",
        "its regularised path keeps more of the source than FlowEdit at the same guidance",
        "structure is preserved better (2505.23145); no number of ours to compare with",
        f"less error in {better} of {len(guidances)} guidances, more in {worse}. Paired differences: "
        + "; ".join(words),
        HOLDS if better == len(guidances) else FAILS if not better and worse else PARTLY if better else OPEN,
    )


def _leads(rows: Sequence[Row]) -> Claim:
    """Whether what injects leads, as on the published benchmarks."""
    ahead = front(rows)
    groups = {way.label: way.group for way in WAYS}
    shares = {
        name: sum(groups[row.way] == name for row in ahead) for name in ("injection", "inversion", "no inversion")
    }
    led = ", ".join(f"{row.way} at {row.guidance:g}" for row in ahead)
    return Claim(
        "injection leads",
        "the front of success against background is made of ways that inject the source's features",
        "every leader of the published benchmarks injects; no number to compare with",
        f"on the front: {led}; of injection {shares['injection']}, of plain inversion {shares['inversion']}, without "
        f"an inversion {shares['no inversion']}",
        HOLDS if shares["injection"] == len(ahead) else PARTLY if shares["injection"] else FAILS if ahead else EMPTY,
    )
