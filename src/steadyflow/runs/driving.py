"""What drives a run in a folder: what is to be done, what has changed, and what was set aside."""

from __future__ import annotations

import dataclasses
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._integrate import progress_bar
from ..datasets.contents import Piece
from ..datasets.sources import Source
from ..errors import InputError
from .database import connected
from .engines import Engine
from .folder import RunFolder, Shard
from .job import Aside
from .jobs import Job, from_spec
from .pins import Changes, Pins, make
from .prepared import Prepared, refuse_unknown
from .writer import Writer, writing

LIMIT = 128
"""After so many samples that could not be computed, and none that could, a run ends."""
_TRIES = 3
"""How often a process may die of the same block before it is set aside."""


@dataclass(frozen=True)
class Care:
    """How a run deals with what can go wrong; see `run_job`."""

    strict: bool = False
    content: bool = True
    recompute: bool = False
    version: str | None = None
    progress: bool | None = None


def in_folder(job: Job, folder: Path, engine: Engine, size: int, care: Care, model: Any) -> RunFolder:
    """Do a job in a folder; see `run_job`."""
    there = RunFolder.open(folder) if (folder / "manifest.json").is_file() else None
    asked, wanted = job, job.n
    if there is not None and there.manifest.get("asked") == {**_plainly(asked), "n": there.job.n}:
        watched = isinstance(there.manifest.get("input"), dict)
        job = there.job if watched else dataclasses.replace(there.job, n=wanted)
    prepared = dataclasses.replace(job.opened(model, listed=there is not None), strict=care.strict)
    facts = prepared.facts
    prepared = dataclasses.replace(prepared, known=facts)
    refuse_unknown(facts, care.version)
    facts = facts if care.version is None else {**facts, "model_version": care.version}
    with ExitStack() as stack:
        stack.enter_context(RunFolder.alone(folder))
        pins, about = None, None
        if isinstance(prepared.data, Source) and prepared.data.pieces(job.block) is not None:
            about = _listed(folder, there, prepared, care)
            pins = Pins(stack.enter_context(connected(folder / "inputs.sqlite")))
            prepared = dataclasses.replace(prepared, pieces=pins.between)
            facts = {**facts, "input": about}
        prepared = prepared.settled()
        changes = Changes()
        if there is not None and pins is not None and about is not None:
            changes = _changes(there, prepared, pins, about, care)
            if wanted != job.n:
                _check_number(wanted, job, changes)
        run = RunFolder.begun(folder, prepared.job, {**facts, "asked": {**_plainly(asked), "n": prepared.job.n}})
        with writing(run) as writer:
            kept = _resumed(writer, care, job.n)
            dropped = _agreed(kept, writer.aside(), changes, pins, care)
            for start, stop in dropped:
                writer.drop(start, stop)
            kept = [shard for shard in kept if not any(a < shard.stop and shard.start < b for a, b in dropped)]
            ranges = _ranges(writer, prepared, engine, changes, kept, size)
            _do(run, writer, engine, prepared, ranges, pins, care)
    return run


def among(spans: Sequence[Shard | Aside], piece: Piece) -> bool:
    """Whether some samples of a piece are in stretches that follow each other and do not overlap."""
    at = bisect_left(spans, piece.stop, key=lambda span: span.start) - 1  # the last that begins before its end
    return at >= 0 and spans[at].stop > piece.start


def _plainly(job: Job) -> dict[str, Any]:
    return from_spec(job.spec()).spec()


def _listed(folder: Path, there: RunFolder | None, prepared: Prepared, care: Care) -> dict[str, Any]:
    """The facts about the list of the inputs, which is made where it is not there."""
    job, data, path = prepared.job, prepared.data, folder / "inputs.sqlite"
    assert isinstance(data, Source)
    known = None if there is None else there.manifest.get("input")
    if path.is_file() and isinstance(known, dict):
        return known
    count = data.total()
    bar = progress_bar(care.progress, None, unit="input")
    try:
        make(path, data, min(job.n, count), job.block, content=care.content, told=bar.update)
    finally:
        bar.close()
    with connected(path) as base:
        found = {"inputs": len(Pins(base)), "there": count, "digest": Pins(base).digest()}
    if isinstance(known, dict) and known.get("digest") != found["digest"]:
        path.unlink()
        raise InputError(
            f"run: the list of the inputs is gone from {folder}, and they are not what they were when it began; bring "
            "them back, or give a new folder"
        )
    return found


def _changes(there: RunFolder, prepared: Prepared, pins: Pins, about: dict[str, Any], care: Care) -> Changes:
    """How the inputs differ from those that a run began with."""
    assert isinstance(prepared.data, Source)
    bar = progress_bar(care.progress, about["inputs"], unit="input")
    try:
        return pins.changes(
            prepared.data, there.job.block, content=care.content, told=bar.update, there=about.get("there")
        )
    finally:
        bar.close()


def _check_number(wanted: int, job: Job, changes: Changes) -> None:
    """Raise `InputError` unless inputs that are gone explain why fewer samples are asked for."""
    if wanted == job.n - len(changes.gone):
        return
    more = f", as there are others now ({_some(changes.more)})" if changes.more else ""
    raise InputError(f"n: the run is about {job.n} samples, and {wanted} are asked for{more}; give --n {job.n} to go "
                     "on with those that it began with, or a new folder")  # fmt: skip


