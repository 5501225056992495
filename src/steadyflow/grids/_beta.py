"""Quantiles of the beta distribution."""

import math

_TINY = 1e-300
_EPSILON = 1e-16


def quantile(p: float, a: float, b: float) -> float:
    """Return x with I_x(a, b) = p, I the regularised incomplete beta function.

    Newton's method in y = x^a, in which I is smooth at 0, kept within a bracket that shrinks; the upper half follows
    from I_x(a, b) = 1 - I_{1-x}(b, a).

    Args:
        p: A probability in [0, 1].
        a: The first parameter, positive.
        b: The second parameter, positive.
    """
    if p <= 0.0 or p >= 1.0:
        return 0.0 if p <= 0.0 else 1.0
    if p > incomplete(0.5, a, b):
        return 1.0 - _lower(1.0 - p, b, a)
    return _lower(p, a, b)


def _lower(p: float, a: float, b: float) -> float:
    """The quantile, if it is at most 1/2."""
    low, high = 0.0, 0.5**a
    scale = math.exp(-_log_beta(a, b)) / a  # of dI/dy = scale (1 - x)^(b - 1)
    y = min(p / scale, high)
    for _ in range(200):
        x = y ** (1.0 / a)
        error = incomplete(x, a, b) - p
        low, high = (low, y) if error > 0.0 else (y, high)
        step = error / (scale * (1.0 - x) ** (b - 1.0))
        following = y - step
        if not low < following < high:
            following = 0.5 * (low + high)
        if abs(following - y) <= _EPSILON * y:
            break
        y = following
    return y ** (1.0 / a)


def incomplete(x: float, a: float, b: float) -> float:
    """Return I_x(a, b), by its continued fraction (Abramowitz & Stegun 26.5.8; evaluated as Lentz does).

    Args:
        x: A number in [0, 1].
        a: The first parameter, positive.
        b: The second parameter, positive.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete(1.0 - x, b, a)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / a
    fraction, c, d = 1.0, 1.0, 0.0
    for j in range(100_000):
        m = j // 2
        if j == 0:
            term = 1.0
        elif j % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        d = 1.0 / (_away(1.0 + term * d))
        c = _away(1.0 + term / c)
        fraction *= c * d
        if abs(1.0 - c * d) < _EPSILON:
            break
    return front * (fraction - 1.0)


def _away(value: float) -> float:
    """The value, kept away from 0."""
    return value if abs(value) > _TINY else _TINY


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
