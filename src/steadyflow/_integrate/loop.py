"""`integrate`: a solver's run over a grid, with everything that may look at it or change it.

It runs the same coroutine of the same solver as `Stepper`, so both give the same numbers. A falling grid samples
(`Solver.step`), a rising one inverts (`Solver.inverse_step`).

Nothing in the loop reads from the device except, on the CPU, one sum per step that notices NaN at once; on an
accelerator the sums stay there and are read after the last step. Memory does not grow with the number of
steps unless recording is asked for.
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._internal.autograd import gradients
from .._internal.given import whole
from .._internal.tensors import combine, finite
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..grids import Grid
from ..noise import NoiseSource
from ..schedules import Schedule
from ..solvers.base import Solver, Step
from ..solvers.state import flatten_state
from .adjoint import Adjoint, AdjointKind, adjoint_of, check_adjoint, check_gradients
from .bars import Progress, progress_bar
from .conditioning import conditioned
from .controllers import PIDController
from .graph_tape import GraphTape
from .graphs import Random, copied, leaves_in
from .records import Record, States, Watch
from .solution import Solution
from .steps import Model, StepLoop, drive
from .tape import Made, Tape
from .times import Times, check_times

_STATES = (torch.float32, torch.float64)


class StepInfo(NamedTuple):
    """Where a run stands after a step: what callbacks and corrections are given."""

    done: int
    """Steps made in this run, from 1."""
    total: int | None
    """Steps of the whole grid; None where a controller chooses them."""
    t: float
    """Path time reached."""
    x: Tensor
    """The state in model space, shape (B, ...)."""
    nfe: int
    """Model evaluations per sample so far."""
    model: Denoiser
    grid: Grid
    noise: NoiseSource | None
    """The source of the run's noise, which knows the seed and the indices of the samples."""
    solver: Solver[Any]
    step: Step
    """The step that was made."""
    before: Any
    """The solver's state before it."""
    state: Any
    """The solver's state after it."""
    landed: Tensor | None = None
    """Where the step itself has led, if corrections have moved the sample since; shape (B, ...)."""

    @property
    def denoised(self) -> Tensor:
        """What the step aimed at: the x0 that takes DDIM from the state before to `x`, shape (B, ...)."""
        start, end = self.step.start, self.step.end
        gain = end.alpha * start.sigma - start.alpha * end.sigma
        landed = self.x if self.landed is None else self.landed
        return combine(start.sigma / gain, landed, [-end.sigma / gain], [self.solver.output(self.before)])

    @property
    def remaining(self) -> int:
        """Steps that are left. Raises `InputError` where a controller chooses them, as nobody knows."""
        if self.total is None:
            raise InputError("steps: this correction counts the steps that are left; give their number")
        return self.total - self.done


Callback = Callable[[StepInfo], None]
"""Called once after every step; looks, and changes nothing."""
Correction = Callable[[StepInfo], Any]
"""Called once after every step; returns the sample to start afresh from, or a whole state of a solver that keeps
more than that (`Solver.with_sample`), or None to leave it."""


