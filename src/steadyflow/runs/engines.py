"""Where the work of a run is done: in this process, or on Ray.

An engine is given a job and the ranges of samples to do, and yields results as they come, in any order. Ray's tasks
are plain functions of (job, range), so that a worker or a node that dies costs only what it had in hand: Ray runs it
again elsewhere.
"""

from __future__ import annotations

import json
import platform
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch

from .._internal.imports import needing
from ..errors import InputError, SteadyflowError
from .jobs import Job, Part, Prepared, from_spec

Item = TypeVar("Item")
Result = TypeVar("Result")


class Done(NamedTuple):
    """A range that is done."""

    start: int
    stop: int
    part: Part
    seconds: float
    worker: str


class Engine(ABC):
    """Something that does work."""

    @abstractmethod
    def run(self, job: Job, prepared: Prepared, ranges: Iterable[tuple[int, int]]) -> Iterator[Done]:
        """Do the ranges of a job; `prepared` is the job in this process."""

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

    def run(self, job, prepared, ranges):
        for start, stop in ranges:
            yield _done(prepared, start, stop)

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
        shared = json.dumps(job.spec()), prepared.fingerprint
        gpus = self._gpus if self._gpus is not None else float(job.device.startswith("cuda"))
        with_resources = {"num_cpus": job.threads, "num_gpus": gpus}
        for (start, stop), (part, seconds, worker) in self._unordered(_range_of_job, shared, ranges, with_resources):
            yield Done(start, stop, part, seconds, worker)

    def each(self, function, items):
        for (k, _), result in self._unordered(_item, function, enumerate(items), {"num_cpus": 1}):
            yield k, result

    def _unordered(self, function: Any, shared: Any, items: Iterable[Any], resources: dict[str, Any]) -> Iterator[Any]:
        """(item, function(shared, item)) as they come, with a bounded number under way."""
        ray, pending = self._ray, {}
        self._connect()
        _CONNECTION.busy += 1
        try:
            remote = ray.remote(**resources, max_retries=-1, retry_exceptions=False)(_guarded)
            given = ray.put((function, shared))
            queue = iter(items)
            while True:
                room = self._room(resources)  # a cluster may grow and shrink
                while len(pending) < room:
                    item = next(queue, None)
                    if item is None:
                        break
                    pending[remote.remote(given, item)] = item
                if not pending:
                    return
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=5.0)
                for reference in ready:
                    item = pending.pop(reference)
                    yield item, _opened(ray.get(reference))
        finally:
            _CONNECTION.busy -= 1
            if pending and ray.is_initialized():  # given up: by an error, by Ctrl-C, or as no more was wanted
                for reference in pending:
                    ray.cancel(reference)

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


def _done(prepared: Prepared, start: int, stop: int) -> Done:
    begin = time.perf_counter()
    part = prepared.work(start, stop)
    return Done(start, stop, part, time.perf_counter() - begin, processor(prepared.job.device))


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


def _range_of_job(shared: tuple[str, str], limits: tuple[int, int]) -> tuple[Part, float, str]:
    done = _done(_prepared(*shared), *limits)
    return done.part._replace(kept=None), done.seconds, done.worker


@lru_cache(maxsize=1)
def _prepared(text: str, expected: str) -> Prepared:
    """The job in this worker, kept for its next ranges; the model must be the one that the driver found."""
    prepared = from_spec(json.loads(text)).prepare()
    if prepared.fingerprint != expected:
        raise InputError(
            f"model: {prepared.job.model!r} is another one on {platform.node()} than where the run is driven "
            f"(fingerprint {prepared.fingerprint}, expected {expected}); put the same weights on every node"
        )
    return prepared
