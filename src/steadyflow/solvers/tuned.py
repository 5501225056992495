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

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast

from torch import Tensor

from .. import grids
from .._internal import files
from .._internal.tensors import combine
from ..coordinates import FLOW
from ..errors import MALFORMED, CorruptFileError, InputError, StorageError
from ..grids import Grid
from ..prediction import Scaled
from ..schedules import Schedule
from . import registry
from .base import Properties, Queries, Query, Solver, Step, steps_for
from .state import solver_state

__all__ = [
    "Entry",
    "Plain",
    "Scheme",
    "Tuned",
    "Verdict",
]

FORMAT = "steadyflow-tuned-1"
"""The first entry of a file."""
_LARGEST = 64 * 2**20
"""Larger files are not read."""
_CLOSE = 1e-5
"""How far in tau the times of a run may be from a scheme's: the rounding of times that others store."""

Kind = Literal["sample", "round trip"]


@dataclass(frozen=True)
class Scheme:
    """A general explicit scheme (see the module).

    Args:
        times: The times tau of the calls, strictly falling or strictly rising.
        end: The time tau at which the run ends, beyond the last call.
        rows: The combinations X_k: row k has the factors of the start and of the first k slopes; row 0 is (1,).
        weights: The factors of the start and of all slopes in the end.

    Raises:
        InputError: The numbers do not make a scheme.
    """

    times: tuple[float, ...]
    end: float
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        n = len(self.times)
        if n < 1 or len(self.rows) != n or any(len(row) != k + 1 for k, row in enumerate(self.rows)):
            raise InputError(f"scheme: expected rows of 1, 2, ..., {n} factors for {n} calls")
        if self.rows[0] != (1.0,) or len(self.weights) != n + 1:
            raise InputError(f"scheme: expected (1,) as the first row, and {n + 1} weights for {n} calls")
        if not all(map(math.isfinite, (*self.times, self.end, *itertools.chain(*self.rows), *self.weights))):
            raise InputError("scheme: expected finite numbers")
        whole = (*self.times, self.end)
        sign = 1.0 if whole[-1] > whole[0] else -1.0
        if (
            not all(sign * (b - a) > 0 for a, b in itertools.pairwise(whole))
            or not 0.0 <= min(whole) <= max(whole) <= 1
        ):
            raise InputError("scheme: expected times that strictly fall or strictly rise, within [0, 1]")

    @property
    def calls(self) -> int:
        """The number of model evaluations."""
        return len(self.times)

    @property
    def rising(self) -> bool:
        """Whether it adds noise (inversion)."""
        return self.end > self.times[0]

    def grid(self, schedule: Schedule) -> Grid:
        """Return the times of the calls on a path, with the end, or with the clean estimate in its place.

        Args:
            schedule: The path.

        Raises:
            InputError: A time lies beyond the path.
        """
        times = [time_on(schedule, tau) for tau in self.times]
        if self.end == 0.0:
            low = schedule.domain[0]
            if schedule.at(low).sigma == 0.0 and times[-1] > low:
                return Grid((*times, low))
            return Grid(tuple(times), clean=True)
        return Grid((*times, time_on(schedule, self.end)))


def time_on(schedule: Schedule, tau: float) -> float:
    """Return the path time at which the flow time is tau; an end of the path where they differ by rounding only.

    Args:
        schedule: The path.
        tau: The flow time.

    Raises:
        InputError: The path does not reach it.
    """
    ends = [*schedule.t_range, *schedule.domain]
    for t in ends:
        if math.isfinite(t) and abs(FLOW.time(schedule.at(t)) - tau) <= 1e-9:
            return t
    low, high = (FLOW.time(schedule.at(t)) if math.isfinite(t) else 1.0 for t in schedule.domain)
    if not low <= tau <= high:
        raise InputError(
            f"solver 'tuned': a call at sigma / (alpha + sigma) = {tau:.6g}, but the path has [{low:.6g}, {high:.6g}]; "
            "tune it for this path"
        )
    return FLOW.when(schedule, tau)


