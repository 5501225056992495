"""What a solver is: a coroutine that *asks* for model evaluations and never calls a model.

    def step(self, state, step):           # from step.start to step.end
        prediction = yield Query(x, t)     # as often as it likes
        return new_state

One definition serves our own loop (`integrate`), an outside loop (`Stepper`), and the way back
(`inverse_step`). A solver holds options and nothing of a run, so one object can serve many runs; what a run
carries from step to step is its *state*, an immutable value: a tensor, or a named tuple of tensors and
numbers registered with `@solver_state`.

A step carries the path's numbers at both of its ends (`step.start.alpha`, `step.end.sigma`, ...). What is expensive to
work out for a step is cached by pure functions, whose arguments are all that can matter.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

from torch import Tensor

from ..coordinates import CoordinatesName
from ..errors import InputError, NotInvertibleError, SingularTimeError
from ..grids import Grid
from ..noise import NoiseSource
from ..prediction import Prediction
from ..schedules import Level, Schedule, levels


class Query(NamedTuple):
    """A request for the model at a state and a time."""

    x: Tensor
    """In model space, shape (B, ...)."""
    t: float
    """Path time."""


S = TypeVar("S")
"""A solver's state: a tensor, or a named tuple registered with `@solver_state`."""
Result = TypeVar("Result")
Queries = Generator[Query, Prediction, Result]
"""A coroutine that yields queries, is sent predictions, and returns a result."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run over a grid.

    On the way down (sampling) t0 > t1. On the way up (inversion) t0 < t1, and the step is the one that
    sampling would make from t1 to t0, with the same index.
    """

    schedule: Schedule
    start: Level
    """The path where the step begins."""
    end: Level
    """The path where it ends."""
    index: int
    """0 for the step at the noisy end, count - 1 for the one at the clean end, whatever the direction."""
    count: int
    """The number of the method's own steps over the whole grid; the reading of clean data is none of them."""
    noise: NoiseSource | None = None
    defined_at_zero_noise: bool = False
    """Whether the model can be asked at sigma = 0; else a last step that would ask there is DDIM's."""
    reads_clean: bool = False
    """Whether this is no step of the method but the last evaluation of a run, read as the clean estimate."""

    @classmethod
    def between(cls, schedule: Schedule, t0: float, t1: float, index: int = 0, count: int = 1, **others: Any) -> Step:
        """A step between two times of a path."""
        return cls(schedule, schedule.at(t0), schedule.at(t1), index, count, **others)

    @property
    def t0(self) -> float:
        """The path time where the step begins."""
        return self.start.t

    @property
    def t1(self) -> float:
        """The path time where the step ends."""
        return self.end.t

    @property
    def rising(self) -> bool:
        """Whether this step adds noise (inversion)."""
        return self.end.t > self.start.t

    @property
    def source(self) -> NoiseSource:
        """The noise of the run. Raises `InputError` where it has none."""
        if self.noise is None:
            raise InputError("noise: a stochastic solver needs a noise source (see steadyflow.noise.Brownian)")
        return self.noise


@dataclass(frozen=True)
class Properties:
    """What is known of a solver before it runs; each entry is checked by a test over the registry."""

    order: int
    """Order of accuracy as an ODE method; for a stochastic solver, in the mean."""
    evaluations: int | None
    """Model evaluations per step; None where a step iterates until it converges."""
    inverse: Literal["exact", "approximate", "none"]
    """"exact" (to rounding), "approximate" (the same step backwards), or "none"."""
    antisymmetric_order: int | None = None
    """p such that a step followed by its inverse is the identity up to O(h^(p+1)); None where exact."""
    stochastic: bool = False
    strong_order: int | None = None
    """The order path by path of a stochastic solver, over grids on one Brownian path; None where there is no such."""
    inverse_evaluations: int | None = None
    """Model evaluations per step upwards, where they differ from those downwards."""
    startup_evaluations: int = 0
    """Model evaluations once, before the first step."""
    states: int = 1
    """Tensors carried between steps."""
    real_interval: float | None = None
    """Largest r such that the method is stable on [-r, 0] for y' = z y, on a grid of equal steps."""
    imaginary_interval: float | None = None
    """Largest r such that the method is stable on i [-r, r]."""
    source: str = ""
    """Where the method comes from."""


