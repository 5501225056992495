"""What a model of ComfyUI is sampled along: its path, and the grid that a list of sigmas is on it.

ComfyUI's samplers know two kinds of noisy latents: x0 + sigma eps, and (1 - sigma) x0 + sigma eps for flow models.
Which one a model has is asked of its own `noise_scaling`, not of the name of its class.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from steadyflow import VE, Grid, InputError, RectifiedFlow, Schedule, Solver, Tabulated
from steadyflow.solvers import Tuned

_SLACK = 1e-4
"""How far a level may lie beyond the model's own: they are in single precision, and some tables are rounded."""


@dataclass(frozen=True)
class Levels:
    """The noise levels of a model."""

    flow: bool
    """Whether noisy latents are (1 - sigma) x0 + sigma eps, and not x0 + sigma eps."""
    low: float
    """The smallest sigma that the model knows."""
    high: float
    """The largest."""
    table: tuple[float, ...]
    """All that it lists, rising."""
    shift: float
    """Of a flow model, how much more of its times lie at high noise."""

    @property
    def path(self) -> Schedule:
        """The path of the latents as ComfyUI has them, whose time is sigma."""
        return RectifiedFlow(t_min=self.low, t_max=1.0) if self.flow else VE(t_min=self.low, t_max=self.high)

    @property
    def clock(self) -> Schedule:
        """The path with the model's own times, over which grids are spaced."""
        if self.flow:
            own = RectifiedFlow(shift=self.shift)
            return RectifiedFlow(shift=self.shift, t_min=own.t_from_sigma(self.low), t_max=1.0)
        return _clock(self.table)

    def sigmas(self, grid: Grid) -> Tensor:
        """The SIGMAS of a grid on `clock`, shape (steps + 1,)."""
        clock = self.clock
        found = [clock.sigma(t) if self.flow else clock.ratio(t) for t in grid.times]
        return torch.tensor([*found, 0.0] if grid.clean else found, dtype=torch.float32)


def levels_of(model: Any) -> Levels:
    """The noise levels of a MODEL.

    Raises:
        InputError: Its latents are noised in a third way.
    """
    sampling = model.get_model_object("model_sampling")
    flow = _is_flow(sampling)
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    table = tuple(float(sigma) for sigma in sampling.sigmas)
    half = float(sampling.percent_to_sigma(0.5)) if flow else 0.5
    return Levels(flow, low, high, table, half / (1.0 - half))


def _is_flow(sampling: Any) -> bool:
    found = [_share(sampling, sigma, data) for sigma in (0.25, 0.75) for data in (1.0, 0.0)]
    for flow in (False, True):
        wanted = [(1.0 - s if flow else 1.0) if data else s for s in (0.25, 0.75) for data in (1.0, 0.0)]
        if all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(found, wanted, strict=True)):
            return flow
    kinds = ", ".join(kind.__name__ for kind in type(sampling).__mro__[:4])
    raise InputError(
        f"model: its latents are noised in a way of their own (model_sampling is a {kinds}); expected x0 + sigma noise,"
        " as of EPS, V_PREDICTION and EDM, or (1 - sigma) x0 + sigma noise, as of CONST"
    )


def _share(sampling: Any, sigma: float, data: float) -> float:
    """The factor of the data, or with data = 0 of the noise, in a noisy latent."""
    noise, latent = torch.full((1, 1, 1, 1), 1.0 - data), torch.full((1, 1, 1, 1), data)
    return float(sampling.noise_scaling(torch.tensor([sigma]), noise, latent))


@lru_cache(maxsize=16)
def _clock(table: tuple[float, ...]) -> Tabulated:
    return Tabulated(tuple(1.0 / (1.0 + sigma * sigma) for sigma in table))


def way_down(levels: Levels, sigmas: Tensor, solver: Solver[Any]) -> Grid:
    """The grid on `levels.path` of a way there and back between the model's smallest level and the first of the sigmas.

    A last 0, at which no prediction of the data says what the noise is, stands for the smallest level.

    Args:
        levels: Those of the model.
        sigmas: Falling, shape (steps + 1,).
        solver: That of the run; one that was fitted with its own levels has these as they are.

    Raises:
        InputError: They do not fall, or leave the model's range.
    """
    given = cast("list[float]", cast(Any, sigmas.double()).tolist())
    found = [level for level, _ in itertools.groupby(given)]
    if len(found) < 2 or any(a < b for a, b in itertools.pairwise(found)):
        raise InputError(
            f"sigmas: got {_shown(given)}, expected at least two levels that fall; the way up takes them in turn"
        )
    low, high = levels.low, levels.path.t_max
    if found[0] > high * (1.0 + _SLACK):
        raise InputError(f"sigmas: begin at {found[0]:g}, but those of the model end at {high:g}")
    if isinstance(solver, Tuned):
        return Grid(tuple(found))
    if found[-1] < low * (1.0 - _SLACK):
        found = [level for level in found if level > low * (1.0 + _SLACK)] + [low]
        if len(found) < 2:
            raise InputError(f"sigmas: got {_shown(given)}, all of them below the model's smallest level, {low:g}")
    return Grid((min(found[0], high), *found[1:]))


def _shown(levels: list[float]) -> str:
    shown = ", ".join(f"{level:g}" for level in levels[:6])
    return f"[{shown}{', ...' if len(levels) > 6 else ''}]"
