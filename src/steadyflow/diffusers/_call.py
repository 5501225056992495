"""The arguments of a pipeline's own call, as a served model takes them.

The words of this library are translated into those of the pipeline: a condition is its `prompt`, the negative is its
`negative_prompt`, `guidance` is its scale of classifier-free guidance, and `embedded_guidance` that of networks that
take the scale as an input. All other arguments are the pipeline's own, by its own names; those that would take the run
out of our hands are refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._internal.given import text
from ..errors import InputError
from ._configs import network_fields

_OURS = {
    "num_inference_steps": "the verb takes steps=",
    "timesteps": "the verb takes grid=",
    "sigmas": "the verb takes grid=",
    "intermediate_timesteps": "the verb takes grid=",
    "latents": "they are the state, which the verb takes",
    "output_type": "decode returns tensors",
    "return_dict": "the call is answered one query at a time",
    "callback_on_step_end": "the verb takes callback=",
    "callback_on_step_end_tensor_inputs": "the verb takes callback=",
    "callback": "the verb takes callback=",
    "callback_steps": "the verb takes callback=",
    "strength": "how far to go up is the verb's (sf.edit(strength=...))",
    "denoising_start": "the verb takes grid=",
    "denoising_end": "the verb takes grid=",
    "eta": "the solver draws its own noise",
    "guidance_scale": "it is guidance=, or embedded_guidance= where the network takes the scale as an input",
    "true_cfg_scale": "it is guidance=",
    "negative_prompt": "it is negative_prompt= of from_diffusers, or with_negative",
}
"""Arguments of calls that are refused, and what to do instead."""
_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
_FROM_ZERO = ("ZImage", "Krea2", "Cosmos", "Kandinsky3")
"""Beginnings of the names of pipelines that guide by pred + w (pred - negative), where w = scale - 1."""
_ABOVE_ONE = ("Cosmos", "Kandinsky3")
"""Those of them that guide only where w > 1."""


_FORCED = {"strength": 1.0, "intermediate_timesteps": None}
"""Arguments of calls that would choose the steps."""
_ALSO = ("audio_guidance_scale",)
"""Scales of the same guidance for a further state, which the call's own argument overrides."""


