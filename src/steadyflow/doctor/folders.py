"""Folders that steadyflow, or a package that it calls, writes to; nothing is left in them.

Results are written beside their place and renamed. What goes to a pipe or a stream is first made in the temporary
folder. Pipelines that are fetched by name go to the cache of the hub, and Matplotlib and Ray have folders of their own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from .._internal.places import check_writable
from ..errors import InputError
from ..solvers import registry
from .findings import Finding, Status
from .settings import offline
from .versions import installed

_LEAST = 2**28
"""Free bytes below which a folder is called full."""


def findings() -> Iterator[Finding]:
    """Look at each folder."""
    temporary = None
    try:
        temporary = tempfile.gettempdir()
    except OSError as error:
        says = f"none can be written to ({error.strerror})"
        yield Finding("folders", "temporary", "fail", says, "set TMPDIR to a folder that can be written to")
    else:
        yield _written("temporary", Path(temporary), "fail", "TMPDIR", "what goes to pipes and streams")
    yield _written("working", Path("."), "note", "", "results without a folder of their own")
    if installed("huggingface-hub") is not None:
        status: Status = "note" if offline() else "fail"
        yield _written("hub", hub(), status, "HF_HOME", "pipelines that are fetched by name")
    if installed("matplotlib") is not None:
        yield _written("matplotlib", _matplotlib(), "note", "MPLCONFIGDIR", "its list of fonts")
    above = os.environ.get("RAY_TMPDIR") or temporary
    if installed("ray") is not None and above is not None:
        place = Path(above, "ray")
        yield _written("ray", place, "fail", "RAY_TMPDIR", "runs with --engine ray")
    if os.environ.get(registry.FOLDER):
        yield _tuned(Path(os.environ[registry.FOLDER]))


def hub() -> Path:
    """The cache of the hub, as huggingface_hub finds it."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def _matplotlib() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MPLCONFIGDIR") or os.path.join(cache, "matplotlib")).expanduser()


def _written(name: str, path: Path, otherwise: Status, variable: str, purpose: str) -> Finding:
    """Whether a folder can be written to.

    Args:
        name: What it is called.
        path: Where it is; it need not be there yet.
        otherwise: The status if it cannot.
        variable: The environment variable that moves it.
        purpose: What is written there.
    """
    figures = {"path": os.path.realpath(path)}
    remedy = f"set {variable} to another folder" if variable else "give --out and --run folders elsewhere"
    try:
        check_writable(path, name, folder=True)
    except InputError as error:
        return Finding("folders", name, otherwise, f"{error}; for {purpose}", remedy, figures)
    nearest = next(there for there in (path, *path.absolute().parents) if there.is_dir())
    free = shutil.disk_usage(nearest).free
    says = f"{figures['path']}, {free / 2**30:.1f} GiB free, for {purpose}"
    if free < _LEAST:
        return Finding("folders", name, otherwise, f"{says}: nearly full", f"free some space, or {remedy}", figures)
    return Finding("folders", name, "pass", says, figures={**figures, "free": free})


def _tuned(path: Path) -> Finding:
    """The user's own folder of tuned solvers, whose files are read."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = len(registry.names()) - len(registry.built_in())
    figures = {"path": str(path), "solvers": count}
    if told:
        says = "; ".join(str(one.message) for one in told)
        return Finding(
            "folders", "tuned solvers", "fail", says, f"mend or remove it, or set {registry.FOLDER}", figures
        )
    return Finding("folders", "tuned solvers", "pass", f"{path}, with {count} of them", figures=figures)
