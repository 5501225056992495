"""Diagnoses: what a solver and a model do to each other, in numbers."""

from . import instability, stability
from .budget import Budget, Codec, in_precision
from .diagnosis import Diagnosis, Verification, diagnose
from .likelihood import Likelihood, log_likelihood
from .maps import JourneyMap
from .remedies import CAUSES, Recommendation, Setting

__all__ = [
    "CAUSES",
    "Budget",
    "Codec",
    "Diagnosis",
    "JourneyMap",
    "Likelihood",
    "Recommendation",
    "Setting",
    "Verification",
    "diagnose",
    "in_precision",
    "instability",
    "log_likelihood",
    "stability",
]
