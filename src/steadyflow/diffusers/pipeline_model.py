"""A `Denoiser` over a whole diffusers pipeline: prompts, guidance, latent scaling and packing included.

    model = sf.from_diffusers(pipe, "a photograph of a cat")
    inversion = sf.invert(model, model.codec.encode(images), solver="ees25", steps=16)
    edited = inversion.decode(model.with_condition("a photograph of a dog"), guidance=7.5)
    pictures = model.codec.decode(edited.x)

Inversion, editing, diagnosis, corrections and adaptive solvers all work on it. The network's time is in float32
whatever the network computes in (FLUX's own pipeline rounds it to the latents' type). Known families: Stable Diffusion
1 and 2 with LCM, SDXL with its refiner, SD3 and 3.5, FLUX, and unconditional models with a `unet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from .._internal.autograd import grad_enabled_by
from ..denoisers.base import Condition, Denoiser, is_words
from ..errors import InputError
from ..grids import Grid
from ._configs import vae_fields
from ._families import family_of
from ._family import Embeddings, Family
from ._paths import path_of
from ._pixels import check_pixels
from ._serve import serve
from .served import ServedModel


@dataclass(frozen=True, eq=False)
class Latents:
    """A pipeline's VAE as a codec between images in [-1, 1] and the model's latents, in float32."""

    vae: Any
    """The pipeline's VAE, such as diffusers' AutoencoderKL."""

    @property
    def factor(self) -> int:
        """The number of pixels per latent, in each direction."""
        return 2 ** (len(vae_fields(self.vae)["block_out_channels"]) - 1)

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return vae_fields(self.vae)["in_channels"]

    def encode(self, images: Tensor) -> Tensor:
        """Encode images: the mean of the VAE's posterior, shifted and scaled as its config says.

        Args:
            images: In [-1, 1], shape (B, channels, H, W).

        Returns:
            Latents, shape (B, c, h, w).

        Raises:
            InputError: The images have another number of dimensions, or are bytes or lie in [0, 255].
        """
        if images.ndim != 4:
            raise InputError(f"images: got shape {tuple(images.shape)}, expected (B, channels, H, W) in [-1, 1]")
        check_pixels(images)
        if any(side % self.factor for side in images.shape[2:]):
            raise InputError(
                f"images: got {images.shape[2]} x {images.shape[3]} pixels, expected multiples of {self.factor}; pad "
                "or crop them"
            )
        with torch.no_grad(), self._in_its_precision() as vae:
            found = vae.encode(images.to(device=_home(vae), dtype=vae.dtype))
        latents = (found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents).float()
        mean, std, scale = self._numbers(latents)
        return (latents - mean) * (scale / std)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents, shape (B, c, h, w), into images, shape (B, channels, H, W), with a graph if they have."""
        mean, std, scale = self._numbers(latents)
        latents = latents * (std / scale) + mean
        with grad_enabled_by(latents), self._in_its_precision() as vae:
            return vae.decode(latents.to(device=_home(vae), dtype=vae.dtype)).sample.float()

    def _numbers(self, latents: Tensor) -> tuple[Any, Any, float]:
        """The mean and the standard deviation of the VAE's latents, and the scale of the network's."""
        fields = vae_fields(self.vae)
        mean, std, scale = fields["latents_mean"], fields["latents_std"], fields["scaling_factor"]
        if mean is None or std is None:
            return fields["shift_factor"] or 0.0, 1.0, scale
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v, dtype=latents.dtype, device=latents.device).view(shape) for v in (mean, std))
        return mean, std, scale

    @contextmanager
    def _in_its_precision(self) -> Iterator[Any]:
        """The VAE, in float32 for the time being where its config says that it overflows in float16."""
        vae = self.vae
        raised = vae.dtype == torch.float16 and vae_fields(vae)["force_upcast"]
        if raised:
            vae.to(torch.float32)
        try:
            yield vae
        finally:
            if raised:
                vae.to(torch.float16)


