"""Time grids: the points between which a solver steps.

A `Grid` is an immutable, strictly monotone sequence of path times. Falling times denoise (sampling),
rising times add noise (inversion); `reversed()` returns the same times in the opposite order.

With s running from 0 to 1 in equal steps, the named grids are

    uniform     t linear in s
    log-snr     log_snr(t) linear in s
    quadratic   sqrt(t) linear in s
    karras      (sigma/alpha)^(1/rho) linear in s, rho = 7     (Karras et al. 2022, eq. 5)

The ends of a named grid are exactly the schedule's `t_max` and `t_min`, unless others are given.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .errors import InputError, UnknownNameError
from .schedules import Schedule


@dataclass(frozen=True)
class Grid:
    """Path times in the order of a run, strictly falling or strictly rising.

    Args:
        times: At least two path times; with `clean`, at least one.
        clean: Whether a run ends with one more model evaluation, at the last time, and returns the clean estimate
            x0_hat instead of the state there, which still has noise in it. Only valid for falling times.
        firm: Whether `steadyflow.sample` ends as the grid does, instead of clean; so it is for the grids of schedulers
            and pipelines.

    Raises:
        InputError: There are too few times, one is not finite, they are not strictly monotone, or a rising grid has
            `clean`.
    """

    times: tuple[float, ...]
    clean: bool = False
    firm: bool = field(default=False, compare=False)

    def __post_init__(self):
        times = tuple(float(t) for t in self.times)
        object.__setattr__(self, "times", times)
        if len(times) < (1 if self.clean else 2):
            raise InputError(f"grid: got {len(times)} time(s), expected at least 2 (one step)")
        if len(times) == 1:
            return
        if not all(math.isfinite(t) for t in times):
            raise InputError(f"grid: expected finite times, got {next(t for t in times if not math.isfinite(t))}")
        sign = 1.0 if times[1] > times[0] else -1.0
        for k, (a, b) in enumerate(itertools.pairwise(times)):
            if not sign * (b - a) > 0:
                raise InputError(
                    f"grid: times must strictly fall (sampling) or strictly rise (inversion), "
                    f"but entry {k} is {a} and entry {k + 1} is {b}"
                )
        if self.clean and sign > 0.0:
            raise InputError("grid: clean is only valid for falling times (sampling)")

    @classmethod
    def from_timesteps(cls, timesteps: Iterable[float], final: float | None = None) -> "Grid":
        """Create a grid from path times.

        Args:
            timesteps: The times, in the order of a run.
            final: A time to append, for lists that leave out the last one.

        Raises:
            InputError: The times do not form a grid.
        """
        times = [float(t) for t in timesteps]
        return cls(tuple(times if final is None else [*times, float(final)]))

    @classmethod
    def from_sigmas(cls, sigmas: Iterable[float], schedule: Schedule, final: float | None = None) -> "Grid":
        """Create a grid from noise-to-signal ratios sigma/alpha (the `sigmas` of k-diffusion).

        A ratio that differs from an end of the path only by single-precision rounding counts as that end. The sigmas
        of a flow model are sigma(t) instead: use `from_timesteps` with `schedule.t_from_sigma` for them.

        Args:
            sigmas: The ratios, in the order of a run. A last 0 (the clean end) is valid if the schedule reaches it.
            schedule: The path.
            final: A time to append, for lists that leave out the last one.

        Raises:
            InputError: The times do not form a grid.
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
        """The number of steps: one between each two times, plus the clean estimate if the grid ends with it."""
        return len(self.times) - 1 + self.clean

    @property
    def rising(self) -> bool:
        """Whether noise grows along the grid (inversion)."""
        return self.times[-1] > self.times[0]

    def reversed(self) -> "Grid":
        """Return the same times in the opposite order, without the clean estimate, which no step can retrace."""
        return Grid(self.times[::-1])

    def sigmas(self, schedule: Schedule) -> tuple[float, ...]:
        """Return the noise-to-signal ratios sigma/alpha at the grid's times, and a last 0 for the clean estimate.

        These are the `sigmas` of k-diffusion; `from_sigmas` is the inverse.
        """
        ratios = tuple(schedule.at(t).ratio for t in self.times)
        return (*ratios, 0.0) if self.clean else ratios

    def log_snr(self, schedule: Schedule) -> tuple[float, ...]:
        """Return the log-SNR at the grid's times."""
        return tuple(schedule.at(t).log_snr for t in self.times)

    def check_domain(self, schedule: Schedule) -> "Grid":
        """Check that the schedule is defined at all times of the grid, and return the grid.

        Raises:
            InputError: A time lies outside the schedule's domain.
        """
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
    """Return times from t_max to t_min, both exact, that are equally spaced after the map `to` with inverse `back`."""
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
                f"grid 'log-snr': the log-SNR is infinite at t = {t}; give a t_min and a t_max at which it is finite"
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
    """Return the names that `make` accepts."""
    return sorted(_MAKERS)


