"""Denoising diffusion restoration (DDRM; Kawar et al. 2022, 2201.11793): steps in the operator's singular vectors.

In the noise coordinates x / alpha, with chi = sigma / alpha, every path is the variance-exploding one of the paper.
With A / noise = U S V^T and, in the basis V, x0 the estimate of the data, e that of the noise, y = S^-1 U^T (y / noise)
and tau = 1 / s the noise of y, the state at the next level chi is, with fresh noise z,

    s = 0           x0 + sqrt(1 - eta^2) chi e + eta chi z
    chi < tau       x0 + sqrt(1 - eta^2) chi (y - x0) / tau + eta chi z
    chi >= tau      (1 - eta_b) x0 + eta_b y + sqrt(chi^2 - tau^2 eta_b^2) z.

It takes no derivatives of the model. The paper draws the first state around y too; here it is the path's own noise, of
which only the directions that were not measured are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._integrate import StepInfo
from ..errors import InputError
from ..noise import RENOISING, like
from ..operators import Operator

_svd: Callable[..., tuple[Tensor, Tensor, Tensor]] = cast(Any, torch.linalg).svd


class Decomposition(NamedTuple):
    """A / noise = U S V^T for flattened samples of n and measurements of m numbers."""

    left: Tensor
    """U S^-1 over the noise, of the r values that are not 0, shape (m, r): y times this is y in the basis V."""
    spread: Tensor
    """tau = 1 / s, shape (n,); infinite where nothing is measured."""
    basis: Tensor
    """V, shape (n, n)."""


def decomposed(operator: Operator, noise: Tensor, y: Tensor, x: Tensor) -> Decomposition:
    """Decompose an operator in units of the noise.

    Args:
        operator: The operator, which is linear.
        noise: The standard deviation of the noise, one for all samples.
        y: A measurement, for its shape (B, ...).
        x: Samples, for their shape (B, ...), type and device.

    Raises:
        InputError: There are too many dimensions for a dense matrix.
    """
    dense = operator.matrix(x.shape[1:], device=x.device)
    deviation = noise.to(dense).expand(1, *y.shape[1:]).reshape(-1)
    u, s, vt = _svd(dense / deviation[:, None], full_matrices=True)
    rank = int((s > s.max() * max(dense.shape) * torch.finfo(dense.dtype).eps).sum())
    spread = dense.new_full((dense.shape[1],), math.inf)
    spread[:rank] = 1.0 / s[:rank]
    left = u[:, :rank] / (deviation[:, None] * s[:rank])
    return Decomposition(left.to(x), spread.to(x), vt.T.to(x))


def moved(info: StepInfo, parts: Decomposition, y: Tensor, eta: float, eta_b: float) -> Tensor:
    """The state that takes the place of the one after a DDIM step.

    Args:
        info: Where the run stands, after a DDIM step.
        parts: The operator in units of the noise.
        y: What was measured, shape (B or 1, ...).
        eta: The share of fresh noise where nothing or little is measured.
        eta_b: How strongly what is measured well is drawn to y.

    Returns:
        The state, shape (B, ...).

    Raises:
        InputError: The run has no noise source.
    """
    if info.noise is None:
        raise InputError("ddrm: the run has no source of noise, as integrate(noise=...) and the verbs give it")
    start, end = info.step.start, info.step.end
    clean, before = info.denoised.flatten(1), info.before.flatten(1)
    x0, error = clean @ parts.basis, ((before - start.alpha * clean) / start.sigma) @ parts.basis
    seen = torch.zeros_like(x0)
    seen[:, : parts.left.shape[1]] = y.flatten(1) @ parts.left
    z = like(info.x, info.noise.seed, RENOISING, (info.done, 0, 2), info.noise.samples).flatten(1) @ parts.basis
    chi, tau = end.ratio, parts.spread
    kept = math.sqrt(1.0 - eta * eta) * chi
    free = x0 + kept * error + eta * chi * z
    little = x0 + kept * (seen - x0) / tau + eta * chi * z
    well = torch.lerp(x0, seen, eta_b) + (chi * chi - (tau * eta_b).square()).clamp_min(0.0).sqrt() * z
    state = torch.where(tau.isinf(), free, torch.where(chi < tau, little, well))
    return (end.alpha * state @ parts.basis.T).view_as(info.x)
