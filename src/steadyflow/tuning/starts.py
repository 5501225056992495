"""The starts on which solvers are fitted and judged: latents, conditions, guidance, and fine solves from them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._internal import files
from ..denoisers.base import Condition, Denoiser
from ..errors import InputError
from ..grids import Grid
from ..tasks._options import Resolved
from ..tasks.sampling import latents

FIT, VALIDATE, JUDGE = "fit", "validate", "judge"
_FIRST = {FIT: 2**40, VALIDATE: 2**40 + 2**36, JUDGE: 2**41}
"""The index of the first latent of each part: far from the samples that a user draws."""


class Cell(NamedTuple):
    """Starts under one guidance scale that are computed together."""

    model: Denoiser
    """The model, conditioned for these starts."""
    start: Tensor
    """The starts in model space, shape (B, ...)."""
    target: Denoiser | None = None
    """The model of an edit of these starts, if edits are fitted."""

    def few(self, n: int) -> Cell:
        """The first n of them."""
        stop = min(n, len(self.start))
        target = None if self.target is None else self.target.slice(0, stop)
        return Cell(self.model.slice(0, stop), self.start[:stop], target)


def joined(conditions: Sequence[Condition]) -> Condition:
    """One condition with a row per sample, of conditions of single samples.

    Args:
        conditions: Labels, prompts, embeddings, or mappings of embeddings, all of one kind.

    Raises:
        InputError: They are of several kinds.
    """
    first = conditions[0]
    if isinstance(first, Mapping):
        return {key: torch.stack([cast("Mapping[str, Tensor]", one)[key] for one in conditions]) for key in first}
    if isinstance(first, Tensor) and first.ndim:
        return torch.stack([cast(Tensor, one) for one in conditions])
    if isinstance(first, str):
        return [cast(str, one) for one in conditions]
    try:
        return torch.tensor([operator.index(cast(Any, one)) for one in conditions])
    except (TypeError, ValueError) as error:
        raise InputError(f"conditions: got {first!r}, expected labels, prompts or embeddings, one a sample") from error


@dataclass(frozen=True)
class Ground:
    """What a tune is about: the model, its ends, and how starts are made of it."""

    model: Denoiser
    guidance: tuple[float, float]
    conditions: Sequence[Condition] | None
    judge_conditions: Sequence[Condition] | None
    t_max: float
    t_min: float
    seed: int
    batch_size: int
    dtype: torch.dtype
    device: torch.device
    given: Tensor | None
    targets: Sequence[Condition] | None = None

    @property
    def levels(self) -> list[float]:
        """The guidance scales that are tuned for."""
        low, high = self.guidance
        return [low] if low == high else [low, 0.5 * (low + high), high]

    def described(self) -> list[Any]:
        """What tells these starts from others, for a file that is gone on with."""
        given = None if self.given is None else files.digest("x", {"x": self.given})
        conditions = [_told(one) for one in (self.conditions, self.judge_conditions, self.targets)]
        return [self.guidance, conditions, self.t_max, self.t_min, self.seed, self.batch_size, str(self.dtype), given]

    def answer(self) -> str:
        """A hash of what the model answers at its first starts, under its own condition and settings."""
        cell = self.cells(FIT, 2)[0]
        with torch.no_grad():
            output = cell.model(cell.start, self.t_max).output
        return files.digest("answer", {"output": output.cpu()})

    def cells(self, part: str, n: int, skip: int = 0) -> list[Cell]:
        """The starts of a part.

        Args:
            part: Which: "fit", "validate" or "judge".
            n: How many.
            skip: Of given starts, how many belong to other parts.
        """
        conditions = self.judge_conditions if part == JUDGE else self.conditions
        starts = self._latents(part, n) if self.given is None else self.given[skip : skip + n]
        found: list[Cell] = []
        shares = [range(n * k // len(self.levels), n * (k + 1) // len(self.levels)) for k in range(len(self.levels))]
        for scale, share in zip(self.levels, shares, strict=True):
            for first in range(share.start, share.stop, self.batch_size):
                rows = range(first, min(first + self.batch_size, share.stop))
                dealt = range(skip + rows.start, skip + rows.stop)
                model, target = self._under(self.model, conditions, dealt), None
                if self.targets is not None:
                    target = _guided(self._under(self.model, self.targets, dealt), scale)
                else:
                    model = _guided(model, scale)
                found.append(Cell(model, starts[rows.start : rows.stop], target))
        return found

    def _under(self, model: Denoiser, conditions: Sequence[Condition] | None, rows: range) -> Denoiser:
        """The model under the conditions of some samples."""
        if conditions is None:
            return model
        return model.with_condition(joined([conditions[row % len(conditions)] for row in rows]))

    def _latents(self, part: str, n: int) -> Tensor:
        grid = Grid((self.t_max, self.t_min))
        options = replace(QUIET, seed=self.seed, index=_FIRST[part])
        return latents(self.model, n, grid, options, self.model.moments, self.dtype, self.device)


QUIET = replace(Resolved(), progress=False)
"""The options of runs that show nothing."""


def _told(conditions: Sequence[Condition] | None) -> Any:
    """Conditions as text, embeddings by their content."""
    if conditions is None:
        return None
    return [_told_one(one) for one in conditions]


def _told_one(one: Condition) -> str:
    if isinstance(one, Tensor):
        return files.digest("condition", {"value": one})
    if isinstance(one, Mapping):
        return files.digest("condition", dict(one))
    return repr(one)


def has_rows(condition: Condition) -> bool:
    """Whether a condition has a row for each of several samples."""
    if isinstance(condition, Mapping):
        return any(has_rows(value) for value in condition.values())
    if isinstance(condition, Tensor):
        return condition.ndim > 0 and len(condition) > 1
    return isinstance(condition, Sequence) and not isinstance(condition, str) and len(condition) > 1


def _guided(model: Denoiser, scale: float) -> Denoiser:
    return model if scale == model.guidance else model.with_guidance(scale)
