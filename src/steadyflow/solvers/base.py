"""The base class of solvers. A step is a coroutine that *requests* model evaluations and never calls a model.

    def step(self, state, step):           # from step.start to step.end
        prediction = yield Query(x, t)     # as often as needed
        return new_state

One definition thus serves our own loop (`integrate`), a caller's loop (`Stepper`), and inversion
(`inverse_step`). A solver holds options and no data of a run, so one object can be used by many runs. What a run
carries from step to step is its *state*, an immutable value: a tensor, or a named tuple of tensors and
numbers registered with `@solver_state`.

A step has the path's numbers at both of its ends (`step.start.alpha`, `step.end.sigma`, ...). Coefficients that are
expensive to compute are cached by pure functions, whose results depend on nothing but their arguments.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import Any, ClassVar, Generic, TypeVar, cast

from torch import Tensor

from ..coordinates import CoordinatesName
from ..errors import InputError, NotInvertibleError, SingularTimeError
from ..grids import Grid
from ..noise import NoiseSource
from ..prediction import Prediction
from ..schedules import Level, Schedule, levels
from .step import Properties, Query, Step

S = TypeVar("S")
"""A solver's state: a tensor, or a named tuple registered with `@solver_state`."""
Result = TypeVar("Result")
Queries = Generator[Query, Prediction, Result]
"""A coroutine that yields queries, is sent predictions, and returns a result."""


