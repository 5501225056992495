"""The two drivers of a solver: `integrate`, which owns the loop, and `Stepper`, which an outside loop feeds.

Both run the same coroutine of the same solver over the legs of a grid, so both give the same numbers. A
falling grid samples (`Solver.step`), a rising one inverts (`Solver.inverse_step`).

Nothing in the loop reads from the device except, on the CPU, one sum a step that notices NaN at once; on an
accelerator the sums stay there and are read after the last step. Memory does not grow with the number of
steps unless recording is asked for.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from . import files
from .batches import combine, finite
from .denoisers.base import Denoiser
from .errors import MALFORMED, CorruptFileError, InputError, NonFiniteError
from .gradients import from_start
from .grids import Grid
from .noise import NoiseSource
from .prediction import Prediction
from .schedules import Schedule
from .solvers import registry
from .solvers.base import Asking, Leg, Query, Result, Solver, State, legs, pack, unpack

Record = Literal["all", "last"] | int | None
"""What to keep of a run: "all" states, every k-th (an integer k), or only the "last" (None)."""


class Moment(NamedTuple):
    """Where a run stands after a solver step: what callbacks and corrections are given."""

    step: int
    """Steps done in this run, from 1."""
    steps: int
    """Steps of the whole grid."""
    t: float
    """Path time reached."""
    x: Tensor
    """The state in model space, shape (B, ...)."""
    nfe: int
    """Model evaluations so far, a sample."""
    model: Denoiser
    grid: Grid
    noise: NoiseSource | None
    """The source of the run's noise, which knows the seed and the indices of the samples."""
    solver: Solver
    leg: Leg
    """The step that was taken."""
    before: State
    """The solver's state before it."""
    state: State
    """The solver's state after it."""

    @property
    def clean(self) -> Tensor:
        """What the step aimed at: the x0 that takes DDIM from the state before to `x`, shape (B, ...)."""
        schedule, t0, t1 = self.leg.schedule, self.leg.t0, self.leg.t1
        before, after = schedule.sigma(t0), schedule.sigma(t1)
        gain = schedule.alpha(t1) * before - schedule.alpha(t0) * after
        return combine(before / gain, self.x, [-after / gain], [self.solver.output(self.before)])


Progress = bool | None | tqdm
"""Show a bar (True), never (False), on long work at a terminal (None); or a bar of the caller's to advance."""

Callback = Callable[[Moment], None]
"""Called once after every solver step; looks, and changes nothing."""
Correction = Callable[[Moment], State]
"""Called once after every solver step; returns the sample to start afresh from, or a whole state of a solver that keeps
more than that (`Solver.moved`), or None to leave it."""


