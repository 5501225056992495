"""The work of one tune: parts of starts, their fine solves, and for each number of calls a fit and a verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import solvers
from .._integrate import Solution
from .._internal.tensors import rms
from ..coordinates import FLOW
from ..denoisers.base import Denoiser
from ..errors import InputError, SteadyflowError
from ..grids import Grid
from ..solvers.base import Solver
from ..solvers.tuned import Entry, Plain
from ..tasks._batched import run_batched
from . import judging
from .checks import check_repeatable, derivatives_of, few_of
from .derivatives import Batch, Derivatives
from .fitting import Fit, Sampling
from .journal import Journal
from .judging import Against, Candidate, Judged
from .own_states import Course, own_states
from .progress import Budget, best_fit
from .round_trips import RoundBatch, RoundTrip
from .schemes import Numbers, Pair, field_of, scheme_of
from .starts import FIT, JUDGE, QUIET, VALIDATE, Cell, Ground

_BEGINNINGS = 4
"""From how many plain solvers a fit begins."""
_SYMMETRIC = ("ees25", "ees27")
_REFINED = 2
"""How often the starts for judging are solved more finely, four times each, where they cannot tell."""
_WORSE = 1.1
"""How many times the plain solver's distance the latents or edits of a fit may have."""


class Fitted(NamedTuple):
    """A fit, with its errors on the starts for judging."""

    entry: Entry
    errors: Tensor
    beside: Tensor | None
    """Those of latents or edits, where round trips are fitted."""
    steps: int
    """Gauss-Newton steps that were made."""
    again: Callable[[], Tensor] | None = None
    """Measures the errors anew, where they are distances from a fine solve."""


