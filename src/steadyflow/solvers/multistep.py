"""Multistep methods: each step reuses the predictions of the steps before it.

In a variable of time tau (see `variables`) a step is u1 = u0 + integral of f dtau. The last `order` slopes are
interpolated by a polynomial P in some clock s(tau), and P is integrated exactly (Gauss-Legendre, 16 nodes):

| name     | variable | slopes  | clock s             |                                                  |
|----------|----------|---------|---------------------|--------------------------------------------------|
| lms      | noise    | eps_hat | sigma/alpha         | Adams-Bashforth; LMS of k-diffusion, rhoAB-DEIS  |
| deis     | noise    | eps_hat | ln(sigma/alpha)     | DEIS with exponential weights (log-rho)          |
| dpmpp-3m | data     | x0_hat  | ln(alpha/sigma)     | DPM-Solver++(3M), exponential Adams-Bashforth    |

`dpmpp-2m` keeps the published coefficient, which differs from the exact integral at second order only:

    x1 = (sigma1/sigma0) x + alpha1 (1 - e^-h) [ m0 + (h / 2 h_1) (m0 - m_1) ],     h = lambda1 - lambda0,

and `ipndm` takes the equal-step Adams-Bashforth weights whatever the grid (Liu et al. 2022).

The stochastic forms add the noise of the reverse SDE, or its share eta: with c = 1 + eta and J_k = c times the integral
of s^k e^(-c(h - s)) over [0, h],

    x1 = (sigma1/sigma0) e^(-eta h) x + alpha1 (m0 J_0 + m' J_1 + m'' J_2 / 2) + sigma1 sqrt(1 - e^(-2 eta h)) z.

Where a leg ends in sigma = 0 or starts at alpha = 0 the order drops to one, which is DDIM there. The first steps
have lower order, as there is less history. Inversion runs the same method up the grid, with a history of its own.

Sources: Zhang & Chen 2022 (DEIS); Lu et al. 2022 (DPM-Solver++); Liu et al. 2022 (PNDM); Karras et al. 2022.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..batches import combine
from ..errors import InputError
from ..prediction import Scaled
from ..schedules import Schedule
from ..variables import DATA, NOISE, Variable, VariableName
from .ancestral import unit_noise
from .base import Asking, Facts, Leg, Query, Solver, state

ADAMS_INTERVALS = (2.0, 1.0, 6 / 11, 3 / 10)
"""The real stability intervals of the Adams-Bashforth methods of order 1 to 4 (Hairer & Wanner, sec. V.1)."""


state(Scaled)


@state
class History(NamedTuple):
    """The sample, and the slopes of the last steps with their path times, the newest first."""

    x: Tensor
    times: tuple[float, ...]
    slopes: tuple[Scaled, ...]


class Coefficients(NamedTuple):
    """The numbers of a step  x1 = first x + sum of weights * slopes + spread z."""

    first: float
    weights: tuple[float, ...]
    """The newest slope's first."""
    spread: float = 0.0
    """The standard deviation of the noise."""


