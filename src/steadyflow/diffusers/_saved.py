"""Saved pipelines as models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .._internal import strict_json
from .._internal.given import device_of, floating
from .._internal.imports import needing
from ..errors import BrokenExtraError, CorruptFileError
from .pipeline_model import PipelineModel, from_diffusers
from .served import ServedModel


def load_pipeline(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **options: Any
) -> PipelineModel | ServedModel:
    """Load a saved pipeline as a model.

    Args:
        path: A folder in diffusers' format, or a name on the hub where it is cached.
        dtype: The precision of its networks, such as torch.bfloat16 for those that would not fit in float32.
        device: Where it computes.
        **options: Those of `from_diffusers`.

    Returns:
        The model.

    Raises:
        MissingExtraError: diffusers or transformers is not installed.
        BrokenExtraError: It is, and fails, or lacks what this pipeline needs.
        CorruptFileError: The folder holds no complete pipeline.
    """
    dtype, device = floating(dtype), device_of(device)
    with needing(
        "diffusers and transformers", "diffusers", "transformers", extra="diffusers", purpose="loading pipelines"
    ):
        import transformers  # noqa: F401
        from diffusers.pipelines import pipeline_utils
    try:
        with _quiet():
            # diffusers before 0.42 knows the word by its old name only
            word = "dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype"
            given = {word: dtype, **_left_out(Path(path))}
            pipe = pipeline_utils.DiffusionPipeline.from_pretrained(str(path), **given).to(device, dtype)
    except (ImportError, RuntimeError) as error:  # of what a single pipeline needs; diffusers hides it in the second
        if isinstance(error, RuntimeError) and "Failed to import" not in str(error):
            raise
        raise BrokenExtraError("diffusers", f"loading {path}", error) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise CorruptFileError(f"{path}: no pipeline that diffusers can load ({error})") from error
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return from_diffusers(pipe, **options)


def _left_out(folder: Path) -> dict[str, None]:
    """The parts that a pipeline was saved without, such as Stable Diffusion 3's third text encoder.

    diffusers writes them down, and asks for them again when the pipeline is loaded, unless it is told that there are
    none.
    """
    try:
        index = strict_json.loads((folder / "model_index.json").read_bytes())
    except OSError:  # a name on the hub, or no pipeline, which diffusers says
        return {}
    parts = index if isinstance(index, dict) else {}
    return {name: None for name, value in parts.items() if value == [None, None]}


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the progress bars and the advice of diffusers and transformers, which they show even off a terminal."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [(library, library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, shown, level in before:
            library.set_verbosity(level)
            if shown:
                library.enable_progress_bar()
