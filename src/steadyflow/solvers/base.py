"""What a solver is: a coroutine that *asks* for model evaluations and never calls a model.

    def step(self, state, leg):            # from leg.t0 to leg.t1
        prediction = yield Query(x, t)     # as often as it likes
        return new_state

One definition serves our own loop (`integrate`), an outside loop (`Stepper`), and the way back
(`inverse_step`). A solver holds options and no run state, so one object can serve many runs; what a run
carries from step to step is its *state*, an immutable value: a tensor, or a named tuple of tensors and
numbers registered with `@state`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import MALFORMED, CorruptFileError, InputError, NotInvertibleError, SingularTimeError
from ..grids import Grid
from ..noise import NoiseSource
from ..prediction import Prediction
from ..schedules import Schedule
from ..variables import VariableName


class Query(NamedTuple):
    """A request for the model at a state and a time."""

    x: Tensor
    """In model space, shape (B, ...)."""
    t: float
    """Path time."""


Result = TypeVar("Result")
Asking = Generator[Query, Prediction, Result]
"""A coroutine that yields queries, is sent predictions, and returns a result."""

State = Any
"""A tensor, or a named tuple registered with `@state`."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One solver step of a journey over a grid.

    On the way down (sampling) t0 > t1. On the way up (inversion) t0 < t1, and the leg is the one that
    sampling would travel from t1 to t0, with the same index.
    """

    schedule: Schedule
    t0: float
    t1: float
    index: int
    """0 for the leg at the noisy end, steps - 1 for the one at the clean end, whatever the direction."""
    steps: int
    noise: NoiseSource | None = None
    clean: bool = False
    """Whether the model can be asked at sigma = 0; else a last step that would ask there is DDIM's."""

    @property
    def rising(self) -> bool:
        """Whether this leg adds noise (inversion)."""
        return self.t1 > self.t0

    @property
    def source(self) -> NoiseSource:
        """The noise of the journey. Raises `InputError` where it has none."""
        if self.noise is None:
            raise InputError("noise: a stochastic solver needs a noise source (see steadyflow.noise.Brownian)")
        return self.noise


@dataclass(frozen=True)
class Facts:
    """What is known of a solver before it runs; each entry is checked by a test over the registry."""

    order: int
    """Order of accuracy as an ODE method; for a stochastic solver, in the mean."""
    evaluations: int | None
    """Model evaluations a step; None where a step iterates until it converges."""
    inverse: str
    """"exact" (to rounding), "approximate" (the same step backwards), or "none"."""
    antisymmetric_order: int | None = None
    """p such that a step followed by its inverse is the identity up to O(h^(p+1)); None where exact."""
    stochastic: bool = False
    strong_order: int | None = None
    """Of a stochastic solver, its order path by path: over grids on one Brownian path; None where there is no such."""
    inverse_evaluations: int | None = None
    """Model evaluations a step upwards, where they differ from those downwards."""
    extra: int = 0
    """Model evaluations once, before the first step."""
    states: int = 1
    """Tensors carried between steps."""
    real_interval: float | None = None
    """Largest r such that the method is stable on [-r, 0] for y' = z y, on a grid of equal steps."""
    imaginary_interval: float | None = None
    """Largest r such that the method is stable on i [-r, r]."""
    source: str = ""
    """Where the method comes from."""


