"""Metrics of images, pair by pair, and of sets of samples."""

from .features import Clip, Dino, Extractor, frechet_distance, lpips, precision_recall, structure_distance
from .images import ms_ssim, mse, psnr, rmse, ssim
from .samples import energy_distance, sliced_wasserstein
from .shapes import count_shapes

__all__ = [
    "Clip",
    "Dino",
    "Extractor",
    "count_shapes",
    "energy_distance",
    "frechet_distance",
    "lpips",
    "ms_ssim",
    "mse",
    "precision_recall",
    "psnr",
    "rmse",
    "sliced_wasserstein",
    "ssim",
    "structure_distance",
]
