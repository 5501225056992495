"""Factors of steps that were measured once, on a batch, and are the same for every sample from then on."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from .._integrate import StepInfo
from .._internal import files, strict_json
from ..errors import MALFORMED, CorruptFileError, InputError, UnknownNameError
from .scaling import MomentMatching, Space, denoises, rescaled
from .stein import Stein

_KIND = "steadyflow calibrated correction"
_VERSION = 1
_SPACES: tuple[Space, ...] = ("noise", "model")
_SLACK = 1e-6
"""How far, as a share, a level may lie beyond the outermost ones: the rounding of another way to the same grid."""


@dataclass(frozen=True)
class Calibrated:
    """A correction whose factor depends on the noise level alone, so that no sample depends on the others of its batch.

    It is made from a `Stein` or a `MomentMatching` after a run, which fits it:

        matching = MomentMatching(mean_square=0.72)
        sample(model, n=500, solver="ddim", steps=6, corrections=[matching])
        Calibrated.of(matching).save("six-steps.json")

    At the levels of that run the factor is the one that was taken there, the mean over the batch and over all runs; in
    between it is interpolated in the logarithm of the level. It costs no evaluations. The factors suit the model, the
    solver and the grid on which they were measured. Steps from alpha = 0, and steps towards noise, are left alone.

    Args:
        levels: The noise levels sigma/alpha at which a factor is known, rising.
        factors: The factor at each of them.
        space: Where the step is a straight line: "noise" for y = x / alpha, or "model" for x.

    Raises:
        InputError: The numbers do not fit.
        UnknownNameError: There is no such space.
    """

    levels: tuple[float, ...]
    factors: tuple[float, ...]
    space: Space = "noise"

    def __post_init__(self):
        object.__setattr__(self, "levels", tuple(map(float, self.levels)))
        object.__setattr__(self, "factors", tuple(map(float, self.factors)))
        if self.space not in _SPACES:
            raise UnknownNameError("space", self.space, _SPACES)
        if not 0 < len(self.levels) == len(self.factors):
            raise InputError(f"calibrated: got {len(self.levels)} levels and {len(self.factors)} factors")
        if not all(map(math.isfinite, (*self.levels, *self.factors))):
            raise InputError("calibrated: NaN or infinity among the levels or factors")
        if self.levels[0] <= 0.0 or any(a >= b for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise InputError("calibrated: expected levels above 0, each above the one before")

    @classmethod
    def of(cls, correction: Stein | MomentMatching) -> Calibrated:
        """Make one from what a correction has done so far.

        Args:
            correction: One that has acted in at least one run; its record is read.

        Raises:
            InputError: It has seen no step yet, or a factor is not finite.
        """
        taken: dict[float, list[float]] = {}
        for level, factor in correction.record.factors:
            taken.setdefault(level, []).append(float(factor.double().mean()))
        if not taken:
            raise InputError("calibrated: the correction has seen no step yet; give it to a run first")
        levels = sorted(taken)
        means = [math.fsum(taken[level]) / len(taken[level]) for level in levels]
        space = correction.space if isinstance(correction, Stein) else "noise"
        return cls(tuple(levels), tuple(means), space)

    def factor(self, level: float) -> float:
        """The factor at a noise level.

        Args:
            level: The noise level sigma/alpha at which a step begins.

        Raises:
            InputError: It lies outside of the levels at which factors are known.
        """
        low, high = self.levels[0], self.levels[-1]
        if not low * (1.0 - _SLACK) <= level <= high * (1.0 + _SLACK):
            raise InputError(
                f"calibrated: a step begins at noise level {level:.6g}, outside of [{low:.6g}, {high:.6g}], where its "
                "factors were measured; measure them on a grid with these ends"
            )
        k = bisect.bisect_left(self.levels, level)
        if k == len(self.levels) or k == 0 or self.levels[k] == level:
            return self.factors[min(k, len(self.levels) - 1)]
        below, above = self.levels[k - 1], self.levels[k]
        share = math.log(level / below) / math.log(above / below)
        return (1.0 - share) * self.factors[k - 1] + share * self.factors[k]

    def __call__(self, info: StepInfo) -> Any:
        if not denoises(info):
            return None
        factor = self.factor(info.step.start.ratio)
        return rescaled(info, torch.tensor(factor, dtype=info.x.dtype, device=info.x.device), self.space)

    def save(self, path: str | Path) -> None:
        """Write the factors as JSON; an existing file is replaced whole or not at all.

        Args:
            path: The file.

        Raises:
            StorageError: The file cannot be written.
        """
        facts = {"kind": _KIND, "version": _VERSION, "space": self.space}
        written = {**facts, "levels": self.levels, "factors": self.factors}
        files.write_text(path, strict_json.dumps(written, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Calibrated:
        """Read what `save` wrote.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: There is no such file.
            CorruptFileError: The file is damaged, or holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            found = cast("dict[str, Any]", strict_json.loads(files.read_text(path)))
            kind, version = found["kind"], found["version"]
            if (kind, version) != (_KIND, _VERSION):
                raise ValueError(f"it says it is {kind!r}, version {version!r}")
            return cls(tuple(found["levels"]), tuple(found["factors"]), found["space"])
        except MALFORMED as error:
            raise CorruptFileError(f"{path}: no saved calibrated correction ({error})") from error
