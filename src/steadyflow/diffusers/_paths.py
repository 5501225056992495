"""The path of a pipeline's scheduler: its schedule, what is predicted along it, and where its own steps would lie."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..grids import Grid
from ..prediction import Clip, PredictionType
from ..schedules import RectifiedFlow, Schedule, Tabulated
from . import _configs
from ._planner import Planner, whole
from ._scheduler_base import SchedulerBase
from ._sources import REFUSED, SOURCES, Kind


@dataclass(frozen=True)
class Path:
    """What a model over a pipeline needs of its scheduler."""

    kind: Kind
    prediction: PredictionType
    clip: Clip | None
    """Bounds on the estimate of the data."""
    learned_variance: bool
    """Whether the network may return a variance beside its prediction."""
    fields: dict[str, Any]
    """The fields of the config, as the scheduler acts on them."""
    scheduler: Any
    planner: Planner | None
    """What places the steps; None where the scheduler is ours."""
    known: Schedule | None
    """The path where the scheduler has one of its own: a table, or that of ours."""

    @property
    def time_scale(self) -> float:
        """The network's time at the path's time 1."""
        return _configs.time_scale(self.fields, self.kind)

    def schedule(self, shift: float | None = None, tokens: int | None = None) -> Schedule:
        """The schedule of the path.

        Args:
            shift: The shift of a flow's time; that of the config by default.
            tokens: The length of an image's sequence, for shifts that depend on it.
        """
        if self.known is not None and (shift is None or self.kind == "table"):
            return self.known
        dynamic = None if tokens is None else _configs.dynamic_shift(self.fields, tokens)
        return RectifiedFlow(shift=shift or dynamic or _configs.shift_of(self.fields))

    def mu(self, tokens: int) -> float | None:
        """The number that pipelines compute from the size of an image; None where the config asks for none.

        Args:
            tokens: The length of an image's sequence.
        """
        return _configs.dynamic_mu(self.fields, tokens)

    def grid(self, schedule: Schedule, steps: int, mu: float | None, sigmas: Sequence[float] | None) -> Grid:
        """The times at which the scheduler steps in its pipeline.

        Args:
            schedule: The path on which to count them.
            steps: How many.
            mu: What the pipeline computes from the size of an image, for shifts that depend on it.
            sigmas: The sigmas that the pipeline hands over instead of the number.
        """
        sigmas = None if sigmas is None else [float(s) for s in sigmas]
        given = {} if self.kind == "table" else {"mu": mu, "sigmas": sigmas}
        if getattr(self.scheduler, "rising", False) or "Inverse" in type(self.scheduler).__name__:
            raise InputError("own_grid: the pipeline's scheduler is an inverse one, whose steps lead to noise")
        steps = whole(steps, None)
        if self.planner is None:
            own = copy.copy(self.scheduler)
            own.set_timesteps(None if given.get("sigmas") else steps, **given)
            times, clean = own.grid.times, own.grid.clean
        else:
            places = self.planner.places(None if given.get("sigmas") else steps, schedule, **given)
            pairs = zip(places.times, places.names, strict=True)
            if self.kind == "table" and any(abs(time - name) > 0.5 for time, name in pairs):
                raise InputError(
                    "own_grid: the pipeline's scheduler tells its network other timesteps than its noise levels have"
                )
            clean = places.end is None
            times = places.times if places.end is None else (*places.times, places.end)
        if isinstance(schedule, RectifiedFlow):  # where times are sigmas before the shift
            times = tuple(schedule.t_from_sigma(t) for t in times)
        return Grid(times, clean=clean, firm=True)


def path_of(scheduler: Any) -> Path:
    """The path of a pipeline's scheduler, diffusers' or ours.

    Args:
        scheduler: The scheduler.

    Raises:
        InputError: Its config cannot be honoured.
    """
    name = type(scheduler).__name__
    if isinstance(scheduler, SchedulerBase):
        scheduler.read_again()
        fields = _configs.fields_of(scheduler, name)
        learned = _configs.learned_variance(fields)
        known = scheduler.schedule
        return Path(scheduler.kind, scheduler.prediction, scheduler.clip, learned, fields, scheduler, None, known)
    if name not in SOURCES and name not in REFUSED:
        raise InputError(
            f"scheduler: {name} is not known to steadyflow; set one of diffusers' or a SteadyScheduler first"
        )
    fields = _configs.fields_of(scheduler, name)
    _configs.check_boundary(fields, name)
    kind = _configs.kind_of(fields, name)
    clip, learned = _configs.clip_of(fields, name), _configs.learned_variance(fields)
    planner = Planner(name, fields, kind)
    if kind == "flow":
        return Path(kind, "flow", clip, learned, fields, scheduler, planner, None)
    prediction = _configs.prediction_of(fields)
    return Path(kind, prediction, clip, learned, fields, scheduler, planner, Tabulated(planner.table))
