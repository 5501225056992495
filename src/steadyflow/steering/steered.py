"""What `steer` returns: the best run of every sample, what went into it, and all that is needed to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .._integrate import Solution
from .._internal import files, strict_json
from ..errors import MALFORMED, CorruptFileError
from ..solvers.saved import check_rows, check_saved, check_tensors
from ..solvers.state import deserialize_state, serialize_state
from .controls import OVER, Value

_KIND = "steered"


@dataclass(frozen=True, kw_only=True)
class Steered(Solution):
    """The result of `steer`; `x` holds each sample of its best round.

    `nfe` counts all model evaluations per sample, of every round, and those that an adjoint makes again.
    """

    over: str
    """What was optimised: "noise", "condition", "null" or "guidance"."""
    start: Value
    """What was found, of each sample's best round: the latents, the embedding, or the scales, with B rows. For a
    condition of several entries, a mapping of them."""
    rewards: Tensor
    """Of every round, shape (rounds + 1, B), float64, on the CPU; row 0 is the plain sample."""
    objectives: Tensor
    """The same with what the guard adds, by which the best round is chosen."""
    distances: dict[str, Tensor]
    """By name, each of shape (rounds + 1, B): "norm" and "kl" of the noise (see `steering.distances`), and "moved", the
    root mean square of what was optimised less its start, in its own unit."""
    best: Tensor
    """The round that was kept, shape (B,)."""
    about: dict[str, Any] = field(repr=False)
    """What identifies the work, which a call that goes on must agree with."""
    work: dict[str, Any] = field(repr=False)
    """Where the optimiser stands."""

    @property
    def rounds(self) -> int:
        """The number of steps of the optimiser that were made."""
        return len(self.rewards) - 1

    @property
    def reward(self) -> Tensor:
        """The reward of each sample of `x`, shape (B,), float64."""
        return self.rewards.gather(0, self.best[None])[0]

    def save(self, path: str | Path) -> None:
        """Write it (without its trajectory) to one safetensors file, atomically; `steer(resume=...)` goes on from it.

        Raises:
            StorageError: The file cannot be written.
        """
        parts = {"state": self.state, "start": self.start, "work": self.work, "distances": self.distances}
        histories = {"rewards": self.rewards, "objectives": self.objectives, "best": self.best}
        tensors, texts = dict[str, Tensor](histories), dict[str, str]()
        for name, part in parts.items():
            own, texts[name] = serialize_state(part, name)
            tensors |= own
        facts = {**self._facts(), "over": self.over}
        metadata = {"steered": strict_json.dumps(facts), "about": strict_json.dumps(self.about), **texts}
        files.write(path, _KIND, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Steered:
        """Read what `save` wrote.

        Raises:
            CorruptFileError: The file is damaged, truncated or foreign.
        """
        tensors, metadata = files.read(path, _KIND)
        try:
            facts = strict_json.loads(metadata["steered"])
            parts = {
                name: deserialize_state(tensors, metadata[name]) for name in ("state", "start", "work", "distances")
            }
            histories = {name: tensors[name] for name in ("rewards", "objectives", "best")}
            fields = cls._fields(facts)
            rows = len(check_saved(fields["solver"], parts["state"]))
            check_rows(parts["start"], rows, "start")
            check_tensors(tensors, *parts.values(), histories)
            about = cast("dict[str, Any]", strict_json.loads(metadata["about"]))
            over = str(facts["over"])
            _check(over, about, histories, parts, rows)
            return Steered(
                state=parts["state"],
                start=parts["start"],
                work=parts["work"],
                distances=parts["distances"],
                over=over,
                about=about,
                **histories,
                **fields,
            )
        except MALFORMED as error:
            raise CorruptFileError(f"{path}: not a saved steering ({error})") from error


def _check(over: str, about: object, histories: Mapping[str, Tensor], parts: Mapping[str, Any], rows: int) -> None:
    """Raise `ValueError` where the parts of a file do not fit each other."""
    rewards, objectives, best = (histories[name] for name in ("rewards", "objectives", "best"))
    curves = [rewards, objectives, *parts["distances"].values()]
    if over not in OVER or not isinstance(about, dict):
        raise ValueError(f"over: got {over!r}, and a description of type {type(about).__name__}")
    for curve in curves:
        if curve.shape != rewards.shape or curve.dtype != torch.float64 or curve.ndim != 2 or curve.shape[1] != rows:
            raise ValueError(f"a history of shape {tuple(curve.shape)} and {curve.dtype} for {rows} samples")
    if best.shape != (rows,) or best.dtype != torch.int64 or not bool(((best >= 0) & (best < len(rewards))).all()):
        raise ValueError("the best rounds are no rounds")
    if set(parts["work"]) != {"at", "optimizer"}:
        raise ValueError("it does not say where the optimiser stands")
    check_rows(parts["work"]["at"], rows, "state of the optimiser")
