"""The named spacings, each from its formula. N is the number of steps, k runs from 0 to N, and s = k/N."""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

import itertools
import math
from collections.abc import Callable

from .._internal.given import number
from ..errors import InputError
from ..schedules import Schedule
from . import _beta
from .registry import register

Times = tuple[float, ...]


def _interpolated(
    to: Callable[[float], float], back: Callable[[float], float], t_max: float, t_min: float, steps: int
) -> Times:
    """Return times from t_max to t_min, both exact, that are equally spaced after the map `to` with inverse `back`."""
    a, b = to(t_max), to(t_min)
    inner = (back(a + (b - a) * k / steps) for k in range(1, steps))
    return (t_max, *inner, t_min)


def positive(name: str, value: object) -> float:
    """The value of an option.

    Raises:
        InputError: It is not a positive, finite number.
    """
    found = number(name, value, "a positive number")
    if not 0.0 < found < math.inf:
        raise InputError(f"{name}: got {value!r}, expected a positive number")
    return found


def share(name: str, value: object) -> float:
    """The value of an option.

    Raises:
        InputError: It is not a number strictly between 0 and 1.
    """
    found = number(name, value, "a number between 0 and 1")
    if not 0.0 < found < 1.0:
        raise InputError(f"{name}: got {value!r}, expected a number between 0 and 1")
    return found


def uniform(schedule: Schedule, steps: int, t_max: float, t_min: float) -> Times:
    """t linear in s."""
    return _interpolated(lambda t: t, lambda s: s, t_max, t_min, steps)


def quadratic(schedule: Schedule, steps: int, t_max: float, t_min: float) -> Times:
    """sqrt(t) linear in s (Song et al. 2021, DDIM, appendix D.2)."""
    return _interpolated(math.sqrt, lambda s: s * s, t_max, t_min, steps)


def _check_log_snr(name: str, schedule: Schedule, t_max: float, t_min: float) -> None:
    for t in (t_max, t_min):
        if not math.isfinite(schedule.log_snr(t)):
            raise InputError(
                f"grid {name!r}: the log-SNR is infinite at t = {t}; give a t_min and a t_max at which it is finite"
            )


def log_snr(schedule: Schedule, steps: int, t_max: float, t_min: float) -> Times:
    """log_snr(t) linear in s.

    This is also the "exponential" schedule of k-diffusion, in which ln(sigma/alpha) = -log_snr / 2 is linear.
    """
    _check_log_snr("log-snr", schedule, t_max, t_min)
    return _interpolated(schedule.log_snr, schedule.t_from_log_snr, t_max, t_min, steps)


def polyexponential(schedule: Schedule, steps: int, t_max: float, t_min: float, rho: float = 1.0) -> Times:
    """ln r = ln r_min + (1 - s)^rho (ln r_max - ln r_min), r = sigma/alpha (k-diffusion's polyexponential schedule).

    Args:
        schedule: The path.
        steps: The number of steps.
        t_max: The first time.
        t_min: The last time.
        rho: Above 1, more steps lie at low noise; 1 is "log-snr".
    """
    rho = positive("rho", rho)
    _check_log_snr("polyexponential", schedule, t_max, t_min)
    a, b = schedule.log_snr(t_max), schedule.log_snr(t_min)
    inner = (schedule.t_from_log_snr(b + (a - b) * (1.0 - k / steps) ** rho) for k in range(1, steps))
    return (t_max, *inner, t_min)


def karras(schedule: Schedule, steps: int, t_max: float, t_min: float, rho: float = 7.0) -> Times:
    """(sigma/alpha)^(1/rho) linear in s (Karras et al. 2022, 2206.00364, eq. 5).

    Args:
        schedule: The path.
        steps: The number of steps.
        t_max: The first time.
        t_min: The last time.
        rho: Larger values put more steps at low noise.
    """
    rho = positive("rho", rho)
    if not math.isfinite(schedule.ratio(t_max)):
        raise InputError(f"grid 'karras': sigma/alpha is infinite at t = {t_max}; give a smaller t_max")
    return _interpolated(
        lambda t: schedule.ratio(t) ** (1.0 / rho),
        lambda s: schedule.t_from_ratio(s**rho),
        t_max,
        t_min,
        steps,
    )


