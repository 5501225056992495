"""The node that says where the error of a way there and back comes from, as a picture and as text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steadyflow import Diagnosis, InputError, diagnose

from .inverting import WAY, there_and_back
from .latents import Latent
from .paths import way_down
from .running import Scene, within
from .sampling import CATEGORY


class Diagnose:
    """Find where the error of reconstructing a latent, or of editing it, comes from."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Where the error of a reconstruction or an edit comes from. Hundreds to thousands of model evaluations."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("picture", "report")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        """Return the inputs, as ComfyUI asks for them."""
        about = "Tolerance of the reference solutions; models in half precision need a larger one, such as 0.01."
        span = {"default": 1e-3, "min": 1e-6, "max": 1.0, "step": 1e-4, "round": False, "tooltip": about}
        return {
            "required": {"guider": ("GUIDER",), **WAY, "tolerance": ("FLOAT", span)},
            "optional": {"target": ("GUIDER", {"tooltip": "To diagnose the edit towards it."})},
        }

    def run(
        self, guider: Any, sampler: Any, sigmas: Tensor, latent: Latent, tolerance: float, target: Any = None
    ) -> tuple[Tensor, str]:
        """Return the budget as a picture, shape (1, H, W, 3), and the diagnosis as text.

        Args:
            guider: The model under what describes the latent.
            sampler: One of this pack's, of a solver that has an inverse.
            sigmas: The levels of the way back, falling.
            latent: The latent.
            tolerance: Of the reference solutions.
            target: The model under what an edit is to show.
        """
        solver = there_and_back(sampler, latent, "a diagnosis")
        if not tolerance > 0.0:
            raise InputError(f"tolerance: got {tolerance}, expected a positive number")
        words: dict[str, Any] = {} if target is None else {"target": 1}

        def work(scene: Scene, grid: Any) -> Diagnosis:
            with torch.inference_mode(False), torch.no_grad():  # in which there are no derivatives
                x = scene.x.clone()
                return diagnose(
                    scene.models[0], x, solver=solver, grid=grid, tolerance=tolerance, progress=False, **words
                )

        guiders = {"guider": guider} | ({} if target is None else {"target": target})
        found = within(guiders, latent, lambda levels: way_down(levels, sigmas, solver), work)
        return picture_of(found), found.summary()


def picture_of(found: Diagnosis) -> Tensor:
    """Draw the budget of a diagnosis, and under it how the error grows on the way down.

    Returns:
        An IMAGE, shape (1, H, W, 3), with values in [0, 1].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from steadyflow.diagnostics.report import draw_budget, draw_growth

    drawn = Figure(figsize=(8.0, 8.0), dpi=128, layout="constrained")
    canvas = FigureCanvasAgg(drawn)
    above, below = drawn.subplots(2)
    draw_budget(found, above)
    draw_growth(found, below)
    canvas.draw()
    return torch.tensor(bytearray(canvas.buffer_rgba())).view(1024, 1024, 4)[None, ..., :3].float() / 255.0
