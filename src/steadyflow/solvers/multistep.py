"""Multistep methods: each step reuses the predictions of the steps before it.

In a variable of time tau (see `variables`) a step is u1 = u0 + integral of f dtau. The last `order` slopes are
interpolated by a polynomial P in some clock s(tau), and P is integrated exactly (Gauss-Legendre, 16 nodes):

| name     | coordinates | slopes  | clock s             |                                                  |
|----------|-------------|---------|---------------------|--------------------------------------------------|
| lms      | noise       | eps_hat | sigma/alpha         | Adams-Bashforth; LMS of k-diffusion, rhoAB-DEIS  |
| deis     | noise       | eps_hat | ln(sigma/alpha)     | DEIS with exponential weights (log-rho)          |
| dpmpp-3m | data        | x0_hat  | ln(alpha/sigma)     | DPM-Solver++(3M), exponential Adams-Bashforth    |

`dpmpp-2m` keeps the published coefficient, which differs from the exact integral at second order only:

    x1 = (sigma1/sigma0) x + alpha1 (1 - e^-h) [ m0 + (h / 2 h_1) (m0 - m_1) ],     h = lambda1 - lambda0,

and `ipndm` takes the equal-step Adams-Bashforth weights whatever the grid (Liu et al. 2022).

The stochastic forms add the noise of the reverse SDE, or its share eta: with c = 1 + eta and J_k = c times the integral
of s^k e^(-c(h - s)) over [0, h],

    x1 = (sigma1/sigma0) e^(-eta h) x + alpha1 (m0 J_0 + m' J_1 + m'' J_2 / 2) + sigma1 sqrt(1 - e^(-2 eta h)) z.

Where a step ends in sigma = 0 or starts at alpha = 0 the order drops to one, which is DDIM there. The first steps
have lower order, as there is less history. Inversion runs the same method up the grid, with a history of its own.

Sources: Zhang & Chen 2022 (DEIS); Lu et al. 2022 (DPM-Solver++); Liu et al. 2022 (PNDM); Karras et al. 2022.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._internal.tensors import combine
from ..coordinates import DATA, Coordinates, by_name
from ..errors import InputError
from ..prediction import Scaled
from ..schedules import Level, Schedule
from .ancestral import unit_noise
from .base import Properties, Queries, Query, Solver, Step
from .registry import register
from .state import solver_state

ADAMS_INTERVALS = (2.0, 1.0, 6 / 11, 3 / 10)
"""The real stability intervals of the Adams-Bashforth methods of order 1 to 4 (Hairer & Wanner, sec. V.1)."""


solver_state(Scaled)


@solver_state
class History(NamedTuple):
    """The sample, and the slopes of the last steps with their path times, the newest first."""

    x: Tensor
    times: tuple[float, ...]
    slopes: tuple[Scaled, ...]


class LinearStep(NamedTuple):
    """The numbers of a step  x1 = x * state + sum of slopes * past slopes + noise_std * z."""

    x: float
    """The factor of the state."""
    slopes: tuple[float, ...]
    """The factors of the past slopes, the newest first."""
    noise_std: float = 0.0
    """The standard deviation of the noise."""


@dataclass(frozen=True)
class Multistep(Solver[History]):
    """What the multistep methods share: a history of at most `order` slopes, which is the method's own order.

    The first step of a run is of first order, so that a run converges with order two at most; the error of that
    one step is small, and the higher orders pay all the same.
    """

    order: int = 3

    def __post_init__(self):
        if self.order not in range(1, self.highest + 1):
            raise InputError(f"{self.name}: got order {self.order!r}, expected a whole number from 1 to {self.highest}")

    highest: ClassVar[int] = 4
    source: ClassVar[str] = ""
    coordinates = "noise"
    stochastic: ClassVar[bool] = False

    @property
    def properties(self) -> Properties:
        # the first step has no history and leaves a local error of second order, which caps the convergence
        order, inverse = min(self.order, 2), "none" if self.stochastic else "approximate"
        return Properties(
            order,
            1,
            inverse,
            stochastic=self.stochastic,
            strong_order=1 if self.stochastic else None,
            states=1 + self.order,
            real_interval=None if self.stochastic else ADAMS_INTERVALS[self.order - 1],
            source=self.source,
        )

    def start(self, x: Tensor, schedule: Schedule, t: float) -> History:
        return History(x, (), ())

    def output(self, state: History) -> Tensor:
        return state.x

    def step(self, state: History, step: Step) -> Queries[History]:
        prediction = yield Query(state.x, step.t0)
        times = (step.t0, *state.times)[: self.order]
        newest = prediction.scaled(*by_name(self.coordinates).prediction)
        slopes = (newest, *state.slopes)[: self.order]
        if not (math.isfinite(step.start.log_snr) and math.isfinite(step.end.log_snr)):
            x = prediction.mix(step.end.alpha, step.end.sigma)
        else:
            numbers = _linear_step(self, step.schedule, times, step.t1)
            x = _sum(numbers, state.x, slopes[: len(numbers.slopes)])
            if numbers.noise_std > 0.0:
                x = torch.add(x, unit_noise(step), alpha=numbers.noise_std)
        return History(x, times, slopes)

    def with_sample(self, state: History, x: Tensor, schedule: Schedule, t: float) -> History:
        return state._replace(x=x)

    def for_decoding(self, state: History) -> History:
        return History(state.x, (), ())

    @abstractmethod
    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        """The numbers of a step from past[0] to `end` with slopes at the levels `past`, the newest first.

        They are cached for a solver and these levels, which are all that they may depend on.
        """

    def transfer(self, start: Level, end: Level, weights: Iterable[float]) -> LinearStep:
        """(W1/W0) x + W1 sum of weights * slopes: a step in the coordinates, expressed in model space."""
        coordinates = by_name(self.coordinates)
        before, after = coordinates.scale(start), coordinates.scale(end)
        return LinearStep(after / before, tuple(after * w for w in weights))


@lru_cache(maxsize=4096)
def _linear_step(solver: Multistep, schedule: Schedule, times: tuple[float, ...], t1: float) -> LinearStep:
    """The numbers of a step to t1 with slopes at the times, the newest first."""
    return solver.coefficients(_regular(schedule, times), schedule.at(t1))


def _sum(numbers: LinearStep, x: Tensor, slopes: Sequence[Scaled]) -> Tensor:
    """The step without its noise."""
    factors = [weight * slope.factor for weight, slope in zip(numbers.slopes, slopes, strict=True)]
    return combine(numbers.x, x, factors, [slope.tensor for slope in slopes])


def _regular(schedule: Schedule, times: Sequence[float]) -> list[Level]:
    """The levels at which the log-SNR is finite; the others can only be the oldest, where a run began."""
    return [level for level in map(schedule.at, times) if math.isfinite(level.log_snr)]


def _lambda(level: Level) -> float:
    """ln(alpha / sigma)."""
    return 0.5 * level.log_snr


@cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(16)
    return 0.5 * (nodes + 1.0), 0.5 * weights


def _lagrange_weights(knots: list[float], clock: np.ndarray, measure: np.ndarray) -> list[float]:
    """The integral of each Lagrange polynomial of the knots, given clock values and their measure."""
    result = []
    for j, knot in enumerate(knots):
        others = np.array(knots[:j] + knots[j + 1 :])
        values = np.prod((clock[:, None] - others) / (knot - others), axis=1)
        result.append(float(values @ measure))
    return result


@dataclass(frozen=True)
class LMS(Multistep):
    """Linear multistep in the noise coordinates: variable-step Adams-Bashforth in sigma/alpha, order 1 to 4."""

    order: int = 4
    name: ClassVar[str] = "lms"
    source = "Karras et al. 2022 (2206.00364); k-diffusion"

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        knots, h = [level.ratio for level in past], end.ratio - past[0].ratio
        nodes, weights = _gauss()
        return self.transfer(past[0], end, _lagrange_weights(knots, knots[0] + h * nodes, h * weights))


@dataclass(frozen=True)
class DEIS(Multistep):
    """DEIS: the noise interpolated in log sigma/alpha and integrated exactly, order 1 to 4."""

    name: ClassVar[str] = "deis"
    source = "Zhang & Chen 2022 (2204.13902)"

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        return self.transfer(past[0], end, _exponential_weights(by_name(self.coordinates), past, end))


def _exponential_weights(coordinates: Coordinates, past: Sequence[Level], end: Level) -> list[float]:
    """Weights of slopes interpolated in ln tau and integrated over dtau, in the coordinates' units."""
    knots = [math.log(coordinates.time(level)) for level in past]
    h = math.log(coordinates.time(end)) - knots[0]
    nodes, weights = _gauss()
    clock = knots[0] + h * nodes
    return _lagrange_weights(knots, clock, h * weights * np.exp(clock))


