"""The main job on real input: held-out digits are inverted, reconstructed, and edited to another digit.

For each solver and budget of evaluations each way, `study` reports how well the digits come back, how many
edits a classifier of real digits takes for the target, how far they are from their source, how large the
state grew, and the time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from steadyflow import solvers
from steadyflow.datasets import digits
from steadyflow.denoisers.base import Denoiser
from steadyflow.metrics import rmse
from steadyflow.models import load
from steadyflow.solvers.base import steps_for
from steadyflow.tasks import invert

from .digits import recognise
from .watching import Largest

SOLVERS = ("ddim", "midpoint", "rk4", "ees25", "ees27")
BUDGETS = (24, 48, 96)
GUIDANCES = (1.0, 3.0, 7.5)


@dataclass(frozen=True)
class Row:
    """What one solver gave at one budget."""

    solver: str
    nfe: int
    """Evaluations each way."""
    error_median: float
    error_p95: float
    recognised: dict[float, float]
    """Share of the edits seen as the target digit, by guidance."""
    distance: dict[float, float]
    """Median root mean square distance of the edits from their sources, by guidance."""
    largest: float
    """Largest |x| met in any generation."""
    seconds: float


@dataclass(frozen=True)
class Shown:
    """What one solver made of the sources."""

    latent: Tensor
    reconstruction: Tensor
    edits: dict[float, Tensor]
    """By guidance."""


@dataclass(frozen=True)
class Study:
    """What the demonstration gave: all rows, and the pictures of every solver at one budget."""

    rows: list[Row]
    source: Tensor
    labels: Tensor
    targets: Tensor
    shown: dict[str, Shown]
    """By solver."""
    nfe_shown: int
    seconds: float = 0.0
    guidances: tuple[float, ...] = field(default=GUIDANCES)


def study(
    n: int = 100,
    *,
    names: Sequence[str] = SOLVERS,
    budgets: Sequence[int] = BUDGETS,
    guidances: Sequence[float] = GUIDANCES,
    show: int = 48,
    model: Denoiser | None = None,
    progress: Callable[[str], None] | None = None,
) -> Study:
    """Run the demonstration on the first n held-out digits.

    show: the budget whose pictures are returned, if it is among the budgets, else the first. progress: called with each
    setting as it ends.
    """
    began = time.perf_counter()
    model = model or load("digits")
    images, labels = (part[:n] for part in digits("held-out"))
    targets = (labels + 5) % 10
    rows, shown = [], {}
    show = show if show in budgets else budgets[0]
    for name in names:
        for budget in budgets:
            row, pictures = _one(model, images, labels, targets, name, budget, guidances)
            rows.append(row)
            if budget == show:
                shown[name] = pictures
            if progress is not None:
                progress(f"{name}, {budget} evaluations")
    seconds = time.perf_counter() - began
    return Study(rows, images, labels, targets, shown, show, seconds, tuple(guidances))


def _one(
    model: Denoiser,
    images: Tensor,
    labels: Tensor,
    targets: Tensor,
    name: str,
    budget: int,
    guidances: Sequence[float],
) -> tuple[Row, Shown]:
    began = time.perf_counter()
    solver = solvers.get(name)
    largest = Largest()
    inversion = invert(model.with_condition(labels), images, solver=solver, steps=steps_for(solver, budget))
    same = inversion.decode(callback=largest)
    error = rmse(same.x, images)
    edits = {w: inversion.decode(model.with_condition(targets), guidance=w, callback=largest).x for w in guidances}
    row = Row(
        name,
        inversion.nfe,
        error.median().item(),
        error.quantile(0.95).item(),
        {w: (recognise(x) == targets).float().mean().item() for w, x in edits.items()},
        {w: rmse(x, images).median().item() for w, x in edits.items()},
        largest.value,
        time.perf_counter() - began,
    )
    return row, Shown(inversion.latent, same.x, edits)


def table(result: Study) -> tuple[list[str], list[list[str]]]:
    """Give the rows as text: the headings, and a list of cells per row."""
    heads = ["solver", "nfe", "error median", "error p95"]
    heads += [f"edited w={w:g}" for w in result.guidances] + [f"kept w={w:g}" for w in result.guidances]
    heads += ["max |x|", "seconds"]
    cells = [
        [
            row.solver,
            str(row.nfe),
            f"{row.error_median:.1e}",
            f"{row.error_p95:.1e}",
            *(f"{row.recognised[w]:.0%}" for w in result.guidances),
            *(f"{row.distance[w]:.2f}" for w in result.guidances),
            f"{row.largest:.1f}",
            f"{row.seconds:.1f}",
        ]
        for row in result.rows
    ]
    return heads, cells
