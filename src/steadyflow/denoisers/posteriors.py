"""Exact posteriors of Gaussian mixtures under linear Gaussian measurements: mixtures with full covariances.

For p0 = sum_k w_k N(mu_k, S_k) and y = A x0 + n, n ~ N(0, N), with C_k = A S_k A^T + N and the gain
G_k = S_k A^T C_k^-1, p(x0 | y) is the mixture with

    means         mu_k + G_k (y - A mu_k),
    covariances   (I - G_k A) S_k (I - G_k A)^T + G_k N G_k^T,
    weights       proportional to w_k N(y; A mu_k, C_k)

(Bishop 2006, 2.3.3; the covariance in Joseph's form, which rounding leaves positive).
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from .. import operators
from .._internal.given import whole
from .._internal.tensors import finite
from ..errors import InputError
from ..noise import INITIAL, normal

_cholesky: Callable[[Tensor], Tensor] = cast(Any, torch.linalg).cholesky
_triangular: Callable[..., Tensor] = cast(Any, torch.linalg).solve_triangular
_ndtr: Callable[[Tensor], Tensor] = cast(Any, torch.special).ndtr


@dataclass(frozen=True, eq=False)
class FullMixture:
    """A mixture of K Gaussians in d dimensions with full covariances.

    Args:
        means: The means, shape (K, d).
        covariances: The covariances, shape (K, d, d), positive definite.
        weights: The weights, shape (K,), which are normalised.

    Raises:
        InputError: A shape does not fit, or a weight or a covariance is not positive.
    """

    means: Tensor
    covariances: Tensor
    weights: Tensor

    def __post_init__(self):
        k, d = self.means.shape if self.means.ndim == 2 else (0, 0)
        if k * d == 0 or self.covariances.shape != (k, d, d) or self.weights.shape != (k,):
            shapes = tuple(self.means.shape), tuple(self.covariances.shape), tuple(self.weights.shape)
            raise InputError(f"means, covariances, weights: got shapes {shapes}, expected (K, d), (K, d, d) and (K,)")
        for name in ("means", "covariances", "weights"):
            value: Tensor = getattr(self, name)
            if not value.is_floating_point() or not finite(value):
                raise InputError(f"{name}: expected finite floats, got {value.dtype}, NaN or infinity")
        turned = self.covariances.transpose(1, 2)
        if not torch.allclose(self.covariances, turned, rtol=1e-3, atol=1e-6 * float(self.covariances.abs().max())):
            raise InputError("covariances: expected symmetric matrices")
        if not bool((self.weights >= 0).all()) or not bool(self.weights.sum() > 0):
            raise InputError("weights: expected numbers of at least 0, not all 0")
        object.__setattr__(self, "weights", self.weights / self.weights.sum())
        try:
            _ = self._factors
        except RuntimeError as error:
            raise InputError(f"covariances: expected positive definite matrices ({error})") from error

    @cached_property
    def _factors(self) -> Tensor:
        return _cholesky(self.covariances)

    @property
    def dim(self) -> int:
        """d, the dimension of one sample."""
        return self.means.shape[1]

    def mean(self) -> Tensor:
        """Return the mean of the mixture, shape (d,)."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """Return the covariance of the mixture, shape (d, d)."""
        away = self.means - self.mean()
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + (self.weights * away.T) @ away

    def sample(self, n: int, seed: int = 0, *, index: int = 0) -> Tensor:
        """Draw exact samples, shape (n, d); row i depends on the seed and `index` + i alone.

        Args:
            n: The number of samples.
            seed: The seed.
            index: The index of the first sample.

        Raises:
            InputError: A number is none.
        """
        n, index = whole("n", n, 0), whole("index", index, 0)
        rows = range(index, index + n)
        uniform = _ndtr(normal(seed, INITIAL, (1, 0, 0), rows, (), dtype=torch.float64))
        chance = self.weights.double().cpu().cumsum(0)
        pick = torch.searchsorted(chance / chance[-1], uniform).clamp(max=len(chance) - 1).to(self.means.device)
        z = normal(seed, INITIAL, (2, 0, 0), rows, (self.dim,), dtype=self.means.dtype, device=self.means.device)
        return self.means[pick] + torch.einsum("nij,nj->ni", self._factors[pick], z)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the exact log density, in nats, at each row of x, shape (n,).

        Args:
            x: Points, shape (n, d).

        Raises:
            InputError: x has another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InputError(f"x: got shape {tuple(x.shape)}, expected (n, {self.dim})")
        logs = [_log_normal((x - mean).T, factor) for mean, factor in zip(self.means, self._factors, strict=True)]
        return (torch.stack(logs, 1) + self.weights.log()).logsumexp(1)


def conditioned(
    means: Tensor, variances: Tensor, weights: Tensor, operator: object, y: Tensor, noise: float | Tensor
) -> FullMixture:
    """Condition a mixture with diagonal covariances on a linear measurement.

    Args:
        means: The means, shape (K, d).
        variances: The diagonals of the covariances, shape (K, d).
        weights: The weights, shape (K,).
        operator: A linear operator on samples (B, d), or a matrix (m, d).
        y: What was measured, shape (m,) or (1, m).
        noise: The standard deviation of the noise, a number or shape (m,).

    Raises:
        InputError: The operator is not linear, y does not fit it, or the noise is not positive and finite.
    """
    d, dtype = means.shape[1], means.dtype
    for name, value in (("y", y), ("noise", torch.as_tensor(noise))):
        if torch.as_tensor(value).is_complex() or torch.as_tensor(value).dtype == torch.bool:
            raise InputError(f"{name}: got {torch.as_tensor(value).dtype}, expected real numbers")
    means, variances, weights = means.double(), variances.double(), weights.double()
    matrix = operators.of(operator).matrix((d,), dtype=means.dtype, device=means.device)
    m = len(matrix)
    y, noise = torch.as_tensor(y).to(means), torch.as_tensor(noise).to(means)
    if y.shape not in ((m,), (1, m)):
        raise InputError(f"y: got shape {tuple(y.shape)}, but one measurement is ({m},)")
    if not finite(y):
        raise InputError("y: expected finite numbers, got NaN or infinity")
    if noise.shape not in ((), (m,), (1, m)) or not bool(((noise > 0) & noise.isfinite()).all()):
        raise InputError(f"noise: got {noise}, expected a positive, finite number, or ({m},) of them")
    spread = noise.expand(1, m)[0].square()
    residual = y.reshape(m) - means @ matrix.T  # (K, m)
    cross = variances[:, :, None] * matrix.T  # S A^T, (K, d, m)
    try:
        factor = _cholesky(matrix @ cross + torch.diag(spread))
    except RuntimeError as error:
        raise InputError(f"noise: got {noise}, which is too small beside the data for float64") from error
    gain = torch.cholesky_solve(cross.transpose(1, 2), factor).transpose(1, 2)
    kept = torch.eye(d, dtype=means.dtype, device=means.device) - gain @ matrix
    covariances = (kept * variances[:, None, :]) @ kept.transpose(1, 2) + (gain * spread) @ gain.transpose(1, 2)
    logs = torch.cat([_log_normal(r[:, None], f) for r, f in zip(residual, factor, strict=True)])
    found = (
        means + torch.einsum("kdm,km->kd", gain, residual),
        0.5 * (covariances + covariances.transpose(1, 2)),
        (weights.log() + logs).softmax(0),
    )
    try:
        return FullMixture(*(part.to(dtype) for part in found))
    except InputError as error:
        raise InputError(f"noise: got {noise}, which is too small beside the data for {dtype} ({error})") from error


def _log_normal(away: Tensor, factor: Tensor) -> Tensor:
    """ln N(away; 0, L L^T) for the columns of `away`, shape (d, n) -> (n,)."""
    scaled = _triangular(factor, away, upper=False)
    half = factor.diagonal().log().sum() + 0.5 * len(away) * math.log(2.0 * math.pi)
    return -0.5 * scaled.square().sum(0) - half
