"""Trap-aware noise: find the samples that are held between two modes, and free those alone.

Late in sampling the clean prediction of a sample near a mode hardly depends on the state, while half way between two
modes at distance l a small change of the state moves it from the one to the other: the largest singular value of

    A = alpha d x0_hat / d x

is below 1 at a mode, and l^2 / (4 s2) at the saddle of 2605.06831, P4.7, whose eigenvalue is one less. So 1 is the
threshold, with no knowledge of the modes. It is found by a few transposed products with one graph of the model (A is
symmetric for an exact score, and nearly so for a good one). What is held is renoised up the grid and denoised again
(`Restart` for these samples alone), which keeps the marginals to first order in the share of samples treated, and
looked at again.
"""

from dataclasses import astuple, dataclass, field
from operator import add
from typing import Any

import torch
from torch import Tensor

from .._integrate import StepInfo
from ..errors import InputError
from ..jacobians.spectra import largest_singular_value
from ..solvers.base import Solver
from .restart import check_rounds, renoise


@dataclass
class EscapeRecord:
    """What an `Escape` has done, over all batches since it was made."""

    samples: int = 0
    flagged: int = 0
    """Samples that were held at the first look."""
    held: int = 0
    """Samples that were still held at the last."""
    evaluations: float = 0.0
    """Extra evaluations, of all samples together; a transposed product counts as two."""

    @property
    def cost(self) -> float:
        """Extra evaluations per sample."""
        return self.evaluations / max(self.samples, 1)

    def __add__(self, other: "EscapeRecord") -> "EscapeRecord":
        """What both have done, each with samples of its own."""
        return EscapeRecord(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Escape:
    """A correction that frees samples held between modes, once, `remaining` solver steps before the end.

    Args:
        remaining: The number of steps that are left when it acts.
        back: How many steps of the grid to renoise.
        rounds: How often at most.
        threshold: For the largest singular value of alpha d x0_hat / d x, above which a sample is held.
        products: Transposed products per look, apart from one forward evaluation.
        solver: That of the way down again.
        record: What it did and cost, over all runs that it was given to.

    Raises:
        InputError: The grid has fewer steps than `back`.
    """

    remaining: int = 8
    back: int = 20
    rounds: int = 3
    threshold: float = 1.0
    products: int = 2
    solver: str | Solver[Any] = "ddim"
    record: EscapeRecord = field(default_factory=EscapeRecord, compare=False)

    def __post_init__(self):
        check_rounds(self.remaining, self.back, self.rounds)
        if self.products < 1 or not self.threshold > 0.0:
            raise InputError(
                f"escape: expected products >= 1 and threshold > 0, got {self.products} and {self.threshold}"
            )

    def __call__(self, info: StepInfo) -> Tensor | None:
        if info.remaining != self.remaining:
            return None
        rows = torch.arange(len(info.x))
        self.record.samples += len(rows)
        result: Tensor | None = None
        for number in range(self.rounds):
            x = info.x[rows] if result is None else result[rows]
            held = largest_singular_value(info.model.select(rows), x, info.t, self.products) > self.threshold
            self.record.evaluations += len(rows) * (1 + 2 * self.products)
            rows, x = rows[held.cpu()], x[held]
            if number == 0:
                self.record.flagged += len(rows)
            if len(rows) == 0:
                break
            result = info.x.clone() if result is None else result
            result[rows] = renoise(info, x, rows, self.back, number, self.solver)
            self.record.evaluations += len(rows) * self.back
        self.record.held += len(rows)
        return result
