"""Where the steps of a run lie: asked of diffusers' own schedulers."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import diffusers
import torch

from ..errors import InputError
from ..schedules import Level, Schedule
from ._configs import DEFAULTS, shift_of, shift_of_mu
from ._identify import parameters_of
from ._sources import FIELDS, PLACEMENTS, SOURCES, Kind

_REFUSALS = (ArithmeticError, AssertionError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""What diffusers' schedulers raise at values that they do not accept."""


class Places(NamedTuple):
    """Where the steps of a run lie."""

    times: tuple[float, ...]
    """The path times at which steps begin, falling."""
    names: tuple[float, ...]
    """What the network is told there."""
    end: float | None
    """The path time at which the run ends; None for the clean estimate at the last time."""
    told_shift: float | None = 1.0
    """The shift of a flow's times of which the network is told the unshifted ones; None where names follow no rule."""


class Planner:
    """One of diffusers' schedulers, asked where steps lie.

    Args:
        name: The class whose plan to follow.
        fields: The fields of the config, of which it takes those that it knows.
        kind: The kind of path.

    Raises:
        InputError: The fields are not accepted by the class.
    """

    def __init__(self, name: str, fields: Mapping[str, Any], kind: Kind):
        self.name, self.source, self._kind = name, SOURCES[name], kind
        planner = self.source.planner or name
        known = parameters_of(planner)
        if kind == "flow" and "flow_shift" in known:
            fields = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift_of(fields),
                      **{k: v for k, v in fields.items() if k not in ("flow_shift", "prediction_type")}}  # fmt: skip
        given = {
            k: v for k, v in fields.items()
            if k in known and FIELDS.get(k) != "method" and (v is not None or known[k].default is None)
        }  # fmt: skip
        lost = [
            k for k in fields
            if k not in known and FIELDS.get(k) in ("path", "places") and k not in ("shift", "set_alpha_to_one")
            and fields[k] != DEFAULTS.get(k) and k not in parameters_of(name)
        ]  # fmt: skip
        if lost:
            raise InputError(f"{lost[0]}: got {fields[lost[0]]!r}, but {name} places its steps without it")
        try:
            self._own: Any = getattr(diffusers, planner)(**given)
        except _REFUSALS as error:
            raise InputError(f"{name} does not accept these fields: {error}") from error
        self._fields = dict(fields)
        self._accepted = tuple(inspect.signature(self._own.set_timesteps).parameters)
        self._dynamic = bool(fields.get("use_dynamic_shifting"))

    @property
    def table(self) -> tuple[float, ...]:
        """The table of alphas-bar.

        It falls strictly: single precision rounds neighbours to one number, and the last entry that Euler's relatives
        set for a zero terminal SNR may lie above the one before.
        """
        table = self._own.alphas_cumprod.double().tolist()
        if len(table) < 2:
            raise InputError(f"betas: got a table of {len(table)} entries, expected at least 2")
        if not all(0.0 < a < 1.0 for a in table[:-1]) or not 0.0 <= table[-1] < 1.0:
            raise InputError(
                "betas: the products of 1 - beta leave (0, 1) before the table's end; is it that of a diffusion model?"
            )
        for k in reversed(range(1, len(table))):
            table[k - 1] = max(table[k - 1], table[k] * (1.0 + 1e-9))
        return tuple(table)

    @property
    def takes_sigmas(self) -> bool:
        """Whether the class takes a list of sigmas."""
        return "sigmas" in self._accepted

    @property
    def takes_both(self) -> bool:
        """Whether the class takes a list of sigmas together with what the network is told."""
        return self.takes_sigmas and "timesteps" in self._accepted

    def shift(self, mu: float | None) -> float:
        """The shift of a flow's sigmas.

        Args:
            mu: The strength of a dynamic shift.
        """
        return shift_of(self._fields) if mu is None else shift_of_mu(self._fields, mu)

    def flow_match(self) -> Planner:
        """FlowMatchEulerDiscreteScheduler with the same shift, for lists that this class does not take."""
        fields = {k: self._fields[k] for k in ("num_train_timesteps", "use_dynamic_shifting", "time_shift_type")}
        return Planner("FlowMatchEulerDiscreteScheduler", {**fields, "shift": shift_of(self._fields)}, "flow")

    @property
    def betas(self) -> torch.Tensor:
        """The table of betas."""
        return self._own.betas

    def noise_factor(self, level: Level) -> float:
        """The factor of the first noise in the state alpha x0 + sigma eps.

        Args:
            level: The level at the beginning of the run.
        """
        alone = self.source.scaled and self._own.config.timestep_spacing in ("linspace", "trailing")
        return level.sigma if alone else 1.0

    def end_factor(self, level: Level) -> float:
        """The factor between the state alpha x0 + sigma eps and the class's own at the end of a run.

        Args:
            level: The level at the end.
        """
        return 1.0 / level.alpha if self.source.scaled else 1.0

    def places(self, steps: int | None, schedule: Schedule, **given: Any) -> Places:
        """Place the steps of a run.

        Args:
            steps: How many.
            schedule: The path.
            **given: Further arguments of the class's `set_timesteps`, such as `mu`; None counts as not given.

        Raises:
            InputError: The class does not take an argument, or does not accept its value.
        """
        asked = {k: v for k, v in given.items() if v is not None}
        strange = [k for k in asked if k not in self._accepted]
        if strange:
            raise InputError(f"set_timesteps: {strange[0]} is not taken by {self.name}, whose plan is followed")
        if self._dynamic and "mu" in self._accepted and "mu" not in asked:
            raise InputError("set_timesteps: the config has use_dynamic_shifting, which needs mu")
        try:
            self._own.set_timesteps(steps, **asked)
        except _REFUSALS as error:
            raise InputError(f"set_timesteps: {self.name} refuses: {error}") from error
        names = [float(t) for t in self._own.timesteps]
        levels = [float(s) for s in getattr(self._own, "sigmas", ())]
        if not all(map(math.isfinite, (*names, *levels))):
            raise InputError(f"set_timesteps: {self.name} lays no finite timesteps for {steps} step(s); take more")
        if self._kind == "table" and not hasattr(self._own, "sigmas"):
            by_config = self.source.end == "config" and not self._own.config.set_alpha_to_one
            first = by_config or self.source.end == "first"
            top = schedule.domain[1]
            if max(names) > top + 1.0:
                raise InputError(f"steps_offset: puts the first timestep at {max(names):g}, the table ends at {top:g}")
            times, end = [min(t, top) for t in names], 0.0 if first else None
        else:
            if len(levels) <= len(names):
                raise InputError(f"set_timesteps: {self.name} repeats timesteps at {steps} steps; take fewer")
            levels, last = levels[: len(names)], levels[len(names)]
            if self._kind == "flow" and max(levels) > 1.0 + 1e-6:
                placement = next((k for k in PLACEMENTS if self._fields.get(k)), "sigmas")
                raise InputError(
                    f"{placement}: with it {self.name} lays noise levels up to {max(levels):.4g}, where those of a "
                    "flow model end at 1"
                )
            if self._kind == "flow":
                if "final_sigmas_type" not in parameters_of(self.name):
                    last = 0.0  # DEIS and SA-Solver would end with their last step's noise
                times, end = levels, last
            else:
                times = [time_of_ratio(schedule, s) for s in levels]
                end = None if last == 0.0 else time_of_ratio(schedule, last)
        kept = [k for k in range(len(times)) if k == 0 or times[k] < times[k - 1]]
        kept = [k for k in kept if end is None or times[k] > end]
        if not kept or (end is None and times[kept[0]] <= schedule.domain[0]):
            raise InputError(
                f"set_timesteps: {self.name} puts {steps} step(s) at timestep {names[0]:g}, where there is no noise to "
                "remove; take more steps, or use timestep_spacing='trailing'"
            )
        return Places(tuple(times[k] for k in kept), tuple(names[k] for k in kept), end)


