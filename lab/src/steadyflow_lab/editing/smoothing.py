"""Smoothing of the field as the paper uses it, during the inversion; beside it during the generation, and both ways.

The field is averaged over a pair of neighbours at a distance of `radius` noise levels (`steadyflow`'s `Smoothing`), so
that a smoothed call costs two evaluations. At equal evaluations a run has fewer steps for it; at equal steps it costs
more. Every difference is to the run without smoothing on the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steadyflow._internal import tensors
from steadyflow.datasets import digits
from steadyflow.metrics import psnr, rmse
from steadyflow.metrics.statistics import Estimate, average, wilson
from steadyflow.models import load
from steadyflow.tasks import invert

from ..digits import recognise
from ..findings import FAILS, HOLDS, OPEN, PARTLY, Claim, Finding, shown
from ..studies import Bench
from . import ink
from .ink import BLOWN, Seen, decode, joined
from .methods import AUTO, Method, label, paired_rates, solver_of

NFE = 48
"""Evaluations each way of the run without smoothing."""
GUIDANCES = (3.0, 7.5)
RADII = (0.1, 0.2, 0.4)
WAYS = ("inversion", "generation", "both")
METHODS: tuple[Method, ...] = (
    ("ddim", {}),
    ("rk4", {}),
    ("ees25", {}),
    ("rex-midpoint", {}),
    ("rex-midpoint", AUTO),
)
SEEN = {"success": 0.02, "kept": 0.1}
"""Smaller differences, in the share of successes and in dB, are none that anyone would see."""
GAIN_SUCCESS, GAIN_KEPT = 0.1, 0.5
"""A gain that could not be larger than this, in the share of successes and in dB, is no improvement of fidelity."""
RARE = 0.2
"""A share of edits blown up that has to be excluded where a method is called stable."""
CHUNK = 8


class Setting(NamedTuple):
    """How the field is smoothed."""

    method: Method
    way: str = ""
    """On which way; nowhere if empty."""
    radius: float = 0.0
    equal: str = "evaluations"
    """What is as without smoothing: "evaluations" of both ways together, or "steps"."""

    @property
    def name(self) -> str:
        """In words."""
        smooth = f"{self.way} {self.radius:g}, equal {self.equal}" if self.way else "none"
        return f"{label(self.method)}: {smooth}"

    def steps(self, nfe: int) -> int:
        """How many steps there are each way."""
        cost = solver_of(self.method).properties.evaluations or 1
        times = {"": 2, "inversion": 3, "generation": 3, "both": 4}[self.way if self.equal == "evaluations" else ""]
        return max(1, 2 * nfe // (cost * times))

    def models(self, here: Any, there: Any) -> tuple[Any, Any]:
        """Smooth the models of the two ways."""
        if not self.way:
            return here, there
        up, down = (one.with_smoothing(self.radius) for one in (here, there))
        return up if self.way != "generation" else here, down if self.way != "inversion" else there


Results = list[tuple[Setting, list[Seen]]]
"""What each setting gave, by guidance."""


@dataclass(frozen=True)
class Smoothed:
    """What one setting gave, by guidance."""

    name: str
    seen: list[Seen]


def read(fields: dict[str, Any]) -> Smoothed:
    """Make it from its JSON."""
    return Smoothed(fields["name"], [Seen(**one) for one in fields["seen"]])


def settings(methods: Sequence[Method], radii: Sequence[float], whole: bool) -> list[Setting]:
    """List the settings: all of them, or the inversion's with one radius of the other ways beside."""
    found = []
    for method in methods:
        found.append(Setting(method))
        for way in WAYS:
            for radius in radii:
                if whole or way == "inversion" or radius == radii[len(radii) // 2]:
                    found.append(Setting(method, way, radius))
                if whole or (way == "inversion" and radius == radii[len(radii) // 2]):
                    found.append(Setting(method, way, radius, "steps"))
    return found


def smoothed_ink(n: int, seed: int, nfe: int, item: tuple[Setting, int]) -> Smoothed:
    """Edit a chunk of the pictures in ink with one setting, at each guidance."""
    setting, start = item
    model, _ = ink.setting()
    job, stop = ink.task(n, seed), min(start + CHUNK, n)
    latents = job.latents[start:stop]
    here, there = (model.with_condition(words[start:stop]) for words in (job.sources, job.targets))
    up, down = setting.models(here, there)
    inversion = invert(up, latents, solver=solver_of(setting.method), steps=setting.steps(nfe), progress=False)
    edits = [decode(inversion, down, w, latents)[0] for w in GUIDANCES]
    return Smoothed(setting.name, [ink.look(job, start, edited) for edited in edits])


def smoothed_digits(n: int, nfe: int, setting: Setting) -> Smoothed:
    """Edit digits with one setting, at each guidance."""
    model, images, labels = _digits(n)
    targets = (labels + 5) % 10
    up, down = setting.models(model.with_condition(labels), model.with_condition(targets))
    inversion = invert(up, images, solver=solver_of(setting.method), steps=setting.steps(nfe), progress=False)
    edits = [decode(inversion, down, w, images)[0] for w in GUIDANCES]
    return Smoothed(
        setting.name, [look_at_digits(images, targets, x, top) for x, top in zip(edits, _limits(n), strict=True)]
    )


@cache
def _limits(n: int) -> tuple[float, ...]:
    """The largest number of an edit that has not blown up, by guidance: several times that of a fine solve."""
    model, images, labels = _digits(n)
    fine = invert(model.with_condition(labels), images, solver="rk4", nfe=4 * NFE, progress=False)
    there = model.with_condition((labels + 5) % 10)
    return tuple(BLOWN * decode(fine, there, w, images)[0].abs().max().item() for w in GUIDANCES)


@cache
def _digits(n: int) -> tuple[Any, Tensor, Tensor]:
    images, labels = digits("held-out")
    return load("digits"), images[:n], labels[:n]


def look_at_digits(images: Tensor, targets: Tensor, edited: Tensor, limit: float) -> Seen:
    """Judge edited digits by the classifier of real ones; the background is where the source has no ink.

    limit: the largest number of an edit that has not blown up.
    """
    blown = (tensors.max_abs(edited) > limit) | ~edited.flatten(1).isfinite().all(1)
    cut = edited.nan_to_num(0.0, limit, -limit).clamp(-1.0, 1.0)
    hits = recognise(cut) == targets
    empty = (images <= -0.999).to(images.dtype)
    kept = psnr(cut, images, span=2.0, region=empty).clamp(max=60.0)
    return Seen(kept.tolist(), hits.double().tolist(), hits.tolist(), rmse(cut, images).tolist(), blown.tolist())


def on_ink(bench: Bench) -> Finding:
    """Smooth edits of pictures."""
    size = bench.size
    methods = (("ees25", {}),) if size.quick else tuple(m for m in METHODS if m[0] != "rk4")
    radii, nfe = ((0.2,), 24) if size.quick else (RADII, NFE)
    chosen = settings(methods, radii, whole=False)
    items = [(s, start) for s in chosen for start in range(0, size.long, CHUNK)]
    named = [(f"{_file(s)}-{start:03d}", (s, start)) for s, start in items]
    work = partial(smoothed_ink, size.long, size.seed, nfe)
    found = bench.cells("editing-smoothing", work, named, read, nfe=nfe, guidances=list(GUIDANCES))
    parts: dict[str, list[Smoothed]] = {}
    for part in found:
        parts.setdefault(part.name, []).append(part)
    results = [(s, [joined([part.seen[k] for part in parts[s.name]]) for k in range(len(GUIDANCES))]) for s in chosen]
    words = f"{size.long} held-out pictures in ink, {nfe} evaluations each way"
    return _finding("smoothing", "Smoothing the field, pictures in ink", results, words, size.long)


def on_digits(bench: Bench) -> Finding:
    """Smooth edits of digits, in all settings."""
    size = bench.size
    methods, radii = ((METHODS[2], METHODS[3]), (0.2,)) if size.quick else (METHODS, RADII)
    chosen = settings(methods, radii, whole=True)
    cells = [(_file(s), s) for s in chosen]
    work = partial(smoothed_digits, size.n, NFE)
    found = bench.cells("editing-smoothing-digits", work, cells, read, nfe=NFE, guidances=list(GUIDANCES))
    results = [(s, one.seen) for s, one in zip(chosen, found, strict=True)]
    words = f"{size.n} held-out digits, {NFE} evaluations each way"
    return _finding("smoothing-digits", "Smoothing the field, digits", results, words, size.n)


def difference(one: Seen, other: Seen, name: str, level: float = 0.95) -> Estimate:
    """Give the mean difference between two runs on the same pictures."""
    if name == "success":
        return paired_rates(one.success, other.success, level)
    mine, theirs = (torch.tensor(getattr(seen, name), dtype=torch.float64) for seen in (one, other))
    known = mine.isfinite() & theirs.isfinite()
    return average((mine - theirs)[known], level=level)


def _finding(figure: str, title: str, results: Results, words: str, n: int) -> Finding:
    heads = ["solver", "smoothed", "radius", "at equal", "steps"]
    for w in GUIDANCES:
        heads += [f"background, w = {w:g}", f"success, w = {w:g}", f"blown up, w = {w:g}"]
    rows = []
    for s, seen in results:
        cells = [f"`{label(s.method)}`", s.way or "no", f"{s.radius:g}" if s.way else "", s.equal if s.way else ""]
        cells.append(str(s.steps(NFE)))
        for k, one in enumerate(seen):
            plain = _plain(results, s.method)[k]
            blown = f"{sum(one.blown) / n:.0%}"
            if not s.way:
                kept = torch.tensor(one.kept)
                background, success = average(kept[kept.isfinite()]), average(torch.tensor(one.success).double())
                cells += [shown(background, "{:.1f}"), shown(success, "{:.2f}"), blown]
            else:
                kept, success = difference(one, plain, "kept"), difference(one, plain, "success")
                cells += [shown(kept, "{:+.1f}"), shown(success, "{:+.2f}"), blown]
        rows.append(cells)
    note = (
        f"{words}. The rows without smoothing give background (PSNR in dB) and success (share), the others the "
        "difference from these on the same pictures, with 95 % intervals."
    )
    return Finding(figure, title, _claims(results, figure), heads, rows, note)


def _claims(results: Results, figure: str) -> list[Claim]:
    near: Method = ("ees25", {})
    problem = "digits" if figure.endswith("digits") else "ink"
    quoted = '"improves edit fidelity"; no number in the sources at hand'
    says = "near-reversible solving with smoothing during the inversion improves edit fidelity"
    claims = [_improves(results, near, ("inversion",), f"smoothing, {problem}", says, quoted)]
    says = "smoothing during the generation, or during both, improves edit fidelity"
    claims.append(_improves(results, near, WAYS[1:], f"ours: smoothing otherwise, {problem}", says, "not stated"))
    used = [seen for s, seen in results if s.method == near and s.way == "inversion"]
    blown = [max(sum(one.blown) for one in seen) for seen in used]
    total = len(results[0][1][0].blown)
    plain, most = max(sum(one.blown) for one in _plain(results, near)), wilson(max(blown), total)
    claims.append(
        Claim(
            f"smoothing and stability, {problem}",
            "near-reversible solving with smoothing during the inversion remains stable under large edits",
            '"remains stable under large edits"; no number in the sources at hand',
            f"at most {max(blown)} of {total} edits blow up with smoothing ({shown(most, '{:.0%}')}), {plain} without",
            HOLDS if most.high < RARE else FAILS if min(blown) > plain else PARTLY,
        )
    )
    rex: Method = ("rex-midpoint", {})
    if any(s.method == rex for s, _ in results):
        says = "smoothing improves the edits of an exactly reversible solver"
        claims.append(_improves(results, rex, WAYS, f"ours: smoothing rex-midpoint, {problem}", says, "not stated"))
    return claims


def _improves(results: Results, method: Method, ways: Sequence[str], name: str, says: str, paper: str) -> Claim:
    """Whether smoothing raises success or background and lowers neither, with intervals for all settings together.

    A gain counts if it is there at equal evaluations, and comes of smoothing if it is there at equal steps, too: fewer
    steps may move an edit as well.
    """
    used = [
        (*one, k) for one in results if one[0].method == method and one[0].way in ways for k in range(len(GUIDANCES))
    ]
    level = 1.0 - 0.05 / (2 * len(used))
    gains: dict[str, list[str]] = {"evaluations": [], "steps": []}
    harms, best, most = [], None, {"success": -1.0, "kept": -100.0}
    for s, seen, k in used:
        plain = _plain(results, method)[k]
        e = {name: difference(seen[k], plain, name, level) for name in most}
        where = f"{s.way} {s.radius:g}, w = {GUIDANCES[k]:g}"
        lost = [name for name, floor in SEEN.items() if e[name].high < 0.0 and e[name].value < -floor]
        won = [name for name, floor in SEEN.items() if e[name].low > 0.0 and e[name].value > floor]
        harms += [f"{where}, equal {s.equal}"] if lost else []
        gains[s.equal] += [where] if won and not lost else []
        # that none gains more is a claim on all of them, for which each interval may be taken alone
        most = {name: max(most[name], difference(seen[k], plain, name).high) for name in most}
        if best is None or e["success"].value > best[0].value:
            best = e["success"], e["kept"], f"{where}, equal {s.equal}"
    assert best is not None
    both = [len([1 for s, _, _ in used if s.equal == equal]) for equal in gains]
    here = (
        f"better in {len(gains['evaluations'])} of {both[0]} settings at equal evaluations{_of(gains['evaluations'])}, "
        f"and in {len(gains['steps'])} of {both[1]} at equal steps{_of(gains['steps'])}; worse in "
        f"{len(harms)}{_of(harms)}; success can gain at most {most['success']:+.2f}, the background "
        f"{most['kept']:+.1f} dB; the setting best for success ({best[2]}) gains {shown(best[0], '{:+.2f}')} in "
        f"success and {shown(best[1], '{:+.1f}')} dB in background (simultaneous intervals for all {2 * len(used)} "
        "differences)"
    )
    small = most["success"] < GAIN_SUCCESS and most["kept"] < GAIN_KEPT
    if gains["evaluations"]:
        return Claim(name, says, paper, here, HOLDS if gains["steps"] and not harms else PARTLY)
    return Claim(name, says, paper, here, FAILS if small or len(harms) > len(used) / 2 else OPEN)


def _plain(results: Results, method: Method) -> list[Seen]:
    """What a method gave without smoothing."""
    return next(seen for s, seen in results if s.method == method and not s.way)


def _of(where: Sequence[str]) -> str:
    return f" ({'; '.join(where[:3])}{' ...' if len(where) > 3 else ''})" if where else ""


def _file(s: Setting) -> str:
    return "-".join(word for word in s.name.replace(":", "").replace(",", "").split())
