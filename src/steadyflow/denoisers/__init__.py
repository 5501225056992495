"""What answers a solver's query: a `Denoiser` around a network, or an exact mixture."""

from .base import Denoiser
from .mixtures import GaussianMixture, MixtureDenoiser

__all__ = ["Denoiser", "GaussianMixture", "MixtureDenoiser"]
