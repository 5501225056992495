"""Load a model of one's own in a precision and on a device, for the experiments that take one."""

from __future__ import annotations

from pathlib import Path

import torch

from steadyflow.denoisers import Denoiser
from steadyflow.diagnostics import in_precision
from steadyflow.diffusers import load_pipeline
from steadyflow.errors import InputError, UnknownNameError
from steadyflow.loading import PIPELINES, load_model
from steadyflow.models import pipeline_folder

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The precisions of a network; the states of a run are float32 in all of them."""


def load_in(
    name: str, device: str = "cpu", dtype: str = "float32", height: int | None = None, width: int | None = None
) -> Denoiser:
    """Load a model in a precision on a device; a pipeline is never held in a larger one.

    height, width: of the pictures of a pipeline, in pixels. Raises `UnknownNameError` for a precision,
    `InputError` for a size where the model is no pipeline.
    """
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    folder = pipeline_folder(name) if name in PIPELINES else Path(name)
    if folder.is_dir() or ("/" in name and folder.suffix != ".safetensors"):
        source = folder if folder.is_dir() else name
        return load_pipeline(source, dtype=DTYPES[dtype], device=device, height=height, width=width)
    if (height, width) != (None, None):
        raise InputError(f"height, width: {name!r} is no pipeline; its pictures have one size")
    model = load_model(name, device)
    return model if dtype == "float32" else in_precision(model, DTYPES[dtype])
