"""When a model's samples take their decisions, found from its score alone: the critical window of a run.

The probability flow in y = x / alpha and the clock s = -ln sqrt(s2) has the Jacobian (A - I) s2 / (s2 - s0^2) with

    A = alpha d x0_hat / d x,

so that a sample is being decided, in that a direction exists along which neighbours part, where the largest singular
value of A is above 1, and is decided where it is below. For a mixture that is where the posterior's variance along some
direction exceeds the noise's s2: between two modes of weights g and 1 - g at distance l, g (1 - g) l^2 > s2. Early in
a run the modes are merged and no sample is being decided; then a window opens, in which most decisions are taken
("speciation" in Biroli et al. 2024, 2402.18491; "critical windows" in Li and Chen 2024, 2403.01633), and closes. What
is still undecided then is held between modes (2605.06831): it is there that noise helps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._integrate import StepInfo
from ..denoisers import Denoiser
from ..errors import InputError
from ..jacobians.spectra import largest_singular_value
from ..tasks import sample


@dataclass(frozen=True)
class CriticalWindow:
    """When the samples of a run are decided, in steps left before the end."""

    remaining: Tensor
    """The steps left at each examination, falling, shape (T,)."""
    times: Tensor
    """The path time there, shape (T,)."""
    undecided: Tensor
    """The share of the samples that are being decided, shape (T,)."""
    decided: Tensor
    """The steps left when each sample was examined last while undecided, shape (n,); -1 for one that never was."""
    opens: int
    """The steps left just before the first decisions."""
    peak: int
    """The steps left when most samples are being decided."""
    closes: int
    """The steps left when the share has fallen to `level` of all samples, or to the least of what follows the peak."""
    evaluations: float
    """What the examination cost beside the run itself, in evaluations per sample; a transposed product counts two."""


class _Stretches:
    """A callback that examines every state of a run, batch by batch."""

    def __init__(self, products: int):
        self.products = products
        self.stretch: dict[int, list[Tensor]] = {}
        self.times: dict[int, float] = {}

    def __call__(self, info: StepInfo) -> None:
        if info.remaining < 1:
            return
        found = largest_singular_value(info.model, info.x, info.t, self.products)
        self.stretch.setdefault(info.remaining, []).append(found.double().cpu())
        self.times[info.remaining] = info.t


def critical_window(
    model: Denoiser, *, n: int = 256, level: float = 0.1, products: int = 2, **options: Any
) -> CriticalWindow:
    """Find when the samples of a model are decided, from pilot samples and without knowledge of any modes.

    Args:
        model: The model, with its condition.
        n: The number of pilot samples. They are examined after every step: (1 + 2 products) evaluations each.
        level: The share of samples at which the window counts as closed.
        products: The number of transposed products in each examination; see `jacobians.largest_singular_value`.
        options: Those of `steadyflow.sample`: the solver, the steps or the grid, the guidance, the seed.

    Raises:
        InputError: The level or the number of samples is out of range, or no sample is ever undecided: the model's flow
            contracts everywhere, as with one mode.
    """
    if not 0.0 < level < 1.0 or n < 2 or products < 1:
        raise InputError(
            f"critical window: expected 0 < level < 1, n >= 2 and products >= 1, got {level}, {n} and {products}"
        )
    for name in ("x", "callback", "index"):
        if name in options:
            raise InputError(
                f"critical window: {name} is set here; it takes the options of a run, such as solver and grid"
            )
    watch = _Stretches(products)
    settings: dict[str, Any] = {"progress": False, **options}
    sample(model, n=n, callback=watch, **settings)
    left = sorted(watch.stretch, reverse=True)
    if not left:
        raise InputError("critical window: the run has a single step; it needs at least two")
    above = torch.stack([torch.cat(watch.stretch[k]) for k in left]) > 1.0
    remaining, share = torch.tensor(left), above.double().mean(1)
    if not bool(above.any()):
        raise InputError("critical window: no sample is ever undecided; the flow contracts everywhere")
    peak = int(share.argmax())
    begun = int((share > min(level, float(share[peak]) / 2.0)).nonzero()[0])
    after = share[peak:]
    closed = (after <= level).nonzero()
    end = peak + (int(closed[0]) if len(closed) else int(after.argmin()))
    decided = torch.where(above, remaining[:, None], torch.iinfo(torch.long).max).amin(0)
    return CriticalWindow(
        remaining,
        torch.tensor([watch.times[k] for k in left], dtype=torch.float64),
        share,
        torch.where(above.any(0), decided, -1),
        left[max(begun - 1, 0)],
        left[peak],
        left[end],
        float(len(left) * (1 + 2 * products)) * model.cost,
    )
