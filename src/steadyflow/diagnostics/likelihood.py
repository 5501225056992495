"""The log-likelihood of samples under a model, along its probability-flow ODE.

In the flow coordinates u = x / W with time tau and slope s = eps_hat - x0_hat, densities obey (Chen et al. 2018)

    d ln p(u) / dtau = -div_u s,   so   ln p_gen(x) = ln p_prior(z) + integral of W div_x s dtau + n ln(W1 / W0)

over the way up, with W0 and W1 the scales at its two ends. The divergence is exact (one derivative per dimension) or
Hutchinson's estimate v . (ds/dx) v with random signs v, drawn once per sample (Grathwohl et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import grids
from .._integrate import StepLoop, check_state
from .._internal.autograd import no_grad_unless
from .._internal.tensors import basis_vectors, dot, finite
from ..coordinates import FLOW
from ..denoisers.base import Denoiser
from ..errors import InputError, SteadyflowError
from ..grids import Grid
from ..jacobians.divergences import along, signs
from ..jacobians.maps import pullback
from ..prediction import Prediction
from ..schedules import Level
from ..solvers import registry
from ..solvers.runge_kutta import RungeKutta

EXACT_LIMIT = 1024
"""The largest number of dimensions for which the exact divergence is computed."""


@dataclass(frozen=True)
class Likelihood:
    """Log densities of samples under a model, in nats, each of shape (B,)."""

    value: Tensor
    """ln p_gen(x)."""
    prior: Tensor
    """ln p_prior(z) of the latent."""
    latent: Tensor
    """The latent z, shape (B, ...)."""
    error: Tensor
    """The standard error of Hutchinson's estimate; 0 where the divergence is exact, NaN for a single probe."""
    nfe: int
    """Model evaluations per sample, without those of the divergence."""

    def bits_per_dimension(self, bin_width: float = 2.0 / 255.0) -> Tensor:
        """The bits per dimension, -log2(p_gen(x) bin_width^n) / n.

        The density is taken as constant over a pixel's quantisation bin; x is not dequantised.

        Args:
            bin_width: The width of a bin on the model's scale; 2/255 for 8-bit images on [-1, 1].

        Returns:
            The bits of each sample, shape (B,).
        """
        n = self.latent[0].numel()
        return -self.value / (n * math.log(2.0)) - math.log2(bin_width)


@no_grad_unless("x")
def log_likelihood(
    model: Denoiser,
    x: Tensor,
    *,
    steps: int = 64,
    solver: str | RungeKutta = "rk4",
    grid: str | Grid = "quadratic",
    probes: int | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> Likelihood:
    """Compute ln p(x) under a model, in nats, by solving its ODE from data to noise.

    Args:
        model: The model of the data.
        x: The samples, shape (B, ...), float64 for best accuracy. They are taken as the state at the grid's clean end:
            the density is that of generated samples at that level, which differs from the data's by the noise of
            sigma(t_min).
        steps: The number of steps of a named grid.
        solver: A Runge-Kutta method, or its name; its weights integrate the divergence too.
        grid: The times from noise to data, or the name of a grid.
        probes: The number of random sign vectors for Hutchinson's estimate; None for the exact divergence, with n
            derivatives per evaluation.
        prior: The log density of latents, (B, ...) -> (B,); by default that of N(0, sigma(t_max)^2), or of the start
            that the model's own `moments` make.
        seed: Of the sign vectors.

    Raises:
        InputError: x does not fit the model, the solver is not a Runge-Kutta method, or there are more than
            `EXACT_LIMIT` dimensions and no probes.
        SteadyflowError: The solve diverged.
    """
    check_state("x", x, model.shape)
    method, n = registry.get(solver), x[0].numel()
    if not isinstance(method, RungeKutta):
        raise InputError(f"log_likelihood: {method.name!r} is no Runge-Kutta method; use 'rk4', 'dopri5' or 'heun'")
    if probes is None and n > EXACT_LIMIT:
        raise InputError(f"log_likelihood: {n} dimensions; give probes beyond {EXACT_LIMIT}")
    if probes is not None and probes < 1:
        raise InputError(f"probes: got {probes}, expected at least 1 (or None for the exact divergence)")
    schedule = model.schedule
    times = grids.make(grid, schedule, steps).reversed()
    directions = basis_vectors(x) if probes is None else list(signs(x, probes, seed, 1))
    integral = torch.zeros(len(directions), len(x), dtype=x.dtype, device=x.device)
    divergences: list[Tensor] = []

    def watched(x: Tensor, t: float) -> Prediction:
        """The model's prediction; the divergence of its field comes from the same forward evaluation."""
        predictions: list[Prediction] = []

        def field(leaf: Tensor) -> list[Tensor]:
            predictions.append(model(leaf, t))
            return [predictions[0].flow]

        pull = pullback(field, [x])
        divergences.append(FLOW.scale(schedule.at(t)) * along(lambda v: pull([v])[0], directions))
        prediction = predictions[0]
        return Prediction(x, prediction.output.detach(), prediction.kind, prediction.alpha, prediction.sigma)

    method = replace(method, coordinates="flow")
    loop = StepLoop(watched, method, schedule, times, x, defined_at_zero_noise=True)
    for step in loop:
        h = FLOW.time(step.end) - FLOW.time(step.start)
        for weight, divergence in zip(method.tableau.b, divergences, strict=True):
            integral += h * weight * divergence
        divergences.clear()
    state, nfe = loop.state, loop.evaluations * model.cost
    if not finite(state):
        raise SteadyflowError("log_likelihood: the solve diverged; use more steps")
    first, last = schedule.at(times.times[0]), schedule.at(times.times[-1])
    scales = n * math.log(FLOW.scale(last) / FLOW.scale(first))
    base = _start(state, last, model) if prior is None else prior(state)
    if probes is None:
        change, error = integral.sum(0), torch.zeros_like(base)
    else:
        change, error = (
            integral.mean(0),
            integral.std(0) / probes**0.5 if probes > 1 else torch.full_like(base, math.nan),
        )
    return Likelihood(base + change + scales, base, state, error, nfe)


def _start(z: Tensor, level: Level, model: Denoiser) -> Tensor:
    """The log density of the latents that a sample of the model starts from."""
    if model.moments is None:
        return _gaussian(z, level.sigma)
    mean, variance = (torch.as_tensor(value, dtype=z.dtype, device=z.device) for value in model.moments)
    spread = (level.alpha**2 * variance + level.sigma**2).sqrt().expand(z.shape[1:])
    return _gaussian((z - level.alpha * mean) / spread, 1.0) - spread.log().sum()


def _gaussian(z: Tensor, sigma: float) -> Tensor:
    n = z[0].numel()
    return -0.5 * dot(z, z) / sigma**2 - n * (0.5 * math.log(2.0 * math.pi) + math.log(sigma))