@dataclass(frozen=True)
class Trajectory:
    """Recorded states: `x[k]`, shape (B, ...), at path time `times[k]`, the start included."""

    times: tuple[float, ...]
    x: Tensor

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class Run:
    """A journey over a grid, finished or stopped after `step` steps; everything needed to go on."""

    solver: Solver
    grid: Grid
    step: int
    state: State
    nfe: int
    trajectory: Trajectory | None = None

    @property
    def x(self) -> Tensor:
        """The state in model space, shape (B, ...)."""
        return self.solver.output(self.state)

    @property
    def finished(self) -> bool:
        """Whether the last time of the grid has been reached."""
        return self.step == self.grid.steps

    def save(self, path: str | Path) -> None:
        """Write the run (without its trajectory) to one safetensors file, atomically."""
        tensors, structure = pack(self.state)
        facts = {
            "solver": self.solver.spec(),
            "times": [t.hex() for t in self.grid],
            "step": self.step,
            "nfe": self.nfe,
            **self._more(),
        }
        files.write(path, "run", tensors, {"run": json.dumps(facts), "state": structure})

    def _more(self) -> dict[str, Any]:
        """What a kind of run knows beyond this, by the names of its fields."""
        return {}

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Read what `save` wrote. Raises `CorruptFileError` for a damaged, truncated or foreign file."""
        tensors, metadata = files.read(path, "run")
        try:
            facts = json.loads(metadata["run"])
            grid = Grid(tuple(float.fromhex(t) for t in facts["times"]))
            solver, step, nfe = registry.from_spec(facts["solver"]), int(facts["step"]), int(facts["nfe"])
            state = unpack(tensors, metadata["state"])
            more = {one.name: facts[one.name] for one in dataclasses.fields(cls) if one.name in facts.keys() - _TOLD}
        except MALFORMED as error:
            raise CorruptFileError(f"{path}: not a saved run ({error})") from error
        return cls(solver, grid, step, state, nfe, **more)


_TOLD = {"solver", "times", "step", "nfe"}


def answer(asking: Asking[Result], model: Callable[[Tensor, float], Prediction]) -> tuple[Result, int]:
    """Run a coroutine to its end with a model answering; the result, and the number of evaluations."""
    asked, reply = 0, None
    while True:
        try:
            query = asking.send(reply)  # type: ignore[arg-type]  # None starts it
        except StopIteration as stop:
            return stop.value, asked
        reply = model(query.x, query.t)
        asked += 1


def integrate(
    model: Denoiser,
    x: Tensor | None,
    grid: Grid,
    solver: Solver,
    *,
    state: State = None,
    noise: NoiseSource | None = None,
    corrections: Iterable[Correction] = (),
    callback: Callback | None = None,
    record: Record = None,
    progress: Progress = None,
    resume: Run | None = None,
    stop_after: int | None = None,
) -> Run:
    """Travel over a grid: a falling one samples, a rising one inverts.

    x: the start in model space, shape (B, ...), float32 or float64; or `state`, a solver's own state (with
        its second tensor, say); or `resume`, a run that was stopped.
    noise: the source for stochastic solvers, addressed by sample.
    corrections: each called after every step in turn; what it returns replaces the state. A solver with more
        than one state starts afresh from it.
    record: see `Record`. progress: a bar on standard error; by default where that is a terminal and the
        work takes more than two seconds.
    stop_after: stop after that many steps of this call; the result can be saved and resumed.

    Gradients flow only where the start requires them, whatever the model's parameters do.

    Raises `NotInvertibleError` for a rising grid and a solver without inverse, `NonFiniteError` with the step
    and the time where NaN or infinity appears, `InputError` for a start or a grid that does not fit.
    """
    grid.check_domain(model.schedule)
    if grid.rising:
        solver.check_invertible()
    first, nfe = 0, 0
    if resume is not None:
        if resume.grid != grid or resume.solver != solver:
            raise InputError("resume: the saved run has another grid or solver than the one asked for")
        first, state, nfe = resume.step, resume.state, resume.nfe
    elif state is None:
        if x is None:
            raise InputError("x: give a start, a solver state, or a run to resume")
        check_state("x", x)
        state = solver.start(x, model.schedule, grid.times[0])
    current = solver.output(state)
    if grid.rising:
        _check_growth(solver, model.schedule, grid, current.dtype)
    if stop_after is not None and stop_after < 0:
        raise InputError(f"stop_after: got {stop_after}, expected a number of steps, 0 or more")
    watch = _Watch(current)
    recorder = _Recorder(record, grid.steps, grid.times[first], current)
    last = grid.steps if stop_after is None else min(grid.steps, first + stop_after)
    travelled, corrections = first, tuple(corrections)
    looked_at = bool(corrections) or callback is not None  # else the state before a step is free to go

    def seen(before: State) -> Moment:
        where = nfe, model, grid, noise, solver, leg, before
        return Moment(travelled, grid.steps, leg.t1, current, *where, state)

    bar = progress_bar(progress, last - first)
    try:
        with from_start(current):
            for leg in legs(model.schedule, grid, noise, first, clean=model.answers_clean):
                if travelled == last:
                    break
                before = state if looked_at else None
                state, asked = answer(solver.travel(state, leg), model)
                nfe, travelled = nfe + asked * model.cost, travelled + 1
                current = solver.output(state)
                for correction in corrections:
                    changed = correction(seen(before))
                    if changed is not None:
                        fresh = isinstance(changed, Tensor)
                        state = solver.start(changed, model.schedule, leg.t1) if fresh else changed
                        current = solver.output(state)
                watch.see(current, travelled, leg)
                recorder.see(current, travelled, leg.t1)
                if callback is not None:
                    callback(seen(before))
                bar.update()
    finally:
        if bar is not progress:
            bar.close()
    watch.close(grid, first, solver)
    return Run(solver, grid, travelled, state, nfe, recorder.trajectory())


class Stepper:
    """A solver driven from outside: ask for `query`, run the model yourself, `feed` the prediction.

    stepper = Stepper(solver, schedule, grid, x)
    while stepper.query is not None:
        stepper.feed(model(stepper.query.x, stepper.query.t))
    stepper.x

    first: the step of the grid to begin with. clean: whether the model can be asked at sigma = 0
    (`Denoiser.answers_clean`).
    """

    def __init__(
        self,
        solver: Solver,
        schedule: Schedule,
        grid: Grid,
        x: Tensor,
        *,
        state: State = None,
        noise: NoiseSource | None = None,
        first: int = 0,
        clean: bool = False,
    ):
        grid.check_domain(schedule)
        if grid.rising:
            solver.check_invertible()
        self._solver = solver
        self.state = solver.start(x, schedule, grid.times[first]) if state is None else state
        self.nfe = 0
        self._journey = self._travel(legs(schedule, grid, noise, first, clean=clean))
        self.query: Query | None = next(self._journey, None)

    def _travel(self, journey: Iterable[Leg]) -> Generator[Query, Prediction, None]:
        for leg in journey:
            self.state = yield from self._solver.travel(self.state, leg)

    def feed(self, prediction: Prediction) -> None:
        """Answer the pending query; afterwards `query` is the next one, or None at the end.

        prediction: made at the query's state and time, with alpha and sigma of the stepper's schedule.
        """
        if self.query is None:
            raise InputError("stepper: the journey is over, there is no query to answer")
        self.nfe += 1
        try:
            self.query = self._journey.send(prediction)
        except StopIteration:
            self.query = None

    @property
    def x(self) -> Tensor:
        """The state after the last finished step, in model space, shape (B, ...)."""
        return self._solver.output(self.state)


def plan(
    solver: Solver,
    schedule: Schedule,
    grid: Grid,
    noise: NoiseSource | None = None,
    *,
    clean: bool = False,
    state: State = None,
) -> list[tuple[int, float]]:
    """The queries of a journey before it runs: for each, the step it belongs to and its path time.

    Found by running the solver's own code on a single number, or on a state to start from, which may save calls.
    """
    state = solver.start(torch.zeros(1, 1), schedule, grid.times[0]) if state is None else state
    queries: list[tuple[int, float]] = []

    def model(x: Tensor, t: float) -> Prediction:
        queries.append((step, t))
        return Prediction(x, torch.zeros_like(x), "v_prediction", schedule.alpha(t), schedule.sigma(t))

    for step, leg in enumerate(legs(schedule, grid, noise, clean=clean)):  # noqa: B007  # `model` reads the step
        state, _ = answer(solver.travel(state, leg), model)
    return queries


def _check_growth(solver: Solver, schedule: Schedule, grid: Grid, dtype: torch.dtype) -> None:
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
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{name}: got {x.dtype}, expected float32 or float64 (a solver's state needs the precision; "
            f"the network may compute in less, see Denoiser(dtype=...)); use x.float()"
        )
    if x.ndim < 2 or len(x) == 0:
        raise InputError(f"{name}: got shape {tuple(x.shape)}, expected (batch, ...) with at least one sample")
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise InputError(f"{name}: got samples of shape {tuple(x.shape[1:])}, but the model's are {tuple(shape)}")
    if not finite(x):
        rows = x.flatten(1).isfinite().all(1).logical_not().nonzero().flatten().tolist()
        raise InputError(f"{name}: NaN or infinity in sample(s) {', '.join(map(str, rows[:5]))}")


class _Watch:
    """Notices the step at which the state stops being finite."""

    def __init__(self, x: Tensor):
        self._now = x.device.type == "cpu"
        self._sums: list[Tensor] = []

    def see(self, x: Tensor, step: int, leg: Leg) -> None:
        if not self._now:
            self._sums.append(x.detach().sum())
        elif not finite(x):
            self._fail(step, leg.t0, leg.t1)

    def close(self, grid: Grid, first: int, solver: Solver) -> None:
        if self._sums:
            whole = torch.stack(self._sums).isfinite().tolist()
            if not all(whole):
                k = first + whole.index(False)
                self._fail(k + 1, grid.times[k], grid.times[k + 1])

    def _fail(self, step: int, t0: float, t1: float) -> None:
        raise NonFiniteError(
            f"the state became NaN or infinite at step {step}, between t = {t0:.6g} and t = {t1:.6g}; "
            f"more steps, less guidance or a solver with a larger stability interval may help"
        )


class _Recorder:
    """Keeps the states that were asked for."""

    def __init__(self, record: Record, steps: int, t: float, x: Tensor):
        if record not in (None, "all", "last") and not (isinstance(record, int) and record >= 1):
            raise InputError(f'record: got {record!r}, expected "all", "last", None or a whole number >= 1')
        self._every = 1 if record == "all" else record if isinstance(record, int) else 0
        self._steps = steps
        self._kept = [(t, x.detach().clone())] if self._every else []

    def see(self, x: Tensor, step: int, t: float) -> None:
        if self._every and (step % self._every == 0 or step == self._steps):
            self._kept.append((t, x.detach().clone()))

    def trajectory(self) -> Trajectory | None:
        if not self._every:
            return None
        return Trajectory(tuple(t for t, _ in self._kept), torch.stack([x for _, x in self._kept]))


def progress_bar(progress: Progress, steps: int, unit: str = "step") -> tqdm:
    """A progress bar: shown after two seconds on a terminal, at once if asked for, never if refused."""
    if isinstance(progress, tqdm):
        return progress
    if not (sys.stderr.isatty() if progress is None else progress):
        return _hidden()
    return tqdm(total=steps, delay=2.0 if progress is None else 0.0, unit=unit, leave=False)


@cache
def _hidden() -> tqdm:
    """The bar of work that shows none; a new one each time would take as long as a step."""
    return tqdm(disable=True)