def time_of_ratio(schedule: Schedule, ratio: float) -> float:
    """The time of a table at a noise level sigma / alpha; levels below the table count as its first entry.

    Args:
        schedule: The table.
        ratio: The level.

    Raises:
        InputError: It lies above the table by more than rounding.
    """
    low, high = schedule.domain
    if ratio <= schedule.at(low).ratio:
        return low
    top = schedule.at(high).ratio
    if ratio >= top:
        if ratio > top * (1.0 + 1e-3):  # published lists are rounded to three digits behind the point
            raise InputError(
                f"sigmas: {ratio:.6g} lies above the largest of the model's table, {top:.6g}; begin there at most"
            )
        return high
    return schedule.t_from_ratio(ratio)


def places_of(times: Sequence[float], end: float | None) -> Places:
    """The places of steps that begin at given times, which are also the network's."""
    return Places(tuple(times), tuple(times), end)


def numbers(what: str, values: Any) -> list[float]:
    """A list of finite numbers.

    Args:
        what: The name of the argument.
        values: What was given: a sequence, an array or a tensor.

    Raises:
        InputError: It is something else.
    """
    try:
        found = [float(v) for v in values]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what}: got {values!r}, expected a list of numbers") from error
    if not found or not all(map(math.isfinite, found)):
        raise InputError(f"{what}: got {found}, expected finite numbers, at least one")
    return found


def whole(steps: Any, most: int | None) -> int:
    """A number of steps.

    Args:
        steps: What was given.
        most: The largest that is possible, if there is one.

    Raises:
        InputError: It is no whole number, or out of range.
    """
    fits = hasattr(steps, "__index__") and not isinstance(steps, bool) and not (hasattr(steps, "ndim") and steps.ndim)
    count = operator.index(steps) if fits else 0
    if count < 1 or (most is not None and count > most):
        bound = "a whole number of at least 1" if most is None else f"a whole number from 1 to {most}"
        raise InputError(f"num_inference_steps: got {steps!r}, expected {bound}, or sigmas or timesteps")
    return count
