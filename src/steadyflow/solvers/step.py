"""What a solver is given and what is known of it: a step of a run, a request to evaluate the model, and properties."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..errors import InputError
from ..noise import NoiseSource
from ..schedules import Level, Schedule


class Query(NamedTuple):
    """A request to evaluate the model at a state and a time."""

    x: Tensor
    """The state in model space, shape (B, ...)."""
    t: float
    """The path time."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run over a grid.

    In sampling t0 > t1. In inversion t0 < t1, and the step has the index of the sampling step from t1 to t0, which it
    inverts.
    """

    schedule: Schedule
    """The path."""
    start: Level
    """The numbers of the path at the beginning of the step."""
    end: Level
    """The numbers of the path at its end."""
    index: int
    """0 for the step at the noisy end, count - 1 for the one at the clean end, in both directions."""
    count: int
    """The number of the method's steps over the whole grid, without the final clean estimate."""
    noise: NoiseSource | None = None
    """The noise of the run, for stochastic solvers."""
    defined_at_zero_noise: bool = False
    """Whether the model can be evaluated at sigma = 0; if not, a step that would need that is a DDIM step."""
    reads_clean: bool = False
    """Whether this is not a step of the method but the final evaluation of a run, which returns the clean estimate."""

    @classmethod
    def between(cls, schedule: Schedule, t0: float, t1: float, index: int = 0, count: int = 1, **others: Any) -> Step:
        """Create a step between two times of a path.

        Args:
            schedule: The path.
            t0: The path time at the beginning.
            t1: The path time at the end.
            index: The position of the step in the run.
            count: The number of steps in the run.
            **others: The remaining fields.
        """
        return cls(schedule, schedule.at(t0), schedule.at(t1), index, count, **others)

    @property
    def t0(self) -> float:
        """The path time at the beginning of the step."""
        return self.start.t

    @property
    def t1(self) -> float:
        """The path time at the end of the step."""
        return self.end.t

    @property
    def rising(self) -> bool:
        """Whether this step adds noise (inversion)."""
        return self.end.t > self.start.t

    def reversed(self) -> Step:
        """Return the same step in the other direction."""
        return replace(self, start=self.end, end=self.start)

    @property
    def source(self) -> NoiseSource:
        """The noise of the run.

        Raises:
            InputError: The run has none.
        """
        if self.noise is None:
            raise InputError("noise: a stochastic solver needs a noise source (see steadyflow.noise.Brownian)")
        return self.noise


@dataclass(frozen=True)
class Properties:
    """What is known about a solver before it runs; a test over the registry checks each entry."""

    order: int
    """The order of accuracy as an ODE method; for a stochastic solver, that of the mean."""
    evaluations: int | None
    """Model evaluations per step; None if a step iterates until it converges."""
    inverse: Literal["exact", "approximate", "none"]
    """"exact" (to rounding), "approximate" (the same step backwards), or "none"."""
    antisymmetric_order: int | None = None
    """p such that a step followed by its inverse is the identity up to O(h^(p+1)); None if it is exact or unknown."""
    stochastic: bool = False
    """Whether steps draw noise."""
    strong_order: int | None = None
    """The strong (pathwise) order of a stochastic solver, over grids on one Brownian path; None if it has none."""
    inverse_evaluations: int | None = None
    """Model evaluations per step of an inversion; None if they equal `evaluations`."""
    startup_evaluations: int = 0
    """Additional model evaluations in the first step."""
    states: int = 1
    """The number of tensors carried between steps."""
    real_interval: float | None = None
    """The largest r such that it is stable on [-r, 0] for y' = z y, on a grid of equal steps; None if unknown."""
    imaginary_interval: float | None = None
    """The largest r such that it is stable on i [-r, r]; None if unknown."""
    source: str = ""
    """The paper, with its arXiv number."""
