"""The jobs, one per verb: `Sampling`, `Inverting`, `Reconstructing`, `Editing`, `Diagnosing`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .._integrate import Solution
from .._internal import files, strict_json
from ..datasets.sources import open_source
from ..diagnostics import Diagnosis, diagnose
from ..errors import MALFORMED, CorruptFileError, InputError, UnknownNameError
from ..grids import Grid
from ..solvers import registry
from ..solvers.base import Solver
from ..tasks import Inversion, Reconstruction, choose_solver, invert, reconstruct, sample
from ..tasks.recommended import REASON, with_recommended
from .edits import Editing, rows_of
from .job import Addressed, Block, Conditioned, Job, Part
from .parts import facts_of, made, moments

__all__ = [
    "JOBS",
    "Diagnosing",
    "Editing",
    "Inverting",
    "Job",
    "Part",
    "Reconstructing",
    "Sampling",
    "digest",
    "from_spec",
    "spec_of",
]

Parts = Callable[[], Iterator[Part]]


@dataclass(frozen=True, kw_only=True)
class OnData(Conditioned):
    """Work on samples that are there, by a solver that can invert.

    Args:
        input: A file or a folder (see `sources.open_source`), by default held-out data of the model.
        resize: Scale pictures to the model's size, and resample sounds to its rate.
        frames: Which frames of videos to take, such as "16:48" (see `sources.open_source`).

    Raises:
        NotInvertibleError: The solver has no inverse.
    """

    input: str | None = None
    resize: bool = False
    frames: str | None = None

    def __post_init__(self):
        super().__post_init__()
        resolved = self.resolved()
        if resolved.auto is None:
            resolved.method.check_invertible()

    def data_of(self, model):
        return open_source(model, self.input, self.n, self.resize, self.label, self.frames)


@dataclass(frozen=True)
class Sampling(Addressed, Conditioned):
    """Draw samples; sample i depends on the seed and i alone.

    Args:
        guidance: The scale of classifier-free guidance.
    """

    guidance: float | None = None
    task: ClassVar[str] = "sample"

    @property
    def draws(self):
        return True

    def defaults(self):
        return {"solver": "auto"}

    @property
    def is_open(self):
        return self.solver in (None, "auto")

    def settled(self, first: Block) -> Job:
        chosen = with_recommended(self.resolved(), first.model, clean=True)
        grid = chosen.grid if self.grid is None and isinstance(chosen.grid, str) else self.grid
        reason = "" if self.solver is None else REASON.format(chosen.method.name)
        return dataclasses.replace(self, solver=chosen.method.spec(), grid=grid, reason=reason)

    def call(self, block: Block) -> Solution:
        how = {**self.options(block.start), "device": self.device, "dtype": self.dtype, "progress": block.progress}
        return sample(block.model, n=block.stop - block.start, **self.words("guidance"), **how)

    def part(self, found: Solution) -> Part:
        return Part("samples", {"x": found.x.cpu()}, made(found))

    def figures(self, parts: Parts) -> dict[str, Any]:
        facts = facts_of(next(parts()))
        return {**facts, **moments(part.tensors["x"] for part in parts())}


@dataclass(frozen=True)
class Inverting(Addressed, OnData):
    """Find the latents of samples; a shard is a saved inversion, which `steadyflow.Inversion.load` reads.

    Args:
        source_guidance: The scale of classifier-free guidance on the way up.
    """

    source_guidance: float | None = None
    task: ClassVar[str] = "invert"

    def call(self, block: Block) -> Inversion:
        assert block.x is not None
        how = {**self.options(block.start), "progress": block.progress}
        return invert(block.model, block.x, **self.words("source_guidance"), **how)

    def part(self, found: Inversion) -> Part:
        return Part("inversion", *found.packed())

    def joined(self, parts: Sequence[Part]) -> Part:
        if len(parts) == 1:
            return parts[0]
        whole = Inversion.concatenate([Inversion.unpacked(part.tensors, part.metadata) for part in parts])
        return self.part(whole)

    def cut(self, part: Part, start: int, stop: int) -> Part:
        whole = Inversion.unpacked(part.tensors, part.metadata)
        n, condition = len(whole.latent), whole.condition
        if isinstance(condition, Tensor | tuple | list) and not (isinstance(condition, Tensor) and not condition.ndim):
            condition = condition[start:stop] if len(condition) == n else condition
        return self.part(dataclasses.replace(rows_of(whole, start, stop), condition=condition))

    def samples(self, part: Part) -> Tensor:
        return Inversion.unpacked(part.tensors, part.metadata).latent

    def figures(self, parts: Parts) -> dict[str, Any]:
        first = next(parts())
        found = Inversion.unpacked(first.tensors, first.metadata)
        latents = moments(self.samples(part) for part in parts())
        return {
            "solver": found.solver.name,
            "steps": found.steps,
            "nfe": found.nfe,
            **{f"latent {name}": value for name, value in latents.items()},
        }


@dataclass(frozen=True)
class Reconstructing(Addressed, OnData):
    """Invert samples and generate them again; what came back, and its error.

    Args:
        guidance: The scale of classifier-free guidance on the way back.
        source_guidance: That of the way up.
    """

    guidance: float | None = None
    source_guidance: float | None = None
    task: ClassVar[str] = "reconstruct"

    def call(self, block: Block) -> Reconstruction:
        assert block.x is not None
        how = {**self.options(block.start), "progress": block.progress}
        return reconstruct(block.model, block.x, **self.words("guidance", "source_guidance"), **how)

    def part(self, found: Reconstruction) -> Part:
        inversion = found.inversion
        latent = inversion.latent.double().flatten(1).cpu()
        tensors = {"x": found.x.cpu(), "error": found.error.cpu()}
        tensors |= {"latent.sum": latent.sum(1), "latent.squares": latent.square().sum(1)}
        metadata = made(found, nfe=inversion.nfe)
        return Part("reconstructions", tensors, metadata, dataclasses.replace(inversion, trajectory=None))

    def figures(self, parts: Parts) -> dict[str, Any]:
        first = next(parts())
        facts = facts_of(first)
        errors, sums, squares = (_column(parts, name) for name in ("error", "latent.sum", "latent.squares"))
        count = len(errors) * first.tensors["x"][0].numel()
        mean = math.fsum(sums) / count
        return {
            "solver": facts["solver"],
            "steps each way": facts["steps"],
            "nfe each way": facts["nfe"],
            "error median": float(np.quantile(errors, 0.5)),
            "error p95": float(np.quantile(errors, 0.95)),
            "error max": float(errors.max()),
            "latent std": max(math.fsum(squares) / count - mean**2, 0.0) ** 0.5,
            "max |x|": max(part.tensors["x"].abs().max().item() for part in parts()),
        }


@dataclass(frozen=True)
class Diagnosing(OnData):
    """Take the error of round trips or of edits apart, block by block; a cause and a recommendation per block.

    Args:
        target: A label or a prompt to edit to; none for round trips.
        guidance: The scale of classifier-free guidance on the way back.
        source_guidance: That of the way up.
        tolerance: Of the reference solves, as in `diagnose`.
        verify: Carry every recommendation out.
    """

    target: int | str | None = None
    guidance: float | None = None
    source_guidance: float | None = None
    tolerance: float | None = None
    verify: bool = False
    task: ClassVar[str] = "diagnose"

    @property
    def alone(self):
        return False  # a block has one diagnosis

    def call(self, block: Block) -> Diagnosis:
        assert block.x is not None
        words = self.words("target", "guidance", "source_guidance", "tolerance")
        how = {**self.options(), "verify": self.verify, "progress": block.progress}
        return diagnose(block.model, block.x, **words, **how)

    def settled(self, first: Block) -> Job:
        assert first.x is not None
        up = first.model if self.source_guidance is None else first.model.with_guidance(self.source_guidance)
        back = None if self.guidance is None else up.with_guidance(self.guidance)
        if self.target is not None:
            back = first.model.with_condition(self.target, guidance=self.guidance)
        options = {name: value for name, value in self.options().items() if name != "solver"}
        if "steps" in options:
            raise InputError("steps: solver 'auto' compares solvers at equal evaluations; give nfe instead")
        choice = choose_solver(up, first.x, target=back, **options)
        changes: dict[str, Any] = {"solver": choice.solver.spec(), "reason": choice.reason}
        if not isinstance(choice.grid, Grid):
            changes |= {"grid": choice.grid, "steps": choice.steps, "nfe": None}
        return dataclasses.replace(self, **changes)

    def part(self, found: Diagnosis) -> Part:
        columns = {"measured": found.measured, "total": found.budget.total, "linear": found.linear}
        columns |= {f"terms.{name}": term for name, term in found.terms.items()}
        columns |= {"coefficient": found.budget.coefficient, "remainder": found.budget.remainder}
        if found.budget.change is not None:
            columns["change"] = found.budget.change
        if found.verified is not None:
            columns["verified"] = found.verified.error
        tensors = {name: value.detach().cpu().contiguous() for name, value in columns.items()}
        advice = {"cause": found.cause, "call": found.recommendation.call}
        facts = {"solver": found.setting.solver.name, "steps": found.setting.steps}
        return Part(
            "diagnosis", tensors, {"made": strict_json.dumps(facts), "advice": strict_json.dumps([advice])}, found
        )

    def joined(self, parts: Sequence[Part]) -> Part:
        advice = [entry for part in parts for entry in strict_json.loads(part.metadata["advice"])]
        whole = super().joined(parts)
        return whole._replace(metadata={**whole.metadata, "advice": strict_json.dumps(advice)})

    def samples(self, part: Part) -> Tensor:
        raise InputError("export: a run of 'diagnose' has no samples; see `steadyflow runs show`")

    def figures(self, parts: Parts) -> dict[str, Any]:
        whole = self.joined(list(parts()))
        advice = strict_json.loads(whole.metadata["advice"])
        terms = {name: v.mean().item() for name, v in whole.tensors.items() if name.startswith("terms.")}
        figures = {
            **facts_of(whole),
            "error median": whole.tensors["measured"].median().item(),
            "error max": whole.tensors["measured"].max().item(),
            "budget mean": whole.tensors["total"].mean().item(),
            **{name.replace("terms.", "  "): value for name, value in terms.items()},
            "causes, by blocks": _counted(entry["cause"] for entry in advice),
            "recommended, by blocks": _counted(entry["call"] for entry in advice),
        }
        if "change" in whole.tensors:
            figures["change of the exact edit, median"] = whole.tensors["change"].median().item()
        if "verified" in whole.tensors:
            figures["verified error median"] = whole.tensors["verified"].median().item()
        return figures


JOBS: dict[str, type[Job]] = {job.task: job for job in (Sampling, Inverting, Reconstructing, Editing, Diagnosing)}


def from_spec(spec: dict[str, Any]) -> Job:
    """The job that `Job.spec` described.

    Args:
        spec: The description, also as JSON gives it back.

    Raises:
        UnknownNameError: There is no such task.
        InputError: A value is not accepted.
        CorruptFileError: It does not describe a job.
    """
    options = dict(spec)
    task = options.pop("task", None)
    if task not in JOBS:
        raise UnknownNameError("task", task, JOBS)
    try:
        return JOBS[task](**options)
    except InputError:
        raise
    except MALFORMED as error:
        raise CorruptFileError(f"job: {error}") from error


def spec_of(solver: str | Solver[Any]) -> dict[str, Any]:
    """What a job keeps of a solver given by name or as an object."""
    return registry.get(solver).spec()


def digest(part: Part) -> str:
    """Sixteen hexadecimal digits that stand for all the numbers and texts of a part."""
    return files.digest((part.kind, sorted(part.metadata.items())), part.tensors)


def _column(parts: Parts, name: str) -> np.ndarray:
    """One number per sample, of all parts."""
    return torch.cat([part.tensors[name] for part in parts()]).double().numpy()


def _counted(words: Iterable[str]) -> str:
    """Each word once, with how often it occurred."""
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{word} {count}" for word, count in sorted(counts.items()))
