"""Grids by name. A registered spacing is listed and usable wherever a grid has a name."""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .._internal import named
from .._internal.given import number, whole
from ..errors import InputError, UnknownNameError
from ..schedules import Schedule
from .grid import Grid

Maker = Callable[..., Sequence[float]]
"""Called as `maker(schedule, steps, t_max, t_min, **options)`; returns steps + 1 falling times."""


class _Spacing(NamedTuple):
    maker: Maker
    options: tuple[str, ...]
    to_clean: bool


_SPACINGS: dict[str, _Spacing] = {}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def register(name: str, maker: Maker, *, to_clean: bool = False) -> None:
    """Make a spacing available under a name.

    Args:
        name: A name that is not taken, of letters, digits, dots and hyphens.
        maker: Called as `maker(schedule, steps, t_max, t_min, **options)`, returns steps + 1 falling times, usually
            from t_max to t_min. Its further parameters are the options of the grid, each with a default.
        to_clean: Whether the last of the N + 1 times stands for the clean estimate. Where a run ends with it, N steps
            then have the first N of those times; otherwise they have N times from t_max to t_min.

    Raises:
        InputError: The name is taken or malformed, or the maker takes too few arguments or an option without default.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"grid: got the name {name!r}, expected letters, digits, dots and hyphens")
    if name in _SPACINGS:
        raise InputError(f"grid: the name {name!r} is taken")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(maker).parameters.values())
    if len(parameters) < 4 or any(p.kind not in positional for p in parameters[:4]):
        raise InputError(f"grid {name!r}: expected a maker (schedule, steps, t_max, t_min, **options), got {maker!r}")
    options = parameters[4:]
    for option in options:
        if option.default is inspect.Parameter.empty:
            raise InputError(f"grid {name!r}: the option {option.name!r} has no default")
    _SPACINGS[name] = _Spacing(maker, tuple(option.name for option in options), to_clean)


def names() -> list[str]:
    """Return the names that `make` accepts."""
    return sorted(_SPACINGS)


def parse(text: str) -> tuple[str, dict[str, float]]:
    """Return the name of a spacing and its options, from "karras" or "beta:alpha=0.5,beta=0.7".

    Args:
        text: A name, and after a colon the options, separated by commas.

    Raises:
        UnknownNameError: There is no such spacing.
        InputError: The text is malformed, the spacing does not have an option, or a value is not a finite number.
    """
    name = named.name_of(text)
    if not isinstance(name, str) or name not in _SPACINGS:
        raise UnknownNameError("grid", name, _SPACINGS)
    written = named.options_of("grid", text, "karras:rho=5")
    options = {key: _number(text, key, value) for key, value in written.items()}
    _check_options(name, options)
    return name, options


def _number(text: str, key: str, value: str) -> float:
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    raise InputError(f"grid {text!r}: {key}: got {value!r}, expected a finite number")


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    known = _SPACINGS[name].options
    for option in options:
        if option not in known:
            raise InputError(f"grid {name!r}: no option {option!r}; it takes {', '.join(known) or 'none'}")


def make(
    grid: str | Grid,
    schedule: Schedule,
    steps: int,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
    clean: bool = False,
    **options: Any,
) -> Grid:
    """Create a falling grid.

    Args:
        grid: The name of a spacing, with or without options (see `parse`). A `Grid` keeps its own times, in falling
            order; `steps` and its own `clean` do not count.
        schedule: The path.
        steps: The total number of steps.
        t_max: The first time of a named grid; the schedule's by default.
        t_min: The last time of a named grid; the schedule's by default.
        clean: Whether to end with the clean estimate (see `Grid`), if the path still has noise at the last time. It
            takes the place of one of the `steps` of a named grid, and is added to a `Grid`.
        **options: The options of the spacing, such as `rho=5` of "karras"; None stands for the default.

    Raises:
        UnknownNameError: There is no such spacing.
        InputError: There is no step, the range is empty or leaves the path, the spacing cannot cover the range, or it
            does not have an option or does not accept its value.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if isinstance(grid, Grid):
        if not (t_max is None and t_min is None and not options):
            raise InputError(
                "grid: t_max, t_min and options such as rho are only valid with the name of a grid; "
                "a Grid has its own times"
            )
        falling = (grid.reversed() if grid.rising else grid).check_domain(schedule)
        noisy = schedule.at(falling.times[-1]).sigma > 0.0
        return falling.ending(clean and noisy)
    name, written = parse(grid)
    for option in options:
        if option in written:
            raise InputError(f"grid {grid!r}: {option} is given twice")
    _check_options(name, options)
    steps = whole("steps", steps, 1)
    default_min, default_max = schedule.t_range
    top = default_max if t_max is None else number("t_max", t_max)
    bottom = default_min if t_min is None else number("t_min", t_min)
    if not bottom < top:
        raise InputError(f"grid: expected t_min < t_max, got {bottom} and {top}")
    low, high = schedule.domain
    if bottom < low or top > high:
        raise InputError(f"grid: got [{bottom}, {top}], but {type(schedule).__name__} is defined on [{low}, {high}]")
    return _spaced(name, schedule, steps, top, bottom, clean, {**written, **options}).check_domain(schedule)


def _spaced(
    name: str, schedule: Schedule, steps: int, top: float, bottom: float, clean: bool, options: Mapping[str, Any]
) -> Grid:
    spacing = _SPACINGS[name]
    if not spacing.to_clean:
        clean = clean and schedule.at(bottom).sigma > 0.0
        if clean and steps == 1:
            spacing.maker(schedule, 1, top, bottom, **options)  # which may refuse the range or an option
            return Grid((top,), clean=True)
        return _falling(name, spacing.maker(schedule, steps - clean, top, bottom, **options), steps - clean, clean)
    times = spacing.maker(schedule, steps, top, bottom, **options)
    whole = _falling(name, times, steps, False)
    clean = clean and schedule.at(whole.times[-1]).sigma > 0.0
    return Grid(whole.times[:-1], clean=True) if clean else whole


def _falling(name: str, times: Sequence[float], steps: int, clean: bool) -> Grid:
    """The grid with these times.

    Raises:
        InputError: They are not strictly falling, or too few or too many.
    """
    if len(times) != steps + 1:
        raise InputError(f"grid {name!r}: got {len(times)} times for {steps} steps, expected {steps + 1}")
    for k in range(steps):
        if not times[k + 1] < times[k]:
            raise InputError(
                f"grid {name!r}: its times do not fall in {steps} steps: entry {k} is {times[k]} and entry {k + 1} is "
                f"{times[k + 1]}; take fewer steps or other options"
            )
    return Grid(tuple(times), clean)


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
    strength = 1.0 if strength is None else number("strength", strength, "a number in (0, 1]")
    if strength == 1.0:
        return high
    if not 0.0 < strength <= 1.0:
        raise InputError(f"strength: got {strength}, expected a number in (0, 1]")
    return low + strength * (high - low)
