"""`invert`: from data to the latent that generates it, and `Inversion.decode`, the way back.

An inversion keeps all that the way back needs: the solver and its whole state (exactly reversible solvers
carry two tensors), the grid, guidance, condition, precision and seed. It can be saved to one file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files, grids, solvers
from ..denoisers.base import Denoiser
from ..errors import MALFORMED, CorruptFileError, InputError
from ..grids import Grid
from ..integrate import Callback, Correction, Progress, Record, Trajectory, check_state
from ..solvers import registry
from ..solvers.base import Solver, State, join, pack, steps_for, unpack
from .choosing import Choice, choose
from .journey import Options, travel
from .sampling import Sample


@dataclass(frozen=True)
class Inversion:
    """The result of `invert`."""

    state: State
    """The solver's whole state at the noisy end."""
    solver: Solver
    grid: Grid
    """The rising grid that was travelled."""
    guidance: float
    condition: Any
    schedule: dict[str, Any]
    """The path's description, checked when a saved inversion is decoded."""
    seed: int
    index: int
    noise: str
    nfe: int
    """Model evaluations a sample, on the way up."""
    model: Denoiser | None = None
    """The model that inverted; not saved."""
    reason: str = ""
    """Why this solver, where it was chosen by solver="auto"."""
    trajectory: Trajectory | None = None

    @property
    def latent(self) -> Tensor:
        """The latent in model space, shape (B, ...), at the noisy end of the grid."""
        return self.solver.output(self.state)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the state."""
        return self.latent.dtype

    @property
    def steps(self) -> int:
        """Solver steps each way."""
        return self.grid.steps

    def decode(
        self,
        model: Denoiser | None = None,
        guidance: float | None = None,
        *,
        corrections: Iterable[Correction] = (),
        record: Record = None,
        callback: Callback | None = None,
        progress: Progress = None,
        batch_size: int | None = None,
    ) -> Sample:
        """Generate from the latents, over the same grid with the same solver.

        model: the inversion's own by default, which gives the reconstruction. Another condition of it
            (`model.condition(8)`) edits.
        guidance: of the model, if it is to be changed.

        Raises `InputError` for a model with another path than the inversion's.
        """
        model = model or self.model
        if model is None:
            raise InputError("decode: a saved inversion holds no model; give the one that made it")
        if model.schedule.spec() != self.schedule:
            raise InputError(
                f"decode: the model's path is {model.schedule}, but the inversion was made on {self.schedule}"
            )
        if guidance is not None:
            model = model.guided(guidance)
        options = Options(self.seed, self.index, self.noise, corrections, callback, record, progress, batch_size)
        arrival = travel(model, self.grid.reversed(), self.solver, options, state=self.state)
        return Sample(
            self.solver.output(arrival.state),
            arrival.nfe,
            self.steps,
            self.solver,
            self.grid.reversed(),
            self.seed,
            arrival.trajectory,
        )

    def save(self, path: str | Path) -> None:
        """Write everything but the model to one safetensors file, atomically."""
        files.write(path, "inversion", *self.packed())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything but the model as named tensors and texts, as they are saved."""
        tensors, structure = pack(self.state)
        conditions, given = pack(_plain(self.condition), "condition")
        facts = {
            "solver": self.solver.spec(),
            "times": [t.hex() for t in self.grid],
            "guidance": self.guidance,
            "schedule": self.schedule,
            "seed": self.seed,
            "index": self.index,
            "noise": self.noise,
            "nfe": self.nfe,
        }
        return {**tensors, **conditions}, {"inversion": json.dumps(facts), "state": structure, "condition": given}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Inversion:
        """What `packed` took apart, without the model. Raises `CorruptFileError` where the parts do not fit."""
        try:
            facts = json.loads(metadata["inversion"])
            return cls(
                state=unpack(tensors, metadata["state"]),
                solver=registry.from_spec(facts["solver"]),
                grid=Grid(tuple(float.fromhex(t) for t in facts["times"])),
                guidance=float(facts["guidance"]),
                condition=unpack(tensors, metadata["condition"]),
                schedule=_tuples(facts["schedule"]),
                seed=int(facts["seed"]),
                index=int(facts["index"]),
                noise=str(facts["noise"]),
                nfe=int(facts["nfe"]),
            )
        except MALFORMED as error:
            raise CorruptFileError(f"not a saved inversion ({error})") from error

    @classmethod
    def join(cls, parts: Sequence[Inversion]) -> Inversion:
        """One inversion of successive batches that were inverted alike; the first one's model, and no trajectory."""
        first = parts[0]
        condition = _joined([part.condition for part in parts])
        return replace(first, state=join([part.state for part in parts]), condition=condition, trajectory=None)

    @classmethod
    def load(cls, path: str | Path, model: Denoiser | None = None) -> Inversion:
        """Read what `save` wrote; give the model here or to `decode`.

        With the model, its condition and guidance are set to those of the inversion, so that `decode()`
        reconstructs. Raises `CorruptFileError` for a damaged, truncated or foreign file.
        """
        tensors, metadata = files.read(path, "inversion")
        try:
            inversion = cls.unpacked(tensors, metadata)
        except CorruptFileError as error:
            raise CorruptFileError(f"{path}: {error}") from error
        if model is None:
            return inversion
        if inversion.condition is not None:
            model = model.condition(inversion.condition)
        return replace(inversion, model=model.guided(inversion.guidance))


