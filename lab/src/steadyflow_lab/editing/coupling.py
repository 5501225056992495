"""Exact reversibility against stability: edits at rising guidance, with published and with automatic couplings.

A conditional mixture in 16 dimensions (ten components, two classes, twelve thin directions of spread 0.04), or the
digits model on held-out digits. Samples are inverted under their own class at guidance 1 and generated under another
at guidance w. The error of an edit is its distance to the same edit by a fine reference solve (dopri5, 400 steps). A
round trip at guidance w is inverted and generated under its own class with that guidance both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from steadyflow.datasets import digits as digits_data
from steadyflow.denoisers import Denoiser, GaussianMixture
from steadyflow.errors import NonFiniteError, UnknownNameError
from steadyflow.metrics import rmse
from steadyflow.models import load
from steadyflow.schedules import VPScaledLinear
from steadyflow.solvers.base import steps_for
from steadyflow.tasks import invert

from ..findings import HOLDS, PARTLY, Claim, Curve, Finding, shown, verdict
from ..studies import Bench
from ..watching import Largest
from .methods import GUIDANCES, METHODS, NEAR, PUBLISHED, Method, exact, label, median, ratio, solver_of

NFE = 48
"""Model evaluations each way."""
FINE = 400
"""Steps of the fine solve."""
BLOWN = 3.0
"""An edit whose largest number exceeds that of the fine solve this many times has blown up."""


@dataclass(frozen=True)
class Row:
    """What one method gave."""

    method: str
    nfe: int
    round_trip: dict[float, list[float]]
    """Root mean square error of each sample's round trip in float64, by guidance; infinite where the run diverged."""
    growth: float
    """Of rounding errors in the inversion, by the determinants."""
    edit_error: dict[float, list[float]]
    """Root mean square distance of each sample to the reference edit, by guidance."""
    largest: dict[float, float]
    """Largest |x| on the way of the edits, by guidance; infinite where the run diverged."""


