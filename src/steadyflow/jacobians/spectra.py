"""The largest singular values of a map's Jacobian, without the Jacobian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._internal.tensors import norm, unit
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..noise import PERTURBATION, like
from .maps import FlowMap, StepMap


@dataclass(frozen=True)
class Spectrum:
    """The largest singular values of a map's Jacobian, a sample."""

    values: Tensor
    """Shape (B, k), falling."""
    directions: Tensor
    """The right singular vectors: directions in the latent, unit norm, shape (B, k, ...)."""
    residuals: Tensor
    """|J^T J v - s^2 v| / s for each, shape (B, k): about how far J^T J's eigenvector v is from being one."""
    products: int
    """Jacobian products spent, of each kind."""


def singular_values(
    generation: FlowMap | StepMap, z: Tensor, k: int = 1, *, products: int | None = None, seed: int = 0
) -> Spectrum:
    """The k largest singular values of J at z, a sample, with their directions.

    By Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation: power iteration on J^T J (one Jacobian
    product and one transposed product a round) that keeps what it has seen. With as many rounds as dimensions it is
    exact.

    products: rounds; by default the smaller of the dimension and 2 k + 16. Memory: two vectors of z's size a round.
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
    u, values, vt = torch.linalg.svd(core)
    basis = torch.stack(right, 1)
    directions = (vt[:, :k] @ basis).view(len(z), k, *shape[1:])
    return Spectrum(values[:, :k], directions, beta[:, None] * u[:, -1, :k].abs(), rounds)


def largest_singular_value(model: Denoiser, x: Tensor, t: float, products: int = 2) -> Tensor:
    """The largest singular value of alpha d x0_hat / d x at (x, t), shape (B,), by power iteration with A transposed.

    From a fixed direction; with `products` products it is a lower bound that is close once one direction dominates.
    """
    v = unit(like(x, 0, PERTURBATION, (0, 3, 0), range(1)).expand_as(x))
    size = x.new_zeros(len(x))
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        clean = model(leaf, t).x0
        for _ in range(products):
            (v,) = torch.autograd.grad(clean, leaf, v, retain_graph=True)
            size, v = norm(v), unit(v)
    return model.schedule.alpha(t) * size


def _next(p: Tensor, basis: list[Tensor], core: Tensor, seed: int, draw: int) -> tuple[Tensor, Tensor]:
    """p made orthogonal to the basis and of unit norm, with the norm; a fresh direction where nothing is left of it."""
    p = _orthogonal(p, basis)
    size = p.norm(dim=1)
    spent = size <= 1e3 * torch.finfo(p.dtype).eps * core.abs().amax((1, 2)).clamp_min(torch.finfo(p.dtype).tiny)
    fresh = _orthogonal(_random(p, seed, draw), basis)
    fresh = fresh / fresh.norm(dim=1, keepdim=True).clamp_min(1e-30)
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
