"""What a job is: plain data that any process can carry out any part of.

A job is about samples 0 to n - 1. They are computed in *blocks* of `block` samples, the last perhaps shorter, and a
block is always computed alone, by one call of a verb: its numbers do not depend on how blocks are dealt out to shards
and workers.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from .._integrate import Progress
from ..datasets.sources import fingerprint_of
from ..denoisers.base import Denoiser
from ..editing import EditMethod
from ..errors import InputError
from ..grids import Grid
from ..loading import apply_condition, fingerprint, load_model
from ..solvers import registry
from ..solvers.base import Solver
from ..tasks._options import Options, Resolved

BLOCK = 64
"""Samples that are computed together by default."""
TRIAL = 8
"""On how many of the samples "auto" chooses a solver."""

_COUNTS = ("n", "block", "threads")
_WHOLE = ("steps", "nfe", "seed", "index", "label")
_TEXTS = ("model", "prompt", "noise", "device", "reason", "smooth", "mask", "lora", "inversion", "input", "frames")
_NUMBERS = ("strength", "t_min", "t_max", "guidance", "source_guidance", "smoothing", "tolerance")


class Part(NamedTuple):
    """The results of some samples, as they are written to a shard."""

    kind: str
    """Of the file (see `files`)."""
    tensors: dict[str, Tensor]
    """One row per sample, but for conditions that all samples share."""
    metadata: dict[str, str]
    kept: Any = None
    """What the verb has found beside them and is not written; only of single blocks, and only in this process."""


class Block(NamedTuple):
    """What a verb is called with for some samples."""

    model: Any
    """Under the samples' condition, but for edits."""
    x: Tensor | None
    """The samples to start from, shape (stop - start, ...), if there are any."""
    given: Any
    """Their labels or captions, if they are known."""
    start: int
    stop: int
    progress: Progress = False


class Data(Protocol):
    """What a job works on; a `Source` is one."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> tuple[Tensor | None, Any]:
        """The samples [start, stop), if there are any, and what is known of them."""
        ...

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that stand for the data."""
        ...


