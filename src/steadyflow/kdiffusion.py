"""A sampler with k-diffusion's signature over every solver, for ComfyUI, A1111 and other programs that use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ._integrate import Correction, StepInfo, integrate
from .denoisers.base import Denoiser
from .grids import Grid
from .noise import Brownian
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
    corrections: Sequence[Correction] = (),
    **options: Any,
) -> Tensor:
    """Sample with k-diffusion's interface, over any registered solver; rising sigmas invert.

    Args:
        model: Called as model(x, sigma, **extra_args), with sigma of shape (B,); returns the denoised samples.
        x: The start, noise of the first sigma; shape (B, ...).
        sigmas: Falling, with or without a last 0, or rising from a small one.
        extra_args: Keyword arguments of the model.
        callback: Called after each step with {"x", "i", "sigma", "sigma_hat", "denoised"}, where "denoised" is the
            step's own estimate of the clean samples.
        disable: Whether to show no progress bar; by default one appears at a terminal where the work takes long.
        solver: A solver or its name in `steadyflow.solvers`.
        schedule: The path whose times the sigmas are; `VE()` by default, `RectifiedFlow()` for flow models.
        seed: Of the noise of stochastic solvers, which is addressed by sample.
        corrections: Called after every step, as in `steadyflow.sample`.
        **options: The options of a solver that is given by name.

    Returns:
        The samples at the last sigma, of x's shape and type.

    Raises:
        InputError: The sigmas neither fall nor rise.
        NotInvertibleError: The sigmas rise and the solver has no inverse.
    """
    arguments = extra_args or {}

    def net(state: Tensor, sigma: Tensor) -> Tensor:
        return model(state, sigma, **arguments)

    denoiser = Denoiser(net, schedule or VE(), prediction="sample", dtype=x.dtype, name="k-diffusion")
    method = registry.get(solver, **options)
    start = x.float() if x.dtype.itemsize < 4 else x

    def report(info: StepInfo) -> None:
        assert callback is not None
        t = info.step.t0
        callback({"x": info.x, "i": info.done - 1, "sigma": t, "sigma_hat": t, "denoised": info.denoised})

    run = integrate(
        denoiser,
        start,
        Grid.from_timesteps(float(s) for s in sigmas),
        method,
        noise=Brownian.of(start, seed),
        corrections=corrections,
        callback=None if callback is None else report,
        progress=None if disable is None else not disable,
    )
    return run.x.to(x.dtype)
