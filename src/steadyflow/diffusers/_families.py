"""The families of diffusers pipelines that are known, by their exact classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ._configs import lays_flow_sigmas, pipeline_fields
from ._family import Constant, Embeddings, Family, as_like


def family_of(pipe: Any) -> type[Family] | None:
    """Find the family of a pipeline, by its exact class or by that of diffusers from which a user's own is derived.

    Args:
        pipe: The diffusers pipeline.

    Returns:
        The family; None where it is none of those with an adapter.
    """
    name = next((c.__name__ for c in type(pipe).__mro__ if c.__module__.startswith("diffusers.")), None)
    return FAMILIES.get(str(name))


class _SD(Family):
    inputs: Mapping[str, tuple[Any, ...]] = {
        "class_embed_type": (None,), "num_class_embeds": (None,), "addition_embed_type": (None,),
        "encoder_hid_dim_type": (None,),
    }  # fmt: skip

    def encode(self, prompt):
        embeds, _ = self.pipe.encode_prompt(prompt, self.device, 1, False)
        return {"prompt_embeds": embeds}

    def network(self, shape):
        def net(x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
            embeds, scale = as_like(embeddings["prompt_embeds"], x), self._guidance_embedding(x)
            return self.net(x, time, encoder_hidden_states=embeds, timestep_cond=scale, return_dict=False)[0]

        return net


class _SDXL(Family):
    names = ("prompt_embeds", "pooled")
    inputs: Mapping[str, tuple[Any, ...]] = {
        "class_embed_type": (None,), "num_class_embeds": (None,), "addition_embed_type": ("text_time",),
        "encoder_hid_dim_type": (None,),
    }  # fmt: skip

    @property
    def encodes(self):
        return getattr(self.pipe, "text_encoder_2", None) is not None  # the refiner has no first one

    @property
    def _scored(self) -> bool:
        """Whether the network takes a score of beauty, as the refiner does."""
        return bool(pipeline_fields(self.pipe)["requires_aesthetics_score"])

    def _score(self, embeddings: Embeddings, parameter: str) -> Embeddings:
        if not self._scored:
            return embeddings
        value = inspect.signature(type(self.pipe).__call__).parameters[parameter].default
        embeds = embeddings["prompt_embeds"]
        return {**embeddings, "aesthetic_score": torch.full((len(embeds), 1), value, device=embeds.device)}

    def encode(self, prompt):
        embeds, _, pooled, _ = self.pipe.encode_prompt(prompt, device=self.device, do_classifier_free_guidance=False)
        return self._score({"prompt_embeds": embeds, "pooled": pooled}, "aesthetic_score")

    def embed_negative(self, prompt):
        found = super().embed_negative(prompt)
        if prompt is None and pipeline_fields(self.pipe)["force_zeros_for_empty_prompt"]:
            found = {name: torch.zeros_like(value) for name, value in found.items()}
        return self._score(found, "negative_aesthetic_score")

    def network(self, shape):
        factor = self.pipe.vae_scale_factor
        size = [shape[1] * factor, shape[2] * factor]
        ids = Constant(torch.tensor([[*size, 0, 0] if self._scored else [*size, 0, 0, *size]]))

        def net(x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
            times = ids.like(x).expand(len(x), -1)
            if self._scored:
                score = embeddings.get("aesthetic_score", torch.full((len(x), 1), 6.0))
                times = torch.cat([times, as_like(score, x)], dim=1)
            added = {"text_embeds": as_like(embeddings["pooled"], x), "time_ids": times}
            embeds, scale = as_like(embeddings["prompt_embeds"], x), self._guidance_embedding(x)
            return self.net(
                x, time, encoder_hidden_states=embeds, timestep_cond=scale, added_cond_kwargs=added, return_dict=False
            )[0]

        return net


class _SD3(Family):
    flow = True
    names = ("prompt_embeds", "pooled")
    takes = frozenset(("max_sequence_length",))

    @property
    def multiple(self):
        return self.fields["patch_size"]

    def encode(self, prompt):
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._longest(256),
        )
        return {"prompt_embeds": embeds, "pooled": pooled}

    def network(self, shape):
        def net(x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
            return self.net(
                hidden_states=x,
                timestep=time,
                encoder_hidden_states=as_like(embeddings["prompt_embeds"], x),
                pooled_projections=as_like(embeddings["pooled"], x),
                return_dict=False,
            )[0]

        return net


class _Flux(Family):
    flow = True
    names = ("prompt_embeds", "pooled")
    takes = frozenset(("max_sequence_length",))
    multiple = 2

    @property
    def embeds_guidance(self):
        return bool(self.fields["guidance_embeds"])

    @property
    def tokenizer(self):
        return getattr(self.pipe, "tokenizer_2", None)

    def sigmas(self, steps):
        return None if lays_flow_sigmas(self.pipe.scheduler) else [1.0 - k / steps for k in range(steps)]

    @property
    def channels(self):
        return self.fields["in_channels"] // 4

    def shape(self, height, width):
        factor = self.pipe.vae_scale_factor
        side = getattr(self.pipe, "default_sample_size", 128) * factor
        size = [side if s is None else s for s in (height, width)]
        if any(not isinstance(s, int) or s < 1 or s % (2 * factor) for s in size):
            raise InputError(f"size: got {size[0]}x{size[1]}, expected multiples of {2 * factor}")
        return (self.channels, size[0] // factor, size[1] // factor)

    def encode(self, prompt):
        limit = self._longest(min(512, getattr(self.pipe.tokenizer_2, "model_max_length", 512)))
        embeds, pooled, _ = self.pipe.encode_prompt(prompt, None, device=self.device, max_sequence_length=limit)
        return {"prompt_embeds": embeds, "pooled": pooled}

    def network(self, shape):
        channels, height, width = shape
        rows, columns = height // 2, width // 2
        places = torch.zeros(rows, columns, 3)
        places[..., 1], places[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)[None]
        positions = Constant(places.view(-1, 3))

        def net(x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
            packed = x.view(-1, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
            packed = packed.reshape(len(x), rows * columns, channels * 4)
            embeds = as_like(embeddings["prompt_embeds"], x)
            scale = None if self._embedded is None else torch.full((len(x),), self._embedded, device=x.device)
            output = self.net(
                hidden_states=packed,
                timestep=time / 1000.0,
                guidance=scale,
                pooled_projections=as_like(embeddings["pooled"], x),
                encoder_hidden_states=embeds,
                txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device, dtype=x.dtype),
                img_ids=positions.like(x),
                return_dict=False,
            )[0]
            output = output.view(-1, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
            return output.reshape(len(x), channels, height, width)

        return net


class _Unconditional(Family):
    prompts = False
    inputs: Mapping[str, tuple[Any, ...]] = {"class_embed_type": (None,), "num_class_embeds": (None,)}

    def network(self, shape):
        def net(x: Tensor, time: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
            return self.net(x, time, return_dict=False)[0]

        return net


FAMILIES: dict[str, type[Family]] = {
    **dict.fromkeys(
        ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
         "LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
        _SD,
    ),
    **dict.fromkeys(
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"), _SDXL
    ),
    **dict.fromkeys(
        ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"), _SD3
    ),
    **dict.fromkeys(("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"), _Flux),
    **dict.fromkeys(("DDPMPipeline", "DDIMPipeline"), _Unconditional),
}  # fmt: skip
"""The families, by the classes of diffusers' pipelines."""
