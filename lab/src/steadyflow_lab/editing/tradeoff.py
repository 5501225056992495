"""What is kept against what is changed: edits of pictures by every solver at equal evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from steadyflow.errors import NonFiniteError
from steadyflow.metrics import rmse
from steadyflow.metrics.statistics import Estimate, wilson
from steadyflow.solvers.base import steps_for
from steadyflow.tasks import invert

from ..findings import EMPTY, FAILS, HOLDS, OPEN, PARTLY, Claim, Curve, Finding, shown
from ..studies import Bench
from .ink import Seen, decode, joined, look, setting, task
from .methods import (
    GUIDANCES,
    METHODS,
    OURS,
    PUBLISHED,
    Method,
    label,
    mean,
    median,
    paired_rates,
    solver_of,
)

NFE = 48
CHUNK = 8
"""Pictures of a cell."""
SEEN_KEPT, SEEN_ALIGNED = 0.1, 0.02
"""Smaller differences, in dB and in probability, are no trade-off that anyone would see."""
QUICK: tuple[Method, ...] = (("ddim", {}), ("ees25", {}), ("belm", {}), ("rex-midpoint", {}))


@dataclass(frozen=True)
class Piece:
    """What one method gave on some pictures, by guidance."""

    edits: list[Seen]
    largest: list[float]
    """Largest |latent| on the way."""
    back: list[list[float]]
    """Error of each latent's round trip at that guidance both ways; nothing but for the first pictures."""


@dataclass(frozen=True)
class Row:
    """What one method gave at one guidance."""

    method: str
    guidance: float
    seen: Seen
    largest: float
    back: Estimate

    def paired(self, other: Row, name: str) -> Estimate:
        """Give the mean difference from another method on the same pictures."""
        if name == "success":
            return paired_rates(self.seen.success, other.seen.success)
        mine, theirs = (torch.tensor(getattr(row.seen, name), dtype=torch.float64) for row in (self, other))
        known = mine.isfinite() & theirs.isfinite()  # a picture may be all strokes
        return mean((mine - theirs)[known])


def piece(n: int, seed: int, nfe: int, guidances: tuple[float, ...], item: tuple[Method, int]) -> Piece:
    """Edit a chunk of pictures by one method at each guidance; the first chunk is reconstructed, too."""
    method, start = item
    model, _ = setting()
    job, solver = task(n, seed), solver_of(method)
    stop, steps = min(start + CHUNK, n), steps_for(solver, nfe)
    latents, targets = job.latents[start:stop], model.with_condition(job.targets[start:stop])
    here = model.with_condition(job.sources[start:stop])
    inversion = invert(here, latents, solver=solver, steps=steps, progress=False)
    edits, largest, back = [], [], []
    for guidance in guidances:
        edited, most = decode(inversion, targets, guidance, latents)
        edits.append(look(job, start, edited))
        largest.append(most)
        if start == 0:
            try:
                guided = inversion if guidance == 1.0 else invert(
                    here.with_guidance(guidance), latents, solver=solver, steps=steps, progress=False
                )  # fmt: skip
                back.append(rmse(guided.decode().x, latents).tolist())
            except NonFiniteError:
                back.append([float("inf")] * len(latents))
    return Piece(edits, largest, back)


def read_piece(fields: dict[str, Any]) -> Piece:
    """Make a piece from its JSON."""
    return Piece(**{**fields, "edits": [Seen(**one) for one in fields["edits"]]})


def study(bench: Bench, methods: Sequence[Method], guidances: tuple[float, ...], nfe: int = NFE) -> list[Row]:
    """Edit the pictures by all methods; each chunk of pictures is kept as it comes."""
    n, seed = bench.size.images, bench.size.seed
    items = [(method, start) for method in methods for start in range(0, n, CHUNK)]
    cells = [(f"{label(m).replace(', ', '-').replace(' ', '-')}-{start:03d}", (m, start)) for m, start in items]
    work = partial(piece, n, seed, nfe, guidances)
    found = bench.cells("editing-tradeoff", work, cells, read_piece, nfe=nfe, guidances=list(guidances))
    rows = []
    for method in methods:
        parts = [part for part, (m, _) in zip(found, items, strict=True) if m == method]
        for k, guidance in enumerate(guidances):
            seen = joined([part.edits[k] for part in parts])
            back = median([error for part in parts for error in (part.back[k] if part.back else [])])
            rows.append(Row(label(method), guidance, seen, max(part.largest[k] for part in parts), back))
    return rows


