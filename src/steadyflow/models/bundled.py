"""The trained models that ship with the library: weights in safetensors, what they are in the file's header."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from .. import files, schedules
from ..denoisers.base import Denoiser
from ..errors import CorruptFileError, UnknownNameError
from .networks import ResidualMLP, UNet

_NETWORKS = {"ResidualMLP": ResidualMLP, "UNet": UNet}


def names() -> list[str]:
    """The bundled models."""
    return sorted(p.name.removesuffix(".safetensors") for p in _folder().iterdir() if p.suffix == ".safetensors")


def pipeline_folder(name: str = "ink") -> Path:
    """The folder of a bundled text-to-image pipeline, for `steadyflow.adapters.pipelines.load_pipeline` or diffusers.

    Raises `UnknownNameError` for a name.
    """
    known = sorted(p.name for p in _folder().iterdir() if (p / "model_index.json").is_file())
    if name not in known:
        raise UnknownNameError("pipeline", name, known)
    return _folder() / name


def load(name: str) -> Denoiser:
    """A bundled model by name, or one that `save` wrote, by the path of its file.

    Raises `UnknownNameError` for a name, `CorruptFileError` for a file that is damaged or no such model.
    """
    if str(name).endswith(".safetensors"):
        return _read(Path(name))
    if name not in names():
        raise UnknownNameError("model", name, names())
    return _read(_folder() / f"{name}.safetensors")


def save(model: Denoiser, path: str | Path, network: dict[str, Any], **facts: Any) -> None:
    """Write a model whose net is one of this package's, with the arguments that rebuild it.

    network: {"type": class name, **arguments}. facts: anything worth telling of the training, JSON-able.
    """
    if not isinstance(model.net, nn.Module):
        raise TypeError("save: the denoiser's net must be a torch module")
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
    files.write(path, "model", model.net.state_dict(), {"model": json.dumps(about)})


def _folder() -> Path:
    return Path(str(resources.files("steadyflow.models") / "weights"))


def _read(path: Path) -> Denoiser:
    tensors, metadata = files.read(path, "model")
    try:
        about = json.loads(metadata["model"])
        network = dict(about["network"])
        kind = network.pop("type")
        net = _NETWORKS[kind](**network)
        net.load_state_dict(tensors)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CorruptFileError(f"{path}: not a model of this version ({error})") from error
    return Denoiser(
        net.eval().requires_grad_(False),
        schedules.from_spec(about["schedule"]),
        prediction=about["prediction"],
        shape=tuple(about["shape"]),
        null=about["null"],
        classes=about["classes"],
        time_scale=about["time_scale"],
        name=about["name"],
    )
