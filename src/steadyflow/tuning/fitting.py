"""Gauss-Newton fits of schemes: end to end, on the states of the run itself.

The residual r of a sample is the end of its run less a target. With weights w = 1 / (mean r^2 + kappa), which are those
of the objective mean ln(mean r^2 + kappa) / 2, a step solves

    (H + mu diag H) step = -g,       g = mean of w J^T r,      H = mean of w J^T J,

with J the derivative of the end with respect to the scheme's numbers, and mu from trying (Levenberg and Marquardt).
kappa, a share of the first median error, keeps samples near a boundary between modes from being let go, and those
that are already good from ruling.

J is never formed where the network can be differentiated: a sweep back over the calls gives J^T z for the residual
and for a few random vectors z of signs, and the mean of (J^T z)(J^T z)^T over samples and vectors estimates H. It costs
some N (3 + vectors) evaluations for N calls, and holds the graph of one call at a time. Else J is computed column by
column by differences, from the first call that a number changes on, which costs about N^3 / 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from .schemes import Field, Numbers, Run, run

Derivatives = Literal["back-propagation", "differences", "none"]
"""How the derivatives of a run are had; without any, there are no Gauss-Newton steps."""

_PROBES = 3
_SHARE = 0.25
_TRIES = 8
_LONGEST = 8.0
_MEMORY = 0.5
"""The weight of earlier estimates of H."""
_DIFFERENCE = 3e-3
"""The size of a difference, relative to a state."""
_TIME_SHARE = 0.02
"""The size of a difference in time, relative to the nearest gap between calls."""


class Batch(NamedTuple):
    """Starts with what should come of them."""

    field: Field
    """The field, under the conditions of these samples."""
    start: Tensor
    """The starts in flow coordinates, shape (B, ...)."""
    target: Tensor
    """The ends, shape (B, ...)."""


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


class Sensitivity(NamedTuple):
    """Residuals of a batch and their derivatives with respect to the P numbers of a scheme."""

    residual: Tensor
    """Shape (B, D)."""
    gradient: Tensor
    """J^T r, shape (B, P)."""
    square: Tensor
    """Rows whose outer products have the mean J^T J, shape (M, B, P)."""


def rms(residual: Tensor) -> Tensor:
    """The root mean square of each sample's residual, shape (B,), float64."""
    return residual.flatten(1).double().square().mean(1).sqrt()


