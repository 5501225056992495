"""Time grids: the points between which a solver steps.

A `Grid` is an immutable, strictly monotone sequence of path times. Falling times denoise (sampling),
rising times add noise (inversion); `reversed()` returns the same times in the opposite order.

`make` creates one from the name of a spacing. With s = k/N running from 0 to 1, the named spacings are

    uniform           t linear in s
    quadratic         sqrt(t) linear in s
    log-snr           log_snr(t) linear in s; the exponential schedule, as ln(sigma/alpha) = -log_snr / 2
    polyexponential   ln(sigma/alpha) linear in (1 - s)^rho, rho = 1
    karras            (sigma/alpha)^(1/rho) linear in s, rho = 7     (Karras et al. 2022, eq. 5)
    kl-optimal        arctan(sigma/alpha) linear in s                (Sabour et al. 2024)
    beta              t linear in a quantile of the beta distribution (Lee et al. 2024)
    sgm-uniform       t linear in s; the clean estimate takes the place of the last time
    linear-quadratic  sigma/(alpha + sigma) linear in s, then quadratic (Mochi)
    bong-tangent      sigma/(alpha + sigma) along two arctangents    (RES4LYF)
    ays-sd15, ays-sdxl, ays-svd   the tables of Align Your Steps     (Sabour et al. 2024)

Options follow the name in text, as in "karras:rho=5" or "beta:alpha=0.5,beta=0.7", or are keywords of `make`.

The ends of a named grid are exactly the schedule's `t_max` and `t_min`, unless others are given; only the tables of
Align Your Steps have ends of their own. How the spacings are computed is in `spacings` and `align_your_steps`;
`steadyflow.gits` finds a grid for a model at hand.
"""

from . import align_your_steps, spacings  # they register their spacings
from .grid import Grid
from .registry import make, names, parse, partway, register, start_time

__all__ = [
    "Grid",
    "align_your_steps",
    "make",
    "names",
    "parse",
    "partway",
    "register",
    "spacings",
    "start_time",
]
