"""A `Denoiser` over a whole diffusers pipeline: prompts, guidance, latent scaling and packing included.

    model = sf.from_diffusers(pipe, "a photograph of a cat")
    found = sf.invert(model, model.codec.encode(images), solver="ees25", steps=16)
    edited = model.codec.decode(found.decode(model.condition("a photograph of a dog"), guidance=7.5).x)

So inversion, editing, diagnosis, corrections and adaptive solvers work on it, with the network's time in float32
whatever it computes in (FLUX's own pipeline rounds it to the latents' type). Known families: Stable Diffusion 1 and 2,
SDXL, SD3 and 3.5, FLUX, and unconditional models with a `unet`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..denoisers.base import Condition, Denoiser
from ..errors import InputError
from ..schedules import RectifiedFlow, Schedule, Tabulated

Embedded = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Latents:
    """The pipeline's VAE as a codec between images in [-1, 1] and the model's latents, in float32."""

    vae: Any

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, c, h, w) of images (B, 3, H, W): the mean of the VAE's posterior, shifted and scaled."""
        if images.ndim != 4:
            raise InputError(f"images: got shape {tuple(images.shape)}, expected (B, channels, H, W) in [-1, 1]")
        weight = next(self.vae.parameters())
        with torch.no_grad():
            mean = self.vae.encode(images.to(weight)).latent_dist.mean
        return (mean.float() - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) of latents (B, c, h, w)."""
        weight = next(self.vae.parameters())
        with torch.no_grad():
            return self.vae.decode((latents / self.vae.config.scaling_factor + self._shift).to(weight)).sample.float()

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0


@dataclass(frozen=True, eq=False)
class PipelineModel(Denoiser):
    """A pipeline's network as a model; `condition` takes prompts as well as what they are encoded to."""

    embed: Callable[[Any], Embedded] | None = field(default=None, repr=False)
    codec: Latents | None = None

    def condition(self, given: Condition | str | Sequence[str], *, guidance: float | None = None) -> PipelineModel:
        """This model under a prompt, one a sample, or embeddings by name."""
        return super().condition(self._embedded(given), guidance=guidance)

    def against(self, negative: Condition | str) -> PipelineModel:
        """This model with guidance away from another prompt than "" (see `Denoiser.against`)."""
        return super().against(self._embedded(negative))

    def _embedded(self, given: Any) -> Any:
        if given is None and self.embed is not None:
            return self.null
        if not (isinstance(given, str) or (isinstance(given, Sequence) and given and isinstance(given[0], str))):
            return given
        if self.embed is None:
            raise InputError("condition: this pipeline takes no prompts")
        return self.embed(given)


def from_diffusers(
    pipe: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    negative_prompt: str = "",
    guidance: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    embedded_guidance: float = 3.5,
    shift: float | None = None,
) -> PipelineModel:
    """A model over a pipeline's network, in its latent space, shape (c, h, w).

    prompt: one for all samples or one a sample; "" by default. negative_prompt: what guidance starts from.
    height, width: of the images, pixels; the pipeline's own by default. embedded_guidance: of guidance-distilled FLUX.
    shift: of the time of flow models, which places named grids; that of the pipeline's scheduler by default.

    Raises `InputError` for a pipeline of an unknown family or without text encoder, and a size that does not fit.
    """
    name = type(pipe).__name__
    if getattr(pipe, "transformer", None) is not None and name.startswith("Flux"):
        family = _Flux(pipe, embedded_guidance)
    elif getattr(pipe, "transformer", None) is not None and name.startswith("StableDiffusion3"):
        family = _SD3(pipe)
    elif getattr(pipe, "unet", None) is not None and hasattr(pipe, "text_encoder_2"):
        family = _SDXL(pipe)
    elif getattr(pipe, "unet", None) is not None and hasattr(pipe, "text_encoder"):
        family = _SD(pipe)
    elif getattr(pipe, "unet", None) is not None:
        family = _Unconditional(pipe)
    else:
        raise InputError(
            f"pipeline: {name} is none of Stable Diffusion, SDXL, SD3, FLUX or an unconditional model with a unet; "
            "wrap its network: sf.Denoiser(net, schedule, prediction=..., shape=...), net(x, time, given) -> (B, ...)"
        )
    shape = family.shape(height, width)
    schedule, prediction = _path(pipe.scheduler, family.flow, shift)
    model = PipelineModel(
        family.network(shape),
        schedule,
        prediction=prediction,
        shape=shape,
        time_scale=1000.0 if family.flow else 1.0,
        dtype=family.dtype,
        name=name,
        embed=family.embed if family.prompts else None,
        codec=None if getattr(pipe, "vae", None) is None else Latents(pipe.vae),
    )
    if not family.prompts:
        if prompt is not None:
            raise InputError(f"prompt: {name} takes none")
        return model
    return model.against(negative_prompt).condition(prompt or "", guidance=guidance)


