"""SA-Solver: a stochastic Adams predictor and corrector in lambda = ln(alpha / sigma), in terms of x0_hat.

The share tau of the noise is constant on an interval of noise levels and zero outside. With c = 1 + tau^2,
h = lambda1 - lambda0 and P(lambda) the polynomial through past predictions, a step is

    x1 = (sigma1/sigma0) e^(-tau^2 h) x + alpha1 c int e^(-c (lambda1 - lambda)) P dlambda
         + sigma1 sqrt(1 - e^(-2 tau^2 h)) z,

with the integral over the step. The predictor takes the newest predictions; the corrector repeats the step with the
same z once the prediction at its end is known, which the next step evaluates anyway. The linear part of a polynomial
through two predictions gets c h^2 / 2 instead of its integral, as in the authors' code; the difference is O(h^3).

With tau = 0 and a corrector of one order more than the predictor it is UniPC with B(h) = h (`unipc`, kind "bh1").
Source: Xue, Yi, Luo, Zhang, Sun, Li & Ma 2023 (2309.05019).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from ..coordinates import DATA
from ..errors import InputError
from ..schedules import Level, Schedule
from .ancestral import unit_noise
from .base import Properties, Queries, Query, Step
from .multistep import Predicted, PredictorCorrector
from .registry import register
from .weights import LinearStep, gauss, half_log_snr, lagrange_weights, regular

__all__ = [
    "SASolver",
]


@dataclass(frozen=True)
class SASolver(PredictorCorrector):
    """SA-Solver: one evaluation per step, stochastic between two noise levels.

    The default interval has the noise levels of timesteps 800 and 200 of Stable Diffusion's table, the authors' choice.
    They recommend the orders 2 and 2 for strong guidance, and 3 and 4 for weak guidance.

    Args:
        predictor: The order of the predictor, 1 to 4.
        corrector: The order of the corrector, 1 to 4, or 0 for none.
        tau: The share of the noise, at least 0; 1 is that of the reverse SDE, and 0 gives a method of the ODE.
        sigma_min: The lowest level sigma/alpha from which a step adds noise.
        sigma_max: The highest such level.

    Raises:
        InputError: An option is out of range.
    """

    predictor: int = 2
    corrector: int = 2
    tau: float = 1.0
    sigma_min: float = 0.57
    sigma_max: float = 5.12
    name: ClassVar[str] = "sa-solver"
    coordinates = "data"

    def __post_init__(self):
        if self.predictor not in (1, 2, 3, 4):
            raise InputError(f"{self.name}: got predictor {self.predictor!r}, expected 1, 2, 3 or 4")
        if self.corrector not in (0, 1, 2, 3, 4):
            raise InputError(f"{self.name}: got corrector {self.corrector!r}, expected 0, 1, 2, 3 or 4")
        if not (0.0 <= self.tau < math.inf and 0.0 <= self.sigma_min <= self.sigma_max):
            raise InputError(
                f"{self.name}: expected tau >= 0 and 0 <= sigma_min <= sigma_max, got "
                f"{self.tau}, {self.sigma_min} and {self.sigma_max}"
            )

    @property
    def properties(self) -> Properties:
        noisy = self.tau > 0.0
        # a first step without a corrector leaves an error of second order, one with a corrector of third
        order = min(self.predictor + 1, self.corrector, 3) if self.corrector else min(self.predictor, 2)
        whole = self.sigma_min == 0.0 and self.sigma_max == math.inf  # else a grid decides where the noise begins
        return Properties(
            order,
            1,
            "none" if noisy else "approximate",
            stochastic=noisy,
            strong_order=1 if noisy and whole else None,
            states=1 + self.kept,
            source="Xue et al. 2023 (2309.05019)",
        )

    @property
    def kept(self) -> int:
        """The number of predictions that are carried from step to step."""
        return max(self.predictor, self.corrector - 1)

    def share(self, level: Level) -> float:
        """Return tau for a step that begins at a level."""
        return self.tau if self.sigma_min <= level.ratio <= self.sigma_max else 0.0

    def step(self, state: Predicted, step: Step) -> Queries[Predicted]:
        prediction = yield Query(state.x, step.t0)
        known = [prediction.scaled(*DATA.prediction), *state.slopes]
        if step.start.sigma == 0.0:  # the start of an inversion, without history
            x = prediction.mix(step.end.alpha, step.end.sigma)
        else:
            numbers = _corrected_step(self, step.schedule, state.times, state.predicted, step.t0, step.t1)
            x = numbers.apply(state.x, known)
            if numbers.noise_std > 0.0:
                x = torch.add(x, unit_noise(step), alpha=numbers.noise_std)
        return Predicted(x, True, (step.t0, *state.times)[: self.kept], tuple(known[: self.kept]))

    def coefficients(self, past: Sequence[Level], end: Level, known: int, history: Sequence[Level]) -> LinearStep:
        """Return the numbers of a step from past[0] to `end`, which first corrects the last step, then predicts.

        Args:
            past: The levels of the predictions, the newest first.
            end: The level at the end of the step.
            known: The number of predictions.
            history: The levels of the predictions before the newest, if the sample was predicted; else none.
        """
        start, correction = past[0], [0.0] * known
        if self.corrector and history:
            # corrected minus predicted sample: the state from which both start and their noise cancel
            share, origin = self.share(history[0]), history[0]
            for k, weight in enumerate(_weights([start, *history][: self.corrector], origin, start, share)):
                correction[k] += weight
            for k, weight in enumerate(_weights(history[: self.predictor], origin, start, share), 1):
                correction[k] -= weight
        if regular(start) and regular(end):
            share, h = self.share(start), half_log_snr(end) - half_log_snr(start)
            ahead = end.sigma / start.sigma * math.exp(-(share**2) * h)
            onward = _weights([level for level in past if regular(level)][: self.predictor], start, end, share)
            noise = end.sigma * math.sqrt(-math.expm1(-2.0 * share**2 * h))
        else:
            ahead = end.sigma / start.sigma
            onward, noise = [end.alpha - ahead * start.alpha], 0.0
        weights = [ahead * factor for factor in correction]
        for k, factor in enumerate(onward):
            weights[k] += factor
        return LinearStep(ahead, tuple(weights), noise)


@lru_cache(maxsize=4096)
def _corrected_step(
    solver: SASolver, schedule: Schedule, times: tuple[float, ...], predicted: bool, t0: float, t1: float
) -> LinearStep:
    """Return the numbers of a step from t0 to t1, with predictions at `times` before it, the newest first."""
    past = [schedule.at(t) for t in (t0, *times)]
    history = [level for level in past[1:] if regular(level)] if predicted else []
    return solver.coefficients(past, schedule.at(t1), len(past), history)


def _weights(knots: Sequence[Level], start: Level, end: Level, share: float) -> list[float]:
    """Return the weights, in the sample at `end`, of predictions at the knots.

    Args:
        knots: The levels of one to four predictions.
        start: The level at the start of the step.
        end: The level at its end.
        share: tau in this step.
    """
    clock, here, there = [half_log_snr(level) for level in knots], half_log_snr(start), half_log_snr(end)
    rate, h = 1.0 + share**2, there - here
    if len(clock) == 2:
        total, bend = -math.expm1(-rate * h), 0.5 * rate * h * h
        first = (bend + (here - clock[1]) * total) / (clock[0] - clock[1])
        found = [first, total - first]
    else:
        nodes, measure = gauss()
        inner = here + h * nodes
        found = lagrange_weights(clock, inner, rate * h * measure * np.exp(rate * (inner - there)))
    return [end.alpha * weight for weight in found]


register(SASolver.name, SASolver)
