"""Mode interpolation: why deterministic sampling makes impossible samples between modes (arXiv 2605.06831).

For a mixture of equal spread s0 and the state y = x / alpha, whose components have variance s2 = s0^2 +
(sigma/alpha)^2, let g_i(y) be the responsibilities. In the clock s = ln(s2(start) / s2) / 2, which grows along
sampling, the probability flow and the reverse SDE are

    dy/ds = sum_i g_i mu_i - y,        dy = 2 (sum_i g_i mu_i - y) ds + sqrt(2 s2) dW.

Between two modes i and j at distance l, with y = mu_i + xi (mu_j - mu_i) + eta, eta shrinks like e^-s while xi follows

    dxi/ds = F(xi) = sigmoid((l^2 / s2) (xi - 1/2) + ln(w_j / w_i)) - xi,

whose two stable points are at the modes and whose third, for equal weights the midpoint, is unstable with the
eigenvalue l^2 / (4 s2) - 1: a saddle that holds what starts near it until the noise is gone. y has shape (n, d).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..denoisers import GaussianMixture
from ..errors import InputError
from ..metrics.statistics import Estimate, wilson
from ..schedules import Schedule

VALID, INTERPOLATED, INVALID = 0, 1, 2
SHELL_FROM = 10
"""The dimension from which a Gaussian mode is judged as a shell of radius sqrt(d)."""


def variance(mixture: GaussianMixture, schedule: Schedule, t: float) -> float:
    """s2(t) = s0^2 + (sigma/alpha)^2, the variance of the components of y = x / alpha."""
    return _spread(mixture) ** 2 + schedule.ratio(t) ** 2


def clock(s2_start: float, s2: float) -> float:
    """s = ln(s2_start / s2) / 2, the time in which the rescaled flow contracts at rate 1."""
    return 0.5 * math.log(s2_start / s2)


def responsibilities(mixture: GaussianMixture, y: Tensor, s2: float) -> Tensor:
    """g_i(y) for components of variance s2, shape (n, K)."""
    logits = mixture.weights.log() - torch.cdist(y, mixture.means).square() / (2.0 * s2)
    return logits.softmax(1)


def slope(mixture: GaussianMixture, y: Tensor, s2: float) -> Tensor:
    """dy/ds of the probability flow, sum_i g_i mu_i - y, shape (n, d) (Lemma G.2)."""
    return responsibilities(mixture, y, s2) @ mixture.means - y


def drift(mixture: GaussianMixture, y: Tensor, s2: float) -> Tensor:
    """The reverse SDE's drift in the same clock, twice the flow's slope; its noise is sqrt(2 s2) dW."""
    return 2.0 * slope(mixture, y, s2)


@dataclass(frozen=True)
class Dominance:
    """How far two modes dominate all others at each point."""

    pair: Tensor
    """The two nearest modes, shape (n, 2)."""
    kappa: Tensor
    """The largest kappa for which assumption A4.1 holds, shape (n,): the margin of squared distance over 2 s2."""


def dominance(mixture: GaussianMixture, y: Tensor, s2: float) -> Dominance:
    """Two-mode dominance (A4.1): min over the others of |y - mu_k|^2 less that of the second nearest, over 2 s2.

    With it, the responsibility of all other modes together is at most K e^-kappa (for equal weights).
    """
    if len(mixture.means) < 3:
        raise InputError("dominance: expected a mixture of at least three modes")
    squares, order = torch.cdist(y, mixture.means).square().sort(dim=1)
    return Dominance(order[:, :2], (squares[:, 2] - squares[:, 1]) / (2.0 * s2))


def first_dominance(mixture: GaussianMixture, path: Tensor, variances: list[float], kappa: float) -> Tensor:
    """The first index from which on two-mode dominance holds with kappa, shape (n,); T where it never does.

    path: y at each time of a run, shape (T, n, d), noisy end first; variances: s2 at the same times.
    """
    held = torch.stack([dominance(mixture, y, s2).kappa >= kappa for y, s2 in zip(path, variances, strict=True)])
    lasting = held.flip(0).long().cumprod(0).flip(0)
    return len(held) - lasting.sum(0)


def pair_coordinates(y: Tensor, mu_i: Tensor, mu_j: Tensor) -> tuple[Tensor, Tensor]:
    """(xi, |eta|), each (n,): y = mu_i + xi (mu_j - mu_i) + eta, eta orthogonal to that; modes (d,) or (n, d)."""
    along = mu_j - mu_i
    xi = ((y - mu_i) * along).sum(-1) / along.square().sum(-1)
    return xi, (y - mu_i - xi[:, None] * along).norm(dim=-1)


def distance_to_segment(y: Tensor, mu_i: Tensor, mu_j: Tensor, extension: float = 0.0) -> Tensor:
    """Distance, (n,), to the segment between two modes, extended at each end by `extension` times its length."""
    xi, _ = pair_coordinates(y, mu_i, mu_j)
    nearest = xi.clamp(-extension, 1.0 + extension)
    return (y - mu_i - nearest[:, None] * (mu_j - mu_i)).norm(dim=-1)


def contraction_bound(distance: Tensor, s2_then: float, s2_now: float, tail: float) -> Tensor:
    """The bound of theorem 4.2 on the distance to the segment: distance sqrt(s2_now / s2_then) + tail.

    distance: at the time when two-mode dominance began. tail: the share of the other modes, `far_modes`.
    """
    return distance * math.sqrt(s2_now / s2_then) + tail


def far_modes(mixture: GaussianMixture, kappa: float) -> float:
    """A bound on |sum over other modes of g_k (mu_k - m)| for any m on the segment: K e^-kappa times the diameter.

    It is the restored `C exp(-kappa)` of the theorem, with its constant: each other mode's responsibility is at most
    (w_k / min w) e^-kappa of the nearer two's, and no mode is farther than the diameter of the set.
    """
    weights = mixture.weights
    share = float((weights / weights.min()).sum()) * math.exp(-kappa)
    return share * float(torch.cdist(mixture.means, mixture.means).max())


def saddle_rate(ratio: float) -> float:
    """The eigenvalue of the midpoint of an equal pair, l^2 / (4 s2) - 1; ratio = l^2 / s2 (P4.7)."""
    return ratio / 4.0 - 1.0


def pair_slope(xi: Tensor, ratio: float, log_odds: float = 0.0) -> Tensor:
    """F(xi) = sigmoid(ratio (xi - 1/2) + log_odds) - xi; ratio = l^2 / s2, log_odds = ln(w_j / w_i)."""
    return torch.sigmoid(ratio * (xi - 0.5) + log_odds) - xi


@dataclass(frozen=True)
class Equilibrium:
    """A point at which F vanishes."""

    xi: float
    rate: float
    """F' there: negative where stable, positive where not."""


