"""EDM's preconditioned networks as models (Karras et al. 2022, 2206.00364).

A preconditioned network is the denoiser D(x; sigma) of the path x = x0 + sigma eps itself,

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)                     (eq. 7)

so that it is a model of `VE`, whose time is sigma, with the prediction "sample".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..schedules import VE
from ._adapters import Adapted, network_dtype, number, parameters_of


class EDMNet(Adapted):
    """net(x, sigma, class_labels) -> D as the network of a model, whose condition is the index of a class.

    Args:
        net: The preconditioned network.
        label_dim: The number of classes; the index -1 stands for none, a row of zeros.
        fixed: Keyword arguments of every call.
    """

    def __init__(self, net: Callable[..., Any], label_dim: int, fixed: dict[str, Any]):
        super().__init__(net, fixed=fixed)
        self.label_dim = label_dim
        if not label_dim:
            self.classes = 0  # a condition is refused by the model

    def forward(self, x: Tensor, sigma: Tensor, label: Any = None) -> Tensor:
        """Return D(x; sigma), of x's shape; sigma has shape (B,)."""
        labels = None
        if self.label_dim:
            if label is None:
                label = torch.full((len(x),), -1, device=x.device)
            if not isinstance(label, Tensor):
                raise InputError(f"condition: got {type(label).__name__}, expected a class, or one per sample")
            labels = functional.one_hot(label.long() + 1, self.label_dim + 1)[:, 1:].to(x.dtype)
        return self.inner(x, sigma, labels, **self.fixed)


@dataclass(frozen=True, eq=False)
class EDMModel(Denoiser):
    """A preconditioned network as a model, with the noise levels that the paper's sampler visits."""

    round_sigma: Callable[[Tensor], Tensor] | None = None
    """How the network rounds noise levels to those that it was trained on, if it does."""

    def own_grid(self, steps: int, *, rho: float = 7.0) -> Grid:
        """Return the noise levels of the paper's sampler (eq. 5), rounded as the network rounds, to give as `grid`.

        With `sf.Heun(coordinates="noise")` this is its deterministic sampler (algorithm 1), evaluation by evaluation.

        Args:
            steps: The number of steps; the last one goes from the smallest level to 0.
            rho: How much the levels crowd at small noise.

        Raises:
            InputError: There is not one step, or rounding makes two levels one.
        """
        return karras_grid(steps, self.schedule.t_min, self.schedule.t_max, rho, self.round_sigma)


def karras_grid(
    steps: int, low: float, high: float, rho: float = 7.0, rounding: Callable[[Tensor], Tensor] | None = None
) -> Grid:
    """Return the grid of noise levels (high^(1/rho) + i / (steps - 1) (low^(1/rho) - high^(1/rho)))^rho.

    Args:
        steps: The number of steps and of levels; the clean estimate is the last step.
        low: The smallest level.
        high: The largest level.
        rho: How much the levels crowd at small noise.
        rounding: Called with the levels, shape (steps,), float64.

    Raises:
        InputError: There is not one step, or rounding makes two levels one.
    """
    if isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps: got {steps}, expected a whole number of at least 1")
    share = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    levels = (high ** (1.0 / rho) + share * (low ** (1.0 / rho) - high ** (1.0 / rho))) ** rho
    levels[0] = high
    if steps > 1:
        levels[-1] = low
    if rounding is not None:
        levels = torch.as_tensor(rounding(levels), dtype=torch.float64)
    if not bool((levels.diff() < 0).all()):
        raise InputError(
            f"steps: got {steps}, but the network knows fewer noise levels in this range; take fewer steps"
        )
    return Grid(tuple(levels.tolist()), clean=True, firm=True)


def from_edm(
    net: Callable[..., Any],
    *,
    labels: int | Tensor | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    shape: tuple[int, ...] | None = None,
    force_fp32: bool = False,
    dtype: torch.dtype | None = None,
) -> EDMModel:
    """Create a model over a preconditioned network of EDM.

    The networks of NVlabs' edm and edm2, and any other that is called as they are, fit. Noise levels are kept within
    those that the network names as its `sigma_min` and `sigma_max`, and are rounded by its `round_sigma`, as the
    paper's sampler does.

    Args:
        net: Called as net(x, sigma, class_labels), x of shape (B, C, H, W), sigma (B,) and class_labels (B, label_dim)
            one-hot, zeros for no class, or None for a network without classes; it returns D(x; sigma). `label_dim`,
            `img_channels` and `img_resolution` are read from it where it has them.
        labels: The class, or one per sample; `with_condition` sets another. -1 is no class, from which guidance
            starts; networks that were trained with label dropout know it.
        sigma_min: The smallest noise level of a default grid.
        sigma_max: The largest noise level of a default grid, and of the noise that samples start from.
        shape: The shape of one sample; by default (img_channels, img_resolution, img_resolution) where the network has
            them.
        force_fp32: Passed on to the network, which then computes in float32 whatever its own setting is.
        dtype: The type of its input; that of its first parameter by default.

    Returns:
        The model; its time is sigma.

    Raises:
        InputError: The network takes no class_labels although it has classes, labels are given to one without, or the
            noise levels are out of order or of its range.
    """
    label_dim = int(number(getattr(net, "label_dim", 0) or 0, "label_dim"))
    if force_fp32 and not {"force_fp32", "model_kwargs", "kwargs"} & set(parameters_of(net)):
        raise InputError("force_fp32: the network takes no such argument")
    low = max(sigma_min, number(getattr(net, "sigma_min", 0.0), "sigma_min"))
    high = min(sigma_max, number(getattr(net, "sigma_max", math.inf), "sigma_max"))
    if not 0.0 < low < high < math.inf:
        raise InputError(f"sigma_min, sigma_max: got {sigma_min} and {sigma_max}, of which {low}..{high} is left")
    rounding = getattr(net, "round_sigma", None)
    if rounding is not None:
        low, high = (
            number(torch.as_tensor(rounding(torch.tensor(level, dtype=torch.float64))), "round_sigma")
            for level in (low, high)
        )
    if shape is None:
        channels, side = getattr(net, "img_channels", None), getattr(net, "img_resolution", None)
        if channels is not None and side is not None:
            sides = (side, side) if isinstance(side, int) else tuple(side)
            shape = (channels, *sides)
    model = EDMModel(
        EDMNet(net, label_dim, {"force_fp32": True} if force_fp32 else {}),
        VE(t_min=low, t_max=high),
        prediction="sample",
        shape=shape,
        null=-1 if label_dim else None,
        classes=label_dim or None,
        dtype=network_dtype(net) if dtype is None else dtype,
        name="EDM",
        round_sigma=rounding,
    )
    return model if labels is None else model.with_condition(labels)
