"""Mode interpolation: why deterministic sampling makes impossible samples between modes (arXiv 2605.06831).

For a mixture of equal spread s0 and the state y = x / alpha, whose components have variance s2 = s0^2 +
(sigma/alpha)^2, let g_i(y) be the responsibilities. In the clock s = ln(s2(start) / s2) / 2, which grows along
sampling, the probability flow and the reverse SDE are

    dy/ds = sum_i g_i mu_i - y,        dy = 2 (sum_i g_i mu_i - y) ds + sqrt(2 s2) dW.

Between two modes i and j at distance l, with y = mu_i + xi (mu_j - mu_i) + eta, eta shrinks like e^-s while xi follows

    dxi/ds = F(xi) = sigmoid((l^2 / s2) (xi - 1/2) + ln(w_j / w_i)) - xi,

whose two stable points are at the modes and whose third, for equal weights the midpoint, is unstable with the
eigenvalue l^2 / (4 s2) - 1: a saddle that holds what starts near it until the noise is gone (see `saddles`). y has
shape (n, d).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steadyflow._internal.tensors import finite
from steadyflow.denoisers import GaussianMixture
from steadyflow.errors import InputError
from steadyflow.metrics.statistics import Estimate, wilson
from steadyflow.schedules import Schedule

VALID, INTERPOLATED, INVALID = 0, 1, 2
SHELL_FROM = 10
"""The dimension from which a Gaussian mode is judged as a shell of radius sqrt(d)."""


def variance(mixture: GaussianMixture, schedule: Schedule, t: float) -> float:
    """Give s2(t) = s0^2 + (sigma/alpha)^2, the variance of the components of y = x / alpha."""
    return mixture.spread**2 + schedule.ratio(t) ** 2


def clock(s2_start: float, s2: float) -> float:
    """Give s = ln(s2_start / s2) / 2, the time in which the rescaled flow contracts at rate 1."""
    return 0.5 * math.log(s2_start / s2)


def responsibilities(mixture: GaussianMixture, y: Tensor, s2: float) -> Tensor:
    """Give g_i(y) for components of variance s2, shape (n, K)."""
    logits = mixture.weights.log() - torch.cdist(y, mixture.means).square() / (2.0 * s2)
    return logits.softmax(1)


def slope(mixture: GaussianMixture, y: Tensor, s2: float) -> Tensor:
    """Give dy/ds of the probability flow, sum_i g_i mu_i - y, shape (n, d) (Lemma G.2)."""
    return responsibilities(mixture, y, s2) @ mixture.means - y


def drift(mixture: GaussianMixture, y: Tensor, s2: float) -> Tensor:
    """Give the reverse SDE's drift in the same clock, twice the flow's slope; its noise is sqrt(2 s2) dW."""
    return 2.0 * slope(mixture, y, s2)


@dataclass(frozen=True)
class Dominance:
    """How far two modes dominate all others at each point."""

    pair: Tensor
    """The two nearest modes, shape (n, 2)."""
    kappa: Tensor
    """The largest kappa for which both dominate, shape (n,): |y - mu_k|^2 less that of the second, over 2 s2."""
    weak: Tensor
    """The largest for which assumption A4.1 holds, shape (n,): |y - mu_k|^2 less that of the nearest, over 2 s2."""


def dominance(mixture: GaussianMixture, y: Tensor, s2: float) -> Dominance:
    """Measure two-mode dominance (A4.1) by the third nearest mode k.

    The remark after A4.1 says that near a mode it may hold for several pairs at once, (i, j) and (i, k): so its margin
    is over the nearer of the two, `weak`. With it the responsibility of all other modes together is at most K e^-kappa
    (for equal weights), which is all that T4.2 needs. Over the farther of the two, `kappa`, the pair is one.
    """
    if len(mixture.means) < 3:
        raise InputError("dominance: expected a mixture of at least three modes")
    squares, order = torch.cdist(y, mixture.means).square().sort(dim=1)
    third = squares[:, 2]
    return Dominance(order[:, :2], (third - squares[:, 1]) / (2.0 * s2), (third - squares[:, 0]) / (2.0 * s2))


def first_dominance(mixture: GaussianMixture, path: Tensor, variances: list[float], kappa: float) -> Tensor:
    """Find the first index from which on both modes dominate with kappa, (n,); T where they never do.

    path: y at each time of a run, shape (T, n, d), noisy end first; variances: s2 at the same times.
    """
    held = torch.stack([dominance(mixture, y, s2).kappa >= kappa for y, s2 in zip(path, variances, strict=True)])
    lasting = held.flip(0).long().cumprod(0).flip(0)
    return len(held) - lasting.sum(0)


def pair_coordinates(y: Tensor, mu_i: Tensor, mu_j: Tensor) -> tuple[Tensor, Tensor]:
    """Give (xi, |eta|), each (n,): y = mu_i + xi (mu_j - mu_i) + eta, eta orthogonal; modes (d,) or (n, d)."""
    along = mu_j - mu_i
    xi = ((y - mu_i) * along).sum(-1) / along.square().sum(-1)
    return xi, (y - mu_i - xi[:, None] * along).norm(dim=-1)


def distance_to_segment(y: Tensor, mu_i: Tensor, mu_j: Tensor, extension: float = 0.0) -> Tensor:
    """Give the distance (n,) to the segment between two modes, made longer at each end by `extension` lengths."""
    xi, _ = pair_coordinates(y, mu_i, mu_j)
    nearest = xi.clamp(-extension, 1.0 + extension)
    return (y - mu_i - nearest[:, None] * (mu_j - mu_i)).norm(dim=-1)


def contraction_bound(distance: Tensor, s2_then: float, s2_now: float, tail: float) -> Tensor:
    """Give the bound of theorem 4.2 on the distance to the segment: distance sqrt(s2_now / s2_then) + tail.

    distance: at the time when two-mode dominance began. tail: the share of the other modes, `far_modes`.
    """
    return distance * math.sqrt(s2_now / s2_then) + tail


def far_modes(mixture: GaussianMixture, kappa: float) -> float:
    """Bound |sum over other modes of g_k (mu_k - m)| for any m on the segment: K e^-kappa times the diameter.

    It is the restored `C exp(-kappa)` of the theorem, with its constant: each other mode's responsibility is at most
    (w_k / min w) e^-kappa of the nearer two's, and no mode is farther than the diameter of the set.
    """
    weights = mixture.weights
    share = float((weights / weights.min()).sum()) * math.exp(-kappa)
    return share * float(torch.cdist(mixture.means, mixture.means).max())


@dataclass(frozen=True)
class Classes:
    """What each sample is."""

    kind: Tensor
    """VALID, INTERPOLATED or INVALID, shape (n,)."""
    mode: Tensor
    """The nearest mode, shape (n,)."""
    pair: Tensor
    """The two nearest modes, nearest first, shape (n, 2): the dominant pair of A4.1."""

    def rate(self, level: float = 0.95) -> Estimate:
        """Give the share of interpolated samples among the valid and interpolated, with Wilson's interval."""
        interpolated = int((self.kind == INTERPOLATED).sum())
        counted = interpolated + int((self.kind == VALID).sum())
        if counted == 0:
            raise InputError("rate: every sample is invalid")
        return wilson(interpolated, counted, level)

    def balance(self, modes: int) -> Tensor:
        """Give the share of valid samples at each mode, shape (modes,)."""
        counts = torch.bincount(self.mode[self.kind == VALID], minlength=modes)
        return counts / counts.sum().clamp_min(1)