def kl_optimal(schedule: Schedule, steps: int, t_max: float, t_min: float) -> Times:
    """sigma/alpha = tan(s arctan(r_min) + (1 - s) arctan(r_max)) (Sabour et al. 2024, 2404.14507).

    For Gaussian data of unit variance it minimises the authors' bound on the KL divergence from the true process.
    On variance-preserving paths, alpha = cos(angle) and sigma = sin(angle), and the angle is linear in s. At alpha = 0
    it is pi/2, so that the spacing exists on every path.
    """
    return _interpolated(
        lambda t: math.atan(schedule.ratio(t)),
        lambda angle: schedule.t_from_ratio(math.tan(angle)),
        t_max,
        t_min,
        steps,
    )


def beta(schedule: Schedule, steps: int, t_max: float, t_min: float, alpha: float = 0.6, beta: float = 0.6) -> Times:
    """t = t_min + (t_max - t_min) Q(1 - s), Q the quantile function of Beta(alpha, beta) (Lee et al. 2024, 2407.12173).

    With both parameters below 1 the steps are dense at both ends. On VE paths, where t is sigma, and on flow paths
    these are the places of diffusers' `use_beta_sigmas`.

    Args:
        schedule: The path.
        steps: The number of steps.
        t_max: The first time.
        t_min: The last time.
        alpha: Smaller values put more steps at low noise.
        beta: Smaller values put more steps at high noise.
    """
    a, b = positive("alpha", alpha), positive("beta", beta)
    inner = (t_min + (t_max - t_min) * _beta.quantile(1.0 - k / steps, a, b) for k in range(1, steps))
    return (t_max, *inner, t_min)


def _flow_time(schedule: Schedule, t: float) -> float:
    """The time of flow coordinates, sigma/(alpha + sigma), which on a rectified flow is sigma itself."""
    level = schedule.at(t)
    return level.sigma / (level.alpha + level.sigma)


def _along_flow(schedule: Schedule, shares: list[float], t_max: float, t_min: float) -> Times:
    """Times at which sigma/(alpha + sigma) has these shares of its way up from t_min; the first is 1, the last 0."""
    high, low = _flow_time(schedule, t_max), _flow_time(schedule, t_min)
    places = (low + (high - low) * share for share in shares[1:-1])
    return (t_max, *(schedule.t_from_log_snr(2.0 * (math.log1p(-u) - math.log(u))) for u in places), t_min)


def linear_quadratic(
    schedule: Schedule,
    steps: int,
    t_max: float,
    t_min: float,
    threshold_noise: float = 0.025,
    linear_steps: int | None = None,
) -> Times:
    """sigma/(alpha + sigma) falls linearly in the first L steps, then quadratically (Mochi, Genmo 2024).

    With sigma from 1 to 0, 1 - sigma_k is c k/L for k <= L, and for k >= L the parabola that goes on with the same
    slope and reaches 1 at k = N:

        1 - sigma_k = c k/L + (1 - c N/L) ((k - L) / (N - L))^2,    c the threshold.

    On other ranges, and on other paths than rectified flows, sigma is the share of the way of sigma/(alpha + sigma)
    from t_min to t_max.

    Args:
        schedule: The path.
        steps: The number of steps N.
        t_max: The first time.
        t_min: The last time.
        threshold_noise: The share c of the way that the linear steps make together.
        linear_steps: The number L of linear steps; half of all by default.
    """
    c = share("threshold_noise", threshold_noise)
    if linear_steps is not None and (isinstance(linear_steps, bool) or linear_steps != int(linear_steps)):
        raise InputError(f"linear_steps: got {linear_steps!r}, expected a whole number")
    if steps == 1:
        return (t_max, t_min)
    linear = steps // 2 if linear_steps is None else int(linear_steps)
    if not 1 <= linear < steps:
        raise InputError(f"linear_steps: got {linear}, expected 1 to {steps - 1} of {steps} steps")

    def made(k: int) -> float:
        bend = max(k - linear, 0) / (steps - linear)
        return c * k / linear + (1.0 - c * steps / linear) * bend * bend

    shares = [1.0 - made(k) for k in range(steps + 1)]
    if not all(a > b for a, b in itertools.pairwise(shares)):
        raise InputError(
            f"threshold_noise, linear_steps: got {c} and {linear}, with which the levels of {steps} steps do not fall; "
            "give a smaller threshold or more linear steps"
        )
    return _along_flow(schedule, shares, t_max, t_min)


