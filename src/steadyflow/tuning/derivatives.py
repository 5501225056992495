"""Derivatives of the end of a run with respect to the numbers of its scheme.

Where the network can be differentiated, a sweep back over the calls gives J^T z for vectors z at the end, J being the
derivative of the end, and holds the graph of one call at a time. For the residual r it gives the gradient; for random
vectors z of signs, the mean of (J^T z)(J^T z)^T is that of J^T J. It costs some N (3 + vectors) evaluations for N
calls. Else J is computed column by column by differences, from the first call that a number changes on, which costs
about N^3 / 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .schemes import Field, Numbers, Run, run

Derivatives = Literal["back-propagation", "differences", "none"]
"""How the derivatives of a run are had; without any, there are no Gauss-Newton steps."""

PROBES = 3
"""How many random vectors estimate the curvature of a step."""
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


class Sensitivity(NamedTuple):
    """Residuals of a batch and their derivatives with respect to the P numbers of a scheme."""

    residual: Tensor
    """Shape (B, D)."""
    gradient: Tensor
    """J^T r, shape (B, P)."""
    square: Tensor
    """Rows whose outer products have the mean J^T J, shape (M, B, P)."""


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
    vectors = [residual, *(signs(residual, generator) for _ in range(PROBES))]
    rows, _ = sweep(batch.field, numbers, batch.start, forward, vectors)
    return Sensitivity(residual.flatten(1), rows[0], rows[1:] / math.sqrt(PROBES))


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


def sweep_runs(calls: int, derivatives: Derivatives) -> int:
    """What the derivatives of a run cost, in runs of so many calls."""
    if derivatives == "back-propagation":
        return 4 + PROBES
    return 1 + math.ceil(sum((k + 2) * (calls - k) for k in range(1, calls)) / calls)
