"""Which call of a network on the way up a call on the way down repeats.

An exactly reversible solver asks on its way down what it has asked on its way up, but not simply in the opposite order:
the stages of a Runge-Kutta step keep theirs, while the steps change it. It is found by trial, on a field of four
numbers that costs nothing: what is asked at the same time and at the same place is the same call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..._integrate import integrate
from ...denoisers.base import Denoiser
from ...noise import NoiseSource
from ...prediction import Prediction
from ...tasks.inversion import Inversion


@dataclass(frozen=True, eq=False)
class _Trial(Denoiser):
    """A field that remembers what it was asked."""

    asked: list[tuple[float, Tensor]] = field(default_factory=list[tuple[float, Tensor]])

    def __call__(self, x: Tensor, t: float | Tensor) -> Prediction:
        self.asked.append((float(t), x))
        return super().__call__(x, t)


def repeated(inversion: Inversion, model: Denoiser, noise: Callable[[Tensor], NoiseSource]) -> list[int]:
    """The number of the call on the way up, for each call on the way down.

    Args:
        inversion: The way up.
        model: The model that is asked.
        noise: The source of noise for a state.
    """
    trial = _Trial(_small, model.schedule, prediction=model.prediction)
    x = torch.linspace(-1.0, 1.5, 4, dtype=torch.float64)[None]
    options: dict[str, Any] = {"noise": noise(x), "progress": False}
    solver = inversion.solver
    with torch.no_grad():
        up = integrate(trial, x, inversion.grid, solver, **options)
        first = list(trial.asked)
        trial.asked.clear()
        down, state = solver.way_back(model.schedule, inversion.grid), solver.for_decoding(up.state)
        integrate(trial, None, down, solver, state=state, **options)
    left, found = set(range(len(first))), list[int]()
    for t, place in trial.asked:
        nearest = min(left or range(len(first)), key=lambda k: _apart(first[k], t, place))
        left.discard(nearest)
        found.append(nearest)
    return found


def _small(x: Tensor, time: Tensor) -> Tensor:
    return 0.5 * torch.sin(x)


def _apart(call: tuple[float, Tensor], t: float, place: Tensor) -> tuple[float, float]:
    """How far two calls are from each other: in time up to rounding, and then in place."""
    return round(abs(call[0] - t) / (1.0 + abs(t)), 9), float((call[1] - place).abs().max())
