"""Editing whose steps carry something from one to the next; all are published with Euler's method for rectified flows.

In flow coordinates, with v = E[n - x0 | u], times 0 = t_0 < ... < t_M, and d = t_j - t_(j-1) > 0:

    Uni-Inv     v_j = v(u + d v_(j-1), t_j),  u <- u + d v_j          Jiao et al. 2025 (UniEdit-Flow), 2504.13109
    Uni-Edit    u <- u - d (v_s + (w + (1 + w) m) (v_t - v_s)),  m in [0, 1] the size of v_t - v_s at each place
    PMI         u <- u + d (v - r g / |g|),  g = sign(v - v_before) + (v - mean v) / lambda          2602.11850
    mimic-CFG   u <- u - d (k v + (1 - k) proj(v on mean v))
    DNAEdit     Xie et al. 2025, 2506.01430: one noise s is aligned with the source on the way up,
                z* = z + d (s - z) / (1 - t),  v_j = v(z*, t_j),  z <- z + d v_j,  s <- z + (1 - t) v_j  (z before),
                and on the way down the edit follows  eta v_t(u + z* - z, t_j) + (1 - eta) (u - ref) / t_j
    FlowOpt     Ronai et al. 2025, 2510.22010: u <- u - rate (f(u) - x), f the whole way down under the target
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from .. import noise
from .._integrate import Solution
from .._internal.given import number, whole
from ..coordinates import FLOW
from ..denoisers.base import Denoiser
from ..errors import InputError
from ._fields import NO_INVERSION, Carried, Field, check_euler, clock, field_of, run, velocity, within
from .base import Edit, EditMethod, EditRequest, finished, register

Measure = Literal["absolute", "signed"]

_CARRIES = "its steps carry what the step before has found"
_CARRYING = {**NO_INVERSION, "adjoint": _CARRIES}
_REFUSES = {**_CARRYING, "noise": "it draws none", "seed": "it draws no noise"}


class _Way:
    """The way there and back of a request: Euler's method over one grid, in flow coordinates."""

    def __init__(self, request: EditRequest, calls: int, more: int = 0):
        """Settle the steps: where none are given, as many as make a way there and back no dearer than two budgets.

        Args:
            request: What was asked for.
            calls: The evaluations that a step of both ways makes.
            more: Those that are made once.

        Raises:
            InputError: The solver is not Euler's, or a controller chooses the steps.
        """
        self.solver, self.request = check_euler(request, _CARRIES), request
        self.options = within(request.options, (2 * request.options.budget - more) // calls)
        self.grid = self.options.falling(request.source)
        self.times = clock(request.source.schedule, self.grid.reversed()).times
        self.number = {tau: k for k, tau in enumerate(self.times)}
        """Of the step up that begins at a time."""

    def width(self, tau: float) -> float:
        """The width of the step up that begins at a time."""
        k = self.number[tau]
        return self.times[k + 1] - self.times[k]

    def width_down(self, tau: float) -> float:
        """The width of the step down that begins at a time."""
        return tau - self.times[self.number[tau] - 1]

    def up(self, field: Field) -> Solution:
        """Follow a field from the sources to the noisy end."""
        grid, x = self.grid.reversed(), self.request.x
        return run(field, self.request.source.schedule, grid, self.solver, self.options, x, FLOW.scale)

    def down(self, field: Field, x: Tensor) -> Solution:
        """Follow a field from a state at the noisy end to the data."""
        return run(field, self.request.source.schedule, self.grid, self.solver, self.options, x, FLOW.scale)

    def uni_inv(self, model: Denoiser, *, first: bool) -> tuple[Solution, int]:
        """Invert by Uni-Inv, which asks every step at its end, from where the last velocity leads.

        Args:
            model: The model of the way up.
            first: Whether the velocity at the start is asked for, or taken to be zero.

        Returns:
            The run, and its evaluations.
        """
        held = Carried()

        def net(u: Tensor, tau: float, rows: slice) -> Tensor:
            if tau == self.times[0]:
                held.set(rows, velocity(model, u, tau, rows) if first else torch.zeros_like(u))
            end = self.times[self.number[tau] + 1]
            found = velocity(model, u + (end - tau) * held.get(rows), end, rows)
            held.set(rows, found)
            return found

        found = self.up(field_of(net, model.cost))
        return found, found.nfe + (model.cost if first else 0)


@register
@dataclass(frozen=True)
class UniEdit(EditMethod):
    """UniEdit-Flow: invert by Uni-Inv, and move by Uni-Edit, which goes further where the two fields differ most.

    It is published for 15 steps, of which `strength` 0.6 takes nine, and without guidance. `nfe` makes up for the two
    fields on the way down: a step up and down costs three evaluations.

    Args:
        omega: How far the edit is carried along the difference of the fields.
        measure: Whether the difference is measured by the mean of its sizes over the channels (the first dimension of
            a sample), or by its signed mean; the authors' two implementations differ in this.
        empty: Whether the way up is made under the empty condition, as published, or under the source's.
        first: Whether the first step up knows the velocity at its start, at one more evaluation.
    """

    omega: float = 5.0
    measure: Measure = "absolute"
    empty: bool = True
    first: bool = True
    name: ClassVar[str] = "uni-edit"
    defaults: ClassVar[Mapping[str, Any]] = {"solver": "euler", "strength": 0.6, "grid": "uniform"}
    refuses: ClassVar[Mapping[str, str]] = _REFUSES

    def __post_init__(self):
        object.__setattr__(self, "omega", number("omega", self.omega))
        if not 0.0 <= self.omega < math.inf:
            raise InputError(f"omega: got {self.omega}, expected a number that is not negative")
        if self.measure not in get_args(Measure):
            raise InputError(f"measure: got {self.measure!r}, expected {' or '.join(map(repr, get_args(Measure)))}")
        _check_flags(self, "empty", "first")

    def edit(self, request: EditRequest) -> Edit:
        source, target = request.source, request.target
        way = _Way(request, source.cost * 2 + target.cost, source.cost if self.first else 0)
        below = _emptied(source) if self.empty else source
        rising, spent = way.uni_inv(below, first=self.first)

        def net(u: Tensor, tau: float, rows: slice) -> Tensor:
            here = velocity(source, u, tau, rows)
            apart = velocity(target, u, tau, rows) - here
            return here + (self.omega + (1.0 + self.omega) * self._where(apart)) * apart

        found = way.down(field_of(net, source.cost + target.cost), rising.x)
        return finished(request, self, found, nfe=spent + found.nfe)

    def _where(self, apart: Tensor) -> Tensor:
        """How much the fields differ at each place, from 0 to 1, (B, 1, ...); 0 where it is the same everywhere."""
        mean = (apart.abs() if self.measure == "absolute" else apart).mean(1, keepdim=True)
        flat = mean.flatten(1)
        shape = [-1] + [1] * (mean.ndim - 1)
        low, high = flat.amin(1).view(shape), flat.amax(1).view(shape)
        return torch.where(high > low, (mean - low) / (high - low).clamp_min(torch.finfo(mean.dtype).tiny), 0.0)


@register
@dataclass(frozen=True)
class PMI(EditMethod):
    """Proximal-mean inversion, and a way back of which a part is drawn to its own mean velocity (mimic-CFG).

    Published for 12 steps at guidance 2, and 1 on the way up. Neither correction costs an evaluation.

    Args:
        proximity: The weight lambda of the distance from the mean velocity.
        dimension: n in the length sqrt(2 n + 3 sqrt(2 n)) dt of the correction upwards; 22 as in the authors' code, and
            0 for none.
        keep: How much of the velocity downwards that is not along its mean is kept, in [0, 1]; 1 for all.
    """

    proximity: float = 1.0
    dimension: float = 22.0
    keep: float = 0.94
    name: ClassVar[str] = "pmi"
    defaults: ClassVar[Mapping[str, Any]] = {"solver": "euler", "grid": "uniform"}
    refuses: ClassVar[Mapping[str, str]] = _REFUSES

    def __post_init__(self):
        for name in ("proximity", "dimension", "keep"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        if not 0.0 < self.proximity < math.inf:
            raise InputError(f"proximity: got {self.proximity}, expected a positive number")
        if not 0.0 <= self.dimension < math.inf:
            raise InputError(f"dimension: got {self.dimension}, expected a number that is not negative")
        if not 0.0 <= self.keep <= 1.0:
            raise InputError(f"keep: got {self.keep}, expected a number in [0, 1]")

    def edit(self, request: EditRequest) -> Edit:
        source, target = request.source, request.target
        way = _Way(request, source.cost + target.cost)
        length = math.sqrt(2.0 * self.dimension + 3.0 * math.sqrt(2.0 * self.dimension))
        held = Carried()

        def up(u: Tensor, tau: float, rows: slice) -> Tensor:
            found, width = velocity(source, u, tau, rows), way.width(tau)
            if tau == way.times[0]:
                held.set(rows, (width * found, found))
                return found
            total, before = held.get(rows)
            total = total + width * found
            mean = total / (tau + width - way.times[0])
            slope = (found - before).sign() + (found - mean) / self.proximity
            found = found - (length * width) * _unit(slope)
            held.set(rows, (total, found))
            return found

        def down(u: Tensor, tau: float, rows: slice) -> Tensor:
            found = velocity(target, u, tau, rows)
            width = way.width_down(tau)
            total = width * found if tau == way.times[-1] else held.get(rows) + width * found
            held.set(rows, total)
            mean = _unit(total)
            along = _inner(found, mean) * mean
            return along + self.keep * (found - along)

        rising = way.up(field_of(up, source.cost))
        held = Carried()
        found = way.down(field_of(down, target.cost), rising.x)
        return finished(request, self, found, nfe=rising.nfe + found.nfe)


@register
@dataclass(frozen=True)
class DNAEdit(EditMethod):
    """DNAEdit: align a noise with the source step by step, and move with the velocities that were found there.

    Equal conditions give x back exactly at eta = 1. It keeps two states for every step. It is published for 28 to 40
    steps without their first few (`strength` about 0.7 to 0.85), at guidance 2.5 to 3.5, and 1 on the way up.

    Args:
        eta: How much the target leads, in [0, 1]; the rest leads to a reference that begins at the source and takes the
            difference of the velocities alone.
    """

    eta: float = 0.8
    name: ClassVar[str] = "dna-edit"
    draws_noise: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"solver": "euler", "strength": 0.7, "grid": "uniform"}
    refuses: ClassVar[Mapping[str, str]] = {**_CARRYING, "noise": "its one noise is drawn before its first step"}

    def __post_init__(self):
        object.__setattr__(self, "eta", number("eta", self.eta))
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta: got {self.eta}, expected a number in [0, 1]")

    def edit(self, request: EditRequest) -> Edit:
        source, target, options = request.source, request.target, request.options
        way = _Way(request, source.cost + target.cost)
        held, steps = Carried(), len(way.times) - 1
        found_there: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        """Of each chunk and step: how far its point lies from the state, and the velocity there."""

        def up(z: Tensor, tau: float, rows: slice) -> Tensor:
            k, width, first = way.number[tau], way.width(tau), rows.start or 0
            if k == 0:
                samples = range(options.index + first, options.index + first + len(z))
                held.set(rows, noise.like(z, options.seed, noise.PERTURBATION, (1, 0, 4), samples))
            point = z + width / (1.0 - tau) * (held.get(rows) - z)
            found = velocity(source, point, way.times[k + 1], rows)
            held.set(rows, z + (1.0 - tau) * found)
            found_there[first, k + 1] = (point - (z + width * found), found)
            return found

        def down(u: Tensor, tau: float, rows: slice) -> Tensor:
            k, width = way.number[tau], way.width_down(tau)
            away, before = found_there[rows.start or 0, k]
            there = velocity(target, u + away, tau, rows)
            reference = (start[rows] if k == steps else held.get(rows)) - width * (there - before)
            held.set(rows, reference)
            return there if self.eta == 1.0 else self.eta * there + (1.0 - self.eta) / tau * (u - reference)

        start = request.x / FLOW.scale(source.schedule.at(way.grid.times[-1]))
        rising = way.up(field_of(up, source.cost))
        found = way.down(field_of(down, target.cost), rising.x)
        return finished(request, self, found, nfe=rising.nfe + found.nfe)


@register
@dataclass(frozen=True)
class ByFlowOpt(EditMethod):
    """FlowOpt: search the noise from which the target's flow ends near the source; stopping early leaves the edit.

    It begins with Uni-Inv, and takes the derivative of the whole way down as the identity, so that it costs an
    evaluation a step and no gradient. It is published for 15 steps (`strength` 0.8), at guidance 3.5, and 1 on the way
    up, with `rate` 0.01 on Stable Diffusion 3 and 0.0025 on FLUX. `steadyflow.steer` optimises other ends.

    Args:
        iterations: How many times the noise is moved; each makes a whole way down.
        rate: By what share of what is left.
    """

    iterations: int = 8
    rate: float = 0.01
    name: ClassVar[str] = "flow-opt"
    defaults: ClassVar[Mapping[str, Any]] = {"solver": "euler", "strength": 0.8, "grid": "uniform"}
    refuses: ClassVar[Mapping[str, str]] = _REFUSES

    def __post_init__(self):
        object.__setattr__(self, "iterations", whole("iterations", self.iterations, 0))
        object.__setattr__(self, "rate", number("rate", self.rate))
        if not 0.0 <= self.rate <= 2.0:
            raise InputError(f"rate: got {self.rate}, expected a number in [0, 2]")

    def edit(self, request: EditRequest) -> Edit:
        source, target, schedule = request.source, request.target, request.source.schedule
        way = _Way(request, source.cost + (self.iterations + 1) * target.cost, source.cost)
        rising, spent = way.uni_inv(source, first=True)
        top, bottom = (FLOW.scale(schedule.at(way.grid.times[k])) for k in (0, -1))

        def net(u: Tensor, tau: float, rows: slice) -> Tensor:
            return velocity(target, u, tau, rows)

        x, field = rising.x, field_of(net, target.cost)
        found = way.down(field, x)
        for _ in range(self.iterations):
            x = x - self.rate * (top / bottom) * (found.x - request.x)
            found = way.down(field, x)
        return finished(request, self, found, nfe=spent + (self.iterations + 1) * found.nfe)


def _emptied(model: Denoiser) -> Denoiser:
    """The model under its empty condition, without guidance."""
    return model if model.condition is None else model.with_condition(None).with_guidance(1.0)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B, 1, ...)."""
    return (a * b).flatten(1).sum(1).view([-1] + [1] * (a.ndim - 1))


def _unit(direction: Tensor) -> Tensor:
    """Each sample of length one; zeros stay, also in the derivative."""
    return direction / _inner(direction, direction).clamp_min(torch.finfo(direction.dtype).tiny).sqrt()


def _check_flags(method: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(method, name), bool):
            raise InputError(f"{name}: got {getattr(method, name)!r}, expected True or False")
