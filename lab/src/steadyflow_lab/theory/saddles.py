"""The saddle between two modes: where it lies, how it holds, and how noise gets off it (arXiv 2605.06831).

On the segment between two modes at distance l, with xi in [0, 1] along it and s2 the variance of the components of
y = x / alpha (see `interpolation`), the probability flow is

    dxi/ds = F(xi) = sigmoid(a (xi - 1/2) + ln(w_j / w_i)) - xi,      a = l^2 / s2,

with stable points at the modes and an unstable one between, for equal weights the midpoint, of rate a/4 - 1. In the
signed distance z = l (xi - 1/2) from the midpoint and for equal weights

    dz/ds = f(z) = (l/2) tanh(l z / (2 s2)) - z,       SDE:  dz = 2 f(z) ds + sqrt(2 s2) dW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from steadyflow._internal.numerics import last_where
from steadyflow.errors import InputError

from .interpolation import clock


def saddle_rate(ratio: float) -> float:
    """Give the eigenvalue of the midpoint of an equal pair, l^2 / (4 s2) - 1; ratio = l^2 / s2 (P4.7)."""
    return ratio / 4.0 - 1.0


def pair_slope(xi: Tensor, ratio: float, log_odds: float = 0.0) -> Tensor:
    """Give F(xi) = sigmoid(ratio (xi - 1/2) + log_odds) - xi; ratio = l^2 / s2, log_odds = ln(w_j / w_i)."""
    return torch.sigmoid(ratio * (xi - 0.5) + log_odds) - xi


@dataclass(frozen=True)
class Equilibrium:
    """A point at which F vanishes."""

    xi: float
    rate: float
    """F' there: negative where stable, positive where not."""


def equilibria(ratio: float, log_odds: float = 0.0) -> list[Equilibrium]:
    """Find all zeros of F on [0, 1], rising: one where the modes have merged, else three (P4.5, P4.7, B.1).

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
            found.append(_zero(lambda xi: _f(xi, ratio, log_odds), low, high))
    found.sort()
    return [Equilibrium(xi, ratio * (p := _f(xi, ratio, log_odds) + xi) * (1.0 - p) - 1.0) for xi in found]


def trapping_radius(ratio_least: float, ratio_most: float) -> float:
    """Give theta = 4 lam_min / a_max^2: inside it the midpoint's linear rate is right to a half (P4.7, H.5).

    ratio = l^2 / s2 over the remaining time, `ratio_least` at its beginning, `ratio_most` at its end. |F''| <= a^2 / 4.
    """
    rate = saddle_rate(ratio_least)
    if rate <= 0.0:
        raise InputError(f"trapping: the midpoint is no saddle at l^2 / s2 = {ratio_least:g}; it is one above 4")
    return 4.0 * rate / ratio_most**2


def growth_integral(length: float, s2_start: float, s2_end: float) -> float:
    """Integrate the midpoint's rate: (l^2 / 8) (1/s2_end - 1/s2_start) - ln(s2_start / s2_end) / 2."""
    return length**2 / 8.0 * (1.0 / s2_end - 1.0 / s2_start) - clock(s2_start, s2_end)


def trapped_start(length: float, s2_start: float, s2_end: float) -> float:
    """Give the offset |xi - 1/2| below which the two-mode flow cannot leave the trapping radius (P4.7).

    theta exp(-(3/2) integral of the rate): within theta the rate is at most 3/2 of the linear one. (F is concave on
    the side of either mode, so that the linear rate itself is a bound, and 1 would do for 3/2.)
    """
    theta = trapping_radius(length**2 / s2_start, length**2 / s2_end)
    return theta * math.exp(-1.5 * growth_integral(length, s2_start, s2_end))