class Solver(ABC, Generic[S]):
    """A method: one step of it in sampling and in inversion. Subclasses are frozen dataclasses of hashable options."""

    name: ClassVar[str]
    """The name in the registry."""
    coordinates: CoordinatesName = "noise"
    """The coordinates in which the method steps, and to which its stability intervals refer."""
    has_own_grid: ClassVar[bool] = False
    """Whether the method was made together with grids, over which alone it runs (`own_grid`)."""

    @property
    def points(self) -> int:
        """The number of the state's tensors that are states in model space; the others are slopes."""
        return 1

    @property
    @abstractmethod
    def properties(self) -> Properties:
        """The order, cost, inverse and stability of the method with these options."""

    def start(self, x: Tensor, schedule: Schedule, t: float) -> S:
        """Return the state at the start of a run.

        Args:
            x: The sample in model space, shape (B, ...).
            schedule: The path.
            t: The path time of x.
        """
        return cast(S, x)

    @abstractmethod
    def step(self, state: S, step: Step) -> Queries[S]:
        """Make a step towards less noise.

        Args:
            state: The state at `step.start`.
            step: The step.

        Yields:
            The points at which the model is needed; predictions are sent back.

        Returns:
            The state at `step.end`.

        Raises:
            SingularTimeError: The method is not defined between these two times.
            ConvergenceError: An iteration within the step does not converge.
        """

    def inverse_step(self, state: S, step: Step) -> Queries[S]:
        """Make a step towards more noise, to the state from which `step` would return to this one.

        By default it is the same step in the other direction, an inverse to the method's antisymmetric order.
        Exactly reversible methods override it.

        Args:
            state: The state at `step.start`.
            step: The step, with `step.end` noisier than `step.start`.

        Yields:
            The points at which the model is needed; predictions are sent back.

        Returns:
            The state at `step.end`.

        Raises:
            NotInvertibleError: The method has no inverse.
            SingularTimeError: The method is not defined between these two times.
            ConvergenceError: An iteration within the step does not converge.
        """
        self.check_invertible()
        return self.step(state, step)

    def undo(self, state: S, step: Step, last: Step | None) -> Queries[S]:
        """Find the state before a step that was made, in either direction, from the state after it.

        Unlike `inverse_step`, which begins a way back, this is a state to make the same step from once more. Exactly
        reversible methods find it to rounding, others as well as they invert.

        Args:
            state: The state at `step.end`.
            step: The step that was made.
            last: The step before it, if there was one.

        Yields:
            The points at which the model is needed; predictions are sent back.

        Returns:
            The state at `step.start`.
        """
        back = step.reversed()
        return self.step(state, back) if step.rising else self.inverse_step(state, back)

    def output(self, state: S) -> Tensor:
        """Return the sample in model space, shape (B, ...)."""
        return cast(Tensor, state)

    def with_sample(self, state: S, x: Tensor, schedule: Schedule, t: float) -> S:
        """Return the state after a small change of its sample, as made by a correction between steps.

        Multistep methods retain their history of predictions; by default the state is that of a new start.

        Args:
            state: The state.
            x: The changed sample, shape (B, ...).
            schedule: The path.
            t: The path time of the state.
        """
        return self.start(x, schedule, t)

    def restarted(self, state: S, x: Tensor, schedule: Schedule, t: float) -> S:
        """Return the state from which to go on where a correction has put another sample in its place: a new start.

        Args:
            state: The state.
            x: The other sample, shape (B, ...).
            schedule: The path.
            t: The path time of the state.
        """
        return self.start(x, schedule, t)

    def for_decoding(self, state: S) -> S:
        """Return the state from which to sample after an inversion that ended in this state.

        Exactly reversible methods need all of it; multistep methods drop the predictions from the other direction.

        Args:
            state: The last state of the inversion.
        """
        return state

    def within(self, state: S) -> tuple[Solver[Any], Any] | None:
        """Return the method whose state this one carries, and that state, for methods made of others."""
        return None

    def own_grid(self, schedule: Schedule, calls: int | None = None, *, rising: bool = False) -> Grid | None:
        """Return the grid that belongs to the method, for those that were made together with one; else None.

        Args:
            schedule: The path.
            calls: The number of model evaluations each way, where the method has several grids.
            rising: Whether for inversion.

        Raises:
            InputError: The method has no grid for this path, number of evaluations or direction.
        """
        return None

    def way_back(self, schedule: Schedule, grid: Grid) -> Grid:
        """Return the grid that leads back from the end of another.

        Args:
            schedule: The path.
            grid: The grid of the way there.
        """
        return grid.reversed()

    def check_grid(self, schedule: Schedule, grid: Grid) -> None:
        """Check that the method runs over a grid.

        Args:
            schedule: The path.
            grid: The grid, falling or rising.

        Raises:
            InputError: It has grids of its own, and this is none of them.
        """

    def determinant(self, step: Step) -> float | None:
        """Return the determinant of the step map, per dimension of a sample and in the solver's coordinates.

        The inverse of its modulus is the factor by which the inverse step amplifies rounding errors, and minus the
        logarithm of its modulus is, to first order, the length of the stability interval on the negative axis.

        Args:
            step: The step, in either direction.

        Returns:
            The determinant for exactly reversible methods, which carry two states; None for all others.
        """
        return None

    def inverse_growth(self, schedule: Schedule, grid: Grid) -> float:
        """Return the predicted growth of rounding errors over an inversion: the product of 1 / |determinant|.

        Args:
            schedule: The path.
            grid: The grid, in either direction.
        """
        total = 0.0
        for step in each_step(schedule, grid if grid.rising else grid.reversed()):
            determinant = self.determinant(step)
            total -= 0.0 if determinant is None else math.log(abs(determinant))
        return math.exp(min(total, 700.0))

    def advance(self, state: S, step: Step) -> Queries[S]:
        """Make a step in its own direction: by `step`, by `inverse_step`, or by the final clean estimate of a run.

        Args:
            state: The state at `step.start`.
            step: The step.
        """
        if step.reads_clean:
            return self._read_clean(state, step)
        return self.inverse_step(state, step) if step.rising else self.step(state, step)

    def _read_clean(self, state: S, step: Step) -> Queries[S]:
        x = yield from ddim_step(self.output(state), step)
        return self.start(x, step.schedule, step.t1)

    @property
    def invertible(self) -> bool:
        """Whether the method has an inverse."""
        return self.properties.inverse != "none"

    def check_invertible(self) -> None:
        """Check that the method has an inverse.

        Raises:
            NotInvertibleError: It has none.
        """
        if not self.invertible:
            stochastic = self.properties.stochastic
            kind = "is stochastic: it adds fresh noise at every step" if stochastic else "has no inverse"
            raise NotInvertibleError(
                f"solver {self.name!r} {kind} and cannot invert; use a deterministic one, such as 'ees25'"
            )

    def spec(self) -> dict[str, Any]:
        """Return a JSON-able description, the name and the options; `registry.from_spec` is the inverse."""
        options = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}
        return {"name": self.name, **options}


