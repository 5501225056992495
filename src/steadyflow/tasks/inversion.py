"""`invert`: from data to the latent that generates it, and `Inversion.decode`, the way back.

An inversion keeps all that the way back needs: the solver and its whole state (exactly reversible solvers
carry two tensors), the grid, guidance, condition, precision and seed. It can be saved to one file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import torch
from torch import Tensor

from .._integrate import Adjoint, AdjointKind, Callback, Correction, Progress, Record, Solution, check_state
from .._internal import files, strict_json
from ..denoisers.base import Condition, Denoiser
from ..errors import MALFORMED, CorruptFileError, InputError
from ..solvers.saved import check_rows, check_saved, check_tensors
from ..solvers.state import concat_states, deserialize_state, serialize_state
from ._batched import run_batched
from ._options import Options, Resolved
from .choosing import resolved_for_inversion


class DecodeOptions(TypedDict, total=False):
    """The words of `Options` that a way back takes; what it does not take is fixed by the inversion."""

    batch_size: int | None
    corrections: Sequence[Correction]
    callback: Callback | None
    record: Record
    progress: Progress
    adjoint: Adjoint | AdjointKind | None


def decode_options(options: Resolved) -> DecodeOptions:
    """The words of a way there that its way back takes too."""
    return {
        "batch_size": options.batch_size,
        "corrections": options.corrections,
        "callback": options.callback,
        "record": options.record,
        "progress": options.progress,
        "adjoint": options.adjoint,
    }


_FIXED = tuple(sorted(set(Options.__annotations__) - set(DecodeOptions.__annotations__)))


@dataclass(frozen=True, kw_only=True)
class Inversion(Solution):
    """The result of `invert`: the state at the noisy end, over a rising grid."""

    guidance: float
    """The scale under which it was made."""
    condition: Condition
    """The condition under which it was made."""
    schedule: dict[str, Any]
    """The path's description, checked when a saved inversion is decoded."""
    model: Denoiser | None = None
    """The model that inverted; not saved."""

    @property
    def latent(self) -> Tensor:
        """The latent in model space, shape (B, ...), at the noisy end of the grid."""
        return self.x

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the state."""
        return self.latent.dtype

    def decode(
        self, model: Denoiser | None = None, guidance: float | Tensor | None = None, **options: Unpack[DecodeOptions]
    ) -> Solution:
        """Generate from the latents, over the same grid with the same solver.

        Args:
            model: The inversion's own by default, which gives the reconstruction. Another condition of it
                (`model.with_condition(8)`) edits.
            guidance: Of this way, if it is to be another than the model's.
            **options: See `DecodeOptions`.

        Raises:
            InputError: The model has another path than the inversion's, or an option is fixed by the inversion.
        """
        model = self._checked(model, guidance)
        given = Resolved.of(options, "decode", refused=_FIXED)
        given = given.changed(index=self.index, seed=self.seed or 0, noise=self.noise or "brownian")
        return self._run(model, given)

    def check_path(self, model: Denoiser) -> None:
        """Check that a model is on the path of the inversion.

        Args:
            model: The model.

        Raises:
            InputError: It is not.
        """
        if model.schedule.spec() != self.schedule:
            raise InputError(
                f"decode: the model's path is {model.schedule}, but the inversion was made on {self.schedule}"
            )

    def _checked(self, model: Denoiser | None, guidance: float | Tensor | None) -> Denoiser:
        model = model or self.model
        if model is None:
            raise InputError("decode: a saved inversion holds no model; give the one that made it")
        self.check_path(model)
        return model if guidance is None else model.with_guidance(guidance)

    def _run(self, model: Denoiser, options: Resolved) -> Solution:
        return run_batched(
            model, self.solver.way_back(model.schedule, self.grid), self.solver, options, state=self.state
        )

    def save(self, path: str | Path) -> None:
        """Write everything but the model and the trajectory to one safetensors file, atomically."""
        files.write(path, "inversion", *self.packed())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything but the model as named tensors and texts, as they are saved."""
        scale = None if self.model is None else self.model.scale
        if scale is not None and scale.numel() > 1:
            raise InputError("guidance: an inversion with one scale per sample is not saved; make one for each scale")
        tensors, structure = serialize_state(self.state)
        conditions, condition = serialize_state(_plain(self.condition), "condition")
        facts = {**self._facts(), "guidance": self.guidance, "schedule": self.schedule}
        texts = {"inversion": strict_json.dumps(facts), "state": structure, "condition": condition}
        return {**tensors, **conditions}, texts

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Inversion:
        """What `packed` took apart, without the model. Raises `CorruptFileError` where the parts do not fit."""
        try:
            facts = strict_json.loads(metadata["inversion"])
            state, condition = (deserialize_state(tensors, metadata[name]) for name in ("state", "condition"))
            guidance, fields = float(facts["guidance"]), cls._fields(facts)
            fields["solver"].check_invertible()
            if not (fields["grid"].rising and math.isfinite(guidance)):
                raise ValueError("its grid does not rise, or its guidance is not finite")
            check_rows(condition, len(check_saved(fields["solver"], state)))
            check_tensors(tensors, state, condition)
            schedule = _tuples(facts["schedule"])
            return Inversion(state=state, condition=condition, guidance=guidance, schedule=schedule, **fields)
        except MALFORMED as error:
            raise CorruptFileError(f"not a saved inversion ({error})") from error

    @classmethod
    def concatenate(cls, parts: Sequence[Inversion]) -> Inversion:
        """One inversion of successive batches that were inverted alike; the first one's model, and no trajectory."""
        condition = _joined([part.condition for part in parts])
        state = concat_states([part.state for part in parts])
        return dataclasses.replace(parts[0], state=state, condition=condition, trajectory=None)

    @classmethod
    def load(cls, path: str | Path, model: Denoiser | None = None) -> Inversion:
        """Read what `save` wrote; give the model here or to `decode`.

        With the model, its condition and guidance are set to those of the inversion, so that `decode()`
        reconstructs.

        Raises:
            CorruptFileError: The file is damaged, truncated or foreign.
        """
        tensors, metadata = files.read(path, "inversion")
        try:
            inversion = cls.unpacked(tensors, metadata)
        except CorruptFileError as error:
            raise CorruptFileError(f"{path}: {error}") from error
        if model is None:
            return inversion
        if inversion.condition is not None:
            model = model.with_condition(inversion.condition)
        return dataclasses.replace(inversion, model=model.with_guidance(inversion.guidance))


