"""Inversion into noise maps: edit-friendly DDPM and LEDITS++, for any ancestral solver.

The noisy states of a sample are drawn *independently* of each other, x_t = alpha_t x0 + sigma_t eps_t, and the noise
of every step is then whatever brings the solver from one to the next, z = (x_t1 - mean(x_t0)) / std. Replaying the
maps with the same model gives the sample back exactly; with another condition it edits. The maps are larger than
ordinary noise and correlated, which is what carries the picture's structure.

Sources: Huberman-Spiegelglas et al. 2023 (2304.06140), with `ddpm`; Brack et al. 2023 (LEDITS++, 2311.16711), with
`dpmpp-2m-sde`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from .. import noise
from .._integrate import Solution, StepLoop, check_state, drive, integrate
from .._internal.autograd import gradients
from ..denoisers.base import Denoiser
from ..errors import InputError, NotInvertibleError
from ..noise import NoiseSource
from ..prediction import Prediction
from ..tasks._options import Options, Resolved
from ..tasks.inversion import Inversion, decode_options
from .base import Edit, EditMethod, EditRequest, finished, register

_DEFAULTS: dict[str, Any] = {"solver": "ddpm", "strength": 0.64, "grid": "uniform"}
_REFUSED = ("batch_size", "noise", "corrections", "callback", "record")


class _Replay(NoiseSource):
    """A noise source that hands out given maps, one per step, in order."""

    def __init__(self, x: Tensor, maps: list[Tensor], seed: int = 0, index: int = 0):
        rows = range(index, index + len(x))
        super().__init__(seed, rows, x.shape[1:], dtype=x.dtype, device=x.device)
        self._maps, self._given = maps, dict[tuple[float, float], int]()

    def unit(self, a: float, b: float) -> Tensor:
        # a step that is made once more is handed the same map
        return self._maps[self._given.setdefault((a, b), len(self._given))]

    def increment(self, a: float, b: float) -> Tensor:
        raise InputError("noise maps: this solver asks for increments of a path; use ddpm or a multistep SDE solver")


class _Constant(_Replay):
    """A noise source that always hands out the same."""

    def unit(self, a: float, b: float) -> Tensor:
        return self._maps[0]


@dataclass(frozen=True, kw_only=True)
class NoiseMaps(Inversion):
    """Samples as noisy states and a noise map for every step, over a falling grid; memory grows with the steps."""

    maps: Tensor
    """Shape (steps, B, ...)."""

    def _run(self, model: Denoiser, options: Resolved) -> Solution:
        if options.batch_size is not None:
            raise InputError("batch_size: noise maps are replayed for the whole batch at once")
        found = integrate(
            model,
            None,
            self.grid,
            self.solver,
            state=self.state,
            noise=_Replay(self.x, list(self.maps), options.seed, options.index),
            corrections=options.corrections,
            callback=options.callback,
            record=options.record,
            progress=options.progress,
            adjoint=options.adjoint,
        )
        return replace(found, seed=options.seed, index=options.index)

    def save(self, path: str | Path) -> None:
        """Not possible, as noise maps are larger than a latent by the number of steps: raises `InputError`."""
        raise InputError("save: noise maps are not saved; keep the picture and make them again")


def noise_maps(
    model: Denoiser, x: Tensor, *, source_guidance: float | None = None, **options: Unpack[Options]
) -> NoiseMaps:
    """Find the noise maps of samples: one evaluation per step.

    Args:
        model: The model of the data, under the samples' own condition if it has one.
        x: Samples, shape (B, ...), float32 or float64, taken as the state at the grid's clean end.
        source_guidance: The scale of classifier-free guidance; the model's own by default.
        **options: See `Options`. The solver must be stochastic, with one unit of noise per step: "ddpm" (edit-friendly,
            the default), "dpmpp-sde", "dpmpp-2m-sde" (LEDITS++), "dpmpp-3m-sde". The strength is 0.64 by default, as
            the published methods skip 36 % of the way. With an `adjoint`, the maps are part of a graph that holds
            every evaluation which made them.

    Raises:
        NotInvertibleError: The solver draws no noise, or more than one unit per step.
    """
    check_state("x", x, model.shape)
    model = model if source_guidance is None else model.with_guidance(source_guidance)
    defaults = {k: v for k, v in _DEFAULTS.items() if k != "strength" or not _fixes_range(options)}
    resolved = Resolved.of(options, "noise maps", refused=_REFUSED, defaults=defaults)
    with gradients(x, everything=resolved.adjoint is not None):
        return _find(model, x, resolved)


def _fixes_range(options: Any) -> bool:
    return not isinstance(options.get("grid", ""), str)


def _find(model: Denoiser, x: Tensor, options: Resolved) -> NoiseMaps:
    if options.auto is not None or options.controller is not None:
        raise InputError("solver, steps: noise maps take a stochastic solver and a number of steps")
    solver = options.method
    properties = solver.properties
    if not properties.stochastic or properties.evaluations != 1 or properties.inverse == "exact":
        raise NotInvertibleError(f"noise maps: {solver.name!r} does not draw one unit of noise a step; use 'ddpm'")
    grid, schedule = options.falling(model), model.schedule
    rows = range(options.index, options.index + len(x))

    def noisy(k: int) -> Tensor:
        """An independent noisy state at time k; x itself at the clean end."""
        if k == grid.steps:
            return x
        drawn = noise.like(x, options.seed, noise.PERTURBATION, (k, 0, 2), rows)
        level = schedule.at(grid.times[k])
        return level.alpha * x + level.sigma * drawn

    last: list[Prediction] = []

    def watched(state: Tensor, t: float) -> Prediction:
        last[:] = [model(state, t)]
        return last[0]

    none, one = _Constant(x, [torch.zeros_like(x)]), _Constant(x, [torch.ones_like(x)])
    state = solver.start(noisy(0), schedule, grid.times[0])
    loop = StepLoop(watched, solver, schedule, grid, state, noise=none, keep_before=True)
    maps: list[Tensor] = []
    for step in loop:
        mean = solver.output(loop.state)
        shifted, _ = drive(solver.step(loop.before, replace(step, noise=one)), lambda state, t: last[0])
        std = (solver.output(shifted) - mean).flatten()[0].abs()
        wanted = noisy(step.index + 1)
        z = torch.zeros_like(x) if bool(std == 0) else (wanted - mean) / std
        maps.append(z)
        loop.state, _ = drive(
            solver.step(loop.before, replace(step, noise=_Constant(x, [z]))), lambda state, t: last[0]
        )
    return NoiseMaps(
        state=state,
        solver=solver,
        grid=grid,
        step=grid.steps,
        nfe=loop.evaluations * model.cost,
        seed=options.seed,
        index=options.index,
        guidance=model.guidance,
        condition=model.condition,
        schedule=schedule.spec(),
        model=model,
        maps=torch.stack(maps),
    )


@register
@dataclass(frozen=True)
class ByNoiseMaps(EditMethod):
    """Find the noise maps of the source, and replay them under the target's condition."""

    name: ClassVar[str] = "noise-maps"
    draws_noise: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = _DEFAULTS
    refuses: ClassVar[Mapping[str, str]] = {
        "inversion": "decode noise maps that were made before yourself",
        "mask": "its states are no trajectory to hold on to",
        "batch_size": "it keeps the maps of the whole batch",
        "noise": "it draws its own noise",
    }

    def edit(self, request: EditRequest) -> Edit:
        options = request.options
        maps = _find(request.source, request.x, options)
        back = maps.decode(request.target, **decode_options(options))
        return finished(request, self, back, nfe=maps.nfe + back.nfe, inversion=maps)
