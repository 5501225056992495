"""Choosing a solver for the user: by trying a few on a few of the samples.

For an inversion at a given budget of evaluations each way, the candidates are tried on up to eight samples, under the
condition and the guidance that will be asked for, and the best is taken. What is compared is the error of the round
trip; where the way back has another guidance or condition, also the distance of the edit to that of a reference
solve with eight times the budget. With `exact`, only exactly reversible solvers are tried, and the edit decides, or
the distance of the latent to the reference's where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import solvers
from ..denoisers.base import Denoiser
from ..errors import InputError, SteadyflowError
from ..metrics.images import rmse
from ..solvers.base import Solver, steps_for

APPROXIMATE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("midpoint", {}),
    ("rk4", {}),
    ("ees25", {}),
    ("ees27", {}),
    ("rk4", {"variable": "data"}),
    ("ees27", {"variable": "data"}),
)
EXACT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rex-euler", {"variable": "flow", "coupling": "auto"}),
    ("rex-midpoint", {"variable": "flow", "coupling": "auto"}),
    ("rex-rk4", {"variable": "flow", "coupling": "auto"}),
    ("belm", {}),
    ("alf", {}),
)
GRIDS = ("quadratic", "uniform")


class Inverted(Protocol):
    """What is used here of an `Inversion`."""

    @property
    def nfe(self) -> int:
        """Model evaluations a sample."""
        ...

    @property
    def latent(self) -> Tensor:
        """The latents, (B, ...)."""
        ...

    def decode(self, model: Denoiser | None = None) -> Any:
        """The samples of the latents."""
        ...


@dataclass(frozen=True)
class Choice:
    """A solver for a model and a budget."""

    solver: Solver
    steps: int
    grid: str
    reason: str
    """In one sentence."""
    errors: dict[str, float]
    """Of all candidates, "solver option on grid" -> the error by which they were judged."""
    nfe: int
    """Model evaluations that the trial spent, a sample tried."""


def choose(
    attempt: Callable[..., Inverted],
    model: Denoiser,
    x: Tensor,
    *,
    nfe: int = 48,
    exact: bool = False,
    target: Denoiser | None = None,
    samples: int = 8,
) -> Choice:
    """The best solver, variable and grid for inverting samples like x with nfe evaluations each way.

    attempt: the verb `invert`. The rest is told at `choose_solver`, which calls this.

    Raises `InputError` for a budget that pays for no candidate.
    """
    few = x[:samples]
    here = model.rows(0, len(few)) if len(x) > len(few) else model
    there = None if target is None else target.rows(0, len(few)) if len(x) > len(few) else target
    spent, reference = 0, None
    if there is not None or exact:
        fine = attempt(here, few, solver="rk4", steps=2 * nfe, grid="quadratic")
        decoded = fine.decode(there)
        reference, spent = (fine.latent, decoded.x), fine.nfe + decoded.nfe
    tried: dict[str, tuple[float, Solver, int, str]] = {}
    for name, options in EXACT if exact else APPROXIMATE:
        solver = solvers.get(name, **options)
        if nfe < (solver.facts.evaluations or 1):
            continue
        for grid in GRIDS:
            steps = steps_for(solver, nfe)
            label = " ".join([name, *(f"{k}={v}" for k, v in options.items()), "on", grid])
            try:
                inversion = attempt(here, few, solver=solver, steps=steps, grid=grid)
                spent += inversion.nfe
                error = _judge(inversion, few, there, reference, exact)
                spent += inversion.nfe * (2 if there is not None else 1)
            except SteadyflowError:
                error = float("inf")
            tried[label] = (error, solver, steps, grid)
    finite = {label: entry for label, entry in tried.items() if entry[0] < float("inf")}
    if not finite:
        raise InputError(f"solver 'auto': no candidate can invert with {nfe} evaluations; raise nfe or narrow the grid")
    best = min(finite, key=lambda label: finite[label][0])
    error, solver, steps, grid = finite[best]
    kind = "exactly reversible candidate" if exact else "candidate"
    what = "edit error" if reference is not None else "round-trip error"
    reason = (
        f"{best}, {steps} steps, had the smallest {what} ({error:.1e}) of {len(tried)} {kind}s tried on {len(few)} "
        f"sample(s) at {nfe} evaluations each way."
    )
    return Choice(solver, steps, grid, reason, {label: entry[0] for label, entry in tried.items()}, spent)


def _judge(inversion: Inverted, x: Tensor, there: Denoiser | None, reference: Any, exact: bool) -> float:
    """Median over the samples of the error by which a candidate is judged."""
    errors = []
    if not exact:
        errors.append(rmse(inversion.decode().x, x))
    if reference is not None:
        latent, edited = reference
        errors.append(rmse(inversion.latent, latent) if there is None else rmse(inversion.decode(there).x, edited))
    return torch.stack(errors).amax(0).median().item()