def classify(x: Tensor, mixture: GaussianMixture, *, sigmas: float = 5.0, chunk: int = 4096) -> Classes:
    """Tell valid, interpolated and invalid samples of a mixture of equal spread apart, by the rule of 2605.06831.

    x: shape (n, d). Valid: within `sigmas` spreads of a mode; from ten dimensions on, where a Gaussian is a shell,
    within sqrt(d) + 4 spreads. Interpolated: not valid, but within the same distance of the segment between any two
    modes. Invalid: neither. The pair that a sample belongs to is that of its two nearest modes, not of the nearest
    segment: close to a mode a long oblique segment often passes nearer than the one that the sample lies on. Samples
    are judged as clean data: take the last prediction of x0, not a state with noise in it.
    """
    if x.ndim != 2 or x.shape[1] != mixture.dim:
        raise InputError(f"x: got shape {tuple(x.shape)}, expected (n, {mixture.dim})")
    if not finite(x):
        raise InputError("x: NaN or infinity in a sample")
    means = mixture.means.to(x)
    reach = (sigmas if mixture.dim < SHELL_FROM else math.sqrt(mixture.dim) + 4.0) * mixture.spread
    nearest = torch.cdist(x, means).topk(2, dim=1, largest=False)
    kind = torch.where(nearest.values[:, 0] <= reach, VALID, INVALID)
    outside = (kind != VALID).nonzero()[:, 0]
    first, second = torch.triu_indices(len(means), len(means), 1)
    for rows in outside.split(chunk):
        along = means[second] - means[first]
        xi = (x[rows] @ along.T - (means[first] * along).sum(1)) / along.square().sum(1)
        on_segment = means[first] + xi.clamp(0.0, 1.0)[:, :, None] * along
        least = (x[rows][:, None] - on_segment).norm(dim=2).amin(1)
        kind[rows] = torch.where(least <= reach, INTERPOLATED, INVALID)
    return Classes(kind, nearest.indices[:, 0], nearest.indices)


