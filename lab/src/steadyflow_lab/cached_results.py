"""Experiments cell by cell: each result is written to a folder as JSON once it is there, and read by the next call."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import steadyflow
import steadyflow_lab
from steadyflow._internal import files, strict_json
from steadyflow._version import __version__
from steadyflow.errors import MALFORMED, CorruptFileError
from steadyflow.runs.engines import Engine

Item = TypeVar("Item")
Result = TypeVar("Result")


def cached_results(
    engine: Engine,
    function: Callable[[Item], Result],
    cells: Sequence[tuple[str, Item]],
    folder: str | Path | None,
    stamp: dict[str, Any] | Callable[[Item], dict[str, Any]],
    read: Callable[[Any], Result],
) -> Iterator[tuple[int, Result]]:
    """Yield (k, function(item)) for each cell (name, item), in any order; what the folder holds is not computed again.

    stamp: what else decides the results, of all cells or of one item; a file of another stamp, or that other code or
    other models have made (`made_by`), is computed anew. read: a result, a dataclass or a list of them, from its JSON.

    Raises `CorruptFileError` for a damaged file.
    """
    paths = [None if folder is None else Path(folder) / f"{name}.json" for name, _ in cells]
    stamps = [stamp(item) if callable(stamp) else stamp for _, item in cells]
    there = [
        None if path is None else stored(path, mark, read, made_by()) for path, mark in zip(paths, stamps, strict=True)
    ]
    yield from ((k, result) for k, result in enumerate(there) if result is not None)
    missing = [k for k, result in enumerate(there) if result is None]
    for j, result in engine.each(function, [cells[k][1] for k in missing]):
        path = paths[missing[j]]
        if path is not None:
            about = {"stamp": stamps[missing[j]], "version": made_by()}
            text = strict_json.dumps({**about, "result": plain(result)}, indent=1)
            files.write_text(path, text + "\n")
        yield missing[j], result


@cache
def made_by() -> str:
    """Give the version with a hash of the code and the bundled models of both packages."""
    hashed = hashlib.sha256()
    for package in (steadyflow, steadyflow_lab):
        root = Path(package.__file__ or "").parent
        for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".safetensors")):
            hashed.update(path.relative_to(root).as_posix().encode())
            hashed.update(path.read_bytes())
    return f"{__version__}+{hashed.hexdigest()[:12]}"


def plain(result: Any) -> Any:
    """Turn a dataclass, or a list of them, into what JSON can hold."""
    return [plain(one) for one in result] if isinstance(result, list) else dataclasses.asdict(result)


def stored(
    path: Path, stamp: dict[str, Any], read: Callable[[Any], Result], version: str | None = None
) -> Result | None:
    """Read the result in a file; None where there is none of this stamp and, where one is given, of this version.

    Raises `CorruptFileError` for a damaged file.
    """
    if not path.is_file():
        return None
    try:
        data = strict_json.loads(files.read_text(path, 2**30))
        wanted = data["stamp"] == stamp and version in (None, data["version"])
        return read(data["result"]) if wanted else None
    except MALFORMED as error:
        raise CorruptFileError(
            f"{path}: not a result of this experiment ({error}); delete it to run it anew"
        ) from error
