"""Metrics on images and samples."""

from .images import psnr, rmse
from .shapes import count_shapes

__all__ = ["count_shapes", "psnr", "rmse"]
