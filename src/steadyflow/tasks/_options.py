"""The words that every verb takes, typed and documented once."""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, cast

from .. import grids, solvers
from .._integrate import Adjoint, AdjointKind, Callback, Correction, PIDController, Progress, Record, adjoint_of
from .._internal.given import number, whole
from ..denoisers.base import Denoiser
from ..errors import InputError, UnknownNameError
from ..grids import Grid
from ..noise import SOURCES
from ..solvers.base import Solver, steps_for
from ..solvers.tuned import Tuned

DEFAULT_SOLVER = "ees25"
"""Near-reversible: the error of a round trip is of fifth order."""
DEFAULT_NFE = 48
"""Model evaluations each way where neither steps nor nfe are given."""
DEFAULT_GRID = "quadratic"

NoiseKind = Literal["brownian", "white"]


@dataclass(frozen=True)
class Auto:
    """A solver, coordinates and a grid chosen by trial for the run at hand; given to a verb as `solver=`.

    Before the verb runs, a few candidates are tried on some of its samples, over the same ends, strength and seed, and
    the best for the budget `nfe` is taken; the result's `reason` says why. What the caller has fixed, such as a grid,
    is not tried but kept. `sf.choose_solver` makes the choice alone.

    Args:
        exact: Try exactly reversible solvers only; for inversions.
        target: The model of the way back of an inversion, if it is another condition or guidance: then the edit counts
            too. `edit` and `diagnose` fill it in.
        samples: On how many of the samples to try.
    """

    exact: bool = False
    target: Denoiser | None = None
    samples: int = 8


class Options(TypedDict, total=False):
    """The words that `sample`, `invert`, `reconstruct`, `edit` and `diagnose` take, with one meaning.

    A verb for which one of them has no meaning refuses it by its name.
    """

    solver: str | Solver[Any] | Auto
    """A solver, its name, the path of a tuned solver's file, `Auto`, or "auto"; by default "ees25", and for `sample`
    the one that is recommended. See `steadyflow.solvers`."""
    steps: int | PIDController | None
    """Solver steps each way, or a controller that chooses them."""
    nfe: int | None
    """Model evaluations per sample each way, instead of steps; 48 where neither is given."""
    grid: str | Grid | None
    """How the steps are spaced: a name of `steadyflow.grids`, such as "quadratic", which is the default, or
    "karras:rho=5"; or the times themselves."""
    strength: float | None
    """How far up the path to go, as a share of the way from t_min to t_max, in (0, 1]; all the way by default."""
    t_min: float | None
    """The path time at the clean end; the path's own by default."""
    t_max: float | None
    """The path time at the noisy end; the path's own by default."""
    seed: int
    """Of all noise that is drawn; 0 by default."""
    index: int
    """The index of the first sample, 0 by default: row i of a batch is sample index + i, and gets the noise of that
    sample whatever the batch."""
    noise: NoiseKind
    """"brownian" noise is one path for all grids; "white" noise is cheaper and new for every interval."""
    batch_size: int | None
    """Samples that are computed together; all by default."""
    corrections: Iterable[Correction]
    """What may change the state after every step; see `steadyflow.corrections`."""
    callback: Callback | None
    """Called after every step with a `StepInfo`."""
    record: Record
    """What to keep of the run: "all" states, every k-th (an integer k), or only the last (None)."""
    progress: Progress
    """A bar on standard error (True), none (False), or one where the work at a terminal takes two seconds (None)."""
    adjoint: Adjoint | AdjointKind | None
    """How gradients pass through the run: "checkpoint" keeps one state a step, "reversible" hardly any, and "none" the
    whole graph; all reach the start, conditions, guidance, parameters and, but for "none", the grid's times. By default
    (None) the whole graph is held if the start requires a gradient, and none if it does not. See `Adjoint`."""


