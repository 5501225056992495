"""The changes of variable that remove the linear part of the probability-flow ODE exactly.

| variable | state u             | time tau              | du/dtau          | singular where |
|----------|---------------------|-----------------------|------------------|----------------|
| noise    | x / alpha           | sigma/alpha           | eps_hat          | alpha = 0      |
| data     | x / sigma           | alpha/sigma           | x0_hat           | sigma = 0      |
| flow     | x / (alpha + sigma) | sigma/(alpha + sigma) | eps_hat - x0_hat | nowhere        |

The last makes every path a rectified flow, u = (1 - tau) x0 + tau eps.

A Runge-Kutta method stepping in one of them is a diffusion solver; Euler in any of them is DDIM.
Sources: Song et al. 2021 (DDIM, app. B), Karras et al. 2022, Lu et al. 2022 (DPM-Solver++).
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor

from .errors import UnknownNameError
from .prediction import Prediction
from .schedules import Schedule

VariableName = Literal["noise", "data", "flow"]


class Variable(ABC):
    """A change of variable u = x / scale(t), with time tau(t)."""

    name: str

    @abstractmethod
    def scale(self, schedule: Schedule, t: float) -> float:
        """The factor between model space and this variable: x = scale * u."""

    @abstractmethod
    def time(self, schedule: Schedule, t: float) -> float:
        """tau at path time t; infinite where the variable is singular."""

    @abstractmethod
    def when(self, schedule: Schedule, tau: float) -> float:
        """The path time at which the variable's time is tau."""

    reading: tuple[float, float]
    """The factors of x0_hat and eps_hat in du/dtau."""

    def slope(self, prediction: Prediction) -> Tensor:
        """du/dtau, shape (B, ...)."""
        return prediction.mix(*self.reading)


class Noise(Variable):
    """u = x / alpha, tau = sigma / alpha, du/dtau = eps_hat."""

    name = "noise"
    reading = (0.0, 1.0)

    def scale(self, schedule, t):
        return schedule.alpha(t)

    def time(self, schedule, t):
        return schedule.ratio(t)

    def when(self, schedule, tau):
        return schedule.t_from_ratio(tau)


class Data(Variable):
    """u = x / sigma, tau = alpha / sigma, du/dtau = x0_hat."""

    name = "data"
    reading = (1.0, 0.0)

    def scale(self, schedule, t):
        return schedule.sigma(t)

    def time(self, schedule, t):
        ratio = schedule.ratio(t)
        return 1.0 / ratio if ratio > 0.0 else math.inf

    def when(self, schedule, tau):
        return schedule.t_from_ratio(1.0 / tau if tau > 0.0 else math.inf)


class Flow(Variable):
    """u = x / (alpha + sigma), tau = sigma / (alpha + sigma), du/dtau = eps_hat - x0_hat."""

    name = "flow"
    reading = (-1.0, 1.0)

    def scale(self, schedule, t):
        return schedule.alpha(t) + schedule.sigma(t)

    def time(self, schedule, t):
        ratio = schedule.ratio(t)
        return ratio / (1.0 + ratio) if ratio < math.inf else 1.0

    def when(self, schedule, tau):
        return schedule.t_from_ratio(tau / (1.0 - tau) if tau < 1.0 else math.inf)


NOISE, DATA, FLOW = Noise(), Data(), Flow()
_BY_NAME: dict[str, Variable] = {variable.name: variable for variable in (NOISE, DATA, FLOW)}


def check_name(name: str) -> None:
    """Raise `UnknownNameError` unless `name` is "noise", "data" or "flow"."""
    if name not in _BY_NAME:
        raise UnknownNameError("variable", name, _BY_NAME)


def by_name(name: str) -> Variable:
    """The variable of a name. Raises `UnknownNameError` for another."""
    check_name(name)
    return _BY_NAME[name]


def choose(name: VariableName, schedule: Schedule, t0: float, t1: float) -> Variable | None:
    """The variable for the interval between t0 and t1, or None where it is singular at an end."""
    variable = _BY_NAME[name]
    if variable is FLOW:
        return variable
    regular = math.isfinite(variable.time(schedule, t0)) and math.isfinite(variable.time(schedule, t1))
    return variable if regular else None
