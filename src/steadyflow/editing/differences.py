"""Editing along the difference of the target's and the source's fields, without an inversion.

In flow coordinates, at time t = tau, with the source x, the edit z, noise n and v = E[n - x0 | .]:

    u_s = (1 - t) x + t n,     u_t = u_s + z - x

    FlowEdit    dz/dt = v(u_t, target) - v(u_s, source)
                Kulikov et al. 2024, 2412.08629
    FlowAlign   z <- z + dt (v* - v_s) + zeta ((u_s - t v_s) - (u_t - t v*)),   v_s = v(u_s, source),
                v* = v(u_t, source) + w (v(u_t, target) - v(u_t, source))
                Kim et al. 2025, 2505.23145
    DVRF        z <- z - alpha_i (v(u_t + eta_i t (z - x) - t (z - x), target) - v(u_s, source) + (1 - eta_i) (z - x))
                Beaudouin et al. 2025, 2509.05342

DVRF with eta = 1 and alpha_i the steps of the grid is FlowEdit by Euler's method, and with eta = 0 it is the delta
denoising score (Hertz et al. 2023, 2304.07090) with weight 1 / (1 - t). FlowAlign with zeta = 0 is FlowEdit whose
guidance starts from the source.
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import noise
from .._internal.given import number, whole
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..tasks._options import Resolved
from ._fields import NO_INVERSION, check_counted, check_euler, clock, field_of, run, solver_of, velocity, within
from .base import Edit, EditMethod, EditRequest, finished, register

_REFUSES = {
    **{name: why for name, why in NO_INVERSION.items() if name != "mask"},
    "noise": "it draws its own for every evaluation",
}
_Change = Callable[[Tensor, Tensor, Tensor, float, slice], Tensor]
"""Of (z, x, n, tau, rows): the field that z follows."""


def _along(
    request: EditRequest,
    method: EditMethod,
    change: _Change,
    *,
    options: Resolved,
    average: int,
    models: tuple[Denoiser, Denoiser],
) -> Edit:
    """Follow a field of the edit with fresh noise at every evaluation; where a mask is 0 nothing moves.

    Args:
        request: What was asked for.
        method: The method.
        change: The field.
        options: Those of the request, as `_settled`.
        average: How many noises it is averaged over.
        models: Those that are evaluated for each noise.

    Returns:
        The edit.
    """
    x, mask, schedule = request.x, request.mask, request.source.schedule

    def net(z: Tensor, tau: float, rows: slice) -> Tensor:
        mine = x[rows]
        first = options.index + (rows.start or 0)
        (address,) = struct.unpack("<Q", struct.pack("<d", tau))
        total = torch.zeros_like(mine)
        for repeat in range(average):
            samples = range(first, first + len(mine))
            drawn = noise.like(mine, options.seed, noise.PERTURBATION, (address, repeat, 3), samples)
            total = total + change(z, mine, drawn, tau, rows)
        total = total / average
        if mask is None:
            return total
        weights = mask.to(total)
        each = weights.ndim == x.ndim and len(weights) == len(x)
        return total * (weights[rows] if each else weights)

    model = field_of(net, average * sum(one.cost for one in models))
    found = run(model, schedule, options.falling(request.source), options.method, options, x)
    return finished(request, method, found, nfe=found.nfe)


def _settled(request: EditRequest, average: int) -> Resolved:
    """The options, with the evaluations of each field that are left for each noise.

    Raises:
        InputError: The solver does not follow a field of flow coordinates.
    """
    solver_of(request)
    return within(request.options, request.options.budget // average)


@register
@dataclass(frozen=True)
class FlowEdit(EditMethod):
    """FlowEdit: move samples along the difference of the target's and the source's fields.

    Nothing is stored. The same conditions and guidance give x back exactly. `nfe` counts the evaluations of each of the
    two fields, whose sum is what the edit costs, as in a method that goes there and back. A mask holds everything
    outside it exactly.

    Args:
        average: How many noises are averaged per evaluation of the difference.
    """

    average: int = 1
    name: ClassVar[str] = "flow-edit"
    draws_noise: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"solver": "euler", "strength": 0.66, "grid": "uniform"}
    refuses: ClassVar[Mapping[str, str]] = _REFUSES

    def __post_init__(self):
        object.__setattr__(self, "average", whole("average", self.average, 1))

    def edit(self, request: EditRequest) -> Edit:
        source, target, options = request.source, request.target, _settled(request, self.average)

        def change(z: Tensor, x: Tensor, drawn: Tensor, tau: float, rows: slice) -> Tensor:
            noisy = (1.0 - tau) * x + tau * drawn
            return velocity(target, noisy + (z - x), tau, rows) - velocity(source, noisy, tau, rows)

        return _along(request, self, change, options=options, average=self.average, models=(source, target))


@register
@dataclass(frozen=True)
class FlowAlign(EditMethod):
    """FlowAlign: FlowEdit whose guidance starts from the source, with a pull that keeps the paths together.

    The published settings are 33 steps over the whole way, guidance 7.5 to 13.5, and none for the source. With equal
    conditions x comes back at any guidance. `nfe` is counted, and a mask honoured, as by `FlowEdit`.

    Args:
        zeta: The pull of a step towards equal estimates of the data; 0.01 as published. With other solvers than Euler's
            it acts at the rate zeta / |dt|.
        average: How many noises are averaged per evaluation.
    """

    zeta: float = 0.01
    average: int = 1
    name: ClassVar[str] = "flow-align"
    draws_noise: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"solver": "euler", "grid": "uniform"}
    refuses: ClassVar[Mapping[str, str]] = _REFUSES

    def __post_init__(self):
        object.__setattr__(self, "average", whole("average", self.average, 1))
        object.__setattr__(self, "zeta", number("zeta", self.zeta))
        if not 0.0 <= self.zeta < 1.0:
            raise InputError(f"zeta: got {self.zeta}, expected a number in [0, 1)")

    def edit(self, request: EditRequest) -> Edit:
        options = _settled(request, self.average)
        check_counted(options)
        source, target = request.source, request.target
        if source.condition is not None and target.guides:
            target = target.with_negative(source.condition)
        widths = _widths(clock(source.schedule, options.falling(source)).times)

        def change(z: Tensor, x: Tensor, drawn: Tensor, tau: float, rows: slice) -> Tensor:
            noisy = (1.0 - tau) * x + tau * drawn
            moved = noisy + (z - x)
            there, here = velocity(target, moved, tau, rows), velocity(source, noisy, tau, rows)
            apart = (moved - noisy) - tau * (there - here)  # of the two estimates of the data
            return there - here + (self.zeta / widths(tau)) * apart

        return _along(request, self, change, options=options, average=self.average, models=(source, target))


def _widths(times: Sequence[float]) -> Callable[[float], float]:
    """The width of the step of a falling grid that begins at a time, or in which it lies."""
    rising = times[::-1]

    def width(tau: float) -> float:
        k = min(max(bisect.bisect_left(rising, tau), 1), len(rising) - 1)
        return rising[k] - rising[k - 1]

    return width


@register
@dataclass(frozen=True)
class DVRF(EditMethod):
    """DVRF, delta velocity rectified flow: the edit is optimised along the way down, one step of descent a time.

    The published settings are 50 steps over the whole way, guidance 16.5 for the target and 6 for the source. `nfe` is
    counted, and a mask honoured, as by `FlowEdit`.

    Args:
        eta: How far the target's point is moved along with the edit; 1 as published.
        progressive: Whether eta grows with the steps, eta_i = eta i / T, as published; else it is constant.
        rate: The length of the steps: "published", a schedule of the authors' code, made for times with the shift of
            Stable Diffusion 3 and in proportion to the last step of the grid; "grid", the steps of the grid, as in
            FlowEdit; or a number, the same for all.
        average: How many noises are averaged per evaluation.
    """

    eta: float = 1.0
    progressive: bool = True
    rate: str | float = "grid"
    average: int = 1
    name: ClassVar[str] = "dvrf"
    draws_noise: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"solver": "euler", "grid": "uniform"}
    refuses: ClassVar[Mapping[str, str]] = _REFUSES

    def __post_init__(self):
        object.__setattr__(self, "average", whole("average", self.average, 1))
        object.__setattr__(self, "eta", number("eta", self.eta))
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta: got {self.eta}, expected a number in [0, 1]")
        if not isinstance(self.progressive, bool):
            raise InputError(f"progressive: got {self.progressive!r}, expected True or False")
        if isinstance(self.rate, str):
            if self.rate not in ("published", "grid"):
                raise InputError(f"rate: got {self.rate!r}, expected 'published', 'grid' or a positive number")
        else:
            object.__setattr__(self, "rate", number("rate", self.rate))
            if not 0.0 < float(self.rate) < torch.inf:
                raise InputError(f"rate: got {self.rate!r}, expected 'published', 'grid' or a positive number")

    def edit(self, request: EditRequest) -> Edit:
        check_euler(request, "this method takes steps of descent, one evaluation each")
        source, target, options = request.source, request.target, _settled(request, self.average)
        times = clock(source.schedule, options.falling(source)).times
        rates = dict(zip(times, self.rates(times), strict=False))
        number_of = {tau: k for k, tau in enumerate(times)}
        widths, steps = _widths(times), len(times) - 1

        def change(z: Tensor, x: Tensor, drawn: Tensor, tau: float, rows: slice) -> Tensor:
            eta = self.eta * (number_of[tau] / steps if self.progressive else 1.0)
            noisy = (1.0 - tau) * x + tau * drawn
            moved = noisy + (1.0 - tau + eta * tau) * (z - x)
            slope = velocity(target, moved, tau, rows) - velocity(source, noisy, tau, rows)
            return (rates[tau] / widths(tau)) * (slope + (1.0 - eta) * (z - x))

        return _along(request, self, change, options=options, average=self.average, models=(source, target))

    def rates(self, times: Sequence[float]) -> list[float]:
        """The length of each step.

        Args:
            times: Falling times of flow coordinates, one more than there are steps.
        """
        steps = len(times) - 1
        if self.rate == "grid":
            return [before - after for before, after in itertools.pairwise(times)]
        if not isinstance(self.rate, str):
            return [float(self.rate)] * steps
        if steps < 2:
            raise InputError("rate: the published steps follow the last two times of the grid; take two steps or more")
        last = (times[-3] - times[-2]) / 1.6
        high, low, length = last / 1.6, last / 4.0, steps + 28

        def hump(k: int) -> float:
            at = k / (length - 1)
            return (high - low) * at**9 * (1.0 - at) ** 7 / ((9 / 16) ** 9 * (7 / 16) ** 7) + low * at

        return [2.2 * hump(k) for k in range(steps)]
