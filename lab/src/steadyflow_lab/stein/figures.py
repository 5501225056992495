"""All figures of the study of SteinDiff, in the order of the paper's argument."""

from __future__ import annotations

from functools import partial

from ..findings import Size
from ..studies import Paper
from . import bound, coefficient, drifting, overhead, quality, trap, variance
from .runs import SOLVERS

PAPER = Paper(
    "stein",
    "2606.07835",
    {
        "trap": trap.trap,
        "coefficient": coefficient.coefficient,
        "edm": coefficient.edm,
        "drift": drifting.drift,
        "variance": variance.variance,
        "bound": bound.bound,
        "overhead": overhead.overhead,
        **{f"study-{solver}": partial(quality.study_figure, solver=solver) for solver in SOLVERS},
        "quality": quality.quality,
    },
    full=Size("full", n=600, long=20_000, images=3000),
    quick=Size("quick", n=200, long=2000, images=400),
    page="stein.md",
)