def equilibria(ratio: float, log_odds: float = 0.0) -> list[Equilibrium]:
    """All zeros of F on [0, 1], rising: one where the modes have merged, else three (P4.5, P4.7, B.1).

    F' = ratio p (1 - p) - 1 with p the sigmoid vanishes at two points for ratio > 4; between those and the ends F is
    monotone, so bisection finds each zero.
    """
    edges = [0.0, 1.0]
    if ratio > 4.0:
        root = math.sqrt(1.0 - 4.0 / ratio)
        for p in ((1.0 - root) / 2.0, (1.0 + root) / 2.0):
            turn = 0.5 + (math.log(p / (1.0 - p)) - log_odds) / ratio
            edges.append(min(max(turn, 0.0), 1.0))
        edges.sort()
    found = [end for end in (0.0, 1.0) if _f(end, ratio, log_odds) == 0.0]  # where the sigmoid is 0 or 1 to rounding
    for low, high in pairwise(edges):
        if high > low and _f(low, ratio, log_odds) * _f(high, ratio, log_odds) < 0.0:
            found.append(_bisect(low, high, ratio, log_odds))
    found.sort()
    return [Equilibrium(xi, ratio * (p := _f(xi, ratio, log_odds) + xi) * (1.0 - p) - 1.0) for xi in found]


def trapping_radius(ratio_least: float, ratio_most: float) -> float:
    """theta = 4 lam_min / a_max^2: inside it the midpoint's linear rate is right to a half (P4.7, H.5).

    ratio = l^2 / s2 over the remaining time, `ratio_least` at its beginning, `ratio_most` at its end. |F''| <= a^2 / 4.
    """
    rate = saddle_rate(ratio_least)
    if rate <= 0.0:
        raise InputError(f"trapping: the midpoint is no saddle at l^2 / s2 = {ratio_least:g}; it is one above 4")
    return 4.0 * rate / ratio_most**2


def growth_integral(length: float, s2_start: float, s2_end: float) -> float:
    """The midpoint's rate over the clock: (l^2 / 8) (1/s2_end - 1/s2_start) - ln(s2_start / s2_end) / 2."""
    return length**2 / 8.0 * (1.0 / s2_end - 1.0 / s2_start) - clock(s2_start, s2_end)


