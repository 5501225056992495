"""Metrics on images and samples."""

from .images import psnr, rmse
from .samples import energy_distance, sliced_wasserstein
from .shapes import count_shapes

__all__ = ["count_shapes", "energy_distance", "psnr", "rmse", "sliced_wasserstein"]
