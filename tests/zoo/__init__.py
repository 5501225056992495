"""Tiny random pipelines of many diffusers families, built in memory; real code paths, no downloads.

`MEMBERS` maps a name to a `Member`; `build(name)` returns its pipeline, ready to run, always with the same weights.
"""

import importlib
import importlib.util
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
import transformers

from ._member import Member

OLDEST = (("diffusers", diffusers, (0, 42)), ("transformers", transformers, (5,)))
for _name, _library, _version in OLDEST:
    if tuple(map(int, _library.__version__.split(".")[: len(_version)])) < _version:
        _told = ".".join(map(str, _version))
        pytest.skip(f"the pipelines of the zoo are those of {_name} {_told}", allow_module_level=True)

__all__ = ["MEMBERS", "NOT_BUILT", "Member", "build", "call_of"]


def _merged() -> dict[str, Member]:
    members: dict[str, Member] = {}
    for module in ("images", "video", "audio"):
        if importlib.util.find_spec(f"{__name__}.{module}") is None:
            continue
        for member in importlib.import_module(f"{__name__}.{module}").MEMBERS:
            if member.name in members:
                raise ValueError(f"two members of the zoo are called {member.name!r}")
            members[member.name] = member
    return members


MEMBERS: dict[str, Member] = _merged()

# pipelines that the zoo does without, and why
NOT_BUILT: dict[str, str] = {
    "KolorsPipeline": "needs sentencepiece",
    "KolorsImg2ImgPipeline": "needs sentencepiece",
    "OmniGenPipeline": "needs torchvision",
    "LongCatImageEditPipeline": "makes pictures of a million pixels only: minutes",
}


def modules(pipe) -> dict[str, torch.nn.Module]:
    """The networks of a pipeline, by the names of its components."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def build(name: str, seed: int = 0):
    """A pipeline in evaluation mode, always with the same weights for the same seed.

    Many networks are born with some of their weights at zero: output projections, gates, the convolutions of a
    ControlNet. Such a network ignores part of its input, and a test of it shows nothing. Others leave a weight as
    they found it in memory, for a checkpoint to fill. Here both kinds are filled with small noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _marked_memory():
            pipe = MEMBERS[name].make()
        for module in modules(pipe).values():
            module.eval().requires_grad_(False)
            for weight in module.parameters():
                if weight.is_floating_point() and (weight.isnan().any() or not weight.any()):
                    weight.normal_(std=0.05)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _marked_memory():
    """Tensors that nothing has filled are NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def call_of(name: str) -> dict[str, Any]:
    """Arguments of the smallest meaningful run of a member."""
    return MEMBERS[name].call()
