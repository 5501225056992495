"""All experiments."""

from ..findings import Size
from ..studies import Paper
from . import coupling, diagnostic, equations, knob, pareto, smoothing, tradeoff

PAPER = Paper(
    "editing",
    "2605.16399",
    {
        "equations": equations.figure,
        "coupling-mixture": coupling.mixture,
        "coupling-digits": coupling.digits,
        "tradeoff": tradeoff.figure,
        "smoothing": smoothing.on_ink,
        "smoothing-digits": smoothing.on_digits,
        "diagnostic": diagnostic.figure,
        "budget": diagnostic.budgets,
        "knob": knob.figure,
        "scenes-choices": pareto.choices,
        "scenes": pareto.figure,
        "scenes-few": pareto.few,
    },
    full=Size("full", n=64, long=16, images=24),
    quick=Size("quick", n=16, long=2, images=2),
    page="editing.md",
)
"""n: digits and points of a mixture. images: pictures in ink of the comparison. long: pictures in ink smoothed."""
