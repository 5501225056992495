"""Metrics on images and samples."""

from .images import psnr, rmse

__all__ = ["psnr", "rmse"]
