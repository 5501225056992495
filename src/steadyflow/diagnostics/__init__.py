"""Diagnostics: what a solver and a model do to each other, in numbers."""

from ..jacobians import FlowMap
from . import amplification, detectors, stability_region
from .budget import Budget, Codec, in_precision
from .comparison import COMPARED, Comparison, compare
from .critical_window import CriticalWindow, critical_window
from .diagnosis import Diagnosis, Verification, diagnose
from .eigenvalues import Stiffness, stiffness
from .likelihood import Likelihood, log_likelihood
from .lipschitz import Contractivity, contractivity
from .remedies import CAUSES, Recommendation, Setting
from .scheme_figure import scheme_figure

__all__ = [
    "CAUSES",
    "COMPARED",
    "Budget",
    "Codec",
    "Comparison",
    "Contractivity",
    "CriticalWindow",
    "Diagnosis",
    "FlowMap",
    "Likelihood",
    "Recommendation",
    "Setting",
    "Stiffness",
    "Verification",
    "amplification",
    "compare",
    "contractivity",
    "critical_window",
    "detectors",
    "diagnose",
    "in_precision",
    "log_likelihood",
    "scheme_figure",
    "stability_region",
    "stiffness",
]