def diagonals(pairs: Tensor, mixture: GaussianMixture) -> Tensor:
    """Say which pairs of modes (m, 2) of an axis-aligned grid are the diagonal of a cell (D.1), (m,) of booleans.

    A cell's diagonal moves along more than one axis, and along each by no more than one spacing of the grid.
    """
    along = (mixture.means[pairs[:, 1]] - mixture.means[pairs[:, 0]]).abs()
    apart = (mixture.means[:, None] - mixture.means).abs()
    least = apart.masked_fill(apart <= 1e-6 * apart.max(), math.inf).amin((0, 1))
    moves = along > 0.5 * least
    return (moves.sum(1) > 1) & (along <= 1.5 * least).all(1)


def mode_contraction(mixture: GaussianMixture, radius: float, s2: float) -> float:
    """Bound from below how fast the exact flow contracts within `radius` of a mode (P4.5, C4.6).

    The Jacobian of dy/ds is Cov_g(mu) / s2 - I, and within the radius r of mode i the covariance is at most
    sum_k g_k |mu_k - mu_i|^2 with g_k <= (w_k / w_i) exp(-(l_k^2 - 2 r l_k) / (2 s2)), l_k = |mu_k - mu_i|. Any two
    trajectories in a ball where this rate m is positive approach each other at least like e^-ms, and so come together
    on the one stable trajectory near the mode. The least over all modes.
    """
    apart = torch.cdist(mixture.means, mixture.means).double()
    odds = (mixture.weights[None] / mixture.weights[:, None]).double()
    shares = odds * torch.exp(-(apart.square() - 2.0 * radius * apart) / (2.0 * s2))
    shares = shares.fill_diagonal_(0.0).clamp(max=1.0)
    return 1.0 - float((shares * apart.square()).sum(1).max()) / s2


def mode_pull(mixture: GaussianMixture, radius: float, s2: float) -> float:
    """Bound from above how far the others pull within `radius` of a mode: sum_k g_k |mu_k - mu_i|, greatest over modes.

    Below `radius`, the flow points inward on the whole sphere: the ball is not left, and holds an equilibrium (P4.5).
    """
    apart = torch.cdist(mixture.means, mixture.means).double()
    odds = (mixture.weights[None] / mixture.weights[:, None]).double()
    shares = odds * torch.exp(-(apart.square() - 2.0 * radius * apart) / (2.0 * s2))
    return float((shares.fill_diagonal_(0.0).clamp(max=1.0) * apart).sum(1).max())


def diagonal_share(kappa: float) -> float:
    """Give the most that the lighter mode of a dominant diagonal pair can be responsible for (D.1): e^-2kappa.

    For the corners i, j of one diagonal and k, l of the other |y - mu_i|^2 + |y - mu_j|^2 = |y - mu_k|^2 +
    |y - mu_l|^2. Dominance in the sense of `dominance` (both farther than the farther of i and j) would make the right
    side the greater by 4 kappa s2 at least: it never holds for a diagonal. In the weaker sense that k and l are
    farther than the *nearer* of the two, | |y - mu_i|^2 - |y - mu_j|^2 | >= 4 kappa s2: the bound, for equal weights.
    """
    return math.exp(-2.0 * kappa)


@dataclass(frozen=True)
class Decomposition:
    """P(H) = P(H|M) P(M) + P(H|not M) P(not M): what of the hallucinations comes from the midpoints (Appendix I)."""

    inside: Estimate
    """P(M): a trajectory is near a midpoint when the noise has become small."""
    given_inside: Estimate
    """P(H|M)."""
    given_outside: Estimate
    """P(H|not M)."""

    @property
    def from_inside(self) -> float:
        """The share of all hallucinations that were inside: P(H|M) P(M) / P(H); NaN where there are none."""
        inside = self.given_inside.value * self.inside.value
        total = inside + self.given_outside.value * (1.0 - self.inside.value)
        return inside / total if total > 0.0 else math.nan


def decompose(hallucinated: Tensor, inside: Tensor) -> Decomposition:
    """Decompose as in Appendix I, with Wilson's intervals; both arguments are booleans of shape (n,)."""
    within, without = int(inside.sum()), int((~inside).sum())
    if within == 0 or without == 0:
        raise InputError("decompose: expected trajectories both inside and outside")
    return Decomposition(
        wilson(within, len(inside)),
        wilson(int((hallucinated & inside).sum()), within),
        wilson(int((hallucinated & ~inside).sum()), without),
    )
