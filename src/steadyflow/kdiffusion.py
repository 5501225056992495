"""A sampler with k-diffusion's signature over every solver, for ComfyUI, A1111 and other programs that use it."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ._integrate import Correction, StepInfo, integrate
from .denoisers.base import Denoiser
from .errors import InputError
from .grids import Grid
from .noise import Brownian, NoiseSource
from .schedules import VE, RectifiedFlow, Schedule
from .solvers import registry
from .solvers.base import Solver
from .solvers.tuned import Tuned

NoiseSampler = Callable[[Any, Any], Tensor]
"""k-diffusion's: called as sampler(sigma, sigma_next), returns standard normal noise of the samples' shape."""


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
    seed: int | None = None,
    noise_sampler: NoiseSampler | None = None,
    corrections: Sequence[Correction] = (),
    **options: Any,
) -> Tensor:
    """Sample with k-diffusion's interface, over any registered solver; rising sigmas invert.

    Args:
        model: Called as model(x, sigma, **extra_args), with sigma of shape (B,); returns the denoised samples.
        x: The start, noise of the first sigma; shape (B, ...).
        sigmas: Falling, with or without a last 0, or rising from a small one. Repeated ones are one; with fewer than
            two there is no step to make, and x is returned.
        extra_args: Keyword arguments of the model. A "seed" in them, as ComfyUI passes it, seeds the noise as well.
        callback: Called after each step with {"x", "i", "sigma", "sigma_hat", "denoised"}: "x" is the state at "sigma",
            the i-th of `sigmas`, from which the step began; "denoised" is what the model returned first in the step.
        disable: Whether to show no progress bar; by default one appears at a terminal where the work takes long.
        solver: A solver or its name in `steadyflow.solvers`. A tuned one runs over its own noise levels alone,
            `solver.sigmas(calls)`, or `solver.sigmas(calls, flow=True)` where the sigmas are those of a flow.
        schedule: The path whose times the sigmas are. By default the flow's if the model says that it is one (ComfyUI's
            model type CONST), else that of x0 + sigma eps, which EPS, V_PREDICTION and EDM share; give
            `RectifiedFlow()` for flow models of other programs.
        seed: Of the noise of stochastic solvers, which is addressed by seed, sample and first sigma, so that a second
            pass with the same seed has other noise; that of `extra_args` by default, and fresh without one.
        noise_sampler: What draws the noise instead, for solvers that draw once a step.
        corrections: Called after every step, as in `steadyflow.sample`.
        **options: The options of a solver that is given by name.

    Returns:
        The samples at the last sigma, of x's shape and type.

    Raises:
        InputError: The sigmas neither fall nor rise, or an option does not fit.
        NotInvertibleError: The sigmas rise and the solver has no inverse.
    """
    arguments = extra_args or {}
    if seed is not None and noise_sampler is not None:
        raise InputError("noise_sampler: it draws the noise itself; give no seed")
    method = registry.get(solver, **options)
    try:
        levels = [float(s) for s in (sigmas.tolist() if isinstance(sigmas, Tensor) else sigmas)]
    except (TypeError, ValueError) as error:
        raise InputError(f"sigmas: got {sigmas!r}, expected a list of numbers") from error
    kept = [k for k, s in enumerate(levels) if k == 0 or s != levels[k - 1]]
    if len(kept) < 2:
        return x

    firsts: list[Tensor] = []

    def net(state: Tensor, sigma: Tensor) -> Tensor:
        denoised = model(state, sigma, **arguments)
        if callback is not None and not firsts:
            firsts.append(denoised)
        return denoised

    path = schedule or (RectifiedFlow() if _is_flow(model) else VE())
    denoiser = Denoiser(net, path, prediction="sample", dtype=x.dtype, name="k-diffusion")
    start = x.float() if x.dtype.itemsize < 4 else x
    grid = Grid.from_timesteps(levels[k] for k in kept)
    if isinstance(method, Tuned):
        _check_own(method, path, grid)
    drawn = None if noise_sampler is None else _Drawn(noise_sampler, start, grid.times)

    def report(info: StepInfo) -> None:
        if drawn is not None:
            drawn.step = info.done
        if callback is not None:
            t = info.step.t0
            before, denoised = info.solver.output(info.before), firsts.pop() if firsts else info.denoised
            callback({"x": before, "i": kept[info.done - 1], "sigma": t, "sigma_hat": t, "denoised": denoised})

    noise: NoiseSource | None = drawn
    if noise is None and method.properties.stochastic:
        noise = Brownian.of(start, _address(arguments.get("seed") if seed is None else seed, levels[0]))
    run = integrate(
        denoiser,
        start,
        grid,
        method,
        noise=noise,
        corrections=corrections,
        callback=None if callback is None and drawn is None else report,
        progress=None if disable is None else not disable,
    )
    return run.x.to(x.dtype)


def _check_own(solver: Tuned, path: Schedule, grid: Grid) -> None:
    """Refuse noise levels that are not a tuned solver's own, which may be stored in single precision."""
    if grid.rising:
        solver.check_invertible()
    try:
        solver.recognised(path, grid)
    except InputError as error:
        calls = ", ".join(map(str, solver.budgets))
        flow = ", flow=True" if isinstance(path, RectifiedFlow) else ""
        raise InputError(
            f"sigmas: got {len(grid.times)} levels from {grid.times[0]:.6g} to {grid.times[-1]:.6g}, but solver "
            f"'tuned' runs over its own alone: pass solver.sigmas(calls{flow}), where calls is one of {calls}"
        ) from error


