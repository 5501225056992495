"""Measures of sounds, pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor

from .._internal.imports import needing
from ..errors import InputError


def si_snr(x: Tensor, y: Tensor) -> Tensor:
    """The scale-invariant signal-to-noise ratio of each pair of sounds in dB (Luo & Mesgarani 2018), by torchmetrics.

    Args:
        x: Sounds, shape (B, channels, samples).
        y: What they should be, of the same shape.

    Returns:
        The mean over the channels, shape (B,); infinite, or as large as rounding lets it be, where both are equal up
        to a factor.

    Raises:
        InputError: These are no sounds of one shape.
        MissingExtraError: torchmetrics is not installed.
    """
    _check("si_snr", x, y)
    with needing("torchmetrics", "torchmetrics", extra="metrics", purpose="the signal-to-noise ratio of sounds"):
        from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio
    return scale_invariant_signal_noise_ratio(x, y).mean(1)


def log_spectral_distance(x: Tensor, y: Tensor, *, window: int = 512) -> Tensor:
    """The log-spectral distance of each pair of sounds in dB (Gray & Markel 1976).

    It is the root mean square difference of the logarithms of two power spectra, over the frequencies of a short
    stretch, averaged over the stretches and the channels. Powers below -100 dB of a sine of full scale count as that.

    Args:
        x: Sounds in [-1, 1], shape (B, channels, samples).
        y: Sounds of the same shape.
        window: Samples in a stretch, which overlap by three quarters; at most the samples of a sound.

    Returns:
        The distance of each pair, shape (B,).

    Raises:
        InputError: These are no sounds of one shape, or the window is longer than they are.
    """
    _check("log_spectral_distance", x, y)
    if not 4 <= window <= x.shape[2]:
        raise InputError(f"window: got {window}, expected 4 to the {x.shape[2]} samples of a sound")
    one, two = (_log_power(sound, window) for sound in (x, y))
    found = (one - two).square().mean(1).sqrt().mean(1)
    return found.view(len(x), -1).mean(1)


def _log_power(x: Tensor, window: int) -> Tensor:
    """Power spectra in dB, shape (B channels, frequencies, stretches)."""
    shape = torch.hann_window(window, dtype=x.dtype, device=x.device)
    flat = x.flatten(0, 1)
    spectra = torch.stft(flat, window, window // 4, window=shape, center=False, return_complex=True)
    power = (spectra.abs() * (2.0 / shape.sum())).square()
    return 10.0 * torch.log10(power.clamp_min(1e-10))


def _check(name: str, x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 3:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise InputError(f"{name}: got shapes {shapes}, expected sounds of one shape (B, channels, samples)")