def each_step(
    schedule: Schedule,
    grid: Grid,
    noise: NoiseSource | None = None,
    first: int = 0,
    *,
    defined_at_zero_noise: bool = False,
) -> Iterator[Step]:
    """Iterate over the steps of a run.

    Args:
        schedule: The path.
        grid: The grid, falling or rising.
        noise: The noise of the run.
        first: How many steps to leave out at the beginning.
        defined_at_zero_noise: Whether the model can be evaluated at sigma = 0.

    Yields:
        The steps, and last the clean estimate if the grid ends with it.
    """
    path = levels(schedule, grid.times)
    n = len(path) - 1
    for k in range(first, n):
        index = n - 1 - k if grid.rising else k
        yield Step(schedule, path[k], path[k + 1], index, n, noise, defined_at_zero_noise)
    if grid.clean and first <= n:
        yield Step(schedule, path[-1], clean_level(schedule, path[-1]), n, n, noise, defined_at_zero_noise, True)


def clean_level(schedule: Schedule, last: Level) -> Level:
    """Return the level of data without noise.

    Args:
        schedule: The path.
        last: The last level of a grid, whose time is used if the path has no end without noise.
    """
    end = schedule.domain[0]
    return Level(end if schedule.at(end).sigma == 0.0 else last.t, 1.0, 0.0, math.inf, 0.0)


def steps_for(solver: Solver[Any], nfe: int, *, clean: bool = False) -> int:
    """Return the number of steps that a budget of model evaluations allows.

    Args:
        solver: The method; its additional evaluations in the first step count.
        nfe: The budget.
        clean: Whether the last evaluation is the clean estimate, which counts as a step.

    Raises:
        InputError: The budget does not allow one step, or the solver's steps have no fixed cost.
    """
    properties = solver.properties
    cost = properties.evaluations
    if cost is None:
        raise InputError(f"nfe: a step of {solver.name!r} has no fixed cost; give the number of steps")
    once = properties.startup_evaluations + clean
    if nfe < cost + once:
        more = f", plus {once} per run" if once else ""
        raise InputError(f"nfe: got {nfe}, but one step of {solver.name!r} takes {cost} evaluations{more}")
    return (nfe - once) // cost + clean


def ddim_step(x: Tensor, step: Step) -> Queries[Tensor]:
    """Make the DDIM step x1 = alpha1 x0_hat + sigma1 eps_hat: Euler in any coordinates, also at the ends of a path.

    Args:
        x: The state at `step.start`, shape (B, ...).
        step: The step, in either direction.
    """
    prediction = yield Query(x, step.t0)
    return prediction.ddim(step.end.alpha, step.end.sigma)


def ddim_factors(start: Level, end: Level) -> tuple[float, float]:
    """Return A = alpha1 / alpha0 and B = sigma1 - A sigma0, with which the DDIM step is x1 = A x + B eps_hat.

    Args:
        start: The level of x, with index 0.
        end: The level of x1, with index 1.

    Raises:
        SingularTimeError: alpha is 0 at the start.
    """
    if start.alpha == 0.0:
        raise SingularTimeError(f"alpha is 0 at t = {start.t:.6g}, where this step is undefined; give a smaller t_max")
    ratio = end.alpha / start.alpha
    return ratio, end.sigma - ratio * start.sigma
