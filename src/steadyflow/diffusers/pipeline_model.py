"""A `Denoiser` over a whole diffusers pipeline: prompts, guidance, latent scaling and packing included.

    model = sf.from_diffusers(pipe, "a photograph of a cat")
    inversion = sf.invert(model, model.codec.encode(images), solver="ees25", steps=16)
    edited = inversion.decode(model.with_condition("a photograph of a dog"), guidance=7.5)
    pictures = model.codec.decode(edited.x)

Inversion, editing, diagnosis, corrections and adaptive solvers all work on it. The network's time is in float32
whatever the network computes in (FLUX's own pipeline rounds it to the latents' type). Known families: Stable Diffusion
1 and 2, SDXL, SD3 and 3.5, FLUX, and unconditional models with a `unet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..denoisers.base import Condition, Denoiser, is_words
from ..errors import CorruptFileError, InputError, MissingExtraError
from ..prediction import PredictionType
from ..schedules import RectifiedFlow, Schedule, Tabulated
from ._families import Embeddings, Family, family_of


@dataclass(frozen=True, eq=False)
class Latents:
    """A pipeline's VAE as a codec between images in [-1, 1] and the model's latents, in float32."""

    vae: Any
    """The pipeline's VAE, such as diffusers' AutoencoderKL."""

    @property
    def factor(self) -> int:
        """The number of pixels per latent, in each direction."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return self.vae.config.in_channels

    def encode(self, images: Tensor) -> Tensor:
        """Encode images: the mean of the VAE's posterior, shifted and scaled.

        Args:
            images: In [-1, 1], shape (B, channels, H, W).

        Returns:
            Latents, shape (B, c, h, w).

        Raises:
            InputError: The images have another number of dimensions.
        """
        if images.ndim != 4:
            raise InputError(f"images: got shape {tuple(images.shape)}, expected (B, channels, H, W) in [-1, 1]")
        weight = next(self.vae.parameters())
        with torch.no_grad():
            mean = self.vae.encode(images.to(weight)).latent_dist.mean
        return (mean.float() - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents, shape (B, c, h, w), into images, shape (B, channels, H, W)."""
        weight = next(self.vae.parameters())
        with torch.no_grad():
            return self.vae.decode((latents / self.vae.config.scaling_factor + self._shift).to(weight)).sample.float()

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0


@dataclass(frozen=True, eq=False)
class PipelineModel(Denoiser):
    """A pipeline's network as a model, whose conditions may be prompts as well as the embeddings of prompts."""

    embed: Callable[[str | Sequence[str]], Embeddings] | None = field(default=None, repr=False)
    """The embeddings of prompts, for pipelines that take them."""
    codec: Latents | None = None
    """The pipeline's VAE, if it has one."""
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
            negative: A prompt or embeddings by name (see `Denoiser.with_negative`).

        Returns:
            This model with guidance away from that prompt.
        """
        return super().with_negative(self._embedded(negative))

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
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an image of one latent, (channels, height, width)."""
        assert self.shape is not None
        if self.codec is None:
            return self.shape
        channels, factor = self.codec.channels, self.codec.factor
        return (channels, self.shape[1] * factor, self.shape[2] * factor)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images in [-1, 1] into latents; without a VAE they are returned as they are."""
        return images if self.codec is None else self.codec.encode(images)

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
    negative_prompt: str = "",
    guidance: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    embedded_guidance: float = 3.5,
    shift: float | None = None,
) -> PipelineModel:
    """Create a model over a pipeline's network, in its latent space.

    Args:
        pipe: The diffusers pipeline.
        prompt: One prompt for all samples, or one per sample; "" by default.
        negative_prompt: The prompt that guidance starts from.
        guidance: The scale of classifier-free guidance.
        height: Of the images, in pixels; the pipeline's own by default.
        width: Of the images, in pixels; the pipeline's own by default.
        embedded_guidance: The guidance that guidance-distilled FLUX takes as an input.
        shift: The shift of the time of flow models, which places named grids; that of the pipeline's scheduler by
            default.

    Returns:
        The model, of latents of shape (c, h, w).

    Raises:
        InputError: The pipeline's family is not known, it takes no prompt, or the size does not fit.
    """
    name, family = type(pipe).__name__, family_of(pipe, embedded_guidance)
    shape = family.shape(height, width)
    schedule, prediction = path_of(pipe.scheduler, family.flow, shift)
    model = PipelineModel(
        family.net_with(shape),
        schedule,
        prediction=prediction,
        shape=shape,
        time_scale=1000.0 if family.flow else 1.0,
        dtype=family.dtype,
        name=name,
        embed=family.embed if family.prompts else None,
        codec=None if getattr(pipe, "vae", None) is None else Latents(pipe.vae),
        family=family,
    )
    if not family.prompts:
        if prompt is not None:
            raise InputError(f"prompt: {name} takes none")
        return model
    if prompt is None and not family.encodes:
        return model
    return model.with_negative(negative_prompt).with_condition(prompt or "", guidance=guidance)


def path_of(scheduler: Any, flow: bool, shift: float | None) -> tuple[Schedule, PredictionType]:
    """The schedule and the prediction type of a pipeline's scheduler.

    Args:
        scheduler: The scheduler, diffusers' or ours.
        flow: Whether the pipeline is a flow model.
        shift: The shift of a flow model's time; that of the scheduler by default.

    Raises:
        InputError: The scheduler has no table of alphas.
    """
    config = scheduler.config
    if isinstance(getattr(scheduler, "schedule", None), Schedule):  # a scheduler of this package
        return scheduler.schedule, scheduler.prediction
    if flow:
        return RectifiedFlow(shift=shift or getattr(config, "shift", None) or 1.0), "flow"
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise InputError(
            f"pipeline: its scheduler {type(scheduler).__name__} has no alphas_cumprod; set a DDIMScheduler first"
        )
    return Tabulated(tuple(table.double().tolist())), getattr(config, "prediction_type", "epsilon")


def load_pipeline(path: str | Path, **options: Any) -> PipelineModel:
    """Load a saved pipeline as a model.

    Args:
        path: A folder in diffusers' format, or a name on the hub where it is cached.
        **options: Those of `from_diffusers`.

    Returns:
        The model, in float32.

    Raises:
        MissingExtraError: diffusers is not installed.
        CorruptFileError: The folder holds no complete pipeline.
    """
    try:
        with _quiet():
            from diffusers.pipelines.pipeline_utils import DiffusionPipeline

            pipe = DiffusionPipeline.from_pretrained(str(path)).to(torch.float32)
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusers", "loading pipelines") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise CorruptFileError(f"{path}: no pipeline that diffusers can load ({error})") from error
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return from_diffusers(pipe, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the progress bars and the advice of diffusers and transformers, which they show even off a terminal."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [(library, library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, shown, level in before:
            library.set_verbosity(level)
            if shown:
                library.enable_progress_bar()
