"""Models by name, as the command line and the workers of a run load them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ._internal import files
from ._internal.given import device_of
from ._internal.imports import is_missing
from .datasets import arrays, contents
from .denoisers import Denoiser, GaussianMixture
from .denoisers.base import Condition
from .denoisers.fingerprints import numbers_of
from .denoisers.mixtures import MixtureDenoiser
from .errors import InputError
from .identity import Identity, identify
from .models import load, pipeline_folder
from .schedules import VPLinear

PIPELINES = ("ink",)
"""Bundled models that are diffusers pipelines."""


def load_model(
    name: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    call: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Denoiser:
    """Load a model.

    Args:
        name: A bundled model ("digits"); "mixture", 25 exact modes; the path of a saved .safetensors model; a diffusers
            pipeline, by its folder or its name on the hub; or "module:function", which returns a `Denoiser` of your
            own.
        device: The device of its network, such as "cpu" or "cuda".
        call: Arguments of a pipeline's call by name, such as a size; texts are read as `call_value` says.
        dtype: The precision of a pipeline's networks; float32 by default.

    Raises:
        UnknownNameError: The name is none of these.
        InputError: The function cannot be found or returns something else, the model cannot be moved, or is no pipeline
            and there are arguments of a call or a precision.
        CorruptFileError: The files are damaged.
    """
    name, place = os.fspath(name), device_of(device)
    model = _find(name, {key: call_value(key, value) for key, value in (call or {}).items()}, place, dtype)
    return model if place == torch.device("cpu") else _moved(model, place)


_NOT_OF_CALLS = {
    **dict.fromkeys(("path", "pipe", "dtype", "served"), ""),
    "device": "; give --device",
    "guidance": "; give --guidance",
    "prompt": "; give --prompt or --source",
}
"""Names that `load_model` would take for something else."""
_TEXTS = ("negative_prompt", "prompt_2", "negative_prompt_2")
"""Arguments of calls that are text, whatever they look like."""


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and Path(value).suffix.lower() in arrays.PICTURES


def call_value(name: str, value: Any) -> Any:
    """An argument of a pipeline's call, from text: JSON, the path of a picture, or the text itself.

    Args:
        name: Its name.
        value: The text; anything else is returned as it is.

    Raises:
        InputError: It is the path of a picture that is not there.
    """
    if name in _NOT_OF_CALLS:
        raise InputError(f"call: {name} is no argument of a pipeline's call{_NOT_OF_CALLS[name]}")
    if isinstance(value, list):
        return [call_value(name, v) if _is_picture(v) else v for v in value]
    if not isinstance(value, str):
        return value
    try:
        return value if name in _TEXTS else call_value(name, json.loads(value))
    except ValueError:
        pass
    if not _is_picture(value):
        return value
    if not Path(value).is_file():
        raise InputError(f"{name}: there is no picture {value}")
    return arrays.open_picture(Path(value))


def _find(name: str, call: dict[str, Any], device: torch.device, dtype: torch.dtype | None) -> Denoiser:
    folder = pipeline_folder(name) if name in PIPELINES else Path(name)
    is_pipeline = folder.is_dir() or ("/" in name and folder.suffix != ".safetensors" and ":" not in name)
    if call and not is_pipeline:
        raise InputError(f"call: got {next(iter(call))}, but only pipelines take arguments of a call, {name!r} is none")
    if dtype is not None and not is_pipeline:
        raise InputError(f"dtype: only pipelines are loaded in another precision, {name!r} is none")
    if name == "mixture":
        return GaussianMixture.grid().denoiser(VPLinear())
    module, colon, function = name.partition(":")
    if colon and module.replace(".", "_").isidentifier() and function.isidentifier():
        return _made(module, function)
    if is_pipeline:
        from .diffusers import load_pipeline

        precision = torch.float32 if dtype is None else dtype
        found = load_pipeline(folder if folder.is_dir() else name, dtype=precision, device=device, **call)
        return dataclasses.replace(found, name=name) if name in PIPELINES else found
    return load(name)


def _made(module: str, function: str) -> Denoiser:
    """What a function of the user's returns; its module may lie in the working directory."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        if isinstance(error, ImportError) and not is_missing(error, module):
            raise InputError(f"model: {module} cannot be imported ({type(error).__name__}: {error})") from error
        raise InputError(f"model: {module}:{function} cannot be found ({error}); is it on PYTHONPATH?") from error
    model = make()
    if not isinstance(model, Denoiser):
        raise InputError(f"model: {module}:{function} returned {type(model).__name__}, expected a steadyflow Denoiser")
    return model


