"""`tune`: a solver fitted to a model at a number of calls, judged against every plain one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import grids
from .._integrate import Progress, check_state, progress_bar
from ..coordinates import FLOW
from ..denoisers.base import Condition, Denoiser
from ..denoisers.fingerprints import fingerprint
from ..errors import InputError, UnknownNameError
from ..solvers.tuned import Tuned
from .fitting import Derivatives
from .journal import Journal
from .judging import Against
from .progress import Budget
from .starts import FIT, JUDGE, VALIDATE, Ground
from .work import FEW, RoundTripWork, SamplingWork

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
        fine: Calls of the fine solves.
        seed: Of the latents and of the fit; with the same seed the result is the same to the bit.
        batch_size: Starts that are computed together.
        calls: Make no step that would go beyond so many model evaluations, of one start each.
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
    sizes = _sizes(n, judge, x)
    if x is not None:
        check_state("x", x, model.shape)
    if derivatives not in (None, *get_args(Derivatives)):
        raise UnknownNameError("derivatives", derivatives, get_args(Derivatives))
    if fine < 8:
        raise InputError(f"fine: got {fine}, expected at least 8")
    about = [task, ground.described(), sizes, fine, derivatives, against and [str(one) for one in against], budgets]
    journal = Journal(checkpoint, [fingerprint(model), *about])
    total = _estimate(budgets, sizes, fine) if calls is None else calls
    bar = progress_bar(progress, total, unit="call")
    try:
        work = _TASKS[task](ground, sizes, fine, derivatives, against, Budget(calls, minutes, bar), journal)
        entries = tuple(work.entry(budget) for budget in budgets)
    finally:
        if bar is not progress:
            bar.close()
    low, high = ground.guidance
    own = model.guidance if targets is not None else low
    return Tuned(
        entries,
        tau_max=FLOW.time(model.schedule.at(ground.t_max)),
        tau_min=FLOW.time(model.schedule.at(ground.t_min)),
        kind=task,
        model=model.name,
        fingerprint=fingerprint(model),
        guidance=(min(low, own), max(high, own)),
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


def _round_trips(ground: Ground, targets: Sequence[Condition] | None) -> Ground:
    """The ground of round trips, with the conditions of edits."""
    if ground.given is None:
        raise InputError("x: round trips begin at samples; give some")
    if targets is not None and (isinstance(targets, str) or len(targets) == 0):
        raise InputError(f"targets: got {targets!r}, expected a list with at least one")
    return dataclasses.replace(ground, targets=targets)


def _sizes(n: int | None, judge: int | None, x: Tensor | None) -> dict[str, int]:
    """How many starts each part has."""
    if x is not None and n is None and judge is None:
        judge = len(x) // 2
        n = (2 * (len(x) - judge)) // 3
    n, judge = _STARTS if n is None else n, _STARTS if judge is None else judge
    sizes = {FIT: n, VALIDATE: max(8, n // 2), JUDGE: judge}
    if not (n >= 8 and judge >= 8):
        raise InputError(f"n, judge: got {n} and {judge}, expected at least 8 each")
    if x is not None and len(x) < sum(sizes.values()):
        raise InputError(
            f"x: got {len(x)} samples, but {sum(sizes.values())} are to be fitted and judged on; give more, or less n"
        )
    return sizes


def _estimate(budgets: Sequence[int], sizes: dict[str, int], fine: int) -> int:
    """About how many model evaluations a tune takes."""
    plain = 400 * FEW + 24 * sizes[JUDGE]
    return sum(sizes.values()) * fine + sum(b * (plain + 300 * sizes[FIT]) for b in budgets)
