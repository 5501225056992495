"""A `Denoiser` over a whole diffusers pipeline: prompts, guidance, latent scaling and packing included.

    model = sf.from_diffusers(pipe, "a photograph of a cat")
    found = sf.invert(model, model.codec.encode(images), solver="ees25", steps=16)
    edited = model.codec.decode(found.decode(model.with_condition("a photograph of a dog"), guidance=7.5).x)

So inversion, editing, diagnosis, corrections and adaptive solvers work on it, with the network's time in float32
whatever it computes in (FLUX's own pipeline rounds it to the latents' type). Known families: Stable Diffusion 1 and 2,
SDXL, SD3 and 3.5, FLUX, and unconditional models with a `unet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..denoisers.base import Condition, Denoiser, is_words
from ..errors import CorruptFileError, InputError, MissingExtraError
from ..schedules import RectifiedFlow, Schedule, Tabulated
from ._families import Embedded, Family, family_of


@dataclass(frozen=True, eq=False)
class Latents:
    """The pipeline's VAE as a codec between images in [-1, 1] and the model's latents, in float32."""

    vae: Any

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.vae.config.in_channels

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
    family: Family | None = field(default=None, repr=False)

    def with_condition(self, given: Condition | str | Sequence[str], *, guidance: float | None = None) -> PipelineModel:
        """This model under a prompt, one a sample, or embeddings by name."""
        return super().with_condition(self._embedded(given), guidance=guidance)

    def with_negative(self, negative: Condition | str) -> PipelineModel:
        """This model with guidance away from another prompt than "" (see `Denoiser.against`)."""
        return super().with_negative(self._embedded(negative))

    def with_lora(self, path: str | Path, *, scale: float = 1.0) -> PipelineModel:
        """This model with a LoRA, such as Smooth Diffusion's, from a file or a folder; this one itself stays without.

        The weights lie in the pipeline's network, switched on only while the model that was returned is called.

        Raises `InputError` for a LoRA that fits another network, `MissingExtraError` without peft.
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
        """Of the images that belong to the latents, (channels, height, width)."""
        assert self.shape is not None
        if self.codec is None:
            return self.shape
        channels, factor = self.codec.channels, self.codec.factor
        return (channels, self.shape[1] * factor, self.shape[2] * factor)

    def encode(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as what the network works on: latents, or the images themselves where there is no VAE."""
        return images if self.codec is None else self.codec.encode(images)

    def decode(self, x: Tensor) -> Tensor:
        """The images of latents; of images, themselves."""
        return x if self.codec is None else self.codec.decode(x)

    def _embedded(self, given: Any) -> Any:
        if given is None and self.embed is not None:
            return self.null
        if not is_words(given):
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


def path_of(scheduler: Any, flow: bool, shift: float | None) -> tuple[Schedule, Any]:
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


def load_pipeline(path: str | Path, **options: Any) -> PipelineModel:
    """`from_diffusers` over a saved pipeline: a folder in diffusers' format, or a name on the hub where it is cached.

    The options are those of `from_diffusers`. Raises `MissingExtraError` without diffusers, `CorruptFileError` for a
    folder that holds no whole pipeline.
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
    """Loading without diffusers' and transformers' bars and advice, which show off a terminal too."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    before = [(library, library.is_progress_bar_enabled(), library.get_verbosity()) for library in (ours, theirs)]
    for library in (ours, theirs):
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, shown, level in before:
            library.set_verbosity(level)
            if shown:
                library.enable_progress_bar()
