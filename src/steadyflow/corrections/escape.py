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

import torch
from torch import Tensor

from ..diagnostics.detectors import stretch
from ..errors import InputError
from ..integrate import Moment
from ..solvers.base import Solver
from .restart import again, check_rounds


@dataclass
class Record:
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
        """Extra evaluations a sample."""
        return self.evaluations / max(self.samples, 1)

    def __add__(self, other: "Record") -> "Record":
        """What both have done, each with samples of its own."""
        return Record(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Escape:
    """A correction that frees samples held between modes, once, `remaining` solver steps before the end.

    back: how many steps of the grid to renoise. rounds: how often at most. threshold: of the largest singular value
    of alpha d x0_hat / d x. products: transposed products a look, a forward evaluation apart. solver: of the way down
    again.

    `record` tells what it did and cost. Raises `InputError` where the grid has fewer steps than `back`.
    """

    remaining: int = 8
    back: int = 20
    rounds: int = 3
    threshold: float = 1.0
    products: int = 2
    solver: str | Solver = "ddim"
    record: Record = field(default_factory=Record, compare=False)

    def __post_init__(self):
        check_rounds(self.remaining, self.back, self.rounds)
        if self.products < 1 or not self.threshold > 0.0:
            raise InputError(
                f"escape: expected products >= 1 and threshold > 0, got {self.products} and {self.threshold}"
            )

    def __call__(self, moment: Moment) -> Tensor | None:
        if moment.steps - moment.step != self.remaining:
            return None
        rows = torch.arange(len(moment.x))
        self.record.samples += len(rows)
        result: Tensor | None = None
        for number in range(self.rounds):
            x = moment.x[rows] if result is None else result[rows]
            held = stretch(moment.model.pick(rows), x, moment.t, self.products) > self.threshold
            self.record.evaluations += len(rows) * (1 + 2 * self.products)
            rows, x = rows[held.cpu()], x[held]
            if number == 0:
                self.record.flagged += len(rows)
            if len(rows) == 0:
                break
            result = moment.x.clone() if result is None else result
            result[rows] = again(moment, x, rows, self.back, number, self.solver)
            self.record.evaluations += len(rows) * self.back
        self.record.held += len(rows)
        return result
