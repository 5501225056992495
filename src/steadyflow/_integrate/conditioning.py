"""What a correction may do to a run before it begins: put another model in the place of the model.

A posterior p(x | y) is a change of the model, not of the state. A correction with a method `model_for` says which model
the run is to follow; it is asked once for the whole batch, before that is cut up, and again for each part, where it
returns a model that is already its own as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from ..denoisers.base import Denoiser
from ..grids import Grid
from ..solvers.base import Solver


@runtime_checkable
class ModelCorrection(Protocol):
    """A correction that has a say in what model a run follows."""

    def model_for(self, model: Denoiser, grid: Grid, solver: Solver[Any]) -> Denoiser:
        """Return the model that the run is to follow instead; one that this has returned before stays as it is.

        Args:
            model: The model of the run so far.
            grid: The times of the run.
            solver: Its method.

        Raises:
            InputError: There is none for such a run.
        """
        ...


def conditioned(model: Denoiser, corrections: Iterable[object], grid: Grid, solver: Solver[Any]) -> Denoiser:
    """The model that a run follows: each correction with `model_for` changes it in turn.

    Args:
        model: The model that the run was given.
        corrections: Those of the run.
        grid: The times of the run.
        solver: Its method.
    """
    for correction in corrections:
        if isinstance(correction, ModelCorrection):
            model = correction.model_for(model, grid, solver)
    return model
