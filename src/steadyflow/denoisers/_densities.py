"""The densities of a mixture's components, ln w_k + ln N(x; alpha mu_k, alpha^2 s_k^2 + sigma^2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .mixtures import GaussianMixture


def log_joint(
    x: Tensor, mixture: GaussianMixture, log_weights: Tensor, alpha: float | Tensor, sigma: float | Tensor
) -> Tensor:
    """Return ln w_k + ln N(x; alpha mu_k, alpha^2 s_k^2 + sigma^2), shape (n, K), by matrix products.

    Args:
        x: Points, shape (n, d).
        mixture: The means and standard deviations.
        log_weights: ln w_k, shape (K,) or (n, K).
        alpha: A number, or shape (n, 1).
        sigma: A number, or shape (n, 1).
    """
    means, d = mixture.means, mixture.dim
    if mixture.std.ndim < 2:  # isotropic
        variance = (alpha * mixture.std) ** 2 + sigma**2
        norms = x.square().sum(1, keepdim=True)
        squares = norms - (2.0 * alpha) * (x @ means.T) + alpha**2 * means.square().sum(1)
        return log_weights - 0.5 * (squares / variance + d * (2.0 * math.pi * variance).log())
    if not isinstance(alpha, Tensor):
        variance = (alpha * mixture.std) ** 2 + sigma**2
        precision, means = 1.0 / variance, alpha * means
        cross = x @ (means * precision).T
        squares = x.square() @ precision.T - 2.0 * cross + (means.square() * precision).sum(1)
        return log_weights - 0.5 * (squares + (2.0 * math.pi * variance).log().sum(1))
    alpha, sigma = alpha[:, :, None], torch.as_tensor(sigma)[:, :, None]
    variance = (alpha * mixture.std) ** 2 + sigma**2  # (n, K, d)
    squares = (x[:, None] - alpha * means).square() / variance
    return log_weights - 0.5 * (squares + (2.0 * math.pi * variance).log()).sum(2)
