"""`Grid`: the points between which a solver steps."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from ..errors import InputError
from ..schedules import Schedule


@dataclass(frozen=True)
class Grid:
    """Path times in the order of a run, strictly falling or strictly rising.

    Args:
        times: At least two path times; with `clean`, at least one. A tensor of them, shape (times,), gets a gradient
            where a run is made with an `adjoint` that keeps or recovers states.
        clean: Whether a run ends with one more model evaluation, at the last time, and returns the clean estimate
            x0_hat instead of the state there, which still has noise in it. Only valid for falling times.
        firm: Whether `steadyflow.sample` ends as the grid does, instead of clean; so it is for the grids of schedulers
            and pipelines.

    Attributes:
        tensor: The times as they were given, if they were a tensor that requires a gradient.

    Raises:
        InputError: There are too few times, one is not finite, they are not strictly monotone, or a rising grid has
            `clean`.
    """

    times: tuple[float, ...]
    clean: bool = False
    firm: bool = field(default=False, compare=False)
    tensor: Tensor | None = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self):
        given = cast("Tensor | tuple[float, ...]", self.times)
        if isinstance(given, Tensor):
            if given.ndim != 1:
                raise InputError(f"grid: got times of shape {tuple(given.shape)}, expected (times,)")
            if given.requires_grad:
                object.__setattr__(self, "tensor", given)
            given = cast("tuple[float, ...]", tuple(cast(Any, given.detach()).tolist()))
        times = tuple(float(t) for t in given)
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
        return Grid(self.times[::-1] if self.tensor is None else cast(Any, self.tensor.flip(0)))

    def ending(self, clean: bool) -> "Grid":
        """Return the same times with the clean estimate at the end, or without."""
        return Grid(self.times if self.tensor is None else cast(Any, self.tensor), clean=clean)

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
