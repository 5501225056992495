"""How a pipeline is served: its call is read, opened and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
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
    server.fixed = {**call, **signature.embedded(embedded_guidance)}
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
    first = model.request if model.request.prompts == 1 else model.slice(0, 1).request
    server.open(first)
    sizes = server.sizes
    shape = sizes[0] if len(sizes) == 1 else (sum(torch.Size(size).numel() for size in sizes),)
    schedule = path.schedule
    if path.path is not None and shift is None and path.path.mu(1) is not None:
        default = signature.parameters["num_inference_steps"].default
        plan = server.plan(first, default if isinstance(default, int) and default > 1 else 50)
        schedule = path.shifted(plan.get("mu"))
        if schedule is not path.schedule:
            server.path = served_path(pipe.scheduler, getattr(schedule, "shift", None))
    return model._replace(schedule=schedule, shape=shape)


def _no_network(*args: Any) -> Tensor:
    raise InputError("net: a served pipeline has no network of its own to call; call the model")
