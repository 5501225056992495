"""LATENTs in and out: what is accepted of them, and what is refused by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steadyflow import InputError

from . import host

Latent = dict[str, Any]
"""ComfyUI's LATENT: "samples", shape (B, C, ...), and what belongs to them."""


def samples_of(latent: Latent, guider: Any) -> Tensor:
    """The samples of a LATENT, as ComfyUI hands them to a guider.

    Raises:
        InputError: They are none that a way through the model can begin with.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise InputError("latent: joins several things, such as a video and its sound; give one of them")
    if not bool(torch.count_nonzero(samples)):
        raise InputError("latent: is empty (all zeros); give that of a picture, as of VAE Encode")
    patcher = guider.model_patcher
    samples = host.sample.fix_empty_latent_channels(patcher, samples)
    channels = patcher.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        raise InputError(f"latent: has {samples.shape[1]} channels, but those of the model have {channels}")
    return samples


def refuse_mask(latent: Latent, what: str) -> None:
    """Raise `InputError` where a LATENT has a mask, which `what` cannot honour."""
    if latent.get("noise_mask") is not None:
        raise InputError(f"latent: has a noise mask, which {what} cannot honour; connect one without a mask")


def first_index(latent: Latent, count: int) -> int:
    """The index of the first sample of a batch, for the noise of its samples.

    Args:
        latent: The LATENT; "batch_index" numbers its samples where they were taken from a larger batch.
        count: The number of samples.

    Raises:
        InputError: The numbers do not follow one another.
    """
    rows = [int(row) for row in latent.get("batch_index", range(count))]
    if not rows or rows != list(range(rows[0], rows[0] + count)):
        raise InputError(f"latent: batch_index is {rows} for {count} samples; expected numbers that follow one another")
    return rows[0]


def latent_like(latent: Latent, samples: Tensor, guider: Any) -> Latent:
    """A LATENT with other samples, which are in the model's own space; shape (B, C, ...)."""
    out = guider.model_patcher.model.process_latent_out(samples.to(torch.float32))
    return {**latent, "samples": out.to(host.management.intermediate_device())}
