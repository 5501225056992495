"""The aim of round trips: both ways fitted together, against what was sent and against a fine latent or edit.

The residual of a sample has two parts: what came back less what was sent, and beside it what keeps the latent honest,
the latent less that of a fine solve, or the edit less a fine edit. The second is scaled so that both weigh alike where
the fit begins; without it a fit is free to find latents that are no noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._internal.tensors import rms
from .derivatives import PROBES, Derivatives, Sensitivity, changed, signs, sweep, sweep_runs
from .schemes import Field, Pair, run


class RoundBatch(NamedTuple):
    """Samples with what should come of them."""

    field: Field
    """The field both ways, under the conditions of these samples."""
    edit_field: Field | None
    """The field of an edit's way down, if edits are fitted."""
    start: Tensor
    """The samples at the clean end in flow coordinates, shape (B, ...)."""
    beside: Tensor
    """The fine latents in flow coordinates, or the fine edits."""


class RoundTrip:
    """Residuals of round trips.

    Args:
        weight: The factor of the second part.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def size(self, batch: RoundBatch) -> int:
        return len(batch.start)

    def errors(self, batch: RoundBatch, numbers: Pair) -> Tensor:
        back, beside = self.parts(batch, numbers)
        return ((back.square() + (self.weight * beside).square()) / 2.0).sqrt()

    def parts(self, batch: RoundBatch, numbers: Pair) -> tuple[Tensor, Tensor]:
        """The errors of the round trip, and those of the latent or the edit, shape (B,) each."""
        with torch.no_grad():
            back, beside = self._residuals(batch, numbers)
            return rms(back.double()), rms(beside.double())

    def _residuals(self, batch: RoundBatch, numbers: Pair) -> tuple[Tensor, Tensor]:
        latent = run(batch.field, numbers.up, batch.start).end
        back = run(batch.field, numbers.down, latent).end - batch.start
        if batch.edit_field is None:
            return back, latent - batch.beside
        return back, run(batch.edit_field, numbers.down, latent).end - batch.beside

    def sensitivity(
        self, batch: RoundBatch, numbers: Pair, derivatives: Derivatives, generator: torch.Generator
    ) -> tuple[Sensitivity, int]:
        if derivatives == "differences":
            return self._by_differences(batch, numbers)
        with torch.no_grad():
            up = run(batch.field, numbers.up, batch.start)
            down = run(batch.field, numbers.down, up.end)
            edit = None if batch.edit_field is None else run(batch.edit_field, numbers.down, up.end)
        first = down.end - batch.start
        second = self.weight * ((up.end if edit is None else edit.end) - batch.beside)
        firsts = [first, *(signs(first, generator) for _ in range(PROBES))]
        seconds = [second, *(signs(second, generator) for _ in range(PROBES))]
        seconds = [self.weight * one for one in seconds]
        of_down, at_latent = sweep(batch.field, numbers.down, up.end, down, firsts, of_start=True)
        if edit is None or batch.edit_field is None:
            at_latent = [one + other for one, other in zip(at_latent, seconds, strict=True)]
        else:
            of_edit, more = sweep(batch.edit_field, numbers.down, up.end, edit, seconds, of_start=True)
            of_down = of_down + of_edit
            at_latent = [one + other for one, other in zip(at_latent, more, strict=True)]
        of_up, _ = sweep(batch.field, numbers.up, batch.start, up, at_latent)
        rows = torch.cat([of_up, of_down], -1)
        residual = torch.cat([first.flatten(1), second.flatten(1)], 1)
        cost = sweep_runs(numbers.up.calls, derivatives) * (1 if edit is None else 2)
        return Sensitivity(residual, rows[0], rows[1:] / math.sqrt(PROBES)), cost

    def _by_differences(self, batch: RoundBatch, numbers: Pair) -> tuple[Sensitivity, int]:
        with torch.no_grad():
            up = run(batch.field, numbers.up, batch.start)
            tail = self._tail(batch, numbers, up.end)
            columns = [
                (self._tail(batch, numbers, latent) - tail) / size
                for latent, size in changed(batch.field, numbers.up, batch.start, up)
            ]
            columns += self._of_down(batch, numbers, up.end)
        residual = tail - torch.cat([batch.start.flatten(1), self.weight * batch.beside.flatten(1)], 1)
        jacobian = torch.stack(columns, -1)
        gradient = torch.einsum("bd,bdp->bp", residual, jacobian)
        runs = 2 * sweep_runs(numbers.up.calls, "differences") + len(numbers.up.packed())
        return Sensitivity(residual, gradient, jacobian.movedim(1, 0)), runs

    def _tail(self, batch: RoundBatch, numbers: Pair, latent: Tensor) -> Tensor:
        """What the residual is made of, from a latent on; shape (B, 2 D)."""
        back = run(batch.field, numbers.down, latent).end
        beside = latent if batch.edit_field is None else run(batch.edit_field, numbers.down, latent).end
        return torch.cat([back.flatten(1), self.weight * beside.flatten(1)], 1)

    def _of_down(self, batch: RoundBatch, numbers: Pair, latent: Tensor) -> list[Tensor]:
        """The columns of the numbers of the way down."""
        found: list[list[Tensor]] = []
        for field, weight in ((batch.field, 1.0), (batch.edit_field, self.weight)):
            if field is None:
                found.append([torch.zeros_like(one) for one in found[0]])
                continue
            forward = run(field, numbers.down, latent)
            ends = changed(field, numbers.down, latent, forward)
            found.append([weight * ((end - forward.end) / size).flatten(1) for end, size in ends])
        return [torch.cat(pair, 1) for pair in zip(*found, strict=True)]
