"""The ways of editing that the study on scenes compares, and an edit by one of them for a number of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import steadyflow as sf
from steadyflow import editing, solvers
from steadyflow.errors import InputError, NonFiniteError

from ..models import WEIGHTS
from .scenes import scene_model, scene_task

BUDGET = 96
"""Evaluations of the network for an edit, all ways together."""
FEW = 24
"""The same where calls are few, as a tuned solver has a number of calls of its own."""
TUNED = WEIGHTS / "scenes-tuned.json"
"""A solver that scripts/tune_scenes.py fitted to the pipeline, for 12 calls each way."""


@dataclass(frozen=True)
class Way:
    """A way of editing, with everything but the guidance."""

    label: str
    method: str
    options: dict[str, Any]
    """Those of the method."""
    solver: tuple[str, dict[str, Any]] | None = None
    """Of methods that take any."""
    strength: float | None = None
    """The share of the path that is gone; that of the method where it is None."""

    @property
    def group(self) -> str:
        """What kind of way it is."""
        if self.method in ("inversion", "direct"):
            return "inversion"
        return "injection" if self.method in INJECTED else "no inversion"


INJECTED = ("prompt-to-prompt", "plug-and-play", "masactrl", "value-injection")
_AUTO: dict[str, Any] = {"coordinates": "flow", "coupling": "auto"}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("ddim", {}),
    "rk4": ("rk4", {}),
    "ees25": ("ees25", {}),
    "ees27": ("ees27", {}),
    "rex-euler": ("rex-euler", {"coordinates": "flow"}),
    "rex-midpoint": ("rex-midpoint", {"coordinates": "flow"}),
    "rex-midpoint, auto": ("rex-midpoint", _AUTO),
}
"""DDIM, a classical method, the near-reversible ones, two exact ones with their published couplings, and ours.

Exact ones in the coordinates of noise do not start from the noisy end of a flow model, where alpha is 0."""
CHOSEN: dict[str, dict[str, Any]] = {
    "prompt-to-prompt": {"layers": (0.0, 0.5), "self_share": 0.2},
    "plug-and-play": {"layers": (0.5, 1.0), "attention_share": 0.6},
    "masactrl": {"layers": (0.0, 1.0), "steps": (0.4, 1.0)},
    "value-injection": {"layers": (0.67, 1.0), "share": 0.2},
}
"""Layers and shares of the steps of injection that did best on other pictures, of `CHOICES`: see `pareto.choices`."""
WAYS: tuple[Way, ...] = (
    *(Way(f"inversion, {name}", "inversion", {}, solver) for name, solver in SOLVERS.items()),
    Way("inversion, ees25, 70 %", "inversion", {}, SOLVERS["ees25"], strength=0.7),
    Way("direct, ees25", "direct", {}, SOLVERS["ees25"]),
    *(
        Way(name, name, {})
        for name in (
            "flow-edit", "flow-align", "dvrf", "rf-inversion", "uni-edit", "pmi", "dna-edit", "flow-opt", "noise-maps",
        )
    ),
    *(
        Way(f"{method}, {name}", method, CHOSEN[method], SOLVERS[name])
        for method in INJECTED
        for name in ("ddim", "ees25", "rex-midpoint, auto")
    ),
    *(Way(f"{method}, ees25, as published", method, {}, SOLVERS["ees25"]) for method in INJECTED),
    *(
        Way(f"{method}, ees25, 70 %", method, CHOSEN[method], SOLVERS["ees25"], strength=0.7)
        for method in ("masactrl", "value-injection")
    ),
    Way(
        "prompt-to-prompt, ees25, blend",
        "prompt-to-prompt",
        {**CHOSEN["prompt-to-prompt"], "blend": 0.3},
        SOLVERS["ees25"],
    ),
)  # fmt: skip
FEW_WAYS: tuple[Way, ...] = tuple(
    Way(f"inversion, {name}", "inversion", {}, solver)
    for name, solver in {**SOLVERS, "tuned": ("tuned", {})}.items()
    if name not in ("rex-euler", "rex-midpoint")
)
"""Plain inversion where calls are few: the exact ones with their published couplings are compared above."""
QUICK = tuple(way for way in WAYS if way.label in ("inversion, ees25", "flow-edit", "masactrl, ees25"))

_LAYERS = ((0.0, 1.0), (0.0, 0.5), (0.33, 1.0), (0.5, 1.0), (0.67, 1.0))
_SHARES = (0.2, 0.4, 0.6, 0.8)
CHOICES: tuple[Way, ...] = tuple(
    Way(
        f"{method}, layers {layers[0]:g} to {layers[1]:g}, {share:g}",
        method,
        {"layers": layers, **given},
        ("ees25", {}),
    )
    for method, option in (
        ("prompt-to-prompt", "self_share"),
        ("plug-and-play", "attention_share"),
        ("masactrl", "steps"),
        ("value-injection", "share"),
    )
    for layers in _LAYERS
    for share in _SHARES
    for given in ({option: (round(1.0 - share, 2), 1.0) if option == "steps" else share},)
)
"""Which layers and which share of the steps, of each way that injects; masactrl's are the last steps, not the first."""


def edit_scenes(
    way: Way, guidance: float, n: int, seed: int, start: int, stop: int, budget: int = BUDGET
) -> tuple[torch.Tensor, int]:
    """Edit some of the pictures: the latents, and the evaluations that were made.

    Args:
        way: How.
        guidance: Towards the target; the source is without.
        n: The pictures of the task.
        seed: Of the task.
        start: The first that is edited.
        stop: One past the last.
        budget: Evaluations in all.
    """
    task, model = scene_task(n, seed), scene_model()
    method = editing.get(way.method, **way.options)
    words: dict[str, Any] = {"guidance": guidance, "source_guidance": 1.0, "progress": False, "index": start}
    if way.solver is not None:
        name, given = way.solver
        words["solver"] = str(TUNED) if name == "tuned" else solvers.get(name, **given)
    if way.strength is not None:
        words["strength"] = way.strength
    for nfe in _budgets(way, budget):
        try:
            found = sf.edit(
                model,
                task.latents[start:stop],
                task.targets[start:stop],
                source=task.sources[start:stop],
                method=method,
                nfe=nfe,
                **words,
            )
        except NonFiniteError:
            return torch.full_like(task.latents[start:stop], torch.inf), budget
        except InputError as error:
            if "nfe" in str(error):
                continue
            raise
        if found.nfe <= budget:
            return found.x, found.nfe
    raise ValueError(f"{way.label}: no number of evaluations each way fits the budget of {budget}")


def _budgets(way: Way, budget: int) -> Sequence[int]:
    """The numbers of evaluations each way that are tried, falling: a copy of the source takes a third of the whole."""
    if way.group == "injection":
        return range(budget // 3, 0, -1)
    return range(budget // 2, 0, -1)
