"""Diagnoses: what a solver and a model do to each other, in numbers."""

from . import detectors, instability, interpolation, saddles, stability
from .budget import Budget, Codec, in_precision
from .contractivity import Contractivity, contractivity
from .diagnosis import Diagnosis, Verification, diagnose
from .likelihood import Likelihood, log_likelihood
from .maps import JourneyMap
from .remedies import CAUSES, Recommendation, Setting

__all__ = [
    "CAUSES",
    "Budget",
    "Codec",
    "Contractivity",
    "Diagnosis",
    "JourneyMap",
    "Likelihood",
    "Recommendation",
    "Setting",
    "Verification",
    "contractivity",
    "detectors",
    "diagnose",
    "in_precision",
    "instability",
    "interpolation",
    "log_likelihood",
    "saddles",
    "stability",
]
