"""What drives a run in a folder: what is to be done, what has changed, and what was set aside."""

from __future__ import annotations

import dataclasses
import signal
import threading
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
"""After so many samples that raised an error or do not fit the model, and none that could be computed, a run ends."""
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
    given: tuple[str, ...] = ()
    """Which of the words about inputs were given."""


def in_folder(job: Job, folder: Path, engine: Engine, size: int, care: Care, model: Any) -> RunFolder:
    """Do a job in a folder; see `run_job`."""
    asked, wanted = job, job.n
    with ExitStack() as stack:
        stack.enter_context(RunFolder.alone(folder))
        there = RunFolder.open(folder) if (folder / "manifest.json").is_file() else None
        if there is not None and there.manifest.get("asked") == {**_plainly(asked), "n": there.job.n}:
            watched = isinstance(there.manifest.get("input"), dict)
            job = there.job if watched else dataclasses.replace(there.job, n=wanted)
        prepared = dataclasses.replace(job.opened(model, listed=there is not None), strict=care.strict)
        facts = prepared.facts
        prepared = dataclasses.replace(prepared, known=facts)
        refuse_unknown(facts, care.version)
        facts = facts if care.version is None else {**facts, "model_version": care.version}
        pins, about = None, None
        if care.given and (prepared.data is None or prepared.data.pieces(job.block) is None):
            raise InputError(f"{care.given[0]}: no inputs are read from files here, so that it would change nothing")
        if isinstance(prepared.data, Source) and prepared.data.pieces(job.block) is not None:
            about = _listed(folder, there, prepared, care)
            pins = Pins(stack.enter_context(connected(folder / "inputs.sqlite")))
            prepared = dataclasses.replace(prepared, pieces=pins.between)
            facts = {**facts, "input": about}
        prepared = prepared.settled()
        changes = Changes()
        if there is not None and pins is not None and about is not None:
            changes = _changes(prepared, pins, about, care)
            if wanted != job.n:
                _check_number(wanted, job, changes)
        run = RunFolder.begun(folder, prepared.job, {**facts, "asked": {**_plainly(asked), "n": prepared.job.n}})
        with writing(run) as writer:
            kept = _resumed(writer, pins, changes, care, job.n)
            dropped = _agreed(kept, writer.aside(), changes, care)
            for start, stop in dropped:
                writer.drop(start, stop)
            if pins is not None and changes.changed:
                pins.update(changes.changed)
                run = run.noting(input={**(about or {}), "digest": pins.digest()})
            ranges = _ranges(writer, prepared, engine, changes, writer.shards(), size, care)
            with _in_order():
                _do(run, writer, engine, prepared, ranges, pins, care)
            if pins is not None and pins.learnt:
                run = run.noting(input={**(about or {}), "digest": pins.digest()})
    return run


@contextmanager
def _in_order() -> Iterator[None]:
    """Make a context that SIGTERM ends as Ctrl-C does, so that the work in hand is not taken for what killed it."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def ended(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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


def _changes(prepared: Prepared, pins: Pins, about: dict[str, Any], care: Care) -> Changes:
    """How the inputs differ from those that a run began with."""
    assert isinstance(prepared.data, Source)
    count = len(pins)
    bar = progress_bar(care.progress, count, unit="input")
    try:
        whole = about.get("there") == count
        return pins.changes(prepared.data, content=care.content, told=bar.update, whole=whole)
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


def _resumed(writer: Writer, pins: Pins | None, changes: Changes, care: Care, n: int) -> list[Shard]:
    different = {piece.start for piece in [*changes.changed, *changes.gone]}

    def inputs(start: int, stop: int) -> str | None:
        """What stands for the inputs as they were, but for those of which it is decided later."""
        if pins is None or (different and any(piece.start in different for piece in pins.between(start, stop))):
            return None
        return pins.expected(start, stop)

    bar = progress_bar(care.progress, n, unit="sample checked")
    try:
        kept, _ = writer.resume(bar.update, inputs)
    finally:
        bar.close()
    return kept


def _agreed(kept: list[Shard], aside: list[Aside], changes: Changes, care: Care) -> list[tuple[int, int]]:
    """What is to be computed again, as its inputs have changed.

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
    used = {piece.start for piece in different}
    new = [piece.name for piece in changes.changed if piece.start not in used and not among(aside, piece)]
    if new:
        warnings.warn(f"input: {_some(new)} changed before it was computed, and is taken as it is now", stacklevel=5)
    if changes.more:
        words = "came after the run began and is no part of it"
        warnings.warn(f"input: {_some(changes.more)} {words}", stacklevel=5)
    return [(piece.start, piece.stop) for piece in different]


def _ranges(
    writer: Writer,
    prepared: Prepared,
    engine: Engine,
    changes: Changes,
    kept: list[Shard],
    size: int,
    care: Care,
) -> Iterator[tuple[int, int]]:
    """The ranges to do: first what nobody has tried, then what was set aside and may succeed now."""
    job, aside = prepared.job, writer.aside()
    fresh = list(missing(job, _blocks(job, [*kept, *aside]), size))
    tried, deaths = list[Aside](), writer.tries()
    for one in aside:
        if one.kind == "death" and engine.dies_with_work:
            again = any(a < one.stop and one.start < b for a, (b, _) in deaths.items())
            if again and not any(among([one], piece) for piece in changes.changed):
                writer.set_aside(one)  # it was tried once more, and the process died
                continue
        elif one.kind == "input" and not care.strict and all(map(prepared.unreadable, range(one.start, one.stop))):
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
    job, failed, wrong = prepared.job, 0, 0
    done = sum(shard.stop - shard.start for shard in writer.shards())
    bar = progress_bar(care.progress, job.n, unit="sample")
    try:
        bar.update(done)
        for result in engine.run(job, prepared, ranges):
            if isinstance(result, Aside):
                if care.strict:
                    raise InputError(f"{result.name}: {result.cause}")
                writer.set_aside(result)
                count = result.stop - result.start
                failed += count
                wrong += count if result.kind == "error" or result.cause.startswith("InputError") else 0
                if not done and failed == wrong >= LIMIT:
                    break
            else:
                found, together = (result.part, result.seconds, result.worker), result.together
                writer.add(result.start, result.stop, *found, together, result.digests)
                done += result.stop - result.start
                if pins is not None and pins.incomplete:
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
