"""Editing by latent: invert under the source, generate under the target; and direct inversion, which holds on.

"Direct" or PnP inversion (Ju et al. 2023, 2310.01506) adds to the source branch, after every step, the offset between
the inversion's state and what the step gave. Here a share of that offset is added to the edit, which is so held near
its source (`corrections.Anchor`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..corrections.anchor import Anchor
from ..errors import InputError
from ..tasks.inversion import Inversion, decode_options, run_inversion
from .base import Edit, EditMethod, EditRequest, finished, register


@register
@dataclass(frozen=True)
class ByInversion(EditMethod):
    """Invert under the source's condition, and generate from the latent under the target's."""

    name: ClassVar[str] = "inversion"

    def edit(self, request: EditRequest) -> Edit:
        return _there_and_back(self, request, None)


@register
@dataclass(frozen=True)
class Direct(EditMethod):
    """The same, with every step drawn towards the inversion's state at the same time.

    Args:
        share: How far, in (0, 1].
    """

    share: float = 0.1
    name: ClassVar[str] = "direct"

    def __post_init__(self):
        if not 0.0 < self.share <= 1.0:
            raise InputError(f"share: got {self.share}, expected a number in (0, 1]")

    def edit(self, request: EditRequest) -> Edit:
        return _there_and_back(self, request, self.share)


def _there_and_back(method: EditMethod, request: EditRequest, share: float | None) -> Edit:
    options, holds = request.options, share is not None or request.mask is not None
    if holds and options.batch_size is not None:
        raise InputError("batch_size: a mask and method 'direct' hold every state of the whole batch; leave it out")
    inversion, spent = request.inversion, 0
    if holds:
        _check_times(request, "method 'direct'" if share is not None else "a mask")
    if inversion is None:
        up = options.changed(record="all" if holds else options.record)
        inversion = run_inversion(request.source, request.x, up)
        spent = inversion.nfe
    held = options.changed(corrections=(*options.corrections, *_anchors(inversion, request, share)))
    back = inversion.decode(request.target, **decode_options(held))
    return finished(request, method, back, nfe=spent + back.nfe, inversion=inversion)


def _check_times(request: EditRequest, what: str) -> None:
    """Refuse a solver whose way back has other times than its way up, where there are no states to hold on to."""
    inversion, schedule = request.inversion, request.source.schedule
    if inversion is None and request.options.auto is not None:
        return
    solver = request.options.method if inversion is None else inversion.solver
    if not solver.has_own_grid:
        return
    up = request.options.rising(request.source) if inversion is None else inversion.grid
    if solver.way_back(schedule, up).times != up.reversed().times:
        raise InputError(
            f"solver {solver.name!r}: its way back calls the model at other times than its way up, so that {what} has "
            "no states of the source to hold on to; name a plain solver"
        )


def _anchors(inversion: Inversion, request: EditRequest, share: float | None) -> list[Anchor]:
    """What holds the edit near the inversion's states: by a share, and outside a mask wholly."""
    if share is None and request.mask is None:
        return []
    if inversion.trajectory is None:
        raise InputError("inversion: a mask and method 'direct' need all its states; invert with record='all'")
    held = [] if share is None else [Anchor(inversion.trajectory, share)]
    if request.mask is not None:
        held.append(Anchor(inversion.trajectory, keep=1.0 - request.mask.to(request.x)))
    return held
