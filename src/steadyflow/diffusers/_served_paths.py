"""The path along which a served pipeline is asked, and its network's time on it.

Most are those that our schedulers follow (`_paths`): tables of betas and straight flows. Others are read off what the
pipelines of these families hand to `step`:

    Cosmos 2                  x = x0 + sigma eps, handed over as eps; the pipeline reads sigma itself
    Stable Video Diffusion    v on the table's family, the network's time is log(sigma / alpha) / 4
    Stable Audio              the same, with the network's time 2 arctan(sigma / alpha) / pi
    SANA-Sprint               x = cos(t) x0 + sin(t) eps, handed over as v; the network's time is t
    Mochi, LongCat            the straight flow with its time turned round, handed over as -v
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..prediction import Clip, PredictionType
from ..schedules import VE, RectifiedFlow, Schedule
from ..schedules._functions import Scalar, arctan2, exp, log, sin
from ..schedules.continuous import VariancePreserving
from . import _configs
from ._paths import Path, path_of


@dataclass(frozen=True)
class TrigFlow(VariancePreserving):
    """The path x_t = cos(t) x0 + sin(t) eps, t in [0, pi / 2] (Lu & Song 2024, 2410.11081).

    Args:
        t_min: The last time of a default grid.
        t_max: The first time of a default grid.
    """

    t_min: float = 0.0
    t_max: float = math.pi / 2

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, math.pi / 2

    def log_snr(self, t: Scalar) -> Scalar:
        return 2.0 * (log(sin(math.pi / 2 - t)) - log(sin(t)))

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        return arctan2(self._sigma(log_snr), self._alpha(log_snr))


@dataclass(frozen=True)
class ContinuousVP(VariancePreserving):
    """The variance-preserving path with t = sigma / alpha, whose networks take log(t) / 4 as their time.

    It is that of Stable Video Diffusion (Blattmann et al. 2023), in the variance-preserving form of EDM's x / (1 +
    sigma^2)^(1/2).

    Args:
        t_min: The last time of a default grid.
        t_max: The first time of a default grid.
    """

    t_min: float = 0.002
    t_max: float = 700.0

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, math.inf

    def log_snr(self, t: Scalar) -> Scalar:
        return -2.0 * log(t)

    def t_from_log_snr(self, log_snr: Scalar) -> Scalar:
        return exp(-0.5 * log_snr)

    def model_time(self, t: Scalar) -> Scalar:
        return 0.25 * log(t)


@dataclass(frozen=True)
class ArctangentVP(ContinuousVP):
    """The same path, whose networks take 2 arctan(t) / pi as their time: that of Stable Audio (Evans et al. 2024).

    Args:
        t_min: The last time of a default grid.
        t_max: The first time of a default grid.
    """

    t_min: float = 0.3
    t_max: float = 500.0

    def model_time(self, t: Scalar) -> Scalar:
        return arctan2(self.sigma(t), self.alpha(t)) * (2.0 / math.pi)


@dataclass(frozen=True)
class ServedPath:
    """What a served model needs of its pipeline's scheduler."""

    schedule: Schedule
    prediction: PredictionType
    time: Callable[[float], float]
    """The network's time at a time of the path."""
    level: Callable[[float], float]
    """What `scheduler.sigmas` says at a time of the path."""
    middle: float
    """A time of the path at which the pipeline is asked first."""
    sign: float = 1.0
    """The factor of the outputs."""
    scale: float = 1.0
    """The factor of the pipeline's states over the path's."""
    clip: Clip | None = None
    learned_variance: bool = False
    path: Path | None = None
    """The path with the places of steps, where the scheduler is one that is followed."""

    def shifted(self, mu: float | None) -> Schedule:
        """The schedule with the shift that a pipeline has computed from the size of its pictures.

        Args:
            mu: The number that it handed to `set_timesteps`; None for none.
        """
        if mu is None or self.path is None or not isinstance(self.schedule, RectifiedFlow) or self.path.known:
            return self.schedule
        return RectifiedFlow(shift=_configs.shift_of_mu(self.path.fields, mu))


def served_path(scheduler: Any, shift: float | None = None) -> ServedPath:
    """The path of a pipeline's scheduler.

    Args:
        scheduler: The scheduler, diffusers' or ours.
        shift: The shift of a flow's time; that of the scheduler by default.

    Raises:
        InputError: It is on no path that is known.
    """
    special = _configs.special_path(scheduler)
    if special is not None:
        return _special(*special, shift=shift)
    path = path_of(scheduler)
    if shift is not None and path.kind != "flow":
        raise InputError(f"shift: got {shift}, but the pipeline is no flow model; its table of betas is its own")
    schedule = path.schedule(shift)
    scale = path.time_scale

    def level(t: float) -> float:
        return schedule.sigma(t) if path.kind == "flow" else schedule.ratio(t)

    def time(t: float) -> float:
        return schedule.model_time(t) * scale

    low, high = schedule.domain
    middle = schedule.t_from_sigma(0.5) if path.kind == "flow" else float(round(0.5 * (low + high)))
    return ServedPath(
        schedule, path.prediction, time, level, middle, clip=path.clip, learned_variance=path.learned_variance,
        path=path,
    )  # fmt: skip


def _special(name: str, numbers: dict[str, float], shift: float | None) -> ServedPath:
    if shift is not None and name != "inverted":
        raise InputError(f"shift: got {shift}, but the pipeline's path has none")
    match name:
        case "edm":
            ve = VE(numbers["sigma_min"], numbers["sigma_max"])
            return ServedPath(ve, "epsilon", lambda t: t, lambda t: t, 1.0)
        case "continuous":
            vp = ContinuousVP(numbers["sigma_min"], numbers["sigma_max"])
            return ServedPath(vp, "v_prediction", vp.model_time, lambda t: t, 1.0)
        case "arctangent":
            vp = ArctangentVP(numbers["sigma_min"], numbers["sigma_max"])
            return ServedPath(vp, "v_prediction", vp.model_time, lambda t: t, 1.0)
        case "trigonometric":
            trig = TrigFlow()
            return ServedPath(trig, "v_prediction", lambda t: t, math.sin, math.pi / 4, scale=numbers["sigma_data"])
        case _:
            flow, scale = RectifiedFlow(shift=numbers["shift"] if shift is None else shift), numbers["scale"]
            return ServedPath(
                flow, "flow", lambda t: scale * (1.0 - flow.sigma(t)), lambda t: 1.0 - flow.sigma(t),
                flow.t_from_sigma(0.5), sign=-1.0,
            )  # fmt: skip