@dataclass(frozen=True)
class Signature:
    """What the call of a pipeline's class takes."""

    name: str
    parameters: Mapping[str, inspect.Parameter]
    embeds_guidance: bool
    """Whether the network takes a scale of guidance as an input."""

    @staticmethod
    def of(pipe: Any) -> Signature:
        """The signature of a pipeline's call."""
        call = inspect.signature(inspect.unwrap(type(pipe).__call__)).parameters
        parameters = {name: p for name, p in call.items() if name != "self"}
        nets = [net for name in ("transformer", "unet") if (net := getattr(pipe, name, None)) is not None]
        fields = network_fields(nets[0]) if nets and hasattr(nets[0], "config") else {}
        embeds = bool(fields.get("guidance_embeds")) or fields.get("time_cond_proj_dim") is not None
        return Signature(type(pipe).__name__, parameters, embeds)

    @property
    def takes_prompts(self) -> bool:
        """Whether it takes prompts."""
        return "prompt" in self.parameters

    @property
    def scale(self) -> str | None:
        """The name of its scale of classifier-free guidance, None if it has none."""
        if "true_cfg_scale" in self.parameters:
            return "true_cfg_scale"
        return "guidance_scale" if "guidance_scale" in self.parameters and not self.embeds_guidance else None

    @property
    def count(self) -> str | None:
        """The name of its number of samples for a prompt, None if it has none."""
        return next((name for name in _COUNTS if name in self.parameters), None)

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Check further inputs of the call.

        Args:
            inputs: By their names.

        Raises:
            InputError: The call does not take one, or it is not for the caller to give.
        """
        for name, value in inputs.items():
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, str):
                    text(name, one)
            if name in _OURS or name in _COUNTS:
                raise InputError(f"{name}: {_OURS.get(name, 'the number of samples is that of the verb (n=)')}")
            if name not in self.parameters:
                free = [p for p in self.parameters if p not in _OURS and p not in _COUNTS]
                raise InputError(f"{name}: the call of {self.name} takes none; it takes {', '.join(free)}")

    def arguments(self, fixed: Mapping[str, Any], request: Request, rows: int, steps: int) -> dict[str, Any]:
        """All arguments of the call.

        Args:
            fixed: Those of every call.
            request: What it is opened with.
            rows: The number of samples.
            steps: How many steps it is told to take.
        """
        self.check_prompts(request)
        call = {**fixed, **request.inputs}
        if self.takes_prompts and request.prompt is not None:
            call["prompt"] = _listed(request.prompt)
        if request.negative is not None:
            call["negative_prompt"] = _listed(request.negative)
        negative = "negative_prompt" in call or "negative_prompt_embeds" in call
        call = {**self.guided(request.guidance, negative), **call}
        if request.prompts > 1:
            for name in ("prompt", "negative_prompt"):
                if isinstance(call.get(name), str):
                    call[name] = [call[name]] * request.prompts
        elif rows > 1 and self.count is not None:
            call[self.count] = rows
        for name, value in _FORCED.items():
            if name in self.parameters:
                call[name] = value
        call["num_inference_steps"] = steps
        generator = kept(call.get("generator") or torch.Generator().manual_seed(0))
        if rows > 1 and not isinstance(generator, list):  # every sample under the same inputs
            generator = [kept(generator) for _ in range(rows)]
        call["generator"] = generator
        if "output_type" in self.parameters:
            call["output_type"] = "latent"
        self.check_complete(call)
        return {k: v for k, v in call.items() if k in self.parameters}

    def check_prompts(self, request: Request) -> None:
        """Check that prompts are texts, and as many as negative ones.

        Args:
            request: What the call is opened with.

        Raises:
            InputError: They are not.
        """
        counts = []
        for name, given in (("prompt", request.prompt), ("negative_prompt", request.negative)):
            texts = given if isinstance(given, tuple) else (given,)
            if not texts or not all(t is None or isinstance(t, str) for t in texts):
                raise InputError(f"{name}: got {given!r}, expected a text, or one per sample")
            texts = [t if t is None else text(name, t) for t in texts]
            counts.append(len(texts))
        if len({*counts} - {1}) > 1:
            raise InputError(f"negative_prompt: got {counts[1]} for {counts[0]} prompts")

    def check_complete(self, call: Mapping[str, Any]) -> None:
        """Check that the call has all that it needs.

        Args:
            call: Its arguments.

        Raises:
            InputError: One is missing.
        """
        empty, kinds = inspect.Parameter.empty, (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for name, parameter in self.parameters.items():
            if parameter.default is empty and parameter.kind not in kinds and name not in call:
                raise InputError(f"{name}: the call of {self.name} needs it; give from_diffusers(..., {name}=...)")

    def guided(self, guidance: float, negative: bool) -> dict[str, Any]:
        """The arguments for a scale of classifier-free guidance.

        Args:
            guidance: The scale, 1 for the plain conditional model.
            negative: Whether there is a negative prompt.

        Raises:
            InputError: The pipeline cannot guide by it.
        """
        scale = self.scale
        if scale is None:
            if guidance != 1.0:
                raise InputError(self.unguided(guidance))
            return {}
        if guidance < 1.0:
            raise InputError(f"guidance: got {guidance:g}, but {self.name} guides by scales above 1 alone")
        value = guidance
        if self.name.startswith(_FROM_ZERO):
            value = guidance - 1.0
            if self.name.startswith(_ABOVE_ONE) and 0.0 < value <= 1.0:
                raise InputError(f"guidance: got {guidance:g}, but {self.name} guides by scales above 2 alone")
        given: dict[str, Any] = {scale: value}
        given |= {name: value for name in _ALSO if name in self.parameters}
        if scale == "true_cfg_scale" and guidance != 1.0 and not negative:
            given["negative_prompt"] = ""  # these pipelines guide only where there is one
        return given

    def unguided(self, guidance: float) -> str:
        """Why a scale of classifier-free guidance is refused."""
        if self.embeds_guidance:
            why = "its network takes the scale as an input: give from_diffusers(embedded_guidance=...)"
        elif "guidance_scale" not in self.parameters:
            why = "its call takes no scale; where it has a guider, that one's settings count (pipe.guider)"
        else:
            why = "it has none"
        return f"guidance: got {guidance:g}, but {self.name} does no classifier-free guidance: {why}"

    def embedded(self, scale: float | None) -> dict[str, Any]:
        """The argument for the scale that the network takes as an input.

        Args:
            scale: The scale; the default of the pipeline's own call if None.

        Raises:
            InputError: The network takes none.
        """
        if scale is None:
            return {}
        if not self.embeds_guidance or "guidance_scale" not in self.parameters:
            raise InputError(
                f"embedded_guidance: the network of this {self.name} takes none; `guidance` is the scale of "
                "classifier-free guidance"
            )
        return {"guidance_scale": scale}


@dataclass(frozen=True)
class Request:
    """What a call is opened with, beside the number of samples."""

    prompt: str | tuple[str, ...] | None
    negative: str | tuple[str, ...] | None
    guidance: float
    inputs: Mapping[str, Any]
    """Further arguments by name."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for requests that the same suspended call can answer."""
        return self.prompt, self.negative, self.guidance, tuple((k, _key(v)) for k, v in sorted(self.inputs.items()))

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for requests that differ in their prompts and in how strong the guidance is alone."""
        words = {"prompt", "negative_prompt"}
        inputs = tuple((k, _key(v)) for k, v in sorted(self.inputs.items()) if k not in words)
        return self.guidance != 1.0, self.negative is not None, self.prompt is not None, inputs

    @property
    def alone(self) -> Request:
        """The request for the first of its prompts."""
        first = [p[0] if isinstance(p, tuple) else p for p in (self.prompt, self.negative)]
        return Request(first[0], first[1], self.guidance, self.inputs)

    @property
    def prompts(self) -> int:
        """How many samples the prompts are for; 1 for prompts that are shared."""
        return max(len(p) if isinstance(p, tuple) else 1 for p in (self.prompt, self.negative))


def _key(value: Any) -> Any:
    """A value that is equal for equal inputs, as far as can be said cheaply; the inputs are kept alive meanwhile."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Tensor):
        return id(value), 0 if value.is_inference() else value._version
    if isinstance(value, Sequence):
        return tuple(_key(v) for v in value)
    return id(value)


def kept(value: Any) -> Any:
    """An input of a call as it is now, whatever becomes of the object."""
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list | tuple):
        return type(value)([kept(v) for v in value]) if type(value) in (list, tuple) else value
    return value


def _listed(prompt: str | tuple[str, ...]) -> str | list[str]:
    return prompt if isinstance(prompt, str) else list(prompt)


def without_embeddings(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a call without those that stand for a prompt."""
    return {k: v for k, v in inputs.items() if "prompt_embeds" not in k and "prompt_attention_mask" not in k}


def words(prompt: Any) -> str | tuple[str, ...] | None:
    """A prompt, or several, as they can be compared."""
    if prompt is None or isinstance(prompt, str) or not isinstance(prompt, list | tuple):
        return prompt
    return tuple(prompt) if len(prompt) != 1 else prompt[0]