def bong_tangent(
    schedule: Schedule,
    steps: int,
    t_max: float,
    t_min: float,
    middle: float = 0.5,
    pivot_1: float = 0.6,
    pivot_2: float = 0.6,
    slope_1: float = 0.2,
    slope_2: float = 0.2,
) -> Times:
    """sigma/(alpha + sigma) falls along two arctangents, from 1 to `middle` and from there to 0 (RES4LYF).

    With M = N + 2 and m = int(M (pivot_1 + pivot_2) / 2), the first m - 1 levels are the first of m points of the
    first curve, the others the M - m points of the second. Point x = 0, 1, ... of curve i is

        sigma = b + (a - b) (h(x) - h(last)) / (h(0) - h(last)),    h(x) = -arctan(40 slope_i / M (x - p_i)),

    which falls from a to b, with its steepest place at p_1 = int(M pivot_1) and p_2 = int(M pivot_2) - m. On other
    ranges, and on other paths than rectified flows, sigma is the share of the way as for "linear-quadratic".

    Args:
        schedule: The path.
        steps: The number of steps N.
        t_max: The first time.
        t_min: The last time.
        middle: The level at which the curves meet.
        pivot_1: Where the first curve is steepest, as a share of the steps.
        pivot_2: Where the second curve is steepest, as a share of the steps.
        slope_1: How steep the first curve is.
        slope_2: How steep the second curve is.
    """
    middle, slopes = share("middle", middle), (positive("slope_1", slope_1), positive("slope_2", slope_2))
    pivots = share("pivot_1", pivot_1), share("pivot_2", pivot_2)
    if steps == 1:
        return (t_max, t_min)
    count = steps + 2
    first = int((count * pivots[0] + count * pivots[1]) / 2)
    if not 2 <= first <= steps:
        raise InputError(
            f"pivot_1, pivot_2: got {pivot_1} and {pivot_2}, which leave no step to one of the two curves in {steps} "
            "steps; give values nearer to 0.5, or more steps"
        )

    def curve(points: int, slope: float, pivot: int, a: float, b: float) -> list[float]:
        heights = [-math.atan(40.0 * slope / count * (x - pivot)) for x in range(points)]
        return [b + (a - b) * (h - heights[-1]) / (heights[0] - heights[-1]) for h in heights]

    upper = curve(first, slopes[0], int(count * pivots[0]), 1.0, middle)
    lower = curve(count - first, slopes[1], int(count * pivots[1]) - first, middle, 0.0)
    return _along_flow(schedule, [*upper[:-1], *lower], t_max, t_min)


register("uniform", uniform)
register("quadratic", quadratic)
register("log-snr", log_snr)
register("polyexponential", polyexponential)
register("karras", karras)
register("kl-optimal", kl_optimal)
register("beta", beta)
register("sgm-uniform", uniform, to_clean=True)
register("linear-quadratic", linear_quadratic, to_clean=True)
register("bong-tangent", bong_tangent, to_clean=True)