def integrate(
    model: Denoiser,
    x: Tensor | None,
    grid: Grid,
    solver: Solver[Any],
    *,
    state: Any = None,
    noise: NoiseSource | None = None,
    controller: PIDController | None = None,
    corrections: Iterable[Correction] = (),
    callback: Callback | None = None,
    record: Record = None,
    progress: Progress = None,
    resume: Solution | None = None,
    stop_after: int | None = None,
    adjoint: Adjoint | AdjointKind | None = None,
) -> Solution:
    """Run over a grid: a falling one samples, a rising one inverts.

    Without an adjoint, gradients flow only where the start requires them, whatever the model's parameters do.

    Args:
        model: The model of the data.
        x: The start in model space, shape (B, ...), float32 or float64.
        grid: The times; a run over one that is `clean` ends with the clean estimate.
        solver: The method.
        state: A solver's own state to start from instead of x (with its second tensor, say).
        noise: The source for stochastic solvers, addressed by sample.
        controller: What chooses the steps between the grid's first and last time.
        corrections: Each called after every step in turn; what it returns replaces the state. A solver with more
            than one state starts afresh from a sample.
        callback: Called after every step.
        record: See `Record`.
        progress: A bar on standard error; by default where that is a terminal and the work takes more than two seconds.
        resume: A run that was stopped, to go on with instead of x.
        stop_after: Stop after that many steps of this call; the result can be saved and resumed.
        adjoint: How gradients pass through the run (see `Adjoint`).

    Raises:
        NotInvertibleError: The grid rises and the solver has no inverse.
        NonFiniteError: NaN or infinity appeared, at the step and the time that it names.
        InputError: A start or a grid does not fit.
    """
    acts = tuple(corrections)
    model = conditioned(model, acts, grid, solver)
    schedule = model.schedule
    grid.check_domain(schedule)
    if grid.rising:
        solver.check_invertible()
    if solver.properties.stochastic and not model.has_score:
        raise InputError(
            f"solver: {solver.name!r} adds noise and needs the score, which a velocity of coupled noise and data does "
            "not give; use a deterministic solver"
        )
    if controller is not None:
        controller.check_solver(solver)
        if resume is not None or stop_after is not None:
            raise InputError("resume, stop_after: for runs over a fixed grid, not for adaptive steps")
    first, nfe = 0, 0
    if resume is not None:
        if x is not None or state is not None:
            raise InputError("x, state: have no meaning with resume, whose run goes on from its own state")
        if resume.grid != grid or resume.solver != solver:
            raise InputError("resume: the saved run has another grid or solver than the one asked for")
        first, state, nfe = resume.step, resume.state, resume.nfe
    elif state is None:
        if x is None:
            raise InputError("x: give a start, a solver state, or a run to resume")
        check_state("x", x)
        state = solver.start(x, schedule, grid.times[0])
    current = solver.output(state)
    if noise is not None:
        _check_noise(noise, current)
    if grid.rising:
        _check_growth(solver, schedule, grid, current.dtype)
    stop_after = None if stop_after is None else whole("stop_after", stop_after, 0)
    how = adjoint_of(adjoint)
    if grid.tensor is not None and torch.is_grad_enabled():
        check_times(how, solver, acts, state if x is None else None, controller is not None)
    check_gradients(how, acts, current)
    taped = how is not None and how.kind != "none" and torch.is_grad_enabled()
    tried = 0, 0
    if taped and controller is not None:
        searched = _search(model, grid, solver, state, noise, controller, acts)
        grid, controller, tried = searched.grid, None, (searched.nfe, searched.rejected)
    total = None if controller is not None else grid.steps
    last = total if stop_after is None else min(grid.steps, first + stop_after)
    watch, recorder = Watch(current), States(record, total, grid.times[min(first, len(grid) - 1)], current)
    cost, counts = model.cost, list[int]()

    def corrected(before: Any, after: Any, step: Step, k: int, acting: tuple[Correction, ...]) -> Any:
        """The state after the corrections of step k of this call."""
        landed = solver.output(after)
        for correction in acting:
            x = solver.output(after)
            where = nfe + sum(counts[: k + 1]) * cost, model, grid, noise, solver, step, before, after
            changed = correction(StepInfo(first + k + 1, total, step.t1, x, *where, landed))
            if changed is not None:
                _check_changed(correction, changed, x, after, solver)
                if isinstance(changed, Tensor):  # as another object, also where it was changed in its place
                    changed = solver.restarted(after, changed.view_as(changed), schedule, step.t1)
                after = changed
        return after

    tape, given = None, list[tuple[Tensor, Tensor]]()
    if taped and how is not None and how.order == 1:
        given, acts = leaves_in(acts)
    quiet = tuple(unrecorded(correction) for correction in acts) if taped else ()
    copies = how is not None and how.kind == "reversible"

    def make(asked: Model, before: Any, step: Step, k: int, live: bool) -> Made:
        found, calls = drive(solver.advance(before, step), asked)
        if live:
            counts.append(calls)
        if not acts:
            return Made(found, found, False, calls)
        parts = flatten_state(found)[1]
        plain, versions = copied(found) if live and copies else found, [part._version for part in parts]
        after = corrected(before, found, step, k, acts if live else quiet)
        moved = after is not found or versions != [part._version for part in parts]
        return Made(plain, after, moved, calls)

    if taped:
        assert how is not None
        check_adjoint(how, solver, schedule, grid, torch.finfo(current.dtype).eps)
        times = None if grid.tensor is None else Times(grid, schedule, first)
        kind = Tape if how.order == 1 else GraphTape
        tape = kind(how, model, solver, state, grid.steps - first, make, times, given)
    with gradients(current, everything=how is not None):
        loop = StepLoop(
            model,
            solver,
            schedule,
            grid,
            state,
            noise=noise,
            first=first,
            defined_at_zero_noise=model.defined_at_zero_noise,
            controller=controller,
            keep_before=bool(acts) or callback is not None,
            tape=tape,
        )
        bar = progress_bar(progress, None if last is None else last - first)
        done = first
        try:
            for step in loop if last != first else ():
                if tape is None and acts:
                    counts.append(loop.evaluations - sum(counts))
                    loop.state = corrected(loop.before, loop.state, step, done - first, acts)
                done += 1
                current = solver.output(loop.state)
                watch.see(current, done, step)
                recorder.see(current, done, step.t1)
                if callback is not None:
                    where = nfe + loop.evaluations * cost, model, grid, noise, solver, step, loop.before, loop.state
                    callback(StepInfo(done, total, step.t1, current, *where))
                bar.update()
                if done == last:
                    break
        finally:
            if bar is not progress:
                bar.close()
        end = loop.state
        if tape is not None:
            end, recorder.states = tape.finish([done - first for done in recorder.steps], recorder.states)
    if controller is not None:
        grid = Grid(tuple(loop.times), grid.clean)
    watch.close(grid, first)
    return Solution(
        state=end,
        solver=solver,
        grid=grid,
        step=done,
        nfe=nfe + loop.evaluations * cost + tried[0],
        trajectory=recorder.trajectory(),
        rejected=loop.rejected + tried[1],
    )


