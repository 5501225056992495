"""How a pipeline is served: its call is read, opened and checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ._call import kept
from ._served_paths import served_path
from ._server import Server
from .served import NONE, ServedModel


def serve(
    pipe: Any,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    guidance: float,
    embedded_guidance: float | None,
    shift: float | None,
    call: dict[str, Any],
) -> ServedModel:
    """Open a pipeline's call as a model; the arguments are those of `from_diffusers`."""
    if getattr(pipe, "scheduler", None) is None or not hasattr(pipe, "components"):
        raise InputError(
            f"pipeline: {type(pipe).__name__} is none of diffusers' with a scheduler; to wrap its network: "
            "sf.Denoiser(net, schedule, prediction=..., shape=...), net(x, time, condition) -> (B, ...)"
        )
    path = served_path(pipe.scheduler, shift)
    server = Server(pipe, path, {})
    signature = server.signature
    if "num_inference_steps" not in signature.parameters:
        raise InputError(f"pipeline: the call of {signature.name} takes no num_inference_steps")
    signature.check(call)
    server.fixed = {name: kept(value) for name, value in call.items()} | signature.embedded(embedded_guidance)
    guides = signature.scale is not None
    model = ServedModel(
        _no_network, path.schedule, prediction=path.prediction, null=NONE if guides else None, name=signature.name,
        clip=path.clip, server=server,
    )  # fmt: skip
    embedded = any("prompt_embeds" in name for name in call)
    if prompt is not None or (signature.takes_prompts and not embedded):
        model = model.with_condition("" if prompt is None else prompt)
    if negative_prompt is not None:
        model = model.with_negative(negative_prompt)
    model = model.with_guidance(guidance)
    schedule = path.schedule
    if path.path is not None and shift is None and path.path.mu(1) is not None:
        default = signature.parameters["num_inference_steps"].default
        plan = server.plan(model.request.alone, default if isinstance(default, int) and default > 1 else 50)
        schedule = path.shifted(plan.get("mu"))
        server.path = served_path(pipe.scheduler, getattr(schedule, "shift", None))
        if plan.get("timesteps") is not None and plan.get("sigmas") is not None:
            scale = path.path.time_scale  # the network is told the times before the shift (CogView4)
            server.path = replace(server.path, time=lambda t: t * scale)
    server.open(model.request.alone)
    sizes = server.sizes
    shape = sizes[0] if len(sizes) == 1 else (sum(torch.Size(size).numel() for size in sizes),)
    if call.get("image") is not None and {"image", "strength"} <= signature.parameters.keys() and _only_starts(server):
        warnings.warn(
            f"image: in {signature.name} it is where a run begins, which is the state here; the model does not depend "
            "on it",
            stacklevel=3,
        )
    return model._replace(schedule=schedule, shape=shape)


def _only_starts(server: Server) -> bool:
    """Whether a pipeline takes a picture for the start of a run alone, as image-to-image forms do."""
    return server.signature.name.endswith(("Img2ImgPipeline", "VideoToVideoPipeline"))


def _no_network(*args: Any) -> Tensor:
    raise InputError("net: a served pipeline has no network of its own to call; call the model")