_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class IPNDM(Multistep):
    """iPNDM: the Adams-Bashforth weights of equal steps, whatever the grid; order 1 unless the steps are equal."""

    order: int = 4
    name: ClassVar[str] = "ipndm"
    source = "Liu et al. 2022 (2202.09778); Zhang & Chen 2022 (2204.13902)"

    @property
    def properties(self) -> Properties:
        interval = ADAMS_INTERVALS[self.order - 1]
        return Properties(1, 1, "approximate", states=1 + self.order, real_interval=interval, source=self.source)

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        h = end.ratio - past[0].ratio
        return self.transfer(past[0], end, [h * w for w in _ADAMS[len(past) - 1]])


@dataclass(frozen=True)
class DPMpp2M(Multistep):
    """DPM-Solver++(2M): second order, one evaluation a step."""

    order: int = 2
    name: ClassVar[str] = "dpmpp-2m"
    highest = 2
    coordinates = "data"
    source = "Lu et al. 2022 (2211.01095)"

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        gain = DATA.time(end) - DATA.time(past[0])
        extra = _extrapolation(past, end)
        return self.transfer(past[0], end, [gain * (1 + extra), -gain * extra][: len(past)])


def _extrapolation(past: Sequence[Level], end: Level) -> float:
    """h / (2 h_1): how far half the step reaches in units of the step before; 0 without history."""
    if len(past) < 2:
        return 0.0
    here = _lambda(past[0])
    return 0.5 * (_lambda(end) - here) / (here - _lambda(past[1]))


