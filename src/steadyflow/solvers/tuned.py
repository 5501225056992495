"""Solvers that were fitted to a model: general explicit schemes over a whole run, one for every number of calls.

In flow coordinates u = x / (alpha + sigma), tau = sigma / (alpha + sigma), with slopes f = eps_hat - x0_hat (see
`coordinates`), a scheme of N calls asks the model at free combinations of the start and the slopes so far, at free
times, and ends in another such combination:

    X_0 = u_0,      X_k = a_k0 u_0 + sum_{j<k} a_k,j+1 f_j,      f_k = slope at (X_k, tau_k),      k = 0 .. N - 1
    u_N = b_0 u_0 + sum_{j<N} b_j+1 f_j.

Every linear method on a fixed grid is such a scheme. The call is the step: between two calls the state of a run is the
point at which the model is asked next, so that loops, callbacks and the loops of pipelines see one call a step.

`steadyflow.tune` makes them. A `Tuned` solver has its own grid; it holds an `Entry` for each number of calls, with what
was measured when it was fitted, and is saved as one JSON file. Sources for schemes of this kind: Shaul et al. 2024
(2403.01329), Tong et al. 2025 (2502.17423), Oganov et al. 2025 (2510.17699).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast

from torch import Tensor

from .._internal import files, strict_json
from .._internal.tensors import combine
from ..coordinates import FLOW
from ..errors import MALFORMED, CorruptFileError, InputError, NotInvertibleError, StorageError
from ..grids import Grid
from ..prediction import Scaled
from ..schedules import Schedule
from . import registry
from .base import Properties, Queries, Query, Solver, Step
from .own_grids import FOR_SAMPLING, entry_over, grid_of, place_of
from .schemes import Entry, Plain, Scheme, Verdict, time_on
from .state import solver_state

__all__ = ["Tuned"]

FORMAT = "steadyflow-tuned-1"
"""The first entry of a file."""
_LARGEST = 64 * 2**20
"""Larger files are not read."""

Kind = Literal["sample", "round trip"]


@solver_state
class Asked(NamedTuple):
    """A point of a scheme, with what later points are combinations of."""

    x: Tensor
    """The point at which the model is asked next, in model space; shape (B, ...)."""
    start: Tensor
    """The start of the run, in model space; shape (B, ...)."""
    scale: float
    """The scale of the flow coordinates at the start."""
    slopes: tuple[Scaled, ...]
    """The slopes so far, the oldest first, shape (B, ...) each."""
    inner: tuple[int, Any] | None = None
    """The number of calls and the state of a plain solver instead."""


@dataclass(frozen=True)
class Tuned(Solver[Asked]):
    """A solver that `steadyflow.tune` fitted to a model, with its own grid for each number of calls.

    Args:
        entries: What it does, by the number of calls.
        tau_max: The flow time at the noisy end for which it was fitted.
        tau_min: The flow time at the clean end.
        kind: Whether it samples, or makes round trips between the two ends.
        model: The name of the model.
        fingerprint: That of the model (see `denoisers.fingerprint`); empty if it has none.
        guidance: The smallest and the largest guidance scale for which it was fitted.
        schedule: The path's description as JSON.

    Raises:
        InputError: There is no entry, or two of one number of calls.
    """

    entries: tuple[Entry, ...]
    tau_max: float
    tau_min: float
    kind: Kind = "sample"
    model: str = field(default="", compare=False)
    fingerprint: str = field(default="", compare=False)
    guidance: tuple[float, float] = field(default=(1.0, 1.0), compare=False)
    schedule: str = field(default="", compare=False)
    name: ClassVar[str] = "tuned"
    coordinates = "flow"
    has_own_grid = True

    def __post_init__(self):
        calls = [entry.calls for entry in self.entries]
        if not calls or len(set(calls)) < len(calls):
            raise InputError(f"solver 'tuned': expected entries of different numbers of calls, got {calls}")
        if self.kind not in ("sample", "round trip"):
            raise InputError(f"solver 'tuned': got kind {self.kind!r}, expected 'sample' or 'round trip'")
        if not 0.0 <= self.tau_min < self.tau_max <= 1.0:
            ends = f"{self.tau_min!r} and {self.tau_max!r}"
            raise InputError(f"solver 'tuned': got ends {ends}, expected 0 <= tau_min < tau_max <= 1")

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.entries, self.tau_max, self.tau_min, self.kind))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_hash"}  # another process has other hashes

    def __repr__(self) -> str:
        return f"Tuned({self.kind!r}, model={self.model!r}, calls={self.budgets}, guidance={self.guidance})"

    @property
    def budgets(self) -> tuple[int, ...]:
        """The numbers of calls for which it was fitted."""
        return tuple(entry.calls for entry in self.entries)

    @property
    def verdict(self) -> Verdict:
        """What was measured, for a solver of one number of calls; else see `at`.

        Raises:
            InputError: It has several numbers of calls, or nothing was measured.
        """
        found = self.at().verdict
        if found is None:
            raise InputError("solver 'tuned': nothing was measured for it")
        return found

    @property
    def properties(self) -> Properties:
        inverse = "none" if self.kind == "sample" else "approximate"
        most = max(self.budgets)
        return Properties(1, 1, inverse, states=1 + most, source="fitted to a model")

    def at(self, calls: int | None = None) -> Entry:
        """Return what it does at a number of calls.

        Args:
            calls: The number; may be left out if there is only one.

        Raises:
            InputError: It was not fitted for this number.
        """
        if calls is None and len(self.entries) == 1:
            return self.entries[0]
        for entry in self.entries:
            if entry.calls == calls:
                return entry
        budgets = ", ".join(map(str, self.budgets))
        got = "no number" if calls is None else calls
        raise InputError(f"nfe: got {got}, but this tuned solver was fitted for {budgets} evaluations")

    def only(self, calls: int) -> Tuned:
        """Return the solver with what it does at one number of calls alone.

        Args:
            calls: The number.

        Raises:
            InputError: It was not fitted for this number.
        """
        entry = self.at(calls)
        return self if len(self.entries) == 1 else replace(self, entries=(entry,))

    def check_grid(self, schedule: Schedule, grid: Grid) -> None:
        if grid.rising:
            self.check_invertible()
        self.recognised(schedule, grid)

    def own_grid(self, schedule: Schedule, calls: int | None = None, *, rising: bool = False) -> Grid:
        return grid_of(self, schedule, self.at(calls).calls, rising)

    def way_back(self, schedule: Schedule, grid: Grid) -> Grid:
        return self.own_grid(schedule, self.recognised(schedule, grid).calls, rising=not grid.rising)

    def recognised(self, schedule: Schedule, grid: Grid) -> Entry:
        """Return what it does over a grid, which must be one of its own but for the rounding of times.

        Args:
            schedule: The path.
            grid: The grid, falling or rising.

        Raises:
            InputError: The grid is none of its own, or that of several numbers of calls.
        """
        return entry_over(self, schedule, grid)

    def sigmas(self, calls: int | None = None, *, flow: bool = False) -> tuple[float, ...]:
        """Return the noise levels of its calls, and last that of the end, for programs that take only a grid.

        Args:
            calls: The number of calls; may be left out if there is only one.
            flow: Whether the levels are those of a flow model, x = (1 - sigma) x0 + sigma eps, as in SD3 and FLUX;
                by default they are those of x0 + sigma eps, the ratio sigma / alpha of other paths.

        Raises:
            InputError: It was not fitted for this number, or a plain solver is used for it.
        """
        scheme = self._scheme(calls)
        taus = (*scheme.times, scheme.end)
        return taus if flow else tuple(tau / (1.0 - tau) if tau < 1.0 else math.inf for tau in taus)

    def timesteps(self, schedule: Schedule, calls: int | None = None) -> tuple[float, ...]:
        """Return the times that the network of a path is given.

        Args:
            schedule: The path.
            calls: The number of calls; may be left out if there is only one.

        Raises:
            InputError: It was not fitted for this number, or a plain solver is used for it.
        """
        return tuple(schedule.model_time(time_on(schedule, tau)) for tau in self._scheme(calls).times)

    def _scheme(self, calls: int | None) -> Scheme:
        entry = self.at(calls)
        if isinstance(entry.down, Plain):
            raise InputError(
                f"solver 'tuned': at {entry.calls} calls {entry.down.solver.name!r} on the grid {entry.down.grid!r} "
                "was better than the fit; take its grid"
            )
        return entry.down

    def start(self, x: Tensor, schedule: Schedule, t: float) -> Asked:
        return Asked(x, x, FLOW.scale(schedule.at(t)), ())

    def output(self, state: Asked) -> Tensor:
        return state.x

    def with_sample(self, state: Asked, x: Tensor, schedule: Schedule, t: float) -> Asked:
        if state.inner is not None:
            calls, inner = state.inner
            inner = self._plain(calls).with_sample(inner, x, schedule, t)
            return Asked(x, x, state.scale, (), (calls, inner))
        scale = state.scale / FLOW.scale(schedule.at(t))
        moved = combine(1.0, state.start, [scale, -scale], [x, state.x])
        return Asked(x, moved, state.scale, state.slopes)

    def restarted(self, state: Asked, x: Tensor, schedule: Schedule, t: float) -> Asked:
        return self.with_sample(state, x, schedule, t)  # a scheme has no other beginning than its first call

    def for_decoding(self, state: Asked) -> Asked:
        inner = state.inner
        if inner is not None:
            inner = inner[0], self._plain(inner[0]).for_decoding(inner[1])
        return Asked(state.x, state.x, state.scale, (), inner)

    def within(self, state: Asked) -> tuple[Solver[Any], Any] | None:
        return None if state.inner is None else (self._plain(state.inner[0]), state.inner[1])

    def _plain(self, calls: int) -> Solver[Any]:
        return cast(Plain, self.at(calls).down).solver

    def advance(self, state: Asked, step: Step) -> Queries[Asked]:
        return self.step(state, step)

    def step(self, state: Asked, step: Step) -> Queries[Asked]:
        place = place_of(self, step.schedule, step.t0, step.t1, step.index, step.count, step.reads_clean)
        if place is None:
            raise InputError(self.foreign)
        scheme = place.scheme
        done = len(state.slopes) if isinstance(scheme, Scheme) else place.call if state.inner is not None else 0
        if place.call > 0 and place.call != done:
            raise InputError(f"{self.foreign}; a run begins with its first call, not with call {place.call + 1}")
        if isinstance(scheme, Plain):
            method = scheme.solver
            inner = method.start(state.x, step.schedule, step.t0) if state.inner is None else state.inner[1]
            inner = yield from method.advance(inner, step)
            return Asked(method.output(inner), state.start, state.scale, (), (place.entry.calls, inner))
        if place.call == 0:  # also after a way up, whose last scale is another
            state = self.start(state.x, step.schedule, step.t0)
        prediction = yield Query(state.x, step.t0)
        slopes = (*state.slopes, prediction.scaled(*FLOW.prediction))
        factors = scheme.weights if place.last else scheme.rows[place.call + 1]
        after = FLOW.scale(step.end)
        weights = [after * factor * slope.factor for factor, slope in zip(factors[1:], slopes, strict=True)]
        x = combine(after * factors[0] / state.scale, state.start, weights, [slope.tensor for slope in slopes])
        return Asked(x, state.start, state.scale, slopes)

    def inverse_step(self, state: Asked, step: Step) -> Queries[Asked]:
        self.check_invertible()
        return self.step(state, step)

    def check_invertible(self) -> None:
        if self.kind == "sample":
            raise NotInvertibleError(FOR_SAMPLING)

    @property
    def foreign(self) -> str:
        """What to say where a grid is none of its own."""
        return (
            f"solver 'tuned': it was fitted together with its own grids, of {', '.join(map(str, self.budgets))} calls; "
            "leave the grid, the ends and the strength out, or pass what own_grid(schedule, calls), sigmas(calls) or "
            "timesteps(schedule, calls) return"
        )

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "document": self.document()}

    def document(self) -> dict[str, Any]:
        """Return everything as JSON-able values; `from_document` is the inverse."""
        facts = {"format": FORMAT, "kind": self.kind, "tau_max": self.tau_max, "tau_min": self.tau_min}
        facts |= {"model": self.model}
        facts |= {"fingerprint": self.fingerprint, "guidance": list(self.guidance), "schedule": self.schedule}
        return {**facts, "entries": [entry.document() for entry in self.entries]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Rebuild what `document` described.

        Raises:
            CorruptFileError: It is none, or its numbers do not make a solver.
        """
        try:
            if document["format"] != FORMAT:
                raise InputError(f"format {document['format']!r}, expected {FORMAT!r}")
            low, high = document["guidance"]
            return cls(
                tuple(Entry.from_document(one) for one in document["entries"]),
                float(document["tau_max"]),
                float(document["tau_min"]),
                document["kind"],
                str(document["model"]),
                str(document["fingerprint"]),
                (float(low), float(high)),
                str(document["schedule"]),
            )
        except (*MALFORMED, InputError) as error:
            raise CorruptFileError(f"not a tuned solver ({type(error).__name__}: {error})") from error

    def save(self, path: str | Path) -> None:
        """Write everything to one JSON file, atomically.

        Args:
            path: The file, whose name ends in .json.

        Raises:
            InputError: The name does not end so.
            StorageError: The file cannot be written.
        """
        if Path(path).suffix != ".json":
            raise InputError(f"{path}: a tuned solver is saved as .json")
        files.write_text(path, strict_json.dumps(self.document(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file.

        Raises:
            CorruptFileError: The file is damaged or foreign.
            StorageError: The file cannot be read.
        """
        try:
            document = strict_json.loads(files.read_text(path, _LARGEST))
        except CorruptFileError:
            raise
        except OSError as error:
            raise StorageError(f"{path}: could not be read ({error})") from error
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(f"{path}: not a tuned solver ({error})") from error
        try:
            return cls.from_document(document)
        except CorruptFileError as error:
            raise CorruptFileError(f"{path}: {error}") from error

    def register(self, name: str) -> None:
        """Make it available under a name, as any other solver.

        Args:
            name: A name that is not taken.

        Raises:
            InputError: The name is taken.
        """
        registry.register(name, lambda: self)


def _make(document: Mapping[str, Any] | None = None) -> Tuned:
    if document is None:
        raise InputError("solver 'tuned': give the path of its file, such as solver='fast.json', or its document")
    return Tuned.from_document(document)


registry.register(Tuned.name, _make, listed=False)
