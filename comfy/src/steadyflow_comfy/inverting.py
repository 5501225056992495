"""Nodes that invert: latents to noise, noise back to latents, and both with the error of the way there and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steadyflow import InputError, Inversion, Solver, invert, reconstruct
from steadyflow.solvers.state import flatten_state

from .latents import Latent, latent_like, refuse_mask
from .paths import way_down
from .running import Scene, within
from .sampling import CATEGORY, solver_of

WAY: dict[str, Any] = {"sampler": ("SAMPLER",), "sigmas": ("SIGMAS",), "latent": ("LATENT",)}
"""The inputs that say what way is gone, and from where; the sigmas fall, whatever the way."""


def there_and_back(sampler: object, latent: Latent, what: str) -> Solver[Any]:
    """The solver of a SAMPLER for a way there and back, which honours no mask.

    Args:
        sampler: One of this pack's.
        latent: The LATENT.
        what: What is asked for, in words.

    Raises:
        InputError: The sampler is another program's, or the latent has a mask.
        NotInvertibleError: The solver has no inverse.
    """
    solver = solver_of(sampler)
    solver.check_invertible()
    refuse_mask(latent, what)
    return solver


@dataclass(frozen=True)
class Inverted:
    """STEADYFLOW_INVERSION: an inversion without its model, and the latent it was made of."""

    inversion: Inversion
    """The whole state of the solver at the noisy end, with its grid."""
    latent: Latent
    """The LATENT that was inverted."""


@dataclass(frozen=True)
class FoundNoise:
    """NOISE of an inversion, for SamplerCustomAdvanced with an empty latent."""

    samples: Tensor
    """What ComfyUI scales to the state at the first of the sigmas, shape (B, C, ...)."""
    seed: int = 0
    """What SamplerCustomAdvanced hands to samplers; the noise is none of a seed."""

    def generate_noise(self, input_latent: Latent) -> Tensor:
        """Return the noise.

        Args:
            input_latent: The LATENT to which it is added, which must be empty and of the same shape.

        Raises:
            InputError: It is not.
        """
        given = input_latent["samples"]
        if given.shape != self.samples.shape or bool(torch.count_nonzero(given)):
            full = "not empty" if given.any() else "empty"
            raise InputError(
                f"latent_image: got shape {tuple(given.shape)}, {full}; the noise of an inversion holds the whole "
                f"picture: give an empty latent of shape {tuple(self.samples.shape)}"
            )
        return self.samples.clone()


class Invert:
    """Go up the path, from a latent to the noise that generates it."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Find the noise that generates a latent. The inversion holds all that Decode needs."
    RETURN_TYPES = ("STEADYFLOW_INVERSION", "NOISE", "LATENT")
    RETURN_NAMES = ("inversion", "noise", "noise_latent")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        """Return the inputs, as ComfyUI asks for them."""
        return {"required": {"guider": ("GUIDER",), **WAY}}

    def run(self, guider: Any, sampler: Any, sigmas: Tensor, latent: Latent) -> tuple[Inverted, FoundNoise, Latent]:
        """Return the inversion, its noise for SamplerCustomAdvanced, and the same noise as a LATENT.

        Args:
            guider: The model under what describes the latent; a cfg of 1 inverts most faithfully.
            sampler: One of this pack's, of a solver that has an inverse.
            sigmas: The levels of the way back, falling.
            latent: The latent.
        """
        solver = there_and_back(sampler, latent, "an inversion")

        def work(scene: Scene, grid: Any) -> tuple[Inversion, Tensor]:
            seen = scene.progress(guider, grid.steps)
            found = invert(scene.models[0], scene.x, solver=solver, grid=grid, callback=seen, progress=False)
            return _moved(dataclasses.replace(found, model=None), "cpu"), _unscaled(guider, found, scene.max_denoise)

        found, noise = within({"guider": guider}, latent, lambda levels: way_down(levels, sigmas, solver), work)
        return Inverted(found, latent), FoundNoise(noise), {**latent, "samples": noise}


def _moved(found: Inversion, device: torch.device | str) -> Inversion:
    """The inversion with its state on a device."""
    build, tensors = flatten_state(found.state)
    return dataclasses.replace(found, state=build([tensor.to(device) for tensor in tensors]))


def _unscaled(guider: Any, found: Inversion, max_denoise: bool) -> Tensor:
    """The noise that ComfyUI scales to the state at the noisy end."""
    sampling = guider.model_patcher.get_model_object("model_sampling")
    x = found.latent.float()
    one = torch.ones((1,) * x.ndim, device=x.device)
    sigma = torch.tensor([found.grid.times[-1]], device=x.device)
    return (x / sampling.noise_scaling(sigma, one, torch.zeros_like(one), max_denoise)).cpu()


class Decode:
    """Go down the path again, from an inversion to a latent."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Generate from an inversion: the picture again under its own prompt, an edit under another one."
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        """Return the inputs, as ComfyUI asks for them."""
        return {"required": {"guider": ("GUIDER",), "inversion": ("STEADYFLOW_INVERSION",)}}

    def run(self, guider: Any, inversion: Inverted) -> tuple[Latent]:
        """Return the latent.

        Args:
            guider: The model under what is to be generated.
            inversion: Of the same kind of model.
        """
        kept = inversion.inversion

        def work(scene: Scene, grid: Any) -> Tensor:
            seen = scene.progress(guider, grid.steps)
            return _moved(kept, scene.x.device).decode(scene.models[0], callback=seen, progress=False).x

        x = within({"guider": guider}, inversion.latent, lambda levels: kept.grid.reversed(), work)
        return (latent_like(inversion.latent, x, guider),)


class Reconstruct:
    """Go up the path and down again, and say what that has cost."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Invert a latent and generate it again: how well a model, a prompt, a sampler and sigmas keep it."
    RETURN_TYPES = ("LATENT", "FLOAT", "STRING")
    RETURN_NAMES = ("latent", "error", "report")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        """Return the inputs, as ComfyUI asks for them."""
        return {"required": {"guider": ("GUIDER",), **WAY}}

    def run(self, guider: Any, sampler: Any, sigmas: Tensor, latent: Latent) -> tuple[Latent, float, str]:
        """Return the latent that came back, the largest error of the batch, and all of them as text.

        Args:
            guider: The model under what describes the latent.
            sampler: One of this pack's, of a solver that has an inverse.
            sigmas: The levels of the way back, falling.
            latent: The latent.
        """
        solver = there_and_back(sampler, latent, "a reconstruction")

        def work(scene: Scene, grid: Any) -> Any:
            seen = scene.progress(guider, 2 * grid.steps)
            return reconstruct(scene.models[0], scene.x, solver=solver, grid=grid, callback=seen, progress=False)

        found = within({"guider": guider}, latent, lambda levels: way_down(levels, sigmas, solver), work)
        errors = [float(error) for error in found.error]
        lines = [f"{solver.name}, {found.steps} steps, {found.nfe} model evaluations both ways"]
        lines += [f"picture {k}: error {error:.3g} (rms, in the model's latents)" for k, error in enumerate(errors)]
        return latent_like(latent, found.x, guider), max(errors), "\n".join(lines)