def figure(bench: Bench) -> Finding:
    """Compare all solvers on pictures."""
    methods, guidances, nfe = (QUICK, (1.0, 7.5), 24) if bench.size.quick else (METHODS, GUIDANCES, NFE)
    rows = study(bench, methods, guidances, nfe)
    found = {(row.method, row.guidance): row for row in rows}
    names = list(dict.fromkeys(row.method for row in rows))
    published = [label(m) for m in PUBLISHED if label(m) in names]
    strong = [w for w in guidances if w > 1.0]
    claims = [
        _trade(found, published, strong),
        _stable(found, published, max(guidances)),
        _retained(found, names, strong),
    ]
    heads = ["solver", *(f"round trip, w = {w:g}" for w in guidances), *(f"background, w = {w:g}" for w in guidances)]
    heads += [*(f"success, w = {w:g}" for w in guidances), f"blown up, w = {max(guidances):g}"]
    cells = []
    for name in names:
        line = [found[name, w] for w in guidances]
        cells.append(
            [
                f"`{name}`",
                *(f"{row.back.value:.0e}" for row in line),
                *(shown(_finite_mean(row.seen.kept), "{:.1f}") for row in line),
                *(_rate(row.seen.success) for row in line),
                _rate(line[-1].seen.blown),
            ]
        )
    groups = [n for n in names if n in ("ddim", "ees25", "edict", "belm", "rex-midpoint", "rex-midpoint, flow, auto")]
    curves = [
        Curve(
            name,
            [mean(found[name, w].seen.aligned).value for w in guidances],
            [_finite_mean(found[name, w].seen.kept).value for w in guidances],
        )
        for name in groups
    ]
    note = (
        f"{bench.size.images} held-out pictures, every other one edited to another digit, the rest to another ink; "
        f"{nfe} evaluations each way, float32. Background: PSNR outside the strokes in dB. Success: the judge reads "
        "the digit and the ink that were asked for. Round trip: median error over the first "
        f"{min(CHUNK, bench.size.images)} latents, at that guidance both ways."
    )
    axes = ("alignment with the target", "PSNR of the background, dB")
    return Finding("tradeoff", "What edits keep, and what they change", claims, heads, cells, note, curves, axes)


def _trade(found: dict[tuple[str, float], Row], published: Sequence[str], strong: Sequence[float]) -> Claim:
    """Whether exact reversibility buys background at the price of alignment, against the near-reversible method."""
    words, pattern, other = [], [], []
    for name in published:
        for w in strong:
            row, near = found[name, w], found["ees25", w]
            kept, aligned = row.paired(near, "kept"), row.paired(near, "aligned")
            words.append(f"{name} at {w:g}: {shown(kept, '{:+.1f}')} dB, {shown(aligned, '{:+.2f}')}")
            if kept.low > 0.0 and aligned.high < 0.0 and kept.value > SEEN_KEPT and aligned.value < -SEEN_ALIGNED:
                pattern.append(f"{name} at w = {w:g}")
            elif kept.high < 0.0 and aligned.high < 0.0:
                other.append(f"{name} at w = {w:g}")
    total = len(published) * len(strong)
    verdict = HOLDS if len(pattern) == total else PARTLY if pattern else FAILS
    return Claim(
        "the trade-off",
        "exact reversibility against stability shows as background against alignment: an exactly reversible solver "
        "keeps more of the background (by over 0.1 dB) and aligns less with the target (by over 0.02) than a "
        "near-reversible one",
        '"manifests empirically as a trade-off"; no number in the sources at hand',
        f"more background and less alignment than ees25 in {len(pattern)} of {total} settings "
        f"({', '.join(pattern) or 'none'}); less of both in {len(other)} ({', '.join(other) or 'none'}). Paired "
        f"differences from ees25 in background and alignment: {'; '.join(words)}",
        verdict,
    )


