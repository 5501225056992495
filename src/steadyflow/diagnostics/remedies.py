"""From an error budget to its cause, and from the cause to a remedy that has been tried.

The group of terms with the largest share in the error names the kind of cause. Within the discretisation errors the
cause is the change that would have mended it: a bad grid, if another grid gains more at the same cost than four times
the steps do on this one; too few steps otherwise. Remedies are tried on a few of the images and the best is
recommended; more steps or a more precise state only where nothing at equal cost gains ten times.

Of an edit, the causes tell the two ways apart, and a numerical error that is small against the change which the exact
edit makes is no cause of anything that can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .._internal.tensors import finite, rms
from ..denoisers.base import Denoiser
from ..errors import SteadyflowError
from ..grids import Grid
from ..solvers import registry
from ..solvers.base import Solver, steps_for
from ..tasks import invert
from .budget import Budget, Codec, in_precision

CAUSES = {
    "none": "The round trip is as good as its precision allows",
    "codec": "The codec loses more than the solver does",
    "guidance": "Inversion and generation have different guidance",
    "precision": "The working precision is too coarse",
    "instability": "The solver is exactly reversible and unstable: it amplifies what another solver would damp",
    "grid": "The grid's steps lie in the wrong places",
    "steps": "The steps are too few, or the solver's order too low",
    "change": "The numerical error is small against the change that an exact solver would make",
    "inversion": "The latent is off, by too few steps or too low an order on the way up",
    "generation": "The way to the target has too few steps, or too low an order",
}
"""The causes that a diagnosis can name, and what they mean; the last three are of edits."""

GRIDS = ("quadratic", "uniform", "log-snr", "karras")
"""The grids that are tried."""
SOLVERS = ("ees25", "ees27", "rk4", "midpoint")
"""The solvers that are tried."""
_DEARER = 4
"""How many times as many steps a dearer remedy takes."""
_FLOOR = 1e-9
"""The error below which nothing is wrong, whatever the precision."""
_ENOUGH = 10.0
"""The gain at equal cost for which a dearer remedy is not recommended."""
_MORE = {
    "change": ". Neither more steps nor another solver will change what you see; guidance, the target, `strength` or a "
    "`mask` will."
}
_SMALL = 0.01
"""The share of an edit's change below which its numerical error is no cause of anything."""