@dataclass(frozen=True)
class Plain:
    """A registered solver with a grid, where no scheme was better.

    Args:
        solver: The method.
        grid: The name of its grid.
    """

    solver: Solver[Any]
    grid: str

    def on(self, schedule: Schedule, calls: int, t_max: float, t_min: float, *, clean: bool) -> Grid:
        """Return the falling grid for a number of calls.

        Args:
            schedule: The path.
            calls: The number of model evaluations.
            t_max: The noisy end.
            t_min: The clean end.
            clean: Whether to end with the clean estimate.
        """
        reads = clean and schedule.at(t_min).sigma > 0.0
        steps = steps_for(self.solver, calls, clean=reads)
        return grids.make(self.grid, schedule, steps, t_max=t_max, t_min=t_min, clean=clean)


@dataclass(frozen=True)
class Verdict:
    """What was measured on starts that were not fitted, at one number of calls.

    The error of a sample is the root mean square of its distance to a fine solve from the same start; of a round trip,
    to where it began. A gain is the best plain solver's error over the tuned one's, with a 95 % bootstrap interval.
    """

    won: bool
    """Whether the tuned solver is better in the median and in the mean, by more than the intervals."""
    fitted: str
    """How it was fitted."""
    median: float
    """The median error of the tuned solver."""
    mean: float
    """Its mean error."""
    p95: float
    """The 95th percentile of its errors."""
    plain: str
    """The plain solver with the smallest median, and its grid."""
    plain_median: float
    """Its median error."""
    plain_mean: float
    """The smallest mean error of a plain solver, which may be another one's."""
    plain_p95: float
    """The smallest 95th percentile of a plain solver."""
    gain_median: tuple[float, float, float]
    """The gain in the median: value, low, high."""
    gain_mean: tuple[float, float, float]
    """The gain in the mean: value, low, high."""
    compared: int
    """How many pairs of a registered solver and a grid were compared."""
    fit_rows: int
    """Starts that were fitted."""
    judged_rows: int
    """Starts on which it was judged."""
    reference: float
    """The median error of the fine solve, from one with half of its calls."""
    calls: int
    """Model evaluations that the fit took, of one start each."""
    beside: tuple[float, float] | None = None
    """Of round trips: the median distance of the latents from fine ones, or of edits from fine edits, for the tuned
    solver and for the plain one."""

    def __str__(self) -> str:
        if not self.won:
            return (
                f"the fit did not win ({self._gains()}, median and mean): {self.plain} is used, with a median error of "
                f"{self.plain_median:.2e} on {self.judged_rows} starts"
            )
        return (
            f"error {self.median:.2e} (mean {self.mean:.2e}, 95 % below {self.p95:.2e}) on {self.judged_rows} starts "
            f"that were not fitted; best of {self.compared} plain ones {self.plain} {self.plain_median:.2e} "
            f"({self.plain_mean:.2e}, {self.plain_p95:.2e}); {self._gains()}{self._beside()}; "
            f"{self.fitted}, {self.calls:,} calls"
        )

    def _beside(self) -> str:
        if self.beside is None:
            return ""
        return f"; latents or edits {self.beside[0]:.2e} from fine ones, {self.beside[1]:.2e} with the plain one"

    def _gains(self) -> str:
        parts = (f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in (self.gain_median, self.gain_mean))
        return "gain " + " and ".join(parts)


@dataclass(frozen=True)
class Entry:
    """What a tuned solver does at one number of calls each way.

    Args:
        calls: The number of model evaluations each way.
        down: The scheme from noise to data, or the plain solver that was better.
        up: The scheme from data to noise, where round trips were fitted.
        verdict: What was measured.
    """

    calls: int
    down: Scheme | Plain
    up: Scheme | None = None
    verdict: Verdict | None = None


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


