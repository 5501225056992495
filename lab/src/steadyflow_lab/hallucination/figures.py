"""All experiments by the paper's number, and some of our own."""

from ..findings import Size
from ..studies import Paper
from . import geometry, rates, remedies

PAPER = Paper(
    "hallucination",
    "2605.06831",
    {
        "1": rates.figure_1,
        "3": rates.figure_3,
        "4": geometry.figure_4,
        "5": rates.figure_5,
        "D": rates.figure_d,
        "E.6": geometry.figure_e6,
        "E.7": geometry.figure_e7,
        "E.9": rates.figure_e9,
        "E.10": remedies.figure_e10,
        "E.11": rates.figure_e11,
        "E.12": geometry.figure_e12,
        "E.13": rates.figure_e13,
        "E.14": geometry.figure_e14,
        "E.15": rates.figure_e15,
        "E.16": rates.figure_e16,
        "I.1": rates.table_i1,
        "detector": remedies.detection,
        "remedies": remedies.remedy_table,
        "remedies-images": remedies.image_remedies,
    },
    full=Size("full"),
    quick=Size("quick", 4000, 2000, 64),
    page="interpolation.md",
)
