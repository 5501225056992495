"""Gauss-Newton fits of schemes: end to end, on the states of the run itself.

The residual r of a sample is the end of its run less a target. With weights w = 1 / (mean r^2 + kappa), which are those
of the objective mean ln(mean r^2 + kappa) / 2, a step solves

    (H + mu diag H) step = -g,       g = mean of w J^T r,      H = mean of w J^T J,

with J the derivative of the end with respect to the scheme's numbers, and mu from trying (Levenberg and Marquardt).
kappa, a share of the first median error, keeps samples near a boundary between modes from being let go, and those
that are already good from ruling.

How g and H are had is in `derivatives`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from .._internal.tensors import rms
from .derivatives import Batch, Derivatives, Sensitivity, by_differences, by_sweep, sweep_runs
from .schemes import Numbers, run

_SHARE = 0.25
_TRIES = 8
_LONGEST = 8.0
_MEMORY = 0.5
"""The weight of earlier estimates of H."""


class Fittable(Protocol):
    """What is fitted: a scheme, or the two of a round trip."""

    @property
    def calls(self) -> int:
        """The number of calls of a run."""
        ...

    def packed(self) -> Tensor:
        """The numbers as one vector, shape (P,)."""
        ...

    def unpacked(self, values: Tensor) -> Self:
        """The same with other numbers."""
        ...

    def bounds(self, values: Tensor) -> dict[int, float]:
        """Which of the numbers are beyond their bounds, and the bounds."""
        ...


N = TypeVar("N", bound=Fittable, contravariant=True)
B = TypeVar("B", contravariant=True)


class Aim(Protocol[B, N]):
    """What a fit is about: residuals of batches."""

    def size(self, batch: B) -> int:
        """The number of samples."""
        ...

    def errors(self, batch: B, numbers: N) -> Tensor:
        """The size of each sample's residual, shape (B,), float64."""
        ...

    def sensitivity(
        self, batch: B, numbers: N, derivatives: Derivatives, generator: torch.Generator
    ) -> tuple[Sensitivity, int]:
        """The residuals with their derivatives, and what they cost in runs."""
        ...


class Normal(NamedTuple):
    """The normal equations of a step."""

    value: float
    """The objective."""
    gradient: Tensor
    """g, shape (P,), float64."""
    square: Tensor
    """H, shape (P, P)."""
    errors: Tensor
    """The samples' errors."""
    kappa: float


class Sampling:
    """The aim of sampling: the end of a run, less that of a fine one."""

    def size(self, batch: Batch) -> int:
        return len(batch.start)

    def errors(self, batch: Batch, numbers: Numbers) -> Tensor:
        with torch.no_grad():
            return rms((run(batch.field, numbers, batch.start).end - batch.target).double())

    def sensitivity(
        self, batch: Batch, numbers: Numbers, derivatives: Derivatives, generator: torch.Generator
    ) -> tuple[Sensitivity, int]:
        way = by_sweep if derivatives == "back-propagation" else by_differences
        return way(batch, numbers, generator), sweep_runs(numbers.calls, derivatives)


