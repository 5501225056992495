"""Corrections that make every step longer or shorter: by a constant, or by the batch's second moment."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .._integrate import StepInfo
from .._internal.tensors import broadcast
from ..errors import InputError

Space = Literal["noise", "model"]
"""Where a step is scaled: in y = x / alpha, the noise coordinates, or in x itself, model space."""


@dataclass
class ScalingRecord:
    """By how much a correction has scaled steps, over all steps of all runs since it was created."""

    factors: list[tuple[float, Tensor]] = field(default_factory=list[tuple[float, Tensor]])
    """Per step that denoised from a finite noise level, the level chi0 and the factor that was taken, a number or of
    shape (B,); 1 where the correction left the step alone."""


@dataclass(frozen=True)
class Relaxed:
    """A correction that takes every step between two noise levels `factor` times as far, at no cost.

    It is a control for `Stein`, and a remedy of its own.

    Args:
        factor: How many times as far to go, in (0, 2); a tensor, shape (), may require a gradient.
        levels: The noise levels sigma/alpha, of a step's beginning, between which it acts.

    Raises:
        InputError: The factor is out of range.
    """

    factor: float | Tensor = 1.05
    levels: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self):
        if not 0.0 < self.factor < 2.0:
            raise InputError(f"relaxed: expected 0 < factor < 2, got {self.factor}")

    def __call__(self, info: StepInfo) -> Any:
        if not acts_between(info, self.levels):
            return None
        return rescaled(info, torch.as_tensor(self.factor, dtype=info.x.dtype, device=info.x.device))


@dataclass(frozen=True)
class MomentMatching:
    """A correction that scales each step so that the batch has the second moment of the path at the new level.

    It needs no evaluations. On the path E|y|^2 / d = m + chi^2, with m the data's mean square. Few-step flows contract
    too little or too much; this puts the size right, and only that. The scale gamma solves E|y - gamma u|^2 =
    d (m + chi1^2); of two roots the one nearer to 1 is taken. A batch should hold a few hundred numbers at least.
    The mean is over the batch, so a sample depends on the others; `Calibrated` frees it of them.

    Args:
        mean_square: m, the mean square of the numbers in the training data.
        trust: How far gamma may depart from 1: it is clipped to [1 - trust, 1 + trust].
        record: The record to add to; a new one by default.

    Attributes:
        record: The factors. It is mutable and accumulates over all steps of all runs that the object is given to; it
            has no part in comparisons.

    Raises:
        InputError: The mean square or the trust is not positive.
    """

    mean_square: float
    trust: float = 0.25
    record: ScalingRecord = field(default_factory=ScalingRecord, compare=False)

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
        self.record.factors.append((start.ratio, gamma.detach()))
        return rescaled(info, gamma.to(info.x.dtype))


def residual(info: StepInfo, space: Space = "noise") -> Tensor:
    """The residual u = z - T(z) of the step that was made, with z = y = x / alpha, or z = x.

    Args:
        info: Where the run stands.
        space: "noise" for y, or "model" for x.

    Returns:
        u, shape (B, ...).
    """
    before = info.solver.output(info.before)
    if space == "model":
        return before - info.x
    return before / info.step.start.alpha - info.x / info.step.end.alpha


def rescaled(info: StepInfo, gamma: Tensor, space: Space = "noise") -> Any:
    """Take the step that was made gamma times as far.

    Args:
        info: Where the run stands.
        gamma: The factor, a number or one per sample, shape (B,).
        space: Where the step is a straight line: "noise" for y = x / alpha, or "model" for x.

    Returns:
        The solver's state at z - gamma u.
    """
    end = info.step.end
    # z - gamma u = T(z) + (1 - gamma) u
    scale = end.alpha if space == "noise" else 1.0
    x = info.x + (1.0 - broadcast(gamma, info.x)) * residual(info, space) * scale
    return info.solver.with_sample(info.state, x, info.step.schedule, end.t)


def acts_between(info: StepInfo, levels: tuple[float, float]) -> bool:
    """Whether the step that was made denoises from a finite noise level within a range.

    Args:
        info: Where the run stands.
        levels: The lowest and the highest noise level sigma/alpha.
    """
    return levels[0] <= info.step.start.ratio <= levels[1] and denoises(info)


def denoises(info: StepInfo) -> bool:
    """Whether the step that was made goes towards data, from a finite noise level.

    Args:
        info: Where the run stands.
    """
    return math.isfinite(info.step.start.ratio) and not info.step.rising
