"""`tune`: a solver fitted to a model at a number of calls, judged against every plain one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import grids, solvers
from .._integrate import Progress, check_state, check_state_type, shown_bar
from .._internal import strict_json
from .._internal.given import device_of, number, whole
from ..coordinates import FLOW
from ..denoisers.base import Condition, Denoiser, check_guidance
from ..denoisers.fingerprints import fingerprint
from ..errors import InputError, UnknownNameError
from ..solvers.base import Solver
from ..solvers.tuned import Tuned
from .checks import FEW
from .derivatives import Derivatives
from .journal import Journal
from .judging import Against
from .progress import Budget
from .starts import FIT, JUDGE, VALIDATE, Ground, has_rows
from .work import RoundTripWork, SamplingWork

Task = Literal["sample", "round trip"]
_TASKS = {"sample": SamplingWork, "round trip": RoundTripWork}
_STARTS = 256


def tune(
    model: Denoiser,
    *,
    nfe: int | Iterable[int],
    task: Task = "sample",
    n: int | None = None,
    judge: int | None = None,
    x: Tensor | None = None,
    conditions: Sequence[Condition] | None = None,
    judge_conditions: Sequence[Condition] | None = None,
    targets: Sequence[Condition] | None = None,
    guidance: float | tuple[float, float] | None = None,
    t_max: float | None = None,
    t_min: float | None = None,
    derivatives: Derivatives | None = None,
    against: Against | None = None,
    fine: int | None = None,
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

    A general explicit scheme (see `solvers.tuned`) begins as the best plain solvers, and as one that is fitted in
    closed form to fine trajectories (see `tuning.own_states`), and is then fitted end to end to fine solves by
    Gauss-Newton steps (see `tuning.fitting`). It is compared, on starts that were not fitted, with every deterministic
    solver on every named grid. Where it is not better in the median and in the mean by more than their 95 % intervals,
    the best plain one takes its place, and the verdict says so.

    Args:
        model: The model, under a condition if all samples are to have the same.
        nfe: The number of calls, or several, which share the fine solves; each way for round trips.
        task: "sample", from noise to data, or "round trip": both ways fitted together, for `invert` and the way back.
        n: Starts to fit on, 256 by default; half as many more decide when to stop.
        judge: Starts to judge on, 256 by default.
        x: For sampling, starting latents at the noisy end instead of drawn ones; for round trips, samples. Without n
            and judge, half of them are judged on.
        conditions: Labels, prompts or embeddings, dealt out to the starts in turn (those of x, in its order); by
            default all classes of a model that has classes.
        judge_conditions: The same for the starts for judging; by default also `conditions`.
        targets: For round trips, conditions of edits, dealt out alike: the fit is then also against fine edits.
        guidance: The scale of classifier-free guidance, or the smallest and the largest; the model's own by default.
            With targets, that of the edits.
        t_max: The path time at the noisy end; the path's own by default.
        t_min: The path time at the clean end, below which the model is not asked; the path's own by default.
        derivatives: How the Gauss-Newton steps get them: "back-propagation", or "differences" for models through which
            gradients do not pass; by default the first that works. "none" leaves it at least squares on the run's own
            states, which for sampling are the beginning of every fit.
        against: The plain solvers to compare with, by name or as solvers; all by default.
        fine: Calls of the fine solves, at least four times those of the fit; 200 by default, or eight times. Where they
            are not fine enough to judge a fit, the starts for judging are solved with four and 16 times as many.
        seed: Of the latents and of the fit; with the same seed the result is the same to the bit.
        batch_size: Starts that are computed together.
        calls: Begin no step of a fit that would go beyond so many model evaluations, of one start each, in all.
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
    if task not in _TASKS:
        raise UnknownNameError("task", task, _TASKS)
    ground = _ground(model, x, conditions, judge_conditions, guidance, t_max, t_min, seed, batch_size, dtype, device)
    if task == "round trip":
        ground = _round_trips(ground, targets)
    elif targets is not None:
        raise InputError("targets: edits are fitted with task='round trip'")
    sizes = sizes_of(n, judge, x)
    plain = None if against is None else _plain(against)
    if x is not None:
        check_state("x", x, model.shape)
    if derivatives not in (None, *get_args(Derivatives)):
        raise UnknownNameError("derivatives", derivatives, get_args(Derivatives))
    fine = max(200, 8 * budgets[-1]) if fine is None else fine
    fine = whole("fine", fine)
    if fine < max(16, 4 * budgets[-1]):
        raise InputError(f"fine: got {fine!r}, expected at least {max(16, 4 * budgets[-1])} for {budgets[-1]} calls")
    for name, value in (("calls", calls), ("minutes", minutes)):
        if value is not None and not number(name, value) >= 0:
            raise InputError(f"{name}: got {value!r}, expected a number of at least 0")
    mark, named = fingerprint(model), plain and [one.spec() for one in plain]
    about = [mark, ground.answer(), task, ground.described(), sizes, fine, derivatives, named, budgets]
    journal = Journal(checkpoint, about)
    size = {"judge": sizes[JUDGE], "fine": fine, "task": task}
    total = estimate(budgets, n=sizes[FIT], **size) if calls is None else calls + estimate(budgets, n=0, **size)
    with shown_bar(progress, total, unit="call") as bar:
        work = _TASKS[task](ground, sizes, fine, derivatives, plain, Budget(calls, minutes, bar), journal)
        entries = tuple(work.entry(budget) for budget in budgets)
    low, high = ground.guidance
    own = model.guidance if targets is not None else low
    return Tuned(
        entries,
        tau_max=FLOW.time(model.schedule.at(ground.t_max)),
        tau_min=FLOW.time(model.schedule.at(ground.t_min)),
        kind=task,
        model=model.name,
        fingerprint=mark,
        guidance=(min(low, own), max(high, own)),
        schedule=strict_json.dumps(model.schedule.spec(), default=str),
    )


def _budgets(nfe: Any) -> list[int]:
    given: list[Any] = list(nfe) if isinstance(nfe, Iterable) and not isinstance(nfe, str) else [nfe]  # pyright: ignore[reportUnknownArgumentType]
    if not given:
        raise InputError(f"nfe: got {nfe!r}, expected a whole number of at least 1, or several")
    return sorted({whole("nfe", one, 1) for one in given})


def _plain(against: Against) -> list[Solver[Any]]:
    """The plain solvers to compare with."""
    if isinstance(against, str) or len(against) == 0:
        raise InputError(f"against: got {against!r}, expected a list of solvers or of their names")
    found = [solvers.get(one) for one in against]
    for one in found:
        if isinstance(one, Tuned):
            raise InputError("against: got a tuned solver, expected plain ones")
    return found


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
    ends = [check_guidance(one) for one in (scale if isinstance(scale, tuple | list) else (scale, scale))]
    if len(ends) != 2 or not ends[0] <= ends[1]:
        raise InputError(f"guidance: got {guidance!r}, expected a number, or the smallest and the largest")
    low, high = ends
    seed, batch_size = whole("seed", seed, 0, 2**63 - 1), whole("batch_size", batch_size, 1)
    dtype = check_state_type(dtype)
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
    if conditions is None and has_rows(model.condition):
        raise InputError("conditions: the model has a condition for each sample of a batch; give them as a list")
    place = device_of(device) if x is None else x.device
    scales = float(low), float(high)
    return Ground(model, scales, conditions, judge_conditions, top, bottom, seed, batch_size, dtype, place, x)


def _round_trips(ground: Ground, targets: Sequence[Condition] | None) -> Ground:
    """The ground of round trips, with the conditions of edits."""
    if ground.given is None:
        raise InputError("x: round trips begin at samples; give some")
    if targets is not None and (isinstance(targets, str) or len(targets) == 0):
        raise InputError(f"targets: got {targets!r}, expected a list with at least one")
    return dataclasses.replace(ground, targets=targets)


def sizes_of(n: int | None, judge: int | None, x: Tensor | None) -> dict[str, int]:
    """Return how many starts there are to fit on, to decide when to stop, and to judge on.

    Args:
        n: Starts to fit on, if they are given.
        judge: Starts to judge on, if they are given.
        x: The starts or samples, if they are given.

    Raises:
        InputError: There are too few.
    """
    if x is not None and n is None and judge is None:
        judge = len(x) // 2
        n = min((2 * (len(x) - judge)) // 3, len(x) - judge - 8)
    n, judge = whole("n", _STARTS if n is None else n), whole("judge", _STARTS if judge is None else judge)
    sizes = {FIT: n, VALIDATE: max(8, n // 2), JUDGE: judge}
    if n < 8 or judge < 8:
        raise InputError(f"n, judge: got {n!r} and {judge!r}, expected whole numbers of at least 8")
    if x is not None and len(x) < sum(sizes.values()):
        raise InputError(
            f"x: got {len(x)} samples, but {sum(sizes.values())} are to be fitted and judged on; give more, or less n"
        )
    return sizes


def estimate(
    nfe: int | Iterable[int], *, n: int = _STARTS, judge: int = _STARTS, fine: int = 200, task: Task = "sample"
) -> int:
    """About how many model evaluations a tune takes at most, of one start each, where gradients pass through the model.

    Args:
        nfe: The number of calls, or several.
        n: Starts to fit on.
        judge: Starts to judge on.
        fine: Calls of the fine solves.
        task: What is fitted.
    """
    ways = 1 if task == "sample" else 3
    plain = 400 * FEW + 24 * judge
    rows = n + max(8, n // 2) + judge
    return ways * (rows * fine + sum(calls * (plain + 300 * n) for calls in _budgets(nfe)))