def invert(
    model: Denoiser,
    x: Tensor,
    *,
    source_guidance: float | Tensor | None = None,
    **options: Unpack[Options],
) -> Inversion:
    """Find the latents that generate the given samples, by going up the path.

    Args:
        model: The model of the data, under the samples' own condition if it has one.
        x: Samples, shape (B, ...), float32 or float64, taken as the state at the grid's clean end.
        source_guidance: The scale of classifier-free guidance on the way up; the model's own by default.
        **options: See `Options`. The solver must have an inverse; `sf.Auto` chooses one by trial.

    Raises:
        NotInvertibleError: The solver has no inverse.
        InputError: An argument does not fit.
        NonFiniteError: The run diverged.
    """
    check_state("x", x, model.shape)
    model = model if source_guidance is None else model.with_guidance(source_guidance)
    return run_inversion(model, x, Resolved.of(options, invert))


def run_inversion(model: Denoiser, x: Tensor, options: Resolved) -> Inversion:
    """The inversion of checked samples with checked options."""
    options, reason = resolved_for_inversion(options, model, x)
    solver = options.method
    solver.check_invertible()
    grid = options.rising(model)
    found = run_batched(model, grid, solver, options, x=x)
    return Inversion(
        state=solver.for_decoding(found.state),
        solver=solver,
        grid=found.grid,
        step=found.step,
        nfe=found.nfe,
        seed=options.seed,
        index=options.index,
        noise=options.noise,
        trajectory=found.trajectory,
        rejected=found.rejected,
        reason=reason,
        guidance=model.guidance,
        condition=model.condition,
        schedule=model.schedule.spec(),
        model=model,
    )


def _plain(condition: Condition) -> Any:
    """A condition as a solver-state value: tensors, numbers and tuples."""
    return tuple(condition) if isinstance(condition, list) else condition


def _joined(conditions: Sequence[Any]) -> Any:
    """The condition of a whole batch from those of its parts: rows per sample are put together, others are shared."""
    first = conditions[0]
    if isinstance(first, Mapping):
        keys = cast(Mapping[str, Any], first)
        return {key: _joined([condition[key] for condition in conditions]) for key in keys}
    if isinstance(first, Tensor) and first.ndim:
        shared = len(first) == 1 and all(torch.equal(first, other) for other in conditions)
        return first if shared else torch.cat(list(conditions))
    if isinstance(first, list | tuple):
        return tuple(value for condition in conditions for value in condition)
    return first


def _tuples(spec: dict[str, Any]) -> dict[str, Any]:
    """A schedule's description as it was before JSON made lists of its tuples."""
    return {key: tuple(cast(list[Any], value)) if isinstance(value, list) else value for key, value in spec.items()}
