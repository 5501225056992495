"""The node that edits: a latent from one guider to another, by any way of editing that asks the model alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steadyflow import InputError, edit
from steadyflow.editing import EditMethod, FlowAlign, UniEdit, get, names

from .inverting import WAY
from .latents import Latent, first_index, latent_like
from .paths import way_down
from .running import Scene, within
from .sampling import CATEGORY, solver_of

_ATTENTION = ("prompt-to-prompt", "plug-and-play", "masactrl", "value-injection")
"""They reach into the attentions of pipelines of diffusers, which ComfyUI's models have not."""


class Edit:
    """Move a latent from what one guider says of it to what another says."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Edit a latent, by inversion or along the difference of two prompts."
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "report")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        """Return the inputs, as ComfyUI asks for them."""
        options = "Options of the method, such as average=2 or omega=3; empty for its defaults."
        seed = "Of the noise, for methods and solvers that draw some; the others refuse it."
        empty = "The model under an empty prompt, for methods that ask for it; the others refuse it."
        return {
            "required": {
                "source": ("GUIDER", {"tooltip": "The model under what the latent shows."}),
                "target": ("GUIDER", {"tooltip": "The model under what it is to show."}),
                **WAY,
                "method": ([name for name in names() if name not in _ATTENTION], {"default": "inversion"}),
                "options": ("STRING", {"default": "", "tooltip": options}),
            },
            "optional": {
                "empty": ("GUIDER", {"tooltip": empty}),
                "seed": ("INT", {"forceInput": True, "tooltip": seed}),
            },
        }

    def run(
        self,
        source: Any,
        target: Any,
        sampler: Any,
        sigmas: Tensor,
        latent: Latent,
        method: str,
        options: str,
        empty: Any = None,
        seed: int | None = None,
    ) -> tuple[Latent, str]:
        """Return the edited latent, and what the edit was as text.

        Args:
            source: The model under what the latent shows.
            target: The model under what it is to show.
            sampler: One of this pack's.
            sigmas: The levels of the way down, falling; a smaller first one keeps more of the source.
            latent: The latent; where it has a noise mask, only that part of it may change.
            method: A way of editing.
            options: Its options as text.
            empty: The model under an empty prompt.
            seed: Of the noise.
        """
        solver = solver_of(sampler)
        way = get(f"{method}:{options}" if options.strip() else method)
        drawn = way.draws_noise or solver.properties.stochastic
        _check_wanted(way, solver.name, drawn, source, target, empty, seed)
        if latent.get("noise_mask") is not None and "mask" in way.refuses:
            raise InputError(
                f"latent: has a noise mask, which method {way.name!r} cannot honour: {way.refuses['mask']}"
            )
        words: dict[str, Any] = {"solver": solver}
        if drawn:
            words |= {"seed": seed, "index": first_index(latent, len(latent["samples"]))}

        def work(scene: Scene, grid: Any) -> Any:
            seen = scene.progress(target, 2 * grid.steps)
            mask = None if scene.mask is None else scene.mask.to(scene.x)
            return edit(
                scene.models[0],
                scene.x,
                1,
                source=0,
                method=way,
                mask=mask,
                grid=grid,
                callback=seen,
                progress=False,
                **words,
            )

        guiders = {"source": source, "target": target} | ({} if empty is None else {"empty": empty})
        found = within(guiders, latent, lambda levels: way_down(levels, sigmas, solver), work, seed=seed or 0)
        lines = [f"{way.name}, {solver.name}, {found.nfe} model evaluations"]
        moved = enumerate(float(distance) for distance in found.distance)
        lines += [f"picture {k}: moved by {distance:.3g} (rms, in the model's latents)" for k, distance in moved]
        return latent_like(latent, found.x, target), "\n".join(lines)


def _check_wanted(
    way: EditMethod, solver: str, drawn: bool, source: Any, target: Any, empty: Any, seed: int | None
) -> None:
    """Raise `InputError` for an input that is missing, or that the way of editing has no use for."""
    if drawn and seed is None:
        raise InputError(f"seed: method {way.name!r} with solver {solver!r} draws noise; connect a number")
    if seed is not None and not drawn:
        raise InputError(f"seed: method {way.name!r} with solver {solver!r} draws no noise; disconnect it")
    asks = isinstance(way, UniEdit) and way.empty
    if asks and empty is None:
        raise InputError(
            f"empty: method {way.name!r} asks for the model under an empty prompt; connect a guider, or say empty=false"
        )
    if empty is not None and not asks:
        raise InputError(f"empty: method {way.name!r} never asks for it; disconnect it")
    if isinstance(way, FlowAlign) and getattr(target, "cfg", 1.0) != 1.0 and not _starts_from(source, target):
        raise InputError(
            f"target: the guidance of method {way.name!r} starts from the source; connect the source's conditioning as "
            "the negative of the target"
        )


def _starts_from(source: Any, target: Any) -> bool:
    """Whether the target's negative conditioning is the source's positive one."""
    ours, theirs = (
        guider.original_conds.get(name, []) for guider, name in ((target, "negative"), (source, "positive"))
    )
    pairs = [(a.get("cross_attn"), b.get("cross_attn")) for a, b in zip(ours, theirs, strict=False)]
    return len(ours) == len(theirs) and all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b) for a, b in pairs
    )
