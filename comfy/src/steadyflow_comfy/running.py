"""Work within the sampling of one or more guiders, so that whatever ComfyUI prepares for sampling is there.

A GUIDER loads its model, prepares its conditionings and runs what was hooked onto the model, and then calls a sampler.
Our sampler, `_Inside`, calls no model by itself: inside the first guider's sampling it begins that of the next, and
inside the last it does the work, with the guiders as the conditions of one `Denoiser`. Guidance is therefore the
guider's own, with all that was patched into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from steadyflow import Denoiser, Grid, InputError, StepInfo

from . import host
from .latents import Latent, samples_of
from .paths import Levels, levels_of

Result = TypeVar("Result")


class Scene(NamedTuple):
    """What the work finds when the models are ready."""

    x: Tensor
    """The samples in the model's own space, on its device; shape (B, C, ...)."""
    models: tuple[Denoiser, ...]
    """The model under each guider, in their order."""
    net: Asked
    """What answers for all of them."""
    mask: Tensor | None
    """Where the latent may change, of the samples' size."""
    max_denoise: bool
    """Whether ComfyUI counts the first level as pure noise."""

    def progress(self, guider: Any, steps: int) -> Callable[[StepInfo], None]:
        """Return a callback that shows each step in ComfyUI, with a preview of what the model saw last.

        Args:
            guider: The guider whose model makes the samples.
            steps: How many steps there will be; more than these are counted as they come.
        """
        shown, done = host.previews.prepare_callback(guider.model_patcher, steps), 0

        def seen(info: StepInfo) -> None:
            nonlocal done
            done += 1
            shown(done - 1, info.x if self.net.last is None else self.net.last, info.x, max(steps, done))

        return seen


class Asked:
    """The network of the model: the denoised latents of the guider that a label names."""

    def __init__(self, guiders: Sequence[tuple[Any, dict[str, Any]]], empty: int | None):
        self._guiders, self._empty = guiders, empty
        self.asked_empty = False
        """Whether the model was asked without a condition."""
        self.last: Tensor | None = None
        """What it answered last."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        host.management.throw_exception_if_processing_interrupted()
        if label is None:
            if self._empty is None:
                raise InputError(
                    "empty: this way of editing asks the model without a condition; connect a guider of an empty prompt"
                )
            self.asked_empty = True
        guider, extra = self._guiders[cast(int, self._empty) if label is None else int(label[0])]
        denoised: Tensor = guider(x, sigma, **extra).to(x.dtype)
        self.last = denoised
        return denoised


class _Inside(host.samplers.Sampler):
    """A sampler that hands over where it is called, and returns what it was given."""

    def __init__(self, then: Callable[..., None]):
        self._then = then

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Any = None,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Called by ComfyUI where its own samplers are."""
        self._then(model_wrap, extra_args, latent_image, denoise_mask, self.max_denoise(model_wrap, sigmas))
        return latent_image


def within(
    guiders: dict[str, Any],
    latent: Latent,
    grid: Callable[[Levels], Grid],
    work: Callable[[Scene, Grid], Result],
    seed: int = 0,
) -> Result:
    """Do some work inside the sampling of guiders.

    Args:
        guiders: GUIDERs by the names of the inputs that gave them; "empty" stands for no condition.
        latent: The LATENT.
        grid: Makes the grid of the run from the levels of the model.
        work: Called with the models under the guiders, in their order without "empty", and the grid.
        seed: What is handed to the model as the seed of the run; without noise 0, as by ComfyUI.

    Returns:
        What the work returned.

    Raises:
        InputError: The guiders are of different models, or the latent does not fit them.
    """
    _check_one_model(guiders)
    names = list(guiders)
    first = guiders[names[0]]
    samples = samples_of(latent, first)
    levels = levels_of(first.model_patcher)
    times = grid(levels)
    sigmas = torch.tensor(times.times)
    found: list[tuple[Any, dict[str, Any]]] = []
    results: list[Result] = []

    def enter(depth: int) -> None:
        def then(wrapped: Any, extra: dict[str, Any], x: Tensor, mask: Tensor | None, max_denoise: bool) -> None:
            found.append((wrapped, extra))
            if depth + 1 < len(names):
                enter(depth + 1)
                return
            net = Asked(found, names.index("empty") if "empty" in names else None)
            model = Denoiser(net, levels.path, prediction="sample", shape=tuple(x.shape[1:]), name="ComfyUI's model")
            models = tuple(model.with_condition(k) for k, name in enumerate(names) if name != "empty")
            results.append(work(Scene(x.float(), models, net, mask, max_denoise), times))

        guider = guiders[names[depth]]
        guider.sample(
            torch.zeros_like(samples), samples, _Inside(then), sigmas, denoise_mask=latent.get("noise_mask"), seed=seed
        )

    enter(0)
    return results[0]


def _check_one_model(guiders: dict[str, Any]) -> None:
    """Raise `InputError` for guiders that cannot be asked in turn, step by step."""
    (name, first), *others = guiders.items()
    for other, guider in others:
        a, b = first.model_patcher, guider.model_patcher
        if a is not b and not a.clone_has_same_weights(b):
            raise InputError(f"{other}: is of another model than {name}, or of other LoRAs; connect both to one MODEL")
        if guider is first:
            raise InputError(f"{other}: is the same guider as {name}; make one for each")
    if not others:
        return
    for name, guider in guiders.items():
        for conditionings in guider.original_conds.values():
            if any("hooks" in one for one in conditionings):
                raise InputError(f"{name}: has a conditioning with hooks, which two guiders at once cannot honour")
