"""Runs that change hands: the first steps are made by one model, the others by another."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._integrate import Solution, StepInfo, integrate
from .._internal.tensors import rms
from ..denoisers.base import Denoiser
from ..errors import NonFiniteError
from ..grids import Grid
from ..solvers.base import Solver
from ..solvers.state import flatten_state


class Recorded(NamedTuple):
    """A run with all that its solver carries from step to step."""

    model: Denoiser
    solution: Solution
    states: list[Any]
    """The solver's K + 1 states, that at the start included."""

    @property
    def end(self) -> Tensor:
        """What the run returns, float64, shape (B, ...)."""
        return self.solution.x.double()

    @property
    def samples(self) -> list[Tensor]:
        """The K + 1 states in model space, float64, each of shape (B, ...)."""
        return [self.solution.solver.output(state).double() for state in self.states]


def recorded(who: str, model: Denoiser, x: Tensor, grid: Grid, solver: Solver[Any]) -> Recorded:
    """Run a solver over a grid, and keep its states.

    Args:
        who: What to call the run where it diverges.
        model: The model.
        x: The start, shape (B, ...).
        grid: The grid.
        solver: The method.

    Raises:
        NonFiniteError: The run diverged.
    """
    states: list[Any] = [solver.start(x, model.schedule, grid.times[0])]

    def keep(info: StepInfo) -> None:
        states.append(info.state)

    try:
        found = integrate(model, None, grid, solver, state=states[0], callback=keep, progress=False)
    except NonFiniteError as error:
        raise NonFiniteError(f"compare: {who}: {error}") from error
    return Recorded(model, found, states)


def exchanged(first: Recorded, second: Recorded, bar: Any) -> tuple[Tensor, int]:
    """Find which steps of one run make its sample another than that of a second run, from the same start.

    In the k-th of K + 1 runs the first k steps are those of the first run, and the second's model makes the others from
    the whole state that the solver has then. The first of them is the second run, the last one the first; what step k
    changes is the difference of two that follow one another.

    Args:
        first: The run with the change.
        second: The run without, over the same grid, by the same solver, in the same precision or a higher one.
        bar: Is told of every step.

    Returns:
        The root mean square of what each step changes of the sample, shape (K, B), and the evaluations of the second
        run's model per sample.

    Raises:
        NonFiniteError: A run diverged that changed hands.
    """
    grid, solver = second.solution.grid, second.solution.solver
    changes, before, nfe = list[Tensor](), second.end, 0
    for k in range(1, len(first.states)):
        state = _alike(first.states[k], second.states[k])
        if k == grid.steps:
            end = first.end
        elif _equal(state, second.states[k]):
            end = second.end
        else:
            begun = Solution(state=state, solver=solver, grid=grid, step=k, nfe=0)
            try:
                found = integrate(second.model, None, grid, solver, resume=begun, progress=False)
            except NonFiniteError as error:
                raise NonFiniteError(f"compare: the plain model from step {k} of the variant's run: {error}") from error
            end, nfe = found.x.double(), nfe + found.nfe
        changes.append(rms(end - before))
        before = end
        bar.update()
    return torch.stack(changes), nfe


def _alike(state: Any, other: Any) -> Any:
    """A state in the precision of another."""
    build, parts = flatten_state(state)
    kinds = [part.dtype for part in flatten_state(other)[1]]
    return build([part.to(kind) for part, kind in zip(parts, kinds, strict=True)])


def _equal(state: Any, other: Any) -> bool:
    """Whether two states are the same to the last bit."""
    pairs = zip(flatten_state(state)[1], flatten_state(other)[1], strict=True)
    return all(torch.equal(one, another) for one, another in pairs)
