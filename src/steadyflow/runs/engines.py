"""Where the work of a run is done: in this process, or on Ray.

An engine is given a job and the ranges of samples to do, and yields results as they come, in any order. Ray's tasks
are plain functions of (job, range, inputs), so that a worker or a node that dies costs only what it had in hand: it is
done again elsewhere. A range whose workers die again and again is cut up, until the samples that they die of are alone;
these are set aside.
"""

from __future__ import annotations

import dataclasses
import platform
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch

from .._internal import strict_json
from .._internal.imports import needing
from ..datasets.contents import Piece
from ..errors import InputError, SteadyflowError, StorageError
from .job import Aside
from .jobs import Job, Part, from_spec
from .prepared import Prepared, differences, with_pieces

Item = TypeVar("Item")
Result = TypeVar("Result")


class Done(NamedTuple):
    """Samples that are done."""

    start: int
    stop: int
    part: Part
    seconds: float
    worker: str
    together: int = 0
    """How many samples were computed together, where those were fewer than a block for want of memory."""
    digests: Mapping[int, str] = {}
    """The hashes of what was read, by the index of the first sample of a piece."""


class Engine(ABC):
    """Something that does work."""

    dies_with_work = False
    """Whether work that kills its process kills the driver."""

    @abstractmethod
    def run(self, job: Job, prepared: Prepared, ranges: Iterable[tuple[int, int]]) -> Iterator[Done | Aside]:
        """Do the ranges of a job; `prepared` is the job in this process. A range may come in several stretches."""

    @abstractmethod
    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """(k, function(item)) for every item, as they come."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """function(item) for every item, in their order."""
        waiting: dict[int, Result] = {}
        due = 0
        for k, result in self.each(function, items):
            waiting[k] = result
            while due in waiting:
                yield waiting.pop(due)
                due += 1


class InProcess(Engine):
    """One thing after the other, here."""

    dies_with_work = True

    def run(self, job, prepared, ranges):
        for start, stop in ranges:
            yield from _done(prepared, start, stop)

    def each(self, function, items):
        return enumerate(map(function, items))


class _Connection:
    """The one connection to Ray that a process can have, as far as an engine has made it."""

    def __init__(self):
        self.address: str | None = None
        self.job = ""
        self.busy = 0
        """Engines that are at work."""

    def is_ours(self, ray: Any) -> bool:
        """Whether the connection there is was made by an engine."""
        return ray.is_initialized() and ray.get_runtime_context().get_job_id() == self.job

    def leave(self, ray: Any, job: str) -> None:
        """Disconnect, as the engine that made the connection is gone; not another one, nor one that is in use."""
        if job == self.job and self.is_ours(ray) and not self.busy:
            ray.shutdown()


_CONNECTION = _Connection()


class Ray(Engine):
    """On a Ray cluster, or on all cores of this machine.

    A process has one connection: one that the caller has made is used as it is.

    Args:
        address: Of a running cluster ("auto" finds the one that this machine belongs to); by default one is started
            here for the first work, and stopped with this object.
        workers: At most so many at a time; by default as many as there are cores or GPUs free.
        gpus: Of a worker; one where the job is on a GPU, unless said.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: There is no cluster at the address, or this process is at work on another one.
    """

    def __init__(self, address: str | None = None, *, workers: int | None = None, gpus: float | None = None):
        if workers is not None and workers < 1:
            raise InputError(f"workers: got {workers}, expected at least 1")
        with needing("ray", "ray", extra="ray", purpose="the engine 'ray'"):
            import ray
        self._ray: Any = ray
        self._address, self._workers, self._gpus = address, workers, gpus

    def run(self, job, prepared, ranges):
        shared = strict_json.dumps(job.spec()), strict_json.dumps(prepared.facts, sort_keys=True), prepared.strict
        gpus = self._gpus if self._gpus is not None else float(job.device.startswith("cuda"))
        with_resources = {"num_cpus": job.threads, "num_gpus": gpus}
        items = (_Range(start, stop, list(prepared.pieces(start, stop))) for start, stop in ranges)
        for item, found in self._unordered(_range_of_job, shared, items, with_resources, _smaller(job, prepared)):
            if isinstance(found, _Died):
                piece = next(iter(item.pieces), None)
                name = f"sample {item.start}" if piece is None else piece.name
                yield Aside(item.start, item.stop, name, found.cause, "death")
            else:
                yield from found

    def each(self, function, items):
        for (k, _), result in self._unordered(_item, function, enumerate(items), {"num_cpus": 1}, _never_smaller):
            yield k, result

    def _unordered(
        self,
        function: Any,
        shared: Any,
        items: Iterable[Any],
        resources: dict[str, Any],
        smaller: Callable[[Any, str], list[Any] | None],
    ) -> Iterator[Any]:
        """(item, function(shared, item)) as they come, with a bounded number under way.

        An item whose worker died is tried again, in the end as the smaller items that `smaller` makes of it.
        """
        ray, pending, again = self._ray, {}, deque[Any]()
        self._connect()
        _CONNECTION.busy += 1
        try:
            remote = ray.remote(**resources, max_retries=0, retry_exceptions=False)(_guarded)
            given = ray.put((function, shared))
            queue, deaths, cut_up = iter(items), dict[int, int](), list[Any]()
            while True:
                room = self._room(resources)  # a cluster may grow and shrink
                while len(pending) < room:
                    item = again.popleft() if again else next(queue, None)
                    if item is None:
                        break
                    pending[remote.remote(given, item)] = item
                if not pending:
                    return
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=5.0)
                for reference in ready:
                    item = pending.pop(reference)
                    try:
                        answer = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        cause = self._cause(error)
                        if not isinstance(error, ray.exceptions.NodeDiedError):
                            deaths[id(item)] = deaths.get(id(item), 0) + 1
                        if deaths.get(id(item), 0) < _TRIES:
                            again.append(item)
                            time.sleep(_PAUSE)
                            continue
                        cut = smaller(item, cause)
                        if cut is None:
                            yield item, _Died(f"{cause}, {_TRIES} times")
                        again.extend(cut or ())
                        cut_up.append(item)  # kept, so that its identity is not given to another
                        continue
                    deaths.pop(id(item), None)
                    yield item, _opened(answer)
        finally:
            _CONNECTION.busy -= 1
            if pending and ray.is_initialized():  # given up: by an error, by Ctrl-C, or as no more was wanted
                for reference in pending:
                    ray.cancel(reference)

    def _cause(self, error: Any) -> str:
        """Why a task was lost, in words; raises what is no matter of the task."""
        lost = self._ray.exceptions
        if isinstance(error, lost.OutOfMemoryError):
            return "its worker ran out of memory"
        if isinstance(error, lost.ObjectStoreFullError | getattr(lost, "OutOfDiskError", lost.ObjectStoreFullError)):
            return "there was no room for its result in Ray's object store"
        if isinstance(error, lost.NodeDiedError | lost.WorkerCrashedError | lost.ObjectLostError):
            return "its worker died"
        if isinstance(error, lost.RayTaskError) and isinstance(error.cause, MemoryError):
            return "its worker ran out of memory"
        raise error

    def _connect(self) -> None:
        """Connect to the cluster; a connection that no engine has made is used as it is."""
        ray, there = self._ray, _CONNECTION
        if ray.is_initialized():
            if not there.is_ours(ray) or there.address == self._address:
                return
            if there.busy:
                raise InputError(f"address: this process is at work on another cluster ({there.address or 'its own'})")
            ray.shutdown()
        options: dict[str, Any] = {"include_dashboard": False} if self._address is None else {"address": self._address}
        try:
            ray.init(**options, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"address: no Ray cluster can be reached at {self._address!r} ({error})") from error
        there.address, there.job = self._address, ray.get_runtime_context().get_job_id()
        weakref.finalize(self, there.leave, ray, there.job)

    def _room(self, resources: dict[str, Any]) -> int:
        """How many tasks to keep under way: two for each worker, so that none waits for this process."""
        if self._workers is not None:
            return self._workers
        there = self._ray.cluster_resources()
        each = [there.get("CPU", 1.0) / resources["num_cpus"]]
        if resources.get("num_gpus"):
            each.append(there.get("GPU", 0.0) / resources["num_gpus"])
        return 2 * max(1, int(min(each)))


ENGINES = ("local", "ray")


def engine(name: str, address: str | None = None, workers: int | None = None) -> Engine:
    """An engine by name.

    Args:
        name: "local" or "ray".
        address: Of a Ray cluster.
        workers: At most so many, on Ray.

    Raises:
        InputError: There is no such engine, or something is given that only Ray takes.
    """
    if name not in ENGINES:
        raise InputError(f"engine: got {name!r}, expected one of {', '.join(ENGINES)}")
    if name == "ray":
        return Ray(address, workers=workers)
    if address is not None or workers is not None:
        raise InputError("address, workers: only valid with --engine ray")
    return InProcess()


def _done(prepared: Prepared, start: int, stop: int, together: int | None = None) -> Iterator[Done | Aside]:
    begin = time.perf_counter()
    for found in prepared.work(start, stop, together):
        if isinstance(found, Aside):
            yield found
            continue
        end = time.perf_counter()
        worker = processor(prepared.job.device)
        yield Done(found.start, found.stop, found.part, end - begin, worker, found.together, found.digests)
        begin = end


def processor(device: str) -> str:
    """The kind of processor that does the work: results are the same to the bit on the same kind."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _guarded(given: tuple[Callable[[Any, Any], Any], Any], item: Any) -> tuple[str, Any]:
    """The result, or an error of ours as text: exceptions do not all survive being sent."""
    function, shared = given
    try:
        return "result", function(shared, item)
    except SteadyflowError as error:
        return "error", f"{error} ({type(error).__name__}, in a worker)"