def _some(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(map(str, found[:5])) + more


def _resumed(writer: Writer, care: Care, n: int) -> list[Shard]:
    bar = progress_bar(care.progress, n, unit="sample checked")
    try:
        kept, _ = writer.resume(bar.update)
    finally:
        bar.close()
    return kept


def _agreed(
    kept: list[Shard], aside: list[Aside], changes: Changes, pins: Pins | None, care: Care
) -> list[tuple[int, int]]:
    """What is to be computed again, as its inputs have changed; the list of the inputs is brought up to date.

    Raises:
        InputError: That was not asked for.
    """
    different = [piece for piece in [*changes.changed, *changes.gone] if among(kept, piece)]
    if different and not care.recompute:
        gone = {piece.start for piece in changes.gone}
        names = _some(f"{piece.name} {'is gone' if piece.start in gone else 'has changed'}" for piece in different)
        raise InputError(
            f"input: {names} since the run began, and results were computed from it; bring it back, give a new folder, "
            "or have those results computed again (recompute_changed, --recompute-changed)"
        )
    new = [piece.name for piece in changes.changed if piece not in different and not among(aside, piece)]
    if pins is not None:
        pins.update(changes.changed)
    if new:
        warnings.warn(f"input: {_some(new)} changed before it was computed, and is taken as it is now", stacklevel=5)
    if changes.more:
        words = "came after the run began and is no part of it"
        warnings.warn(f"input: {_some(changes.more)} {words}", stacklevel=5)
    return [(piece.start, piece.stop) for piece in different]


def _ranges(
    writer: Writer, prepared: Prepared, engine: Engine, changes: Changes, kept: list[Shard], size: int
) -> Iterator[tuple[int, int]]:
    """The ranges to do: first what nobody has tried, then what was set aside and may succeed now."""
    job, aside = prepared.job, writer.aside()
    fresh = list(missing(job, _blocks(job, [*kept, *aside]), size))
    tried = []
    for one in aside:
        changed = any(piece.start < one.stop and one.start < piece.stop for piece in changes.changed)
        if one.kind == "death" and engine.dies_with_work and not changed:
            continue
        if one.kind == "input" and all(prepared.unreadable(k) for k in range(one.start, one.stop)):
            continue
        tried.append(one)
    blocks = {a for one in tried for a in range(one.start // job.block * job.block, one.stop, job.block)}
    again = [(a, min(a + job.block, job.n)) for a in sorted(blocks) if not any(x <= a < y for x, y in fresh)]
    ranges = [*fresh, *again]
    return _begun(writer, prepared, ranges) if engine.dies_with_work else iter(ranges)


def _blocks(job: Job, done: Iterable[Shard | Aside]) -> list[Shard]:
    """The blocks all of whose samples are done, as stretches in order."""
    found: list[Shard] = []
    at = start = 0

    def close(stop: int) -> None:
        whole = -(-start // job.block) * job.block, stop if stop == job.n else stop // job.block * job.block
        if whole[0] < whole[1]:
            found.append(Shard(*whole, "", 0.0, ""))

    for one in sorted(done, key=lambda one: one.start):
        if one.start > at:
            close(at)
            start = one.start
        at = max(at, one.stop)
    close(at)
    return found


def missing(job: Job, kept: list[Shard], size: int) -> Iterator[tuple[int, int]]:
    """The ranges that are not done, cut into shards."""
    at = 0
    for start, stop in [*((one.start, one.stop) for one in kept), (job.n, job.n)]:
        for begin in range(at, start, size):
            yield begin, min(begin + size, start)
        at = stop


def _begun(writer: Writer, prepared: Prepared, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The ranges, entered before they are begun, so that those of which the process dies are found and set aside."""
    block, tries = prepared.job.block, writer.tries()
    for start, stop in ranges:
        deaths = max((count for a, (b, count) in tries.items() if a < stop and start < b), default=0)
        size = block if deaths >= _TRIES - 1 else stop - start
        for a in range(start, stop, size):
            b = min(a + size, stop)
            last, count = tries.get(a, (0, 0))
            if last == b and b - a <= block and count >= _TRIES:
                listed = prepared.pieces(a, b)
                name = listed[0].name if len(listed) == 1 else f"samples {a} to {b - 1}"
                writer.set_aside(Aside(a, b, name, f"the process that computed it died {count} times", "death"))
                continue
            writer.try_of(a, b)
            yield a, b


def _do(
    run: RunFolder,
    writer: Writer,
    engine: Engine,
    prepared: Prepared,
    ranges: Iterator[tuple[int, int]],
    pins: Pins | None,
    care: Care,
) -> None:
    """Do ranges, and keep what comes."""
    job, failed = prepared.job, 0
    done = sum(shard.stop - shard.start for shard in writer.shards())
    bar = progress_bar(care.progress, job.n, unit="sample")
    try:
        bar.update(done)
        for result in engine.run(job, prepared, ranges):
            if isinstance(result, Aside):
                if care.strict:
                    raise InputError(f"{result.name}: {result.cause}")
                writer.set_aside(result)
                failed += result.stop - result.start
                if not done and failed >= LIMIT:
                    break
            else:
                writer.add(result.start, result.stop, result.part, result.seconds, result.worker, result.together)
                done += result.stop - result.start
                if pins is not None and not care.content:
                    pins.learn(result.digests)
            bar.update(result.stop - result.start)
    except BaseException:
        writer.forget_tries()  # this process has not died of it
        raise
    finally:
        bar.close()
    aside = writer.aside()
    if aside and not done:
        raise InputError(f"run: none of the samples could be computed; {aside[0].name}: {aside[0].cause}")
    if aside:
        warnings.warn(f"{run.path}: {finished_without(aside, job.n)}", stacklevel=5)


def finished_without(aside: list[Aside], n: int) -> str:
    """What was set aside of a run, in words.

    Args:
        aside: What was set aside.
        n: The samples of the run.
    """
    count = sum(one.stop - one.start for one in aside)
    return f"finished without {count} of {n} samples: " + _some(f"{one.name} ({one.cause})" for one in aside)
