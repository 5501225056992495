"""Direct inversion: bring a run back, step by step, to states recorded on the way up.

"Direct" or PnP inversion (Ju et al. 2023, 2310.01506) adds to the source branch, after every step, the offset between
the inversion's state and what the step gave; the branch then retraces the inversion exactly, whatever the solver. It
costs the memory of one state per step. With `share` below 1 only a part of the offset is added, which holds an edit
near its source. With `keep`, a map of where to hold, an edit is confined to a region (blended diffusion, Avrahami et
al. 2022).
"""

import bisect
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._integrate import StepInfo, Trajectory
from ..errors import InputError


@dataclass(frozen=True)
class Anchor:
    """A correction that moves the state a share of the way to the state that a trajectory has at the same time.

    With `keep`, a multistep solver goes on with its history; without, it starts afresh from the new state.

    Args:
        trajectory: The states of the inversion, recorded with `record="all"`.
        share: How far to move the state towards the recorded one, in (0, 1].
        keep: Weights in [0, 1] by which the share is multiplied, shape (B or 1, ...), broadcast against the samples:
            1 holds the recorded state, 0 lets go. None holds everywhere.

    Raises:
        InputError: The share is out of range, nothing was recorded at a time of the run, or the weights do not fit the
            samples.
    """

    trajectory: Trajectory
    share: float = 1.0
    keep: Tensor | None = None

    def __post_init__(self):
        if not 0.0 < self.share <= 1.0:
            raise InputError(f"share: got {self.share}, expected a number in (0, 1]")

    def __call__(self, info: StepInfo) -> Any:
        times = self.trajectory.times
        if times[0] > times[-1]:
            times, order = times[::-1], -1
        else:
            order = 1
        k = bisect.bisect_left(times, info.t)
        if k == len(times) or times[k] != info.t:
            raise InputError(f"anchor: nothing was recorded at t = {info.t:.6g}; invert with record='all'")
        recorded = self.trajectory.x[k if order == 1 else len(times) - 1 - k]
        if self.keep is None:
            return recorded if self.share == 1.0 else info.x.lerp(recorded, self.share)
        try:
            held = info.x.lerp(recorded, self.share * self.keep.to(info.x))
        except RuntimeError as error:
            raise InputError(f"keep: shape {tuple(self.keep.shape)} fits no samples {tuple(info.x.shape)}") from error
        return info.solver.with_sample(info.state, held, info.step.schedule, info.t)
