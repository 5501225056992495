"""Explicit Runge-Kutta tableaux, as data.

A tableau (A, b, c) of s stages defines one step of y' = f(tau, y) by

    k_i = f(tau + c_i h, y + h sum_{j<i} A_ij k_j),        y' = y + h sum_i b_i k_i.

EES(n, m; x) (Shmelev, Ebrahimi-Fard, Tapia, Salvi 2025) has order n, and a step followed by the same step of
size -h is the identity up to O(h^(m+1)): "explicit and effectively symmetric". The parameter x is free; its
defaults minimise the leading residuals of both the order and the symmetry conditions.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np

from ..errors import InputError

SQRT2 = math.sqrt(2.0)


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    Args:
        name: The name of the method.
        a: The rows of A left of its diagonal, with 0, 1, ..., s - 1 entries.
        b: The weights.
        order: The order of accuracy.
        antisymmetric_order: p such that a step and the step back compose to the identity up to O(h^(p+1)).
        source: The paper.
        b_low: The weights of an embedded method of lower order, for error estimates, or None. An additional last entry
            is the weight of the slope at the end of the step (first same as last).

    Raises:
        InputError: The numbers of entries do not fit, or weights do not sum to 1.
    """

    name: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    antisymmetric_order: int
    source: str
    b_low: tuple[float, ...] | None = None

    def __post_init__(self):
        if len(self.a) != len(self.b) or any(len(row) != i for i, row in enumerate(self.a)):
            raise InputError(f"tableau {self.name!r}: expected rows of 0, 1, ..., s - 1 entries in a, and s in b")
        for weights in (self.b, self.b_low or self.b):
            if abs(math.fsum(weights) - 1.0) > 1e-12:
                raise InputError(f"tableau {self.name!r}: expected weights with the sum 1, got {math.fsum(weights)}")

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.a, self.b))  # computed once: tableaux are looked up at every step

    @cached_property
    def c(self) -> tuple[float, ...]:
        """The stage times c: the row sums of A, with those that differ from 0 or 1 by rounding set to it."""
        sums = (math.fsum(row) for row in self.a)
        return tuple(float(round(c)) if abs(c - round(c)) < 1e-12 else c for c in sums)

    @property
    def stages(self) -> int:
        """The number of model evaluations per step."""
        return len(self.b)

    def stability_polynomial(self) -> tuple[float, ...]:
        """Return the coefficients (1, b.1, b.A.1, ...) of R(z), by which a step of y' = z y / h multiplies y."""
        s = self.stages
        matrix = np.zeros((s, s))
        for i, row in enumerate(self.a):
            matrix[i, :i] = row
        coefficients, vector = [1.0], np.ones(s)
        for _ in range(s):
            coefficients.append(float(np.dot(self.b, vector)))
            vector = matrix @ vector
        return tuple(coefficients)

    def real_interval(self) -> float:
        """Return the largest r with |R(z)| <= 1 on all of [-r, 0], from the roots of R(z) = 1 and R(z) = -1."""
        polynomial = np.array(self.stability_polynomial()[::-1])
        candidates: list[float] = []
        for level in (1.0, -1.0):
            shifted = polynomial.copy()
            shifted[-1] -= level
            roots = np.roots(shifted)
            candidates += [-float(r.real) for r in roots if abs(r.imag) < 1e-7 and r.real < -1e-7]
        # the first crossing, skipping points where the curve only touches the level
        edges = [0.0, *sorted(candidates)]
        for left, right in zip(edges, [*edges[1:], edges[-1] + 1.0], strict=True):
            if abs(np.polyval(polynomial, -(left + right) / 2)) > 1.0:
                return left
        return math.inf