def make(
    grid: str | Grid,
    schedule: Schedule,
    steps: int,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
    rho: float | None = None,
    clean: bool = False,
) -> Grid:
    """Create a falling grid.

    Args:
        grid: The name of a spacing. A `Grid` keeps its own times, in falling order; `steps` and its own
            `clean` do not count.
        schedule: The path.
        steps: The total number of steps.
        t_max: The first time of a named grid; the schedule's by default.
        t_min: The last time of a named grid; the schedule's by default.
        rho: The exponent of "karras", 7 by default; only valid with it.
        clean: Whether to end with the clean estimate (see `Grid`), if the path still has noise at the last time. It
            takes the place of one of the `steps` of a named grid, and is added to a `Grid`.

    Raises:
        UnknownNameError: There is no such spacing.
        InputError: There is no step, the range is empty or leaves the path, or the spacing cannot cover the range.
    """
    if isinstance(grid, Grid):
        if not (t_max is None and t_min is None and rho is None):
            raise InputError(
                "grid: t_max, t_min and rho are only valid with the name of a grid; a Grid has its own times"
            )
        falling = (grid.reversed() if grid.rising else grid).check_domain(schedule)
        noisy = schedule.at(falling.times[-1]).sigma > 0.0
        return Grid(falling.times, clean=clean and noisy)
    if grid not in _MAKERS:
        raise UnknownNameError("grid", grid, _MAKERS)
    _check_steps(steps)
    if rho is not None and not rho > 0:
        raise InputError(f"rho: got {rho}, expected a positive number")
    if rho is not None and grid != "karras":
        raise InputError(f"rho: only valid with the grid 'karras', got {grid!r}")
    default_min, default_max = schedule.t_range
    top, bottom = default_max if t_max is None else t_max, default_min if t_min is None else t_min
    if not bottom < top:
        raise InputError(f"grid: expected t_min < t_max, got {bottom} and {top}")
    low, high = schedule.domain
    if bottom < low or top > high:
        raise InputError(f"grid: got [{bottom}, {top}], but {type(schedule).__name__} is defined on [{low}, {high}]")
    clean = clean and schedule.at(bottom).sigma > 0.0
    if clean and steps == 1:
        return Grid((top,), clean=True)
    options = {} if rho is None else {"rho": rho}
    times = _MAKERS[grid](schedule, steps - clean, top, bottom, **options)
    return Grid(times, clean).check_domain(schedule)


def _check_steps(steps: object) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps: got {steps!r}, expected a whole number of at least 1")


def partway(
    grid: str | Grid,
    schedule: Schedule,
    steps: int,
    strength: float | None,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
    clean: bool = False,
) -> Grid:
    """Create a falling grid over part of the range, from `start_time(schedule, strength)` down to t_min.

    Args:
        grid: The name of a spacing, or a `Grid` (see `make`).
        schedule: The path.
        steps: The total number of steps.
        strength: The share of the range from t_min to t_max that the grid covers; all of it for None.
        t_max: The noisy end of the range; the schedule's by default.
        t_min: The clean end of the range; the schedule's by default.
        clean: Whether to end with the clean estimate (see `make`).

    Raises:
        UnknownNameError: There is no such spacing.
        InputError: The strength is not in (0, 1], it is given with a `Grid`, or `make` refuses the rest.
    """
    if strength is None:
        return make(grid, schedule, steps, t_max=t_max, t_min=t_min, clean=clean)
    if isinstance(grid, Grid):
        raise InputError("strength: only valid with the name of a grid; a Grid already fixes its range")
    top = start_time(schedule, strength, t_max=t_max, t_min=t_min)
    return make(grid, schedule, steps, t_max=top, t_min=t_min, clean=clean)


def start_time(
    schedule: Schedule, strength: float | None, *, t_max: float | None = None, t_min: float | None = None
) -> float:
    """Return the time t_min + strength (t_max - t_min).

    Args:
        schedule: The path.
        strength: A share in (0, 1]; None stands for 1.
        t_max: The noisy end of the range; the schedule's by default.
        t_min: The clean end of the range; the schedule's by default.

    Raises:
        InputError: The strength is not in (0, 1].
    """
    low, high = schedule.t_range
    low, high = low if t_min is None else t_min, high if t_max is None else t_max
    if strength is None or strength == 1.0:
        return high
    if not 0.0 < strength <= 1.0:
        raise InputError(f"strength: got {strength}, expected a number in (0, 1]")
    return low + strength * (high - low)
