"""Where the generation map of a Gaussian mixture expands, in closed form (arXiv 2506.18290, its open question 1).

With V(t) = alpha^2 spread^2 + sigma^2 the variance of each mode at time t, V0 at the clean end and V1 at the noisy one:

one Gaussian     each axis is stretched by sqrt(V0 / V1), wherever the sample lies.
two equal modes  at distance l: across their line by sqrt(V0 / V1); along it by q1(z) / q0(x), the ratio of the
                 one-dimensional densities along the line at the latent's and the sample's places, for a monotone map of
                 a line that takes one density to another has this slope. At the midpoint it is
                 sqrt(V0 / V1) exp(l^2 D / 8), D = alpha0^2 / V0 - alpha1^2 / V1, and nowhere is it more.
any number       of modes of one spread, their means within a diameter l: no direction is ever stretched by more than
                 that number, since the covariance of the means under any weights is at most l^2 / 4 (Popoviciu 1935).
any model        |det J| = p_prior(z) / p_gen(x): the map expands in the geometric mean just where the sample's density
                 is below its latent's. The largest stretch, and the root mean square over all directions, are no less.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steadyflow.denoisers import GaussianMixture
from steadyflow.errors import InputError
from steadyflow.schedules import Schedule


def gaussian_stretch(schedule: Schedule, spread: float | Tensor) -> Tensor:
    """Give sqrt(V0 / V1), the stretch of an axis along which the data are one Gaussian of that standard deviation."""
    return _log_scale(schedule, spread).exp()


def midpoint_stretch(schedule: Schedule, spread: float, length: float) -> float:
    """Give the stretch along two equal modes at their midpoint: sqrt(V0 / V1) exp(l^2 D / 8).

    It bounds every stretch of a mixture of modes of this spread whose means lie within a diameter `length`.
    """
    return math.exp(float(_log_scale(schedule, spread)) + length**2 * _contrast(schedule, spread) / 8.0)


def expansion_threshold(schedule: Schedule, spread: float) -> float:
    """Give the distance of two equal modes beyond which their map expands somewhere, and up to which it does nowhere.

    l^2 = 4 ln(V1 / V0) / D. Over a variance-preserving path it is nearly spread sqrt(8 ln(1 / spread)) for a small
    spread; 0 where a mode by itself is not contracted.
    """
    return math.sqrt(max(0.0, -8.0 * float(_log_scale(schedule, spread)) / _contrast(schedule, spread)))


def mean_threshold(schedule: Schedule, spread: float, dim: int) -> float:
    """Give the distance of two equal modes at which |det J| at their midpoint is 1: sqrt(dim) times the other one."""
    return math.sqrt(dim) * expansion_threshold(schedule, spread)


def pair_stretch(schedule: Schedule, spread: float, length: float, z: Tensor, x: Tensor) -> Tensor:
    """Give the stretch along two equal modes at +-length/2, from the places along their line: q1(z) / q0(x).

    z, x: of the latent and of the sample that it generates, each of shape (n,).
    """
    line = GaussianMixture(torch.tensor([[-0.5 * length], [0.5 * length]], dtype=torch.float64), spread)
    return log_amplification(line, schedule, z[:, None], x[:, None]).exp()


def pair_map(schedule: Schedule, spread: float, length: float, z: Tensor) -> Tensor:
    """Give where the map takes places along the line of two equal modes: x with Q0(x) = Q1(z), both by their mass.

    z: shape (n,). By bisection.
    """
    low, high = schedule.t_range

    def mass(place: Tensor, t: float) -> Tensor:
        centre = 0.5 * length * float(schedule.alpha(t))
        scale = math.sqrt(_variance(schedule, t, spread) * 2.0)
        return torch.erfc(-(place - centre) / scale) + torch.erfc(-(place + centre) / scale)

    # of the two tails the smaller one keeps its digits: a place right of the middle is mirrored to the left
    side = torch.where(z > 0.0, -1.0, 1.0)
    wanted = mass(side * z, high)
    reach = 0.5 * length + 12.0 * math.sqrt(_variance(schedule, low, spread)) + float(z.abs().max())
    below, above = torch.full_like(z, -reach), torch.zeros_like(z)
    for _ in range(80):
        middle = 0.5 * (below + above)
        less = mass(middle, low) < wanted
        below, above = torch.where(less, middle, below), torch.where(less, above, middle)
    return torch.where(z == 0.0, 0.0, side * 0.5 * (below + above))


def log_amplification(mixture: GaussianMixture, schedule: Schedule, z: Tensor, x: Tensor) -> Tensor:
    """Give ln |det J| of the map of a mixture at latents z, whose samples are x: ln p(z) - ln p(x), shape (n,).

    Both densities are the mixture's own, at the noisy and at the clean end of the path. z, x: shape (n, d).
    """
    low, high = schedule.t_range
    return mixture.marginal(schedule, high).log_prob(z) - mixture.marginal(schedule, low).log_prob(x)


def diameter(mixture: GaussianMixture) -> float:
    """Give the largest distance between two means. Raises `InputError` for modes of different spreads."""
    if mixture.std.numel() != 1:
        raise InputError("diameter: the bound is for modes of one spread")
    return float(torch.cdist(mixture.means, mixture.means).max())


def _variance(schedule: Schedule, t: float, spread: float | Tensor) -> float:
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    return float((alpha * torch.as_tensor(spread)) ** 2 + sigma**2)


def _log_scale(schedule: Schedule, spread: float | Tensor) -> Tensor:
    low, high = schedule.t_range
    spread = torch.as_tensor(spread, dtype=torch.float64)
    values = [(schedule.alpha(t) * spread) ** 2 + schedule.sigma(t) ** 2 for t in (low, high)]
    return 0.5 * (torch.as_tensor(values[0]) / torch.as_tensor(values[1])).log()


def _contrast(schedule: Schedule, spread: float) -> float:
    """D = alpha0^2 / V0 - alpha1^2 / V1."""
    return math.fsum(
        sign * float(schedule.alpha(t)) ** 2 / _variance(schedule, t, spread)
        for sign, t in zip((1.0, -1.0), schedule.t_range, strict=True)
    )
