"""Progress bars: what a caller may say of them, and one that is shown where he said so."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    Bar = tqdm[Any]
else:
    Bar = tqdm  # which takes no parameters where the program runs

Progress = bool | None | Bar
"""Show a bar (True), never (False), on long work at a terminal (None); or a bar of the caller's to advance."""


def progress_bar(progress: Progress, total: int | None, unit: str = "step") -> Bar:
    """A progress bar: shown after two seconds on a terminal, at once if asked for, never if refused."""
    if isinstance(progress, tqdm):
        return progress
    if not (sys.stderr.isatty() if progress is None else progress):
        return _hidden()
    return tqdm(total=total, delay=2.0 if progress is None else 0.0, unit=unit, leave=False)


@contextmanager
def shown_bar(progress: Progress, total: int | None, unit: str = "step") -> Generator[Bar]:
    """The bar of `progress_bar`, closed in the end unless it is the caller's.

    Args:
        progress: As for `progress_bar`.
        total: How much work there is, if that is known.
        unit: What of.
    """
    bar = progress_bar(progress, total, unit)
    try:
        yield bar
    finally:
        if bar is not progress:
            bar.close()


@cache
def _hidden() -> Bar:
    """The bar of work that shows none; a new one each time would take as long as a step."""
    return tqdm(disable=True)
