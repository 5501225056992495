"""The denoisers of k-diffusion as models: denoiser(x, sigma, **extra_args) returns the denoised x.

All of them are models of x = x0 + sigma eps, the path `VE`, with the prediction "sample"; what the network inside
predicts, and its own times, are the wrapper's. Wrappers over a table of noise levels know no levels outside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers.base import Condition, Denoiser
from ..errors import InputError
from ..grids import Grid
from ..schedules import VE
from ._adapters import Adapted, network_dtype, number
from .edm import karras_grid

_ROUNDING = 1e-4
"""How far a level may be outside a table: it is in float32."""


class KDiffusionNet(Adapted):
    """denoiser(x, sigma, **extra_args) as the network of a model.

    Args:
        denoiser: The denoiser.
        extra: The keyword of a condition that is no mapping.
        fixed: The `extra_args` of every call.
        bounds: The smallest and the largest level of its table.
    """

    def __init__(
        self, denoiser: Callable[..., Any], extra: str | None, fixed: Mapping[str, Any], bounds: tuple[float, float]
    ):
        super().__init__(denoiser, extra, fixed)
        self.bounds = bounds

    def forward(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        """Return the denoised x; sigma has shape (B,)."""
        low, high = self.bounds
        if math.isfinite(high) and sigma.device.type == "cpu":  # elsewhere it would wait for the device
            least, largest = (float(level) for level in sigma.aminmax())
            if least < low * (1.0 - _ROUNDING) or largest > high * (1.0 + _ROUNDING):
                raise InputError(
                    f"grid: the denoiser's table has noise levels from {low:g} to {high:g}, but is asked at "
                    f"{least if least < low else largest:g}; it would silently take the nearest"
                )
        return self.inner(x, sigma, **self.keywords(condition))


@dataclass(frozen=True, eq=False)
class KDiffusionModel(Denoiser):
    """A denoiser of k-diffusion as a model, with the noise levels that its samplers are given."""

    get_sigmas: Callable[[int], Tensor] | None = None
    """The levels that the denoiser lays over its table, if it has one."""

    def own_grid(self, steps: int, *, rho: float | None = None) -> Grid:
        """Return the noise levels that k-diffusion lays for a number of steps, to give as `grid`.

        Args:
            steps: The number of steps; the last one goes from the smallest level to 0.
            rho: That of `get_sigmas_karras`; None for the denoiser's own `get_sigmas` where it has a table, else 7.

        Raises:
            InputError: There is not one step.
        """
        if self.get_sigmas is None or rho is not None:
            return karras_grid(steps, self.schedule.t_min, self.schedule.t_max, 7.0 if rho is None else rho)
        if isinstance(steps, bool) or steps < 1:
            raise InputError(f"steps: got {steps}, expected a whole number of at least 1")
        return Grid(tuple(self.get_sigmas(steps).double().tolist()[:-1]), clean=True, firm=True)


def from_kdiffusion(
    denoiser: Callable[..., Any],
    extra_args: Mapping[str, Any] | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    extra: str | None = None,
    null: Condition = None,
    classes: int | None = None,
    dtype: torch.dtype | None = None,
) -> KDiffusionModel:
    """Create a model over a denoiser of k-diffusion.

    `Denoiser` and `VDenoiser` know every noise level; `CompVisDenoiser`, `OpenAIDenoiser` and the others over a table
    know those of `sigmas`, between which they interpolate their network's time, or take the nearest with `quantize`.
    Levels outside the table are refused. The way back, k-diffusion's interface over our solvers, is `sf.sample_steady`.

    Args:
        denoiser: Called as denoiser(x, sigma, **extra_args), x of shape (B, ...) and sigma (B,); returns the
            denoised x.
        extra_args: Keyword arguments of every call.
        shape: The shape of one sample, without the batch; needed to draw samples.
        sigma_min: The smallest level of a default grid; the table's, or the denoiser's own, else 0.002.
        sigma_max: The largest level of a default grid; the table's, or the denoiser's own, else 80.
        extra: The keyword under which a condition that is no mapping is passed, such as "cond" for CompVis' models; a
            mapping of tensors is passed as keywords by itself.
        null: The condition that stands for "none", for guidance.
        classes: The number of labels, if the condition is a label.
        dtype: The type in which the network computes; that of its first parameter by default.

    Returns:
        The model; its time is sigma.

    Raises:
        InputError: The levels are out of order, or outside the denoiser's table.
    """
    table = getattr(denoiser, "sigmas", None)
    low = number(getattr(denoiser, "sigma_min", 0.002), "sigma_min") if sigma_min is None else sigma_min
    high = number(getattr(denoiser, "sigma_max", 80.0), "sigma_max") if sigma_max is None else sigma_max
    if not 0.0 < low < high < math.inf:
        raise InputError(f"sigma_min, sigma_max: got {low} and {high}, expected 0 < sigma_min < sigma_max")
    bounds = (0.0, math.inf)
    if isinstance(table, Tensor):
        bounds = number(table.min(), "sigmas"), number(table.max(), "sigmas")
        if low < bounds[0] * (1.0 - _ROUNDING) or high > bounds[1] * (1.0 + _ROUNDING):
            raise InputError(
                f"sigma_min, sigma_max: got {low:g} and {high:g}, but the denoiser's table has levels from "
                f"{bounds[0]:g} to {bounds[1]:g}"
            )
    if null is not None and extra is None and not isinstance(null, Mapping):
        raise InputError("null: got one value, but not the keyword under which the denoiser takes it; give extra='...'")
    return KDiffusionModel(
        KDiffusionNet(denoiser, extra, extra_args or {}, bounds),
        VE(t_min=low, t_max=high),
        prediction="sample",
        shape=shape,
        null=null,
        classes=classes,
        dtype=network_dtype(denoiser) if dtype is None else dtype,
        name="k-diffusion",
        get_sigmas=getattr(denoiser, "get_sigmas", None),
    )
