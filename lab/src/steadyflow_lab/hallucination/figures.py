"""All experiments by the paper's number, and some of our own."""

from ..findings import Size
from ..studies import Paper
from . import beyond, convergence, noise, perturbed, rates, remedies, saddle

PAPER = Paper(
    "hallucination",
    "2605.06831",
    {
        "1": rates.figure_1,
        "3": rates.figure_3,
        "4": convergence.figure_4,
        "5": rates.figure_5,
        "P4.5": perturbed.figure_p45,
        "P4.7": saddle.figure_p47,
        "P5.1": noise.figure_p51,
        "B.1": perturbed.figure_b1,
        "C": perturbed.figure_c,
        "D": rates.figure_d,
        "E.6": convergence.figure_e6,
        "E.7": convergence.figure_e7,
        "E.9": convergence.figure_e9,
        "E.10": remedies.figure_e10,
        "E.11": rates.figure_e11,
        "E.12": saddle.figure_e12,
        "E.13": rates.figure_e13,
        "E.14": noise.figure_e14,
        "E.15": rates.figure_e15,
        "E.16": rates.figure_e16,
        "I.1": rates.table_i1,
        "detector": remedies.detection,
        "remedies": remedies.remedy_table,
        "critical-time": beyond.figure_critical,
        "placement": beyond.figure_placement,
        "high-dimensions": beyond.figure_high,
        "images": beyond.figure_images,
    },
    full=Size("full", 40_000, 10_000, 160),
    quick=Size("quick", 4000, 2000, 16),
    page="interpolation.md",
)