def trapping_bound(rates: Sequence[float], spans: Sequence[float], curvature: float) -> float:
    """Give P4.7's bound from measured rates: theta exp(-(3/2) sum of rate x span), theta = rate_min / curvature.

    rates: the midpoint's eigenvalues at the beginning of each span of the clock s. curvature: the greatest second
    derivative of the speed along the segment, in 1 / lengths, so that theta and the result are in lengths; within theta
    the speed then is between 1/2 and 3/2 of the linear one. With the exact score rate_min / (a_max^2 / 4) is
    `trapping_radius`.
    """
    theta = max(min(rates), 0.0) / curvature
    return theta * math.exp(-1.5 * math.fsum(max(r, 0.0) * s for r, s in zip(rates, spans, strict=True)))


def outward(z: Tensor | float, length: float, s2: float) -> Tensor:
    """Give f(z) = (l/2) tanh(l z / (2 s2)) - z: the flow's speed away from the midpoint, at signed distance z."""
    z = torch.as_tensor(z, dtype=torch.float64)
    return 0.5 * length * torch.tanh(length * z / (2.0 * s2)) - z


def greatest_outward(length: float, s2: float, radius: float) -> float:
    """Give K, the largest |2 f| within `radius` of the midpoint: the bound on the SDE's drift in P5.1.

    f is concave on z > 0, so that |f| is greatest where f' = 0 or at the end.
    """
    ends = (radius, min(radius, _top(length, s2)))
    return 2.0 * max(abs(_speed(z, length, s2)) for z in ends)


def least_outward(length: float, s2: float, inner: float, outer: float) -> float:
    """Give lambda_rep, the least 2 f between two distances from the midpoint: the SDE's drift margin in P5.1.

    f is concave there, so it is least at one of the ends. Not positive: nothing drives the state out.
    """
    return 2.0 * min(_speed(z, length, s2) for z in (inner, outer))


def confinement_bound(length: float, variances: list[float], slab: float) -> float:
    """Bound how likely the SDE stays within `slab` of the midpoint all along: the first term of P5.1.

    (4/pi) exp(-pi^2 H / (8 R^2)), H = s2(start) - s2(end) the noise put in, R = slab + integral of K ds, K the greatest
    drift within the slab. A path that stays keeps its start and martingale part together within R, and a Brownian
    motion of clock H stays in (-R, R) no more often (Dubins & Schwarz 1965). Falling variances; s2(start) first. Above
    1 it says nothing: `escape_bound` then may.
    """
    drift = 0.0
    for before, after in pairwise(variances):
        drift += clock(before, after) * max(greatest_outward(length, s2, slab) for s2 in (before, after))
    reach = slab + drift
    return 4.0 / math.pi * math.exp(-(math.pi**2) * (variances[0] - variances[-1]) / (8.0 * reach**2))


def terminal_bound(length: float, variances: list[float], radius: float, outer: float, *, sharp: bool = False) -> float:
    """Bound how likely the SDE *ends* within `radius` theta of the midpoint: P5.1, equation 7.

    The sum of two terms: that it stays within the slab 2 theta all along (`confinement_bound`; with `sharp`, the
    statement of ours for the same event, `escape_bound`), and that, having left it, it comes back to theta before it
    reaches `outer` (`return_bound`, with s2 at the start). As the paper's, it leaves out that a path comes back from
    beyond `outer`, near the mode. Raises `InputError` where the drift is not outward between theta and `outer`.
    """
    stays = escape_bound if sharp else confinement_bound
    back = return_bound(length, variances[0], radius, 2.0 * radius, outer)
    return stays(length, variances, 2.0 * radius) + back


