"""Do to runs whatever goes wrong with them, and see that the bits are right:  python scripts/faults.py [--times 500]

Each trial begins a random small run in a folder (of `sample`, `invert`, `reconstruct` or `edit`, of the exact mixture
or the bundled digits, of arrays or pictures, with random blocks and shards) and does several random things to it: kills
the process (at a random moment, or at a random place of the code that keeps the folder), fills the disk, changes inputs
between and under the work (also of the same size and time), damages or removes them, holds the index, lets a block end
its process once or always, damages or deletes shards, the index or the list of the inputs, adds files of others, copies
the folder, begins the same run twice at once. What a finished run hands out is looked at each time: nothing of it may
come from other inputs than those that it began with. In the end all is repaired and the same command is repeated until
nothing is missing; the samples must then equal those of an undisturbed run on the same inputs to the bit, each once, in
the folder and in its copies; no sound shard may have been computed again whose inputs were never touched; and no file
of others may have been touched.

One line a trial; the exit status says whether all went well. Linux, as processes are forked. The disk that is filled is
one in memory where mounting is allowed; elsewhere writing fails at a random moment.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from steadyflow._internal import files
from steadyflow.errors import SteadyflowError
from steadyflow.runs import (
    Editing,
    InProcess,
    Inverting,
    Job,
    Reconstructing,
    RunFolder,
    Sampling,
    database,
    driving,
    folder,
    pins,
    prepared,
    run_job,
    writer,
)
from steadyflow.runs.exporting import results
from steadyflow.runs.folder import SHARD, load_shard

PATIENCE = 120.0
DONE, WITHOUT, REFUSED, FULL, CORRUPT, BUG, DEAD = 0, 3, 4, 5, 6, 70, 77
"""How an attempt ends; `WITHOUT` some samples, as the commands say it."""
KEEPERS = {module.__file__ for module in (database, driving, files, folder, pins, writer)}
"""The code that keeps the folder of a run."""
PLACES = 280
"""About so many places of it are passed."""
TAILS = ("", " b", "\n", "'\"", "ü", "\udcff", ".bmp", "%20", "-;--")
"""Odd ends of names."""


# ------------------------------------------------------------------------------------------------------------- inputs


class Inputs:
    """Files that a run works on, each sample in a version; `broken` ones cannot be read.

    Args:
        place: A folder of its own.
        suffix: Of the files; that of arrays makes one file.
        shape: Of a sample.
        n: How many.
        rng: Decides the names.
    """

    def __init__(self, place: Path, suffix: str, shape: tuple[int, ...], n: int, rng: random.Random):
        self.suffix, self.shape, self.versions = suffix, shape, [0] * n
        self.broken, self.touched = set[int](), set[int]()
        self.is_array = suffix in (".npy", ".safetensors")
        self.path = place / f"x{suffix}" if self.is_array else place
        self._names = [f"{k:02d}{rng.choice(TAILS)}{suffix}" for k in range(n)]
        place.mkdir(parents=True)
        self.write(range(n))

    def _sample(self, k: int) -> np.ndarray:
        rng = np.random.default_rng([k, self.versions[k]])
        if not self.is_array:
            return rng.integers(0, 255, self.shape[1:], dtype=np.uint8)
        return rng.uniform(-1, 1, self.shape).astype(np.float32)

    def write(self, samples: Any, path: Path | None = None) -> None:
        """Write samples as they should be; of an array, all."""
        path = self.path if path is None else path
        if not self.is_array:
            for k in samples:
                _clear(path / self._names[k])
                Image.fromarray(self._sample(k)).save(path / self._names[k])
            return
        _clear(path)
        x = np.stack([self._sample(k) for k in range(len(self.versions))])
        if self.suffix == ".npy":
            np.save(path, x)
        else:
            save_file({"x": torch.from_numpy(x)}, path)

    def change(self, samples: list[int], keep_time: bool) -> None:
        """Other contents for good."""
        there = {self.path} if self.is_array else {self.path / self._names[k] for k in samples}
        times = {file: file.stat() for file in there if file.is_file()}
        for k in samples:
            self.versions[k] += 1
        self.touched |= set(samples)
        if self.is_array and self.broken:
            self.broken.clear()
        self.broken -= set(samples)
        self.write(samples)
        for file, state in times.items():
            if keep_time:
                os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))

    def damage(self, samples: list[int], how: str) -> None:
        """Make samples unreadable; of an array, all."""
        there = {self.path} if self.is_array else {self.path / self._names[k] for k in samples}
        gone = range(len(self.versions)) if self.is_array else samples
        self.broken |= set(gone)
        self.touched |= set(gone)
        for file in there:
            size = file.stat().st_size if file.is_file() else 60
            _clear(file)
            if how == "truncated":
                file.write_bytes(b"BM" + bytes(20))
            elif how == "garbage":
                file.write_bytes(os.urandom(size))
            elif how == "loop":
                file.symlink_to(file)
            elif how == "folder":
                file.mkdir()

    def repair(self) -> None:
        """Make all samples readable again, as they last were."""
        if self.broken:
            self.write(sorted(self.broken))
        self.broken.clear()


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------------- jobs


def random_job(place: Path, rng: random.Random) -> tuple[Job, int | None, Inputs | None]:
    """A job, the samples of its shards, and its inputs if it has any."""
    n, block = rng.randint(1, 14), rng.randint(1, 5)
    shard = rng.choice([None, block, 2 * block, 3 * block])
    words: dict[str, Any] = {"n": n, "block": block, "steps": rng.randint(1, 3)}
    task = rng.choice(["sample", "invert", "reconstruct", "edit"])
    model = "digits" if task == "edit" else rng.choice(["mixture", "digits"])
    if task == "sample":
        solver = rng.choice(["ddim", "ddpm", "dpmpp-2m"])
        return Sampling(model, solver=solver, seed=rng.randint(0, 9), **words), shard, None
    if rng.random() < 0.1:  # data of the model's own
        inputs, given = None, None
    else:
        suffix = rng.choice((".npy", ".safetensors", ".bmp", ".png")[: 2 if model == "mixture" else 4])
        inputs = Inputs(place / "in", suffix, (2,) if model == "mixture" else (1, 8, 8), n, rng)
        given = str(inputs.path)
    if task == "invert":
        return Inverting(model, solver=rng.choice(["ddim", "rex-midpoint"]), input=given, **words), shard, inputs
    if task == "reconstruct":
        return Reconstructing(model, solver=rng.choice(["ddim", "rex-midpoint"]), input=given, **words), shard, inputs
    return Editing(model, target=rng.randint(0, 9), input=given, **words), shard, inputs


# ----------------------------------------------------------------------------------------------------------- attempts


@dataclass
class Plan:
    """What is to happen to one attempt."""

    recompute: bool = False
    kill: float | None = None
    """Seconds until the process is killed."""
    kill_at: int | None = None
    """The place, in what keeps the folder, at which it is killed."""
    at: int = 0
    """After so many results something is done to the inputs."""
    act: tuple[str, list[int], str] | None = None
    deadly: int | None = None
    """The block that ends its process,"""
    once: Path | None = None
    """only where this file is not there yet."""
    failing: int | None = None
    """The write that fails, where no disk can be filled."""
    hold: tuple[str, float, float] | None = None
    """A statement that holds the index, when, and how long."""
    twice: bool = False
    copy: float | None = None
    """Seconds until the folder is copied."""


@dataclass
class Trial:
    """A run and what has been done to it."""

    job: Job
    shard: int | None
    inputs: Inputs | None
    folder: Path
    place: Path
    faults: Counter[str] = field(default_factory=Counter)
    foreign: dict[Path, bytes] = field(default_factory=dict)
    copies: list[Path] = field(default_factory=list)
    died: bool = False
    damaged: bool = False
    """Whether the index or the list of the inputs has been damaged and not been deleted yet."""
    words: str = ""

    def apply(self, act: tuple[str, list[int], str]) -> None:
        """Do something to the inputs."""
        assert self.inputs is not None
        kind, samples, how = act
        if kind == "change":
            self.inputs.change(samples, how == "same time")
        else:
            self.inputs.damage(samples, how)


class Watched(InProcess):
    """Notes what is computed, and does something after some results."""

    def __init__(self, log: Path, after: int, act: Callable[[], None]):
        self._log, self._after, self._act = log, after, act

    def run(self, job, prepared, ranges):
        for k, found in enumerate(super().run(job, prepared, ranges)):
            if hasattr(found, "part"):
                _note(self._log, f"did {found.start} {found.stop}")
            yield found
            if k + 1 == self._after:
                self._act()


def _note(log: Path, words: str) -> None:
    with log.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(words + "\n")


def _forked(work: Callable[[], int]) -> int:
    """The id of a process that does some work and ends with its status."""
    child = os.fork()
    if child:
        return child
    try:
        os._exit(work())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(BUG)


def _attempt(trial: Trial, plan: Plan, folder: Path, log: Path) -> int:
    """One call of `run_job`, in a process of its own."""
    writer._SHORT = 0.02
    if plan.deadly is not None:
        part, deadly = prepared.Prepared._part, plan.deadly

        def ends(self: Any, block: Any) -> Any:
            if block.start == deadly and (plan.once is None or not plan.once.exists()):
                if plan.once is not None:
                    plan.once.touch()
                os._exit(DEAD)
            return part(self, block)

        prepared.Prepared._part = ends
    if plan.failing is not None:
        _fail_at(plan.failing)
    if plan.kill_at is not None:
        _kill_at(plan.kill_at)

    def act() -> None:
        assert plan.act is not None
        _note(log, f"act {json.dumps(plan.act)}")
        trial.apply(plan.act)

    engine = Watched(log, plan.at if plan.act else -1, act)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            how = {"engine": engine, "shard": trial.shard, "progress": False}
            if getattr(trial.job, "input", None) is not None:
                how["recompute_changed"] = plan.recompute
            run = run_job(trial.job, folder, **how)
            return WITHOUT if run.aside() else DONE
    except (SteadyflowError, FileNotFoundError) as error:
        _note(log, f"said {type(error).__name__}: {error}".replace("\n", " "))
        names = {"StorageError": FULL, "CorruptFileError": CORRUPT}
        return names.get(type(error).__name__, REFUSED)
    except BaseException:
        _note(log, "said " + traceback.format_exc().replace("\n", " | "))
        return BUG


def _fail_at(k: int) -> None:
    """Let the k-th flush to the disk fail, and all after it."""
    flush, count = os.fsync, [0]

    def failing(handle: int) -> None:
        count[0] += 1
        if count[0] >= k:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    os.fsync = failing


def _kill_at(k: int) -> None:
    """Kill this process at the k-th place of the code that keeps the folder, so that rare places are as likely."""
    places = set[tuple[str, int, str]]()

    def seen(frame: Any, event: str, _: Any) -> None:
        if event in ("call", "c_call", "c_return") and frame.f_code.co_filename in KEEPERS:
            places.add((frame.f_code.co_filename, frame.f_lineno, event))
            if len(places) == k:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(seen)


def _held(index: Path, how: tuple[str, float, float]) -> int:
    statement, when, long = how

    def work() -> int:
        time.sleep(when)
        if index.exists():
            with contextlib.suppress(sqlite3.Error):
                base = sqlite3.connect(index, isolation_level=None)
                base.execute(statement)
                base.execute("select * from sqlite_master").fetchall()
                time.sleep(long)
        return 0

    return _forked(work)


def attempt(trial: Trial, plan: Plan, folder: Path) -> tuple[int, list[tuple[int, int]], str]:
    """Do an attempt as it is planned: how it ended, what it computed, and what it said."""
    log = trial.place / "log"
    log.unlink(missing_ok=True)
    holder = None if plan.hold is None else _held(folder / "index.sqlite", plan.hold)
    children = [_forked(lambda: _attempt(trial, plan, folder, log)) for _ in range(1 + plan.twice)]
    if plan.copy is not None:
        time.sleep(plan.copy)
        target = trial.place / f"copy{len(trial.copies)}"
        with contextlib.suppress(shutil.Error, OSError):
            shutil.copytree(folder, target)
        trial.copies.append(target)
    if plan.kill is not None:
        time.sleep(plan.kill)
        for child in children:
            os.kill(child, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if holder is not None:
        os.waitpid(holder, 0)
    did, said = list[tuple[int, int]](), ""
    for line in log.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if log.exists() else ():
        kind, _, rest = line.partition(" ")
        if kind == "did":
            start, stop = rest.split()
            did.append((int(start), int(stop)))
        elif kind == "act":
            found = json.loads(rest)
            trial.apply((found[0], found[1], found[2]))
        else:
            said += rest
    if plan.twice:
        codes.sort(key=lambda code: code == REFUSED and "another process" in said)
    return codes[0], did, said


# ---------------------------------------------------------------------------------------------------------- judgement


class WrongError(Exception):
    """What must not be."""


def sound(folder: Path) -> list[tuple[int, int]]:
    """The samples of the shards that are there and sound."""
    found = []
    place = folder / "shards"
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        match = SHARD.fullmatch(path.name)
        if match is not None and path.is_file():
            with contextlib.suppress(SteadyflowError, OSError):
                load_shard(path)
                found.append((int(match[1]), int(match[2])))
    return found


class References:
    """Results of undisturbed runs, by the versions of the inputs."""

    def __init__(self, trial: Trial):
        self._trial, self._known = trial, dict[tuple[int, ...], torch.Tensor]()

    def of(self, versions: tuple[int, ...]) -> torch.Tensor:
        """The results on inputs of these versions."""
        if versions not in self._known:
            self._known[versions] = self._computed(versions)
        return self._known[versions]

    def _computed(self, versions: tuple[int, ...]) -> torch.Tensor:
        job, inputs = self._trial.job, self._trial.inputs
        if inputs is not None:
            place = self._trial.place / f"reference{len(self._known)}"
            place.mkdir()
            kept, inputs.versions = inputs.versions, list(versions)
            path = place / inputs.path.name if inputs.is_array else place
            inputs.write(range(len(versions)), path)
            inputs.versions = kept
            job = dataclasses.replace(job, input=str(path))
        return torch.cat(list(results(run_job(job, progress=False))))


def judge(trial: Trial, code: int, did: list[tuple[int, int]], said: str, before: list[tuple[int, int]]) -> None:
    """Raise `WrongError` for what no attempt may do."""
    inputs = trial.inputs
    touched = set() if inputs is None else inputs.touched
    if code == BUG or code not in (DONE, WITHOUT, REFUSED, FULL, CORRUPT, DEAD, -signal.SIGKILL):
        raise WrongError(f"ended with {code}: {said}")
    if code == REFUSED and not touched and not (trial.died and "none of the samples" in said):
        raise WrongError(f"refused without a reason: {said}")
    excused = "damaged index" in trial.faults or (inputs is not None and inputs.broken)
    if code == CORRUPT and not excused:
        raise WrongError(f"took something for damaged: {said}")
    block = trial.job.block
    for start, stop in before:
        if touched & set(range(start // block * block, -(-stop // block) * block)):
            continue  # a block of which something was set aside is computed as a whole when that is tried again
        again = [one for one in did if one[0] < stop and start < one[1]]
        if again:
            raise WrongError(f"computed {again} again, of which {start} to {stop} was there")


def look(trial: Trial, code: int, expected: torch.Tensor, broken: set[int], folder: Path) -> None:
    """Raise `WrongError` where a finished run hands out something else than it should."""
    found = torch.cat(list(results(RunFolder.open(folder))))
    if found.shape != expected.shape:
        raise WrongError(f"hands out {tuple(found.shape)}, expected {tuple(expected.shape)}")
    for k in range(len(found)):
        if bool(found[k].isnan().any()):
            if code == DONE:
                raise WrongError(f"sample {k} is missing, and nobody says so")
        elif k in broken:
            raise WrongError(f"sample {k} is handed out, though its input cannot be read")
        elif not torch.equal(found[k], expected[k]):
            raise WrongError(f"sample {k} is not that of the inputs that the run began with")


# ------------------------------------------------------------------------------------------------------------- faults


class Disk:
    """A small disk in memory that can be filled, or a plain folder where none can be mounted."""

    def __init__(self, place: Path):
        self.place = place / "disk"
        self.place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(self.place)]
        try:
            self.mounted = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            self.mounted = False

    def fill(self, left: int) -> None:
        """Leave so many bytes."""
        free = os.statvfs(self.place)
        with contextlib.suppress(OSError), (self.place / "ballast").open("wb") as file:
            file.write(bytes(max(free.f_bavail * free.f_frsize - left, 0)))

    def empty(self) -> None:
        """Take away what fills it."""
        (self.place / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Take it away."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.place)], check=False)


KINDS = ("kill", "kill at a place", "full disk", "changed input", "input changed under the run", "damaged input",
         "input damaged under the run", "held index", "death", "deaths", "damaged shard", "deleted shard",
         "deleted index", "damaged index", "deleted list", "foreign files", "copy", "twice at once")  # fmt: skip


def disturb(trial: Trial, kind: str, plan: Plan, disk: Disk, rng: random.Random, usual: float) -> bool:
    """Do, or plan, one thing; whether it can be done to this run."""
    job, inputs, folder = trial.job, trial.inputs, trial.folder
    some = sorted(rng.sample(range(job.n), rng.randint(1, min(3, job.n))))
    shards = sorted((folder / "shards").glob("shard-*.safetensors")) if (folder / "shards").is_dir() else []
    act = None
    if kind.endswith(("input", "under the run")):
        if inputs is None:
            return False
        damages = ["truncated", "garbage", "gone", *([] if inputs.is_array else ["loop", "folder"])]
        times = ["same time", "new time"]
        act = ("change", some, rng.choice(times)) if "changed" in kind else ("damage", some, rng.choice(damages))
    if kind == "kill":
        plan.kill = rng.uniform(0, 1.3 * usual)
    elif kind == "kill at a place":
        plan.kill_at = rng.randint(1, PLACES)
        plan.recompute = rng.random() < 0.7
    elif kind == "full disk":
        if disk.mounted:
            disk.fill(rng.choice([0, 4096, 8192, 12288, 20480, 40960, 65536]))
        else:
            plan.failing = rng.randint(1, 30)
    elif act is not None and kind.endswith("under the run"):
        plan.act, plan.at = act, rng.randint(1, 3)
    elif act is not None:
        trial.apply(act)
    elif kind == "held index":
        statement = rng.choice(["begin", "begin immediate", "begin exclusive"])
        plan.hold = (statement, rng.uniform(0, usual), rng.uniform(0, 0.4))
    elif kind in ("death", "deaths"):
        plan.deadly = rng.randrange(0, job.n, job.block)
        plan.once = trial.place / f"once{sum(trial.faults.values())}" if kind == "death" else None
        trial.died = True
    elif kind in ("damaged shard", "deleted shard"):
        if not shards:
            return False
        path = rng.choice(shards)
        content = path.read_bytes()
        path.unlink()
        if kind == "damaged shard" and content:
            at = rng.randrange(len(content))
            last = (
                len(content) - 1 - rng.randrange(8)
            )  # among the numbers: a damaged header may look like another run's
            other = content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :]
            path.write_bytes(rng.choice([content[:at], other, b""]))
    elif kind in ("deleted index", "damaged index", "deleted list"):
        path = folder / ("inputs.sqlite" if kind == "deleted list" else "index.sqlite")
        if not path.exists() or (kind == "deleted list" and inputs is not None and inputs.touched):
            return False
        (folder / "index.sqlite-journal").unlink(missing_ok=True)
        path.unlink()
        if kind == "damaged index":
            path.write_bytes(os.urandom(5000))
            trial.damaged = True
    elif kind == "foreign files":
        if not (folder / "manifest.json").exists():
            return False
        names = ["notes.txt", "shards/mine.npy", "shards/shard.safetensors", "shards/half.part", ".hidden", "x.sqlite"]
        path = folder / rng.choice(names)
        if path.parent.is_dir():
            try:
                path.write_bytes(os.urandom(10))
            except OSError:  # the disk is full
                path.unlink(missing_ok=True)
                return False
            trial.foreign[path] = path.read_bytes()
    elif kind == "copy":
        plan.copy = rng.uniform(0, usual)
    else:
        plan.twice = True
    return True


def disturbed(trial: Trial, disk: Disk, rng: random.Random, usual: float, known: References) -> None:
    """Some attempts at each of which something happens."""
    for _ in range(rng.randint(1, 4)):
        plan = Plan(recompute=rng.random() < 0.3)
        for kind in rng.sample(KINDS, rng.choice([1, 1, 2, 3])):
            if kind in ("deaths",) and plan.twice:
                continue
            if disturb(trial, kind, plan, disk, rng, usual):
                trial.faults[kind] += 1
        for _ in range(5):
            code, _ = one(trial, plan, known)
            plan.act = None
            if code != DEAD or plan.once is not None:
                break
        disk.empty()
        if trial.damaged:
            (trial.folder / "index.sqlite").unlink(missing_ok=True)
            trial.damaged = False


def one(trial: Trial, plan: Plan, known: References, folder: Path | None = None) -> tuple[int, str]:
    """An attempt, judged: how it ended, and what it said."""
    inputs, folder = trial.inputs, trial.folder if folder is None else folder
    versions = () if inputs is None else tuple(inputs.versions)
    broken = set() if inputs is None else set(inputs.broken)
    before = sound(folder)
    code, did, said = attempt(trial, plan, folder)
    judge(trial, code, did, said, before)
    if code in (DONE, WITHOUT):
        look(trial, code, known.of(versions), broken, folder)
    return code, said


def finish(trial: Trial, known: References, folder: Path) -> bool:
    """The same command until nothing is missing; False where the list went before inputs changed, which ends a run."""
    plan, code, said = Plan(), BUG, ""
    for _ in range(6):
        code, said = one(trial, plan, known, folder)
        if code == DONE:
            return True
        if code == REFUSED and "the list of the inputs is gone" in said and "deleted list" in trial.faults:
            return False
        plan.recompute = code == REFUSED
        if code == CORRUPT:  # the copy of a damaged index
            (folder / "index.sqlite").unlink()
        there = (folder / "manifest.json").exists()
        if there and {aside.kind for aside in RunFolder.open(folder).aside()} == {"death"}:
            (folder / "index.sqlite").unlink()  # else a process would not try again what others have died of
    missing = RunFolder.open(folder).aside() if (folder / "manifest.json").exists() else []
    raise WrongError(f"does not get done after repair: {code}, {said}, {missing}")


def trial_of(place: Path, disk: Disk, rng: random.Random, usual: float) -> Trial:
    """A whole trial; `words` says what is wrong, if anything."""
    job, shard, inputs = random_job(place, rng)
    trial = Trial(job, shard, inputs, disk.place / "run", place)
    known = References(trial)
    try:
        disturbed(trial, disk, rng, usual, known)
        if inputs is not None:
            inputs.repair()
        for folder in (trial.folder, *(copy for copy in trial.copies if copy.exists())):
            finished = finish(trial, known, folder)
            code, did, said = attempt(trial, Plan(), folder)
            if finished and (code != DONE or did):
                raise WrongError(f"is done, and yet the same command ends with {code}, {said}, and computes {did}")
        for path, content in trial.foreign.items():
            if not path.exists() or path.read_bytes() != content:
                raise WrongError(f"a file of others was touched: {path.name}")
    except (WrongError, SteadyflowError, OSError, RuntimeError, ValueError) as error:
        trial.words = f"{type(error).__name__}: {error}"
    return trial


def _usual(place: Path) -> float:
    """The seconds of an undisturbed attempt."""
    trial = Trial(Sampling("digits", n=10, block=3, steps=3), None, None, place / "usual", place)
    begin = time.monotonic()
    for _ in range(3):
        attempt(trial, Plan(), trial.folder)
        shutil.rmtree(trial.folder)
    return (time.monotonic() - begin) / 3


@contextlib.contextmanager
def _workplace() -> Iterator[tuple[Path, Disk]]:
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    disk = Disk(place)
    try:
        yield place, disk
    finally:
        disk.close()
        shutil.rmtree(place, ignore_errors=True)


def main() -> int:
    """Run the trials; the number of those that failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this trial alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the disk is taken away
    counts, failed = Counter[str](), 0
    with _workplace() as (work, disk):
        for model in ("mixture", "digits"):  # loaded once, so that no child has to
            run_job(Sampling(model, n=1, steps=1), progress=False)
        usual = _usual(disk.place)
        for k in range(options.times) if options.only is None else (options.only,):
            rng, place = random.Random(f"{options.seed} {k}"), work / f"trial-{k}"
            place.mkdir()
            begin = time.monotonic()
            trial = trial_of(place, disk, rng, usual)
            counts += trial.faults
            failed += bool(trial.words)
            suffix = "" if trial.inputs is None else trial.inputs.suffix
            what = f"{trial.job.task:<11} {trial.job.model:<7} {suffix:<12}"
            faults = ", ".join(trial.faults.elements()) or "nothing"
            verdict = f"FAILED, {trial.words}" if trial.words else "ok"
            size = f"{trial.job.n:2d} by {trial.job.block}"
            print(f"{k:3d}  {what} {size}  {time.monotonic() - begin:4.1f} s  {faults}: {verdict}", flush=True)
            shutil.rmtree(place)
            for path in disk.place.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())))
    print(f"{sum(counts.values())} faults, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
