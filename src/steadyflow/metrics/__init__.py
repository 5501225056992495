"""Metrics of images, videos and sounds, pair by pair, and of sets of samples."""

from .features import Clip, Dino, Extractor, frechet_distance, lpips, precision_recall, structure_distance
from .images import as_frames, ms_ssim, mse, psnr, rmse, ssim
from .samples import energy_distance, sliced_wasserstein
from .shapes import count_shapes
from .sounds import log_spectral_distance, si_snr
from .videos import flicker, flicker_difference, per_frame

__all__ = [
    "Clip",
    "Dino",
    "Extractor",
    "as_frames",
    "count_shapes",
    "energy_distance",
    "flicker",
    "flicker_difference",
    "frechet_distance",
    "log_spectral_distance",
    "lpips",
    "ms_ssim",
    "mse",
    "per_frame",
    "precision_recall",
    "psnr",
    "rmse",
    "si_snr",
    "sliced_wasserstein",
    "ssim",
    "structure_distance",
]
