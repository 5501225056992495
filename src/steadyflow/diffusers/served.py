"""A model over any diffusers pipeline: the pipeline's own call, kept suspended, answers every query.

    model = sf.from_diffusers(pipe, "a red fox", height=512, width=512)      # QwenImage, Wan, LTX-2, FLUX.2, ...
    inversion = sf.invert(model, model.encode(pictures), solver="ees25", steps=16)
    edited = inversion.decode(model.with_condition("a blue fox"), guidance=4.0)
    pictures = model.decode(edited.x)

`scheduler.step(output, t, x)` is the normal form of diffusers' pipelines: packing, true guidance with its norm kept,
negated outputs, two networks and embedded guidance all end there as one velocity or noise. What a pipeline hands to
`step` at (x, t) is the model (`_server`, `_line`, `_desk`). Gradients pass through where the pipeline's own operations
let them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, cast

import torch
from torch import Tensor

from .._internal.autograd import grad_enabled_by
from .._internal.pooling import pooled
from ..denoisers.base import Condition, Denoiser, is_words
from ..errors import InputError
from ..grids import Grid
from ._call import Request, without_embeddings, words
from ._call import kept as as_now
from ._configs import settings_of
from ._field_check import check_transforms
from ._media import as_tensor, by_name, digest, encoded, sampling_rate
from ._pixels import check_pixels
from ._server import Server
from ._way_out import Affine, Heard, pictures, vae_name

NONE: Mapping[str, Tensor] = {}
"""The negative where none is given."""


@dataclass(frozen=True, eq=False)
class ServedModel(Denoiser):
    """A pipeline's own call as a model; made by `from_diffusers`.

    A condition is a prompt, one per sample, or arguments of the pipeline's call by name, such as
    `{"prompt": ..., "image": ...}`. Every condition and every number of samples has a suspended call of its own, of
    which the last few are kept; `close`, or leaving a `with` block, ends them all. A closed model opens again when it
    is asked.
    """

    server: Server = field(default=cast(Server, None), repr=False)
    """What asks the pipeline."""

    # ---- conditions

    def with_condition(self, condition: Condition | Mapping[str, Any], *, guidance: float | None = None) -> Self:
        """Set the condition.

        Args:
            condition: A prompt, one per sample, or arguments of the pipeline's call by name, which are changed; None
                for an empty prompt.
            guidance: The scale of classifier-free guidance; the model's own by default.

        Returns:
            This model under the condition.

        Raises:
            InputError: The pipeline's call does not take it.
        """
        if isinstance(condition, Mapping):
            self.server.signature.check(condition)
            kept = {**self._inputs, **self._prompt_by_name}
            if "prompt" in condition:
                kept = without_embeddings(kept)
            elif any("prompt_embeds" in name for name in condition):
                kept.pop("prompt", None)
            condition = cast(Condition, {**kept, **{name: as_now(value) for name, value in condition.items()}})
            self._check_one_way(condition)
        elif condition is None or is_words(condition):
            if not self.server.signature.takes_prompts and condition is not None:
                raise InputError(f"condition: {self.name} takes no prompts")
            text, kept = "" if condition is None else condition, without_embeddings(self._inputs)
            condition = cast(Condition, {**kept, "prompt": text} if kept else text)
            self._check_one_way({"prompt": text})
        else:
            raise InputError(
                f"condition: got {type(condition).__name__}, expected a prompt, one per sample, or arguments of the "
                "pipeline's call by name"
            )
        model = self._replace(condition=condition)
        return model if guidance is None else model.with_guidance(guidance)

    def _check_one_way(self, condition: Any) -> None:
        """Check that a prompt is given as text or as embeddings, but not as both."""
        given = {**self.server.fixed, **condition}
        embedded = [name for name in given if "prompt_embeds" in name and not name.startswith("negative")]
        if given.get("prompt") is not None and embedded:
            raise InputError(f"condition: got a prompt and {embedded[0]}, of which the pipeline would read one")

    def with_guidance(self, guidance: float | Tensor) -> Self:
        """Set the scale of classifier-free guidance, in the pipeline's own way (its true guidance where it has two).

        Args:
            guidance: The scale; 1 is the plain conditional model.

        Returns:
            This model under that guidance.

        Raises:
            InputError: The pipeline cannot guide by it.
        """
        if isinstance(guidance, Tensor):
            raise InputError(
                "guidance: got a tensor, but a served pipeline takes the scale as a number, of its own call"
            )
        if guidance != 1.0 and self.null is None:
            raise InputError(self.server.signature.unguided(guidance))
        self.server.signature.guided(guidance, True)
        return super().with_guidance(guidance)

    def with_negative(self, negative: Condition) -> Self:
        """Set the negative prompt.

        Args:
            negative: A prompt or one per sample; None for what the pipeline takes where none is given.

        Returns:
            This model with guidance away from that prompt.

        Raises:
            InputError: The pipeline takes none.
        """
        if negative is None:
            return super().with_negative(None if self.null is None else NONE)
        if not is_words(negative) or self.null is None or "negative_prompt" not in self.server.signature.parameters:
            takes = "takes no negative prompt" if is_words(negative) else "expected a prompt or one per sample"
            raise InputError(f"negative_prompt: got {negative!r}; {self.name}: {takes}")
        return super().with_negative(negative)

    def described(self) -> tuple[Any, ...]:
        """What its answers depend on beside weights, path and condition, as text: the class, and the call's inputs."""
        given = {**self.server.fixed, **self._inputs}
        guiders = [digest(settings_of(getattr(self.pipe, name, None))) for name in ("guider", "ocr_guider")]
        return self.name, *guiders, tuple((name, digest(value)) for name, value in sorted(given.items()))

    @property
    def takes_prompts(self) -> bool:
        """Whether conditions may be prompts."""
        return self.server.signature.takes_prompts

    @property
    def pipe(self) -> Any:
        """The pipeline."""
        return self.server.pipe

    @property
    def _inputs(self) -> dict[str, Any]:
        """The condition's arguments of the call beside the prompt."""
        given = self.condition if isinstance(self.condition, Mapping) else {}
        return {name: value for name, value in given.items() if name != "prompt"}

    @property
    def _prompt_by_name(self) -> dict[str, Any]:
        prompt = self.condition.get("prompt") if isinstance(self.condition, Mapping) else self.condition
        return {} if prompt is None else {"prompt": prompt}

    @cached_property
    def request(self) -> Request:
        """What the pipeline's call is opened with."""
        guided = self.guidance != 1.0 and self.null is not None
        negative = self.null if guided and is_words(self.null) else None
        prompt = self._prompt_by_name.get("prompt")
        return Request(words(prompt), words(negative), self.guidance, self._inputs)

    def _of_samples(self, choose: Callable[[Any], Any]) -> Self:
        def chosen(value: Any) -> Any:
            if not isinstance(value, list | tuple) or len(value) != count or count == 1:
                return value
            return [value[k] for k in choose(torch.arange(count)).tolist()]

        count = self.request.prompts
        condition = self.condition
        if isinstance(condition, Mapping):
            condition = {name: chosen(v) if name == "prompt" else v for name, v in condition.items()}
        else:
            condition = chosen(condition)
        null = chosen(self.null) if is_words(self.null) else self.null
        return self._replace(condition=cast(Condition, condition), null=null)

    # ---- queries

    def _output(self, x: Tensor, t: float | Tensor) -> Tensor:
        request = self.request
        if request.prompts > 1:
            self.server.signature.check_prompts(request)
        if request.prompts > 1 and len(x) != request.prompts:
            raise InputError(f"condition: got {request.prompts} rows for a batch of {len(x)} samples")
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise InputError(f"x: got samples of shape {tuple(x.shape[1:])}, {self.name} takes {self.shape}")
        check_transforms(x)
        if not len(x):
            raise InputError("x: an empty batch")
        if isinstance(t, Tensor) and t.requires_grad:
            raise InputError("gradients: none with respect to the time pass through a served pipeline")
        if isinstance(t, Tensor) and t.numel() not in (1, len(x)):
            raise InputError(f"t: got {t.numel()} times for {len(x)} samples")
        if isinstance(t, Tensor) and t.numel() > 1:
            times: list[float] = t.tolist()
            if len(set(times)) > 1:
                return torch.cat([self.slice(k, k + 1)._output(x[k : k + 1], time) for k, time in enumerate(times)])
            t = times[0]
        return self.server.answer(request, x, float(t))

    def own_grid(self, steps: int) -> Grid:
        """Return the times at which the pipeline itself would step, to give as `grid` to a verb.

        Args:
            steps: The number of steps, the pipeline's `num_inference_steps`.

        Raises:
            InputError: The scheduler does not accept the number, or its places are not known.
        """
        path = self.server.path.path
        if path is None:
            raise InputError(f"own_grid: the places of {type(self.pipe.scheduler).__name__} are not known")
        given = self.server.plan(self.request, steps)
        return path.grid(self.schedule, steps, given.get("mu"), given.get("sigmas"))

    # ---- pictures, videos and sounds

    @property
    def noise(self) -> Tensor:
        """The latents with which the pipeline's own call begins under its `generator`, shape (B, ...)."""
        return self.server.join(self.server.first)

    @property
    def fps(self) -> float | None:
        """The frames per second that the pipeline's call was given, None where it takes none."""
        given = {**self.server.fixed, **self._inputs}
        value = next((given[name] for name in ("fps", "frame_rate") if name in given), None)
        return None if value is None else float(value)

    @property
    def sample_rate(self) -> int | None:
        """The samples per second of its sounds, None where the parts of the pipeline do not say."""
        return sampling_rate(self.pipe)

    @property
    def codec(self) -> Self:
        """The model itself, which encodes and decodes."""
        return self

    @cached_property
    def _affine(self) -> Affine:
        return Affine(self.server, self.request)

    @cached_property
    def image_shape(self) -> Any:
        """The shape of what one sample decodes to: (c, h, w), (c, frames, h, w) for videos, (c, samples) for sounds.

        Where a sample decodes to several things, it is a dict of their shapes by name.
        """
        found = self.decode(torch.zeros(1, *self._size))
        if isinstance(found, dict):
            return {name: tuple(part.shape[1:]) for name, part in found.items()}
        return tuple(found.shape[1:])

    @property
    def _size(self) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self.shape)

    @cached_property
    def _is_its_picture(self) -> bool:
        """Whether states are pictures, which the pipeline returns as they are."""
        if self.image_shape != self.shape:
            return False
        x = 1.8 * torch.rand(1, *self._size, generator=torch.Generator().manual_seed(0)) - 0.9
        return bool(torch.allclose(self.decode(x), x, atol=1e-5))

    def encode(self, images: Tensor) -> Tensor:
        """Encode pictures, videos or sounds into states.

        Args:
            images: In [-1, 1], shape (B, *image_shape).

        Returns:
            The states, shape (B, *shape), float32.

        Raises:
            InputError: They have another shape, are bytes, or the pipeline has no way in.
        """
        wanted = self.image_shape
        if isinstance(wanted, dict):
            raise InputError(
                f"encode: a sample of {self.name} is {' and '.join(wanted)} in one, for which there is no way in; give "
                "latents instead"
            )
        if tuple(images.shape[1:]) != wanted:
            raise InputError(f"images: got shape {tuple(images.shape)}, {self.name} takes (B, {_shown(wanted)})")
        check_pixels(images)
        name = vae_name(self.pipe)
        if name is None and self._is_its_picture:
            return images
        affine = self._affine
        vae = getattr(self.pipe, str(name))
        z = torch.cat([encoded(vae, image[None], affine.shape) for image in images]).float()
        states = affine.back(z, len(images)).reshape(len(images), *self._size)
        return states

    def mask_weights(self, white: Tensor) -> Tensor:
        """Weights over states for a mask over pixels (see `editing.mask_for`).

        Args:
            white: The mask, shape (1 or F, H, W).

        Returns:
            The weights, shape (1, *shape).

        Raises:
            InputError: Which pixels lie behind the numbers of a state is not known.
        """
        if vae_name(self.pipe) is None and self._is_its_picture:
            return pooled(white, self._size[1:])
        z = self._affine.shape
        frames = self.image_shape[1] if len(self.image_shape) == 4 else None
        if len(z) == 4 and frames is not None:  # frame by frame
            grid = pooled(white, z[-2:]).expand(1, z[0], *z[-2:])[0][:, None]
        else:
            grid = pooled(white, z[2:] if frames is not None else z[-2:], frames)
            grid = grid.unsqueeze(2) if grid.ndim < len(z) else grid
        return self._affine.placed(grid.expand(z)).reshape(1, *self._size)

    def decode(self, x: Tensor) -> Any:
        """Decode states by the pipeline's own way out.

        Args:
            x: The states, shape (B, *shape).

        Returns:
            What they decode to, in [-1, 1], shape (B, *image_shape); a dict by name where a sample is several things,
            such as a video and its sound.
        """
        with grad_enabled_by(x):
            found = [self._decoded(self.slice(k, k + 1).request, x[k : k + 1]) for k in range(len(x))]
        if isinstance(found[0], dict):
            return {name: torch.cat([part[name] for part in found]) for name in found[0]}
        return torch.cat(found)

    def _decoded(self, request: Request, x: Tensor) -> Any:
        kept = self._outputs(request, x)
        if self._signed:
            kept = {
                name: v if name.startswith("audio") else (0.5 * (v + 1.0)).clamp(-1.0, 1.0) for name, v in kept.items()
            }
        return kept if len(kept) > 1 and self.server.parts > 1 else next(iter(kept.values()))

    @cached_property
    def _signed(self) -> bool:
        """Whether the pipeline returns pictures in [-1, 1], where most return them in [0, 1]."""
        x = torch.randn(1, *self._size, generator=torch.Generator().manual_seed(0)) * 0.3
        name, request = vae_name(self.pipe), self.slice(0, 1).request
        heard = None if name is None else Heard(getattr(self.pipe, name))
        kept = self._outputs(request, x, **({} if heard is None else {"instead": {name: heard}}))
        made = x if heard is None else heard.made
        found = next(iter(kept.values()))
        if made is None or made.numel() != found.numel():
            return False
        made, raw = made.float().flatten().sort().values, (0.5 * (found.float() + 1.0)).flatten().sort().values
        return bool(torch.allclose(raw, made.to(raw), atol=1e-2)) and float(made.std()) > 0.0

    def _outputs(self, request: Request, x: Tensor, **more: Any) -> dict[str, Tensor]:
        """What the pipeline returns for a final state, by name."""
        outputs = by_name(self.server.finished(request, x, **pictures(self.server), **more))
        named = {
            "video" if name == "frames" else name: as_tensor(name, value)
            for name, value in outputs.items()
            if value is not None
        }
        kept = {name: value for name, value in named.items() if value is not None}
        if not kept:
            raise InputError(f"decode: {self.name} returned no pictures, videos or sounds: {', '.join(outputs)}")
        return kept

    # ---- the end

    def close(self) -> None:
        """End all suspended calls and their threads."""
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _shown(shape: tuple[int, ...]) -> str:
    return ", ".join(str(n) for n in shape)
