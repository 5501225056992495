"""What a tuned solver is made of: general explicit schemes, plain solvers in their place, and what was measured.

See `tuned` for what a scheme of N calls is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import grids
from ..coordinates import FLOW
from ..errors import InputError
from ..grids import Grid
from ..schedules import Schedule
from . import registry
from .base import Solver, steps_for

__all__ = [
    "Entry",
    "Plain",
    "Scheme",
    "Verdict",
]


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

    def __post_init__(self):
        if self.solver.has_own_grid or self.solver.properties.stochastic:
            raise InputError(f"plain: got solver {self.solver.name!r}, expected a deterministic one without own grid")

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
    to where it began. A gain is a plain solver's error over the tuned one's, with a 95 % bootstrap interval.
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
    """The plain solver that is best in the median and the mean together, and its grid."""
    plain_median: float
    """Its median error."""
    plain_mean: float
    """Its mean error."""
    plain_p95: float
    """The 95th percentile of its errors."""
    gain_median: tuple[float, float, float]
    """The gain in the median over the smallest of any plain solver: value, low, high."""
    gain_mean: tuple[float, float, float]
    """The gain in the mean over the smallest of any plain solver, which may be another one's: value, low, high."""
    compared: int
    """How many pairs of a registered solver and a grid were compared."""
    fit_rows: int
    """Starts that were fitted."""
    judged_rows: int
    """Starts on which it was judged."""
    reference: float
    """How far the fine solve moved from half of its calls, the median; where that is not small against the errors, a
    fit cannot win."""
    calls: int
    """Model evaluations that the fit took, of one start each."""
    beside: tuple[float, float] | None = None
    """Of round trips: the median distance of the latents from fine ones, or of edits from fine edits, for the tuned
    solver and for the plain one."""

    def __str__(self) -> str:
        if not self.won and self.reference > self.median and self.beside is None:
            return (
                f"the fit did not win: the fine solves moved by {self.reference:.2e} from half of their calls, too "
                f"much to judge errors of {self.median:.2e}; give more `fine`. {self.plain} is used"
            )
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

    def __post_init__(self):
        if self.calls < 1:
            raise InputError(f"entry: got {self.calls} calls, expected at least 1")
        for name, scheme, rising in (("down", self.down, False), ("up", self.up, True)):
            if isinstance(scheme, Scheme) and (scheme.calls > self.calls or scheme.rising != rising):
                way = "rises" if scheme.rising else "falls"
                raise InputError(f"entry: {name} has {scheme.calls} calls and {way}, at {self.calls} calls")

    def document(self) -> dict[str, Any]:
        """Return everything as JSON-able values; `from_document` is the inverse."""
        measured = None
        if self.verdict is not None:
            facts = dataclasses.asdict(self.verdict)
            gains = {"gain_median": list(self.verdict.gain_median), "gain_mean": list(self.verdict.gain_mean)}
            measured = {**facts, **gains}
        ways = {"down": _method_document(self.down), "up": _method_document(self.up)}
        return {"calls": self.calls, **ways, "verdict": measured}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Entry:
        """Rebuild what `document` described.

        Args:
            document: The values.

        Raises:
            InputError: Its numbers do not make an entry.
        """
        up = None if document["up"] is None else _method(document["up"])
        if isinstance(up, Plain):
            raise InputError("entry: the way up is a scheme, or that of the plain solver")
        given = document["verdict"]
        verdict = None if given is None else _verdict(given)
        return cls(int(document["calls"]), _method(document["down"]), up, verdict)


def _method_document(part: Scheme | Plain | None) -> dict[str, Any] | None:
    if isinstance(part, Plain):
        return {"solver": part.solver.spec(), "grid": part.grid}
    if part is None:
        return None
    rows = [list(row) for row in part.rows]
    return {"times": list(part.times), "end": part.end, "rows": rows, "weights": list(part.weights)}


def _method(part: Mapping[str, Any]) -> Scheme | Plain:
    if "solver" in part:
        spec = dict(part["solver"])
        if spec.get("name") not in registry.built_in():
            raise InputError(f"entry: {spec.get('name')!r} is no plain solver")
        return Plain(registry.from_spec(spec), str(part["grid"]))
    rows = tuple(_numbers(row) for row in part["rows"])
    return Scheme(_numbers(part["times"]), float(part["end"]), rows, _numbers(part["weights"]))


def _verdict(given: Mapping[str, Any]) -> Verdict:
    values: dict[str, Any] = {}
    for item in dataclasses.fields(Verdict):
        value = given[item.name]
        kind = str(item.type)
        if item.name == "beside" and value is None:
            pass
        elif kind.startswith("tuple"):
            value, expected = _numbers(value), 2 if item.name == "beside" else 3
            if len(value) != expected:
                raise InputError(f"verdict: {item.name} has {len(value)} numbers, expected {expected}")
        else:
            value = {"bool": bool, "str": str, "float": float, "int": int}[kind](value)
        values[item.name] = value
    if len(values) < len(given):
        raise InputError(f"verdict: got {sorted(given)}, expected {sorted(values)}")
    return Verdict(**values)


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
