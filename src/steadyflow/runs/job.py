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
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .._integrate import Progress
from ..datasets.contents import Piece
from ..datasets.sources import Read
from ..denoisers.base import Denoiser
from ..editing import EditMethod
from ..errors import InputError
from ..grids import Grid
from ..loading import apply_condition, load_model
from ..solvers import registry
from ..solvers.base import Solver
from ..tasks._options import Options, Resolved

if TYPE_CHECKING:
    from .prepared import Prepared

BLOCK = 64
"""Samples that are computed together by default."""
TRIAL = 8
"""On how many of the samples "auto" chooses a solver."""

_COUNTS = ("n", "block", "threads")
_MOST = {"n": 10**12 - 1, "block": 10**12 - 1, "threads": 2**16}
"""Shards are named by numbers of twelve digits."""
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


@dataclass(frozen=True)
class Aside:
    """Samples that could not be computed and were set aside, so that the rest could be done."""

    start: int
    stop: int
    name: str
    """Of the input, where there is one."""
    cause: str
    kind: str = "input"
    """"input", which could not be read; "error", which was raised while it was computed; or "death", which befell the
    processes that computed it."""


class Stretch(NamedTuple):
    """The results of successive samples."""

    start: int
    stop: int
    part: Part
    together: int = 0
    """How many samples were computed together, where those were fewer than a block for want of memory."""
    digests: Mapping[int, str] = {}
    """The hashes of what was read, by the index of the first sample of a piece."""


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

    def read(self, start: int, stop: int, pieces: Sequence[Piece] = ()) -> Read:
        """The samples [start, stop), as far as they can be read, and what is known of them."""
        ...

    def pieces(self, block: int) -> Iterator[Piece] | None:
        """What they are read from; None where nothing is read from files that have to be watched."""
        ...

    def fingerprint(self) -> str:
        """What stands for data in memory."""
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
        for name in (*_COUNTS, *_WHOLE, *_TEXTS, "target", "source"):
            value = getattr(self, name, None)
            plain = _plain(value)
            if plain is not value:
                object.__setattr__(self, name, plain)
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name}: got {value!r}, expected a whole number of at least 1")
            if value > _MOST[name]:
                raise InputError(f"{name}: got {value}, expected at most {_MOST[name]}")
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
        return self.opened(model).settled()

    def opened(self, model: Any = None, *, listed: bool = False) -> Prepared:
        """Load what the work needs, once per process.

        Args:
            model: The job's, where it has been loaded already.
            listed: Whether there is a list of the input, so that it need not be looked through.

        Raises:
            InputError: The model and the data do not fit.
        """
        from .prepared import Prepared

        torch.set_num_threads(self.threads)
        model = load_model(self.model, self.device, self.call_inputs) if model is None else model
        source = self.data_of(model)
        if source is not None and not listed and len(source) < self.n:
            raise InputError(f"n: got {self.n}, but the input holds {len(source)} samples")
        return Prepared(self, model, source)

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
        return pictures_in(self.call_inputs)

    @property
    def alone(self) -> bool:
        """Whether what is found of a sample does not depend on those that are computed with it."""
        return True

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

    def cut(self, part: Part, start: int, stop: int) -> Part:
        """The results of the rows [start, stop) of a part."""
        return part._replace(tensors={name: value[start:stop] for name, value in part.tensors.items()})

    def samples(self, part: Part) -> Tensor:
        """The samples or latents in a part, (m, ...). Raises `InputError` for a job that makes none."""
        return part.tensors["x"]

    @abstractmethod
    def figures(self, parts: Callable[[], Iterator[Part]]) -> dict[str, Any]:
        """Figures of the whole run; `parts`, called, goes through its parts in order."""


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


def _plain(value: Any) -> Any:
    """A value as JSON has it: NumPy's numbers, paths and devices become numbers and texts."""
    if isinstance(value, np.integer):
        return int(value)
    return str(value) if isinstance(value, PurePath | torch.device) else value


def pictures_in(call: Mapping[str, Any] | None) -> list[str]:
    """The files among the arguments of a pipeline's call.

    Args:
        call: The arguments, as `loading.load_model` takes them.
    """
    found: list[str] = []
    for value in (call or {}).values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and Path(one).is_file():
                found.append(one)
    return found
