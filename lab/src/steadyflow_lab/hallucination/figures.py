"""All experiments by the paper's number, and two of our own."""

from collections.abc import Callable

from . import geometry, rates, remedies
from .findings import Finding

ALONE = ("4", "E.6", "E.7", "E.12", "E.14")
"""Those of few samples, which are one piece of work each and take their size alone."""
FIGURES: dict[str, Callable[..., Finding]] = {
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
}
"""Of a size and, but for `ALONE`, of the engine that draws the samples in batches."""
