"""The trained models that ship with the library: safetensors files with a description in the header.

Extension packages register others; steadyflow-lab has the models of its experiments.
"""

import dataclasses
import os
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import schedules
from .._internal import extensions, files, strict_json
from ..denoisers.base import Denoiser
from ..errors import MALFORMED, CorruptFileError, UnknownNameError
from ..prediction import Clip
from .networks import ResidualMLP, UNet

_LARGEST = 100_000
"""The largest size in the description of a network."""
_NETWORKS = {"ResidualMLP": ResidualMLP, "UNet": UNet}


def names() -> list[str]:
    """The names of the bundled models, and of those that installed extension packages register."""
    return sorted({*_own(), *_pipelines(), *extensions.registered(extensions.MODELS)})


def pipeline_folder(name: str = "ink") -> Path:
    """Find the folder of a bundled text-to-image pipeline, for diffusers or `pipeline_model.load_pipeline`.

    Args:
        name: The name of the pipeline.

    Raises:
        UnknownNameError: There is no such pipeline.
    """
    if name not in _pipelines():
        raise UnknownNameError("pipeline", name, _pipelines())
    return _folder() / name


def load(name: str | os.PathLike[str]) -> Denoiser:
    """Load a model.

    Args:
        name: The name of a bundled model or of one that an installed extension package registers, or the path of a
            .safetensors file that `save` wrote. A bundled pipeline becomes a model by `from_diffusers`.

    Raises:
        UnknownNameError: There is no model of this name.
        MissingExtraError: It is a pipeline, and diffusers is not installed.
        FileNotFoundError: There is no such file.
        CorruptFileError: The file is damaged, or is not a model.
    """
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    if str(name).endswith(".safetensors"):
        return _read(Path(name))
    if name in _own():
        return _read(_folder() / f"{name}.safetensors")
    if name in _pipelines():
        from ..diffusers import load_pipeline

        return dataclasses.replace(load_pipeline(pipeline_folder(name)), name=name)
    make = extensions.find(extensions.MODELS, name)
    if make is None:
        raise UnknownNameError("model", name, names(), extensions.hint(extensions.MODELS, name))
    return make(name)


def save(
    model: Denoiser, path: str | Path, network: dict[str, Any], *, dtype: torch.dtype | None = None, **facts: Any
) -> None:
    """Write a model whose network is one of `networks`, with the arguments that rebuild it.

    Args:
        model: The model.
        path: The file, whose name should end in .safetensors.
        network: {"type": class name, **arguments of the class}.
        dtype: The precision to which the weights are rounded in the file, such as float16 for half the size; `load`
            returns them in float32.
        **facts: What else to record about the model or its training, ready for JSON.

    Raises:
        TypeError: The network is not a torch module.
        StorageError: The file cannot be written.
    """
    if not isinstance(model.net, nn.Module):
        raise TypeError("save: the denoiser's net must be a torch module")
    weights = model.net.state_dict()
    if dtype is not None:
        weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
        facts = {**facts, "weights": f"stored in {str(dtype).removeprefix('torch.')}"}
    about = {
        "network": network,
        "schedule": model.schedule.spec(),
        "prediction": model.prediction,
        "shape": model.shape,
        "null": model.null,
        "classes": model.classes,
        "time_scale": model.time_scale,
        "name": model.name,
        "facts": facts,
    }
    if model.clip is not None:
        about["clip"] = dataclasses.asdict(model.clip)
    files.write(path, "model", weights, {"model": strict_json.dumps(about)})


def _own() -> list[str]:
    """The names of the models that ship with this package."""
    return [path.stem for path in _folder().glob("*.safetensors")]


def _pipelines() -> list[str]:
    """The names of the diffusers pipelines that ship with this package."""
    return sorted(path.parent.name for path in _folder().glob("*/model_index.json"))


def _folder() -> Path:
    return Path(str(resources.files("steadyflow.models") / "weights"))


def _read(path: Path) -> Denoiser:
    tensors, metadata = files.read(path, "model")
    try:
        about = strict_json.loads(metadata["model"])
        net = _network(dict(about["network"]), tensors)
        return Denoiser(
            net.eval().requires_grad_(False),
            schedules.from_spec(about["schedule"]),
            prediction=about["prediction"],
            shape=tuple(int(size) for size in about["shape"]),
            null=about["null"],
            classes=about["classes"],
            time_scale=float(about["time_scale"]),
            name=str(about["name"]),
            clip=Clip(**about["clip"]) if "clip" in about else None,
        )
    except MALFORMED as error:
        raise CorruptFileError(f"{path}: not a model of this version ({error})") from error


def _network(about: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """Build the network that a file describes; no memory is taken before it is known to have just these tensors."""
    make = partial(_NETWORKS[about.pop("type")], **about)
    for value in about.values():
        sizes = value if isinstance(value, list) else [value]
        if len(sizes) > 16 or not all(isinstance(size, int) and 0 <= size <= _LARGEST for size in sizes):
            raise ValueError(f"a network of size {value}")
    if about.get("blocks", 0) > len(tensors):
        raise ValueError(f"{about['blocks']} blocks, but {len(tensors)} tensors")
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in make().state_dict().items()}
    found = {name: value.shape for name, value in tensors.items()}
    if wanted != found:
        differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        raise ValueError(f"the tensors do not fit the network: {', '.join(differing[:3])}")
    with torch.device("cpu"):  # whatever the default is
        net = make()
    net.load_state_dict(tensors)
    return net
