"""Noise schedules: Gaussian paths x_t = alpha(t) x0 + sigma(t) eps between data and noise."""

from .affine import LinearVP, NoisyFlow, PolynomialFlow, SmoothedFlow, SubVP
from .base import Level, Schedule, from_spec, levels
from .continuous import VE, RectifiedFlow, VariancePreserving, VPCosine, VPLinear, VPScaledLinear
from .tabulated import Tabulated

__all__ = [
    "VE",
    "Level",
    "LinearVP",
    "NoisyFlow",
    "PolynomialFlow",
    "RectifiedFlow",
    "Schedule",
    "SmoothedFlow",
    "SubVP",
    "Tabulated",
    "VPCosine",
    "VPLinear",
    "VPScaledLinear",
    "VariancePreserving",
    "from_spec",
    "levels",
]
