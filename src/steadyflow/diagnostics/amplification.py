"""How much a model's generation map amplifies: the instability coefficients of arXiv 2506.18290.

With G: z -> x a run over a falling grid (`FlowMap`) and J its Jacobian at z, the coefficient of a direction u is

    E(z, u) = |J u| / |u|,      unstable along u where E > 1.

It is measured by perturbation, |G(z + d u) - G(z - d u)| / (2 d |u|), in the range of d where that does not depend on
d, or exactly by a Jacobian-vector product. Over all directions there are the largest singular values, the isotropic
coefficient |J|_F / sqrt(n) = sqrt(E_u [E(z, u)^2]) for u uniform on the sphere, and the geometric mean |det J|^(1/n),
which the likelihood gives without any derivative of G: p_gen(G(z)) |det J| = p_prior(z).

How much a step of a method amplifies, whatever the model, is the subject of `stability_region`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._internal.tensors import broadcast, norm, unit
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..jacobians.maps import FlowMap
from ..noise import PERTURBATION, like
from .likelihood import log_likelihood

SIZES = tuple(10.0**k for k in (-5, -4.5, -4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5))
"""The sizes of perturbations that `sweep` tries, as root mean squares in the latent's units."""


@dataclass(frozen=True)
class Sweep:
    """The coefficient by perturbation, as a function of the perturbation's size."""

    sizes: tuple[float, ...]
    """The S root mean squares of the perturbation, in the latent's units."""
    coefficients: Tensor
    """The coefficient for each size and sample, shape (S, B)."""
    linear: Tensor
    """Whether a size belongs to a sample's linear regime, shape (S, B)."""
    coefficient: Tensor
    """The median over each sample's linear regime, shape (B,); NaN where there is none."""

    @property
    def regime(self) -> tuple[float, float]:
        """The smallest and the largest size that are in the linear regime for at least half of the samples.

        NaN where there is no such size.
        """
        shared = [s for s, share in zip(self.sizes, self.linear.double().mean(1).tolist(), strict=True) if share >= 0.5]
        return (shared[0], shared[-1]) if shared else (float("nan"), float("nan"))


def coefficient(generation: FlowMap, z: Tensor, u: Tensor) -> Tensor:
    """The coefficient of a direction, E(z, u) = |J u| / |u|, by a Jacobian-vector product.

    Args:
        generation: The map.
        z: The latents, shape (B, ...).
        u: The directions, shape (B, ...).

    Returns:
        The coefficient of each sample, shape (B,).
    """
    return norm(generation.jvp(z, u)) / norm(u)


def perturbed(generation: FlowMap, z: Tensor, u: Tensor, size: float | Tensor) -> Tensor:
    """The coefficient of a direction, E(z, u), by the central difference over a perturbation.

    Args:
        generation: The map.
        z: The latents, shape (B, ...).
        u: The directions, shape (B, ...).
        size: The root mean square of the perturbation, a number or one per sample, shape (B,).

    Returns:
        The coefficient of each sample, shape (B,).
    """
    step = unit(u) * z[0].numel() ** 0.5 * broadcast(torch.as_tensor(size, dtype=z.dtype, device=z.device), z)
    return norm(generation(z + step) - generation(z - step)) / (2.0 * norm(step))


def sweep(
    generation: FlowMap, z: Tensor, u: Tensor, *, sizes: Sequence[float] = SIZES, tolerance: float = 0.02
) -> Sweep:
    """Measure the coefficient for several sizes, and find the linear regime, where it does not depend on the size.

    A size belongs to a sample's linear regime where its coefficient differs from that of a neighbouring size by less
    than `tolerance`, relatively; of several such ranges the longest counts, which lies between rounding at small sizes
    and curvature at large ones.

    Args:
        generation: The map.
        z: The latents, shape (B, ...).
        u: The directions, shape (B, ...).
        sizes: The root mean squares of the perturbation, at least two, rising.
        tolerance: The largest relative difference between neighbours in the linear regime.

    Raises:
        InputError: The sizes are fewer than two, not rising or not positive.
    """
    if len(sizes) < 2 or sorted(sizes) != list(sizes) or sizes[0] <= 0:
        raise InputError("sweep: sizes must be at least two rising positive numbers")
    rows = torch.stack([perturbed(generation, z, u, size) for size in sizes])
    alike = (rows[1:] / rows[:-1] - 1.0).abs() < tolerance
    linear = torch.zeros_like(rows, dtype=torch.bool)
    for sample in range(rows.shape[1]):
        first, last = _longest(alike[:, sample].tolist())
        linear[first : last + 1, sample] = last > first
    inside = rows.masked_fill(~linear, float("nan"))
    return Sweep(tuple(sizes), rows, linear, inside.nanmedian(0).values)


def isotropic(generation: FlowMap, z: Tensor, *, probes: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The isotropic coefficient |J|_F / sqrt(n).

    Args:
        generation: The map.
        z: The latents, shape (B, ...).
        probes: The number of random directions for Hutchinson's estimate of |J|_F^2 = E|J u|^2, at least 2. None takes
            every axis instead, which is exact and costs one Jacobian product per dimension.
        seed: Of the directions.

    Returns:
        The coefficient and its standard error, each of shape (B,).

    Raises:
        InputError: There are fewer than two probes, or too many dimensions for the exact value.
    """
    n = z[0].numel()
    if probes is None:
        squares = generation.dense(z).square().sum((1, 2)) / n
        return squares.sqrt(), torch.zeros_like(squares)
    if probes < 2:
        raise InputError(f"probes: got {probes}, expected at least 2 (or None for the exact value)")
    drawn = torch.stack([norm(generation.jvp(z, _random(z, seed, k))).square() / n for k in range(probes)])
    mean = drawn.mean(0)
    spread = drawn.std(0) / probes**0.5
    return mean.sqrt(), spread / (2.0 * mean.sqrt())


def geometric_mean(
    model: Denoiser, x: Tensor, *, steps: int = 64, probes: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The geometric mean |det J|^(1/n) of the singular values of the generation map at the latent of x.

    It is (p_prior(z) / p_gen(x))^(1/n), from `log_likelihood`, with no perturbation and no derivative of the map.

    Args:
        model: The model of the data.
        x: The samples, shape (B, ...).
        steps: The number of steps of the likelihood's solve.
        probes: The number of random sign vectors for the divergence; None for the exact one.
        seed: Of the sign vectors.

    Returns:
        The geometric mean and its standard error, each of shape (B,).

    Raises:
        InputError: As in `log_likelihood`.
    """
    result = log_likelihood(model, x, steps=steps, probes=probes, seed=seed)
    n = x[0].numel()
    mean = ((result.prior - result.value) / n).exp()
    return mean, mean * result.error / n


def _longest(alike: Sequence[bool]) -> tuple[int, int]:
    """The first and the last index of the longest range in which neighbours are alike."""
    best = start = 0, 0
    for k, same in enumerate(alike):
        start = (start[0], k + 1) if same else (k + 1, k + 1)
        best = max(best, start, key=lambda ends: ends[1] - ends[0])
    return best


def _random(z: Tensor, seed: int, draw: int) -> Tensor:
    return like(z, seed, PERTURBATION, (draw, 0, 0))
