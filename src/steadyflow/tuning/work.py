"""The work of one tune: parts of starts, their fine solves, and for each number of calls a fit and a verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import solvers
from .._integrate import Solution
from ..coordinates import FLOW
from ..denoisers.base import Denoiser
from ..errors import InputError, SteadyflowError
from ..grids import Grid
from ..solvers.base import Solver
from ..solvers.tuned import Entry, Plain
from ..tasks._batched import run_batched
from . import judging
from .fitting import Batch, Derivatives, Fit, Sampling, signs
from .journal import Journal
from .judging import Against, Candidate, Judged
from .own_states import Course, own_states
from .progress import Budget, best_fit
from .round_trips import RoundBatch, RoundTrip
from .schemes import Numbers, Pair, field_of, scheme_of
from .starts import FIT, JUDGE, QUIET, VALIDATE, Cell, Ground

FEW = 16
"""On how many starts all plain solvers are tried."""
_BEGINNINGS = 4
"""From how many plain solvers a fit begins."""
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
        self.journal.begin("fine")
        self.ends = {part: [self._fine(cell, self.fine) for cell in cells] for part, cells in self.cells.items()}
        first = self.cells[JUDGE][0].few(FEW)
        half = self._fine(first, max(8, self.fine // 2))
        self.reference = judging.median(distance(half, self.ends[JUDGE][0][: len(first.start)]))
        self.way: Derivatives = self.derivatives or derivatives_of(self.cells[FIT][0], self.ground)

    def _fine(self, cell: Cell, calls: int) -> Tensor:
        return self.journal.remembered(lambda: self.solved(cell, calls))

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
    def plain(self, one: Candidate, cell: Cell, end: Tensor) -> tuple[Tensor, Tensor | None]:
        """The errors of a plain solver on a cell, and those of what is beside a round trip."""

    @abstractmethod
    def fitted(self, calls: int, near: Sequence[Candidate]) -> Fitted | None:
        """A fit that begins as plain solvers; None if it has no scheme to begin with or diverges."""

    def entry(self, calls: int) -> Entry:
        """What a tuned solver does at a number of calls: the fit, or the best plain solver."""
        self.journal.begin(f"plain {calls}")
        found = list(self.candidates(calls))
        few, end = self.cells[FIT][0].few(FEW), self.ends[FIT][0]
        near = judging.shortlist(found, lambda one: self._errors(one, [few], [end[: len(few.start)]])[0])
        before = self.budget.spent
        self.journal.begin(f"fit {calls}")
        fit = self.fitted(calls, [one for one, _ in near])
        spent = self.budget.spent - before
        self.journal.begin(f"judge {calls}")
        judged: list[tuple[Candidate, Tensor]] = []
        beside: dict[str, Tensor] = {}
        for one, _ in near:
            try:
                errors, others = self._errors(one, self.cells[JUDGE], self.ends[JUDGE])
            except SteadyflowError:
                continue
            if bool(errors.isfinite().all()):
                judged.append((one, errors))
                beside[one.label] = others
        compared = Judged(judged, len(found))
        best = compared.best(judging.median)[0]
        if fit is None:
            return Entry(calls, best.plain)
        how = ", ".join([*self.first, *([f"{fit.steps} Gauss-Newton steps by {self.way}"] if fit.steps else [])])
        verdict = judging.verdict(fit.errors, compared, how, self.sizes[FIT], self.reference, spent)
        if fit.beside is not None:
            ours, theirs = judging.median(fit.beside), judging.median(beside[best.label])
            won = verdict.won and ours <= _WORSE * theirs
            verdict = replace(verdict, beside=(ours, theirs), won=won)
        return replace(fit.entry, verdict=verdict) if verdict.won else Entry(calls, best.plain, None, verdict)

    def _errors(self, one: Candidate, cells: Sequence[Cell], ends: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        def computed() -> Tensor:
            found = [self.plain(one, cell, end) for cell, end in zip(cells, ends, strict=True)]
            errors = torch.cat([first for first, _ in found])
            return torch.stack([errors, torch.cat([first if second is None else second for first, second in found])])

        both = self.journal.remembered(computed)
        return both[0], both[1]

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
    first = ("least squares on the run's own states",)

    def solved(self, cell: Cell, calls: int) -> Tensor:
        plain = self.fine_plain()
        grid = plain.on(self.schedule, calls, self.ground.t_max, self.ground.t_min, clean=True)
        self.spend(calls, cell)
        return self.solve(cell.model, plain.solver, grid, x=cell.start).x

    def candidates(self, calls: int) -> Iterator[Candidate]:
        ends = self.ground.t_max, self.ground.t_min
        return judging.candidates(self.schedule, calls, ends, self.against, clean=True)

    def plain(self, one: Candidate, cell: Cell, end: Tensor) -> tuple[Tensor, Tensor | None]:
        found = self.solve(cell.model, one.plain.solver, one.grid, x=cell.start)
        self.spend(found.nfe, cell)
        return distance(found.x, end), None

    def batches(self, part: str) -> list[Batch]:
        """The starts of a part in flow coordinates, with their ends."""
        scale = FLOW.scale(self.schedule.at(self.ground.t_max))
        pairs = zip(self.cells[part], self.ends[part], strict=True)
        return [Batch(field_of(cell.model), cell.start / scale, end) for cell, end in pairs]

    def fitted(self, calls: int, near: Sequence[Candidate]) -> Fitted | None:
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
        best, steps = best_fit(fits, self.batches(FIT), self.batches(VALIDATE), self.budget, self.journal)
        errors = torch.cat([aim.errors(batch, best) for batch in self.batches(JUDGE)])
        return Fitted(Entry(calls, best.scheme()), errors, None, steps) if bool(errors.isfinite().all()) else None

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

        states = self.journal.remembered(solved)
        self.spend(4 * (len(times) - 1), cell)
        scales = torch.tensor([FLOW.scale(self.schedule.at(t)) for t in times], dtype=states.dtype)
        scaled = states / scales.to(states.device).view(-1, *[1] * (states.ndim - 1))
        return Course(field_of(cell.model), taus, scaled, end)


class RoundTripWork(Work):
    """From data to noise and back: the error is the distance to what was sent."""

    @property
    def ways(self) -> tuple[float, float]:
        """The flow times of the clean and the noisy end."""
        clean, noisy = (FLOW.time(self.schedule.at(t)) for t in (self.ground.t_min, self.ground.t_max))
        return clean, noisy

    def solved(self, cell: Cell, calls: int) -> Tensor:
        plain = self.fine_plain()
        grid = plain.on(self.schedule, calls, self.ground.t_max, self.ground.t_min, clean=False)
        self.spend(calls, cell)
        latent = self.solve(cell.model, plain.solver, grid.reversed(), x=cell.start).x
        if cell.target is None:
            return latent
        self.spend(calls, cell)
        return self.solve(cell.target, plain.solver, grid, x=latent).x

    def candidates(self, calls: int) -> Iterator[Candidate]:
        ends = self.ground.t_max, self.ground.t_min
        return judging.candidates(self.schedule, calls, ends, self.against, clean=False, inverting=True)

    def plain(self, one: Candidate, cell: Cell, end: Tensor) -> tuple[Tensor, Tensor | None]:
        method = one.plain.solver
        up = self.solve(cell.model, method, one.grid.reversed(), x=cell.start)
        down = self.solve(cell.model, method, one.grid, state=method.for_decoding(up.state))
        self.spend(up.nfe + down.nfe, cell)
        beside = up.x
        if cell.target is not None:
            edit = self.solve(cell.target, method, one.grid, state=method.for_decoding(up.state))
            self.spend(edit.nfe, cell)
            beside = edit.x
        return distance(down.x, cell.start), distance(beside, end)

    def batches(self, part: str) -> list[RoundBatch]:
        """The samples of a part in flow coordinates, with what should come of them."""
        clean, noisy = (FLOW.scale(self.schedule.at(t)) for t in (self.ground.t_min, self.ground.t_max))
        found: list[RoundBatch] = []
        for cell, end in zip(self.cells[part], self.ends[part], strict=True):
            edit = None if cell.target is None else field_of(cell.target)
            beside = end / (noisy if edit is None else clean)
            found.append(RoundBatch(field_of(cell.model), edit, cell.start / clean, beside))
        return found

    def fitted(self, calls: int, near: Sequence[Candidate]) -> Fitted | None:
        clean, noisy = self.ways
        pairs: list[Pair] = []
        for one in near:
            try:
                up = self.scheme_numbers(one, one.grid.reversed(), noisy)
                down = self.scheme_numbers(one, one.grid, clean)
            except InputError:
                continue
            if up.calls == down.calls == calls:
                pairs.append(Pair(up, down))
            if len(pairs) == _BEGINNINGS:
                break
        if not pairs:
            return None
        parts = [RoundTrip(1.0).parts(batch, pairs[0]) for batch in self.batches(FIT)]
        back, beside = (judging.median(torch.cat(list(one))) for one in zip(*parts, strict=True))
        aim = RoundTrip(back / beside)
        fits = [Fit(aim, pair, self.way, self.ground.seed) for pair in pairs]
        best, steps = best_fit(fits, self.batches(FIT), self.batches(VALIDATE), self.budget, self.journal)
        judged = [aim.parts(batch, best) for batch in self.batches(JUDGE)]
        scale = FLOW.scale(self.schedule.at(self.ground.t_min))
        other = scale if self.cells[FIT][0].target is not None else FLOW.scale(self.schedule.at(self.ground.t_max))
        errors = scale * torch.cat([first for first, _ in judged])
        besides = other * torch.cat([second for _, second in judged])
        if not bool(errors.isfinite().all()):
            return None
        return Fitted(Entry(calls, best.down.scheme(), best.up.scheme()), errors, besides, steps)


def distance(found: Tensor, end: Tensor) -> Tensor:
    """The root mean square distance of each sample, shape (B,), float64."""
    return (found - end).flatten(1).double().square().mean(1).sqrt()


def derivatives_of(cell: Cell, ground: Ground) -> Derivatives:
    """How the derivatives of a model can be had: by differences where gradients do not pass, or are not its own.

    What the network returns is looked at, as estimates of the data contain the state itself. A network that passes some
    gradients and stops others would mislead a fit, so that one product of its Jacobian is compared with a difference.
    """
    level = ground.model.schedule.at(ground.t_max)
    few = cell.few(1)
    x = few.start.detach()
    generator = torch.Generator().manual_seed(0)
    along, against = (signs(x, generator) for _ in range(2))
    size = 1e-3 * float(x.square().mean().sqrt())
    try:
        with torch.enable_grad():
            point = x.clone().requires_grad_(True)
            output = few.model(point, level.t).output
            if not output.requires_grad:
                return "differences"
            (back,) = torch.autograd.grad((output * against).sum(), point, allow_unused=True)
        if back is None:
            return "differences"
        with torch.no_grad():
            ends = [few.model(x + sign * size * along, level.t).output for sign in (1.0, -1.0)]
    except (RuntimeError, SteadyflowError):
        return "differences"
    swept = float((back * along).double().sum())
    changed = float((((ends[0] - ends[1]) / (2.0 * size)) * against).double().sum())
    scale = float(back.double().norm() * along.double().norm()) / along.numel() ** 0.5
    return "back-propagation" if abs(swept - changed) <= 0.1 * scale + 1e-9 else "differences"