@dataclass(frozen=True)
class Resolved:
    """The options of a verb with their defaults, checked."""

    solver: str | Solver[Any] | Auto = DEFAULT_SOLVER
    steps: int | PIDController | None = None
    nfe: int | None = None
    grid: str | Grid | None = None
    strength: float | None = None
    t_min: float | None = None
    t_max: float | None = None
    seed: int = 0
    index: int = 0
    noise: NoiseKind = "brownian"
    batch_size: int | None = None
    corrections: tuple[Correction, ...] = ()
    callback: Callback | None = None
    record: Record = None
    progress: Progress = None
    adjoint: Adjoint | AdjointKind | None = None
    given: frozenset[str] = field(default=frozenset(), compare=False)
    """The names of the options that the caller wrote."""

    def __post_init__(self):
        if self.steps is not None and self.nfe is not None:
            raise InputError("steps, nfe: give one or the other, not both")
        ends: dict[str, tuple[int | None, int | None]]
        ends = {"nfe": (1, None), "seed": (None, None), "index": (0, 2**63 - 1), "batch_size": (1, None)}
        for name, (low, high) in ends.items():
            if getattr(self, name) is not None or name in ("seed", "index"):
                object.__setattr__(self, name, whole(name, getattr(self, name), low, high))
        if self.steps is not None and not isinstance(self.steps, PIDController):
            object.__setattr__(self, "steps", whole("steps", self.steps, 1))
        for name in ("strength", "t_min", "t_max"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, number(name, getattr(self, name)))
        object.__setattr__(self, "adjoint", adjoint_of(self.adjoint))
        if not isinstance(self.noise, str) or self.noise not in SOURCES:
            raise UnknownNameError("noise", self.noise, SOURCES)
        if isinstance(self.grid, Grid):
            for name in ("steps", "nfe", "strength", "t_min", "t_max"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name}: only valid with a named grid; a Grid already fixes its times")

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        verb: str | Callable[..., Any],
        *,
        refused: Collection[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> Resolved:
        """What a verb was given.

        Args:
            options: The keyword arguments.
            verb: Who was given them, for messages: the function, or words.
            refused: The options that have no meaning for the verb.
            defaults: Where the verb's own differ; only for methods that were published with others.

        Raises:
            UnknownNameError: There is no such option.
            InputError: An option has no meaning here, or a value that is not accepted.
        """
        known = [name for name in Options.__annotations__ if name not in refused]
        for name in options:
            if name not in Options.__annotations__:
                own = [] if isinstance(verb, str) else [*inspect.signature(verb).parameters][:-1]
                raise UnknownNameError("option", name, [*known, *own])
            if name in refused:
                who = verb if isinstance(verb, str) else verb.__name__
                raise InputError(f"{name}: has no meaning for {who}; it takes {', '.join(known)}")
        values = {**(defaults or {}), **options}
        if "corrections" in values:
            if not isinstance(values["corrections"], Iterable):
                one = values["corrections"]
                raise InputError(f"corrections: got {one!r}, expected a list of corrections, [...]")
            values["corrections"] = tuple(cast("Iterable[Correction]", values["corrections"]))
        return cls(**values, given=frozenset(options))

    def changed(self, **changes: Any) -> Resolved:
        """These options with others in their place."""
        return dataclasses.replace(self, **changes)

    @property
    def auto(self) -> Auto | None:
        """What chooses the solver, if anything does."""
        if isinstance(self.solver, Auto):
            return self.solver
        return Auto() if self.solver == "auto" else None

    def aimed(self, target: Denoiser | None) -> Resolved:
        """These options, with the model of the way back in view of a choice by trial that names none itself."""
        if self.auto is None or self.auto.target is not None:
            return self
        return self.changed(solver=dataclasses.replace(self.auto, target=target))

    @property
    def budget(self) -> int:
        """Model evaluations per sample each way, where steps are not given."""
        return DEFAULT_NFE if self.nfe is None else self.nfe

    @property
    def method(self) -> Solver[Any]:
        """The solver, once there is one to name."""
        assert not isinstance(self.solver, Auto)
        found = solvers.get(self.solver)
        return found.only(self.nfe) if isinstance(found, Tuned) and self.nfe in found.budgets else found

    @property
    def controller(self) -> PIDController | None:
        """What chooses the steps, if anything does."""
        return self.steps if isinstance(self.steps, PIDController) else None

    def own_grid(self, model: Denoiser, *, rising: bool) -> Grid | None:
        """The grid that belongs to the solver, if it has one."""
        if self.auto is not None:
            return None
        method = self.method
        if method.has_own_grid:
            given = isinstance(self.grid, Grid)
            if isinstance(self.grid, Grid) and self.grid.tensor is not None:
                raise InputError(
                    f"grid: solver {method.name!r} has its own times, which have no gradient; detach() them"
                )
            for name in ("steps", "strength", "t_min", "t_max", *(() if given else ("grid",))):
                if getattr(self, name) is not None:
                    raise InputError(f"{name}: has no meaning with solver {method.name!r}, which has its own grid")
        if isinstance(method, Tuned) and isinstance(self.grid, Grid):
            calls = method.recognised(model.schedule, self.grid).calls
            return method.own_grid(model.schedule, calls, rising=rising)
        return method.own_grid(model.schedule, self.nfe, rising=rising)

    def rising(self, model: Denoiser) -> Grid:
        """The grid of the run from data to noise."""
        own = self.own_grid(model, rising=True)
        return self.falling(model).reversed() if own is None else own

    def falling(self, model: Denoiser, *, clean: bool = False) -> Grid:
        """The grid of the run from noise to data; one that is `clean` ends with the clean estimate if it must."""
        own = self.own_grid(model, rising=False)
        if own is not None:
            return own
        schedule, ends = model.schedule, {"t_max": self.t_max, "t_min": self.t_min}
        if self.controller is not None:
            if "grid" in self.given and self.grid is not None:
                raise InputError("grid: a controller chooses its own steps; bound them with t_min and t_max")
            top = grids.start_time(schedule, self.strength, **ends)
            bottom = schedule.t_min if self.t_min is None else self.t_min
            if not bottom < top:
                raise InputError(f"grid: expected t_min < t_max, got {bottom} and {top}")
            return grids.make(Grid((top, bottom)), schedule, 1, clean=clean)
        grid = DEFAULT_GRID if self.grid is None else self.grid
        if isinstance(grid, Grid):
            return grids.make(grid, schedule, 1, clean=clean)
        bottom = schedule.t_min if self.t_min is None else self.t_min
        reads = clean and schedule.domain[0] <= bottom and schedule.at(bottom).sigma > 0.0
        return grids.partway(grid, schedule, self.count(reads), self.strength, **ends, clean=clean)

    def count(self, clean: bool) -> int:
        """The number of steps; `clean` where the last of them is the reading of the clean estimate."""
        if self.steps is not None:
            return cast(int, self.steps)  # anything else is refused where the grid is made
        if self.nfe is not None:
            return steps_for(self.method, self.nfe, clean=clean)
        if self.method.properties.evaluations is None:
            return DEFAULT_NFE
        return steps_for(self.method, DEFAULT_NFE, clean=clean)