class _Place(NamedTuple):
    entry: Entry
    scheme: Scheme | Plain
    call: int
    last: bool


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

    def __post_init__(self):
        calls = [entry.calls for entry in self.entries]
        if not calls or len(set(calls)) < len(calls):
            raise InputError(f"solver 'tuned': expected entries of different numbers of calls, got {calls}")
        if self.kind not in ("sample", "round trip"):
            raise InputError(f"solver 'tuned': got kind {self.kind!r}, expected 'sample' or 'round trip'")

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.entries, self.tau_max, self.tau_min, self.kind))

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
        raise InputError(f"nfe: got {calls}, but this tuned solver was fitted for {budgets} evaluations")

    def own_grid(self, schedule: Schedule, calls: int | None = None, *, rising: bool = False) -> Grid:
        return _grid(self, schedule, self.at(calls).calls, rising)

    def way_back(self, schedule: Schedule, grid: Grid) -> Grid:
        for entry in self.entries:
            if _close(schedule, _grid(self, schedule, entry.calls, grid.rising), grid):
                return _grid(self, schedule, entry.calls, not grid.rising)
        raise InputError(self._foreign())

    def sigmas(self, calls: int | None = None) -> tuple[float, ...]:
        """Return the noise levels sigma / alpha of its calls and a last 0, for programs that take only a grid.

        Args:
            calls: The number of calls; may be left out if there is only one.

        Raises:
            InputError: It was not fitted for this number, or a plain solver is used for it.
        """
        taus = self._taus(calls)
        return (*(tau / (1.0 - tau) if tau < 1.0 else math.inf for tau in taus), 0.0)

    def timesteps(self, schedule: Schedule, calls: int | None = None) -> tuple[float, ...]:
        """Return the times that the network of a path is given.

        Args:
            schedule: The path.
            calls: The number of calls; may be left out if there is only one.

        Raises:
            InputError: It was not fitted for this number, or a plain solver is used for it.
        """
        return tuple(schedule.model_time(time_on(schedule, tau)) for tau in self._taus(calls))

    def _taus(self, calls: int | None) -> tuple[float, ...]:
        entry = self.at(calls)
        if isinstance(entry.down, Plain):
            raise InputError(
                f"solver 'tuned': at {entry.calls} calls {entry.down.solver.name!r} on the grid {entry.down.grid!r} "
                "was better than the fit; take its grid"
            )
        return entry.down.times

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

    def for_decoding(self, state: Asked) -> Asked:
        inner = state.inner
        if inner is not None:
            inner = inner[0], self._plain(inner[0]).for_decoding(inner[1])
        return Asked(state.x, state.x, state.scale, (), inner)

    def _plain(self, calls: int) -> Solver[Any]:
        return cast(Plain, self.at(calls).down).solver

    def advance(self, state: Asked, step: Step) -> Queries[Asked]:
        return self.step(state, step)

    def step(self, state: Asked, step: Step) -> Queries[Asked]:
        place = _place(self, step.schedule, step.t0, step.t1, step.index, step.count, step.reads_clean)
        if place is None:
            raise InputError(self._foreign())
        scheme = place.scheme
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

    def _foreign(self) -> str:
        return (
            "solver 'tuned': it was fitted together with its own grid; leave the grid, the ends and the strength out, "
            "or pass what own_grid(schedule, calls), sigmas(calls) or timesteps(schedule, calls) return"
        )

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "document": self.document()}

    def document(self) -> dict[str, Any]:
        """Return everything as JSON-able values; `from_document` is the inverse."""

        def method(part: Scheme | Plain | None) -> dict[str, Any] | None:
            if isinstance(part, Plain):
                return {"solver": part.solver.spec(), "grid": part.grid}
            return None if part is None else dataclasses.asdict(part)

        entries = [
            {
                "calls": entry.calls,
                "down": method(entry.down),
                "up": method(entry.up),
                "verdict": None if entry.verdict is None else dataclasses.asdict(entry.verdict),
            }
            for entry in self.entries
        ]
        facts = {
            "format": FORMAT,
            "kind": self.kind,
            "tau_max": self.tau_max,
            "tau_min": self.tau_min,
            "model": self.model,
        }
        facts |= {"fingerprint": self.fingerprint, "guidance": list(self.guidance), "schedule": self.schedule}
        return {**facts, "entries": entries}

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
                tuple(_entry(one) for one in document["entries"]),
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
        files.write_text(path, json.dumps(self.document(), indent=1, allow_nan=False) + "\n")

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
            if Path(path).stat().st_size > _LARGEST:
                raise CorruptFileError(f"{path}: too large for a tuned solver")
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise StorageError(f"{path}: could not be read ({error})") from error
        except ValueError as error:
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


