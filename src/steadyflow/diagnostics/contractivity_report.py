"""Whether each step of the way back contracts, in numbers, as a table and as a picture.

The constants themselves come from `lipschitz`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from .._internal import plots, strict_json
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..solvers.base import Solver
from ..tasks._options import Options, Resolved
from ..tasks.choosing import resolved_for_inversion
from ..tasks.inversion import invert
from .lipschitz import Contractivity, contractivity

_FINE = {"solver": "rk4", "steps": 24}
"""How the latents are found from which the way back begins."""
_NO_MEANING = ("seed", "index", "noise", "batch_size", "corrections", "callback", "record", "progress", "adjoint")


@dataclass(frozen=True)
class ContractivityReport:
    """The local Lipschitz constants of a solver's steps on the way back from the latents of samples."""

    found: Contractivity
    solver: Solver[Any]

    def rows(self) -> list[tuple[float, float, float, float]]:
        """Per step: its first time, the median constant, the largest, and the share of samples where it contracts."""
        values = self.found.lipschitz.double()
        middle, most = values.median(1).values.tolist(), values.amax(1).tolist()
        return list(zip(self.found.times[:-1], middle, most, self.found.certified.tolist(), strict=True))

    def figures(self) -> list[dict[str, float | None]]:
        """The rows by name, ready for JSON: None for a number that is not finite."""
        named = [dict(zip(("t", "median", "largest", "contracts"), row, strict=True)) for row in self.rows()]
        return strict_json.plain(named)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The rows as text: the headings, and one list of cells per step."""
        cells = [[f"{t:.4g}", f"{half:.3f}", f"{top:.3f}", f"{share:.0%}"] for t, half, top, share in self.rows()]
        return ["from t", "Lipschitz, median", "largest", "contracts"], cells

    def summary(self) -> str:
        """What the numbers mean, and their product, as text."""
        return (
            f"local Lipschitz constants of {self.solver.name!r} in the flow coordinates: below 1, a step contracts.\n"
            f"Their product, an upper bound on what the whole way adds: median {self.found.worst.median():.3g}"
        )

    def draw(self, path: str | Path) -> Path:
        """Draw the constants of every sample over time into a file.

        Args:
            path: The file, of a kind that matplotlib writes.

        Returns:
            The path.

        Raises:
            MissingExtraError: matplotlib is not installed.
            StorageError: The file cannot be written.
        """
        times, values = self.found.times[:-1], self.found.lipschitz.double()
        picture = plots.figure(7, 4)
        axes = picture.subplots()
        axes.semilogy(np.asarray(times), np.asarray(values), color="C0", alpha=0.3, lw=0.8)
        axes.semilogy(np.asarray(times), np.asarray(values.median(1).values), "o-", color="C3", ms=3, label="median")
        axes.axhline(1.0, color="k", lw=0.8)
        axes.set(
            xlabel="t at the beginning of the step",
            ylabel="local Lipschitz constant",
            title=f"{self.solver.name}, {len(times)} steps",
        )
        axes.legend(frameon=False)
        plots.save(picture, path)
        return Path(path)


def study(
    model: Denoiser,
    x: Tensor,
    *,
    guidance: float | None = None,
    source_guidance: float | None = None,
    **options: Unpack[Options],
) -> ContractivityReport:
    """Find the Lipschitz constants along the way back from the latents of samples, which a fine solve finds.

    Args:
        model: The model of the data, under the samples' own condition if it has one.
        x: Samples, shape (B, ...).
        guidance: The scale of classifier-free guidance on the way back; that of the way up by default.
        source_guidance: The scale of guidance on the way up; the model's own by default.
        **options: The way back that is studied; see `Options`. What addresses noise, looks at a run or changes it has
            no meaning here.

    Raises:
        InputError: An argument does not fit.
    """
    resolved = Resolved.of(options, "contractivity", refused=_NO_MEANING)
    up = model if source_guidance is None else model.with_guidance(source_guidance)
    back = up if guidance is None else up.with_guidance(guidance)
    resolved, _ = resolved_for_inversion(resolved, up, x)
    if resolved.controller is not None:
        raise InputError("steps: a study of steps is of a fixed number of them, not of adaptive ones")
    times = resolved.falling(back)
    fine = resolved.changed(nfe=None, **_FINE) if isinstance(resolved.grid, str | None) else None
    if fine is not None and resolved.method.has_own_grid:
        bottom = None if times.clean else times.times[-1]
        fine = fine.changed(solver="rk4", t_max=times.times[0], t_min=bottom)
    latent = invert(up, x, solver="rk4", grid=times if fine is None else fine.falling(up), progress=False).latent
    return ContractivityReport(contractivity(back, latent, times, resolved.method, coordinates="flow"), resolved.method)