@dataclass(frozen=True)
class DPMpp3M(Multistep):
    """DPM-Solver++(3M): third order, one evaluation a step.

    The quadratic through three predictions is integrated exactly. Implementations that halve its last coefficient
    (k-diffusion, diffusers) are of second order.
    """

    name: ClassVar[str] = "dpmpp-3m"
    highest = 3
    coordinates = "data"
    source = "Lu et al. 2022 (2211.01095)"

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        return self.transfer(past[0], end, _exponential_weights(by_name(self.coordinates), past, end))


@dataclass(frozen=True)
class DPMppSDE(Multistep):
    """DPM-Solver++ for the reverse SDE, multistep: `dpmpp-sde` (order 1), `dpmpp-2m-sde`, `dpmpp-3m-sde`.

    The order is that of the drift. Order 1 at eta = 1 is the ancestral sampler, with twice the log-SNR step of the ODE.

    eta: the share of the reverse SDE's noise; 1 is all of it, towards 0 the ODE's multistep method.
    """

    order: int = 2
    eta: float = 1.0
    highest = 3
    coordinates = "data"
    stochastic = True
    source = "Lu et al. 2022 (2211.01095)"

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.eta < math.inf:
            quiet = {1: "ddim", 2: "dpmpp-2m", 3: "dpmpp-3m"}[self.order]
            raise InputError(f"{self.name}: got eta {self.eta}, expected a positive number; {quiet!r} has no noise")

    @property
    def name(self) -> str:  # type: ignore[override]  # one class serves a name an order
        return "dpmpp-sde" if self.order == 1 else f"dpmpp-{self.order}m-sde"

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "eta": self.eta}

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        here, there = _lambda(past[0]), _lambda(end)
        h, alpha, sigma = there - here, end.alpha, end.sigma
        rate = 1.0 + self.eta
        decay = -math.expm1(-rate * h)
        if len(past) == 2:  # the published midpoint form
            extra = _extrapolation(past, end)
            weights = [alpha * decay * (1 + extra), -alpha * decay * extra]
        else:
            nodes, measure = _gauss()
            clock = here + h * nodes
            measure = rate * h * measure * np.exp(rate * (clock - there))
            knots = [_lambda(level) for level in past]
            weights = [alpha * w for w in _lagrange_weights(knots, clock, measure)]
        first = sigma / past[0].sigma * math.exp(-self.eta * h)
        return LinearStep(first, tuple(weights), sigma * math.sqrt(-math.expm1(-2.0 * self.eta * h)))