class Solver(ABC):
    """One step of a method, forwards and backwards. Subclasses are frozen dataclasses of hashable options."""

    name: ClassVar[str]

    @property
    def frame(self) -> VariableName:
        """The variable in whose terms the method is stable or not (see `variables`)."""
        return "noise"

    @property
    def points(self) -> int:
        """How many of the state's tensors are states in model space; the others are slopes."""
        return 1

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """Order, cost, inverse and stability of the method with these options."""

    def start(self, x: Tensor, schedule: Schedule, t: float) -> State:
        """The state at the start of a journey at x, shape (B, ...)."""
        return x

    @abstractmethod
    def step(self, state: State, leg: Leg) -> Asking[State]:
        """The state at leg.t1, from the one at leg.t0, towards less noise."""

    def inverse_step(self, state: State, leg: Leg) -> Asking[State]:
        """The state at leg.t1 > leg.t0 that `step` would bring back to this one.

        The same step travelled the other way, by default: an inverse to the method's antisymmetric order.
        Exactly reversible methods override it; those without an inverse refuse.
        """
        self.check_invertible()
        return self.step(state, leg)

    def output(self, state: State) -> Tensor:
        """The sample in model space, shape (B, ...)."""
        return state

    def moved(self, state: State, x: Tensor, schedule: Schedule, t: float) -> State:
        """The state with its sample moved a little to x, at t; a history of predictions is kept.

        By default a fresh start, as there is nothing to keep or no telling how it would move.
        """
        return self.start(x, schedule, t)

    def turn(self, state: State) -> State:
        """The state at which an inversion ends, made ready for the way back.

        Exactly reversible methods need all of it; a history of predictions from the other direction is dropped.
        """
        return state

    def determinant(self, leg: Leg) -> float | None:
        """The determinant of the step map over a leg, per dimension of a sample and in the solver's variable.

        Only for exactly reversible methods, which carry two states; else None. Its inverse is the factor by
        which the inverse step spreads rounding errors, and its negative logarithm is, to first order, the length of
        the stability interval on the negative axis.
        """
        return None

    def inverse_growth(self, schedule: Schedule, grid: Grid) -> float:
        """The predicted growth of rounding errors over an inversion: the product of 1 / |determinant|."""
        total = 0.0
        for leg in legs(schedule, grid if grid.rising else grid.reversed()):
            determinant = self.determinant(leg)
            total -= 0.0 if determinant is None else math.log(abs(determinant))
        return math.exp(min(total, 700.0))

    def travel(self, state: State, leg: Leg) -> Asking[State]:
        """One leg in its own direction: `step` downwards, `inverse_step` upwards."""
        return self.inverse_step(state, leg) if leg.rising else self.step(state, leg)

    @property
    def invertible(self) -> bool:
        """Whether `inverse_step` exists."""
        return self.facts.inverse != "none"

    def check_invertible(self) -> None:
        """Raise `NotInvertibleError` if this solver has no inverse."""
        if not self.invertible:
            kind = "is stochastic: it adds fresh noise at every step" if self.facts.stochastic else "has no inverse"
            raise NotInvertibleError(
                f"solver {self.name!r} {kind} and cannot invert; use a deterministic one, such as 'ees25'"
            )

    def spec(self) -> dict[str, Any]:
        """A JSON-able description: the name in the registry and the options."""
        options = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}
        return {"name": self.name, **options}


def legs(
    schedule: Schedule, grid: Grid, noise: NoiseSource | None = None, first: int = 0, *, clean: bool = False
) -> Iterable[Leg]:
    """The legs of a journey over a grid, from step `first` on; `clean` as in `Leg`."""
    n = grid.steps
    for k in range(first, n):
        index = n - 1 - k if grid.rising else k
        yield Leg(schedule, grid.times[k], grid.times[k + 1], index, n, noise, clean)


def steps_for(solver: Solver, nfe: int) -> int:
    """The number of steps that a budget of evaluations pays for.

    Raises `InputError` for a budget below one step, and for a solver whose steps have no fixed cost.
    """
    cost = solver.facts.evaluations
    if cost is None:
        raise InputError(f"nfe: a step of {solver.name!r} has no fixed cost; give the number of steps")
    if nfe < cost:
        raise InputError(f"nfe: got {nfe}, but one step of {solver.name!r} takes {cost} evaluations")
    return nfe // cost


def ddim_step(x: Tensor, leg: Leg) -> Asking[Tensor]:
    """x1 = alpha1 x0_hat + sigma1 eps_hat: Euler in either variable, defined at both ends of any path."""
    prediction = yield Query(x, leg.t0)
    return prediction.mix(leg.schedule.alpha(leg.t1), leg.schedule.sigma(leg.t1))