class Solver(ABC, Generic[S]):
    """One step of a method, forwards and backwards. Subclasses are frozen dataclasses of hashable options."""

    name: ClassVar[str]
    coordinates: CoordinatesName = "noise"
    """The coordinates in whose terms the method steps, and is stable or not."""

    @property
    def points(self) -> int:
        """How many of the state's tensors are states in model space; the others are slopes."""
        return 1

    @property
    @abstractmethod
    def properties(self) -> Properties:
        """Order, cost, inverse and stability of the method with these options."""

    def start(self, x: Tensor, schedule: Schedule, t: float) -> S:
        """The state at the start of a run at x, shape (B, ...)."""
        return cast(S, x)

    @abstractmethod
    def step(self, state: S, step: Step) -> Queries[S]:
        """The state at step.end, from the one at step.start, towards less noise."""

    def inverse_step(self, state: S, step: Step) -> Queries[S]:
        """The state at step.end, noisier than step.start, that `step` would bring back to this one.

        The same step taken the other way, by default: an inverse to the method's antisymmetric order.
        Exactly reversible methods override it; those without an inverse refuse.
        """
        self.check_invertible()
        return self.step(state, step)

    def output(self, state: S) -> Tensor:
        """The sample in model space, shape (B, ...)."""
        return cast(Tensor, state)

    def with_sample(self, state: S, x: Tensor, schedule: Schedule, t: float) -> S:
        """The state with its sample moved a little to x, at t; a history of predictions is kept.

        By default a fresh start, as there is nothing to keep or no telling how it would move.
        """
        return self.start(x, schedule, t)

    def for_decoding(self, state: S) -> S:
        """The state at which an inversion ends, made ready for the way back.

        Exactly reversible methods need all of it; a history of predictions from the other direction is dropped.
        """
        return state

    def determinant(self, step: Step) -> float | None:
        """The determinant of the step map, per dimension of a sample and in the solver's coordinates.

        Only for exactly reversible methods, which carry two states; else None. Its inverse is the factor by
        which the inverse step spreads rounding errors, and its negative logarithm is, to first order, the length of
        the stability interval on the negative axis.
        """
        return None

    def inverse_growth(self, schedule: Schedule, grid: Grid) -> float:
        """The predicted growth of rounding errors over an inversion: the product of 1 / |determinant|."""
        total = 0.0
        for step in each_step(schedule, grid if grid.rising else grid.reversed()):
            determinant = self.determinant(step)
            total -= 0.0 if determinant is None else math.log(abs(determinant))
        return math.exp(min(total, 700.0))

    def advance(self, state: S, step: Step) -> Queries[S]:
        """One step in its own direction: `step` downwards, `inverse_step` upwards, and the reading of clean data."""
        if step.reads_clean:
            return self._read_clean(state, step)
        return self.inverse_step(state, step) if step.rising else self.step(state, step)

    def _read_clean(self, state: S, step: Step) -> Queries[S]:
        x = yield from ddim_step(self.output(state), step)
        return self.start(x, step.schedule, step.t1)

    @property
    def invertible(self) -> bool:
        """Whether `inverse_step` exists."""
        return self.properties.inverse != "none"

    def check_invertible(self) -> None:
        """Raise `NotInvertibleError` if this solver has no inverse."""
        if not self.invertible:
            stochastic = self.properties.stochastic
            kind = "is stochastic: it adds fresh noise at every step" if stochastic else "has no inverse"
            raise NotInvertibleError(
                f"solver {self.name!r} {kind} and cannot invert; use a deterministic one, such as 'ees25'"
            )

    def spec(self) -> dict[str, Any]:
        """A JSON-able description: the name in the registry and the options."""
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
    """The steps of a run over a grid, from step `first` on; `defined_at_zero_noise` as in `Step`."""
    path = levels(schedule, grid.times)
    n = len(path) - 1
    for k in range(first, n):
        index = n - 1 - k if grid.rising else k
        yield Step(schedule, path[k], path[k + 1], index, n, noise, defined_at_zero_noise)
    if grid.clean and first <= n:
        yield Step(schedule, path[-1], clean_level(schedule, path[-1]), n, n, noise, defined_at_zero_noise, True)


def clean_level(schedule: Schedule, last: Level) -> Level:
    """Data without noise, as a level: at the path's own clean end, or, where it has none, at its last time."""
    end = schedule.domain[0]
    return Level(end if schedule.at(end).sigma == 0.0 else last.t, 1.0, 0.0, math.inf, 0.0)


def steps_for(solver: Solver[Any], nfe: int, *, clean: bool = False) -> int:
    """The number of steps that a budget of model evaluations pays for.

    Args:
        solver: The method; its evaluations before the first step count.
        nfe: The budget.
        clean: Whether the last evaluation is the reading of the clean estimate, which counts as a step.

    Raises:
        InputError: The budget pays for no step, or the solver's steps have no fixed cost.
    """
    properties = solver.properties
    cost = properties.evaluations
    if cost is None:
        raise InputError(f"nfe: a step of {solver.name!r} has no fixed cost; give the number of steps")
    once = properties.startup_evaluations + clean
    if nfe < cost + once:
        more = f", and {once} more" if once else ""
        raise InputError(f"nfe: got {nfe}, but one step of {solver.name!r} takes {cost} evaluations{more}")
    return (nfe - once) // cost + clean


def ddim_step(x: Tensor, step: Step) -> Queries[Tensor]:
    """x1 = alpha1 x0_hat + sigma1 eps_hat: Euler in any coordinates, defined at both ends of any path."""
    prediction = yield Query(x, step.t0)
    return prediction.mix(step.end.alpha, step.end.sigma)


def ddim_factors(start: Level, end: Level) -> tuple[float, float]:
    """A and B of the DDIM step x1 = A x0 + B eps. Raises `SingularTimeError` where alpha is 0 at the start."""
    if start.alpha == 0.0:
        raise SingularTimeError(
            f"alpha is 0 at t = {start.t:.6g}, from where this step is undefined; give a smaller t_max"
        )
    ratio = end.alpha / start.alpha
    return ratio, end.sigma - ratio * start.sigma
