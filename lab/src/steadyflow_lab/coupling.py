"""Exact reversibility against stability: edits at rising guidance, with fixed and with automatic coupling.

A conditional mixture in 16 dimensions (ten components, two classes, twelve thin directions of spread 0.04), or the
digits model on held-out digits. Samples are inverted under their own class at guidance 1 and generated under another
at guidance w. The error of an edit is its distance to the same edit by a fine reference solve (dopri5, 400 steps).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steadyflow import solvers
from steadyflow.datasets import digits
from steadyflow.denoisers import Denoiser, GaussianMixture
from steadyflow.errors import NonFiniteError, UnknownNameError
from steadyflow.metrics import rmse
from steadyflow.models import load
from steadyflow.runs.engines import Engine, InProcess
from steadyflow.schedules import VPScaledLinear
from steadyflow.solvers.base import steps_for
from steadyflow.tasks import invert

from .watching import Largest

METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ddim", {}),
    ("midpoint", {}),
    ("rk4", {}),
    ("ees25", {}),
    ("ees27", {}),
    ("rex-euler", {}),
    ("rex-euler", {"coupling": "auto"}),
    ("rex-euler", {"coordinates": "flow", "coupling": "auto"}),
    ("rex-midpoint", {}),
    ("rex-midpoint", {"coupling": "auto"}),
    ("rex-midpoint", {"coordinates": "flow", "coupling": "auto"}),
    ("edict", {}),
    ("edict", {"alternate": False}),
    ("edict", {"coupling": "auto"}),
    ("bdia", {}),
    ("bdia", {"coupling": "auto"}),
    ("belm", {}),
    ("alf", {}),
    ("reversible-heun", {}),
)


@dataclass(frozen=True)
class Row:
    """What one method gave at one budget."""

    solver: str
    options: str
    nfe: int
    round_trip: float
    """Median root mean square error of the round trip, in float64."""
    predicted_growth: float
    """Of rounding errors in the inversion, by the determinants."""
    edit_error: dict[float, float]
    """Median root mean square distance to the reference edit, by guidance."""
    largest: dict[float, float]
    """Largest |x| on the way of the edit, by guidance; infinite where the run diverged."""


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
        images, labels = digits("held-out")
        return load("digits"), images[:n].double(), labels[:n], (labels[:n] + 5) % 10
    raise UnknownNameError("problem", name, ("mixture", "digits"))


def study(
    name: str = "mixture",
    *,
    n: int = 64,
    nfe: int = 48,
    grid: str = "quadratic",
    guidances: Sequence[float] = (1.0, 3.0, 7.5),
    methods: Sequence[tuple[str, dict[str, Any]]] = METHODS,
    engine: Engine | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Run all methods on a problem at the same number of evaluations each way, in this process or on an engine."""
    model, x, labels, targets = problem(name, n)
    here, there = model.with_condition(labels), model.with_condition(targets)
    exact = invert(here, x, solver="dopri5", steps=400, grid="log-snr")
    reference = {w: exact.decode(there, guidance=w).x for w in guidances}

    def one(entry: tuple[str, dict[str, Any]]) -> Row:
        method, options = entry
        solver = solvers.get(method, **options)
        inversion = invert(here, x, solver=solver, steps=steps_for(solver, nfe), grid=grid)
        errors, largest = {}, {}
        for w in guidances:
            seen = Largest()
            try:
                edited = inversion.decode(there, guidance=w, callback=seen).x
                errors[w], largest[w] = rmse(edited, reference[w]).median().item(), seen.value
            except NonFiniteError:
                errors[w] = largest[w] = float("inf")
        text = ", ".join(f"{key}={value}" for key, value in options.items())
        growth = solver.inverse_growth(model.schedule, inversion.grid)
        back = rmse(inversion.decode().x, x).median().item()
        return Row(method, text, inversion.nfe, back, growth, errors, largest)

    rows = []
    for row in (engine or InProcess()).map(one, methods):
        rows.append(row)
        if progress is not None:
            progress(f"{row.solver} {row.options}")
    return rows


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Give the rows as text: the headings, and a list of cells per row."""
    guidances = list(rows[0].edit_error)
    heads = ["solver", "options", "nfe", "round trip", "growth"]
    heads += [f"edit error w={w:g}" for w in guidances] + [f"max |x| w={w:g}" for w in guidances]
    cells = [
        [
            row.solver,
            row.options,
            str(row.nfe),
            f"{row.round_trip:.1e}",
            f"{row.predicted_growth:.1e}",
            *(f"{row.edit_error[w]:.4f}" for w in guidances),
            *(f"{row.largest[w]:.1f}" for w in guidances),
        ]
        for row in rows
    ]
    return heads, cells


def draw(rows: Sequence[Row], axes: Any) -> None:
    """Draw the trade-off on matplotlib axes: round-trip error against the error of the strongest edit."""
    strongest = max(rows[0].edit_error)
    for row in rows:
        exact = row.round_trip < 1e-10
        axes.plot(row.round_trip, row.edit_error[strongest], "s" if exact else "o", color="C1" if exact else "C0")
        label = f"{row.solver} {row.options}".strip()
        axes.annotate(
            label, (row.round_trip, row.edit_error[strongest]), fontsize=6, xytext=(4, 2), textcoords="offset points"
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="round-trip error (rms, float64)",
        ylabel=f"edit error at guidance {strongest:g}",
    )
    axes.grid(alpha=0.3)
