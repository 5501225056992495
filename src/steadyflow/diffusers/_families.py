"""How the families of diffusers pipelines encode prompts and call their networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MissingExtraError

Embeddings = dict[str, Tensor]
"""What a network takes for prompts, by name."""
Network = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""A network called as net(x, time, embeddings); returns a tensor of x's shape, (B, ...)."""


def family_of(pipe: Any, embedded_guidance: float) -> Family:
    """Find the family of a pipeline.

    Args:
        pipe: The diffusers pipeline.
        embedded_guidance: The guidance that guidance-distilled FLUX takes as an input.

    Raises:
        InputError: The pipeline is of no known family.
    """
    name, transformer, unet = type(pipe).__name__, getattr(pipe, "transformer", None), getattr(pipe, "unet", None)
    if transformer is not None and name.startswith("Flux"):
        return _Flux(pipe, embedded_guidance)
    if transformer is not None and name.startswith("StableDiffusion3"):
        return _SD3(pipe)
    if unet is not None and hasattr(pipe, "text_encoder_2"):
        return _SDXL(pipe)
    if unet is not None and hasattr(pipe, "text_encoder"):
        return _SD(pipe)
    if unet is not None:
        return _Unconditional(pipe)
    raise InputError(
        f"pipeline: {name} is none of Stable Diffusion, SDXL, SD3, FLUX or an unconditional model with a unet; "
        "wrap its network: sf.Denoiser(net, schedule, prediction=..., shape=...), net(x, time, condition) -> (B, ...)"
    )


