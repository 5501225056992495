"""What tells a model from another at a glance: its path and a sample of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._internal import files
from .base import Denoiser
from .mixtures import MixtureDenoiser

_TENSORS, _NUMBERS = 256, 16


def fingerprint(model: Denoiser) -> str:
    """Hash a model's path, prediction, and some numbers of some of its weights, in a few milliseconds.

    The weights of other training, a quantised network and another path give another hash; condition and guidance do
    not. A function has no weights to look at, so that its name stands for it.

    Args:
        model: The model.

    Returns:
        Sixteen hexadecimal digits.
    """
    described: tuple[Any, ...] = (model.schedule.spec(), model.prediction, model.shape)
    described = (*described, *inside_of(model))
    numbers = numbers_of(model)
    if not numbers:
        return files.digest((*described, model.name), {})
    names = sorted(numbers)
    chosen = names[:: max(1, len(names) // _TENSORS)]
    shapes = tuple((name, tuple(numbers[name].shape), str(numbers[name].dtype)) for name in chosen)
    pieces = [numbers[name].detach().flatten()[:_NUMBERS].float().cpu() for name in chosen]
    return files.digest((*described, shapes), {"numbers": torch.cat(pieces)})


def numbers_of(model: Denoiser) -> dict[str, Tensor]:
    """Return a model's numbers by name: of a torch module, of a mixture, or of the modules of a pipeline.

    Args:
        model: The model; a function has none.
    """
    base = vars(model).get("base")
    if isinstance(base, Denoiser):  # a model around another: that one's numbers, and its own
        own = {field.name for field in dataclasses.fields(Denoiser)}
        parts = {name: part for name, part in vars(model).items() if name not in own}
        found = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
        operator = cast("dict[str, Any]", vars(parts["operator"]) if "operator" in parts else {})
        found |= {f"operator.{name}": part for name, part in operator.items() if isinstance(part, Tensor)}
        return {**{f"base.{name}": part for name, part in numbers_of(base).items()}, **found}
    if isinstance(model, MixtureDenoiser):
        mixture = model.mixture
        numbers = {"means": mixture.means, "std": mixture.std, "weights": mixture.weights}
        return numbers if mixture.labels is None else {**numbers, "labels": mixture.labels}
    pipe = getattr(model, "pipe", None)
    parts = {"net": model.net} if pipe is None else cast("Mapping[str, Any]", pipe.components)
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    numbers = {f"{name}.{key}": v for name, module in modules.items() for key, v in module.state_dict().items()}
    return {key.replace("._orig_mod.", "."): v for key, v in numbers.items()}  # torch.compile's wrapper


def inside_of(model: Denoiser) -> tuple[str, ...]:
    """Return what tells models around others apart besides their numbers: in words, and of those inside as well."""
    base = vars(model).get("base")
    if not isinstance(base, Denoiser):
        return ()
    said = getattr(type(model), "described", None)
    return (*(() if said is None else (repr(said(model)),)), *inside_of(base))