@dataclass(frozen=True)
class Setting:
    """The options of a round trip: of the one that `diagnose` was asked about, or of one that it recommends."""

    solver: Solver[Any]
    steps: int
    grid: str | Grid = "quadratic"
    source_guidance: float | None = None
    """The guidance of the way up; None for the model's own."""
    guidance: float | None = None
    """The guidance of the way back; None for that of the way up."""
    ends: tuple[float, float] | None = None
    """t_min and t_max of a named grid, where they are not the path's own."""
    model_dtype: torch.dtype | None = None
    """The precision in which the network computes; None for its own."""
    dtype: torch.dtype | None = None
    """The precision of the state; None for that of the images."""
    edits: bool = False
    """Whether the way back is to another condition."""

    def models(self, model: Denoiser, target: Denoiser | None = None) -> tuple[Denoiser, Denoiser | None]:
        """Set up the models of both ways.

        Args:
            model: The model to start from.
            target: Of an edit, the model of the way back, under the target's condition.

        Returns:
            The model of the inversion, and that of the way back, None where it is the same.
        """
        if self.model_dtype is not None:
            model = in_precision(model, self.model_dtype)
            target = None if target is None else in_precision(target, self.model_dtype)
        here = model if self.source_guidance is None else model.with_guidance(self.source_guidance)
        if target is not None:
            return here, target if self.guidance is None else target.with_guidance(self.guidance)
        if self.guidance is None or self.guidance == here.guidance:
            return here, None
        return here, model.with_guidance(self.guidance)

    @property
    def spacing(self) -> dict[str, Any]:
        """The options of `invert` that place the steps."""
        if isinstance(self.grid, Grid):
            return {"grid": self.grid}
        ends = {} if self.ends is None else dict(zip(("t_min", "t_max"), self.ends, strict=True))
        return {"steps": self.steps, "grid": self.grid, **ends}

    def errors(
        self,
        model: Denoiser,
        images: Tensor,
        codec: Codec | None,
        *,
        target: Denoiser | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Measure the error of the round trip, or of the edit.

        Args:
            model: The model to start from.
            images: The images, shape (B, ...).
            codec: Encodes images to the model's samples and back, where the model works on latents.
            target: Of an edit, the model of the way back.
            wanted: What should come out, shape (B, ...); the images by default.

        Returns:
            The root mean square error of each image, shape (B,); infinite where the run fails.
        """
        here, back = self.models(model, target)
        x = images if self.dtype is None else images.to(self.dtype)
        try:
            samples = x if codec is None else codec.encode(x)
            inversion = invert(here, samples, solver=self.solver, **self.spacing)
            returned = inversion.decode(back).x
        except SteadyflowError:
            return torch.full((len(images),), float("inf"), dtype=torch.float64, device="cpu")
        shown = returned if codec is None else codec.decode(returned)
        return rms(shown.double() - (x if wanted is None else wanted).double())

    def call(self) -> str:
        """The Python call that makes this round trip, or this edit."""
        own = self.solver.has_own_grid
        spec = {} if own else self.solver.spec()
        plain = {} if own else registry.get(spec.pop("name")).spec()
        changed = {key: value for key, value in spec.items() if plain[key] != value}
        name = self.solver.name if own else f'"{self.solver.name}"'
        if changed:
            name = f"sf.solvers.get({name}, {', '.join(f'{k}={v!r}' for k, v in changed.items())})"
        model = "model"
        if self.model_dtype is not None:
            model = f"sf.diagnostics.in_precision({model}, {self.model_dtype})"
        images = "images" if self.dtype is None else f"images.to({self.dtype})"
        spacing = ", ".join(f"{key}={_quoted(value)}" for key, value in self.spacing.items())
        if own and isinstance(self.grid, Grid):
            spacing = f"nfe={_cost(self)}"
        if self.source_guidance is not None:
            spacing += f", source_guidance={self.source_guidance:g}"
        text = f"sf.invert({model}, {images}, solver={name}, {spacing})"
        words = ["model.with_condition(target)"] if self.edits else []
        words += [] if self.guidance is None else [f"guidance={self.guidance:g}"]
        return f"{text}.decode({', '.join(words)})"


def _quoted(value: Any) -> str:
    return "grid" if isinstance(value, Grid) else f'"{value}"' if isinstance(value, str) else f"{value:g}"


@dataclass(frozen=True)
class Recommendation:
    """The cause of an error and one change, in words and as a call, with what it gained where it was tried."""

    cause: str
    """One of the names in `CAUSES`."""
    text: str
    """The cause and the change in words."""
    call: str
    """The Python call that makes the round trip with the change."""
    setting: Setting
    """The round trip with the change."""
    error: float
    """The median error that it is expected to leave: that of the images on which it was tried."""
    gain: float
    """The factor by which it is expected to lower the median error; 1 where nothing is to be gained."""
    tried: dict[str, float] = field(default_factory=dict[str, float])
    """The median error of every round trip that was tried, by its call."""


def recommend(
    setting: Setting,
    found: Budget,
    model: Denoiser,
    images: Tensor,
    codec: Codec | None,
    *,
    target: Denoiser | None = None,
    samples: int = 8,
) -> Recommendation:
    """Name the cause of an error, and find the best of the remedies that fit it.

    Args:
        setting: The round trip.
        found: The budget of its error.
        model: The model to start from.
        images: The images, shape (B, ...).
        codec: Encodes images to the model's samples and back, where the model works on latents.
        target: Of an edit, the model of the way back.
        samples: The number of images on which remedies are tried, the first ones.
    """
    few = images[:samples]
    here = model.slice(0, len(few)) if len(images) > len(few) else model
    there = None if target is None else target.slice(0, len(few)) if len(images) > len(few) else target
    wanted = None if found.exact is None else found.exact[:samples]
    tried: dict[str, tuple[Setting, float]] = {}

    def error(candidate: Setting) -> float:
        key = candidate.call()
        if key not in tried:
            errors = candidate.errors(here, few, codec, target=there, wanted=wanted)
            tried[key] = candidate, errors.median().item()
        return tried[key][1]

    before = error(setting)
    floor = max(100.0 * torch.finfo(images.dtype).eps, _FLOOR)
    group = _group(setting, found, floor)
    if group in ("none", "codec", "change"):
        return Recommendation(group, CAUSES[group] + _MORE.get(group, "."), setting.call(), setting, before, 1.0)
    if group == "discretisation":
        group = _discretisation(setting, before, error)
        candidates = _finer(setting, before, error)
    elif group in ("inversion", "generation"):
        candidates = [*_finer(setting, before, error), *_unstable(setting)]
    else:
        candidates = [candidate for candidate in _remedies(setting, group, model) if _possible(candidate, model)]
    best = min([setting, *candidates], key=error)
    cheap = [c for c in candidates if _cost(c) <= 1.01 * _cost(setting) and c.dtype == setting.dtype]
    if cheap:
        equal = min(cheap, key=error)
        if error(equal) * _ENOUGH <= before or error(equal) <= _DEARER * error(best):
            best = min([setting, equal], key=error)
    gain = before / max(error(best), 1e-300)
    if target is not None and setting.solver.properties.inverse == "exact" and group in ("inversion", "generation"):
        group = "instability" if gain >= _ENOUGH else group
    where = "" if best is not setting else " None of the remedies tried is better than what is done now."
    text = f"{CAUSES[group]}.{where or f' {_words(setting, best)} lowers the median error {gain:.3g} times.'}"
    if group == "inversion":
        text += _sensitivity(found)
    return Recommendation(
        group, text, best.call(), best, error(best), gain, {key: entry[1] for key, entry in tried.items()}
    )


def _group(setting: Setting, found: Budget, floor: float) -> str:
    """The kind of cause: the group of terms with the largest share of the error."""
    if not finite(found.measured):
        return "instability" if setting.solver.properties.inverse == "exact" else "discretisation"
    if found.measured.median().item() < floor:
        return "none"
    terms = found.terms
    if setting.edits:
        return _group_of_edit(found)
    groups = {
        "guidance": terms["guidance"],
        "precision": terms["rounding"],
        "discretisation": terms["inversion"] + terms["amplification"] + terms["regeneration"],
    }
    if "codec" in terms:
        groups["codec"] = terms["codec"]
    largest = max(groups, key=lambda name: groups[name].median().item())
    if setting.solver.properties.inverse == "exact" and largest in ("precision", "discretisation"):
        return "instability"
    return largest


def _group_of_edit(found: Budget) -> str:
    """The same of an edit, of which the two ways are told apart."""
    assert found.change is not None
    terms = found.terms
    groups = {
        "precision": terms["rounding"],
        "inversion": terms["inversion"] + terms["amplification"],
        "generation": terms["regeneration"],
    }
    if "codec" in terms:
        groups["codec"] = terms["codec"]
    if (found.measured / found.change.clamp_min(1e-300)).median().item() < _SMALL:
        return "change"
    return max(groups, key=lambda name: groups[name].median().item())


def _sensitivity(found: Budget) -> str:
    """What of the error is the latent's own, and what the map to the target makes of it."""
    latent, growth = found.latent_error.median().item(), found.coefficient.median().item()
    what = f"amplifies that {growth:.2g} times" if growth > 1.0 else f"leaves {growth:.2g} of that"
    return f" The latent is off by {latent:.2g}, and the map to the target {what}."


def _discretisation(setting: Setting, before: float, error: Callable[[Setting], float]) -> str:
    """Whether the grid or the number of steps is to blame."""
    others = [replace(setting, grid=name) for name in GRIDS if name != setting.grid]
    regrid = before / max(min(map(error, others)), 1e-300)
    if isinstance(setting.grid, Grid):  # a given grid cannot be refined, but a named one stands for many steps
        return "grid" if regrid > 2.0 else "steps"
    more = before / max(error(replace(setting, steps=_DEARER * setting.steps)), 1e-300)
    return "grid" if regrid > max(2.0, more) else "steps"


def _finer(setting: Setting, before: float, error: Callable[[Setting], float]) -> list[Setting]:
    """Remedies for discretisation errors: grids, solvers at equal cost, and more steps."""
    budget = _cost(setting)
    grids = [replace(setting, grid=name) for name in GRIDS]
    best_grid = min(grids, key=error).grid
    equal = [
        replace(setting, solver=solver, steps=steps_for(solver, budget), grid=g)
        for solver in map(registry.get, SOLVERS)
        for g in dict.fromkeys((best_grid, "quadratic"))
        if budget >= (solver.properties.evaluations or 1)
    ]
    most = min([*grids, *equal], key=error)
    return [*grids, *equal, replace(most, steps=_DEARER * most.steps)]


def _remedies(setting: Setting, group: str, model: Denoiser) -> Iterator[Setting]:
    """Remedies for the other causes."""
    if group == "guidance":
        here, back = setting.models(model)
        yield replace(setting, source_guidance=1.0, guidance=1.0)
        if back is not None:
            yield replace(setting, source_guidance=back.guidance, guidance=back.guidance)
        yield replace(setting, guidance=here.guidance)
        steps = max(1, _cost(setting) // 3)
        yield replace(setting, solver=registry.get("ees25"), steps=steps, source_guidance=1.0, guidance=1.0)
    if group == "precision":
        half = model.dtype in (torch.float16, torch.bfloat16)
        if half:
            yield replace(setting, model_dtype=torch.float32)
        yield replace(setting, model_dtype=torch.float64 if not half else torch.float32, dtype=torch.float64)
    if group == "instability":
        budget = _cost(setting)
        yield from _unstable(setting)
        for name in SOLVERS:
            solver = registry.get(name)
            if budget >= (solver.properties.evaluations or 1):
                yield replace(setting, solver=solver, steps=steps_for(solver, budget))
        yield replace(setting, dtype=torch.float64)


def _unstable(setting: Setting) -> Iterator[Setting]:
    """The same solver with the coupling that follows the path, where it has one."""
    spec = setting.solver.spec()
    name = spec.pop("name")
    for options in ({"coupling": "auto"}, {"coupling": "auto", "coordinates": "flow"}):
        if all(key in spec for key in options):
            yield replace(setting, solver=registry.get(name, **{**spec, **options}))


def _possible(setting: Setting, model: Denoiser) -> bool:
    """Whether the model has what the setting changes."""
    if setting.model_dtype is not None and not isinstance(model.net, nn.Module):
        return setting.dtype is not None
    return {setting.source_guidance, setting.guidance} <= {None, 1.0} or model.null is not None


def _cost(setting: Setting) -> int:
    return setting.steps * (setting.solver.properties.evaluations or 1)


def _words(before: Setting, after: Setting) -> str:
    """What changes from one setting to another, in words."""
    parts: list[str] = []
    if after.solver != before.solver:
        options = ", ".join(f"{k} {v!r}" for k, v in after.solver.spec().items() if k in ("coupling", "coordinates"))
        parts.append(f"solver {after.solver.name}" + (f" ({options})" if options else ""))
    if after.steps != before.steps:
        parts.append(f"{after.steps} steps")
    if after.grid != before.grid:
        parts.append(f"the grid {after.grid}")
    if after.guidance != before.guidance or after.source_guidance != before.source_guidance:
        scale = "" if after.source_guidance is None else f" ({after.source_guidance:g})"
        parts.append("the same guidance both ways" + scale)
    if after.model_dtype != before.model_dtype:
        parts.append(f"the network in {str(after.model_dtype).removeprefix('torch.')}")
    if after.dtype != before.dtype:
        parts.append(f"the state in {str(after.dtype).removeprefix('torch.')}")
    text = ", ".join(parts) or "no change"
    return text[0].upper() + text[1:]
