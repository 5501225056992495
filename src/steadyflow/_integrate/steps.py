"""The one generator of steps: what every loop over a grid goes through.

`for step in StepLoop(...)` makes a solver's steps one by one; after each, `loop.state` is the solver's state, which the
body may replace. Over a fixed grid the steps are the grid's own; with a controller it chooses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from ..grids import Grid
from ..noise import NoiseSource
from ..prediction import Prediction
from ..schedules import Schedule
from ..solvers.base import Queries, Result, Solver, Step, each_step

S = TypeVar("S")
Model = Callable[[Tensor, float], Prediction]
"""What answers queries: a `Denoiser`, or any function of a state and a time."""


def drive(queries: Queries[Result], model: Model) -> tuple[Result, int]:
    """Run a coroutine to its end with a model answering; the result, and the number of evaluations."""
    evaluations = 0
    try:
        query = next(queries)
        while True:
            prediction = model(query.x, query.t)
            evaluations += 1
            query = queries.send(prediction)
    except StopIteration as stop:
        return stop.value, evaluations


class Controller(Protocol):
    """What chooses the steps of an adaptive run."""

    def steps(self, loop: StepLoop[Any]) -> Iterator[Step]:
        """The accepted steps; each leaves `loop.state`, `loop.evaluations` and `loop.times` up to date."""
        ...


class Recorder(Protocol):
    """What makes the steps of a run of which a gradient will be taken."""

    state: Any

    def take(self, step: Step) -> int:
        """Make a step from `state`, which it changes; the number of evaluations."""
        ...


class StepLoop(Generic[S]):
    """A solver's steps over a grid, to be iterated over once.

    Args:
        model: What answers the solver's queries.
        solver: The method.
        schedule: The path.
        grid: The times; with a controller its first and last one count.
        state: The solver's state at the beginning.
        noise: The source for stochastic solvers.
        first: The step of the grid to begin with.
        defined_at_zero_noise: Whether the model can be asked at sigma = 0.
        controller: What chooses the steps instead of the grid.
        keep_before: Whether `before` is wanted; else the state before a step is free to go.
        tape: What makes the steps instead, so that a gradient can be taken of them.
    """

    def __init__(
        self,
        model: Model,
        solver: Solver[S],
        schedule: Schedule,
        grid: Grid,
        state: S,
        *,
        noise: NoiseSource | None = None,
        first: int = 0,
        defined_at_zero_noise: bool = False,
        controller: Controller | None = None,
        keep_before: bool = False,
        tape: Recorder | None = None,
    ):
        solver.check_grid(schedule, grid)
        self.model, self.solver, self.schedule, self.grid, self.state = model, solver, schedule, grid, state
        self.noise, self.defined_at_zero_noise = noise, defined_at_zero_noise
        self.before: S | None = None
        """The state before the last step, if `keep_before`."""
        self.evaluations = 0
        """Calls of the model so far."""
        self.rejected = 0
        """Steps that a controller has tried and taken back."""
        self.times = [grid.times[0]]
        """With a controller, the times of the accepted steps."""
        self._first, self._controller, self.keep_before, self._tape = first, controller, keep_before, tape

    def __iter__(self) -> Iterator[Step]:
        if self._controller is not None:
            yield from self._controller.steps(self)
            return
        for step in self.fixed(self.grid, self._first):
            self.take(step)
            yield step

    def fixed(self, grid: Grid, first: int = 0) -> Iterator[Step]:
        """The steps of a grid, not yet made."""
        defined = self.defined_at_zero_noise
        return each_step(self.schedule, grid, self.noise, first, defined_at_zero_noise=defined)

    def take(self, step: Step) -> Step:
        """Make a step; the step itself."""
        if self.keep_before:
            self.before = self.state
        if self._tape is not None:
            self.evaluations += self._tape.take(step)
            self.state = self._tape.state
            return step
        self.state, evaluations = drive(self.solver.advance(self.state, step), self.model)
        self.evaluations += evaluations
        return step