def sweep(
    field: Field, numbers: Numbers, start: Tensor, forward: Run, vectors: Sequence[Tensor], *, of_start: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Carry vectors at the end of a run back through it.

    Args:
        field: The field, which gradients pass.
        numbers: The scheme.
        start: The start, shape (B, ...).
        forward: Its run.
        vectors: M vectors z at the end, shape (B, ...) each.
        of_start: Whether the vectors at the start are wanted.

    Returns:
        J^T z for the scheme's numbers, shape (M, B, P), in the order of `Numbers.packed`; and for the start, if wanted.
    """
    n, count = numbers.calls, len(vectors)
    basis = torch.stack([one.flatten(1) for one in (start, *forward.slopes)], 1)
    flat = torch.stack([z.flatten(1) for z in vectors])
    parts: list[Tensor] = [torch.einsum("mbd,bkd->mbk", flat, basis)]
    rows: list[Tensor] = []
    of_times: list[Tensor] = []
    carried = [[float(numbers.weights[j + 1]) * z for z in vectors] for j in range(n)]
    at_start = [float(numbers.weights[0]) * z for z in vectors] if of_start else []
    for k in reversed(range(n)):
        if k == 0 and not of_start:
            break
        point, tau = forward.points[k].detach().requires_grad_(True), float(numbers.times[k])
        if k > 0:
            with torch.no_grad():
                step = _time_step(numbers, k)
                slope = (field(forward.points[k], tau + step) - forward.slopes[k]) / step
            of_times.append(torch.stack([(z * slope).flatten(1).sum(1) for z in carried[k]]))
        with torch.enable_grad():
            output = field(point, tau)
        back = [torch.autograd.grad(output, point, carried[k][i], retain_graph=i < count - 1)[0] for i in range(count)]
        if k > 0:
            pulled = torch.stack([one.flatten(1) for one in back])
            rows.append(torch.einsum("mbd,bkd->mbk", pulled, basis[:, : k + 1]))
        for i in range(count):
            for j in range(k):
                factor = float(numbers.rows[k, j + 1])
                if factor != 0.0:
                    carried[j][i] = torch.add(carried[j][i], back[i], alpha=factor)
            if of_start:
                at_start[i] = torch.add(at_start[i], back[i], alpha=float(numbers.rows[k, 0]))
    times = torch.stack(of_times[::-1], -1) if of_times else flat.new_zeros(count, len(start), 0)
    return torch.cat([*parts, *rows[::-1], times], -1), at_start


def _time_step(numbers: Numbers, k: int) -> float:
    """A difference in the time of call k, back towards the call before."""
    times = numbers.times
    before = float(times[k - 1] - times[k])
    after = float(times[k] - (times[k + 1] if k + 1 < len(times) else numbers.end))
    return math.copysign(_TIME_SHARE * min(abs(before), abs(after) or abs(before)), before)


def by_sweep(batch: Batch, numbers: Numbers, generator: torch.Generator) -> Sensitivity:
    """Residuals and derivatives by back-propagation.

    Args:
        batch: The samples.
        numbers: The scheme.
        generator: Of the random signs.
    """
    with torch.no_grad():
        forward = run(batch.field, numbers, batch.start)
    residual = forward.end - batch.target
    vectors = [residual, *(signs(residual, generator) for _ in range(_PROBES))]
    rows, _ = sweep(batch.field, numbers, batch.start, forward, vectors)
    return Sensitivity(residual.flatten(1), rows[0], rows[1:] / math.sqrt(_PROBES))


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs of a tensor's shape."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(like)


def by_differences(batch: Batch, numbers: Numbers, generator: torch.Generator) -> Sensitivity:
    """Residuals and derivatives by differences, for models through which gradients do not pass.

    Args:
        batch: The samples.
        numbers: The scheme.
        generator: Not used, as nothing is drawn.
    """
    with torch.no_grad():
        forward = run(batch.field, numbers, batch.start)
        residual = (forward.end - batch.target).flatten(1)
        columns = [
            ((one - forward.end) / size).flatten(1) for one, size in changed(batch.field, numbers, batch.start, forward)
        ]
    jacobian = torch.stack(columns, -1)
    gradient = torch.einsum("bd,bdp->bp", residual, jacobian)
    return Sensitivity(residual, gradient, jacobian.movedim(1, 0))


def changed(field: Field, numbers: Numbers, start: Tensor, forward: Run) -> Iterator[tuple[Tensor, float]]:
    """The ends of runs with one number changed, in the order of `Numbers.packed`, and by how much."""
    basis = [start, *forward.slopes]
    spreads = [float(one.square().mean().sqrt()) or 1.0 for one in basis]
    size = _DIFFERENCE * spreads[0]
    for vector, spread in zip(basis, spreads, strict=True):
        yield torch.add(forward.end, vector, alpha=size / spread), size / spread
    for k in range(1, numbers.calls):
        for j in range(k + 1):
            rows, step = numbers.rows.clone(), size / spreads[j]
            rows[k, j] += step
            yield run(field, numbers._replace(rows=rows), start, forward, k).end, step
    for k in range(1, numbers.calls):
        times, step = numbers.times.clone(), _time_step(numbers, k)
        times[k] += step
        yield run(field, numbers._replace(times=times), start, forward, k).end, step


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
            return rms(run(batch.field, numbers, batch.start).end - batch.target)

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
        square = normal.square if self.square is None else torch.lerp(normal.square, self.square, _MEMORY)
        self.square = square
        scale = square.diagonal().clamp_min(1e-12 * float(square.diagonal().max()))
        self.steps, self.stuck = self.steps + 1, True
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
        generator = torch.Generator().manual_seed(self.seed * 10007 + self.steps)
        found: list[Sensitivity] = []
        for batch in batches:
            one, runs = self.aim.sensitivity(batch, self.numbers, self.derivatives, generator)
            found.append(one)
            self._spent(one.residual, batch, spend, runs)
        error = torch.cat([rms(one.residual) for one in found])
        if self.kappa is None:
            self.kappa = max(
                float(error.square().mean()) if self.of_mean else (_SHARE * float(error.median())) ** 2, 1e-30
            )
        size, dims = len(error), found[0].residual.shape[1]
        gradient: Tensor | None = None
        square: Tensor | None = None
        for one in found:
            weight = 1.0 / (rms(one.residual).square() + self.kappa) / (size * dims)
            g = weight @ one.gradient.double()
            rows = (one.square.double() * weight.sqrt()[:, None]).flatten(0, 1)
            h = rows.T @ rows
            gradient, square = (g, h) if gradient is None or square is None else (gradient + g, square + h)
        assert gradient is not None
        assert square is not None
        return Normal(_objective(error, self.kappa), gradient, square, error, self.kappa)


def _solved(matrix: Tensor, gradient: Tensor) -> Tensor:
    return torch.linalg.lstsq(matrix, -gradient[:, None], driver="gelsd").solution[:, 0]  # also where it is singular


def sweep_runs(calls: int, derivatives: Derivatives) -> int:
    """What the derivatives of a run cost, in runs of so many calls."""
    if derivatives == "back-propagation":
        return 4 + _PROBES
    return 1 + math.ceil(sum((k + 2) * (calls - k) for k in range(1, calls)) / calls)


def _objective(found: Tensor, kappa: float) -> float:
    return float(0.5 * (found.square() + kappa).log().mean())
