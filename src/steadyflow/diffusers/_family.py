"""What is common to the families of diffusers pipelines: how prompts are encoded and the network is called."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._internal.given import whole
from .._internal.imports import needing
from ..errors import InputError
from ._configs import network_fields, vae_fields
from ._draws import without_variance

Embeddings = dict[str, Tensor]
"""What a network takes for prompts, by name."""
Network = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""A network called as net(x, time, embeddings); returns a tensor of x's shape, (B, ...)."""

_PARTS = frozenset(
    ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "safety_checker",
     "image_encoder")
)  # fmt: skip
"""The modules of a pipeline that are reproduced, or that change no latents."""
_LORA = "pytorch_lora_weights.safetensors"
"""The name under which diffusers saves a LoRA."""
_INSTEAD = "keep the pipeline's own call, with a steadyflow solver as its scheduler"


class Family(ABC):
    """How one family of pipelines encodes prompts and calls its network."""

    flow = False
    """Whether its models are flow models, with a transformer for a network."""
    prompts = True
    """Whether its networks take prompts."""
    names: tuple[str, ...] = ("prompt_embeds",)
    """The names of the embeddings."""
    takes: frozenset[str] = frozenset()
    """Arguments of the pipeline's call that it takes beside prompts, guidance and size."""
    multiple = 1
    """The number of latents in each direction of which the image's size must be a multiple."""

    def __init__(self, pipe: Any, learned_variance: bool = False, call: Mapping[str, Any] | None = None):
        self.pipe = pipe
        self.call = dict(call or {})
        self.net = pipe.transformer if self.flow else pipe.unet
        self.fields = network_fields(self.net)
        self.dtype = next(self.net.parameters()).dtype
        self.learned_variance = learned_variance
        self._adapter: str | None = None
        self._embedded: float | None = None

    @property
    def encodes(self) -> bool:
        """Whether there is a text encoder."""
        return getattr(self.pipe, "text_encoder", None) is not None

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes, also where it is offloaded."""
        return self.pipe._execution_device

    def check(self) -> None:
        """Check that the pipeline takes nothing that would be left out.

        Raises:
            InputError: It does.
        """
        name = type(self.pipe).__name__
        for part, module in self.pipe.components.items():
            if isinstance(module, torch.nn.Module) and part not in _PARTS:
                raise InputError(f"pipeline: {name} has a {part}, which would be left out; {_INSTEAD}")
        if getattr(self.net, "encoder_hid_proj", None) is not None:
            raise InputError(f"pipeline: an IP-Adapter is loaded, whose pictures would be left out; {_INSTEAD}")
        for key, accepted in self.inputs.items():
            value = self.fields[key]
            if value not in accepted:
                raise InputError(f"{key}: the network's config says {value!r}, so it takes a further input; {_INSTEAD}")
        vae = getattr(self.pipe, "vae", None)
        wanted = self.channels if vae is None else vae_fields(vae)["latent_channels"]
        if self.channels != wanted:
            raise InputError(
                f"in_channels: the network takes {self.channels} channels, the latents have {wanted}; the rest is a "
                f"further picture or mask, which would be left out; {_INSTEAD}"
            )
        into, out = self.fields["in_channels"], self.fields["out_channels"]
        if out not in (None, into) and not (out == 2 * into and self.learned_variance):
            raise InputError(
                f"out_channels: the network returns {out} channels for {into}, and its scheduler's "
                "variance_type does not say that the rest is a learned variance"
            )

    inputs: Mapping[str, tuple[Any, ...]] = {}
    """Fields of the network's config that ask for further inputs, and the values that are provided for."""

    def set_embedded_guidance(self, given: float | None) -> None:
        """Set the guidance that the network takes as an input; that of the pipeline's own call by default.

        Args:
            given: The scale.

        Raises:
            InputError: The network takes none.
        """
        if self.embeds_guidance:
            default = inspect.signature(type(self.pipe).__call__).parameters["guidance_scale"].default
            self._embedded = float(default if given is None else given)
        elif given is not None:
            raise InputError(
                f"embedded_guidance: the network of this {type(self.pipe).__name__} takes none; `guidance` is the "
                "scale of classifier-free guidance"
            )

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes a scale of guidance as an input."""
        return self.fields["time_cond_proj_dim"] is not None

    def _guidance_embedding(self, x: Tensor) -> Tensor | None:
        """The embedding of the scale of guidance for LCM's networks, shape (B, width); None for others."""
        if self._embedded is None:
            return None
        width = self.fields["time_cond_proj_dim"]
        scale = torch.full((len(x),), self._embedded - 1.0)
        return as_like(self.pipe.get_guidance_scale_embedding(scale, embedding_dim=width), x)

    def net_with(self, shape: tuple[int, ...], adapter: str | None = None) -> Callable[..., Tensor]:
        """The network as `Denoiser` calls it.

        Args:
            shape: The shape of one latent.
            adapter: The name of a LoRA that was loaded; None for the network without one.
        """
        network = self.network(shape)

        def net(x: Tensor, time: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
            if condition is None and self.prompts:
                raise InputError(
                    "condition: this pipeline's network needs a prompt; the pipeline has no text encoder, so give "
                    f"model.with_condition({{...}}) the embeddings by name: {', '.join(self.names)}"
                )
            missing = [name for name in self.names if name not in (condition or {})] if self.prompts else []
            if missing:
                raise InputError(
                    f"condition: lacks the embedding {missing[0]!r}; this network takes {', '.join(self.names)}"
                )
            self._use(adapter)
            with self._in_cache_context():
                output = network(x, time, condition or {})
            return without_variance(output, x) if self.learned_variance else output

        return net

    def _in_cache_context(self) -> AbstractContextManager[Any]:
        """What diffusers' step caches ask for: which of a step's calls this is. Guidance has both branches in one."""
        if getattr(self.net, "is_cache_enabled", False) and hasattr(self.net, "cache_context"):
            return self.net.cache_context("cond_uncond")
        return nullcontext()

    def load_lora(self, path: str, weight_name: str | None, scale: float) -> str:
        """Load a LoRA beside the network, switched off.

        Args:
            path: The folder of the weights.
            weight_name: The file in the folder; found by diffusers if None.
            scale: The factor of the LoRA's weights.

        Returns:
            The name by which to switch it on.

        Raises:
            InputError: It fits another network.
            MissingExtraError: peft is not installed.
        """
        name = f"lora{len(getattr(self.net, 'peft_config', {}))}"
        with needing("peft", "peft", extra="diffusers", purpose="reading LoRA weights"):
            import peft  # noqa: F401
        if weight_name is None and (Path(path) / _LORA).is_file():
            weight_name = _LORA  # which diffusers 0.36 does not look for where it may not ask the hub
        try:
            self.pipe.load_lora_weights(path, weight_name=weight_name, adapter_name=name)
            self.net.set_adapters([name], weights=[scale])
        except (ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"lora: {path} does not fit {type(self.pipe).__name__}: {_first_line(error)}") from error
        self.net.disable_adapters()
        self._adapter = None
        return name

    def _use(self, adapter: str | None) -> None:
        """Switch to a LoRA, or to none; where it is on already, nothing is done."""
        if adapter == self._adapter:
            return
        if adapter is None:
            self.net.disable_adapters()
        else:
            self.net.enable_adapters()
            self.net.set_adapter(adapter)
        self._adapter = adapter

    def shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """The shape of one latent.

        Args:
            height: Of the images, in pixels; the network's own by default.
            width: Of the images, in pixels; the network's own by default.

        Raises:
            InputError: The size is not a multiple of what the network needs.
        """
        factor = getattr(self.pipe, "vae_scale_factor", 1)
        side = self.fields["sample_size"]
        sides = (side, side) if isinstance(side, int) else tuple(side)
        size = [own * factor if asked is None else asked for asked, own in zip((height, width), sides, strict=True)]
        step = factor * self.multiple
        if any(not isinstance(s, int) or s < 1 or s % step for s in size):
            raise InputError(f"size: got {size[0]}x{size[1]}, expected multiples of {step}")
        return (self.channels, size[0] // factor, size[1] // factor)

    @property
    def channels(self) -> int:
        """The number of channels of the latents, or of the images where there is no VAE."""
        return self.fields["in_channels"]

    def tokens(self, shape: tuple[int, ...]) -> int:
        """The length of the sequence that a latent of a shape is to a transformer."""
        return shape[1] * shape[2] // self.multiple**2

    def sigmas(self, steps: int) -> list[float] | None:
        """The sigmas that the pipeline hands its scheduler for a number of steps, None if it hands over the number."""
        return None

    def embed(self, prompt: str | Sequence[str]) -> Embeddings:
        """The embeddings of one prompt or several, with a row per prompt.

        Raises:
            InputError: The pipeline has no text encoder.
        """
        self._check_encodes()
        with torch.no_grad():
            return self.encode([prompt] if isinstance(prompt, str) else list(prompt))

    def embed_negative(self, prompt: str | Sequence[str] | None) -> Embeddings:
        """The embeddings from which guidance starts; of None, what the pipeline takes where no prompt is given.

        Raises:
            InputError: The pipeline has no text encoder.
        """
        return self.embed("" if prompt is None else prompt)

    def _longest(self, default: int) -> int:
        """The length of prompts for the T5 encoder.

        Raises:
            InputError: It is not one that the pipelines of flow models take.
        """
        return whole("max_sequence_length", self.call.get("max_sequence_length", default), 1, 512)

    def _check_encodes(self) -> None:
        if not self.encodes:
            raise InputError(
                "prompt: the pipeline has no text encoder; give model.with_condition({...}) the embeddings by name: "
                f"{', '.join(self.names)}"
            )

    def encode(self, prompt: list[str]) -> Embeddings:
        """The embeddings of prompts, with a row per prompt."""
        raise InputError(f"prompt: {type(self.pipe).__name__} takes none")

    @property
    def tokenizer(self) -> Any:
        """What reads the prompts to whose tokens the network attends first."""
        return getattr(self.pipe, "tokenizer", None) or getattr(self.pipe, "tokenizer_2", None)

    def read(self, prompts: list[str]) -> list[list[int]]:
        """The tokens of prompts, each of full length.

        Raises:
            InputError: The pipeline has no tokenizer.
        """
        reader = self.tokenizer
        if reader is None:
            raise InputError(f"prompt: this {type(self.pipe).__name__} has no tokenizer")
        length = min(512, reader.model_max_length)
        return reader(prompts, padding="max_length", max_length=length, truncation=True).input_ids

    @abstractmethod
    def network(self, shape: tuple[int, ...]) -> Network:
        """The network for latents of a shape."""


class Constant:
    """A tensor that goes wherever the states are."""

    def __init__(self, value: Tensor):
        self._value, self._moved = value, value

    def like(self, x: Tensor) -> Tensor:
        """The tensor on x's device and of x's type; kept for the next call, unless it is an inference tensor."""
        moved = self._moved
        if moved.device != x.device or moved.dtype != x.dtype:
            moved = as_like(self._value, x)
            if not moved.is_inference():
                self._moved = moved
        return moved


def as_like(value: Tensor, x: Tensor) -> Tensor:
    """The value on x's device and of x's type."""
    return value.to(device=x.device, dtype=x.dtype)


def _first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
