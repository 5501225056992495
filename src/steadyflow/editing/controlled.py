"""RF-Inversion (Rout et al. 2024, 2410.10792): both ways are steered, in flow coordinates.

Upwards  du/dtau = v + gamma ((y - u)/(1 - tau) - v)  towards a noise y,  downwards
du/dtau = v + eta ((u - x)/tau - v)  towards the source x, over a window of the way.
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .. import noise
from ..coordinates import FLOW
from ..errors import InputError
from ._fields import NO_INVERSION, check_counted, clock, field_of, run, solver_of, velocity
from .base import Edit, EditMethod, EditRequest, finished, register


@register
@dataclass(frozen=True)
class RFInversion(EditMethod):
    """RF-Inversion: up with a pull towards typical noise, down with a pull towards the source; not exact.

    Args:
        gamma: The strength of the pull upwards, in [0, 1]; 0 is the plain inversion.
        eta: That of the pull downwards.
        window: The share of the steps with the pull downwards, counted from the noisy end.
    """

    gamma: float = 0.5
    eta: float = 0.9
    window: tuple[float, float] = (0.0, 0.4)
    name: ClassVar[str] = "rf-inversion"
    draws_noise: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"solver": "euler", "grid": "uniform"}
    refuses: ClassVar[Mapping[str, str]] = {**NO_INVERSION, "noise": "its one noise is the goal of the way up"}

    def __post_init__(self):
        if not (0.0 <= self.gamma <= 1.0 and 0.0 <= self.eta <= 1.0):
            raise InputError(f"rf-inversion: gamma and eta lie in [0, 1], got {self.gamma} and {self.eta}")
        window = tuple(self.window) if isinstance(self.window, tuple | list) else ()
        if len(window) != 2 or not 0.0 <= window[0] <= window[1] <= 1.0:
            raise InputError(f"rf-inversion: got window {self.window!r}, expected two rising shares in [0, 1]")
        object.__setattr__(self, "window", window)

    def edit(self, request: EditRequest) -> Edit:
        options, source, target = request.options, request.source, request.target
        solver, schedule = solver_of(request), source.schedule
        check_counted(options)
        grid = options.falling(source)
        u = request.x / FLOW.scale(schedule.at(grid.times[-1]))
        samples = range(options.index, options.index + len(u))
        goal = noise.like(u, options.seed, noise.PERTURBATION, (1, 0, 1), samples)
        begin, end = self._window(clock(schedule, grid).times)

        def up(state: Tensor, tau: float, rows: slice) -> Tensor:
            slope = velocity(source, state, tau, rows)
            return slope + self.gamma * ((goal[rows] - state) / (1.0 - tau) - slope)

        def down(state: Tensor, tau: float, rows: slice) -> Tensor:
            slope = velocity(target, state, tau, rows)
            if end < tau <= begin:
                slope = slope + self.eta * ((state - u[rows]) / tau - slope)
            return slope

        scaled = FLOW.scale
        rising = run(field_of(up, source.cost), schedule, grid.reversed(), solver, options, request.x, scaled)
        found = run(field_of(down, target.cost), schedule, grid, solver, options, rising.x, scaled)
        return finished(request, self, found, nfe=rising.nfe + found.nfe)

    def _window(self, times: Sequence[float]) -> tuple[float, float]:
        """The times of flow coordinates between which the pull downwards acts, the later one not among them."""
        n = len(times) - 1
        ends = [(1.0 if k <= 0 else -1.0 if k > n else times[k]) for k in (_ceil(share * n) for share in self.window)]
        return ends[0], ends[1]


def _ceil(value: float) -> int:
    return -int(-value // 1)
