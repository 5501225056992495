"""A deterministic method with some stochastic steps late in the run (2605.06831, section 6).

Noise in a few steps after the trajectory has reached the segment between two modes moves it off the midpoint, at the
cost of the deterministic method, which makes the steps before and after.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..errors import InputError
from ..schedules import Schedule
from . import registry
from .ancestral import DDIM, DDPM
from .base import Properties, Queries, Solver, Step
from .state import solver_state

__all__ = [
    "Hybrid",
]


@solver_state
class Staged(NamedTuple):
    """The state of one of the two methods."""

    noisy: bool
    """Whether it is that of the stochastic method."""
    state: Any
    """The state, of that method's kind."""


@dataclass(frozen=True)
class Hybrid(Solver[Staged]):
    """A deterministic method with `noisy` steps of a stochastic one before the last `after` steps of a run.

    On a grid of fewer than noisy + after steps, all steps before the last `after` are stochastic.

    Args:
        deterministic: The method of the other steps.
        stochastic: The method of the noisy steps.
        noisy: The number of stochastic steps.
        after: The number of deterministic steps at the end.

    Raises:
        InputError: A method is of the wrong kind, or a number is out of range.
    """

    deterministic: Solver[Any] = field(default_factory=DDIM)
    stochastic: Solver[Any] = field(default_factory=DDPM)
    noisy: int = 5
    after: int = 0
    name: ClassVar[str] = "hybrid"

    def __post_init__(self):
        if self.deterministic.properties.stochastic or not self.stochastic.properties.stochastic:
            raise InputError(
                f"hybrid: expected a deterministic and a stochastic solver, got {self.deterministic.name!r} and "
                f"{self.stochastic.name!r}"
            )
        if self.deterministic.has_own_grid:
            raise InputError(
                f"hybrid: solver {self.deterministic.name!r} runs over its own grid alone, every call of it; name a "
                "plain one"
            )
        if self.noisy < 1 or self.after < 0:
            raise InputError(f"hybrid: expected noisy >= 1 and after >= 0, got {self.noisy} and {self.after}")

    @property
    def properties(self) -> Properties:
        quiet, noisy = self.deterministic.properties, self.stochastic.properties
        cost = quiet.evaluations if quiet.evaluations == noisy.evaluations else None
        return Properties(min(quiet.order, noisy.order), cost, "none", stochastic=True, source="arXiv 2605.06831")

    def spec(self) -> dict[str, Any]:
        parts = {"deterministic": self.deterministic.spec(), "stochastic": self.stochastic.spec()}
        return {"name": self.name, **parts, "noisy": self.noisy, "after": self.after}

    def start(self, x: Tensor, schedule: Schedule, t: float) -> Staged:
        return Staged(False, self.deterministic.start(x, schedule, t))

    def step(self, state: Staged, step: Step) -> Queries[Staged]:
        left = step.count - step.index
        noisy = self.after < left <= self.after + self.noisy
        method = self._method(noisy)
        inner = state.state
        if noisy != state.noisy:
            inner = method.start(self.output(state), step.schedule, step.t0)
        return Staged(noisy, (yield from method.step(inner, step)))

    def output(self, state: Staged) -> Tensor:
        return self._method(state.noisy).output(state.state)

    def within(self, state: Staged) -> tuple[Solver[Any], Any]:
        return self._method(state.noisy), state.state

    def _method(self, noisy: bool) -> Solver[Any]:
        return self.stochastic if noisy else self.deterministic


def _make(
    deterministic: str | Solver[Any] | dict[str, Any] = "ddim",
    stochastic: str | Solver[Any] | dict[str, Any] = "ddpm",
    noisy: int = 5,
    after: int = 0,
) -> Hybrid:
    """Create a hybrid from methods given by name, as solvers, or by their specs."""
    quiet, loud = (
        registry.from_spec(part) if isinstance(part, dict) else registry.get(part)
        for part in (deterministic, stochastic)
    )
    return Hybrid(quiet, loud, noisy, after)


registry.register(Hybrid.name, _make)