def ddim_factors(schedule: Schedule, t0: float, t1: float) -> tuple[float, float]:
    """A and B of the DDIM step x1 = A x0 + B eps from t0 to t1. Raises `SingularTimeError` where alpha(t0) = 0."""
    before = schedule.alpha(t0)
    if before == 0.0:
        raise SingularTimeError(f"alpha is 0 at t = {t0:.6g}, from where this step is undefined; give a smaller t_max")
    ratio = schedule.alpha(t1) / before
    return ratio, schedule.sigma(t1) - ratio * schedule.sigma(t0)


# States as data: any registered named tuple can be taken apart into tensors and JSON, and put together again.

_STATES: dict[str, type] = {}


def state(cls: type[Result]) -> type[Result]:
    """Register a named tuple as a solver state, so that runs that carry it can be saved."""
    _STATES[cls.__name__] = cls
    return cls


def cut(value: State, start: int, stop: int) -> State:
    """The state of the samples [start, stop) of a batch."""
    if isinstance(value, Tensor):
        return value[start:stop]
    if isinstance(value, tuple):
        return _rebuild(value, [cut(v, start, stop) for v in value])
    return value


def join(values: Sequence[State]) -> State:
    """One state of the batches' states, in order; numbers in them must agree."""
    if len(values) == 1:
        return values[0]
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    if isinstance(values[0], tuple):
        return _rebuild(values[0], [join(parts) for parts in zip(*values, strict=True)])
    return values[0]


def _rebuild(like: tuple, items: list[Any]) -> tuple:
    return type(like)(*items) if hasattr(like, "_fields") else tuple(items)


def take_apart(value: State) -> tuple[Callable[[Sequence[Tensor]], State], list[Tensor]]:
    """How to build a state like this one from other tensors, and the tensors of this one."""
    found: list[Tensor] = []

    def walk(item: State) -> Callable[[Sequence[Tensor]], State]:
        if isinstance(item, Tensor):
            k = len(found)
            found.append(item)
            return lambda tensors: tensors[k]
        if isinstance(item, tuple):
            parts = [walk(part) for part in item]
            return lambda tensors: _rebuild(item, [part(tensors) for part in parts])
        return lambda tensors: item

    return walk(value), found


def pack(value: State, prefix: str = "state") -> tuple[dict[str, Tensor], str]:
    """A state as named tensors and a JSON text that says how they fit together."""
    tensors: dict[str, Tensor] = {}

    def walk(item: Any, path: str) -> Any:
        if isinstance(item, Tensor):
            tensors[path] = item.detach().contiguous()
            return {"tensor": path}
        if isinstance(item, tuple):
            kind = type(item).__name__ if type(item).__name__ in _STATES else "tuple"
            return {"tuple": kind, "items": [walk(v, f"{path}.{i}") for i, v in enumerate(item)]}
        if isinstance(item, Mapping):
            return {"mapping": {str(key): walk(v, f"{path}.{key}") for key, v in item.items()}}
        if item is None or isinstance(item, int | str | bool):
            return {"value": item}
        if isinstance(item, float):
            return {"float": item.hex()}
        raise TypeError(f"a solver state may not hold a {type(item).__name__}")

    return tensors, json.dumps(walk(value, prefix))


def unpack(tensors: Mapping[str, Tensor], text: str) -> State:
    """The state that `pack` took apart. Raises `CorruptFileError` where the parts do not fit."""

    def build(node: Any) -> Any:
        match node:
            case {"tensor": str(path)}:
                return tensors[path]
            case {"tuple": str(kind), "items": list(items)}:
                values = [build(v) for v in items]
                return tuple(values) if kind == "tuple" else _STATES[kind](*values)
            case {"mapping": dict(items)}:
                return {key: build(v) for key, v in items.items()}
            case {"float": str(digits)}:
                return float.fromhex(digits)
            case {"value": value}:
                return value
        raise ValueError(f"unknown node {node!r}")

    try:
        return build(json.loads(text))
    except MALFORMED as error:
        raise CorruptFileError(f"the saved solver state cannot be put together: {error}") from error