@dataclass(eq=False)
class Fit(Generic[B, N]):
    """A fit that goes on from step to step, and can be stopped between any two.

    Args:
        aim: What it is about.
        numbers: What to begin with.
        derivatives: How they are had.
        seed: Of the random signs.
    """

    aim: Aim[B, N]
    numbers: N
    derivatives: Derivatives
    seed: int
    steps: int = 0
    """Steps made."""
    damping: float = 1e-2
    """mu."""
    kappa: float | None = None
    """The constant of the objective, from the first step on."""
    square: Tensor | None = None
    """The estimate of H so far."""
    value: float = math.inf
    """The objective after the last step."""
    evaluations: int = 0
    """Model evaluations so far, of one start each."""
    of_mean: bool = False
    """Whether the constant is the mean square error (see `restart`)."""
    stuck: bool = False
    """Whether no step lowers the objective any more."""

    def cost(self, batches: Sequence[B]) -> int:
        """The model evaluations that a step takes at least, of one start each."""
        runs = 1 + sweep_runs(self.numbers.calls, self.derivatives)
        return runs * self.numbers.calls * sum(self.aim.size(batch) for batch in batches)

    def step(self, batches: Sequence[B], spend: Callable[[int], None] = lambda calls: None) -> Tensor:
        """Make a step.

        Args:
            batches: The samples.
            spend: Told the evaluations as they are made.

        Returns:
            The samples' errors before the step.
        """
        normal = self._normal(batches, spend)
        gradient, values = normal.gradient, self.numbers.packed()
        self.steps, self.stuck = self.steps + 1, True
        if not (math.isfinite(normal.value) and bool(gradient.isfinite().all() and normal.square.isfinite().all())):
            return normal.errors
        square = normal.square if self.square is None else torch.lerp(normal.square, self.square, _MEMORY)
        self.square = square
        scale = square.diagonal().clamp_min(1e-12 * float(square.diagonal().max()))
        lowest = normal.value
        for _ in range(_TRIES):
            change = self._change(square + self.damping * torch.diag(scale), gradient, values)
            length = 1.0
            while length <= _LONGEST:  # the logarithm bends down, so that longer steps often go lower
                tried = self.numbers.unpacked(values + length * change)
                value = self._value(batches, tried, normal.kappa, spend)
                if not value < lowest:
                    break
                self.numbers, self.stuck, lowest = tried, False, value
                length *= 2.0
            self.value = lowest
            if not self.stuck:
                self.damping = max(self.damping / 3.0, 1e-9)
                break
            self.damping *= 4.0
        return normal.errors

    def restart(self, numbers: N, *, of_mean: bool) -> None:
        """Go on from other numbers, with the objective's constant and the estimate of H as at the beginning.

        Args:
            numbers: The numbers.
            of_mean: Whether the constant is the mean square error instead, so that the largest errors count most.
        """
        self.numbers, self.kappa, self.square, self.damping = numbers, None, None, 1e-2
        self.of_mean, self.stuck, self.value = of_mean, False, math.inf

    def _change(self, square: Tensor, gradient: Tensor, values: Tensor) -> Tensor:
        """The step of the normal equations; what it would take beyond a bound stays there, and the rest is solved."""
        change = _solved(square, gradient)
        bounds = self.numbers.bounds(values + change)
        if not bounds:
            return change
        free = torch.tensor([k for k in range(len(values)) if k not in bounds])
        change = torch.zeros_like(values)
        change[free] = _solved(square[free][:, free], gradient[free])
        for k, bound in bounds.items():
            change[k] = bound - values[k]
        return change

    def _value(self, batches: Sequence[B], numbers: N, kappa: float, spend: Callable[[int], None]) -> float:
        """The objective; infinite where a run diverges."""
        found = torch.cat([self._spent(self.aim.errors(batch, numbers), batch, spend) for batch in batches])
        return _objective(found, kappa) if bool(found.isfinite().all()) else math.inf

    def _spent(self, found: Tensor, batch: B, spend: Callable[[int], None], runs: int = 1) -> Tensor:
        calls = runs * self.numbers.calls * self.aim.size(batch)
        self.evaluations += calls
        spend(calls)
        return found

    def _normal(self, batches: Sequence[B], spend: Callable[[int], None]) -> Normal:
        generator = torch.Generator().manual_seed((self.seed * 10007 + self.steps) % 2**62)
        if self.kappa is None:
            first = torch.cat([self._spent(self.aim.errors(batch, self.numbers), batch, spend) for batch in batches])
            share = float(first.square().mean()) if self.of_mean else (_SHARE * float(first.median())) ** 2
            self.kappa = max(share, 1e-30)
        size = sum(self.aim.size(batch) for batch in batches)
        errors: list[Tensor] = []
        gradient, square = torch.zeros(0), torch.zeros(0)
        for batch in batches:  # one at a time, so that memory does not grow with their number
            one, runs = self.aim.sensitivity(batch, self.numbers, self.derivatives, generator)
            error = self._spent(rms(one.residual.double()), batch, spend, runs)
            weight = 1.0 / (error.square() + self.kappa) / (size * one.residual.shape[1])
            rows = (one.square.double() * weight.sqrt()[:, None]).flatten(0, 1)
            g, h = (weight @ one.gradient.double()).cpu(), (rows.T @ rows).cpu()
            gradient, square = (g, h) if not errors else (gradient + g, square + h)
            errors.append(error.cpu())
        error = torch.cat(errors)
        return Normal(_objective(error, self.kappa), gradient, square, error, self.kappa)


def _solved(matrix: Tensor, gradient: Tensor) -> Tensor:
    return torch.linalg.lstsq(matrix, -gradient[:, None], driver="gelsd").solution[:, 0]  # also where it is singular


def _objective(found: Tensor, kappa: float) -> float:
    return float(0.5 * (found.square() + kappa).log().mean())
