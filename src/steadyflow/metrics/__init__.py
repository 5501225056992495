"""Metrics of images, videos and sounds, pair by pair, and of sets of samples."""

from .efficientnet import EfficientNetLite0
from .features import Clip, Dino, Extractor, feature_distance, lpips, precision_recall, structure_distance
from .images import as_frames, ms_ssim, mse, psnr, rmse, ssim
from .samples import energy_distance, frechet_distance, kernel_distance, sliced_wasserstein
from .shapes import count_shapes
from .sounds import log_spectral_distance, si_snr
from .videos import flicker, flicker_difference, per_frame

__all__ = [
    "Clip",
    "Dino",
    "EfficientNetLite0",
    "Extractor",
    "as_frames",
    "count_shapes",
    "energy_distance",
    "feature_distance",
    "flicker",
    "flicker_difference",
    "frechet_distance",
    "kernel_distance",
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