@dataclass(frozen=True)
class Job(ABC):
    """The work of a run: one verb of the library, with the words that it takes; None leaves the verb's own default.

    Args:
        model: A name, as `loading.load_model` takes it.
        n: How many samples.
        call_inputs: Arguments of a pipeline's call by name, as `loading.load_model` takes them.
        solver: A solver's `spec()`, its name, or "auto", which is settled once, on the first of the samples.
        steps: As in `Options`, but no controller: how many samples are together would change what it chooses.
        nfe: As in `Options`.
        grid: A name, or the times as a list.
        strength: As in `Options`.
        t_min: As in `Options`.
        t_max: As in `Options`.
        block: Samples that are computed together, the `batch_size` of the verbs.
        double: Work in float64 instead of float32.
        device: Where, such as "cpu" or "cuda".
        threads: Of torch, for work on the CPU; more may round otherwise.
        reason: Why this solver, where "auto" chose it.

    Raises:
        InputError: A value is not accepted, or would change nothing.
    """

    model: str
    _: KW_ONLY
    n: int
    call_inputs: dict[str, Any] | None = None
    solver: str | dict[str, Any] | None = None
    steps: int | None = None
    nfe: int | None = None
    grid: str | list[float] | None = None
    strength: float | None = None
    t_min: float | None = None
    t_max: float | None = None
    block: int = BLOCK
    double: bool = False
    device: str = "cpu"
    threads: int = 1
    reason: str = ""
    task: ClassVar[str]

    def __post_init__(self):
        self._check_types()
        if isinstance(self.solver, Solver) or (isinstance(self.solver, str) and self.solver != "auto"):
            object.__setattr__(self, "solver", registry.get(self.solver).spec())
        if isinstance(self.grid, Grid | tuple):
            object.__setattr__(self, "grid", list(self.grid))
        self.resolved()

    def _check_types(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name}: got {value!r}, expected a whole number of at least 1")
        for names, kinds, words in (
            (_WHOLE, int, "a whole number"),
            (_NUMBERS, int | float, "a number"),
            (_TEXTS, str, "a text"),
            (("solver",), str | dict | Solver, "a name or a spec"),
            (("grid",), str | list | tuple | Grid, "a name or the times"),
            (("target", "source"), int | str, "a label or a prompt"),
            (("method",), str | dict | EditMethod, "a name or a spec"),
            (("call_inputs",), dict, "arguments by name"),
        ):
            for name in names:
                value = getattr(self, name, None)
                if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                    raise InputError(f"{name}: got {value!r}, expected {words}; a job is plain data")

        if isinstance(self.grid, list | tuple) and not all(isinstance(t, int | float) for t in self.grid):
            raise InputError(f"grid: got {self.grid!r}, expected times, which are numbers")

    def spec(self) -> dict[str, Any]:
        """All of it, JSON-able; see `jobs.from_spec`."""
        return {"task": self.task, **dataclasses.asdict(self)}

    def options(self, start: int = 0) -> dict[str, Any]:
        """The words of `Options` that are given, for the samples from `start` on."""
        found = {name: getattr(self, name) for name in Options.__annotations__ if getattr(self, name, None) is not None}
        if isinstance(self.solver, dict):
            found["solver"] = registry.from_spec(self.solver)
        if isinstance(self.grid, list):
            found["grid"] = Grid(tuple(self.grid), clean=len(self.grid) == 1)
        if hasattr(self, "index"):
            found["index"] = found.get("index", 0) + start
        return found

    def words(self, *names: str) -> dict[str, Any]:
        """The other words of the verb that are given."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def resolved(self) -> Resolved:
        """The options with the verb's defaults, checked."""
        return Resolved.of(self.options(), self.task, defaults=self.defaults())

    def defaults(self) -> Mapping[str, Any]:
        """Where the verb's defaults differ from those of all."""
        return {}

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the states."""
        return torch.float64 if self.double else torch.float32

    def prepare(self, model: Any = None) -> Prepared:
        """Load what the work needs, once per process, and settle the solver where it is "auto".

        Args:
            model: The job's, where it has been loaded already.

        Raises:
            InputError: The model, its condition, the grid and the data do not fit.
        """
        torch.set_num_threads(self.threads)
        model = load_model(self.model, self.device, self.call_inputs) if model is None else model
        source = self.data_of(model)
        if source is not None and len(source) < self.n:
            raise InputError(f"n: got {self.n}, but the input holds {len(source)} samples")
        prepared = Prepared(self, model, source)
        if self.is_open:
            job = self.settled(prepared.block(0, min(self.n, TRIAL)))
            prepared = dataclasses.replace(prepared, job=job)
        prepared.job.resolved().falling(model, clean=self.task == "sample")
        return prepared

    @property
    def is_open(self) -> bool:
        """Whether the solver is not settled yet."""
        return self.solver == "auto"

    def settled(self, first: Block) -> Job:
        """This job with the solver and the times that the verb chooses for the first of the samples."""
        found = self.call(first)
        times = sorted(found.grid.times, reverse=True)
        fixed = {"steps": None, "nfe": None, "strength": None, "t_min": None, "t_max": None}
        return dataclasses.replace(self, solver=found.solver.spec(), grid=times, reason=found.reason, **fixed)

    def data_of(self, model: Any) -> Data | None:
        """The samples to start from, if there are any."""
        return None

    def conditioned(self, model: Any, given: Any) -> Any:
        """The model under the condition of some samples, of which the label or the caption is given, if it is known."""
        return model

    def other_files(self) -> list[str]:
        """The other files that decide the numbers."""
        return []

    @abstractmethod
    def call(self, block: Block) -> Any:
        """What the verb returns for a block."""

    @abstractmethod
    def part(self, found: Any) -> Part:
        """What is kept of it."""

    def joined(self, parts: Sequence[Part]) -> Part:
        """The results of successive blocks as one."""
        if len(parts) == 1:
            return parts[0]
        tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        return Part(parts[0].kind, tensors, parts[0].metadata)

    def samples(self, part: Part) -> Tensor:
        """The samples or latents in a part, (m, ...). Raises `InputError` for a job that makes none."""
        return part.tensors["x"]

    @abstractmethod
    def figures(self, parts: Callable[[], Iterator[Part]]) -> dict[str, Any]:
        """Figures of the whole run; `parts`, called, goes through its parts in order."""


@dataclass(frozen=True)
class Prepared:
    """A job with its model and data in memory."""

    job: Job
    model: Any
    data: Data | None
    progress: Progress = False
    """Of the verbs, for work of a single block."""

    def block(self, start: int, stop: int) -> Block:
        """What the verb is called with for the samples [start, stop)."""
        job = self.job
        x, given = (None, getattr(job, "label", None)) if self.data is None else self.data.rows(start, stop)
        x = None if x is None else x.to(job.device, job.dtype)
        return Block(job.conditioned(self.model, given), x, given, start, stop, self.progress)

    def work(self, start: int, stop: int) -> Part:
        """The results of the samples [start, stop), which begin and end with a block."""
        job = self.job
        ends = range(start, stop, job.block)
        return job.joined([job.part(job.call(self.block(a, min(a + job.block, stop)))) for a in ends])

    @cached_property
    def fingerprint(self) -> str:
        """What stands for the model's numbers."""
        return fingerprint(self.model)

    def fingerprints(self) -> dict[str, str]:
        """What stands for the model's numbers, for the data, and for the other files."""
        found = {"model": self.fingerprint, "input": "" if self.data is None else self.data.fingerprint()}
        others = self.job.other_files()
        return {**found, "files": fingerprint_of(others)} if others else found


@dataclass(frozen=True, kw_only=True)
class Conditioned(Job):
    """A job under one condition.

    Args:
        label: The class of all samples; of held-out data, also which of them.
        prompt: The prompt, for models that take one.
    """

    label: int | None = None
    prompt: str | None = None

    def __post_init__(self):
        if self.label is not None and self.prompt is not None:
            raise InputError("label, prompt: give one or the other, not both")
        super().__post_init__()

    def conditioned(self, model: Any, given: Any) -> Denoiser:
        return apply_condition(
            model,
            given,
            self.prompt,
            **{name: getattr(self, name) for name in ("guidance", "source_guidance") if hasattr(self, name)},
        )


@dataclass(frozen=True, kw_only=True)
class Addressed(Job):
    """A job whose verb may draw noise.

    Args:
        seed: Of the noise.
        index: The index of the first sample, which addresses its noise.
        noise: The kind, as in `Options`.
    """

    seed: int | None = None
    index: int | None = None
    noise: str | None = None

    def __post_init__(self):
        super().__post_init__()
        resolved = self.resolved()
        if resolved.auto is None and resolved.method.properties.stochastic:
            return
        name = "auto" if resolved.auto is not None else resolved.method.name
        for word in ("noise",) if self.draws else ("noise", "seed", "index"):
            if getattr(self, word) is not None:
                raise InputError(f"{word}: would change nothing, as solver {name!r} draws no noise")

    @property
    def draws(self) -> bool:
        """Whether the verb draws noise of its own, whatever the solver."""
        return False