EULER = Tableau("euler", ((),), (1.0,), 1, 1, "Song et al. 2021 (2010.02502)")
MIDPOINT = Tableau("midpoint", ((), (1 / 2,)), (0.0, 1.0), 2, 3, "Runge 1895; Lu et al. 2022 (2206.00927)")
HEUN = Tableau("heun", ((), (1.0,)), (1 / 2, 1 / 2), 2, 3, "Heun 1900; Karras et al. 2022 (2206.00364)", (1.0, 0.0))
RALSTON = Tableau("ralston", ((), (2 / 3,)), (1 / 4, 3 / 4), 2, 3, "Ralston 1962")
SSPRK3 = Tableau(
    "ssprk3",
    ((), (1.0,), (1 / 4, 1 / 4)),
    (1 / 6, 1 / 6, 2 / 3),
    3,
    3,
    "Shu & Osher 1988",
    (1 / 2, 1 / 2, 0.0),
)
RK4 = Tableau("rk4", ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4, 5, "Kutta 1901")
BOGACKI_SHAMPINE = Tableau(
    "bogacki-shampine",
    ((), (1 / 2,), (0.0, 3 / 4)),
    (2 / 9, 1 / 3, 4 / 9),
    3,
    3,
    "Bogacki & Shampine 1989",
    (7 / 24, 1 / 4, 1 / 3, 1 / 8),
)
DOPRI5 = Tableau(
    "dopri5",
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    5,
    5,
    "Dormand & Prince 1980",
    (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
)
TSIT5 = Tableau(
    "tsit5",
    (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    ),
    (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    5,
    5,
    "Tsitouras 2011",
    (
        0.09468075576583945,
        0.009183565540343254,
        0.4877705284247616,
        1.234297566930479,
        -2.7077123499835256,
        1.866628418170587,
        1 / 66,
    ),
)


@cache
def ees25(x: float = 0.1) -> Tableau:
    """Return EES(2,5;x): three stages, order 2, antisymmetric order 5.

    Args:
        x: Any number other than 1, 1/2 and -1/2.

    Raises:
        InputError: x is one of these, or is not finite.
    """
    if not math.isfinite(x) or any(abs(x - bad) < 1e-9 for bad in (1.0, 0.5, -0.5)):
        raise InputError(f"ees25: got x = {x}, expected a finite number other than 1, 1/2 and -1/2")
    a21 = (1 + 2 * x) / (4 * (1 - x))
    a31 = (4 * x - 1) ** 2 / (4 * (x - 1) * (1 - 4 * x * x))
    a32 = (1 - x) / (1 - 4 * x * x)
    # at x = 1/10 the second difference of the slopes, (h/20)(3 k1 - 5 k2 + 2 k3) ~ h^3 f''/48, estimates the error
    b_low = (-0.05, 0.75, 0.3) if x == 0.1 else None
    return Tableau("ees25", ((), (a21,), (a31, a32)), (x, 0.5, 0.5 - x), 2, 5, _EES_SOURCE, b_low)


EES27_X = (5 - 3 * SQRT2) / 14
"""The recommended parameter of EES(2,7;x) on the "+" branch."""


@cache
def ees27(x: float = EES27_X, branch: Literal["+", "-"] = "+") -> Tableau:
    """Return EES(2,7;x): four stages, order 2, antisymmetric order 7.

    Args:
        x: Any number other than the zeros of the denominators: 1, 1/2, (1 +- sqrt 2)/2, 1 +- 1/sqrt 2 and +-1/sqrt 2.
        branch: The sign of sqrt(2). "-" has a much smaller stability region (real interval 1.389 against 3.916) and a
            thousand times the defect, and is included for completeness.

    Raises:
        InputError: x is one of these zeros or is not finite, or the branch is neither "+" nor "-".
    """
    if branch not in ("+", "-"):
        raise InputError(f"ees27: got branch {branch!r}, expected '+' or '-'")
    poles = (1.0, 0.5, (1 + SQRT2) / 2, (1 - SQRT2) / 2, 1 + 1 / SQRT2, 1 - 1 / SQRT2, 1 / SQRT2, -1 / SQRT2)
    if not math.isfinite(x) or any(abs(x - bad) < 1e-9 for bad in poles):
        allowed = ", ".join(f"{p:.6g}" for p in sorted(poles))
        raise InputError(f"ees27: got x = {x}, expected a finite number other than {allowed}")
    r = SQRT2 if branch == "+" else -SQRT2
    p, q = 4 * x * x - 4 * x - 1, 2 * x * x - 4 * x + 1
    al = (1 + r - 2 * x) * (2 * x + r) / ((2 * x - 1) * p)
    be = (1 + r - 2 * x) * (2 + r - 2 * x) / ((2 * x - 1) * q * p)
    quartic = -40 * x**4 + (80 - 40 * r) * x**3 - (88 - 60 * r) * x**2 + (48 - 34 * r) * x + 7 * r - 10
    a21 = (-2 + r * (1 - 2 * x)) / (4 * (x - 1))
    a31 = (2 * x + r - 2) * (4 * x + r - 2) * al / (4 * r * (x - 1))
    a32 = (r - 1) * al / 2
    a41 = be * (2 * x - r) * quartic / (8 * (x - 1) * (2 * x * x - 1))
    a42 = (2 - r) * x * (x - 1) * (4 * x + r - 2) * be / 2
    a43 = (2 - r) * (2 * x - r) * (2 + r - 2 * x) * (x - 1) * (2 * x - 1) / (4 * (2 * x * x - 1) * q)
    b = (x, (2 - r) / 2 - (1 - r) * x, (1 - r) * (x - 1), (2 - r) / 2 - x)
    return Tableau("ees27", ((), (a21,), (a31, a32), (a41, a42, a43)), b, 2, 7, _EES_SOURCE)


_EES_SOURCE = "Shmelev, Ebrahimi-Fard, Tapia & Salvi 2025 (2507.21006)"