@dataclass
class Work(ABC):
    """What sampling and round trips have in common.

    Args:
        ground: The model and its starts.
        sizes: The number of starts of each part.
        fine: The calls of fine solves.
        derivatives: How they are had.
        against: The plain solvers to compare with.
        budget: What may be spent.
        journal: What has been done.
    """

    ground: Ground
    sizes: dict[str, int]
    fine: int
    derivatives: Derivatives | None
    against: Against | None
    budget: Budget
    journal: Journal

    def __post_init__(self):
        self.schedule = self.ground.model.schedule
        skips = {FIT: 0, VALIDATE: self.sizes[FIT], JUDGE: self.sizes[FIT] + self.sizes[VALIDATE]}
        self.cells = {part: self.ground.cells(part, size, skips[part]) for part, size in self.sizes.items()}
        check_repeatable(self.cells[FIT][0])
        self.finer = self.fine
        self.journal.begin("fine")
        self.ends = {part: [self._fine(cell, self.fine) for cell in cells] for part, cells in self.cells.items()}
        self.few = few_of(self.cells[FIT], self.ends[FIT])
        halves = [(self._fine(cell, self.fine // 2), end) for cell, end in few_of(self.cells[JUDGE], self.ends[JUDGE])]
        self.reference = judging.median(torch.cat([distance(half, end) for half, end in halves]))
        self.way: Derivatives = self.derivatives or derivatives_of(self.cells[FIT][0])

    def _fine(self, cell: Cell, calls: int) -> Tensor:
        self.spend(calls * self.ways_of_fine(cell), cell)
        return self.journal.remembered(lambda: self.solved(cell, calls)).to(cell.start.device)

    def ways_of_fine(self, cell: Cell) -> int:
        """How many ways a fine solve goes."""
        return 1

    def fine_plain(self) -> Plain:
        """The method of fine solves."""
        return Plain(solvers.get("rk4"), "quadratic")

    first: ClassVar[tuple[str, ...]] = ()
    """What is done before the steps, in words."""

    @abstractmethod
    def solved(self, cell: Cell, calls: int) -> Tensor:
        """What should come of the starts of a cell, by a fine solve with so many calls each way."""

    @abstractmethod
    def candidates(self, calls: int) -> Iterator[Candidate]:
        """The plain solvers at a number of calls."""

    @abstractmethod
    def plain(self, one: Candidate, cell: Cell, end: Tensor) -> tuple[Tensor, Tensor | None, int]:
        """The errors of a plain solver on a cell, those of what is beside a round trip, and its evaluations."""

    @abstractmethod
    def fitted(self, calls: int, near: Sequence[Candidate], found: Sequence[Candidate]) -> Fitted | None:
        """A fit that begins as plain solvers; None if it has no scheme to begin with or diverges.

        Args:
            calls: The number of calls.
            near: The best plain solvers.
            found: All of them.
        """

    def entry(self, calls: int) -> Entry:
        """What a tuned solver does at a number of calls: the fit, or the best plain solver."""
        self.journal.begin(f"plain {calls}")
        found = list(self.candidates(calls))
        cells, ends = [cell for cell, _ in self.few], [end for _, end in self.few]
        near = judging.shortlist(found, lambda one: self._errors(one, cells, ends)[0])
        before = self.budget.spent
        self.journal.begin(f"fit {calls}")
        fit = self.fitted(calls, [one for one, _ in near], found)
        spent = self.budget.spent - before
        self.journal.begin(f"judge {calls}")
        compared, beside = self._judged(near, len(found))
        best, errors = compared.fallback()
        if fit is None:
            why = "no plain solver makes its calls in an order that a fit can begin from"
            verdict = judging.verdict(errors, compared, why, self.sizes[FIT], self.measured_from, spent)
            return Entry(calls, best.plain, None, replace(verdict, won=False))
        how = ", ".join([*self.first, *([f"{fit.steps} Gauss-Newton steps by {self.way}"] if fit.steps else [])])
        verdict = judging.verdict(fit.errors, compared, how, self.sizes[FIT], self.measured_from, spent)
        for _ in range(_REFINED):
            if fit.again is None or not judging.is_open(verdict):
                break
            self._refine()
            compared, beside = self._judged(near, len(found))
            best, _ = compared.fallback()
            verdict = judging.verdict(fit.again(), compared, how, self.sizes[FIT], self.measured_from, spent)
        if fit.beside is not None:
            ours = judging.median(fit.beside)
            theirs = next(
                judging.median(others) for (one, _), others in zip(compared.errors, beside, strict=True) if one is best
            )
            verdict = replace(verdict, beside=(ours, theirs), won=verdict.won and ours <= _WORSE * theirs)
        return replace(fit.entry, verdict=verdict) if verdict.won else Entry(calls, best.plain, None, verdict)

    def _judged(self, near: Sequence[tuple[Candidate, Tensor]], compared: int) -> tuple[Judged, list[Tensor]]:
        """The nearest plain solvers on the starts for judging, and what is beside their round trips."""
        judged: list[tuple[Candidate, Tensor]] = []
        beside: list[Tensor] = []
        for one, _ in near:
            try:
                errors, others = self._errors(one, self.cells[JUDGE], self.ends[JUDGE])
            except SteadyflowError:
                continue
            if bool(errors.isfinite().all()):
                judged.append((one, errors))
                beside.append(others)
        if not judged:
            raise InputError("nfe: every plain solver diverges on the starts for judging; give more evaluations")
        return Judged(judged, compared), beside

    def _refine(self) -> None:
        """Solve more finely from the starts for judging."""
        before, self.finer = self.ends[JUDGE], 4 * self.finer
        self.ends[JUDGE] = [self._fine(cell, self.finer) for cell in self.cells[JUDGE]]
        moved = [distance(a, b) for a, b in zip(before, self.ends[JUDGE], strict=True)]
        self.reference = judging.median(torch.cat(moved))

    @property
    def measured_from(self) -> float:
        """How far the fine solve may be off, where errors are distances from it."""
        return self.reference

    def _errors(self, one: Candidate, cells: Sequence[Cell], ends: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The errors of a plain solver, and those of what is beside a round trip."""

        def computed() -> Tensor:
            found = [self.plain(one, cell, end) for cell, end in zip(cells, ends, strict=True)]
            errors = torch.cat([first for first, _, _ in found])
            others = torch.cat([first if second is None else second for first, second, _ in found])
            return torch.stack([errors, others, torch.full_like(errors, float(found[0][2]))]).cpu()

        kept = self.journal.remembered(computed)
        self.budget.spend(int(kept[2, 0]) * kept.shape[1])
        return kept[0], kept[1]

    def scheme_numbers(self, one: Candidate, grid: Grid, bound: float) -> Numbers:
        """The numbers of a plain solver's scheme."""
        defined = self.ground.model.defined_at_zero_noise
        return Numbers.of(scheme_of(one.plain.solver, self.schedule, grid, defined_at_zero_noise=defined), bound)

    def spend(self, calls: int, cell: Cell) -> None:
        """Note the evaluations of a run of a cell."""
        self.budget.spend(calls * len(cell.start))

    def solve(self, model: Denoiser, solver: Solver[Any], grid: Grid, **start: Any) -> Solution:
        """A plain run."""
        return run_batched(model, grid, solver, QUIET, **start)


class SamplingWork(Work):
    """From noise to data: the error is the distance to a fine solve from the same start."""

    courses: list[Course] | None = None
    before: Numbers | None = None
    """The fit at the number of calls before."""
    first = ("least squares on the run's own states",)

    def solved(self, cell: Cell, calls: int) -> Tensor:
        plain = self.fine_plain()
        grid = plain.on(self.schedule, calls, self.ground.t_max, self.ground.t_min, clean=True)
        return self.solve(cell.model, plain.solver, grid, x=cell.start).x

    def candidates(self, calls: int) -> Iterator[Candidate]:
        ends = self.ground.t_max, self.ground.t_min
        return judging.candidates(self.schedule, calls, ends, self.against, clean=True)

    def plain(self, one: Candidate, cell: Cell, end: Tensor) -> tuple[Tensor, Tensor | None, int]:
        found = self.solve(cell.model, one.plain.solver, one.grid, x=cell.start)
        return distance(found.x, end), None, found.nfe

    def batches(self, part: str) -> list[Batch]:
        """The starts of a part in flow coordinates, with their ends."""
        scale = FLOW.scale(self.schedule.at(self.ground.t_max))
        pairs = zip(self.cells[part], self.ends[part], strict=True)
        return [Batch(field_of(cell.model), cell.start / scale, end) for cell, end in pairs]

    def fitted(self, calls: int, near: Sequence[Candidate], found: Sequence[Candidate]) -> Fitted | None:
        aim, bound = Sampling(), FLOW.time(self.schedule.at(self.ground.t_min))
        fits: list[Fit[Batch, Numbers]] = []
        for one in near:
            try:
                numbers = self.scheme_numbers(one, one.grid, bound)
            except InputError:  # its calls are not in order
                continue
            if numbers.end == 0.0 and numbers.calls == calls:
                fits.append(Fit(aim, numbers, self.way, self.ground.seed))
            if len(fits) == _BEGINNINGS:
                break
        if not fits:
            return None
        direct = self._direct(fits[0].numbers)
        fits.insert(0, Fit(aim, direct, self.way, self.ground.seed))
        if self.before is not None and self.before.calls == calls - 1:
            fits.append(Fit(aim, self.before.extended(), self.way, self.ground.seed))
        best, steps = best_fit(fits, self.batches(FIT), self.batches(VALIDATE), self.budget, self.journal)
        self.before = best

        def measured() -> Tensor:
            return torch.cat([aim.errors(batch, best).cpu() for batch in self.batches(JUDGE)])

        errors = measured()
        return (
            Fitted(Entry(calls, best.scheme()), errors, None, steps, measured)
            if bool(errors.isfinite().all())
            else None
        )

    def _direct(self, numbers: Numbers) -> Numbers:
        """The fit in closed form that begins as a plain solver."""
        if self.courses is None:
            self.courses = [self._course(*pair) for pair in zip(self.cells[FIT], self.ends[FIT], strict=True)]
        for course in self.courses:
            self.budget.spend(numbers.calls * len(course.end))
        found = self.journal.remembered(lambda: own_states(self.courses or [], numbers).packed())
        return numbers.unpacked(found)

    def _course(self, cell: Cell, end: Tensor) -> Course:
        """The fine trajectories of a cell."""
        plain = self.fine_plain()
        grid = plain.on(self.schedule, self.fine // 2, self.ground.t_max, self.ground.t_min, clean=True)
        times = list(grid.times)
        taus = torch.tensor([FLOW.time(self.schedule.at(t)) for t in times], dtype=torch.float64)

        def solved() -> Tensor:
            options = replace(QUIET, record="all")
            found = run_batched(cell.model, Grid(grid.times), plain.solver, options, x=cell.start)
            assert found.trajectory is not None
            return found.trajectory.x

        states = self.journal.remembered(solved).to(cell.start.device)
        self.spend(4 * (len(times) - 1), cell)
        scales = torch.tensor([FLOW.scale(self.schedule.at(t)) for t in times], dtype=states.dtype)
        scaled = states / scales.to(states.device).view(-1, *[1] * (states.ndim - 1))
        return Course(field_of(cell.model), taus, scaled, end)


class RoundTripWork(Work):
    """From data to noise and back: the error is the distance to what was sent."""

    def ways_of_fine(self, cell: Cell) -> int:
        return 1 if cell.target is None else 2

    @property
    def measured_from(self) -> float:
        return 0.0  # from what was sent

    @property
    def ways(self) -> tuple[float, float]:
        """The flow times of the clean and the noisy end."""
        clean, noisy = (FLOW.time(self.schedule.at(t)) for t in (self.ground.t_min, self.ground.t_max))
        return clean, noisy

    def solved(self, cell: Cell, calls: int) -> Tensor:
        plain = self.fine_plain()
        grid = plain.on(self.schedule, calls, self.ground.t_max, self.ground.t_min, clean=False)
        latent = self.solve(cell.model, plain.solver, grid.reversed(), x=cell.start).x
        if cell.target is None:
            return latent
        return self.solve(cell.target, plain.solver, grid, x=latent).x

    def candidates(self, calls: int) -> Iterator[Candidate]:
        ends = self.ground.t_max, self.ground.t_min
        return judging.candidates(self.schedule, calls, ends, self.against, clean=False, inverting=True)

    def plain(self, one: Candidate, cell: Cell, end: Tensor) -> tuple[Tensor, Tensor | None, int]:
        method = one.plain.solver
        up = self.solve(cell.model, method, one.grid.reversed(), x=cell.start)
        down = self.solve(cell.model, method, one.grid, state=method.for_decoding(up.state))
        beside, spent = up.x, up.nfe + down.nfe
        if cell.target is not None:
            edit = self.solve(cell.target, method, one.grid, state=method.for_decoding(up.state))
            beside, spent = edit.x, spent + edit.nfe
        return distance(down.x, cell.start), distance(beside, end), spent

    def batches(self, part: str) -> list[RoundBatch]:
        """The samples of a part in flow coordinates, with what should come of them."""
        clean, noisy = (FLOW.scale(self.schedule.at(t)) for t in (self.ground.t_min, self.ground.t_max))
        found: list[RoundBatch] = []
        for cell, end in zip(self.cells[part], self.ends[part], strict=True):
            edit = None if cell.target is None else field_of(cell.target)
            beside = end / (noisy if edit is None else clean)
            found.append(RoundBatch(field_of(cell.model), edit, cell.start / clean, beside))
        return found

    def fitted(self, calls: int, near: Sequence[Candidate], found: Sequence[Candidate]) -> Fitted | None:
        clean, noisy = self.ways
        pairs: list[Pair] = []
        grid = near[0].plain.grid
        symmetric = [one for one in found if one.plain.solver.name in _SYMMETRIC and one.plain.grid == grid]
        for one in [*symmetric, *near]:  # nearly reversible by structure, and the best
            try:
                up = self.scheme_numbers(one, one.grid.reversed(), noisy)
                down = self.scheme_numbers(one, one.grid, clean)
            except InputError:
                continue
            if up.calls == down.calls == calls:
                pairs.append(Pair(up, down))
            if len(pairs) == _BEGINNINGS + 1:
                break
        if not pairs:
            return None
        parts = [RoundTrip(1.0).parts(batch, pairs[0]) for batch in self.batches(FIT)]
        back, beside = (judging.median(torch.cat(list(one))) for one in zip(*parts, strict=True))
        aim = RoundTrip(back / max(beside, torch.finfo(torch.float64).tiny))
        fits = [Fit(aim, pair, self.way, self.ground.seed) for pair in pairs]
        best, steps = best_fit(fits, self.batches(FIT), self.batches(VALIDATE), self.budget, self.journal)
        judged = [aim.parts(batch, best) for batch in self.batches(JUDGE)]
        scale = FLOW.scale(self.schedule.at(self.ground.t_min))
        other = scale if self.cells[FIT][0].target is not None else FLOW.scale(self.schedule.at(self.ground.t_max))
        errors = scale * torch.cat([first for first, _ in judged]).cpu()
        besides = other * torch.cat([second for _, second in judged]).cpu()
        if not bool(errors.isfinite().all()):
            return None
        return Fitted(Entry(calls, best.down.scheme(), best.up.scheme()), errors, besides, steps)


def distance(found: Tensor, end: Tensor) -> Tensor:
    """The root mean square distance of each sample, shape (B,), float64."""
    return rms((found - end).double())