def _home(module: torch.nn.Module) -> torch.device:
    """Where a module computes, also where its weights are elsewhere until then."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


@dataclass(frozen=True, eq=False)
class PipelineModel(Denoiser):
    """A pipeline's network as a model, whose conditions may be prompts as well as the embeddings of prompts."""

    embed: Callable[[str | Sequence[str]], Embeddings] | None = field(default=None, repr=False)
    """The embeddings of prompts, for pipelines that take them."""
    embed_negative: Callable[[str | Sequence[str] | None], Embeddings] | None = field(default=None, repr=False)
    """The embeddings of what guidance starts from; those of `embed` by default."""
    codec: Latents | None = None
    """The pipeline's VAE, if it has one."""
    own_places: Callable[[int], Grid] | None = field(default=None, repr=False)
    """The grid that the pipeline's scheduler lays for a number of steps."""
    family: Family | None = field(default=None, repr=False)
    """How the pipeline's family encodes prompts and calls its network."""

    def with_condition(self, condition: Condition, *, guidance: float | None = None) -> Self:
        """Set the condition.

        Args:
            condition: A prompt, one per sample, or embeddings by name; None for the negative prompt.
            guidance: The scale of classifier-free guidance; the model's own by default.

        Returns:
            This model under the condition.

        Raises:
            InputError: A prompt is given and the pipeline takes none.
        """
        return super().with_condition(self._embedded(condition), guidance=guidance)

    def with_negative(self, negative: Condition) -> Self:
        """Set what guidance starts from.

        Args:
            negative: A prompt, one per sample, or embeddings by name (see `Denoiser.with_negative`); None for what the
                pipeline takes where no negative prompt is given.

        Returns:
            This model with guidance away from that prompt.
        """
        if self.embed_negative is not None and (negative is None or is_words(negative)):
            return super().with_negative(self.embed_negative(cast("str | Sequence[str] | None", negative)))
        return super().with_negative(self._embedded(negative))

    def own_grid(self, steps: int) -> Grid:
        """Return the times at which the pipeline itself would step, to give as `grid` to a verb.

        The pipeline multiplies given latents by its scheduler's `init_noise_sigma`, and DPM-Solver and UniPC round the
        timesteps of Karras placements and of flow models before their networks see them; the model does neither.

        Args:
            steps: The number of steps, the pipeline's `num_inference_steps`.

        Raises:
            InputError: The scheduler does not accept the number, or the model is not over a pipeline.
        """
        if self.own_places is None:
            raise InputError("own_grid: only for models over a pipeline")
        return self.own_places(steps)

    def with_lora(self, path: str | Path, *, scale: float = 1.0) -> Self:
        """Add a LoRA, such as Smooth Diffusion's.

        The weights are loaded into the pipeline's network and are switched on only while the returned model is called.

        Args:
            path: A file or a folder.
            scale: The factor of the LoRA's weights.

        Returns:
            A model with the LoRA; this one stays without.

        Raises:
            InputError: The LoRA fits another network, or the model is not over a pipeline.
            FileNotFoundError: There is no such file or folder.
            MissingExtraError: peft is not installed.
        """
        if self.family is None or self.shape is None:
            raise InputError("lora: only for models over a pipeline")
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        folder, name = (str(path), None) if path.is_dir() else (str(path.parent), path.name)
        adapter = self.family.load_lora(folder, name, scale)
        return self._replace(net=self.family.net_with(self.shape, adapter))

    @property
    def takes_prompts(self) -> bool:
        """Whether conditions may be prompts."""
        return self.embed is not None

    def tokens(self, prompt: str | Sequence[str]) -> list[list[int]]:
        """The tokens to which the network attends for a prompt, or for one per sample, as far as they are words.

        Args:
            prompt: The prompts.

        Raises:
            InputError: The pipeline takes no prompts, or has no tokenizer.
        """
        if self.family is None or not self.family.prompts:
            raise InputError("prompt: this pipeline takes no prompts")
        return self.family.read([prompt] if isinstance(prompt, str) else list(prompt))

    @property
    def pipe(self) -> Any:
        """The pipeline; None for a model that is not over one."""
        return None if self.family is None else self.family.pipe

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an image of one latent, (channels, height, width)."""
        assert self.shape is not None
        if self.codec is None:
            return self.shape
        channels, factor = self.codec.channels, self.codec.factor
        return (channels, self.shape[1] * factor, self.shape[2] * factor)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images in [-1, 1] into latents; without a VAE they are returned as they are."""
        if self.codec is not None:
            return self.codec.encode(images)
        check_pixels(images)
        return images

    def decode(self, x: Tensor) -> Tensor:
        """Decode latents into images; without a VAE they are returned as they are."""
        return x if self.codec is None else self.codec.decode(x)

    def _embedded(self, condition: Condition) -> Condition:
        """The condition with prompts replaced by their embeddings."""
        if condition is None and self.embed is not None:
            return self.null
        if not is_words(condition):
            return condition
        if self.embed is None:
            raise InputError("condition: this pipeline takes no prompts")
        return self.embed(cast("str | Sequence[str]", condition))


