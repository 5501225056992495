"""Models of the data: a `Denoiser` around a network, or an exact mixture."""

from .base import Denoiser
from .fingerprints import fingerprint
from .mixtures import GaussianMixture, MixtureDenoiser
from .smoothing import Smoothing

__all__ = ["Denoiser", "GaussianMixture", "MixtureDenoiser", "Smoothing", "fingerprint"]
