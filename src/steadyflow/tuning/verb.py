"""`tune`: a solver fitted to a model at a number of calls, judged against every plain one."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import grids, solvers
from .._integrate import Progress, progress_bar
from ..coordinates import FLOW
from ..denoisers.base import Condition, Denoiser
from ..denoisers.fingerprints import fingerprint
from ..errors import InputError, SteadyflowError
from ..solvers.tuned import Entry, Plain, Tuned
from . import judging
from .fitting import Aim, Batch, Derivatives, Fit, Sampling
from .judging import Against, Candidate, Judged
from .schemes import Numbers, field_of, scheme_of
from .starts import FIT, JUDGE, VALIDATE, Cell, Ground, check_given

_FEW = 16
"""On how many starts all plain solvers are tried."""
_BEGINNINGS = 3
"""From how many plain solvers a fit begins."""
_FIRST_STEPS = 3
"""Steps from each, before the best goes on."""
_PATIENCE = 4
"""Steps without progress of one per cent after which a fit ends."""
_STEPS = 40


@dataclass
class _Budget:
    """What a tune may spend, and has spent."""

    calls: int | None
    minutes: float | None
    bar: Any
    spent: int = 0
    began: float = dataclasses.field(default_factory=time.monotonic)

    def spend(self, calls: int) -> None:
        self.spent += calls
        self.bar.update(calls)

    @property
    def over(self) -> bool:
        late = self.minutes is not None and time.monotonic() - self.began > 60.0 * self.minutes
        return late or (self.calls is not None and self.spent >= self.calls)


def tune(
    model: Denoiser,
    *,
    nfe: int | Iterable[int],
    n: int = 128,
    judge: int = 128,
    x: Tensor | None = None,
    conditions: Sequence[Condition] | None = None,
    judge_conditions: Sequence[Condition] | None = None,
    guidance: float | tuple[float, float] | None = None,
    t_max: float | None = None,
    t_min: float | None = None,
    derivatives: Derivatives | None = None,
    against: Against | None = None,
    fine: int = 200,
    seed: int = 0,
    batch_size: int = 64,
    calls: int | None = None,
    minutes: float | None = None,
    checkpoint: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress = None,
) -> Tuned:
    """Fit a solver to a model at a number of calls, and judge it against every plain one.

    A general explicit scheme (see `solvers.tuned`) begins as the best plain solvers, and is fitted end to end to fine
    solves by Gauss-Newton steps (see `tuning.fitting`). It is then compared, on starts that were not fitted, with every
    deterministic solver on every named grid. Where it is not better in the median and in the mean by more than their
    95 % intervals, the best plain one takes its place, and the verdict says so.

    Args:
        model: The model, under a condition if all samples are to have the same.
        nfe: The number of calls, or several, which share the fine solves.
        n: Starts to fit on; a quarter as many more decide when to stop.
        judge: Starts to judge on.
        x: Starting latents at the noisy end instead of drawn ones, shape (n + n // 4 + judge, ...).
        conditions: Labels, prompts or embeddings, dealt out to the starts in turn; by default all classes of a model
            that has classes.
        judge_conditions: The same for the starts for judging; by default also `conditions`.
        guidance: The scale of classifier-free guidance, or the smallest and the largest; the model's own by default.
        t_max: The path time at the noisy end; the path's own by default.
        t_min: The path time at the clean end, below which the model is not asked; the path's own by default.
        derivatives: "back-propagation", or "differences" for models through which gradients do not pass; by default the
            first that works.
        against: The plain solvers to compare with, by name or as solvers; all by default.
        fine: Calls of the fine solves.
        seed: Of the latents and of the fit; with the same seed the result is the same to the bit.
        batch_size: Starts that are computed together.
        calls: Stop fitting after so many model evaluations, of one start each.
        minutes: Stop fitting after so long; the result then depends on the machine.
        checkpoint: A file for the state of the work, from which the same call goes on.
        dtype: Of the latents that are drawn.
        device: Of the latents that are drawn.
        progress: A bar of model evaluations (True), none (False), or one where the work takes long (None).

    Raises:
        InputError: An argument does not fit.
        CorruptFileError: The checkpoint is damaged or belongs to other work.
        NonFiniteError: The fine solve diverged.
    """
    budgets = _budgets(nfe)
    ground = _ground(model, x, conditions, judge_conditions, guidance, t_max, t_min, seed, batch_size, dtype, device)
    if not (n >= 8 and judge >= 8 and fine >= 8):
        raise InputError(f"n, judge, fine: got {n}, {judge} and {fine}, expected at least 8 each")
    check_given(x, n + n // 4 + judge, model.shape)
    total = _estimate(budgets, n, judge, fine) if calls is None else calls
    bar = progress_bar(progress, total, unit="call")
    work = _Work(ground, n, judge, fine, derivatives, against, _Budget(calls, minutes, bar), checkpoint)
    try:
        entries = tuple(work.entry(budget) for budget in budgets)
    finally:
        if bar is not progress:
            bar.close()
    return Tuned(
        entries,
        tau_max=FLOW.time(model.schedule.at(ground.t_max)),
        tau_min=FLOW.time(model.schedule.at(ground.t_min)),
        model=model.name,
        fingerprint=fingerprint(model),
        guidance=ground.guidance,
        schedule=json.dumps(model.schedule.spec(), default=str),
    )


def _budgets(nfe: Any) -> list[int]:
    budgets = [nfe] if isinstance(nfe, int) else sorted(set(nfe))
    if not budgets or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 1 for one in budgets):
        raise InputError(f"nfe: got {nfe!r}, expected a whole number of at least 1, or several")
    return budgets


def _ground(
    model: Denoiser,
    x: Tensor | None,
    conditions: Sequence[Condition] | None,
    judge_conditions: Sequence[Condition] | None,
    guidance: float | tuple[float, float] | None,
    t_max: float | None,
    t_min: float | None,
    seed: int,
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Ground:
    scale = model.guidance if guidance is None else guidance
    low, high = (scale, scale) if isinstance(scale, int | float) else scale
    if not low <= high:
        raise InputError(f"guidance: got {guidance!r}, expected a number, or the smallest and the largest")
    if conditions is None and model.condition is None and model.classes:
        conditions = list(range(model.classes))
    for name, given in (("conditions", conditions), ("judge_conditions", judge_conditions)):
        if given is not None and (isinstance(given, str) or len(given) == 0):
            raise InputError(f"{name}: got {given!r}, expected a list with at least one")
    if judge_conditions is None:
        judge_conditions = conditions
    low_t, high_t = model.schedule.t_range
    bottom, top = low_t if t_min is None else t_min, high_t if t_max is None else t_max
    grids.make("uniform", model.schedule, 1, t_max=top, t_min=bottom)  # refuses ends that do not fit
    if batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, expected at least 1")
    place = torch.device(device) if x is None else x.device
    scales = float(low), float(high)
    return Ground(model, scales, conditions, judge_conditions, top, bottom, seed, batch_size, dtype, place, x)


def _estimate(budgets: Sequence[int], n: int, judge: int, fine: int) -> int:
    """About how many model evaluations a tune takes."""
    rows = n + n // 4 + judge
    plain = 300
    return rows * fine + sum(b * (plain * _FEW + 24 * judge + 30 * 10 * n) for b in budgets)


class _Work:
    """The work of one tune: parts of starts, their fine solves, and a fit for each number of calls."""

    def __init__(
        self,
        ground: Ground,
        n: int,
        judge: int,
        fine: int,
        derivatives: Derivatives | None,
        against: Against | None,
        budget: _Budget,
        checkpoint: str | Path | None,
    ):
        self.ground, self.budget, self.against, self.n = ground, budget, against, n
        self.schedule = ground.model.schedule
        self.sizes = {FIT: n, VALIDATE: max(4, n // 4), JUDGE: judge}
        skips = {FIT: 0, VALIDATE: n, JUDGE: n + self.sizes[VALIDATE]}
        self.cells = {part: ground.cells(part, size, skips[part]) for part, size in self.sizes.items()}
        self.ends = {part: [self._fine(cell, fine) for cell in cells] for part, cells in self.cells.items()}
        first = self.cells[JUDGE][0].few(_FEW)
        self.reference = judging.median(
            _distance(self._fine(first, max(8, fine // 2)), self.ends[JUDGE][0][: len(first.start)])
        )
        self.derivatives: Derivatives = derivatives or _derivatives(self.cells[FIT][0], self.ground)

    def _fine(self, cell: Cell, calls: int) -> Tensor:
        plain = Plain(solvers.get("rk4"), "quadratic")
        grid = plain.on(self.schedule, calls, self.ground.t_max, self.ground.t_min, clean=True)
        self.budget.spend(calls * len(cell.start))
        return self.ground.solve(cell, plain.solver, grid)

    def batches(self, part: str) -> list[Batch]:
        """The starts of a part in flow coordinates, with their ends."""
        scale = FLOW.scale(self.schedule.at(self.ground.t_max))
        pairs = zip(self.cells[part], self.ends[part], strict=True)
        return [Batch(field_of(cell.model), cell.start / scale, end) for cell, end in pairs]

    def entry(self, calls: int) -> Entry:
        """What a tuned solver does at a number of calls: the fit, or the best plain solver."""
        ground = self.ground
        found = list(judging.candidates(self.schedule, calls, (ground.t_max, ground.t_min), self.against, clean=True))
        few = self.cells[FIT][0].few(_FEW)

        def on_few(one: Candidate) -> Tensor:
            return self._plain(one, few, self.ends[FIT][0][: len(few.start)])

        near = judging.shortlist(found, on_few, lambda: None)
        before = self.budget.spent
        fitted = self._fitted([one for one, _ in near])
        spent = self.budget.spent - before
        judged: list[tuple[Candidate, Tensor]] = []
        for one, _ in near:
            parts = zip(self.cells[JUDGE], self.ends[JUDGE], strict=True)
            errors = judging.tried(
                lambda chosen, parts=parts: torch.cat([self._plain(chosen, cell, end) for cell, end in parts]), one
            )
            if errors is not None:
                judged.append((one, errors))
        compared = Judged(judged, len(found))
        best = compared.best(judging.median)[0].plain
        if fitted is None:
            return Entry(calls, best)
        aim = Sampling()
        errors = torch.cat([aim.errors(batch, fitted) for batch in self.batches(JUDGE)])
        if not bool(errors.isfinite().all()):
            return Entry(calls, best)
        how = f"Gauss-Newton by {self.derivatives}"
        verdict = judging.verdict(errors, compared, how, self.n, self.reference, spent)
        return Entry(calls, fitted.scheme() if verdict.won else best, None, verdict)

    def _plain(self, one: Candidate, cell: Cell, end: Tensor) -> Tensor:
        found = self.ground.solve(cell, one.plain.solver, one.grid)
        self.budget.spend(len(cell.start) * (len(one.grid) - 1 + one.grid.clean))
        return _distance(found, end)

    def _fitted(self, near: Sequence[Candidate]) -> Numbers | None:
        """The best fit from the schemes of plain solvers."""
        bound = FLOW.time(self.schedule.at(self.ground.t_min))
        defined = self.ground.model.defined_at_zero_noise
        fits: list[Fit[Batch, Numbers]] = []
        for one in near:
            try:
                scheme = scheme_of(one.plain.solver, self.schedule, one.grid, defined_at_zero_noise=defined)
            except InputError:  # its calls are not in order
                continue
            if scheme.end == 0.0:
                fits.append(Fit(Sampling(), Numbers.of(scheme, bound), self.derivatives, self.ground.seed))
            if len(fits) == _BEGINNINGS:
                break
        if not fits:
            return None
        return best_fit(fits, self.batches(FIT), self.batches(VALIDATE), self.budget)


def best_fit(fits: Sequence[Fit[Any, Any]], fit: Sequence[Any], validate: Sequence[Any], budget: _Budget) -> Any:
    """Go a few steps from each beginning, and on from the best, until there is no more progress on other starts.

    Args:
        fits: The beginnings.
        fit: The starts to fit on.
        validate: The starts that decide.
        budget: What may be spent.

    Returns:
        The numbers that were best on those.
    """
    aim = fits[0].aim
    found: list[tuple[float, Any, Fit[Any, Any]]] = []
    for one in fits:
        best = (_score(aim, validate, one.numbers), one.numbers)
        for _ in range(_FIRST_STEPS):
            if budget.over or one.stuck:
                break
            one.step(fit, budget.spend)
            best = min(best, (_score(aim, validate, one.numbers), one.numbers), key=lambda entry: entry[0])
        found.append((*best, one))
    lowest, numbers, chosen = min(found, key=lambda entry: entry[0])
    rounds = 0
    idle = 0
    while not budget.over and chosen.steps < _STEPS and rounds < 2:
        if chosen.stuck or idle >= _PATIENCE:
            rounds, idle, chosen.stuck = rounds + 1, 0, False
            chosen.restart(numbers)
            continue
        chosen.step(fit, budget.spend)
        score = _score(aim, validate, chosen.numbers)
        idle = 0 if score < lowest - 0.02 else idle + 1
        if score < lowest:
            lowest, numbers = score, chosen.numbers
    return numbers


def _score(aim: Aim[Any, Any], batches: Sequence[Any], numbers: Any) -> float:
    """The logarithms of the median and of the mean error, as both are to be small."""
    errors = torch.cat([aim.errors(batch, numbers) for batch in batches])
    if not bool(errors.isfinite().all()):
        return math.inf
    tiny = torch.finfo(torch.float64).tiny
    return math.log(max(judging.median(errors), tiny)) + math.log(max(judging.mean(errors), tiny))


def _distance(found: Tensor, end: Tensor) -> Tensor:
    return (found - end).flatten(1).double().square().mean(1).sqrt()


def _derivatives(cell: Cell, ground: Ground) -> Derivatives:
    """Whether gradients pass through a model."""
    few = cell.few(1)
    scale = FLOW.scale(ground.model.schedule.at(ground.t_max))
    with torch.enable_grad():
        u = (few.start / scale).detach().requires_grad_(True)
        try:
            slope = field_of(few.model)(u, FLOW.time(ground.model.schedule.at(ground.t_max)))
            if not slope.requires_grad:
                return "differences"
            (found,) = torch.autograd.grad(slope.sum(), u, allow_unused=True)
        except (RuntimeError, SteadyflowError):
            return "differences"
    return "back-propagation" if found is not None and bool(found.isfinite().all()) else "differences"
