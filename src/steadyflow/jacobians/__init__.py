"""Jacobians of steps and runs: products, divergence and singular values, for the corrections and the diagnostics."""

from .divergences import DivergenceMethod, divergence
from .maps import DENSE_LIMIT, FlowMap, StepMap, Tangent
from .spectra import Spectrum, largest_singular_value, singular_values

__all__ = [
    "DENSE_LIMIT",
    "DivergenceMethod",
    "FlowMap",
    "Spectrum",
    "StepMap",
    "Tangent",
    "divergence",
    "largest_singular_value",
    "singular_values",
]