def _path(scheduler: Any, flow: bool, shift: float | None) -> tuple[Schedule, Any]:
    """The schedule and the prediction type that a pipeline's own scheduler stands for."""
    config = scheduler.config
    if isinstance(getattr(scheduler, "schedule", None), Schedule):  # one of ours
        return scheduler.schedule, scheduler.prediction
    if flow:
        return RectifiedFlow(shift=shift or getattr(config, "shift", None) or 1.0), "flow"
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise InputError(
            f"pipeline: its scheduler {type(scheduler).__name__} has no alphas_cumprod; set a DDIMScheduler first"
        )
    return Tabulated(tuple(table.double().tolist())), getattr(config, "prediction_type", "epsilon")


class _Family:
    """How one family of pipelines encodes prompts and calls its network."""

    flow = False
    prompts = True

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self.net = pipe.transformer if self.flow else pipe.unet
        weight = next(self.net.parameters())
        self.dtype, self.device = weight.dtype, weight.device

    def shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Of a latent."""
        factor = getattr(self.pipe, "vae_scale_factor", 1)
        side = self.net.config.sample_size
        sides = (side, side) if isinstance(side, int) else tuple(side)
        size = [given if given is not None else own * factor for given, own in zip((height, width), sides, strict=True)]
        step = factor * self.multiple
        if any(s % step for s in size):
            raise InputError(f"size: got {size[0]}x{size[1]}, expected multiples of {step}")
        return (self.channels, size[0] // factor, size[1] // factor)

    multiple = 1

    @property
    def channels(self) -> int:
        return self.net.config.in_channels

    def embed(self, prompt: Any) -> Embedded:
        if getattr(self.pipe, "text_encoder", None) is None:
            raise InputError(
                "prompt: the pipeline has no text encoder; give model.condition({...}) the embeddings by name: "
                f"{', '.join(self.names)}"
            )
        with torch.no_grad():
            return self.encode([prompt] if isinstance(prompt, str) else list(prompt))

    names: tuple[str, ...] = ("prompt_embeds",)

    def encode(self, prompt: list[str]) -> Embedded:
        raise NotImplementedError

    def network(self, shape: tuple[int, ...]) -> Callable[..., Tensor]:
        raise NotImplementedError


class _SD(_Family):
    def encode(self, prompt):
        embeds, _ = self.pipe.encode_prompt(prompt, self.device, 1, False)
        return {"prompt_embeds": embeds}

    def network(self, shape):
        def net(x: Tensor, time: Tensor, given: Mapping[str, Tensor]) -> Tensor:
            return self.net(x, time, encoder_hidden_states=_as(given["prompt_embeds"], x), return_dict=False)[0]

        return net


class _SDXL(_Family):
    names = ("prompt_embeds", "pooled")

    def encode(self, prompt):
        embeds, _, pooled, _ = self.pipe.encode_prompt(prompt, device=self.device, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled": pooled}

    def network(self, shape):
        factor = self.pipe.vae_scale_factor
        size = [shape[1] * factor, shape[2] * factor]
        ids = torch.tensor([[*size, 0, 0, *size]], device=self.device)

        def net(x: Tensor, time: Tensor, given: Mapping[str, Tensor]) -> Tensor:
            added = {"text_embeds": _as(given["pooled"], x), "time_ids": ids.to(x.dtype).expand(len(x), -1)}
            embeds = _as(given["prompt_embeds"], x)
            return self.net(x, time, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False)[0]

        return net


class _SD3(_Family):
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
        def net(x: Tensor, time: Tensor, given: Mapping[str, Tensor]) -> Tensor:
            return self.net(
                hidden_states=x,
                timestep=time,
                encoder_hidden_states=_as(given["prompt_embeds"], x),
                pooled_projections=_as(given["pooled"], x),
                return_dict=False,
            )[0]

        return net


class _Flux(_Family):
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
        places = torch.zeros(rows, columns, 3, device=self.device)
        places[..., 1] = torch.arange(rows, device=self.device)[:, None]
        places[..., 2] = torch.arange(columns, device=self.device)[None]
        places = places.view(-1, 3)

        def net(x: Tensor, time: Tensor, given: Mapping[str, Tensor]) -> Tensor:
            packed = x.view(-1, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
            packed = packed.reshape(len(x), rows * columns, channels * 4)
            embeds = _as(given["prompt_embeds"], x)
            scale = None if self._guidance is None else torch.full((len(x),), self._guidance, device=x.device)
            output = self.net(
                hidden_states=packed,
                timestep=time / 1000.0,
                guidance=scale,
                pooled_projections=_as(given["pooled"], x),
                encoder_hidden_states=embeds,
                txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device, dtype=x.dtype),
                img_ids=places.to(x.dtype),
                return_dict=False,
            )[0]
            output = output.view(-1, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
            return output.reshape(len(x), channels, height, width)

        return net


class _Unconditional(_Family):
    prompts = False

    def network(self, shape):
        def net(x: Tensor, time: Tensor) -> Tensor:
            return self.net(x, time, return_dict=False)[0]

        return net


def _as(value: Tensor, x: Tensor) -> Tensor:
    return value.to(device=x.device, dtype=x.dtype)
