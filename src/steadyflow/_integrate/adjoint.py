"""How gradients pass through a run: by its graph, by states that are kept, or by states that are recovered."""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from .._internal.given import number, whole
from ..errors import InputError, UnknownNameError
from ..grids import Grid
from ..schedules import Schedule
from ..solvers.base import Solver

AdjointKind = Literal["none", "checkpoint", "reversible"]
KINDS: tuple[AdjointKind, ...] = ("none", "checkpoint", "reversible")


@dataclass
class AdjointRecord:
    """What an `Adjoint` has measured on its ways back (backward passes), one entry for each."""

    drift: list[float] = field(default_factory=list[float])
    """By how much a state of the way back differed from that of the run, as a share of its size, for the worst sample.
    For "reversible" the state is the last one that was recovered, the one after the first step. For "checkpoint" it is
    the largest difference between a state that was kept and the same state computed again, which is 0 unless the model
    answers differently when it is asked again. Ways back of order 2 are not measured."""


@dataclass(frozen=True)
class Adjoint:
    """How gradients pass through a run, given to a verb as `adjoint=`; the name of a kind stands for its defaults.

    With an adjoint, gradients reach everything that the run depends on: the start, conditions, a guidance scale, the
    parameters of the network and, but for "none", the times of a grid that is made of a tensor. "none" is plain
    back-propagation, which holds the graph of every step. The other two make the run without a graph, and on the way
    back (the backward pass) make each step again. "checkpoint" begins each step from a state that was kept, which is
    exact for every solver. "reversible" begins it from a state that the solver's own inverse recovers, and keeps only
    the start, the end, the states next to sigma = 0, from which no step may lead back, and those that corrections have
    changed. It is exact to rounding if the inverse is exact; if not, the gradient has an error, whose size the
    record's `drift` estimates.

    `adjoint=None`, the default of all verbs but `steer`, is not "none": the run then records the plain graph if its
    start requires a gradient, and no graph if it does not, even where parameters do.

    States that callbacks and corrections see are constants; a loss on states along the way takes them from `record=`.
    If an input was itself computed with a graph, `backward` goes on through that graph to its leaves.

    Args:
        kind: "none", "checkpoint" or "reversible".
        every: For "checkpoint": keep a state every so many steps, and make the steps between two of them once more;
            "sqrt" takes the square root of the number of steps, which holds the fewest states.
        order: 2 if gradients of gradients will be asked for. The run then records a graph without its tensors, which
            takes some kilobytes for each operation of the network.
        tolerance: The drift above which a way back warns ("reversible") or raises `InputError` ("checkpoint"). The
            default is 0.01 if the inverse is not exact, and otherwise the square root of the rounding error of the
            coarsest type in which the run computes.
        record: The record to add to; a new one by default.

    Attributes:
        record: What the ways back have measured. It is mutable, accumulates over all of them, and has no part in
            comparisons.

    Raises:
        UnknownNameError: There is no such kind.
        InputError: An option is out of range, or has no meaning for the kind.
    """

    kind: AdjointKind = "checkpoint"
    every: int | Literal["sqrt"] = 1
    order: int = 1
    tolerance: float | None = None
    record: AdjointRecord = field(default_factory=AdjointRecord, compare=False)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UnknownNameError("adjoint", self.kind, KINDS)
        if self.every != "sqrt":
            object.__setattr__(self, "every", whole("every", self.every, 1))
        if self.every != 1 and self.kind != "checkpoint":
            raise InputError(f"every: only valid with 'checkpoint', as {self.kind!r} keeps no states")
        object.__setattr__(self, "order", whole("order", self.order, 1, 2))
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", number("tolerance", self.tolerance))
            if self.kind == "none" or self.order == 2:
                raise InputError("tolerance: only valid with ways back that are measured, not with 'none' or order=2")
            if not self.tolerance >= 0.0:
                raise InputError(f"tolerance: got {self.tolerance}, expected a number >= 0")
        if not isinstance(self.record, AdjointRecord):
            raise InputError(f"record: got {self.record!r}, expected an AdjointRecord")

    def most(self, dtype: torch.dtype, exact: bool) -> float:
        """Return the largest drift that is accepted.

        Args:
            dtype: The coarsest type in which the run computes.
            exact: Whether states come back to rounding.
        """
        if self.tolerance is not None:
            return self.tolerance
        return math.sqrt(torch.finfo(dtype).eps) if exact else 0.01

    def stride(self, steps: int) -> int:
        """Return how many steps lie between two states that are kept.

        Args:
            steps: The number of steps of the run.
        """
        return max(1, round(math.sqrt(steps))) if self.every == "sqrt" else self.every


def adjoint_of(given: Adjoint | str | None) -> Adjoint | None:
    """Return what was given as an `Adjoint`, or None if nothing was.

    Raises:
        UnknownNameError: There is no such kind.
        InputError: It is neither an `Adjoint` nor a name.
    """
    if given is None or isinstance(given, Adjoint):
        return given
    if not isinstance(given, str):
        raise InputError(f"adjoint: got {given!r}, expected one of {', '.join(KINDS)}, or an sf.Adjoint")
    return Adjoint(cast(AdjointKind, given))


def check_adjoint(adjoint: Adjoint, solver: Solver[Any], schedule: Schedule, grid: Grid, eps: float) -> None:
    """Check that a run can be made with an adjoint.

    Args:
        adjoint: The adjoint.
        solver: The method of the run.
        schedule: The path.
        grid: The grid of the run.
        eps: The rounding error of the state's type.

    Raises:
        InputError: The solver's states cannot be recovered, or rounding errors would drown them.
    """
    if adjoint.kind != "reversible":
        return
    properties = solver.properties
    if properties.evaluations is None:
        why = "it iterates until it converges, which from a recovered state may take another number of rounds"
    elif properties.inverse == "none":
        why = "it adds fresh noise at every step" if properties.stochastic else "it has no inverse"
    elif properties.inverse != "exact" and properties.states > 1:
        why = "it goes on from earlier predictions, which an approximate inverse does not bring back"
    else:
        if adjoint.order == 2 and properties.inverse != "exact":
            raise InputError(
                f"adjoint: the inverse of solver {solver.name!r} is not exact, and of order 2 its error would go "
                "unseen; use an exactly reversible solver or adjoint=sf.Adjoint('checkpoint', order=2)"
            )
        growth = 1.0 if grid.rising else solver.inverse_growth(schedule, grid)
        if growth * eps > 0.1:
            raise InputError(
                f"adjoint: the inverse of solver {solver.name!r} is predicted to amplify rounding errors {growth:.1e} "
                f"times over these {grid.steps} steps; use coupling='auto', fewer steps, float64, or "
                "adjoint='checkpoint'"
            )
        return
    raise InputError(
        f"adjoint: 'reversible' cannot recover the states of solver {solver.name!r}: {why}; use "
        "adjoint='checkpoint', or an exactly reversible solver such as 'rex-midpoint' with coupling='auto'"
    )


def check_gradients(how: Adjoint | None, corrections: Sequence[object], x: Tensor) -> None:
    """Refuse corrections that would lose a part of the gradient.

    Args:
        how: How gradients pass through the run.
        corrections: Its corrections.
        x: Its start.

    Raises:
        InputError: A correction has no gradient.
    """
    if not torch.is_grad_enabled() or (how is None and not x.requires_grad):
        return
    for correction in corrections:
        if not getattr(correction, "differentiable", True):
            name = type(correction).__name__
            raise InputError(
                f"correction {name!r}: has no gradient, as what it takes from a step is not differentiated; leave it "
                "out, or run under torch.no_grad()"
            )
