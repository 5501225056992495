"""Multistep methods: each step reuses the predictions of the steps before it.

In coordinates u with time tau (see `coordinates`) a step is u1 = u0 + integral of f dtau. The last `order` slopes f
are interpolated by a polynomial P in some clock s(tau), and P is integrated exactly (Gauss-Legendre, 16 nodes):

| name     | coordinates | slopes  | clock s             |                                                  |
|----------|-------------|---------|---------------------|--------------------------------------------------|
| lms      | noise       | eps_hat | sigma/alpha         | Adams-Bashforth; LMS of k-diffusion, rhoAB-DEIS  |
| deis     | noise       | eps_hat | ln(sigma/alpha)     | DEIS with exponential weights (log-rho)          |
| dpmpp-3m | data        | x0_hat  | ln(alpha/sigma)     | DPM-Solver++(3M), exponential Adams-Bashforth    |

`dpmpp-2m` uses the published coefficient, which differs from the exact integral at second order only:

    x1 = (sigma1/sigma0) x + alpha1 (1 - e^-h) [ m0 + (h / 2 h_1) (m0 - m_1) ],     h = lambda1 - lambda0,

`ipndm` uses the Adams-Bashforth weights of equal steps on any grid (Liu et al. 2022), and `gradient-estimation`
extrapolates the noise by a fixed factor.

A worked example: DPM-Solver++(2M), on the path `VE` (alpha = 1, sigma = t), from t = 4 to t = 2 with one prediction
before, at t = 8. The model predicts the noise. The state is x = 10 and the network returns eps = 2; the step before
had m_1 = 3.

1. `Multistep.step` requests the prediction at (x, 4). `Prediction.scaled` converts it to the slope of data
   coordinates, m0 = x0_hat = x - 4 eps = 2, as the tensor eps - x/4 and the factor -4. The multiplication is left
   to the last item, where it costs no pass of its own.
2. `_linear_step` returns the numbers of the step from its cache, or from `DPMpp2M.coefficients`:
   - tau = alpha/sigma (`DATA.time`) is 1/4 at the start and 1/2 at the end, so `gain` = 1/4. In the formula this is
     (alpha1/sigma1) (1 - e^-h), with h = lambda1 - lambda0 = ln 2.
   - `_extrapolation` returns h / (2 h_1) = 1/2, as h_1, the step before in lambda, is also ln 2. The slope is then
     m0 + (m0 - m_1) / 2, and the weights in data coordinates are 1/4 * 3/2 = 3/8 for m0 and -1/4 * 1/2 = -1/8 for m_1.
   - `transfer` returns to model space, x = sigma u (`DATA.scale`): the state gets the factor sigma1/sigma0 = 1/2, and
     the weights are multiplied by sigma1 = 2. The result is LinearStep(x=1/2, slopes=(3/4, -1/4)).
3. `LinearStep.apply` multiplies these by the factors of item 1 (3/4 * -4 = -3 for the tensor of m0) and adds up all
   terms: x1 = 10/2 + 3/4 * 2 - 1/4 * 3 = 5.75. The new `History` has x1 and both slopes.

The other methods differ in `coefficients` only: `lms`, `deis` and `dpmpp-3m` get their weights from
`lagrange_weights`, the integrals of the Lagrange polynomials of the past clock values.

The stochastic forms add the noise of the reverse SDE, or a share eta of it: with c = 1 + eta and J_k = c times the
integral of s^k e^(-c(h - s)) over [0, h],

    x1 = (sigma1/sigma0) e^(-eta h) x + alpha1 (m0 J_0 + m' J_1 + m'' J_2 / 2) + sigma1 sqrt(1 - e^(-2 eta h)) z.

A step that ends at sigma = 0 or starts at alpha = 0 is a DDIM step, of first order. The first steps have lower order,
as there is less history. Inversion runs the same method up the grid, with a history of its own.

Sources: Zhang & Chen 2022 (DEIS); Lu et al. 2022 (DPM-Solver++); Liu et al. 2022 (PNDM); Karras et al. 2022; Permenter
& Yuan 2023 (gradient estimation).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..coordinates import DATA, Coordinates, by_name
from ..errors import InputError
from ..prediction import Scaled
from ..schedules import Level, Schedule
from .ancestral import unit_noise
from .base import Properties, Queries, Query, Solver, Step
from .registry import register
from .state import solver_state
from .weights import LinearStep, gauss, half_log_snr, lagrange_weights, regular

__all__ = [
    "DEIS",
    "IPNDM",
    "LMS",
    "DPMpp2M",
    "DPMpp3M",
    "DPMppSDE",
    "GradientEstimation",
    "UniPC",
]

ADAMS_INTERVALS = (2.0, 1.0, 6 / 11, 3 / 10)
"""The real stability intervals of the Adams-Bashforth methods of order 1 to 4 (Hairer & Wanner, sec. V.1)."""

solver_state(Scaled)


@solver_state
class History(NamedTuple):
    """A sample and the slopes of the last steps."""

    x: Tensor
    """The sample, shape (B, ...)."""
    times: tuple[float, ...]
    """The path times of the slopes, the newest first."""
    slopes: tuple[Scaled, ...]
    """The slopes, shape (B, ...) each, the newest first."""


@dataclass(frozen=True)
class Multistep(Solver[History]):
    """The base of the multistep methods, which carry a history of at most `order` slopes.

    The first step of a run is of first order, so that a run converges with order two at most. The error of that
    one step is small, so a higher order of the method improves results nevertheless.

    Args:
        order: The order of the method with a full history, from 1 to `highest`.

    Raises:
        InputError: The order is out of range.
    """

    order: int = 3

    def __post_init__(self):
        if self.order not in range(1, self.highest + 1):
            raise InputError(f"{self.name}: got order {self.order!r}, expected a whole number from 1 to {self.highest}")

    highest: ClassVar[int] = 4
    """The highest order."""
    source: ClassVar[str] = ""
    """The paper."""
    coordinates = "noise"
    stochastic: ClassVar[bool] = False
    """Whether steps draw noise."""

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
        if not (self.covers(step.start) and self.covers(step.end)):
            x = prediction.mix(step.end.alpha, step.end.sigma)
        else:
            numbers = _linear_step(self, step.schedule, times, step.t1)
            x = numbers.apply(state.x, slopes[: len(numbers.slopes)])
            if numbers.noise_std > 0.0:
                x = torch.add(x, self.unit_noise(step), alpha=numbers.noise_std)
        return History(x, times, slopes)

    def covers(self, level: Level) -> bool:
        """Return whether a step of the method may begin or end at a level; other steps are DDIM steps."""
        return regular(level)

    def unit_noise(self, step: Step) -> Tensor:
        """Return standard normal noise for a step of a stochastic method, shape (B, ...)."""
        return unit_noise(step)

    def with_sample(self, state: History, x: Tensor, schedule: Schedule, t: float) -> History:
        return state._replace(x=x)

    def for_decoding(self, state: History) -> History:
        return History(state.x, (), ())

    @abstractmethod
    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        """Return the numbers of a step from past[0] to `end`.

        They are cached for each solver and these levels, and must not depend on anything else.

        Args:
            past: The levels of the slopes, the newest first, all of which the method covers.
            end: The level at the end of the step.
        """

    def transfer(self, start: Level, end: Level, weights: Iterable[float]) -> LinearStep:
        """Convert a step u1 = u0 + sum of weights * slopes to model space: (W1/W0) x + W1 sum of weights * slopes.

        Args:
            start: The level at the start of the step, where the coordinates have the scale W0.
            end: The level at its end, with the scale W1.
            weights: The weights of the slopes, the newest first.
        """
        coordinates = by_name(self.coordinates)
        before, after = coordinates.scale(start), coordinates.scale(end)
        return LinearStep(after / before, tuple(after * w for w in weights))


@lru_cache(maxsize=4096)
def _linear_step(solver: Multistep, schedule: Schedule, times: tuple[float, ...], t1: float) -> LinearStep:
    """Return the numbers of a step to t1 with slopes at the given times, the newest first."""
    past = [level for level in map(schedule.at, times) if solver.covers(level)]  # another can only be the oldest
    return solver.coefficients(past, schedule.at(t1))


@dataclass(frozen=True)
class LMS(Multistep):
    """LMS: variable-step Adams-Bashforth in sigma/alpha, in noise coordinates; order 1 to 4."""

    order: int = 4
    name: ClassVar[str] = "lms"
    source = "Karras et al. 2022 (2206.00364); k-diffusion"

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        knots, h = [level.ratio for level in past], end.ratio - past[0].ratio
        nodes, weights = gauss()
        return self.transfer(past[0], end, lagrange_weights(knots, knots[0] + h * nodes, h * weights))


@dataclass(frozen=True)
class DEIS(Multistep):
    """DEIS: the noise is interpolated in ln(sigma/alpha) and integrated exactly; order 1 to 4."""

    name: ClassVar[str] = "deis"
    source = "Zhang & Chen 2022 (2204.13902)"

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        return self.transfer(past[0], end, _exponential_weights(by_name(self.coordinates), past, end))


def _exponential_weights(coordinates: Coordinates, past: Sequence[Level], end: Level) -> list[float]:
    """Return the weights of slopes that are interpolated in ln tau and integrated over dtau, in these coordinates.

    Args:
        coordinates: The coordinates, with time tau.
        past: The levels of the slopes, the newest first, which is also the start of the step.
        end: The level at the end of the step.
    """
    knots = [math.log(coordinates.time(level)) for level in past]
    h = math.log(coordinates.time(end)) - knots[0]
    nodes, weights = gauss()
    clock = knots[0] + h * nodes
    return lagrange_weights(knots, clock, h * weights * np.exp(clock))


@dataclass(frozen=True)
class GradientEstimation(Multistep):
    """Gradient estimation: the DDIM step with eps_bar = gamma eps_k + (1 - gamma) eps_(k-1), of order 1.

    The error of eps_hat as an estimate of the direction to the data is reduced by extrapolation from the step before.
    On equal steps in sigma/alpha, gamma = 3/2 is the second-order method of Adams and Bashforth. Order 1 is DDIM.

    Args:
        order: The number of noise predictions that are used, 1 or 2.
        gamma: The weight of the newest prediction, at least 1, which gives DDIM.

    Raises:
        InputError: An option is out of range.
    """

    order: int = 2
    gamma: float = 2.0
    name: ClassVar[str] = "gradient-estimation"
    highest = 2

    def __post_init__(self):
        super().__post_init__()
        if not 1.0 <= self.gamma < math.inf:
            raise InputError(f"{self.name}: got gamma {self.gamma}, expected a number that is at least 1")

    @property
    def properties(self) -> Properties:
        interval = 2.0 / (2.0 * self.gamma - 1.0) if self.order == 2 else 2.0
        source = "Permenter & Yuan 2023 (2306.04848)"
        return Properties(1, 1, "approximate", states=1 + self.order, real_interval=interval, source=source)

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        h = end.ratio - past[0].ratio
        weights = [h] if len(past) == 1 else [h * self.gamma, h * (1.0 - self.gamma)]
        return self.transfer(past[0], end, weights)


_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class IPNDM(Multistep):
    """iPNDM: the Adams-Bashforth weights of equal steps on any grid; of order 1 unless the steps are equal."""

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
    """DPM-Solver++(2M): second order, one evaluation per step. The module works an example of a step."""

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
    """Return h / (2 h_1), half the step in units of the step before, both in lambda; 0 without history."""
    if len(past) < 2:
        return 0.0
    here = half_log_snr(past[0])
    return 0.5 * (half_log_snr(end) - here) / (here - half_log_snr(past[1]))


@dataclass(frozen=True)
class DPMpp3M(Multistep):
    """DPM-Solver++(3M): third order, one evaluation per step.

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

    Order 1 at eta = 1 is the ancestral sampler, with twice the log-SNR step of the ODE.

    Args:
        order: The order of the drift, 1 to 3.
        eta: The share of the reverse SDE's noise, a positive number: 1 is all of it, and the limit 0 is the multistep
            method of the ODE.

    Raises:
        InputError: An option is out of range.
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
    def name(self) -> str:  # type: ignore[override]  # the name depends on the order
        return "dpmpp-sde" if self.order == 1 else f"dpmpp-{self.order}m-sde"

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "eta": self.eta}

    def coefficients(self, past: Sequence[Level], end: Level) -> LinearStep:
        here, there = half_log_snr(past[0]), half_log_snr(end)
        h, alpha, sigma = there - here, end.alpha, end.sigma
        rate = 1.0 + self.eta
        decay = -math.expm1(-rate * h)
        if len(past) == 2:  # the published midpoint form
            extra = _extrapolation(past, end)
            weights = [alpha * decay * (1 + extra), -alpha * decay * extra]
        else:
            nodes, measure = gauss()
            clock = here + h * nodes
            measure = rate * h * measure * np.exp(rate * (clock - there))
            knots = [half_log_snr(level) for level in past]
            weights = [alpha * w for w in lagrange_weights(knots, clock, measure)]
        first = sigma / past[0].sigma * math.exp(-self.eta * h)
        return LinearStep(first, tuple(weights), sigma * math.sqrt(-math.expm1(-2.0 * self.eta * h)))


