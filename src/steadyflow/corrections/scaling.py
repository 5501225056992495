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
    """A correction that takes every step between two noise levels `factor` times as far, at no cost.

    It is a control for `Stein`, and a remedy of its own.

    Args:
        factor: How many times as far to go, in (0, 2).
        levels: The noise levels sigma/alpha, of a step's beginning, between which it acts.

    Raises:
        InputError: The factor is out of range.
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
    """A correction that scales each step so that the batch has the second moment of the path at the new level.

    It needs no evaluations. On the path E|y|^2 / d = m + chi^2, with m the data's mean square. Few-step flows contract
    too little or too much; this puts the size right, and only that. The scale gamma solves E|y - gamma u|^2 =
    d (m + chi1^2); of two roots the one nearer to 1 is taken. A batch should hold a few hundred numbers at least.

    Args:
        mean_square: m, the mean square of the numbers in the training data.
        trust: How far gamma may depart from 1: it is clipped to [1 - trust, 1 + trust].

    Raises:
        InputError: The mean square or the trust is not positive.
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
    """The residual u = y - T(y) of the step that was made, in y = x / alpha.

    Args:
        info: Where the run stands.

    Returns:
        u, shape (B, ...).
    """
    return info.solver.output(info.before) / info.step.start.alpha - info.x / info.step.end.alpha


def rescaled(info: StepInfo, gamma: Tensor) -> Any:
    """Take the step that was made gamma times as far.

    Args:
        info: Where the run stands.
        gamma: The factor, a number or one per sample, shape (B,).

    Returns:
        The solver's state at y - gamma u.
    """
    end = info.step.end
    # y - gamma u = T(y) + (1 - gamma) u
    x = info.x + (1.0 - broadcast(gamma, info.x)) * residual(info) * end.alpha
    return info.solver.with_sample(info.state, x, info.step.schedule, end.t)


def acts_between(info: StepInfo, levels: tuple[float, float]) -> bool:
    """Whether the step that was made denoises from a finite noise level within a range.

    Args:
        info: Where the run stands.
        levels: The lowest and the highest noise level sigma/alpha.
    """
    level = info.step.start.ratio
    return levels[0] <= level <= levels[1] and math.isfinite(level) and not info.step.rising
