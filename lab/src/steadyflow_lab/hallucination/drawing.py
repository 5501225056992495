"""Draw samples by a method, in batches that an engine may spread: batch k of a run is the same wherever it is drawn.

A run ends with the model's clean prediction at t = 0, which counts as its last evaluation; that is what is classified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from steadyflow._integrate import StepInfo
from steadyflow.corrections import Escape, EscapeRecord
from steadyflow.denoisers import Denoiser
from steadyflow.errors import InputError
from steadyflow.grids import Grid
from steadyflow.runs.engines import Engine, InProcess
from steadyflow.tasks import sample

from ..theory.interpolation import INVALID, Classes, classify
from .setting import Method, Problem, quadratic

BATCH = 10_000
HERE = InProcess()


class Watch(Protocol):
    """What looks at one batch on its way."""

    def __call__(self, info: StepInfo) -> None: ...

    @property
    def found(self) -> Tensor:
        """What it saw of each sample, (b, ...)."""
        ...


@dataclass(frozen=True)
class Request:
    """n samples by a method; or from given states, `tau` steps of the 50-step grid before the end."""

    method: Method
    n: int
    seed: int = 0
    start: Tensor | None = None
    """States, (n, ...)."""
    tau: int | None = None
    watch: Callable[[], Watch] | None = None
    """What makes an object that looks at a batch."""
    batch: int = BATCH

    def __post_init__(self):
        if self.n < 1 or self.batch < 1 or (self.start is not None and len(self.start) != self.n):
            raise InputError(f"request: {self.n} samples in batches of {self.batch} do not fit the start given")

    def grid(self, top: int) -> Grid:
        """Give the times of the run, for a model of `top` + 1 timesteps."""
        grid = self.method.grid(top)
        if self.tau is None:
            return grid
        first = quadratic(50, top).times[-self.tau - 1]
        return Grid(tuple(t for t in grid if t <= first))


class Drawn(NamedTuple):
    """Samples, and what they cost."""

    x: Tensor
    """Clean predictions, (n, ...)."""
    evaluations: float
    """Per sample, with the last clean prediction and all of the correction's evaluations."""
    record: EscapeRecord | None
    """What `Escape` did, where that is the method's correction."""
    found: Tensor | None
    """What the watch saw, (n, ...)."""


@dataclass(frozen=True)
class Outcome:
    """Samples of a mixture, what they are, and what they cost."""

    label: str
    x: Tensor
    """Clean predictions, (n, d)."""
    classes: Classes
    evaluations: float
    found: Tensor | None = None


def run(problem: Problem, requests: Sequence[Request], engine: Engine = HERE) -> list[Outcome]:
    """Give the outcome of each request, in their order."""
    drawn = draw(problem.model, requests, engine)
    return [
        Outcome(request.method.label, d.x, classify(d.x, problem.mixture), d.evaluations, d.found)
        for request, d in zip(requests, drawn, strict=True)
    ]


def draw(model: Denoiser, requests: Sequence[Request], engine: Engine = HERE) -> list[Drawn]:
    """Draw what each request asks for; the batches of all of them go to the engine together."""
    units = [
        (k, first, min(first + request.batch, request.n))
        for k, request in enumerate(requests)
        for first in range(0, request.n, request.batch)
    ]
    parts: list[list[Drawn]] = [[] for _ in requests]
    for (k, _, _), part in zip(units, engine.map(partial(_batch, model, tuple(requests)), units), strict=True):
        parts[k].append(part)
    return [_joined(batches) for batches in parts]


def _batch(model: Denoiser, requests: tuple[Request, ...], unit: tuple[int, int, int]) -> Drawn:
    """Draw the samples [first, last) of a request."""
    k, first, last = unit
    request = requests[k]
    method, grid = request.method, request.grid(round(model.schedule.domain[1]))
    correction = None if method.correct is None else method.correct()
    watch = None if request.watch is None else request.watch()
    states = sample(
        model,
        n=last - first if request.start is None else None,
        x=None if request.start is None else request.start[first:last],
        solver=method.solver,
        grid=grid,
        end="path",
        seed=request.seed,
        index=first,
        noise="white",
        corrections=() if correction is None else (correction,),
        callback=watch,
        progress=False,
    )
    record = correction.record if isinstance(correction, Escape) else None
    extra = method.back if record is None else record.cost
    found = None if watch is None else watch.found
    return Drawn(model(states.x, grid.times[-1]).x0, states.nfe + 1 + extra, record, found)


def _joined(batches: list[Drawn]) -> Drawn:
    """Join the batches of a run."""
    n = sum(len(part.x) for part in batches)
    records = [part.record for part in batches if part.record is not None]
    found = [part.found for part in batches if part.found is not None]
    return Drawn(
        torch.cat([part.x for part in batches]),
        sum(part.evaluations * len(part.x) for part in batches) / n,
        sum(records[1:], records[0]) if records else None,
        torch.cat(found) if found else None,
    )


def invalid(outcome: Outcome) -> str:
    """Write the share of samples that are left out of the rate."""
    return f"{(outcome.classes.kind == INVALID).double().mean():.3%}"
