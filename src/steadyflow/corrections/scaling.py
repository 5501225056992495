"""Corrections that make every step longer or shorter: by a constant, or by the batch's second moment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._integrate import StepInfo
from .._internal.tensors import broadcast
from ..errors import InputError


@dataclass(frozen=True)
class Relaxed:
    """Every step between two noise levels taken `factor` times as far: no Stein, no cost. A control, and a remedy.

    Raises `InputError` unless 0 < factor < 2.
    """

    factor: float = 1.05
    levels: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self):
        if not 0.0 < self.factor < 2.0:
            raise InputError(f"relaxed: expected 0 < factor < 2, got {self.factor}")

    def __call__(self, info: StepInfo) -> Any:
        if not acts_between(info, self.levels):
            return None
        return rescaled(info, torch.tensor(self.factor, dtype=info.x.dtype, device=info.x.device))


@dataclass(frozen=True)
class MomentMatching:
    """Each step scaled so that the batch has the second moment that the path has at the new level; no evaluations.

    On the path E|y|^2 / d = m + chi^2, m the data's mean square. Few-step flows contract too little or too much; this
    puts the size right, and only that. The scale gamma solves E|y - gamma u|^2 = d (m + chi1^2), the root nearer to 1.

    mean_square: m, of the training data's numbers. trust: gamma is kept in [1 - trust, 1 + trust]. A batch should hold
    a few hundred numbers at least. Raises `InputError` for a mean square or a trust that is not positive.
    """

    mean_square: float
    trust: float = 0.25

    def __post_init__(self):
        if not (self.mean_square > 0.0 and self.trust > 0.0):
            raise InputError(f"moments: expected positive numbers, got {self.mean_square} and {self.trust}")

    def __call__(self, info: StepInfo) -> Any:
        start, end = info.step.start, info.step.end
        if info.step.rising or start.alpha == 0.0:
            return None
        y = info.solver.output(info.before).double() / start.alpha
        u = residual(info).double()
        a, b = u.square().mean(), -2.0 * (y * u).mean()
        c = y.square().mean() - (self.mean_square + end.ratio**2)
        root = (b * b - 4.0 * a * c).clamp_min(0.0).sqrt()  # no solution: the nearest there is
        roots = torch.stack([(-b - root) / (2.0 * a), (-b + root) / (2.0 * a)])
        gamma = roots[(roots - 1.0).abs().argmin()].nan_to_num(1.0).clamp(1.0 - self.trust, 1.0 + self.trust)
        return rescaled(info, gamma.to(info.x.dtype))


def residual(info: StepInfo) -> Tensor:
    """u = y - T(y) of the step that was made, in y = x / alpha, shape (B, ...)."""
    return info.solver.output(info.before) / info.step.start.alpha - info.x / info.step.end.alpha


def rescaled(info: StepInfo, gamma: Tensor) -> Any:
    """The solver's state at y - gamma u, gamma a number or of shape (B,)."""
    end = info.step.end
    # y - gamma u = T(y) + (1 - gamma) u
    x = info.x + (1.0 - broadcast(gamma, info.x)) * residual(info) * end.alpha
    return info.solver.with_sample(info.state, x, info.step.schedule, end.t)


def acts_between(info: StepInfo, levels: tuple[float, float]) -> bool:
    """Whether the step denoises from a finite noise level between the given ones."""
    level = info.step.start.ratio
    return levels[0] <= level <= levels[1] and math.isfinite(level) and not info.step.rising
