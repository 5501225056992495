"""The largest singular values of a map's Jacobian, without the Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .._internal.autograd import check_derivatives
from .._internal.tensors import norm, unit
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..noise import PERTURBATION, like
from .maps import FlowMap, StepMap

_svd: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] = cast(Any, torch.linalg).svd


@dataclass(frozen=True)
class Spectrum:
    """The largest singular values of a map's Jacobian, per sample."""

    values: Tensor
    """The singular values, falling, shape (B, k)."""
    directions: Tensor
    """The right singular vectors: directions in the latent, unit norm, shape (B, k, ...)."""
    residuals: Tensor
    """|J^T J v - s^2 v| / s for each, shape (B, k): about how far v is from being an eigenvector of J^T J."""
    products: int
    """The number of Jacobian products spent, and of transposed ones."""


def singular_values(
    generation: FlowMap | StepMap, z: Tensor, k: int = 1, *, products: int | None = None, seed: int = 0
) -> Spectrum:
    """Find the k largest singular values of a map's Jacobian J, with their directions, per sample.

    This is Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation: power iteration on J^T J that uses all
    directions seen so far. A round takes one Jacobian product, one transposed product, and the memory of two vectors
    of z's size. With as many rounds as dimensions the result is exact.

    Args:
        generation: The map.
        z: Where to take the Jacobian, shape (B, ...).
        k: The number of singular values.
        products: The number of rounds; by default the smaller of the dimension and 2 k + 16.
        seed: Of the direction that the iteration starts from.

    Returns:
        The singular values with their directions and residuals.

    Raises:
        InputError: Not 1 <= k <= products <= the dimension of a sample.
    """
    n = z[0].numel()
    rounds = min(n, 2 * k + 16) if products is None else products
    if not 1 <= k <= rounds <= n:
        raise InputError(f"singular_values: expected 1 <= k <= products <= {n}, got k = {k}, products = {rounds}")
    shape = z.shape
    right: list[Tensor] = [unit(_random(z, seed, 0)).flatten(1)]
    left: list[Tensor] = []
    core = torch.zeros(len(z), rounds, rounds, dtype=z.dtype, device=z.device)
    beta = torch.zeros(len(z), dtype=z.dtype, device=z.device)
    for j in range(rounds):
        p = generation.jvp(z, right[j].view(shape)).flatten(1)
        if j:
            p = p - beta[:, None] * left[j - 1]
        p, core[:, j, j] = _next(p, left, core, seed, 2 * j + 1)
        left.append(p)
        r = generation.vjp(z, p.view(shape)).flatten(1) - core[:, j, j, None] * right[j]
        r, beta = _next(r, right, core, seed, 2 * j + 2)
        if j + 1 < rounds:
            right.append(r)
            core[:, j, j + 1] = beta
    # J V = U B and J^T U = V B^T + beta r e^T, with B upper bidiagonal
    u, values, vt = _svd(core)
    basis = torch.stack(right, 1)
    directions = (vt[:, :k] @ basis).view(len(z), k, *shape[1:])
    return Spectrum(values[:, :k], directions, beta[:, None] * u[:, -1, :k].abs(), rounds)


def largest_singular_value(model: Denoiser, x: Tensor, t: float, products: int = 2) -> Tensor:
    """Estimate the largest singular value of A = alpha d x0_hat / d x, per sample.

    This is power iteration with A transposed, from a fixed direction that is oblique to all axes. The result is a lower
    bound; as A is symmetric for an exact score, and nearly so for a good model, it is close once one direction
    dominates.

    Args:
        model: The model, whose clean prediction x0_hat is differentiated.
        x: The state, shape (B, ...).
        t: The path time.
        products: The number of transposed products.

    Returns:
        The estimates, shape (B,).
    """
    check_derivatives()
    v = unit(_oblique(x).expand_as(x))
    size = x.new_zeros(len(x))
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        clean = model(leaf, t).x0
        for _ in range(products):
            (v,) = torch.autograd.grad(clean, leaf, v, retain_graph=True)
            size, v = norm(v), unit(v)
    return model.schedule.alpha(t) * size


def _oblique(x: Tensor) -> Tensor:
    """A direction that is near no axis and no diagonal, along which few products would see little of a sample.

    Its numbers have random signs and sizes from 1 down to tan(pi / 8), which in the plane is half way between them.
    """
    signs = like(x, 0, PERTURBATION, (0, 3, 0), range(1)).sign()
    sizes = torch.linspace(1.0, math.tan(math.pi / 8.0), x[0].numel(), dtype=x.dtype, device=x.device)
    return signs * sizes.view_as(signs)


def _next(p: Tensor, basis: list[Tensor], core: Tensor, seed: int, draw: int) -> tuple[Tensor, Tensor]:
    """Make p orthogonal to the basis and of unit norm; where nothing is left of it, take a fresh direction instead.

    Returns:
        The direction, shape (B, n), and the norm that it had, shape (B,); 0 for a fresh one.
    """
    p = _orthogonal(p, basis)
    size = norm(p)
    spent = size <= 1e3 * torch.finfo(p.dtype).eps * core.abs().amax((1, 2)).clamp_min(torch.finfo(p.dtype).tiny)
    fresh = _orthogonal(_random(p, seed, draw), basis)
    fresh = fresh / norm(fresh)[:, None].clamp_min(1e-30)
    onward = torch.where(spent[:, None], fresh, p / size.clamp_min(1e-300)[:, None])
    return onward, size.masked_fill(spent, 0.0)


def _orthogonal(p: Tensor, basis: list[Tensor]) -> Tensor:
    if basis:
        known = torch.stack(basis, 1)
        for _ in range(2):  # twice is enough (Parlett 1980)
            p = p - torch.einsum("bk,bkn->bn", torch.einsum("bkn,bn->bk", known, p), known)
    return p


def _random(z: Tensor, seed: int, draw: int) -> Tensor:
    return like(z, seed, PERTURBATION, (draw, 0, 0))