@solver_state
class Predicted(NamedTuple):
    """A sample and the x0 predictions of the last steps."""

    x: Tensor
    """The sample, shape (B, ...)."""
    predicted: bool
    """Whether the sample is the result of a step, so that the next step corrects it."""
    times: tuple[float, ...]
    """The path times of the predictions, the newest first."""
    slopes: tuple[Scaled, ...]
    """The predictions, shape (B, ...) each, the newest first."""


class PredictorCorrector(Solver[Predicted]):
    """The base of methods whose step first corrects the sample that the step before predicted."""

    def start(self, x: Tensor, schedule: Schedule, t: float) -> Predicted:
        return Predicted(x, False, (), ())

    def output(self, state: Predicted) -> Tensor:
        return state.x

    def with_sample(self, state: Predicted, x: Tensor, schedule: Schedule, t: float) -> Predicted:
        return state._replace(x=x, predicted=False)  # what was moved is not corrected

    def for_decoding(self, state: Predicted) -> Predicted:
        return Predicted(state.x, False, (), ())


@dataclass(frozen=True)
class UniPC(PredictorCorrector):
    """UniPC: a multistep predictor and a corrector that reuses the evaluation at the predicted point.

    One evaluation per step, in terms of x0_hat. Source: Zhao et al. 2023.

    Args:
        order: The order of the predictor, 1 to 3; the corrector adds one.
        kind: The function B(h): "bh2" for B(h) = e^-h - 1, "bh1" for B(h) = -h.

    Raises:
        InputError: An option is not one of these.
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
        # the last prediction is not corrected, but its single local error does not lower the order
        interval = ADAMS_INTERVALS[self.order]  # with equal steps the corrected method is Adams-Bashforth, one order up
        return Properties(
            self.order + 1,
            1,
            "approximate",
            states=1 + self.order,
            real_interval=interval,
            source="Zhao et al. 2023 (2302.04867)",
        )

    def step(self, state: Predicted, step: Step) -> Queries[Predicted]:
        prediction = yield Query(state.x, step.t0)
        known = [prediction.scaled(*DATA.prediction), *state.slopes]
        times, slopes = (step.t0, *state.times)[: self.order], tuple(known[: self.order])
        if step.start.sigma == 0.0:  # the start of an inversion, without history: a DDIM step, which also exists there
            x = prediction.mix(step.end.alpha, step.end.sigma)
        else:
            numbers = _predictor_corrector(self, step.schedule, state.times, state.predicted, step.t0, step.t1)
            x = numbers.apply(state.x, known)
        return Predicted(x, True, times, slopes)

    def coefficients(self, past: Sequence[Level], end: Level, known: int, history: Sequence[Level]) -> LinearStep:
        """Return the numbers of a step from past[0] to `end`, which first corrects the last step, then predicts.

        Args:
            past: The levels of the predictions that the predictor uses, the newest first.
            end: The level at the end of the step.
            known: The number of predictions.
            history: The levels of the predictions before the newest, if the sample was predicted; else none.
        """
        start, corrected = past[0], [0.0] * known  # factors in the corrected sample; that of the predicted one is 1
        if history:
            with_it, without = self._factors(history, start, True), self._factors(history, start)
            # corrected minus predicted sample: the sample from which both start cancels, so the state need not have it
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
        """Return the factors of the sample at past[0] and of the predictions at `past` in UniP's sample at `end`.

        With `ahead` they are those of UniC, and the last is that of the prediction at `end`.
        """
        here, there = half_log_snr(past[0]), half_log_snr(end)
        h = here - there  # "hh" of the paper: minus the step, for x0 prediction
        knots = [(half_log_snr(level) - here) / (there - here) for level in past[1:]]
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
    """Return the numbers of a step of UniPC from t0 to t1, with predictions at `times` before it, the newest first."""
    past = [schedule.at(t) for t in (t0, *times)[: solver.order]]
    history = [level for level in map(schedule.at, times if predicted else ()) if regular(level)]
    return solver.coefficients(past, schedule.at(t1), 1 + len(times), history)


def _unified_weights(h: float, scale: float, knots: tuple[float, ...]) -> tuple[float, ...]:
    """Return the weights rho of UniPC: R rho = b with R_ij = r_j^(i-1), b_i = i! phi_(i+1)(h) h / B(h).

    A single knot gets 1/2, as in the authors' code, which does not lower the order.
    """
    if not knots:
        return ()
    if len(knots) == 1:
        return (0.5,)
    rhs: list[float] = []
    phi, factorial = math.expm1(h) / h - 1.0, 1.0
    for i in range(1, len(knots) + 1):
        rhs.append(phi * factorial / scale)
        factorial *= i + 1
        phi = phi / h - 1.0 / factorial
    matrix = np.vander(np.array(knots), increasing=True).T
    return tuple(float(w) for w in np.linalg.solve(matrix, np.array(rhs)))


for _solver in (DPMpp2M, DPMpp3M, UniPC, DEIS, IPNDM, LMS, GradientEstimation):
    register(_solver.name, _solver)
for _order in (1, 2, 3):
    register(DPMppSDE(_order).name, partial(DPMppSDE, _order))
