"""DDIM with an implicit inversion, which solves for the state that a DDIM step maps to the given one; and FireFlow.

The exact inverse of the DDIM step from (x1, t1) down to (x0, t0) is the solution x1 of

    x1 = A x0 + B eps_hat(x1, t1),        A = alpha1 / alpha0,  B = sigma1 - A sigma0,

computed by iteration from x1 = x0, which converges if |B| times the Lipschitz constant of eps_hat is below 1.

- `aidi`: the plain iteration, or Anderson's with a memory of one (Pan et al. 2023, 2309.04907).
- `renoise`: the plain iteration, with the eps_hat of the last few rounds averaged for the final step (Garibi et al.
  2024, 2403.14602; without its noise regularisation, which needs gradients).

`fireflow` is the explicit midpoint rule in flow coordinates with the slope of its predictor taken from the step before,
which gives second order for one evaluation per step (Deng et al. 2024, 2412.07517).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._internal.tensors import broadcast, combine, dot, norm
from ..coordinates import FLOW
from ..errors import ConvergenceError, InputError
from ..schedules import Schedule
from .base import Properties, Queries, Query, Solver, Step, ddim_factors, ddim_step
from .registry import register
from .reversible import Moving

__all__ = [
    "AIDI",
    "FireFlow",
    "ReNoise",
]

# functions of torch that it leaves untyped


class ImplicitDDIM(Solver[Tensor]):
    """DDIM in sampling; in inversion, rounds of the fixed-point iteration above."""

    rounds: int
    """The number of iterations after the first guess."""
    source: ClassVar[str] = ""
    """The paper."""

    @property
    def properties(self) -> Properties:
        cost = self.rounds + 1
        return Properties(1, 1, "approximate", inverse_evaluations=cost, real_interval=2.0, source=self.source)

    def step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        return (yield from ddim_step(state, step))

    @abstractmethod
    def inverse_step(self, state: Tensor, step: Step) -> Queries[Tensor]: ...


@dataclass(frozen=True)
class AIDI(ImplicitDDIM):
    """AIDI: DDIM with a fixed-point inversion, by the plain or by Anderson's iteration (Pan et al. 2023).

    Args:
        rounds: The number of iterations after the first guess; each costs one evaluation.
        accelerate: Whether to use Anderson's iteration with a memory of one.

    Raises:
        InputError: There are no rounds.
    """

    rounds: int = 5
    accelerate: bool = True
    name: ClassVar[str] = "aidi"
    source = "Pan et al. 2023 (2309.04907)"

    def __post_init__(self):
        _check_rounds(self.name, self.rounds)

    def inverse_step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        a, b = ddim_factors(step.start, step.end)
        x = combine(a, state, [b], [(yield Query(state, step.t1)).eps])
        past: tuple[Tensor, Tensor] | None = None
        first: Tensor | None = None
        for _ in range(self.rounds):
            image = combine(a, state, [b], [(yield Query(x, step.t1)).eps])
            residual = image - x
            onward = image
            if past is not None and self.accelerate:
                onward = _anderson(image, residual, *past)
            first = residual if first is None else first
            past = (image, residual)
            x = onward
        if first is not None and past is not None:
            _check_convergence(self.name, step, first, past[1], state)
        return x


def _check_convergence(name: str, step: Step, first: Tensor, last: Tensor, state: Tensor) -> None:
    """Raise `ConvergenceError` if the last round moved a sample more than the first, beyond rounding."""
    before, after, size = norm(first), norm(last), norm(state)
    diverges = ~(after <= before + 10 * torch.finfo(state.dtype).eps * size)  # NaN diverges
    if bool(diverges.any()):  # the only read from the device per step
        before, after = before[diverges].max().item(), after[diverges].max().item()
        raise ConvergenceError(
            f"{name}: at t = {step.t1:.6g} the fixed point diverges: the first round moved the state by {before:.1e}, "
            f"the last by {after:.1e}; use more steps or another solver"
        )


def _anderson(image: Tensor, residual: Tensor, image_before: Tensor, residual_before: Tensor) -> Tensor:
    """Return the combination of the last two images with the smallest residual, with one weight per sample."""
    change = residual - residual_before
    size = dot(change, change).clamp_min(torch.finfo(change.dtype).tiny)
    weight = (dot(residual, change) / size).clamp(-2.0, 2.0)
    return image - broadcast(weight, image) * (image - image_before)


@dataclass(frozen=True)
class ReNoise(ImplicitDDIM):
    """ReNoise: a fixed-point inversion of DDIM that averages its last predictions (Garibi et al. 2024).

    Args:
        rounds: The number of iterations after the first guess; each costs one evaluation.
        average: The number of predictions to average for the step, the last ones.

    Raises:
        InputError: There are no rounds, or fewer predictions than to average.
    """

    rounds: int = 9
    average: int = 3
    name: ClassVar[str] = "renoise"
    source = "Garibi et al. 2024 (2403.14602)"

    def __post_init__(self):
        _check_rounds(self.name, self.rounds)
        if not 1 <= self.average <= self.rounds + 1:
            most = self.rounds + 1
            raise InputError(f"renoise: got average {self.average}, expected a number from 1 to rounds + 1 = {most}")

    def inverse_step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        a, b = ddim_factors(step.start, step.end)
        x, total = state, None
        for k in range(self.rounds + 1):
            eps = (yield Query(x, step.t1)).eps
            if k > self.rounds - self.average:
                total = eps if total is None else total + eps
            x = combine(a, state, [b], [eps])
        assert total is not None
        return combine(a, state, [b / self.average], [total])


def _check_rounds(name: str, rounds: object) -> None:
    if not isinstance(rounds, int) or rounds < 1:
        raise InputError(f"{name}: got rounds {rounds!r}, expected a whole number of at least 1")


@dataclass(frozen=True)
class FireFlow(Solver[Moving]):
    """FireFlow: the midpoint rule in flow coordinates, with its predictor's slope taken from the step before.

    One evaluation per step and one more in the first; order 2 if steps are equal. Inversion makes the same steps
    upwards, with a history of its own.
    """

    name: ClassVar[str] = "fireflow"
    coordinates = "flow"

    @property
    def properties(self) -> Properties:
        return Properties(2, 1, "approximate", startup_evaluations=1, states=2, source="Deng et al. 2024 (2412.07517)")

    def start(self, x: Tensor, schedule: Schedule, t: float) -> Moving:
        return Moving(x, None, None)

    def output(self, state: Moving) -> Tensor:
        return state.x

    def for_decoding(self, state: Moving) -> Moving:
        return Moving(state.x, None, None)

    def step(self, state: Moving, step: Step) -> Queries[Moving]:
        x, _, slope = state
        if slope is None:
            slope = (yield Query(x, step.t0)).flow
        schedule = step.schedule
        start = FLOW.time(step.start)
        h = FLOW.time(step.end) - start
        t = FLOW.when(schedule, start + h / 2)
        before, here, after = (FLOW.scale(level) for level in (step.start, schedule.at(t), step.end))
        middle = combine(here / before, x, [here * h / 2], [slope])
        slope = (yield Query(middle, t)).flow
        return Moving(combine(after / before, x, [after * h], [slope]), None, slope)


for _solver in (FireFlow, AIDI, ReNoise):
    register(_solver.name, _solver)
