"""Numbers of multistep steps: integrals of interpolating polynomials, and the sums of tensors that they weight."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .._internal.tensors import combine
from ..prediction import Scaled
from ..schedules import Level


class LinearStep(NamedTuple):
    """The numbers of a step, x1 = x * state + sum of slopes * past slopes + noise_std * z."""

    x: float
    """The factor of the state."""
    slopes: tuple[float, ...]
    """The factors of the past slopes, the newest first."""
    noise_std: float = 0.0
    """The standard deviation of the noise."""

    def apply(self, x: Tensor, slopes: Sequence[Scaled]) -> Tensor:
        """Return the end of a step without its noise, shape (B, ...).

        Args:
            x: The state at its start, shape (B, ...).
            slopes: As many slopes as there are factors, the newest first.
        """
        factors = [weight * slope.factor for weight, slope in zip(self.slopes, slopes, strict=True)]
        return combine(self.x, x, factors, [slope.tensor for slope in slopes])


def regular(level: Level) -> bool:
    """Return whether the log-SNR of a level is finite: it is neither pure noise nor clean data."""
    return math.isfinite(level.log_snr)


def half_log_snr(level: Level) -> float:
    """Return lambda = ln(alpha / sigma)."""
    return 0.5 * level.log_snr


@cache
def gauss() -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    return 0.5 * (nodes + 1.0), 0.5 * weights


def lagrange_weights(knots: list[float], clock: np.ndarray, measure: np.ndarray) -> list[float]:
    """Return the integral of each Lagrange polynomial of the knots, by quadrature.

    Args:
        knots: The clock values of the slopes.
        clock: The clock values of the quadrature's nodes.
        measure: The weights of these nodes.
    """
    result: list[float] = []
    for j, knot in enumerate(knots):
        others = np.array(knots[:j] + knots[j + 1 :])
        values = np.prod((clock[:, None] - others) / (knot - others), axis=1)
        result.append(float(values @ measure))
    return result