def _address(seed: Any, first: float) -> int:
    """The seed of a run's noise: another for every first sigma; without a seed, from torch's own random state."""
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise InputError(f"seed: got {seed!r}, expected a whole number")
    seed = operator.index(seed)
    return int.from_bytes(hashlib.sha256(f"{seed} {first!r}".encode()).digest()[:8], "little")


def _is_flow(model: Any) -> bool:
    """Whether a wrapped model of ComfyUI is a flow model (type CONST)."""
    for _ in range(4):
        patcher = getattr(model, "model_patcher", None)
        sampling = getattr(model, "model_sampling", None)
        if sampling is None and hasattr(patcher, "get_model_object"):
            sampling = cast(Any, patcher).get_model_object("model_sampling")
        if sampling is not None:
            return any(kind.__name__ == "CONST" for kind in type(sampling).__mro__)
        model = getattr(model, "inner_model", None)
        if model is None:
            return False
    return False


class _Drawn(NoiseSource):
    """Noise from a sampler of k-diffusion's kind, which is told the sigmas of the step."""

    def __init__(self, sampler: NoiseSampler, x: Tensor, sigmas: Sequence[float]):
        super().__init__(0, range(len(x)), x.shape[1:], dtype=x.dtype, device=x.device)
        self._sampler, self._sigmas, self._drew = sampler, sigmas, -1
        self.step = 0
        """The step that is being made."""

    def unit(self, a: float, b: float) -> Tensor:
        if self._drew == self.step:
            raise InputError("noise_sampler: this solver draws several times a step; give it a seed instead")
        self._drew = self.step
        ends = self._sigmas[self.step : self.step + 2]
        drawn = self._sampler(*(torch.tensor(s, device=self.device) for s in ends))
        if not isinstance(cast(object, drawn), Tensor):
            raise InputError(f"noise_sampler: returned {type(drawn).__name__}, expected a tensor")
        if drawn.shape != (len(self.samples), *self.shape):
            shape = (len(self.samples), *self.shape)
            raise InputError(f"noise_sampler: returned shape {tuple(drawn.shape)}, expected {shape}")
        return drawn.to(dtype=self.dtype, device=self.device)

    def increment(self, a: float, b: float) -> Tensor:
        return self.unit(a, b) * math.sqrt(abs(b - a))

    def area(self, a: float, b: float) -> Tensor:
        raise InputError("noise_sampler: this solver needs more of the noise than a sampler draws; give it a seed")
