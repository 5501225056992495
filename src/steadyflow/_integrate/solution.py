"""What a run returns: the solver's state, and everything needed to go on from it."""

from __future__ import annotations

import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .._internal import files, strict_json
from ..errors import MALFORMED, CorruptFileError
from ..grids import Grid
from ..noise import SOURCES
from ..solvers import registry
from ..solvers.base import Solver
from ..solvers.saved import check_saved, check_tensors
from ..solvers.state import deserialize_state, serialize_state


@dataclass(frozen=True)
class Trajectory:
    """Recorded states: `x[k]`, shape (B, ...), at path time `times[k]`, the start included."""

    times: tuple[float, ...]
    x: Tensor

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The result of a run over a grid, finished or stopped after `step` steps.

    Every verb returns one; what `invert`, `reconstruct` and `edit` return adds to it.
    """

    state: Any
    """The solver's whole state: a tensor, or a named tuple of tensors and numbers."""
    solver: Solver[Any]
    grid: Grid
    """The times of the run, in its own order."""
    step: int
    """The number of steps made."""
    nfe: int
    """Model evaluations per sample. A guided evaluation counts once and costs the network two."""
    seed: int | None = None
    """Of the noise that was drawn; None where none was."""
    index: int = 0
    """The index of the batch's first sample, which addresses its noise."""
    noise: str | None = None
    """The kind of noise that a stochastic solver was given: "brownian" or "white"."""
    trajectory: Trajectory | None = None
    """The recorded states, if asked for; not saved."""
    rejected: int = 0
    """Steps of an adaptive run that were tried and taken back; their evaluations count in `nfe`."""
    reason: str = ""
    """Why this solver, where `sf.Auto` chose it."""

    @property
    def x(self) -> Tensor:
        """The samples in model space, shape (B, ...)."""
        return self.solver.output(self.state)

    @property
    def steps(self) -> int:
        """The number of steps of the whole grid."""
        return self.grid.steps

    @property
    def finished(self) -> bool:
        """Whether the end of the grid has been reached."""
        return self.step == self.grid.steps

    def save(self, path: str | Path) -> None:
        """Write it (without its trajectory) to one safetensors file, atomically."""
        tensors, structure = serialize_state(self.state)
        metadata = {"solution": strict_json.dumps(self._facts()), "state": structure}
        files.write(path, "solution", tensors, metadata)

    def _facts(self) -> dict[str, Any]:
        """Everything but tensors, JSON-able; `_fields` is its inverse."""
        return {
            "solver": self.solver.spec(),
            "times": [t.hex() for t in self.grid],
            "clean": self.grid.clean,
            "step": self.step,
            "nfe": self.nfe,
            "seed": self.seed,
            "index": self.index,
            "noise": self.noise,
            "rejected": self.rejected,
            "reason": self.reason,
        }

    @staticmethod
    def _fields(facts: dict[str, Any]) -> dict[str, Any]:
        """The fields that `_facts` described, checked."""
        grid = Grid(tuple(float.fromhex(t) for t in facts["times"]), bool(facts["clean"]))
        most = {"step": grid.steps, "index": 2**63 - 1}
        numbers = {name: facts[name] for name in ("step", "nfe", "index", "rejected")}
        for name, value in numbers.items():
            if type(value) is not int or not 0 <= value <= most.get(name, value):
                raise ValueError(f"{name}: got {value!r}, expected a whole number from 0 to {most.get(name, 'any')}")
        if type(facts["seed"]) not in (int, types.NoneType) or facts["noise"] not in (None, *SOURCES):
            raise ValueError(f"seed and noise: got {facts['seed']!r} and {facts['noise']!r}")
        return {
            "solver": registry.from_spec(facts["solver"]),
            "grid": grid,
            **numbers,
            "seed": facts["seed"],
            "noise": facts["noise"],
            "reason": str(facts["reason"]),
        }

    @classmethod
    def load(cls, path: str | Path) -> Solution:
        """Read what `save` wrote.

        Raises:
            CorruptFileError: The file is damaged, truncated or foreign.
        """
        tensors, metadata = files.read(path, "solution")
        try:
            fields = cls._fields(strict_json.loads(metadata["solution"]))
            state = deserialize_state(tensors, metadata["state"])
            check_saved(fields["solver"], state)
            check_tensors(tensors, state)
            return Solution(state=state, **fields)
        except MALFORMED as error:
            raise CorruptFileError(f"{path}: not a saved solution ({error})") from error