@lru_cache(maxsize=256)
def _grid(solver: Tuned, schedule: Schedule, calls: int, rising: bool) -> Grid:
    entry = solver.at(calls)
    if rising:
        if solver.kind == "sample":
            raise InputError(
                "solver 'tuned': it was fitted for sampling alone; fit one for round trips with "
                "sf.tune(model, x=..., task='round trip')"
            )
        if isinstance(entry.up, Scheme):
            return entry.up.grid(schedule)
    if isinstance(entry.down, Scheme):
        return entry.down.grid(schedule)
    ends = (time_on(schedule, tau) for tau in (solver.tau_max, solver.tau_min))
    grid = entry.down.on(schedule, entry.calls, *ends, clean=solver.kind == "sample")
    return grid.reversed() if rising else grid


def _close(schedule: Schedule, own: Grid, grid: Grid) -> bool:
    """Whether two grids are the same but for the rounding of times that others store."""
    if len(own) != len(grid) or own.rising != grid.rising:
        return False
    pairs = zip(own.times, grid.times, strict=True)
    return all(_same(schedule, a, b) for a, b in pairs)


def _same(schedule: Schedule, a: float, b: float) -> bool:
    return a == b or abs(FLOW.time(schedule.at(a)) - FLOW.time(schedule.at(b))) <= _CLOSE


@lru_cache(maxsize=4096)
def _place(
    solver: Tuned, schedule: Schedule, t0: float, t1: float, index: int, count: int, reads: bool
) -> _Place | None:
    """Find the entry to which a step belongs, and which of its calls the step is; None if it belongs to none."""
    rising = t1 > t0
    for entry in solver.entries:
        if rising and solver.kind == "sample":
            continue
        grid = _grid(solver, schedule, entry.calls, rising)
        n = len(grid) - 1
        call = index if reads or not rising else count - 1 - index
        if count != n or not 0 <= call <= n or (call == n and not grid.clean):
            continue
        ends = [(grid.times[call], t0)] if reads else [(grid.times[call], t0), (grid.times[call + 1], t1)]
        if all(_same(schedule, a, b) for a, b in ends):
            scheme = entry.up if rising and entry.up is not None else entry.down
            last = isinstance(scheme, Scheme) and call == scheme.calls - 1
            return _Place(entry, scheme, call, last)
    return None


def _entry(one: Mapping[str, Any]) -> Entry:
    def method(part: Mapping[str, Any]) -> Scheme | Plain:
        if "solver" in part:
            return Plain(registry.from_spec(dict(part["solver"])), str(part["grid"]))
        rows = tuple(_numbers(row) for row in part["rows"])
        return Scheme(_numbers(part["times"]), float(part["end"]), rows, _numbers(part["weights"]))

    up = None if one["up"] is None else method(one["up"])
    if isinstance(up, Plain):
        raise InputError("entry: the way up is a scheme, or that of the plain solver")
    given = one["verdict"]
    verdict = None
    if given is not None:
        verdict = Verdict(**{key: _frozen(value) for key, value in given.items()})
    return Entry(int(one["calls"]), method(one["down"]), up, verdict)


def _frozen(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _make(document: Mapping[str, Any]) -> Tuned:
    return Tuned.from_document(document)


registry.register(Tuned.name, _make, listed=False)