def conditional_mixture(seed: int = 0) -> GaussianMixture:
    """Make a mixture of ten components in 16 dimensions, of two classes, thin in twelve directions."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(10, 16, generator=generator, dtype=torch.float64)
    std = torch.full((10, 16), 0.04, dtype=torch.float64)
    std[:, :4] = 0.5
    return GaussianMixture(means, std, labels=torch.arange(10) % 2)


def problem(name: str, n: int) -> tuple[Denoiser, Tensor, Tensor, Tensor]:
    """Give a model, n samples, their labels and the labels to edit to; the name is "mixture" or "digits"."""
    if name == "mixture":
        mixture = conditional_mixture()
        zeros = torch.zeros(n, dtype=torch.long)
        return mixture.denoiser(VPScaledLinear()), mixture.sample(n, label=0), zeros, zeros + 1
    if name == "digits":
        images, labels = digits_data("held-out")
        return load("digits"), images[:n].double(), labels[:n], (labels[:n] + 5) % 10
    raise UnknownNameError("problem", name, ("mixture", "digits"))


@cache
def reference(name: str, n: int, guidances: tuple[float, ...]) -> tuple[dict[float, Tensor], dict[float, float]]:
    """Give the edits of a fine solve, and the largest |x| on their way, by guidance."""
    model, x, labels, targets = problem(name, n)
    fine = invert(model.with_condition(labels), x, solver="dopri5", steps=FINE, grid="log-snr")
    edits, largest = {}, {}
    for w in guidances:
        seen = Largest()
        edits[w] = fine.decode(model.with_condition(targets), guidance=w, callback=seen).x
        largest[w] = seen.value
    return edits, largest


def measure(name: str, n: int, nfe: int, guidances: tuple[float, ...], method: Method) -> Row:
    """Edit and reconstruct by one method."""
    model, x, labels, targets = problem(name, n)
    wanted, _ = reference(name, n, guidances)
    here, there, solver = model.with_condition(labels), model.with_condition(targets), solver_of(method)
    steps = steps_for(solver, nfe)
    inversion = invert(here, x, solver=solver, steps=steps)
    errors, largest, back = {}, {}, {}
    for w in guidances:
        seen = Largest()
        try:
            edited = inversion.decode(there, guidance=w, callback=seen).x
            errors[w], largest[w] = rmse(edited, wanted[w]).tolist(), seen.value
        except NonFiniteError:
            errors[w], largest[w] = [float("inf")] * n, float("inf")
        try:
            guided = inversion if w == 1.0 else invert(here.with_guidance(w), x, solver=solver, steps=steps)
            back[w] = rmse(guided.decode().x, x).tolist()
        except NonFiniteError:
            back[w] = [float("inf")] * n
    growth = solver.inverse_growth(model.schedule, inversion.grid)
    return Row(label(method), inversion.nfe, back, growth, errors, largest)


def study(
    bench: Bench, name: str, methods: Sequence[Method] = METHODS, guidances: tuple[float, ...] = GUIDANCES
) -> list[Row]:
    """Run all methods on a problem at the same number of evaluations each way."""
    return bench.map(partial(measure, name, bench.size.n, NFE, guidances), methods)


def mixture(bench: Bench) -> Finding:
    """Compare the methods on the exact mixture."""
    return _figure(bench, "mixture", "a mixture in 16 dimensions with its exact score")


def digits(bench: Bench) -> Finding:
    """Compare the methods on held-out digits."""
    return _figure(bench, "digits", "held-out real digits")


def _figure(bench: Bench, name: str, words: str) -> Finding:
    rows = {row.method: row for row in study(bench, name)}
    strongest = max(GUIDANCES)
    _, usual = reference(name, bench.size.n, GUIDANCES)
    published, near = [label(m) for m in PUBLISHED], [label(m) for m in NEAR]
    blown = [m for m in published if rows[m].largest[strongest] > BLOWN * usual[strongest]]
    calm = [m for m in published if m not in blown]
    errors = {m: torch.tensor(row.edit_error[strongest]) for m, row in rows.items()}
    worse = {m: ratio(errors[m], errors["ees25"]) for m in rows if m not in near}
    ours = [m for m in rows if exact_label(m) and m not in published]
    cost = {m: ratio(errors[m], errors["ddim"]) for m in (*published, *ours)}
    claims = [
        Claim(
            f"instability, {name}",
            "exactly reversible solvers blow up under strong edits",
            '"often exhibit instabilities"; no number in the sources at hand',
            f"{len(blown)} of {len(published)} exceed {BLOWN:g} times the fine solve's largest absolute value "
            f"({', '.join(blown) or 'none'}); bounded: {', '.join(calm) or 'none'}",
            verdict(not calm, PARTLY if blown else "does not hold"),
        ),
        Claim(
            f"stability, {name}",
            "the near-reversible ees25 is more accurate than exactly reversible solvers at equal cost in a strong edit",
            '"a more stable alternative"; no number in the sources at hand',
            f"edit error relative to that of ees25 at w = {strongest:g}: "
            + "; ".join(f"{m} {shown(worse[m], '{:.3g}')}" for m in (*published, *ours)),
            _all_some([worse[m].low > 1.0 for m in (*published, *ours)]),
        ),
        Claim(
            f"the trade-off, {name}",
            "exact reversibility is paid for in stability: in a strong edit every exactly reversible solver is less "
            "accurate than DDIM, whose round trip is the worst",
            '"the trade-off between exact reversibility and numerical stability"; no number in the sources at hand',
            f"edit error relative to that of ddim at w = {strongest:g}: "
            + "; ".join(f"{m} {shown(e, '{:.3g}')}" for m, e in cost.items()),
            _all_some([e.low > 1.0 for e in cost.values()]),
        ),
    ]
    heads = ["solver", *(f"{what}, w = {w:g}" for what in ("round-trip error", "edit error") for w in GUIDANCES)]
    heads += [f"largest abs(x), w = {strongest:g}"]
    cells = [
        [
            f"`{m}`" if "," not in m else f"`{m.split(',')[0]}`, flow coordinates, auto coupling",
            *(f"{median(row.round_trip[w]).value:.1e}" for w in GUIDANCES),
            *(_short(median(row.edit_error[w]).value) for w in GUIDANCES),
            f"{row.largest[strongest]:.3g}",
        ]
        for m, row in rows.items()
    ]
    curves = [
        Curve(m, list(GUIDANCES), [median(row.edit_error[w]).value for w in GUIDANCES]) for m, row in rows.items()
    ]
    note = (
        f"{bench.size.n} samples of {words}, {NFE} evaluations each way, float64; medians. The largest absolute value "
        f"along the fine solve at w = {strongest:g} is {usual[strongest]:.3g}."
    )
    axes = ("guidance w", "distance to the fine solve")
    title = f"Exact reversibility against stability, {name}"
    return Finding(f"coupling-{name}", title, claims, heads, cells, note, curves, axes, ("linear", "log"))


def exact_label(name: str) -> bool:
    """Whether the method of a label is exactly reversible."""
    return any(label(m) == name and exact(m) for m in METHODS)


def _all_some(found: Sequence[bool]) -> str:
    return HOLDS if all(found) else PARTLY if any(found) else "does not hold"


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"