def escape_bound(length: float, variances: list[float], radius: float, lipschitz: float | None = None) -> float:
    """Bound the same more sharply: the outward drift amplifies the noise, so that few paths can stay.

    P <= erf(radius / sqrt(2 V)), V the variance of dz = rho z ds + sqrt(2 s2) dW from 0. With the exact score the drift
    within `radius` is outward and at least rho |z|, rho = 2 f(radius) / radius, as f is concave: while it stays, |z| is
    at least as large in law.

    lipschitz: a bound on the derivative of a learned slope's error (C.6), of whatever size and sign; then rho =
    2 (f'(radius) - lipschitz), and the bound holds for any centre: where the drift's derivative is at least rho, the
    end depends on a Gaussian part of the noise monotonely, with a slope of at least sqrt(V).
    """
    spread = 0.0
    for before, after in pairwise(variances):
        if lipschitz is None:
            rate = 2.0 * _speed(radius, length, before) / radius
        else:
            rate = 2.0 * min(perturbed_rate(length, s2, radius, -lipschitz) for s2 in (before, after))
        step = clock(before, after)
        spread = spread * math.exp(2.0 * rate * step) + 2.0 * after * step * math.exp(min(0.0, 2.0 * rate * step))
    return math.erf(radius / math.sqrt(2.0 * spread)) if spread > 0.0 else 1.0


def return_bound(length: float, s2: float, inner: float, start: float, outer: float, error: float = 0.0) -> float:
    """Bound how likely the SDE comes from `start` back to `inner` before it reaches `outer`: P5.1's second term.

    exp(-m z / s2) is a supermartingale where the outward drift is at least m (the noise's variance grows by 2 s2),
    hence P <= exp(-m (start - inner) / s2). s2: the largest of the remaining time; a smaller one only helps. m is
    `least_outward` less 2 `error`, the learned slope's (C.6). Raises `InputError` where m is not positive.
    """
    margin = least_outward(length, s2, inner, outer) - 2.0 * error
    if margin <= 0.0:
        raise InputError(
            f"return: the outward drift's margin over [{inner:g}, {outer:g}] is {margin:.3g}, not positive"
        )
    return math.exp(-margin * (start - inner) / s2)


def saddle_shift(length: float, s2: float, error: float) -> float:
    """Say how far from the midpoint an error of the slope dy/ds of at most `error` can move the equilibrium (C.4).

    The least r with f(r) = error: beyond it the exact flow wins. To first order error / (l^2 / (4 s2) - 1), as the
    paper has it; f bends down, so that the whole shift is more. Raises `InputError` where no r between the midpoint and
    f's maximum will do: then the saddle may be gone.
    """
    top = _top(length, s2)
    if _speed(top, length, s2) < error:
        raise InputError(f"saddle: an error of {error:g} exceeds the flow's largest outward speed at s2 = {s2:g}")
    return _zero(lambda z: _speed(z, length, s2) - error, 0.0, top)


def perturbed_rate(length: float, s2: float, z: float, gradient: float) -> float:
    """Give the rate of the equilibrium at z under an error whose derivative along the segment is `gradient` (C.5).

    f'(z) + gradient; at the midpoint l^2 / (4 s2) - 1 + gradient. Negative: the error has made the saddle stable, and
    the deterministic sampler stays for good.
    """
    return length**2 / (4.0 * s2) / math.cosh(length * z / (2.0 * s2)) ** 2 - 1.0 + gradient


def _f(xi: float, ratio: float, log_odds: float) -> float:
    z = ratio * (xi - 0.5) + log_odds
    return (1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))) - xi


def _speed(z: float, length: float, s2: float) -> float:
    """Give f(z) of one number."""
    return 0.5 * length * math.tanh(length * z / (2.0 * s2)) - z


def _top(length: float, s2: float) -> float:
    """Find where the outward speed f is greatest: f' = 0, or the midpoint itself where that is no saddle."""
    a = length**2 / (4.0 * s2)
    return 2.0 * s2 / length * math.acosh(math.sqrt(a)) if a > 1.0 else 0.0


def _zero(function: Callable[[float], float], low: float, high: float) -> float:
    """Find the zero of a function that is monotone between the ends."""
    rising = function(high) >= 0.0
    return last_where(lambda x: (function(x) > 0.0) != rising, low, high)
