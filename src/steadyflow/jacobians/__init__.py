"""Jacobians of steps and runs: products, divergence, singular values. What corrections and diagnoses are made of."""

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
