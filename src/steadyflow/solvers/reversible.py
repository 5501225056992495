"""Exactly reversible methods: two states, so that the step map has an algebraic inverse.

On a linear field every method here is a linear map of two states; the product of its two roots is
the *determinant* D of the step. The physical root is about e^z, so the parasitic one is about D e^-z: the method is
stable for real z < 0 iff |z| is at most about -ln |D|, and its inverse amplifies rounding errors by 1 / |D| per step.
With D = 1 nothing contracts. The option `coupling` determines D; "auto" sets it from the step,

    |D| = (tau1 / tau0)^c,        tau = sigma / alpha (noise coordinates) or sigma / (alpha + sigma) (flow coordinates),

so that the method can follow the strongest contraction of its coordinates, dtau / tau, at every step, and an
inversion amplifies by (tau_T / tau_0)^c over the whole grid. For Rex over Euler and c = 1 the stability interval is
then exactly 1 - tau1 / tau0, the largest |z| of the step.

Rex, the coupling of any Runge-Kutta method, is in the module `rex`. Sources of the others: EDICT: Wallace et
al. 2023; BDIA: Zhang et al. 2023; O-BELM: Wang et al. 2024; Reversible Heun: Kidger et al. 2021 (2105.13493); ALF:
Zhuang et al. 2021; implicit midpoint: Hairer, Lubich & Wanner, Geometric Numerical Integration.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .._internal.tensors import broadcast, combine, norm
from ..coordinates import DATA, NOISE, Coordinates, CoordinatesName, check_name, regular_between
from ..errors import ConvergenceError, InputError, SingularTimeError
from ..grids import Grid
from ..schedules import Schedule
from .base import Properties, Queries, Query, Solver, Step, ddim_factors, ddim_step
from .registry import register
from .state import solver_state

__all__ = [
    "ALF",
    "BDIA",
    "BELM",
    "EDICT",
    "ImplicitMidpoint",
    "ReversibleHeun",
]

Coupling = float | Literal["auto"]
"""A number in (0, 1], or "auto" to set it from each step."""


@solver_state
class Pair(NamedTuple):
    """Two coupled states in model space, shape (B, ...) each."""

    x: Tensor
    """The sample."""
    y: Tensor
    """The other state."""


@solver_state
class Neighbours(NamedTuple):
    """Samples at two neighbouring times of the grid, shape (B, ...) each."""

    x: Tensor
    """The sample."""
    other: Tensor | None
    """The sample before the last step; None before the first."""
    t_other: float
    """The path time of `other`."""


@solver_state
class Moving(NamedTuple):
    """A sample with an auxiliary state and a slope, shape (B, ...) each."""

    x: Tensor
    """The sample."""
    aid: Tensor | None
    """The auxiliary state; None before the first step, and for methods without one."""
    slope: Tensor | None
    """The last slope; None before the first step."""


def check_coupling(value: object, name: str) -> None:
    """Check that a coupling is a number in (0, 1] or "auto".

    Args:
        value: The coupling.
        name: The solver's name, for the message.

    Raises:
        InputError: It is neither.
    """
    if value != "auto" and not (isinstance(value, int | float) and 0.0 < value <= 1.0):
        raise InputError(f'{name}: got coupling {value!r}, expected a number in (0, 1] or "auto"')


def contraction(step: Step, power: float, coordinates: Coordinates = NOISE) -> float:
    """Return (tau_clean / tau_noisy)^power for a step, or 0.05 if it is smaller, as at a singular end.

    Args:
        step: The step, in either direction.
        power: The exponent.
        coordinates: The coordinates of the time tau, which grows with noise. For data coordinates, in which sampling
            contracts nothing, it is the time of noise coordinates.
    """
    clock = NOISE if coordinates is DATA else coordinates
    low, high = sorted((clock.time(step.start), clock.time(step.end)))
    return max((low / high) ** power if high < math.inf else 0.0, 0.05)


def regular_coordinates(name: CoordinatesName, step: Step) -> Coordinates:
    """Return the coordinates with a name, for methods that cannot replace a singular step by a DDIM step.

    Args:
        name: The name of the coordinates.
        step: The step, in either direction.

    Raises:
        SingularTimeError: The coordinates are singular at an end of the step.
    """
    coordinates = regular_between(name, step.start, step.end)
    if coordinates is None:
        raise SingularTimeError(
            f"an exactly reversible solver cannot step from t = {step.t0:.6g} to t = {step.t1:.6g}, where {name} "
            f"coordinates are singular; bound the grid with t_max or t_min, or use other coordinates"
        )
    return coordinates


class TwoStates(Solver[Pair]):
    """The base of methods with a pair of states, which are equal at the start."""

    def start(self, x: Tensor, schedule: Schedule, t: float) -> Pair:
        return Pair(x, x)

    def output(self, state: Pair) -> Tensor:
        return state.x

    @property
    def points(self) -> int:
        return 2

    @abstractmethod
    def determinant(self, step: Step) -> float: ...


@dataclass(frozen=True)
class EDICT(TwoStates):
    """EDICT: two DDIM states that denoise each other and are then averaged with weight p, the coupling.

    With A = alpha1/alpha0 and B = sigma1 - A sigma0:  x' = A x + B eps(y, t0),  y' = A y + B eps(x', t0),
    x1 = p x' + (1 - p) y',  y1 = p y' + (1 - p) x1. Order 1; determinant p^2. Source: Wallace et al. 2023.

    Args:
        coupling: p, in (0, 1], or "auto" (see the module).
        alternate: Whether to exchange the roles of the two states at every other step, as the authors' code does.

    Raises:
        InputError: The coupling is out of range.
    """

    coupling: Coupling = 0.93
    alternate: bool = True
    name: ClassVar[str] = "edict"

    def __post_init__(self):
        check_coupling(self.coupling, self.name)

    @property
    def properties(self) -> Properties:
        p = 1.0 if self.coupling == "auto" else self.coupling
        closed_form = self.coupling != "auto" and not self.alternate
        real = (1 - p * p) / (1 - p + p * p) if closed_form else None
        return Properties(1, 2, "exact", states=2, real_interval=real, source="Wallace et al. 2023 (2211.12446)")

    def _weight(self, step: Step) -> float:
        return contraction(step, 0.75) if self.coupling == "auto" else self.coupling

    def determinant(self, step: Step) -> float:
        return self._weight(step) ** 2

    def _turned(self, pair: Pair, step: Step) -> Pair:
        return Pair(pair.y, pair.x) if self.alternate and step.index % 2 else pair

    def step(self, state: Pair, step: Step) -> Queries[Pair]:
        x, y = self._turned(state, step)
        p, (a, b) = self._weight(step), ddim_factors(step.start, step.end)
        x = combine(a, x, [b], [(yield Query(y, step.t0)).eps])
        y = combine(a, y, [b], [(yield Query(x, step.t0)).eps])
        x = combine(p, x, [1 - p], [y])
        y = combine(p, y, [1 - p], [x])
        return self._turned(Pair(x, y), step)

    def inverse_step(self, state: Pair, step: Step) -> Queries[Pair]:
        x, y = self._turned(state, step)
        p, (a, b) = self._weight(step), ddim_factors(step.end, step.start)
        y = combine(1 / p, y, [1 - 1 / p], [x])
        x = combine(1 / p, x, [1 - 1 / p], [y])
        y = combine(1 / a, y, [-b / a], [(yield Query(x, step.t1)).eps])
        x = combine(1 / a, x, [-b / a], [(yield Query(y, step.t1)).eps])
        return self._turned(Pair(x, y), step)


class TwoStep(Solver[Neighbours]):
    """The base of two-step methods in noise coordinates w = x / alpha, which are reversible by construction.

    With chi- < chi < chi+ the times of three neighbours, clean to noisy,

        w- = k w+ + (1 - k) w + [(chi- - chi) - k (chi+ - chi)] eps(w),

    solved for w- in sampling and for w+ in inversion. The first step is a DDIM step. A step back over the last step
    returns the neighbour, without an evaluation. Determinant -k.
    """

    @abstractmethod
    def weight(self, schedule: Schedule, clean: float, middle: float, noisy: float) -> float:
        """Return k.

        Args:
            schedule: The path.
            clean: The cleanest of the three neighbouring path times.
            middle: The one between.
            noisy: The noisiest.
        """

    def start(self, x: Tensor, schedule: Schedule, t: float) -> Neighbours:
        return Neighbours(x, None, t)

    def output(self, state: Neighbours) -> Tensor:
        return state.x

    @property
    def points(self) -> int:
        return 2

    def step(self, state: Neighbours, step: Step) -> Queries[Neighbours]:
        x, other, t_other = state
        if other is None:
            return Neighbours((yield from ddim_step(x, step)), x, step.t0)
        if t_other == step.t1:
            return Neighbours(other, x, step.t0)
        clean, noisy = (t_other, step.t1) if step.rising else (step.t1, t_other)
        k = self.weight(step.schedule, clean, step.t0, noisy)
        scale = {t: step.schedule.at(t).alpha for t in (t_other, step.t0, step.t1)}
        if min(scale.values()) == 0.0:
            raise SingularTimeError(f"{self.name}: alpha is 0 at an end of the grid; give a smaller t_max")
        here, down, up = (step.schedule.at(t).ratio for t in (step.t0, clean, noisy))
        gain = (down - here) - k * (up - here)
        eps = (yield Query(x, step.t0)).eps
        # the relation solved for the next neighbour: the factors of the last one, of this one, and of eps
        behind, middle, slope = (1 / k, -(1 - k) / k, -gain / k) if step.rising else (k, 1 - k, gain)
        after = scale[step.t1]
        factors = [after * behind / scale[t_other], after * slope]
        return Neighbours(combine(after * middle / scale[step.t0], x, factors, [other, eps]), x, step.t0)

    def undo(self, state: Neighbours, step: Step, last: Step | None) -> Queries[Neighbours]:
        x, other, _ = state
        assert other is not None
        if last is None:
            return Neighbours(other, None, step.t0)
        # from the two samples the relation gives the one before both
        turned = yield from self.step(Neighbours(other, x, step.t1), last.reversed())
        return Neighbours(other, turned.x, last.t0)

    def determinant(self, step: Step) -> float:
        """Return -k of an interior step, with the third neighbour, which a step does not have, at an equal distance."""
        low, high = sorted((step.t0, step.t1))
        beyond = step.schedule.at(high).ratio * 2 - step.schedule.at(low).ratio
        noisy = step.schedule.t_from_ratio(beyond)
        return -self.weight(step.schedule, low, high, min(noisy, step.schedule.domain[1]))

    def inverse_growth(self, schedule: Schedule, grid: Grid) -> float:
        times = grid.times if grid.rising else grid.times[::-1]
        triples = zip(times, times[1:], times[2:], strict=False)
        weights = [self.weight(schedule, *triple) for triple in triples]
        if 0.0 in weights:
            raise SingularTimeError(f"{self.name}: alpha is 0 at an end of the grid; give a smaller t_max")
        total = -sum(math.log(abs(k)) for k in weights)
        return math.exp(min(total, 700.0))


@dataclass(frozen=True)
class BDIA(TwoStep):
    """BDIA, bidirectional integration approximation: k = gamma alpha+ / alpha-, gamma the coupling.

    One evaluation per step, order 1. The inverse amplifies by 1 / gamma per step, so that gamma below about 0.9 is
    unusable for inversion in float32, which is refused. Source: Zhang et al. 2023.

    Args:
        coupling: gamma, in (0, 1], or "auto" (see the module).

    Raises:
        InputError: The coupling is out of range.
    """

    coupling: Coupling = 0.96
    name: ClassVar[str] = "bdia"

    def __post_init__(self):
        check_coupling(self.coupling, self.name)

    @property
    def properties(self) -> Properties:
        gamma = self.coupling
        real = None if gamma == "auto" else 2 * (1 - gamma) / (1 + gamma)
        return Properties(1, 1, "exact", states=2, real_interval=real, source="Zhang et al. 2023 (2307.10829)")

    def weight(self, schedule: Schedule, clean: float, middle: float, noisy: float) -> float:
        if self.coupling == "auto":
            return max((schedule.at(clean).ratio / schedule.at(middle).ratio) ** 1.4, 0.05)
        return self.coupling * schedule.at(noisy).alpha / schedule.at(clean).alpha


@dataclass(frozen=True)
class BELM(TwoStep):
    """O-BELM: the two-step method of second order, k = q^2, q = (chi - chi-) / (chi+ - chi).

    It is the variable-step leapfrog in noise coordinates. One evaluation per step, order 2. It is stable only if the
    steps in chi shrink towards the data (q < 1). Source: Wang et al. 2024.
    """

    name: ClassVar[str] = "belm"

    @property
    def properties(self) -> Properties:
        return Properties(
            2, 1, "exact", states=2, real_interval=0.0, imaginary_interval=1.0, source="Wang et al. 2024 (2410.07273)"
        )

    def weight(self, schedule: Schedule, clean: float, middle: float, noisy: float) -> float:
        down, here, up = (schedule.at(t).ratio for t in (clean, middle, noisy))
        return ((here - down) / (up - here)) ** 2


@dataclass(frozen=True)
class Auxiliary(Solver[Moving]):
    """The base of Reversible Heun and ALF, which carry a slope from step to step in one set of coordinates.

    Args:
        coordinates: The coordinates in which to step, "noise" or "data".

    Raises:
        InputError: The coordinates are neither.
    """

    coordinates: CoordinatesName = "noise"

    def __post_init__(self):
        if self.coordinates not in ("noise", "data"):
            raise InputError(f"{self.name}: got coordinates {self.coordinates!r}, expected 'noise' or 'data'")

    def start(self, x: Tensor, schedule: Schedule, t: float) -> Moving:
        return Moving(x, None, None)

    def output(self, state: Moving) -> Tensor:
        return state.x


@dataclass(frozen=True)
class ReversibleHeun(Auxiliary):
    """Reversible Heun: z1 = 2 u - z + h f(t0, z),  u1 = u + h/2 (f(t0, z) + f(t1, z1)); it is its own inverse.

    One evaluation per step and one more in the first; order 2. The determinant is 1 in modulus: it is stable only on
    i [-1, 1]. Source: Kidger et al. 2021.

    Args:
        coordinates: The coordinates in which to step, "noise" or "data".

    Raises:
        InputError: The coordinates are neither.
    """

    name: ClassVar[str] = "reversible-heun"

    @property
    def properties(self) -> Properties:
        return Properties(
            order=2,
            evaluations=1,
            inverse="exact",
            startup_evaluations=1,
            states=3,
            real_interval=0.0,
            imaginary_interval=1.0,
            source="Kidger et al. 2021 (2105.13493)",
        )

    @property
    def points(self) -> int:
        return 2

    def determinant(self, step: Step) -> float:
        return 1.0

    def step(self, state: Moving, step: Step) -> Queries[Moving]:
        coordinates = regular_coordinates(self.coordinates, step)
        x, aid, slope = state
        if aid is None or slope is None:
            aid, slope = x, coordinates.slope((yield Query(x, step.t0)))
        before, after = coordinates.scale(step.start), coordinates.scale(step.end)
        h = coordinates.time(step.end) - coordinates.time(step.start)
        ratio = after / before
        aid = combine(2 * ratio, x, [-ratio, after * h], [aid, slope])
        ahead = coordinates.slope((yield Query(aid, step.t1)))
        return Moving(combine(ratio, x, [after * h / 2, after * h / 2], [slope, ahead]), aid, ahead)


@dataclass(frozen=True)
class ALF(Auxiliary):
    """ALF, the asynchronous leapfrog of MALI, damped by c: k = u + h/2 v,  v1 = v + 2 c (f(k) - v),  u1 = k + h/2 v1.

    One evaluation per step and one more in the first. Order 2 at c = 1, else 1; determinant 1 - 2 c, so that c = 1/2
    has no inverse. Source: Zhuang et al. 2021.

    Args:
        coordinates: The coordinates in which to step, "noise" or "data".
        damping: c, in (0.5, 1].

    Raises:
        InputError: An option is out of range.
    """

    damping: float = 1.0
    name: ClassVar[str] = "alf"

    def __post_init__(self):
        super().__post_init__()
        if not 0.5 < self.damping <= 1.0:
            raise InputError(f"alf: got damping {self.damping}, expected a number in (0.5, 1]")

    @property
    def properties(self) -> Properties:
        return Properties(
            order=2 if self.damping == 1.0 else 1,
            evaluations=1,
            inverse="exact",
            startup_evaluations=1,
            states=2,
            real_interval=2 * (1 - self.damping) / self.damping,
            imaginary_interval=1.0 if self.damping == 1.0 else 0.0,
            source="Zhuang et al. 2021 (2102.04668)",
        )

    def determinant(self, step: Step) -> float:
        return 1.0 - 2.0 * self.damping

    def step(self, state: Moving, step: Step) -> Queries[Moving]:
        return self._move(state, step, 1 - 2 * self.damping, 2 * self.damping)

    def inverse_step(self, state: Moving, step: Step) -> Queries[Moving]:
        back = 2 * self.damping - 1
        return self._move(state, step, -1 / back, 2 * self.damping / back)

    def _move(self, state: Moving, step: Step, of_v: float, of_f: float) -> Queries[Moving]:
        """Make half a step along v, set v1 = of_v v + of_f f(middle), and make half a step along v1."""
        coordinates = regular_coordinates(self.coordinates, step)
        x, _, v = state
        if v is None:
            v = coordinates.slope((yield Query(x, step.t0)))
        start = coordinates.time(step.start)
        h = coordinates.time(step.end) - start
        t = coordinates.when(step.schedule, start + h / 2)
        before, here, after = map(coordinates.scale, (step.start, step.schedule.at(t), step.end))
        middle = combine(here / before, x, [here * h / 2], [v])
        v1 = combine(of_v, v, [of_f], [coordinates.slope((yield Query(middle, t)))])
        return Moving(combine(after / here, middle, [after * h / 2], [v1]), None, v1)


@dataclass(frozen=True)
class ImplicitMidpoint(Solver[Tensor]):
    """Implicit midpoint: u1 = u + h f(t + h/2, (u + u1) / 2), solved by fixed-point iteration; symmetric and A-stable.

    It carries one state. The iteration converges if |h| times the field's Lipschitz constant is below 2. The round trip
    is exact to the tolerance. Source: Hairer, Lubich & Wanner 2006.

    Args:
        coordinates: The coordinates in which to step, "flow", "noise" or "data".
        tolerance: The iteration stops when it changes each sample's middle state by less than this share of its size;
            1e-12 in float64 and 1e-6 in float32 by default.
        iterations: The number of iterations after which a step raises `ConvergenceError`.

    Raises:
        UnknownNameError: There are no such coordinates.
    """

    coordinates: CoordinatesName = "flow"
    tolerance: float | None = None
    iterations: int = 100
    name: ClassVar[str] = "implicit-midpoint"

    @property
    def properties(self) -> Properties:
        return Properties(
            order=2,
            evaluations=None,
            inverse="exact",
            real_interval=math.inf,
            imaginary_interval=math.inf,
            source="Hairer, Lubich & Wanner 2006",
        )

    def __post_init__(self):
        check_name(self.coordinates)

    def step(self, state: Tensor, step: Step) -> Queries[Tensor]:
        coordinates = regular_coordinates(self.coordinates, step)
        start = coordinates.time(step.start)
        h = coordinates.time(step.end) - start
        t = coordinates.when(step.schedule, start + h / 2)
        before, here, after = map(coordinates.scale, (step.start, step.schedule.at(t), step.end))
        tolerance = self.tolerance or (1e-12 if state.dtype == torch.float64 else 1e-6)
        ratio, middle = here / before, state * (here / before)
        moving = torch.ones(len(state), dtype=torch.bool, device=state.device)
        change = torch.zeros(len(state), dtype=state.dtype, device=state.device)
        for _ in range(self.iterations):
            slope = coordinates.slope((yield Query(middle, t)))
            better = combine(ratio, state, [here * h / 2], [slope])
            # a sample that has converged does not change any more, so that it is the same in any batch
            middle, before_it = torch.where(broadcast(moving, state), better, middle), middle
            change = norm(middle - before_it).detach() / norm(middle).detach().clamp_min(1e-30)
            moving = moving & ~(change <= tolerance)  # NaN moves
            if not bool(moving.any()):
                break
        else:
            raise ConvergenceError(
                f"implicit-midpoint: at t = {t:.6g} the fixed point still moved by {change.max():.1e} of its size "
                f"after {self.iterations} rounds (tolerance {tolerance:.1e}); use more steps or a larger tolerance"
            )
        # u1 = 2 (middle) - u, which keeps the symmetry to rounding
        return combine(2 * after / here, middle, [-after / before], [state])


for _solver in (ReversibleHeun, ALF, EDICT, BDIA, BELM, ImplicitMidpoint):
    register(_solver.name, _solver)