def invert(
    model: Denoiser,
    x: Tensor,
    *,
    solver: str | Solver = "ees25",
    steps: int = 32,
    nfe: int | None = None,
    exact: bool = False,
    target: Denoiser | None = None,
    grid: str | Grid = "quadratic",
    strength: float = 1.0,
    t_max: float | None = None,
    t_min: float | None = None,
    seed: int = 0,
    index: int = 0,
    noise: str = "brownian",
    corrections: Iterable[Correction] = (),
    record: Record = None,
    callback: Callback | None = None,
    progress: Progress = None,
    batch_size: int | None = None,
) -> Inversion:
    """Find the latents that generate the given samples, by travelling the path up.

    x: shape (B, ...), float32 or float64, taken as the state at the grid's clean end.
    solver: one with an inverse. "ees25" is near-reversible: the error of the round trip is of fifth order.
        "auto" tries a few on up to eight of the samples and takes the best for the budget `nfe` (48 by default), an
        exactly reversible one if `exact`, judged by the edit if `target`, the model of the way back, is given; the
        result's `reason` says why (see `choosing`).
    nfe: model evaluations each way, instead of steps.
    strength: how far up to go, as a share of the way from t_min to t_max; 1 is all the way. Less keeps more of
        the source in an edit.
    The rest is as in `sample`.

    Raises `NotInvertibleError` for a stochastic solver, `InputError` for arguments that do not fit,
    `NonFiniteError` where the run diverges.
    """
    check_state("x", x, model.shape)
    reason = ""
    if solver == "auto":
        choice = choose_solver(model, x, nfe=nfe or 48, exact=exact, target=target)
        solver, steps, nfe, reason = choice.solver, choice.steps, None, choice.reason
        grid = choice.grid if grid == "quadratic" else grid
    elif exact or target is not None:
        raise InputError("invert: exact and target go with solver='auto'")
    method = solvers.get(solver)
    method.check_invertible()
    if nfe is not None:
        steps = steps_for(method, nfe)
    share = None if strength == 1.0 else strength
    times = grids.partway(grid, model.schedule, steps, share, t_max=t_max, t_min=t_min).reversed()
    options = Options(seed, index, noise, corrections, callback, record, progress, batch_size)
    arrival = travel(model, times, method, options, x=x)
    return Inversion(
        method.turn(arrival.state),
        method,
        times,
        model.guidance,
        model.given,
        model.schedule.spec(),
        seed,
        index,
        noise,
        arrival.nfe,
        model,
        reason,
        arrival.trajectory,
    )


def choose_solver(
    model: Denoiser,
    x: Tensor,
    *,
    nfe: int = 48,
    exact: bool = False,
    target: Denoiser | None = None,
    samples: int = 8,
) -> Choice:
    """The best solver, variable and grid for inverting samples like x with nfe evaluations each way, by trial.

    x: shape (B, ...); its first `samples` are tried. target: the model of the way back, if it is another condition or
    guidance of this one. exact: the round trip must be exact. `invert(solver="auto")` uses it.

    Raises `InputError` for a budget that pays for no candidate.
    """
    return choose(invert, model, x, nfe=nfe, exact=exact, target=target, samples=samples)


def _plain(condition: Any) -> Any:
    """A condition as a solver-state value: tensors, numbers and tuples."""
    if isinstance(condition, list):
        return tuple(condition)
    return condition


def _joined(conditions: Sequence[Any]) -> Any:
    """The condition of a whole batch from those of its parts: rows a sample are put together, others are shared."""
    first = conditions[0]
    if isinstance(first, Mapping):
        return {key: _joined([condition[key] for condition in conditions]) for key in first}
    if isinstance(first, Tensor) and first.ndim:
        shared = len(first) == 1 and all(torch.equal(first, other) for other in conditions)
        return first if shared else torch.cat(list(conditions))
    if isinstance(first, list | tuple):
        return tuple(value for condition in conditions for value in condition)
    return first


def _tuples(spec: dict[str, Any]) -> dict[str, Any]:
    """A schedule's description as it was before JSON made lists of its tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
