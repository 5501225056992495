"""STORK: stabilised Runge-Kutta methods whose stages use a Taylor expansion of the velocity instead of the model.

One evaluation per step gives the velocity v(tau) in flow coordinates, du/dtau = v. The velocities of the last steps
give its derivatives, and the many stages of a stabilised method take the expansion v(tau + s) at their own times:

| name    | stages                                                      | exact for velocities of degree |
|---------|-------------------------------------------------------------|--------------------------------|
| stork-2 | Runge-Kutta-Gegenbauer of order 2 (Skaras et al. 2021)      | 1                              |
| stork-4 | ROCK4 (Abdulle 2002)                                        | 3                              |

The expansion depends on time alone and not on the states of the stages. A step is therefore a quadrature rule for
the polynomial through the past velocities, and the whole method is a linear multistep method:

- `stork-2` has the weights of the Gegenbauer stages. They integrate s^2 over a step to about 1/4 instead of 1/3, which
  leaves it of order 2 whatever the number of velocities.
- `stork-4` is the method of Adams and Bashforth in flow coordinates for any coefficients of ROCK4, as a fourth-order
  rule is exact for the cubic expansion. It needs none of ROCK4's tables.

The stability of the stages is lost with it: the real interval is that of the multistep method (0.57 and 0.55 for three
velocities), not that of the Gegenbauer method (882 with 50 stages).

The authors' code (STORKScheduler) differs in four ways. It has the stage times of another method, Runge-Kutta-Legendre,
with which the rule is of order 1 (it integrates s to 0.4896 with 50 stages); here they are the stages' own. Its first
derivative assumes equal steps; here it is exact on any grid. It begins with two half steps; here the first step is an
Euler step. For networks that predict noise it has a form of its own in the path's time; here there is one form for all
paths, in flow coordinates. Source: Tan, Wang, Bertozzi & Ryu 2025 (2505.24210).
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from ..coordinates import FLOW
from ..errors import InputError
from ..schedules import Level
from .base import Properties
from .multistep import Multistep
from .registry import register
from .weights import LinearStep, gauss, lagrange_weights

__all__ = [
    "STORK2",
    "STORK4",
]


class Taylor(Multistep):
    """The base of both: the past velocities, and a quadrature rule on [0, 1] for their polynomial."""

    coordinates = "flow"
    source = "Tan et al. 2025 (2505.24210)"

    @property
    def properties(self) -> Properties:
        knots = [-float(k) for k in range(self.order)]
        weights = lagrange_weights(knots, *self.rule())
        interval = 2.0 / sum(w * (-1) ** k for k, w in enumerate(weights))  # the root -1 of the characteristic equation
        order = min(self.order, 2)  # the first step has no history
        return Properties(order, 1, "approximate", states=1 + self.order, real_interval=interval, source=self.source)

    @abstractmethod
    def rule(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the nodes and weights of the quadrature."""

    def covers(self, level: Level) -> bool:
        return True  # flow coordinates are regular at pure noise and at clean data

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        knots = [FLOW.time(level) for level in past]
        h = FLOW.time(end) - knots[0]
        nodes, weights = self.rule()
        return self.transfer(past[0], end, lagrange_weights(knots, knots[0] + h * nodes, h * weights))


@dataclass(frozen=True)
class STORK2(Taylor):
    """STORK-2: Runge-Kutta-Gegenbauer stages; of order 2, one evaluation per step.

    Args:
        order: The number of velocities in the expansion, 1 to 4; 3 gives the second derivative, the authors' default.
        stages: The number of stages, from 2.

    Raises:
        InputError: An option is out of range.
    """

    stages: int = 50
    name: ClassVar[str] = "stork-2"

    def __post_init__(self):
        super().__post_init__()
        if self.stages not in range(2, 1001):
            raise InputError(f"{self.name}: got stages {self.stages!r}, expected a whole number from 2 to 1000")

    def rule(self) -> tuple[np.ndarray, np.ndarray]:
        return gegenbauer_rule(self.stages)


@dataclass(frozen=True)
class STORK4(Taylor):
    """STORK-4: ROCK4 stages, which make it Adams-Bashforth in flow coordinates; one evaluation per step.

    Args:
        order: The number of velocities in the expansion, 1 to 4; 3 gives the second derivative, the authors' default.
            With an exact history it is the order of the method; the first step of a run lowers it to 2.

    Raises:
        InputError: The order is out of range.
    """

    name: ClassVar[str] = "stork-4"

    def rule(self) -> tuple[np.ndarray, np.ndarray]:
        return gauss()


@lru_cache(maxsize=64)
def gegenbauer_rule(stages: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes and weights on [0, 1] of the second-order Runge-Kutta-Gegenbauer method for du/dt = f(t).

    With b_0 = 1, b_1 = 1/3, b_j = 4 (j - 1)(j + 4) / (3 j (j + 1)(j + 2)(j + 3)) and w = 6 / ((s + 4)(s - 1)), the
    stages are Y_1 = u + w h f(0) and

        Y_j = mu Y_(j-1) + nu Y_(j-2) + (1 - mu - nu) u + mu w h f(c_(j-1)) + gamma h f(0),
        mu = (2j + 1) b_j / (j b_(j-1)),  nu = -(j + 1) b_j / (j b_(j-2)),  gamma = -mu w (1 - j (j + 1) b_(j-1) / 2).

    The node c_j is what a stage makes of f = 1. Source: Skaras, Saxton, Meyer & Aslam 2021.

    Args:
        stages: s, at least 2.
    """
    w = 6.0 / ((stages + 4) * (stages - 1))
    b = [1.0, 1.0 / 3.0]
    b += [4.0 * (j - 1) * (j + 4) / (3.0 * j * (j + 1) * (j + 2) * (j + 3)) for j in range(2, stages + 1)]
    before, last = np.zeros(stages), np.zeros(stages)
    last[0] = w
    nodes = [0.0, w]
    for j in range(2, stages + 1):
        mu, nu = (2 * j + 1) * b[j] / (j * b[j - 1]), -(j + 1) * b[j] / (j * b[j - 2])
        stage = mu * last + nu * before
        stage[j - 1] += mu * w
        stage[0] -= mu * w * (1.0 - j * (j + 1) * b[j - 1] / 2.0)
        before, last = last, stage
        nodes.append(float(stage.sum()))
    return np.array(nodes[:-1]), last


for _solver in (STORK2, STORK4):
    register(_solver.name, _solver)