def _moved(model: Denoiser, device: torch.device) -> Denoiser:
    """The model with its network on a device."""
    if isinstance(model, MixtureDenoiser):
        return model  # goes where the states are
    pipe = _pipeline(model)
    if pipe is not None:
        here: torch.device = getattr(pipe, "_execution_device", pipe.device)
        if here.type != device.type:  # a pipeline that a function or an extension package has loaded
            pipe.to(device)
        return model
    if isinstance(model.net, nn.Module):
        model.net.to(device)
        return model
    raise InputError(f"device: the model {model.name!r} is no torch module; only 'cpu' is known to work for it")


def _pipeline(model: Denoiser) -> Any:
    """The diffusers pipeline of a model, or None."""
    return getattr(model, "pipe", None)


def takes_prompts(model: Denoiser) -> bool:
    """Whether a model's conditions are prompts."""
    return bool(getattr(model, "takes_prompts", False))


def apply_condition(
    model: Denoiser,
    label: Condition,
    prompt: str | None = None,
    *,
    guidance: float | None = None,
    source_guidance: float | None = None,
) -> Denoiser:
    """Set a model's condition, if one is given.

    Args:
        model: The model.
        label: A class, one per sample, or the captions of the samples.
        prompt: The condition of a model that takes prompts, in place of a label.
        guidance: The scale of guidance that the verb will be given, which is only checked.
        source_guidance: The scale of guidance on the way up, which is only checked.

    Returns:
        The model under the condition; the model itself if there is none.

    Raises:
        InputError: A prompt is given to a model of classes or a class to a model of prompts, or there is a scale of
            guidance without a condition.
    """
    if prompt is not None and not takes_prompts(model):
        raise InputError(f"prompt: the model {model.name!r} takes none; give --label")
    if label is not None and takes_prompts(model) and isinstance(label, int):
        raise InputError("label: this model takes words; give --prompt")
    given = label if prompt is None else prompt
    if given is not None:
        try:
            return model.with_condition(given)
        except InputError as error:
            raise InputError(f"label: {str(error).removeprefix('condition: ')}") from error
    for name, scale in (("guidance", guidance), ("source_guidance", source_guidance)):
        if scale is not None and scale != 1.0:
            raise InputError(f"{name}: needs something to guide to; give --label, or --prompt to a model of prompts")
    return model


def identity(model: Denoiser, name: str) -> Identity:
    """Find what stands for a model that was loaded by name; of a pipeline in a folder, its small files, too.

    Args:
        model: The model.
        name: Its name.
    """
    found, folder = identify(model), Path(name)
    if not folder.is_dir() or _pipeline(model) is None:
        return found
    small = [path for path in contents.inside(folder) if path.suffix in _CONFIGURATION]
    return dataclasses.replace(found, parts={**found.parts, "files": contents.together(small)})


_CONFIGURATION = (".json", ".txt", ".model", ".py", ".jinja")
"""Files of a pipeline that hold its configuration and its vocabularies."""


def fingerprint(model: Denoiser) -> str:
    """Hash a model's path, prediction, shape and numbers.

    The numbers are those of a torch module, of a mixture, or of the modules of a pipeline; a function has none.

    Returns:
        Sixteen hexadecimal digits.
    """
    described = (model.schedule.spec(), model.prediction, model.shape)
    if model.clip is not None:
        described = (*described, dataclasses.asdict(model.clip))
    if hasattr(model, "described"):
        described = (*described, model.described())  # pyright: ignore[reportAttributeAccessIssue]
    return files.digest(described, numbers_of(model))
