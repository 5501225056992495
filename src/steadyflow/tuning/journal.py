"""What a tune has done so far, in a file from which the same call goes on to the same result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._internal import files, strict_json
from ..errors import CorruptFileError
from .fitting import Fit

_KIND = "tuning"


class Journal:
    """Results by name; without a file, they are computed and forgotten.

    The work is made again from its beginning, and what is in the file is taken from there: as everything is
    deterministic, the result is the same to the bit.

    Args:
        path: The file, if any.
        about: What identifies the work.

    Raises:
        CorruptFileError: The file is damaged, or belongs to other work.
    """

    def __init__(self, path: str | Path | None, about: Any):
        self._path, self._about = path, strict_json.dumps(about, sort_keys=True, default=str)
        self._tensors: dict[str, Tensor] = {}
        self._place = ""
        self._count = 0
        if path is not None and Path(path).is_file():
            self._tensors, texts = files.read(path, _KIND)
            if texts.get("about") != self._about:
                raise CorruptFileError(f"{path}: the checkpoint of another call; give another file, or remove it")

    def begin(self, place: str) -> None:
        """Go to a part of the work, whose results are counted from its beginning."""
        self._place, self._count = place, 0

    def remembered(self, compute: Callable[[], Tensor]) -> Tensor:
        """The next result of this part: that of the file, or what is computed now and kept."""
        name = self._next()
        if self._path is None:
            return compute()
        if name not in self._tensors:
            self._tensors[name] = compute().detach().clone()
            self._write()
        return self._tensors[name]

    def step(self, fit: Fit[Any, Any], batches: Sequence[Any], spend: Callable[[int], None], which: int) -> None:
        """Make the next step of a fit, or bring the fit to where that step has left it.

        Args:
            fit: The fit.
            batches: The samples.
            spend: Told the evaluations as they are made.
            which: A number for the fit within this part.
        """
        name = self._next()
        numbers, square = f"{name}.numbers", f"{self._place}.square.{which}"
        if self._path is None or numbers not in self._tensors:
            fit.step(batches, spend)
            if self._path is not None:
                facts = [
                    fit.damping,
                    fit.kappa or 0.0,
                    float(fit.steps),
                    float(fit.stuck),
                    float(fit.evaluations),
                    fit.value,
                ]
                self._tensors[numbers] = torch.cat([torch.tensor(facts, dtype=torch.float64), fit.numbers.packed()])
                self._tensors[square] = fit.square.clone() if fit.square is not None else torch.zeros(0)
                self._write()
            return
        kept = self._tensors[numbers]
        damping, kappa, steps, stuck, evaluations, fit.value = (float(value) for value in kept[:6])
        spend(int(evaluations) - fit.evaluations)
        fit.numbers = fit.numbers.unpacked(kept[6:])
        fit.damping, fit.kappa, fit.steps, fit.stuck = damping, kappa, int(steps), bool(stuck)
        fit.square, fit.evaluations = self._tensors[square], int(evaluations)

    def _next(self) -> str:
        self._count += 1
        return f"{self._place}.{self._count}"

    def _write(self) -> None:
        assert self._path is not None
        files.write(self._path, _KIND, self._tensors, {"about": self._about})