def from_diffusers(
    pipe: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    guidance: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    embedded_guidance: float | None = None,
    shift: float | None = None,
    served: bool | None = None,
    **call: Any,
) -> PipelineModel | ServedModel:
    """Create a model over a pipeline, in its latent space.

    Stable Diffusion 1 and 2 with LCM, SDXL, SD3, FLUX and unconditional models have adapters of their own, which call
    the network (`PipelineModel`). Every other pipeline, and these with further arguments of their call, are served: the
    pipeline's own call is kept suspended and answers the queries (`ServedModel`).

    Args:
        pipe: The diffusers pipeline.
        prompt: One prompt for all samples, or one per sample; "" by default.
        negative_prompt: The prompt that guidance starts from; by default what the pipeline takes where none is given,
            which is zeros for SDXL where its config says so.
        guidance: The scale of classifier-free guidance.
        height: Of the images, in pixels; the pipeline's own by default.
        width: Of the images, in pixels; the pipeline's own by default.
        embedded_guidance: The guidance that guidance-distilled networks (FLUX, LCM) take as an input; the default of
            the pipeline's own call.
        shift: The shift of the time of flow models, which places named grids; that of the pipeline's scheduler by
            default.
        served: Whether to serve the pipeline; by default where it has no adapter of its own, or takes more than that
            one would give.
        **call: Further arguments of the pipeline's call, such as image=..., num_frames=... or max_sequence_length=...

    Returns:
        The model.

    Raises:
        InputError: An argument is not one of the pipeline's call, its scheduler's config cannot be honoured, it takes
            no prompt, the size does not fit, or its answers are no field (see `ServedModel`).
    """
    if not isinstance(cast(object, guidance), int | float):
        raise InputError(f"guidance: got {guidance!r}, expected a number")
    if shift is not None and (not isinstance(cast(object, shift), int | float) or not shift > 0.0):
        raise InputError(f"shift: got {shift!r}, expected a positive number")
    name, kind = type(pipe).__name__, family_of(pipe)
    why = _why_served(pipe, kind, call) if kind is not None else "it has no adapter"
    if served is False and (why or kind is None):
        raise InputError(f"served: got False, but {name} has to be served: {why}")
    if served or why or kind is None:
        sizes = {key: value for key, value in (("height", height), ("width", width)) if value is not None}
        try:
            return serve(pipe, prompt, negative_prompt, guidance, embedded_guidance, shift, sizes | call)
        except InputError as error:
            if kind is None or served or call:
                raise
            raise InputError(f"{error}. (It is served, as {why})") from error
    path = path_of(pipe.scheduler)
    family = kind(pipe, path.learned_variance, call)
    family.check()
    family.set_embedded_guidance(embedded_guidance)
    if family.flow and path.kind != "flow":
        raise InputError(
            f"scheduler: {type(pipe.scheduler).__name__} is over a table of betas, but {name} is a flow model"
        )
    if shift is not None and path.kind != "flow":
        raise InputError(f"shift: got {shift}, but {name} is no flow model; its table of betas is its own")
    shape = family.shape(height, width)
    schedule = path.schedule(shift, family.tokens(shape))

    def own_places(steps: int) -> Grid:
        return path.grid(schedule, steps, path.mu(family.tokens(shape)), family.sigmas(steps))

    model = PipelineModel(
        family.net_with(shape),
        schedule,
        prediction=path.prediction,
        shape=shape,
        time_scale=path.time_scale,
        dtype=family.dtype,
        name=name,
        clip=path.clip,
        embed=family.embed if family.prompts else None,
        embed_negative=family.embed_negative if family.prompts else None,
        codec=None if getattr(pipe, "vae", None) is None else Latents(pipe.vae),
        own_places=own_places,
        family=family,
    )
    if not family.prompts:
        for argument, value in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if value is not None:
                raise InputError(f"{argument}: {name} takes none")
        return model if guidance == 1.0 else model.with_guidance(guidance)
    if not family.encodes and prompt is None and negative_prompt is None:
        return model
    return model.with_negative(negative_prompt).with_condition("" if prompt is None else prompt, guidance=guidance)


def _why_served(pipe: Any, kind: type[Family], call: Mapping[str, Any]) -> str:
    """Why a pipeline of a family with an adapter is served nevertheless; empty if it is not."""
    others = [name for name in call if name not in kind.takes]
    if others:
        return f"its adapter does not take {', '.join(others)}"
    try:
        kind(pipe, True).check()
    except InputError as error:
        return str(error)
    return ""
