"""Trap-aware noise: find the samples that are held between two modes, and free only those.

Late in sampling the clean prediction of a sample near a mode hardly depends on the state, while half way between two
modes at distance l a small change of the state moves it from the one to the other: the largest singular value of

    A = alpha d x0_hat / d x

is below 1 at a mode, and l^2 / (4 s2) at the saddle of 2605.06831, P4.7, whose eigenvalue is one less. So 1 is the
threshold, with no knowledge of the modes. It is found by a few transposed products with one graph of the model (A is
symmetric for an exact score, and nearly so for a good one). The samples that are held are renoised up the grid and
denoised again (`Restart` for these samples alone), which preserves the marginals to first order in the share of samples
treated, and are examined again.
"""

from dataclasses import astuple, dataclass, field
from operator import add
from typing import Any, Protocol

import torch
from torch import Tensor

from .._integrate import StepInfo
from ..errors import InputError
from ..jacobians.spectra import largest_singular_value
from ..solvers.base import Solver
from .restart import check_rounds, check_solver, is_due, renoise


class Window(Protocol):
    """What says when samples are decided, in steps left; see `diagnostics.CriticalWindow`."""

    @property
    def opens(self) -> int: ...

    @property
    def closes(self) -> int: ...


@dataclass
class EscapeRecord:
    """What an `Escape` has done, summed over all batches of all runs since it was created."""

    samples: int = 0
    """Samples that were examined."""
    flagged: int = 0
    """Samples that were held at the first examination."""
    held: int = 0
    """Samples that were still held at the last examination, before they were renoised for the last time."""
    evaluations: float = 0.0
    """Extra evaluations, of all samples together; a transposed product counts as two."""

    @property
    def cost(self) -> float:
        """Extra evaluations per sample."""
        return self.evaluations / max(self.samples, 1)

    def __add__(self, other: "EscapeRecord") -> "EscapeRecord":
        """Add up what two corrections have done to different samples."""
        return EscapeRecord(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Escape:
    """A correction that frees samples held between modes, once per run, `remaining` steps before the end.

    The options are frozen, but the object carries a record that changes as it acts.

    Args:
        remaining: The number of steps that are left when it acts.
        back: How many steps of the grid to renoise.
        rounds: How often to examine and renoise, at most.
        threshold: The largest singular value of alpha d x0_hat / d x above which a sample counts as held.
        products: Transposed products per examination, apart from one forward evaluation.
        solver: The solver of the way down again, or its name.
        record: The record to add to; a new one by default.

    Attributes:
        record: What the correction has done and cost. It is mutable and accumulates over all batches of all runs that
            the object is given to; it has no part in comparisons. Give each run an object of its own to tell their
            records apart.

    Raises:
        InputError: An option is out of range, or the run has made fewer than `back` steps when the correction acts.
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
        check_solver(self.solver)
        if self.products < 1 or not self.threshold > 0.0:
            raise InputError(
                f"escape: expected products >= 1 and threshold > 0, got {self.products} and {self.threshold}"
            )

    @classmethod
    def within(cls, window: Window, **options: Any) -> "Escape":
        """Place the correction by when a model's samples are decided, instead of by hand.

        It acts when the window has closed, on what is still undecided, and renoises that to before the window opened,
        so that it is decided again.

        Args:
            window: What `diagnostics.critical_window` found for the model, the solver and the grid.
            options: The other options of this class.

        Raises:
            InputError: The window closes where it opens.
        """
        if not window.opens > window.closes:
            raise InputError(
                f"escape: the window opens and closes with {window.closes} steps left; nothing lies within"
            )
        return cls(remaining=window.closes, back=window.opens - window.closes, **options)

    def __call__(self, info: StepInfo) -> Tensor | None:
        if not is_due(info, self.remaining, "escape"):
            return None
        rows = torch.arange(len(info.x), device="cpu")
        self.record.samples += len(rows)
        result: Tensor | None = None
        for number in range(self.rounds):
            x = info.x[rows] if result is None else result[rows]
            held = largest_singular_value(info.model.select(rows), x, info.t, self.products) > self.threshold
            self.record.evaluations += len(rows) * info.model.cost * (1 + 2 * self.products)
            rows, x = rows[held.cpu()], x[held]
            if number == 0:
                self.record.flagged += len(rows)
            if len(rows) == 0:
                break
            result = info.x.clone() if result is None else result
            again = renoise(info, x, rows, self.back, number, self.solver)
            result[rows] = again.x
            self.record.evaluations += len(rows) * again.nfe
        self.record.held += len(rows)
        return result
