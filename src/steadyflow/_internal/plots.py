"""Plots: matplotlib figures, made and saved without pyplot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from . import files
from .imports import needing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require() -> type[Figure]:
    """matplotlib's class `Figure`; long work calls this before it begins.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needing("matplotlib", "matplotlib", extra="plots", purpose="plotting"):
        from matplotlib.figure import Figure
    return Figure


def figure(width: float, height: float) -> Figure:
    """Make an empty matplotlib figure.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return require()(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: str | Path, dpi: int = 120) -> None:
    """Write a figure; an existing file is replaced whole or not at all.

    Args:
        drawn: The figure.
        path: The file, whose suffix says the kind; PNG without a suffix.
        dpi: Pixels per inch.

    Raises:
        InputError: matplotlib does not write this kind of file.
        StorageError: The file cannot be written.
    """
    kind = check_kind(path)
    with files.replacing(path) as part:
        drawn.savefig(part, dpi=dpi, format=kind)


def check_kind(path: str | Path) -> str:
    """The kind of picture that a file is to be.

    Args:
        path: The file, whose suffix says the kind; PNG without a suffix.

    Raises:
        InputError: matplotlib does not write this kind of file.
        MissingExtraError: matplotlib is not installed.
    """
    require()
    from matplotlib.backend_bases import FigureCanvasBase

    kind, kinds = Path(path).suffix[1:] or "png", FigureCanvasBase.get_supported_filetypes()
    if kind.lower() not in kinds:
        raise InputError(f"{path}: unknown kind {kind!r}, expected one of {', '.join(sorted(kinds))}")
    return kind
