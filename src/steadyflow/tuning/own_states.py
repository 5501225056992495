"""A fit in closed form, without derivatives: least squares on the states of the run itself.

Call by call, the scheme's run stands where its own errors have brought it, and the factors of the next point X are
those that bring it nearest to the fine trajectory u at the next call's time, or to its end:

    minimise  sum |B w - u|^2 + lambda |w - w_0|^2_D,      B = (start, f_0, ..., f_k),      D = diag B^T B,

with the factors w_0 of a plain solver. Errors of earlier calls are corrected by later ones. The times stay as they are.
It costs one run, and the fine trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .schemes import Field, Numbers

_RIDGE = 1e-5


class Course(NamedTuple):
    """Fine trajectories of a batch in flow coordinates."""

    field: Field
    """The field of these samples."""
    times: Tensor
    """Falling flow times, shape (T,), float64."""
    states: Tensor
    """The states at these times, shape (T, B, ...); the first is the start."""
    end: Tensor
    """The end, shape (B, ...)."""

    def at(self, tau: float) -> Tensor:
        """The state at a time, by the cubic through the four nearest; shape (B, ...)."""
        place = int((self.times >= tau).sum()) - 2
        first = max(0, min(place, len(self.times) - 4))
        knots = self.times[first : first + 4]
        total = torch.zeros_like(self.end)
        for j in range(len(knots)):
            others = torch.cat([knots[:j], knots[j + 1 :]])
            weight = float(((tau - others) / (knots[j] - others)).prod())
            total = torch.add(total, self.states[first + j], alpha=weight)
        return total


def own_states(courses: Sequence[Course], numbers: Numbers) -> Numbers:
    """Fit the factors of a scheme to fine trajectories, call by call.

    Args:
        courses: The fine trajectories.
        numbers: The scheme of a plain solver, whose times are kept.
    """
    rows, weights = numbers.rows.clone(), numbers.weights.clone()
    known = [[course.states[0]] for course in courses]
    with torch.no_grad():
        for course, one in zip(courses, known, strict=True):
            one.append(course.field(one[0], float(numbers.times[0])))
        for k in range(1, numbers.calls + 1):
            last = k == numbers.calls
            targets = [course.end if last else course.at(float(numbers.times[k])) for course in courses]
            old = weights if last else rows[k]
            found = _solved(known, targets, old[: k + 1])
            if last:
                weights[: k + 1] = found
                break
            rows[k, : k + 1] = found
            for course, one in zip(courses, known, strict=True):
                point = torch.einsum("k,k...->...", found.to(one[0]), torch.stack(one))
                one.append(course.field(point, float(numbers.times[k])))
    return numbers._replace(rows=rows, weights=weights)


def _solved(known: Sequence[Sequence[Tensor]], targets: Sequence[Tensor], old: Tensor) -> Tensor:
    """The factors of the least squares problem over all batches."""
    size = len(old)
    matrix, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for one, target in zip(known, targets, strict=True):
        basis = torch.stack([part.flatten() for part in one]).double()
        matrix += (basis @ basis.T).cpu()
        right += (basis @ target.flatten().double()).cpu()
    ridge = _RIDGE * torch.diag(matrix.diagonal())
    return torch.linalg.lstsq(matrix + ridge, (right + ridge @ old)[:, None], driver="gelsd").solution[:, 0]
