"""Time grids: the points between which a solver steps.

A `Grid` is an immutable strictly monotone sequence of path times. Falling times denoise (sampling),
rising times add noise (inversion); `reversed()` retraces a grid exactly.

With s running from 0 to 1 in equal steps, the named grids are

    uniform     t linear in s
    log-snr     log_snr(t) linear in s
    quadratic   sqrt(t) linear in s
    karras      (sigma/alpha)^(1/rho) linear in s, rho = 7     (Karras et al. 2022, eq. 5)

The ends of a named grid are the schedule's own `t_max` and `t_min`, to the bit.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .errors import InputError, UnknownNameError
from .schedules import Schedule


@dataclass(frozen=True)
class Grid:
    """Path times in the order of travel, at least two, strictly falling or strictly rising."""

    times: tuple[float, ...]

    def __post_init__(self):
        times = tuple(float(t) for t in self.times)
        object.__setattr__(self, "times", times)
        if len(times) < 2:
            raise InputError(f"grid: got {len(times)} time(s), expected at least 2 (one step)")
        if not all(math.isfinite(t) for t in times):
            raise InputError(f"grid: expected finite times, got {next(t for t in times if not math.isfinite(t))}")
        sign = 1.0 if times[1] > times[0] else -1.0
        for k, (a, b) in enumerate(itertools.pairwise(times)):
            if not sign * (b - a) > 0:
                raise InputError(
                    f"grid: times must strictly fall (sampling) or strictly rise (inversion), "
                    f"but entry {k} is {a} and entry {k + 1} is {b}"
                )

    @classmethod
    def from_timesteps(cls, timesteps: Iterable[float], final: float | None = None) -> "Grid":
        """The grid through the given path times, with `final` appended where the list leaves it out."""
        times = [float(t) for t in timesteps]
        return cls(tuple(times if final is None else [*times, float(final)]))

    @classmethod
    def from_sigmas(cls, sigmas: Iterable[float], schedule: Schedule, final: float | None = None) -> "Grid":
        """The grid whose noise-to-signal ratios sigma/alpha are the given numbers (k-diffusion's `sigmas`).

        A last 0 (the clean end) is accepted where the schedule reaches it. A level that misses an end of the path
        by single-precision rounding counts as that end. For the sigmas of a flow model, which are its own
        sigma(t), use `from_timesteps` with `schedule.t_from_sigma`.
        """
        ends = [(schedule.ratio(t), t) for t in schedule.domain]

        def time(level: float) -> float:
            for ratio, t in ends:
                if math.isclose(level, ratio, rel_tol=1e-6):
                    return t
            return schedule.t_from_ratio(level)

        return cls.from_timesteps((time(float(s)) for s in sigmas), final)

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[float]:
        return iter(self.times)

    @property
    def steps(self) -> int:
        """The number of solver steps, one fewer than the times."""
        return len(self.times) - 1

    @property
    def rising(self) -> bool:
        """Whether noise grows along the grid (inversion)."""
        return self.times[1] > self.times[0]

    def reversed(self) -> "Grid":
        """The same times in the opposite order."""
        return Grid(self.times[::-1])

    def check_domain(self, schedule: Schedule) -> "Grid":
        """This grid, if all its times lie where the schedule is defined; else `InputError`."""
        low, high = schedule.domain
        first, last = min(self.times), max(self.times)
        if first < low or last > high:
            raise InputError(
                f"grid: times run over [{first}, {last}], but {type(schedule).__name__} is defined on [{low}, {high}]"
            )
        return self


def _interpolated(
    to: Callable[[float], float], back: Callable[[float], float], t_max: float, t_min: float, steps: int
) -> tuple[float, ...]:
    """Times from t_max to t_min, equally spaced after the map `to`, with both ends kept to the bit."""
    a, b = to(t_max), to(t_min)
    inner = (back(a + (b - a) * k / steps) for k in range(1, steps))
    return (t_max, *inner, t_min)


def _uniform(schedule: Schedule, steps: int, t_max: float, t_min: float) -> tuple[float, ...]:
    return _interpolated(lambda t: t, lambda s: s, t_max, t_min, steps)


def _quadratic(schedule: Schedule, steps: int, t_max: float, t_min: float) -> tuple[float, ...]:
    return _interpolated(math.sqrt, lambda s: s * s, t_max, t_min, steps)


def _log_snr(schedule: Schedule, steps: int, t_max: float, t_min: float) -> tuple[float, ...]:
    for t in (t_max, t_min):
        if not math.isfinite(schedule.log_snr(t)):
            raise InputError(
                f"grid 'log-snr': the log-SNR is infinite at t = {t}; give t_min and t_max inside the path"
            )
    return _interpolated(schedule.log_snr, schedule.t_from_log_snr, t_max, t_min, steps)


def _karras(schedule: Schedule, steps: int, t_max: float, t_min: float, rho: float = 7.0) -> tuple[float, ...]:
    if not math.isfinite(schedule.ratio(t_max)):
        raise InputError(f"grid 'karras': sigma/alpha is infinite at t = {t_max}; give a smaller t_max")
    return _interpolated(
        lambda t: schedule.ratio(t) ** (1.0 / rho),
        lambda s: schedule.t_from_ratio(s**rho),
        t_max,
        t_min,
        steps,
    )


_MAKERS = {"uniform": _uniform, "quadratic": _quadratic, "log-snr": _log_snr, "karras": _karras}


def names() -> list[str]:
    """The names that `make` accepts."""
    return sorted(_MAKERS)


def make(
    grid: str | Grid,
    schedule: Schedule,
    steps: int,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
    rho: float | None = None,
) -> Grid:
    """A falling grid of `steps` steps over [t_min, t_max] (the schedule's own range by default).

    A `Grid` is passed through, turned so that it falls; its own times count, not `steps`. `rho` is for
    "karras" alone.

    Raises `UnknownNameError` for a grid name, `InputError` for steps < 1, an empty or outlying range, or a
    range that the named spacing cannot cover.
    """
    if isinstance(grid, Grid):
        if not (t_max is None and t_min is None and rho is None):
            raise InputError("grid: t_max, t_min and rho go with a grid's name; a Grid has its own times")
        return (grid.reversed() if grid.rising else grid).check_domain(schedule)
    if grid not in _MAKERS:
        raise UnknownNameError("grid", grid, _MAKERS)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps: got {steps!r}, expected a whole number of at least 1")
    if rho is not None and not rho > 0:
        raise InputError(f"rho: got {rho}, expected a positive number")
    if rho is not None and grid != "karras":
        raise InputError(f"rho: only the grid 'karras' takes it, not {grid!r}")
    default_min, default_max = schedule.t_range
    top, bottom = default_max if t_max is None else t_max, default_min if t_min is None else t_min
    if not bottom < top:
        raise InputError(f"grid: expected t_min < t_max, got {bottom} and {top}")
    low, high = schedule.domain
    if bottom < low or top > high:
        raise InputError(f"grid: got [{bottom}, {top}], but {type(schedule).__name__} is defined on [{low}, {high}]")
    options = {} if rho is None else {"rho": rho}
    return Grid(_MAKERS[grid](schedule, steps, top, bottom, **options)).check_domain(schedule)


def partway(
    grid: str | Grid,
    schedule: Schedule,
    steps: int,
    strength: float | None,
    default: float = 1.0,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
) -> Grid:
    """A falling grid that begins the share `strength` of the way from t_min to t_max; for named grids.

    Raises `InputError` for a strength that is not in (0, 1], and for one given with a `Grid`, which has its own times.
    """
    if isinstance(grid, Grid):
        if strength is not None:
            raise InputError("strength: goes with a named grid; a Grid says itself how far up it goes")
        return make(grid, schedule, steps, t_max=t_max, t_min=t_min)
    share = default if strength is None else strength
    if not 0.0 < share <= 1.0:
        raise InputError(f"strength: got {strength}, expected a number in (0, 1]")
    if share != 1.0:
        low, high = schedule.t_range
        low, high = low if t_min is None else t_min, high if t_max is None else t_max
        t_max = low + share * (high - low)
    return make(grid, schedule, steps, t_max=t_max, t_min=t_min)
