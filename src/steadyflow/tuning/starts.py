"""The starts on which solvers are fitted and judged: latents, conditions, guidance, and fine solves from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._integrate import check_state
from ..denoisers.base import Condition, Denoiser
from ..errors import InputError
from ..grids import Grid
from ..solvers.base import Solver
from ..tasks._batched import run_batched
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
    rows: range
    """Their places among those of the part."""

    def few(self, n: int) -> Cell:
        """The first n of them."""
        stop = min(n, len(self.start))
        return Cell(self.model.slice(0, stop), self.start[:stop], self.rows[:stop])


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
        return torch.tensor([int(cast(Any, one)) for one in conditions])
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

    @property
    def levels(self) -> list[float]:
        """The guidance scales that are tuned for."""
        low, high = self.guidance
        return [low] if low == high else [low, 0.5 * (low + high), high]

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
                model = self.model
                if conditions is not None:
                    model = model.with_condition(joined([conditions[row % len(conditions)] for row in rows]))
                model = model if scale == model.guidance else model.with_guidance(scale)
                found.append(Cell(model, starts[rows.start : rows.stop], rows))
        return found

    def _latents(self, part: str, n: int) -> Tensor:
        grid = Grid((self.t_max, self.t_min))
        options = replace(_QUIET, seed=self.seed, index=_FIRST[part])
        return latents(self.model, n, grid, options, self.model.moments, self.dtype, self.device)

    def solve(self, cell: Cell, solver: Solver[Any], grid: Grid) -> Tensor:
        """The end of a plain run."""
        return run_batched(cell.model, grid, solver, _QUIET, x=cell.start).x


_QUIET = replace(Resolved(), progress=False)


def check_given(x: Tensor | None, needed: int, shape: tuple[int, ...] | None) -> None:
    """Check starts that were given.

    Args:
        x: The starts, if any.
        needed: How many are wanted.
        shape: That of the model's samples.

    Raises:
        InputError: There are too few, or they are no samples.
    """
    if x is None:
        return
    check_state("x", x, shape)
    if len(x) < needed:
        raise InputError(f"x: got {len(x)} samples, but {needed} are to be fitted and judged on; give more, or less n")
