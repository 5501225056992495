"""A solver driven by a loop that is not ours."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from ..errors import InputError
from ..grids import Grid
from ..noise import NoiseSource
from ..prediction import Prediction
from ..schedules import Schedule
from ..solvers.base import Query, Solver, Step, each_step
from .steps import StepLoop

S = TypeVar("S")


class Stepper(Generic[S]):
    """A solver driven from outside: ask for `query`, run the model yourself, `feed` the prediction.

        stepper = Stepper(solver, schedule, grid, x)
        while stepper.query is not None:
            stepper.feed(model(stepper.query.x, stepper.query.t))
        stepper.x

    Args:
        solver: The method.
        schedule: The path.
        grid: The times; rising ones invert.
        x: The start in model space, shape (B, ...).
        state: A solver's whole state to start from instead.
        noise: The source for stochastic solvers.
        first: The step of the grid to begin with.
        defined_at_zero_noise: Whether the model can be asked at sigma = 0 (`Denoiser.defined_at_zero_noise`).
    """

    def __init__(
        self,
        solver: Solver[S],
        schedule: Schedule,
        grid: Grid,
        x: Tensor,
        *,
        state: S | None = None,
        noise: NoiseSource | None = None,
        first: int = 0,
        defined_at_zero_noise: bool = False,
    ):
        grid.check_domain(schedule)
        solver.check_grid(schedule, grid)
        if grid.rising:
            solver.check_invertible()
        self._solver, self._schedule, self._grid, self._noise = solver, schedule, grid, noise
        self._defined, self._first = defined_at_zero_noise, first
        self._fed: list[Prediction] = []
        start = grid.times[min(first, len(grid.times) - 1)]
        self.state: S = solver.start(x, schedule, start) if state is None else state
        self.nfe = 0
        self._begin()

    def _begin(self) -> None:
        """Begin the steps from the state and the step that are current."""
        steps = each_step(self._schedule, self._grid, self._noise, self._first, defined_at_zero_noise=self._defined)
        self._queries = self._advance(steps)
        self.query: Query | None = next(self._queries, None)

    def _advance(self, steps: Iterable[Step]) -> Generator[Query, Prediction, None]:
        for step in steps:
            self.state = yield from self._solver.advance(self.state, step)
            self._first += 1
            self._fed.clear()
            if self._noise is not None:
                self._noise.begin_step()

    def replace(self, x: Tensor) -> None:
        """Replace the sample between two steps; multistep methods keep their history (`Solver.with_sample`).

        Args:
            x: The new sample, shape (B, ...).

        Raises:
            InputError: A step has begun.
        """
        if self._fed:
            raise InputError("stepper: the sample cannot be replaced within a step")
        t = self._grid.times[min(self._first, len(self._grid.times) - 1)]
        self.state = self._solver.with_sample(self.state, x, self._schedule, t)
        if self._noise is not None:
            self._noise.repeat_step()
        self._begin()

    def feed(self, prediction: Prediction) -> None:
        """Answer the pending query; afterwards `query` is the next one, or None at the end.

        Args:
            prediction: Made at the query's state and time, with alpha and sigma of the stepper's schedule.

        Raises:
            InputError: The run is over.
        """
        if self.query is None:
            raise InputError("stepper: the run is over, there is no query to answer")
        self._fed.append(prediction)
        try:
            self.query = self._queries.send(prediction)
        except StopIteration:
            self.query = None
        except BaseException:
            self.query = None  # the step is lost: no answer can take the run on
            raise
        self.nfe += 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy or pickle at any moment: the state at the last whole step, and what was answered since."""
        how = (self._solver, self._schedule, self._grid, self._noise, self._defined, self._first)
        return _restored, (*how, self.state, self.nfe, self.query is None, tuple(self._fed))

    @property
    def x(self) -> Tensor:
        """The state after the last finished step, in model space, shape (B, ...)."""
        return self._solver.output(self.state)


def _restored(
    solver: Solver[S],
    schedule: Schedule,
    grid: Grid,
    noise: NoiseSource | None,
    defined: bool,
    first: int,
    state: S,
    nfe: int,
    over: bool,
    fed: tuple[Prediction, ...],
) -> Stepper[S]:
    """A stepper as it was when it was copied."""
    if noise is not None:
        noise.repeat_step()
    unused = cast(Tensor, None)  # the start, in place of which there is a state
    stepper = Stepper(
        solver, schedule, grid, unused, state=state, noise=noise, first=first, defined_at_zero_noise=defined
    )
    for prediction in fed:
        stepper.feed(prediction)
    if over:
        stepper.query = None
    stepper.nfe = nfe
    return stepper


def plan(
    solver: Solver[S],
    schedule: Schedule,
    grid: Grid,
    noise: NoiseSource | None = None,
    *,
    defined_at_zero_noise: bool = False,
    state: S | None = None,
) -> list[tuple[int, float]]:
    """The queries of a run before it is made: for each, the step it belongs to and its path time.

    Found by running the solver's own code on a single number, or on a state to start from, which may save calls.
    """
    begin = solver.start(torch.zeros(1, 1), schedule, grid.times[0]) if state is None else state
    times: list[float] = []

    def model(x: Tensor, t: float) -> Prediction:
        times.append(t)
        level = schedule.at(t)
        return Prediction(x, torch.zeros_like(x), "v_prediction", level.alpha, level.sigma)

    loop = StepLoop(model, solver, schedule, grid, begin, noise=noise, defined_at_zero_noise=defined_at_zero_noise)
    queries: list[tuple[int, float]] = []
    for number, _ in enumerate(loop):
        queries += [(number, t) for t in times[len(queries) :]]
    return queries