@solver_state
class Predicted(NamedTuple):
    """UniPC's state: the sample, whether a step predicted it, and the x0 predictions so far, the newest first."""

    x: Tensor
    predicted: bool
    times: tuple[float, ...]
    slopes: tuple[Scaled, ...]


@dataclass(frozen=True)
class UniPC(Solver[Predicted]):
    """UniPC: a multistep predictor and a corrector that reuses the evaluation at the predicted point.

    order: of the predictor, 1 to 3; the corrector gains one. kind: "bh2" (B(h) = e^-h - 1) or "bh1" (B(h) = -h). One
    evaluation a step, x0 prediction. Source: Zhao et al. 2023.
    """

    order: int = 2
    kind: Literal["bh1", "bh2"] = "bh2"
    name: ClassVar[str] = "unipc"
    coordinates = "data"

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise InputError(f"unipc: got order {self.order!r}, expected 1, 2 or 3")
        if self.kind not in ("bh1", "bh2"):
            raise InputError(f"unipc: got kind {self.kind!r}, expected 'bh1' or 'bh2'")

    @property
    def properties(self) -> Properties:
        # the last prediction is not corrected, which costs nothing: one local error of order + 1
        interval = ADAMS_INTERVALS[self.order]  # with equal steps the corrected method is Adams-Bashforth, one order up
        return Properties(
            self.order + 1,
            1,
            "approximate",
            states=1 + self.order,
            real_interval=interval,
            source="Zhao et al. 2023 (2302.04867)",
        )

    def start(self, x: Tensor, schedule: Schedule, t: float) -> Predicted:
        return Predicted(x, False, (), ())

    def output(self, state: Predicted) -> Tensor:
        return state.x

    def with_sample(self, state: Predicted, x: Tensor, schedule: Schedule, t: float) -> Predicted:
        return state._replace(x=x, predicted=False)  # what was moved is not corrected

    def for_decoding(self, state: Predicted) -> Predicted:
        return Predicted(state.x, False, (), ())

    def step(self, state: Predicted, step: Step) -> Queries[Predicted]:
        prediction = yield Query(state.x, step.t0)
        known = [prediction.scaled(*DATA.prediction), *state.slopes]
        times, slopes = (step.t0, *state.times)[: self.order], tuple(known[: self.order])
        if step.start.sigma == 0.0:  # the beginning of an inversion: no history, and DDIM in the network's terms
            x = prediction.mix(step.end.alpha, step.end.sigma)
        else:
            numbers = _predictor_corrector(self, step.schedule, state.times, state.predicted, step.t0, step.t1)
            x = _sum(numbers, state.x, known)
        return Predicted(x, True, times, slopes)

    def coefficients(self, past: Sequence[Level], end: Level, known: int, history: Sequence[Level]) -> LinearStep:
        """The numbers of a step from past[0] to `end`: the corrector's over the last step, and the predictor's.

        Args:
            past: The levels of the predictions that the predictor uses, the newest first.
            end: Where the step ends.
            known: How many predictions there are.
            history: The levels of those before the newest, if the sample was predicted; else none.
        """
        start, corrected = past[0], [0.0] * known  # factors in the corrected sample; that of the predicted one is 1
        if history:
            with_it, without = self._factors(history, start, True), self._factors(history, start)
            # one from the other: the sample that both started from goes, so that it need not be kept
            corrected[0] = with_it[-1]
            for k, (new, old) in enumerate(zip(with_it[1:-1], without[1:], strict=True), 1):
                corrected[k] = new - old
        if math.isfinite(start.log_snr) and math.isfinite(end.log_snr):
            ahead, *onward = self._factors([level for level in past if math.isfinite(level.log_snr)], end)
        else:
            ahead = end.sigma / start.sigma
            onward = [end.alpha - ahead * start.alpha]
        weights = [ahead * factor for factor in corrected]
        for k, factor in enumerate(onward):
            weights[k] += factor
        return LinearStep(ahead, tuple(weights))

    def _factors(self, past: Sequence[Level], end: Level, ahead: bool = False) -> list[float]:
        """The factors of the sample at past[0] and of the predictions at `past` in UniP's sample at `end`.

        With `ahead`, those of UniC, with the factor of the prediction at `end` as the last.
        """
        here, there = _lambda(past[0]), _lambda(end)
        h = here - there  # "hh" of the paper: minus the step, for x0 prediction
        knots = [(_lambda(level) - here) / (there - here) for level in past[1:]]
        if ahead:
            knots.append(1.0)
        scale = h if self.kind == "bh1" else math.expm1(h)
        alpha = end.alpha
        gain = -alpha * scale
        factors = [gain * w / r for w, r in zip(_unified_weights(h, scale, tuple(knots)), knots, strict=True)]
        of_newest = -alpha * math.expm1(h) - sum(factors)
        return [end.sigma / past[0].sigma, of_newest, *factors]


