"""k-diffusion's signature over every solver: for ComfyUI, A1111 and others that hold a denoiser and its sigmas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ._integrate import StepInfo, integrate
from .denoisers.base import Denoiser
from .grids import Grid
from .noise import SOURCES
from .schedules import VE, Schedule
from .solvers import registry
from .solvers.base import Solver


def sample_steady(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    solver: str | Solver[Any] = "ees25",
    schedule: Schedule | None = None,
    seed: int = 0,
    corrections: Sequence[Any] = (),
    **options: Any,
) -> Tensor:
    """Sample with k-diffusion's interface, over any registered solver; rising sigmas invert.

    model: model(x, sigma, **extra_args) -> denoised, sigma of shape (B,); x: noise of the first sigma, (B, ...).
    sigmas: falling, with or without a last 0, or rising from a small one. callback: told {"x", "i", "sigma",
        "sigma_hat", "denoised"} after each step, "denoised" as the step's own estimate of the clean sample.
    schedule: the path whose times the sigmas are; `VE()` by default, `RectifiedFlow()` for flow models.
    disable: no progress bar. solver, options: of `steadyflow.solvers`. seed: of stochastic solvers' noise, by sample.

    Raises `InputError` for sigmas that neither fall nor rise, `NotInvertibleError` for rising ones and a solver that
    has no inverse.
    """
    arguments = extra_args or {}

    def net(state: Tensor, sigma: Tensor) -> Tensor:
        return model(state, sigma, **arguments)

    path, levels = schedule or VE(), [float(s) for s in sigmas]
    denoiser = Denoiser(net, path, prediction="sample", dtype=x.dtype, name="k-diffusion")
    method = registry.get(solver, **options)
    start = x.float() if x.dtype.itemsize < 4 else x
    noise = SOURCES["brownian"].of(start, seed)

    def tell(info: StepInfo) -> None:
        assert callback is not None
        t = info.step.t0
        callback({"x": info.x, "i": info.done - 1, "sigma": t, "sigma_hat": t, "denoised": info.denoised})

    run = integrate(
        denoiser,
        start,
        Grid(tuple(levels)),
        method,
        noise=noise,
        corrections=corrections,
        callback=None if callback is None else tell,
        progress=None if disable is None else not disable,
    )
    return run.x.to(x.dtype)