def _stable(found: dict[tuple[str, float], Row], published: Sequence[str], w: float) -> Claim:
    """Whether near-reversible methods succeed more often under the largest edit."""
    near = found["ees25", w]
    gains = {name: near.paired(found[name, w], "success") for name in published}
    better = [name for name, e in gains.items() if e.low > 0.0]
    worse = [name for name, e in gains.items() if e.high < 0.0]
    return Claim(
        "stability under large edits",
        f"near-reversible methods stay stable where exactly reversible ones fail (ees25 at w = {w:g})",
        '"remains stable under large edits"; no number in the sources at hand',
        f"edits of ees25 that blow up: {_rate(near.seen.blown)}; success of ees25 minus that of the exact solver, on "
        "the same pictures: " + "; ".join(f"{name} {shown(e, '{:+.2f}')}" for name, e in gains.items()),
        HOLDS if len(better) == len(published) else PARTLY if better and not worse else FAILS if worse else OPEN,
    )


def _retained(found: dict[tuple[str, float], Row], names: Sequence[str], strong: Sequence[float]) -> Claim:
    """Whether the near-reversible methods keep most of what exact reversibility gains in background over DDIM."""
    calm = [m for m in (*PUBLISHED, *OURS) if label(m) in names]
    calm = [label(m) for m in calm if not any(any(found[label(m), w].seen.blown) for w in strong)]
    words, kept, lost, gained = [], 0, 0, 0
    for name in calm:
        for w in (1.0, *strong):
            ddim, rev, near = found["ddim", w], found[name, w], found["ees25", w]
            benefit = rev.paired(ddim, "kept")
            if benefit.low <= 0.0:
                continue
            gained += 1
            rest = _rest(near, rev, ddim)
            words.append(f"{name} at {w:g}: exact gains {shown(benefit, '{:+.2f}')} dB, ees25 keeps {rest[0]}")
            kept, lost = kept + (rest[1] > 0), lost + (rest[1] < 0)
    verdict = (
        EMPTY if not gained else HOLDS if kept == gained else FAILS if lost == gained else PARTLY if kept else OPEN
    )
    return Claim(
        "background preservation",
        "near-reversible methods (ees25) largely retain the background that reversible solvers preserve: at least half "
        "of what a stable exact solver gains over DDIM",
        '"largely retains"; no number in the sources at hand',
        f"a stable exact solver gains over DDIM in {gained} of {len(calm) * (1 + len(strong))} settings; of these "
        f"gains, ees25 retains at least half in {kept} and less than half in {lost}, by the intervals. "
        + "; ".join(words),
        verdict,
    )


def _rest(near: Row, rev: Row, ddim: Row) -> tuple[str, int]:
    """What of the exact solver's gain over DDIM is retained, and whether it is more (1) or less (-1) than half."""
    a, b, c = (torch.tensor(row.seen.kept, dtype=torch.float64) for row in (near, rev, ddim))
    known = a.isfinite() & b.isfinite() & c.isfinite()
    over = mean((2.0 * a - b - c)[known])  # twice what is retained beyond a half
    share = ((a - c)[known].mean() / (b - c)[known].mean()).item()
    return f"{share:.0%}", 1 if over.low >= 0.0 else -1 if over.high < 0.0 else 0


def _finite_mean(values: Sequence[float]) -> Estimate:
    x = torch.tensor(values, dtype=torch.float64)
    return mean(x[x.isfinite()])


def _rate(values: Sequence[bool]) -> str:
    e = wilson(sum(values), len(values))
    return f"{e.value:.0%} [{e.low:.0%}, {e.high:.0%}]"
