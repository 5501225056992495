"""What is asked of a model before a fit: whether it answers alike, and how its derivatives are had."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..coordinates import FLOW
from ..denoisers.base import Denoiser
from ..errors import InputError, SteadyflowError
from ..solvers.schemes import time_on
from .derivatives import Derivatives, signs
from .starts import Cell

FEW = 16
"""On how many starts all plain solvers are tried."""


def few_of(cells: Sequence[Cell], ends: Sequence[Tensor]) -> list[tuple[Cell, Tensor]]:
    """A few starts of every guidance scale, whatever the size of a batch, with their ends."""
    found: list[tuple[Cell, Tensor]] = []
    taken: dict[float, int] = {}
    for cell, end in zip(cells, ends, strict=True):
        scale = (cell.model if cell.target is None else cell.target).guidance
        wanted = FEW - taken.get(scale, 0)
        if wanted > 0:
            part = cell.few(wanted)
            found.append((part, end[: len(part.start)]))
            taken[scale] = taken.get(scale, 0) + len(part.start)
    return found


def _middle(cell: Cell, n: int) -> tuple[Denoiser, Tensor, float]:
    """A model with a few states halfway along the path in flow coordinates, and the path time there."""
    few, schedule = cell.few(n), cell.model.schedule
    low, high = (FLOW.time(schedule.at(t)) for t in schedule.t_range)
    level = schedule.at(time_on(schedule, 0.5 * (low + high)))
    x = few.start.detach()
    spread = float(x.square().mean().sqrt()) or 1.0
    return few.model, x * (FLOW.scale(level) / spread), level.t


def check_repeatable(cell: Cell) -> None:
    """Check that a model answers the same question alike.

    Args:
        cell: Some starts.

    Raises:
        InputError: It does not, as with dropout in training.
    """
    model, x, t = _middle(cell, 2)
    with torch.no_grad():
        first, second = (model(x, t).output for _ in range(2))
    if float((first - second).abs().max()) > 1e-2 * float(first.abs().max()):
        raise InputError(
            "model: it answered the same question in two ways, so that nothing can be fitted to it; if it has dropout, "
            "call its eval()"
        )


def derivatives_of(cell: Cell) -> Derivatives:
    """How the derivatives of a model can be had: by differences where gradients do not pass, or are not its own.

    What the network returns is looked at, as estimates of the data contain the state itself. A network that passes some
    gradients and stops others would mislead a fit, so that a product of its Jacobian is compared with a difference,
    halfway along the path, to what the network's precision allows.
    """
    model, x, t = _middle(cell, 4)
    generator = torch.Generator().manual_seed(0)
    along, against = (signs(x, generator) for _ in range(2))
    half = (model.dtype or x.dtype) in (torch.float16, torch.bfloat16)
    size = (0.1 if half else 3e-3) * float(x.square().mean().sqrt())
    try:
        with torch.enable_grad():
            point = x.clone().requires_grad_(True)
            output = model(point, t).output
            if not output.requires_grad:
                return "differences"
            (back,) = torch.autograd.grad((output * against).sum(), point, allow_unused=True)
        if back is None:
            return "differences"
        with torch.no_grad():
            ends = [model(x + sign * size * along, t).output for sign in (1.0, -1.0)]
    except (RuntimeError, SteadyflowError):
        return "differences"
    swept = (back * along).flatten(1).double().sum(1)
    changed = (((ends[0] - ends[1]) / (2.0 * size)) * against).flatten(1).double().sum(1)
    off, scale = float((swept - changed).norm()), float(back.double().norm())
    return "back-propagation" if off <= (0.3 if half else 0.1) * scale + 1e-6 else "differences"