@dataclass(frozen=True)
class Multistep(Solver):
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
    variable: ClassVar[Variable] = NOISE
    stochastic: ClassVar[bool] = False

    @property
    def frame(self) -> VariableName:
        return "data" if self.variable is DATA else "noise"

    @property
    def facts(self) -> Facts:
        # the first step has no history and leaves a local error of second order, which caps the convergence
        order, inverse = min(self.order, 2), "none" if self.stochastic else "approximate"
        return Facts(
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

    def step(self, state: History, leg: Leg) -> Asking[History]:
        prediction = yield Query(state.x, leg.t0)
        times = (leg.t0, *state.times)[: self.order]
        slopes = (prediction.scaled(*self.variable.reading), *state.slopes)[: self.order]
        ends = (leg.schedule.log_snr(leg.t0), leg.schedule.log_snr(leg.t1))
        if not all(map(math.isfinite, ends)):
            x = prediction.mix(leg.schedule.alpha(leg.t1), leg.schedule.sigma(leg.t1))
        else:
            first, weights, spread = leg.schedule.remembered(
                (self, times, leg.t1), lambda: self.coefficients(leg.schedule, _regular(leg.schedule, times), leg.t1)
            )
            x = _sum(first, state.x, weights, slopes[: len(weights)])
            if spread > 0.0:
                x = torch.add(x, unit_noise(leg), alpha=spread)
        return History(x, times, slopes)

    def moved(self, state: History, x: Tensor, schedule: Schedule, t: float) -> History:
        return state._replace(x=x)

    def turn(self, state: History) -> History:
        return History(state.x, (), ())

    @abstractmethod
    def coefficients(self, schedule: Schedule, times: list[float], t1: float) -> Coefficients:
        """The numbers of a step from times[0] to t1 with slopes at `times`, the newest first.

        They depend on nothing else but the solver's options, as they are remembered.
        """

    def transfer(self, schedule: Schedule, t0: float, t1: float, weights: Iterable[float]) -> Coefficients:
        """(W1/W0) x + W1 sum of weights * slopes: a step in the variable, told in model space."""
        before, after = (self.variable.scale(schedule, t) for t in (t0, t1))
        return Coefficients(after / before, tuple(after * w for w in weights))


def _sum(first: float, x: Tensor, weights: Sequence[float], slopes: Sequence[Scaled]) -> Tensor:
    """first * x + sum of weights * slopes."""
    factors = [weight * slope.factor for weight, slope in zip(weights, slopes, strict=True)]
    return combine(first, x, factors, [slope.tensor for slope in slopes])


def _regular(schedule: Schedule, times: tuple[float, ...]) -> list[float]:
    """The times at which the log-SNR is finite; the others can only be the oldest, where a journey began."""
    return [t for t in times if math.isfinite(schedule.log_snr(t))]


def _lambda(schedule: Schedule, t: float) -> float:
    return 0.5 * schedule.log_snr(t)


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
    """Linear multistep in the noise variable: variable-step Adams-Bashforth in sigma/alpha, order 1 to 4."""

    order: int = 4
    name: ClassVar[str] = "lms"
    source = "Karras et al. 2022 (2206.00364); k-diffusion"

    def coefficients(self, schedule, times, t1):
        start, end = schedule.ratio(times[0]), schedule.ratio(t1)
        nodes, weights = _gauss()
        knots = [schedule.ratio(t) for t in times]
        chosen = _lagrange_weights(knots, start + (end - start) * nodes, (end - start) * weights)
        return self.transfer(schedule, times[0], t1, chosen)


@dataclass(frozen=True)
class DEIS(Multistep):
    """DEIS: the noise interpolated in log sigma/alpha and integrated exactly, order 1 to 4."""

    name: ClassVar[str] = "deis"
    source = "Zhang & Chen 2022 (2204.13902)"

    def coefficients(self, schedule, times, t1):
        weights = _exponential_weights(self.variable, schedule, times, t1)
        return self.transfer(schedule, times[0], t1, weights)


def _exponential_weights(variable: Variable, schedule: Schedule, times: list[float], t1: float) -> list[float]:
    """Weights of slopes interpolated in ln tau and integrated over dtau, in the variable's units."""
    start, end = (math.log(variable.time(schedule, t)) for t in (times[0], t1))
    nodes, weights = _gauss()
    clock = start + (end - start) * nodes
    knots = [math.log(variable.time(schedule, t)) for t in times]
    return _lagrange_weights(knots, clock, (end - start) * weights * np.exp(clock))


_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class IPNDM(Multistep):
    """iPNDM: the Adams-Bashforth weights of equal steps, whatever the grid; order 1 unless the steps are equal."""

    order: int = 4
    name: ClassVar[str] = "ipndm"
    source = "Liu et al. 2022 (2202.09778); Zhang & Chen 2022 (2204.13902)"

    @property
    def facts(self) -> Facts:
        interval = ADAMS_INTERVALS[self.order - 1]
        return Facts(1, 1, "approximate", states=1 + self.order, real_interval=interval, source=self.source)

    def coefficients(self, schedule, times, t1):
        h = schedule.ratio(t1) - schedule.ratio(times[0])
        return self.transfer(schedule, times[0], t1, [h * w for w in _ADAMS[len(times) - 1]])


@dataclass(frozen=True)
class DPMpp2M(Multistep):
    """DPM-Solver++(2M): second order, one evaluation a step."""

    order: int = 2
    name: ClassVar[str] = "dpmpp-2m"
    highest = 2
    variable = DATA
    source = "Lu et al. 2022 (2211.01095)"

    def coefficients(self, schedule, times, t1):
        gain = DATA.time(schedule, t1) - DATA.time(schedule, times[0])
        extra = _extrapolation(schedule, times, t1)
        return self.transfer(schedule, times[0], t1, [gain * (1 + extra), -gain * extra][: len(times)])


def _extrapolation(schedule: Schedule, times: list[float], t1: float) -> float:
    """h / (2 h_1): how far half the step reaches in units of the step before; 0 without history."""
    if len(times) < 2:
        return 0.0
    here = _lambda(schedule, times[0])
    return 0.5 * (_lambda(schedule, t1) - here) / (here - _lambda(schedule, times[1]))


@dataclass(frozen=True)
class DPMpp3M(Multistep):
    """DPM-Solver++(3M): third order, one evaluation a step.

    The quadratic through three predictions is integrated exactly. Implementations that halve its last coefficient
    (k-diffusion, diffusers) are of second order.
    """

    name: ClassVar[str] = "dpmpp-3m"
    highest = 3
    variable = DATA
    source = "Lu et al. 2022 (2211.01095)"

    def coefficients(self, schedule, times, t1):
        weights = _exponential_weights(self.variable, schedule, times, t1)
        return self.transfer(schedule, times[0], t1, weights)


@dataclass(frozen=True)
class DPMppSDE(Multistep):
    """DPM-Solver++ for the reverse SDE, multistep: `dpmpp-sde` (order 1), `dpmpp-2m-sde`, `dpmpp-3m-sde`.

    The order is that of the drift. Order 1 at eta = 1 is the ancestral sampler, with twice the log-SNR step of the ODE.

    eta: the share of the reverse SDE's noise; 1 is all of it, towards 0 the ODE's multistep method.
    """

    order: int = 2
    eta: float = 1.0
    highest = 3
    variable = DATA
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

    def coefficients(self, schedule, times, t1):
        here, there = _lambda(schedule, times[0]), _lambda(schedule, t1)
        h, alpha, sigma = there - here, schedule.alpha(t1), schedule.sigma(t1)
        rate = 1.0 + self.eta
        decay = -math.expm1(-rate * h)
        if len(times) == 2:  # the published midpoint form
            extra = _extrapolation(schedule, times, t1)
            weights = [alpha * decay * (1 + extra), -alpha * decay * extra]
        else:
            nodes, measure = _gauss()
            clock = here + h * nodes
            measure = rate * h * measure * np.exp(rate * (clock - there))
            knots = [_lambda(schedule, t) for t in times]
            weights = [alpha * w for w in _lagrange_weights(knots, clock, measure)]
        first = sigma / schedule.sigma(times[0]) * math.exp(-self.eta * h)
        return Coefficients(first, tuple(weights), sigma * math.sqrt(-math.expm1(-2.0 * self.eta * h)))


@state
class Predicted(NamedTuple):
    """UniPC's state: the sample, whether a step predicted it, and the x0 predictions so far, the newest first."""

    x: Tensor
    predicted: bool
    times: tuple[float, ...]
    slopes: tuple[Scaled, ...]


@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC: a multistep predictor and a corrector that reuses the evaluation at the predicted point.

    order: of the predictor, 1 to 3; the corrector gains one. kind: "bh2" (B(h) = e^-h - 1) or "bh1" (B(h) = -h). One
    evaluation a step, x0 prediction. Source: Zhao et al. 2023.
    """

    order: int = 2
    kind: Literal["bh1", "bh2"] = "bh2"
    name: ClassVar[str] = "unipc"

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise InputError(f"unipc: got order {self.order!r}, expected 1, 2 or 3")
        if self.kind not in ("bh1", "bh2"):
            raise InputError(f"unipc: got kind {self.kind!r}, expected 'bh1' or 'bh2'")

    @property
    def frame(self) -> VariableName:
        return "data"

    @property
    def facts(self) -> Facts:
        # the last prediction is not corrected, which costs nothing: one local error of order + 1
        interval = ADAMS_INTERVALS[self.order]  # with equal steps the corrected method is Adams-Bashforth, one order up
        return Facts(
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

    def moved(self, state: Predicted, x: Tensor, schedule: Schedule, t: float) -> Predicted:
        return state._replace(x=x, predicted=False)  # what was moved is not corrected

    def turn(self, state: Predicted) -> Predicted:
        return Predicted(state.x, False, (), ())

    def step(self, state: Predicted, leg: Leg) -> Asking[Predicted]:
        prediction = yield Query(state.x, leg.t0)
        schedule = leg.schedule
        known = [prediction.scaled(*DATA.reading), *state.slopes]
        times, slopes = (leg.t0, *state.times)[: self.order], tuple(known[: self.order])
        if schedule.sigma(leg.t0) == 0.0:  # the beginning of an inversion: no history, and DDIM in the network's terms
            x = prediction.mix(schedule.alpha(leg.t1), schedule.sigma(leg.t1))
        else:
            history = state.times if state.predicted else ()
            first, weights, _ = schedule.remembered(
                (self, state.predicted, state.times, leg.t0, leg.t1),
                lambda: self._coefficients(schedule, times, leg.t1, len(known), _regular(schedule, history)),
            )
            x = _sum(first, state.x, weights, known)
        return Predicted(x, True, times, slopes)

    def _coefficients(
        self, schedule: Schedule, times: tuple[float, ...], t1: float, known: int, history: list[float]
    ) -> Coefficients:
        """The numbers of a step from times[0] to t1: the corrector's over the last step, and the predictor's.

        known: how many predictions there are. history: the times of those before, if the sample was predicted.
        """
        t0, corrected = times[0], [0.0] * known  # the factors in the corrected sample; that of the predicted one is 1
        if history:
            with_it, without = self._factors(schedule, history, t0, True), self._factors(schedule, history, t0)
            # one from the other: the sample that both started from goes, so that it need not be kept
            corrected[0] = with_it[-1]
            for k, (new, old) in enumerate(zip(with_it[1:-1], without[1:], strict=True), 1):
                corrected[k] = new - old
        if all(math.isfinite(schedule.log_snr(t)) for t in (t0, t1)):
            ahead, *onward = self._factors(schedule, _regular(schedule, times), t1)
        else:
            ahead = schedule.sigma(t1) / schedule.sigma(t0)
            onward = [schedule.alpha(t1) - ahead * schedule.alpha(t0)]
        weights = [ahead * factor for factor in corrected]
        for k, factor in enumerate(onward):
            weights[k] += factor
        return Coefficients(ahead, tuple(weights))

    def _factors(self, schedule: Schedule, times: list[float], t: float, ahead: bool = False) -> list[float]:
        """The factors of the sample at times[0] and of the predictions at `times` in UniP's sample at t.

        ahead: UniC's, with the factor of the prediction at t as the last.
        """
        here, there = _lambda(schedule, times[0]), _lambda(schedule, t)
        h = here - there  # "hh" of the paper: minus the step, for x0 prediction
        knots = [(_lambda(schedule, s) - here) / (there - here) for s in times[1:]]
        if ahead:
            knots.append(1.0)
        scale = h if self.kind == "bh1" else math.expm1(h)
        alpha = schedule.alpha(t)
        gain = -alpha * scale
        factors = [gain * w / r for w, r in zip(_unified_weights(h, scale, tuple(knots)), knots, strict=True)]
        of_newest = -alpha * math.expm1(h) - sum(factors)
        return [schedule.sigma(t) / schedule.sigma(times[0]), of_newest, *factors]


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
