"""Figures, where matplotlib is installed."""

from pathlib import Path
from typing import Any

from ..errors import InputError, MissingExtraError
from . import files


def require() -> Any:
    """matplotlib's `Figure`; for long work to ask beforehand. Raises `MissingExtraError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots", "plots") from error
    return Figure


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of a size in inches. Raises `MissingExtraError` without matplotlib."""
    return require()(figsize=(width, height), layout="constrained")


def save(drawn: Any, path: str | Path, dpi: int = 120) -> None:
    """Write a figure to a file of the kind that its name says, else a PNG, whole or not at all.

    Raises `InputError` for a kind that matplotlib does not write, `StorageError` where it cannot be written.
    """
    kind = Path(path).suffix[1:] or "png"
    kinds = drawn.canvas.get_supported_filetypes()
    if kind.lower() not in kinds:
        raise InputError(f"{path}: unknown kind {kind!r}, expected one of {', '.join(sorted(kinds))}")
    with files.replacing(path) as part:
        drawn.savefig(part, dpi=dpi, format=kind)
