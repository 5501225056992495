"""Figures of the study: what the paper's coefficient and its controls do to few-step samples, by four measures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from steadyflow.metrics import frechet_distance, precision_recall
from steadyflow.metrics.statistics import Estimate

from ..findings import FAILS, HOLDS, OPEN, PARTLY, Claim, Finding
from ..studies import Bench
from .problems import problems
from .runs import Study, mean, study
from .settings import CLAMPED, CONTROLS, FREE, PLAIN, families

_KINDS = ("exact", "learned", "wrong")
_WORDS = "better quality and fewer artifacts in large-step sampling, by FID; the numbers are not in the sources at hand"


def study_figure(bench: Bench, solver: str) -> Finding:
    """Compare every family at its tuned setting with the plain solver, over problems, budgets and seeds."""
    found = study(bench, solver)
    rows = [_row(found, family) for family in families() if family != PLAIN]
    heads = ["family", "setting", *_KINDS, "Frechet", "precision", "recall", "recognised", "newly diverged"]
    return Finding(
        f"study-{solver}",
        f"Few steps with {solver}, relative to the plain solver",
        _claims(found),
        heads,
        rows,
        note=(
            "Exact, learned, wrong: sliced Wasserstein distance to the data relative to the plain solver's, by kind of "
            "score; geometric mean over problems, budgets and seeds with a 95 % bootstrap interval; below 1 is better. "
            "Frechet: the Frechet distance in the data's own coordinates, also relative to the plain solver's, over "
            "all problems. Precision and recall: change from the plain solver, over all problems. Recognised: change "
            "in the share of digits that a classifier recognises as the intended digit. A run that broke off counts as "
            "a thousand times the plain solver's distance. Each family is shown with the one setting that did best on "
            "other problems with another seed."
        ),
    )


def _row(found: Study, family: str) -> list[str]:
    changes = [change(found.change(family, name)) for name in _MEASURES]
    changes.append(change(found.change(family, "recognised", "learned")))
    ratios = [short(found.ratio(family, kind)) for kind in _KINDS]
    frechet = short(found.ratio(family, of="frechet"))
    label = found.chosen[family]
    return [family, label, *ratios, frechet, *changes, f"{found.newly_diverged(family):.1%}"]


_MEASURES = ("precision", "recall")


def short(e: Estimate) -> str:
    """Write a ratio with its interval."""
    return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]"


def _claims(found: Study) -> list[Claim]:
    claims = []
    for families_, label, how in (
        (FREE, "as written", "applied at every step and unclipped"),
        (CLAMPED, "in a trust region", "applied at every step and clipped to a tuned trust region"),
    ):
        cells = {(f, kind): found.ratio(f, kind) for f in families_ for kind in _KINDS}
        here = "; ".join(
            f"{f.split(',')[1].strip()} form, " + ", ".join(f"{kind} {short(cells[f, kind])}" for kind in _KINDS)
            for f in families_
        )
        diverged = max(found.newly_diverged(f) for f in families_)
        claims.append(
            Claim(
                f"quality, {found.solver}, {label}",
                f"the paper's coefficient, {how}, improves few-step samples of {found.solver}",
                _WORDS,
                f"distance relative to the plain solver's: {here}{_at_limit(found, families_)}; newly diverged "
                f"samples: at most {diverged:.0%}",
                decided([e.high < 1.0 for e in cells.values()], [e.low > 1.0 for e in cells.values()]),
            )
        )
    best = min(CLAMPED + FREE, key=lambda f: found.ratio(f).value)
    over = {control: found.ratio(best, over=control) for control in CONTROLS}
    claims.append(
        Claim(
            f"ours, {found.solver}, against controls",
            f"the best of the paper's forms with {found.solver} does better than each control: a constant, one more "
            "step, or equal cost",
            "no such controls in the sources at hand",
            f"best form: {best.removeprefix('paper, ')}; its distance relative to that of each control: "
            + ", ".join(f"{name} {short(e)}" for name, e in over.items()),
            decided([e.high < 1.0 for e in over.values()], [e.low > 1.0 for e in over.values()]),
        )
    )
    return claims


def _at_limit(found: Study, names: Sequence[str]) -> str:
    """Say how many of the clipped coefficients lay at the end of the trust region."""
    shares = {f: [r.limited for r in found.of(f) if math.isfinite(r.limited)] for f in names if "clamped" in f}
    words = [f"{f.split(',')[1].strip()} {mean(values):.0%}" for f, values in shares.items() if values]
    return f"; steps at the edge of the region: {', '.join(words)}" if words else ""


def decided(parts: Sequence[bool], contrary: Sequence[bool] | None = None) -> str:
    """Give the verdict on a claim that was decided in several cells.

    contrary: the cells whose interval says the opposite; by default all that do not say so. Where no cell says either,
    nothing is decided.
    """
    if all(parts):
        return HOLDS
    if any(parts):
        return PARTLY
    return FAILS if contrary is None or any(contrary) else OPEN


_SHOWN = (PLAIN, *FREE, *CLAMPED, *CONTROLS, "moments", "moments, calibrated")


def quality(bench: Bench) -> Finding:
    """Give the Frechet distance, precision and recall of every problem, with DDIM."""
    found = study(bench, "ddim")
    names = list(dict.fromkeys(r.problem for r in found.results))
    rows = [_self(bench, names)]
    for family in _SHOWN:
        row = [family]
        for name in names:
            part = [r for r in found.of(family) if r.problem == name]
            values = [mean([min(getattr(r, key), 999.0) for r in part]) for key in ("frechet", *_MEASURES)]
            row.append(f"{values[0]:.3g} / {values[1]:.2f} / {values[2]:.2f}")
        rows.append(row)
    forms = {f: (found.ratio(f, of="frechet"), *(found.change(f, key) for key in _MEASURES)) for f in (*FREE, *CLAMPED)}
    return Finding(
        "quality",
        "Frechet distance, precision and recall on every problem, with DDIM",
        [
            Claim(
                "quality by three measures",
                f"the paper's coefficient lowers the Frechet distance at a cost of no more than {_LOSS:g} in precision "
                "or recall",
                "improved generative quality; FID, precision and recall are named, but the numbers are not in the "
                "sources at hand",
                "; ".join(
                    f"{f.removeprefix('paper, ')}: distance {short(ratio)} times the plain solver's, precision "
                    f"{change(precise)}, recall {change(recalled)}"
                    for f, (ratio, precise, recalled) in forms.items()
                ),
                decided([r.high < 1.0 and min(p.low, q.low) > -_LOSS for r, p, q in forms.values()]),
            )
        ],
        ["family", *names],
        rows,
        note=(
            "Frechet distance / precision / recall in the data's own coordinates, means over budgets and seeds; "
            "distances are capped at 999. The first row is fresh data (for the digits, one half of the images against "
            "the other)."
        ),
    )


_LOSS = 0.02


def change(e: Estimate) -> str:
    """Write a difference with its interval."""
    return f"{e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}]"


def _self(bench: Bench, names: Sequence[str]) -> list[str]:
    """The row of the data itself."""
    row, n = ["fresh data"], bench.size.n
    for problem in problems("test", n):
        assert problem.name in names
        data = problem.data.flatten(1)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(bench.size.seed))
        part = min(n, len(data) // 2)
        a, b = data[order[:part]], data[order[part : 2 * part]]
        precise, recalled = precision_recall(a, b)
        frechet = frechet_distance(a, data[order[part:]], singular="allow")
        row.append(f"{frechet:.3g} / {precise:.2f} / {recalled:.2f}")
    return row
