"""ComfyUI: the one place from which its modules are imported.

They have no types of their own that could be checked here, so that all of them are `Any`.
"""

from importlib import import_module
from typing import Any


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ModuleNotFoundError(
            f"steadyflow_comfy: these are nodes of ComfyUI, which loads them itself; its module {name!r} is not there",
            name=error.name,
        ) from error


samplers: Any = _module("comfy.samplers")
sample: Any = _module("comfy.sample")
management: Any = _module("comfy.model_management")
previews: Any = _module("latent_preview")
folders: Any = _module("folder_paths")