class Family(ABC):
    """How one family of pipelines encodes prompts and calls its network."""

    flow = False
    """Whether its models are flow models, with a transformer for a network."""
    prompts = True
    """Whether its networks take prompts."""
    names: tuple[str, ...] = ("prompt_embeds",)
    """The names of the embeddings."""
    multiple = 1
    """The number of latents in each direction of which the image's size must be a multiple."""

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self.net = pipe.transformer if self.flow else pipe.unet
        weight = next(self.net.parameters())
        self.dtype, self.device = weight.dtype, weight.device
        self._adapter: str | None = None

    @property
    def encodes(self) -> bool:
        """Whether there is a text encoder."""
        return getattr(self.pipe, "text_encoder", None) is not None

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
            self._use(adapter)
            return network(x, time, condition or {})

        return net

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
        try:
            self.pipe.load_lora_weights(path, weight_name=weight_name, adapter_name=name)
            self.net.set_adapters([name], weights=[scale])
        except ImportError as error:
            raise MissingExtraError("peft", "diffusers", "LoRA weights") from error
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
        side = self.net.config.sample_size
        sides = (side, side) if isinstance(side, int) else tuple(side)
        size = [own * factor if asked is None else asked for asked, own in zip((height, width), sides, strict=True)]
        step = factor * self.multiple
        if any(s % step for s in size):
            raise InputError(f"size: got {size[0]}x{size[1]}, expected multiples of {step}")
        return (self.channels, size[0] // factor, size[1] // factor)

    @property
    def channels(self) -> int:
        """The number of channels of the latents, or of the images where there is no VAE."""
        return self.net.config.in_channels

    def embed(self, prompt: str | Sequence[str]) -> Embeddings:
        """The embeddings of one prompt or several, with a row per prompt.

        Raises:
            InputError: The pipeline has no text encoder.
        """
        if not self.encodes:
            raise InputError(
                "prompt: the pipeline has no text encoder; give model.with_condition({...}) the embeddings by name: "
                f"{', '.join(self.names)}"
            )
        with torch.no_grad():
            return self.encode([prompt] if isinstance(prompt, str) else list(prompt))

    def encode(self, prompt: list[str]) -> Embeddings:
        """The embeddings of prompts, with a row per prompt."""
        raise InputError(f"prompt: {type(self.pipe).__name__} takes none")

    @abstractmethod
    def network(self, shape: tuple[int, ...]) -> Network:
        """The network for latents of a shape."""


class _SD(Family):
    def encode(self, prompt):
        embeds, _ = self.pipe.encode_prompt(prompt, self.device, 1, False)
        return {"prompt_embeds": embeds}

    def network(self, shape):
        def net(x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
            return self.net(x, time, encoder_hidden_states=_as(embeddings["prompt_embeds"], x), return_dict=False)[0]

        return net


class _SDXL(Family):
    names = ("prompt_embeds", "pooled")

    def encode(self, prompt):
        embeds, _, pooled, _ = self.pipe.encode_prompt(prompt, device=self.device, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled": pooled}

    def network(self, shape):
        factor = self.pipe.vae_scale_factor
        size = [shape[1] * factor, shape[2] * factor]
        ids = torch.tensor([[*size, 0, 0, *size]], device=self.device)

        def net(x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
            added = {"text_embeds": _as(embeddings["pooled"], x), "time_ids": ids.to(x.dtype).expand(len(x), -1)}
            embeds = _as(embeddings["prompt_embeds"], x)
            return self.net(x, time, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False)[0]

        return net


class _SD3(Family):
    flow = True
    names = ("prompt_embeds", "pooled")

    @property
    def multiple(self):
        return self.net.config.patch_size

    def encode(self, prompt):
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "pooled": pooled}

    def network(self, shape):
        def net(x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
            return self.net(
                hidden_states=x,
                timestep=time,
                encoder_hidden_states=_as(embeddings["prompt_embeds"], x),
                pooled_projections=_as(embeddings["pooled"], x),
                return_dict=False,
            )[0]

        return net


class _Flux(Family):
    flow = True
    names = ("prompt_embeds", "pooled")
    multiple = 2

    def __init__(self, pipe: Any, embedded_guidance: float):
        super().__init__(pipe)
        self._guidance = embedded_guidance if self.net.config.guidance_embeds else None

    @property
    def channels(self):
        return self.net.config.in_channels // 4

    def shape(self, height, width):
        factor = self.pipe.vae_scale_factor
        side = getattr(self.pipe, "default_sample_size", 128) * factor
        size = [side if s is None else s for s in (height, width)]
        if any(s % (2 * factor) for s in size):
            raise InputError(f"size: got {size[0]}x{size[1]}, expected multiples of {2 * factor}")
        return (self.channels, size[0] // factor, size[1] // factor)

    def encode(self, prompt):
        limit = min(512, getattr(self.pipe.tokenizer_2, "model_max_length", 512))
        embeds, pooled, _ = self.pipe.encode_prompt(prompt, None, device=self.device, max_sequence_length=limit)
        return {"prompt_embeds": embeds, "pooled": pooled}

    def network(self, shape):
        channels, height, width = shape
        rows, columns = height // 2, width // 2
        positions = torch.zeros(rows, columns, 3, device=self.device)
        positions[..., 1] = torch.arange(rows, device=self.device)[:, None]
        positions[..., 2] = torch.arange(columns, device=self.device)[None]
        positions = positions.view(-1, 3)

        def net(x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
            packed = x.view(-1, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
            packed = packed.reshape(len(x), rows * columns, channels * 4)
            embeds = _as(embeddings["prompt_embeds"], x)
            scale = None if self._guidance is None else torch.full((len(x),), self._guidance, device=x.device)
            output = self.net(
                hidden_states=packed,
                timestep=time / 1000.0,
                guidance=scale,
                pooled_projections=_as(embeddings["pooled"], x),
                encoder_hidden_states=embeds,
                txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device, dtype=x.dtype),
                img_ids=positions.to(x.dtype),
                return_dict=False,
            )[0]
            output = output.view(-1, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
            return output.reshape(len(x), channels, height, width)

        return net


class _Unconditional(Family):
    prompts = False

    def network(self, shape):
        def net(x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
            return self.net(x, time, return_dict=False)[0]

        return net


def _as(value: Tensor, x: Tensor) -> Tensor:
    """The value on x's device and of x's type."""
    return value.to(device=x.device, dtype=x.dtype)


def _first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