def _opened(answer: tuple[str, Any]) -> Any:
    kind, value = answer
    if kind == "error":
        raise SteadyflowError(value)
    return value


def _item(function: Callable[[Any], Any], item: tuple[int, Any]) -> Any:
    return function(item[1])


class _Range(NamedTuple):
    """Samples for a worker, and what they are read from."""

    start: int
    stop: int
    pieces: list[Piece]
    together: int | None = None
    """How many to compute together, where those are fewer than a block."""


class _Died(NamedTuple):
    """What became of an item that no worker could finish."""

    cause: str


_TRIES = 3
"""How many workers an item may cost before it is cut up, or given up."""


_PAUSE = 0.2
"""Seconds before an item is tried again, so that what failed may recover."""


def _never_smaller(item: Any, cause: str) -> list[Any] | None:
    raise StorageError(f"engine: {cause}, {_TRIES} times, at the same piece of work")


def _smaller(job: Job, prepared: Prepared) -> Callable[[_Range, str], list[_Range] | None]:
    """What makes smaller ranges of one: its blocks, then halves of a block, down to single samples."""

    def cut(item: _Range, cause: str) -> list[_Range] | None:
        start, stop = item.start, item.stop
        if stop - start == 1 or (stop - start <= job.block and not job.alone):
            return None
        if stop - start > job.block:
            size, together = job.block, None
        else:
            size = together = -(-(stop - start) // 2)
        found = [(a, min(a + size, stop)) for a in range(start, stop, size)]
        return [_Range(a, b, list(prepared.pieces(a, b)), together) for a, b in found]

    return cut


def _range_of_job(shared: tuple[str, str, bool], item: _Range) -> list[Done | Aside]:
    text, expected, strict = shared
    prepared = dataclasses.replace(_prepared(text, expected), strict=strict)
    found = _done(with_pieces(prepared, item.pieces), item.start, item.stop, item.together)
    return [one if isinstance(one, Aside) else one._replace(part=one.part._replace(kept=None)) for one in found]


@lru_cache(maxsize=1)
def _prepared(text: str, expected: str) -> Prepared:
    """The job in this worker, kept for its next ranges; the model must be the one that the driver found."""
    prepared = from_spec(strict_json.loads(text)).opened(listed=True)
    found, wanted = strict_json.loads(strict_json.dumps(prepared.facts)), strict_json.loads(expected)
    differing = differences(wanted, found)
    if differing:
        raise InputError(
            f"model: {prepared.job.model!r} is another one on {platform.node()} than where the run is driven "
            f"({'; '.join(differing)}); put the same weights, inputs and packages on every node"
        )
    return dataclasses.replace(prepared, known=found)
