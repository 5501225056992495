"""A comparison as a picture: the budget of each sample as bars, and the error by step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._internal import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .comparison import Comparison

_COLOURS = {
    "model": "#4e79a7",
    "discretisation": "#f28e2b",
    "rounding": "#59a14f",
    "amplification": "#e15759",
    "codec": "#8c8c8c",
}

_NOTHING = 1e-12
"""The share of the largest value below which one is rounding."""


def draw(found: Comparison, path: str | Path) -> Path:
    """Draw a comparison into a file.

    Args:
        found: The comparison.
        path: The file, of a kind that matplotlib writes.

    Returns:
        The path.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: The file cannot be written.
    """
    picture = plots.figure(11.0, 4.2)
    left, right = picture.subplots(1, 2)
    draw_budget(found, left)
    draw_steps(found, right)
    plots.save(picture, path)
    return Path(path)


def stacked(terms: Mapping[str, Tensor], colours: Mapping[str, str], axes: Axes) -> None:
    """Draw terms as stacked bars, one per sample; parts below zero are stacked downwards, and zeros are left out.

    Args:
        terms: By name, each of shape (B,).
        colours: By name.
        axes: The matplotlib axes to draw on.
    """
    up = down = torch.zeros_like(next(iter(terms.values())))
    for name, term in terms.items():
        if not bool((term != 0).any()):
            continue
        base = torch.where(term >= 0, up, down).cpu().numpy()
        axes.bar(range(len(term)), term.cpu().numpy(), bottom=base, color=colours[name], label=name, width=0.8)
        up, down = up + term.clamp_min(0), down + term.clamp_max(0)


def draw_budget(found: Comparison, axes: Axes) -> None:
    """Draw the terms as stacked bars, one per sample, with the errors of both as marks.

    Args:
        found: The comparison.
        axes: The matplotlib axes to draw on.
    """
    rows = np.arange(len(found.error))
    stacked(found.terms, _COLOURS, axes)
    for name, values, fill in (("variant", found.error, "black"), ("plain", found.plain, "none")):
        axes.plot(rows, values.cpu().numpy(), "D", color="black", mfc=fill, ms=4, label=name)
    axes.axhline(0, color="#444", lw=0.6)
    axes.set_xticks(rows[:: 1 + len(rows) // 16])
    axes.set(xlabel="sample", ylabel="distance from the exact journey (rms)")
    axes.legend(frameon=False, fontsize=8, ncol=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def draw_steps(found: Comparison, axes: Axes) -> None:
    """Draw what each step changes of the sample by the end, as medians over the samples.

    Args:
        found: The comparison.
        axes: The matplotlib axes to draw on.
    """
    steps, lines = np.arange(1, len(found.times) + 1), dict(found.reached)
    lines["discretisation, before the exact flow"] = found.made
    for name, values in lines.items():
        if not bool((values > 0).any()):
            continue
        middle = values.median(1).values.cpu().numpy()
        middle = np.where(middle > _NOTHING * middle.max(), middle, np.nan)  # a logarithm shows no zeros
        colour, style = _COLOURS[name.partition(",")[0]], "o:" if "," in name else "o-"
        axes.semilogy(steps, middle, style, color=colour, ms=3, label=name)
    axes.set_xticks(steps[:: 1 + len(steps) // 16])
    axes.set(xlabel="step", ylabel="what it changes of the sample (rms, median)")
    axes.legend(frameon=False, fontsize=8, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