def _search(
    model: Denoiser,
    grid: Grid,
    solver: Solver[Any],
    state: Any,
    noise: NoiseSource | None,
    controller: PIDController,
    acts: tuple[Correction, ...],
) -> Solution:
    """A run whose steps a controller chooses, which are then the grid of one whose gradient is taken."""
    quiet = tuple(unrecorded(correction) for correction in acts)
    how: dict[str, Any] = {"state": state, "noise": noise, "controller": controller, "corrections": quiet}
    random = Random.now(solver.output(state).device)
    with torch.no_grad():
        found = integrate(model, None, grid, solver, **how, progress=False)
    if random.used():
        raise InputError(
            "steps: the network draws random numbers (dropout in training mode?), so that adaptive steps cannot be "
            "made again for a gradient; give a number of steps, or the network's eval()"
        )
    return found


def unrecorded(correction: Correction) -> Correction:
    """The correction of a trial, or of a step that is made once more, which writes no record of the run itself."""
    record: Any = getattr(correction, "record", None)
    if record is not None and dataclasses.is_dataclass(cast(object, correction)):
        return cast(Any, dataclasses.replace)(correction, record=type(record)())
    return correction


def _check_changed(correction: Correction, changed: Any, x: Tensor, state: Any, solver: Solver[Any]) -> None:
    """Raise `InputError` unless what a correction returned can take the place of the sample x or of the state."""
    name = getattr(correction, "__name__", type(correction).__name__)
    if not isinstance(changed, Tensor):
        if type(changed) is not type(state):
            got, own = type(changed).__name__, type(cast(object, state)).__name__
            either = "" if own == "Tensor" else f" or the solver's {own}"
            raise InputError(f"correction {name!r}: returned a {got}, expected None, a tensor{either}")
        changed = solver.output(changed)
    if changed.shape != x.shape or changed.dtype != x.dtype or changed.device != x.device:
        got, expected = (f"{y.dtype} of shape {tuple(y.shape)} on {y.device}" for y in (changed, x))
        raise InputError(f"correction {name!r}: returned {got}, expected {expected}, as the sample is")


def _check_noise(noise: NoiseSource, x: Tensor) -> None:
    """Raise `InputError` for a source of noise that was made for other samples."""
    shape = (len(noise.samples), *noise.shape)
    if shape != tuple(x.shape) or noise.dtype != x.dtype or noise.device.type != x.device.type:
        got = f"{noise.dtype} of shape {shape} on {noise.device}"
        raise InputError(f"noise: is made for {got}, the state is {x.dtype} of shape {tuple(x.shape)} on {x.device}")


def _check_growth(solver: Solver[Any], schedule: Schedule, grid: Grid, dtype: torch.dtype) -> None:
    """Refuse an inversion whose rounding errors are bound to drown the latent."""
    growth = solver.inverse_growth(schedule, grid)
    if growth * torch.finfo(dtype).eps > 0.1:
        raise InputError(
            f"solver {solver.name!r}: its inverse is predicted to amplify rounding errors {growth:.1e} times over "
            f"these {grid.steps} steps, more than {dtype} can bear; use a coupling nearer to 1, fewer steps, or float64"
        )


def check_state(name: str, x: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Raise `InputError` unless x is a finite float32 or float64 batch, of samples of this shape if given."""
    if not isinstance(x, Tensor):
        raise InputError(f"{name}: got {type(x).__name__}, expected a torch tensor")
    if x.dtype not in _STATES:
        raise InputError(
            f"{name}: got {x.dtype}, expected float32 or float64 (a solver's state needs the precision; "
            f"the network may compute in less, see Denoiser(dtype=...)); use x.float()"
        )
    if x.ndim < 2 or len(x) == 0:
        raise InputError(f"{name}: got shape {tuple(x.shape)}, expected (batch, ...) with at least one sample")
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise InputError(f"{name}: got samples of shape {tuple(x.shape[1:])}, but the model's are {tuple(shape)}")
    if not finite(x):
        broken = x.flatten(1).isfinite().all(1).logical_not().nonzero()
        rows = cast(list[int], broken.flatten().tolist())  # pyright: ignore[reportUnknownMemberType]
        raise InputError(f"{name}: NaN or infinity in sample(s) {', '.join(map(str, rows[:5]))}")


def check_state_type(dtype: object) -> torch.dtype:
    """The type of states that are to be drawn. Raises `InputError` unless it is float32 or float64."""
    if dtype not in _STATES:
        raise InputError(f"dtype: got {dtype!r}, expected torch.float32 or torch.float64")
    return cast(torch.dtype, dtype)
