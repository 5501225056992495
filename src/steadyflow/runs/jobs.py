"""What a run computes, as plain data: any process that is told a job can do any part of it.

A job is about samples 0 to n - 1. They are computed in *blocks* of `block` samples, the last perhaps shorter, and a
block is always computed alone: its numbers do not depend on how blocks are dealt out to shards and workers.
"""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import grids, solvers
from .._internal import files
from ..datasets.sources import Source, open_source
from ..denoisers.base import Denoiser
from ..diagnostics import diagnose
from ..errors import CorruptFileError, InputError, UnknownNameError
from ..loading import apply_condition, fingerprint, load_model
from ..solvers import registry
from ..tasks import Inversion, invert, sample


class Part(NamedTuple):
    """The results of some samples, as they are written to a shard."""

    kind: str
    """Of the file (see `files`)."""
    tensors: dict[str, Tensor]
    """One row a sample, but for conditions that all samples share."""
    metadata: dict[str, str]


@dataclass(frozen=True)
class Job(ABC):
    """The work of a run.

    model: a name, as `models.named` takes it. solver: a solver's `spec()`. block: samples that are computed together.
    device: where, such as "cpu" or "cuda". threads: of torch, for work on the CPU; more may round otherwise.

    Raises `InputError` for n or block below 1, and the errors of what it names.
    """

    model: str
    n: int
    solver: dict[str, Any]
    steps: int = 50
    grid: str = "quadratic"
    block: int = 64
    label: int | None = None
    prompt: str | None = None
    guidance: float = 1.0
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    task: ClassVar[str]

    def __post_init__(self):
        for name in ("n", "block", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name}: got {value!r}, expected a whole number of at least 1")
        registry.from_spec(self.solver)

    def spec(self) -> dict[str, Any]:
        """All of it, JSON-able; see `from_spec`."""
        return {"task": self.task, **dataclasses.asdict(self)}

    def prepare(self, model: Any = None) -> Prepared:
        """Load what the work needs, once a process. model: the job's, where it has been loaded already.

        Raises `InputError` where the model, its condition, the grid and the data do not fit.
        """
        torch.set_num_threads(self.threads)
        model = load_model(self.model, self.device) if model is None else model
        grids.make(self.grid, model.schedule, self.steps)
        source = self.source(model)
        if source is not None and len(source) < self.n:
            raise InputError(f"n: got {self.n}, but the input holds {len(source)} samples")
        return Prepared(self, model, source)

    def source(self, model: Any) -> Source | None:
        """The samples to start from, if there are any."""
        return None

    @abstractmethod
    def block_of(self, model: Denoiser, x: Any, start: int, stop: int) -> Part:
        """The results of a block; x: its samples, (stop - start, ...), if there are any."""

    def joined(self, parts: Sequence[Part]) -> Part:
        """The results of successive blocks as one."""
        tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        return Part(parts[0].kind, tensors, parts[0].metadata)

    @abstractmethod
    def figures(self, parts: Callable[[], Any]) -> dict[str, Any]:
        """Figures of the whole run; parts: called, goes through its parts in order."""


@dataclass(frozen=True)
class Prepared:
    """A job with its model and data in memory."""

    job: Job
    model: Any
    data: Source | None

    def work(self, start: int, stop: int) -> Part:
        """The results of the samples [start, stop), which begin and end with a block."""
        job, parts = self.job, []
        for begin in range(start, stop, job.block):
            end = min(begin + job.block, stop)
            x, given = (None, job.label) if self.data is None else self.data.rows(begin, end)
            model = apply_condition(self.model, given, job.guidance, job.prompt)
            x = None if x is None else x.to(job.device)
            parts.append(job.block_of(model, x, begin, end))
        return job.joined(parts)

    @cached_property
    def fingerprint(self) -> str:
        """What stands for the model's numbers."""
        return fingerprint(self.model)

    def fingerprints(self) -> dict[str, str]:
        """What stands for the model's numbers and for the data."""
        return {"model": self.fingerprint, "input": "" if self.data is None else self.data.fingerprint()}


@dataclass(frozen=True)
class Sampling(Job):
    """Draw samples; sample i depends on the seed and i alone."""

    noise: str = "brownian"
    task: ClassVar[str] = "sample"

    def block_of(self, model, x, start, stop):
        drawn = sample(
            model,
            n=stop - start,
            index=start,
            solver=registry.from_spec(self.solver),
            steps=self.steps,
            grid=self.grid,
            seed=self.seed,
            noise=self.noise,
            device=self.device,
            progress=False,
        )
        return Part("samples", {"x": drawn.x.cpu()}, {"nfe": str(drawn.nfe)})

    def figures(self, parts):
        return {"nfe": int(next(iter(parts())).metadata["nfe"]), **_moments(part.tensors["x"] for part in parts())}