def trapped_start(length: float, s2_start: float, s2_end: float) -> float:
    """The offset |xi - 1/2| below which a trajectory of the two-mode flow cannot leave the trapping radius (P4.7).

    theta exp(-(3/2) integral of the rate): within theta the rate is at most 3/2 of the linear one. (F is concave on
    the side of either mode, so that the linear rate itself is a bound, and 1 would do for 3/2.)
    """
    theta = trapping_radius(length**2 / s2_start, length**2 / s2_end)
    return theta * math.exp(-1.5 * growth_integral(length, s2_start, s2_end))


@dataclass(frozen=True)
class Classes:
    """What each sample is."""

    kind: Tensor
    """VALID, INTERPOLATED or INVALID, shape (n,)."""
    mode: Tensor
    """The nearest mode, shape (n,)."""
    pair: Tensor
    """The modes of the nearest segment, shape (n, 2); of use where interpolated."""

    def rate(self, level: float = 0.95) -> Estimate:
        """The share of interpolated samples among those that are valid or interpolated, with Wilson's interval."""
        interpolated = int((self.kind == INTERPOLATED).sum())
        counted = interpolated + int((self.kind == VALID).sum())
        if counted == 0:
            raise InputError("rate: every sample is invalid")
        return wilson(interpolated, counted, level)

    def balance(self, modes: int) -> Tensor:
        """The share of valid samples at each mode, shape (modes,)."""
        counts = torch.bincount(self.mode[self.kind == VALID], minlength=modes)
        return counts / counts.sum().clamp_min(1)


def classify(x: Tensor, mixture: GaussianMixture, *, sigmas: float = 5.0, chunk: int = 4096) -> Classes:
    """Valid, interpolated or invalid samples of a mixture of equal spread, by the rule of 2605.06831.

    x: shape (n, d). Valid: within `sigmas` spreads of a mode; from ten dimensions on, where a Gaussian is a shell,
    within sqrt(d) + 4 spreads. Interpolated: not valid, but within the same distance of the segment between two modes.
    Invalid: neither. Samples are judged as clean data: take the last prediction of x0, not a state with noise in it.
    """
    if x.ndim != 2 or x.shape[1] != mixture.dim:
        raise InputError(f"x: got shape {tuple(x.shape)}, expected (n, {mixture.dim})")
    if not bool(x.isfinite().all()):
        raise InputError("x: NaN or infinity in a sample")
    means = mixture.means.to(x)
    reach = (sigmas if mixture.dim < SHELL_FROM else math.sqrt(mixture.dim) + 4.0) * _spread(mixture)
    distance, mode = torch.cdist(x, means).min(1)
    kind = torch.where(distance <= reach, VALID, INVALID)
    pair = torch.stack([mode, mode], 1)
    outside = (kind != VALID).nonzero()[:, 0]
    first, second = torch.triu_indices(len(means), len(means), 1)
    for rows in outside.split(chunk):
        along = means[second] - means[first]
        xi = (x[rows] @ along.T - (means[first] * along).sum(1)) / along.square().sum(1)
        nearest = means[first] + xi.clamp(0.0, 1.0)[:, :, None] * along
        least, which = (x[rows][:, None] - nearest).norm(dim=2).min(1)
        pair[rows] = torch.stack([first[which], second[which]], 1).to(pair)
        kind[rows] = torch.where(least <= reach, INTERPOLATED, INVALID)
    return Classes(kind, mode, pair)


def roc_area(scores: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve: the chance that a positive scores above a negative, ties counted half."""
    high, low = scores[positive].double(), scores[~positive].double()
    if len(high) == 0 or len(low) == 0:
        raise InputError("roc_area: expected both positives and negatives")
    order = low.sort().values
    below = torch.searchsorted(order, high) + torch.searchsorted(order, high, right=True)
    return (below.double().mean() / (2.0 * len(low))).item()


def _spread(mixture: GaussianMixture) -> float:
    std = mixture.std
    if std.numel() > 1 and not bool((std == std.flatten()[0]).all()):
        raise InputError("interpolation: expected a mixture whose components share one spread")
    return float(std.flatten()[0])


def _f(xi: float, ratio: float, log_odds: float) -> float:
    z = ratio * (xi - 0.5) + log_odds
    return (1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))) - xi


def _bisect(low: float, high: float, ratio: float, log_odds: float) -> float:
    rising = _f(high, ratio, log_odds) > 0.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if (_f(middle, ratio, log_odds) > 0.0) == rising:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)
