"""Coordinates in which the linear part of the probability-flow ODE is removed exactly.

| coordinates | state u             | time tau              | du/dtau          | singular where |
|-------------|---------------------|-----------------------|------------------|----------------|
| noise       | x / alpha           | sigma/alpha           | eps_hat          | alpha = 0      |
| data        | x / sigma           | alpha/sigma           | x0_hat           | sigma = 0      |
| flow        | x / (alpha + sigma) | sigma/(alpha + sigma) | eps_hat - x0_hat | nowhere        |

In flow coordinates every path is a rectified flow, u = (1 - tau) x0 + tau eps.

A Runge-Kutta method that steps in one of them is a diffusion solver; Euler's method in any of them is DDIM.
Sources: Song et al. 2021 (DDIM, app. B), Karras et al. 2022, Lu et al. 2022 (DPM-Solver++).
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor

from .errors import UnknownNameError
from .prediction import Prediction
from .schedules import Level, Schedule

CoordinatesName = Literal["noise", "data", "flow"]


class Coordinates(ABC):
    """A change of variables u = x / scale(t), with its own time tau(t), in which du/dtau is a prediction."""

    name: CoordinatesName
    prediction: tuple[float, float]
    """The factors of x0_hat and eps_hat in du/dtau."""

    @abstractmethod
    def scale(self, level: Level) -> float:
        """Return the factor between model space and these coordinates at a level of the path: x = scale * u."""

    @abstractmethod
    def time(self, level: Level) -> float:
        """Return tau at a level of the path; infinite where the coordinates are singular."""

    @abstractmethod
    def when(self, schedule: Schedule, tau: float) -> float:
        """Return the path time at which the time of these coordinates is tau, the inverse of `time`."""

    def slope(self, prediction: Prediction) -> Tensor:
        """Return du/dtau, shape (B, ...), from the prediction at a state.

        Raises:
            SingularTimeError: The prediction does not determine it at this time.
        """
        return prediction.mix(*self.prediction)


class Noise(Coordinates):
    """u = x / alpha, tau = sigma / alpha, du/dtau = eps_hat."""

    name = "noise"
    prediction = (0.0, 1.0)

    def scale(self, level: Level) -> float:
        return level.alpha

    def time(self, level: Level) -> float:
        return level.ratio

    def when(self, schedule: Schedule, tau: float) -> float:
        return schedule.t_from_ratio(tau)


class Data(Coordinates):
    """u = x / sigma, tau = alpha / sigma, du/dtau = x0_hat."""

    name = "data"
    prediction = (1.0, 0.0)

    def scale(self, level: Level) -> float:
        return level.sigma

    def time(self, level: Level) -> float:
        return 1.0 / level.ratio if level.ratio > 0.0 else math.inf

    def when(self, schedule: Schedule, tau: float) -> float:
        return schedule.t_from_ratio(1.0 / tau if tau > 0.0 else math.inf)


class Flow(Coordinates):
    """u = x / (alpha + sigma), tau = sigma / (alpha + sigma), du/dtau = eps_hat - x0_hat."""

    name = "flow"
    prediction = (-1.0, 1.0)

    def scale(self, level: Level) -> float:
        return level.alpha + level.sigma

    def time(self, level: Level) -> float:
        return level.ratio / (1.0 + level.ratio) if level.ratio < math.inf else 1.0

    def when(self, schedule: Schedule, tau: float) -> float:
        return schedule.t_from_ratio(tau / (1.0 - tau) if tau < 1.0 else math.inf)


NOISE, DATA, FLOW = Noise(), Data(), Flow()
_BY_NAME: dict[str, Coordinates] = {coordinates.name: coordinates for coordinates in (NOISE, DATA, FLOW)}


def check_name(name: str) -> None:
    """Check that a name is "noise", "data" or "flow".

    Raises:
        UnknownNameError: It is none of them.
    """
    if name not in _BY_NAME:
        raise UnknownNameError("coordinates", name, _BY_NAME)


def by_name(name: str) -> Coordinates:
    """Return the coordinates with the name "noise", "data" or "flow".

    Raises:
        UnknownNameError: It is none of them.
    """
    check_name(name)
    return _BY_NAME[name]


def regular_between(name: CoordinatesName, start: Level, end: Level) -> Coordinates | None:
    """Return the coordinates with a name, or None if they are singular at one of two levels.

    Args:
        name: The name of the coordinates; flow coordinates are regular everywhere.
        start: One end of a step.
        end: The other end.
    """
    coordinates = _BY_NAME[name]
    if coordinates is FLOW:
        return coordinates
    regular = math.isfinite(coordinates.time(start)) and math.isfinite(coordinates.time(end))
    return coordinates if regular else None