@dataclass(frozen=True)
class OnData(Job):
    """Work on samples that are there, by a solver that can invert.

    input: a file or a folder (see `sources.opened`), by default held-out data of the model. resize: pictures. double:
    work in float64, as some exactly reversible solvers must.

    Raises `NotInvertibleError` for a solver without inverse.
    """

    input: str | None = None
    resize: bool = False
    double: bool = False

    def __post_init__(self):
        super().__post_init__()
        registry.from_spec(self.solver).check_invertible()

    def source(self, model):
        return open_source(model, self.input, self.n, self.resize, self.label)


@dataclass(frozen=True)
class Inverting(OnData):
    """Find the latents of samples; a shard is a saved inversion, which `steadyflow.Inversion.load` reads.

    strength, noise: as in `invert`.
    """

    strength: float = 1.0
    noise: str = "brownian"
    task: ClassVar[str] = "invert"

    def block_of(self, model, x, start, stop):
        inversion = invert(
            model,
            x.double() if self.double else x,
            index=start,
            solver=registry.from_spec(self.solver),
            steps=self.steps,
            grid=self.grid,
            strength=self.strength,
            seed=self.seed,
            noise=self.noise,
            progress=False,
        )
        return Part("inversion", *inversion.packed())

    def joined(self, parts):
        inversions = [Inversion.unpacked(part.tensors, part.metadata) for part in parts]
        return Part("inversion", *Inversion.join(inversions).packed())

    def figures(self, parts):
        first = next(iter(parts()))
        nfe = Inversion.unpacked(first.tensors, first.metadata).nfe
        latents = (Inversion.unpacked(part.tensors, part.metadata).latent for part in parts())
        return {"nfe": nfe, **{f"latent {name}": value for name, value in _moments(latents).items()}}


@dataclass(frozen=True)
class Diagnosing(OnData):
    """Take the error of round trips apart, block by block; a cause and a recommendation a block.

    back: guidance of the way back, if it differs.
    """

    back: float | None = None
    task: ClassVar[str] = "diagnose"

    def block_of(self, model, x, start, stop):
        found = diagnose(
            model,
            x.double() if self.double else x.float(),
            solver=registry.from_spec(self.solver),
            steps=self.steps,
            grid=self.grid,
            guidance=self.back,
        )
        columns = {"measured": found.measured, "total": found.total, "linear": found.linear}
        columns |= {f"terms.{name}": term for name, term in found.terms.items()}
        columns |= {"coefficient": found.budget.coefficient, "remainder": found.budget.remainder}
        advice = {"cause": found.cause, "call": found.recommendation.call}
        tensors = {name: value.detach().cpu().contiguous() for name, value in columns.items()}
        return Part("diagnosis", tensors, {"advice": json.dumps([advice])})

    def joined(self, parts):
        advice = [entry for part in parts for entry in json.loads(part.metadata["advice"])]
        return super().joined(parts)._replace(metadata={"advice": json.dumps(advice)})

    def figures(self, parts):
        whole = self.joined(list(parts()))
        causes: dict[str, int] = {}
        for entry in json.loads(whole.metadata["advice"]):
            causes[entry["cause"]] = causes.get(entry["cause"], 0) + 1
        terms = {name: v.mean().item() for name, v in whole.tensors.items() if name.startswith("terms.")}
        return {
            "error median": whole.tensors["measured"].median().item(),
            "error max": whole.tensors["measured"].max().item(),
            "budget mean": whole.tensors["total"].mean().item(),
            **{name.replace("terms.", "  "): value for name, value in terms.items()},
            "causes, by blocks": ", ".join(f"{name} {count}" for name, count in sorted(causes.items())),
        }


JOBS: dict[str, type[Job]] = {job.task: job for job in (Sampling, Inverting, Diagnosing)}


def from_spec(spec: dict[str, Any]) -> Job:
    """The job that `Job.spec` described. Raises `CorruptFileError` where it does not describe one."""
    options = dict(spec)
    task = options.pop("task", None)
    if task not in JOBS:
        raise UnknownNameError("task", task, JOBS)
    try:
        return JOBS[task](**options)
    except TypeError as error:
        raise CorruptFileError(f"job: {error}") from error


def spec_of(solver: str | solvers.Solver) -> dict[str, Any]:
    """What a job keeps of a solver given by name or as an object."""
    return registry.get(solver).spec()


def digest(part: Part) -> str:
    """Sixteen hexadecimal digits that stand for all the numbers and texts of a part."""
    return files.digest((part.kind, sorted(part.metadata.items())), part.tensors)


def _moments(batches: Any) -> dict[str, float]:
    """Mean, standard deviation and largest |x| over batches that need not be in memory together."""
    count, largest = 0, 0.0
    sums: list[float] = []
    squares: list[float] = []
    for x in batches:
        values = x.double().flatten(1)
        count, largest = count + x.numel(), max(largest, values.abs().max().item())
        sums += values.sum(1).tolist()  # a sample each, so that their exact sum is the same however they are cut up
        squares += values.square().sum(1).tolist()
    mean = math.fsum(sums) / count
    return {"mean": mean, "std": max(math.fsum(squares) / count - mean**2, 0.0) ** 0.5, "max |x|": largest}
