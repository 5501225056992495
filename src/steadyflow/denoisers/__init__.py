"""Models of the data: a `Denoiser` around a network, or an exact mixture."""

from .base import Denoiser
from .fingerprints import fingerprint
from .mixtures import GaussianMixture, MixtureDenoiser
from .posteriors import FullMixture
from .smoothing import Smoothing

__all__ = ["Denoiser", "FullMixture", "GaussianMixture", "MixtureDenoiser", "Smoothing", "fingerprint"]