@lru_cache(maxsize=4096)
def _predictor_corrector(
    solver: UniPC, schedule: Schedule, times: tuple[float, ...], predicted: bool, t0: float, t1: float
) -> LinearStep:
    """The numbers of a step of UniPC from t0 to t1, with predictions at `times` before it, the newest first."""
    past = [schedule.at(t) for t in (t0, *times)[: solver.order]]
    return solver.coefficients(past, schedule.at(t1), 1 + len(times), _regular(schedule, times if predicted else ()))


def _unified_weights(h: float, scale: float, knots: tuple[float, ...]) -> tuple[float, ...]:
    """The weights rho of UniPC: R rho = b with R_ij = r_j^(i-1), b_i = i! phi_(i+1)(h) h / B(h).

    A single knot gets 1/2, as the authors have it, which keeps the order.
    """
    if not knots:
        return ()
    if len(knots) == 1:
        return (0.5,)
    phi, factorial, rhs = math.expm1(h) / h - 1.0, 1.0, []
    for i in range(1, len(knots) + 1):
        rhs.append(phi * factorial / scale)
        factorial *= i + 1
        phi = phi / h - 1.0 / factorial
    matrix = np.vander(np.array(knots), increasing=True).T
    return tuple(float(w) for w in np.linalg.solve(matrix, np.array(rhs)))


for _solver in (DPMpp2M, DPMpp3M, UniPC, DEIS, IPNDM, LMS):
    register(_solver.name, _solver)
for _order in (1, 2, 3):
    register(DPMppSDE(_order).name, partial(DPMppSDE, _order))
