"""Kill runs at random moments and see that nothing is lost or counted twice:  python scripts/kill_runs.py [--times 50]

Each trial begins `steadyflow sample --run` on a folder and sends SIGKILL to the driver (in one process, or on Ray), to
a Ray worker, or to all of a Ray node, at a random moment, or fills Ray's object store for a while. A killed driver is
started again with the same command; a run that lost a worker, a node or the room for its results must go on by itself.
In the end the samples must equal those of an undisturbed run to the
bit, each once, and no shard that was entered before the kill may have been computed again. One line a trial; the exit
status says whether all went well. Linux, with Ray; the cluster of two nodes is started here.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steadyflow.errors import SteadyflowError
from steadyflow.runs import RunFolder
from steadyflow.runs.exporting import results

KINDS = ("driver", "ray driver", "worker", "node", "store")
STORE = 80 * 2**20
"""Bytes of the object store of each node."""
FILLING = """
import sys, time
import numpy as np
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
held = [ray.put(np.zeros(2**23, np.uint8)) for k in range(40)]
time.sleep(1.0)
"""
WORK = ["--model", "mixture", "--n", "8000", "--batch-size", "100", "--solver", "ddpm", "--steps", "30"]
PATIENCE = 240.0


@dataclass(frozen=True)
class Outcome:
    """What a trial found."""

    kind: str
    moment: float
    """Seconds after the start of the command."""
    at_kill: int
    """Shards entered when the signal was sent."""
    good: bool
    words: str


class TwoNodes:
    """A Ray cluster of two nodes on this machine."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "num_gpus": 0, "object_store_memory": STORE},
        )
        self.second: Any = self._cluster.add_node(num_cpus=1, object_store_memory=STORE)
        self.address = self._cluster.address

    def replace_second(self) -> None:
        """Take the second node away without a word, and later give another."""
        self._cluster.remove_node(self.second, allow_graceful=False)

    def restore(self) -> None:
        """A second node again."""
        self.second = self._cluster.add_node(num_cpus=1, object_store_memory=STORE)

    def workers(self) -> list[int]:
        """The processes of both nodes that do tasks."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self._cluster.list_all_nodes()}
        return [pid for pid, parent, title in _processes() if parent in raylets and title.startswith("ray::_guarded")]

    def close(self) -> None:
        """Stop it."""
        self._cluster.shutdown()


def _processes() -> list[tuple[int, int, str]]:
    """Process, parent and title of all."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                title = (path / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            found.append((int(path.name), parent, title))
    return found


def command(folder: Path, address: str | None) -> list[str]:
    """The command of all trials."""
    engine = [] if address is None else ["--engine", "ray", "--address", address]
    return [sys.executable, "-m", "steadyflow", "sample", *WORK, "--run", str(folder), *engine]


def trial(kind: str, moment: float, folder: Path, reference: torch.Tensor, cluster: TwoNodes | None) -> Outcome:
    """One kill, `moment` being the share of the run's way at which it comes."""
    address = None if cluster is None or kind == "driver" else cluster.address
    log = folder.with_suffix(".log")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    begin = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command(folder, address), stdout=out, stderr=out, env=environment)
    wanted = int(moment * 80)
    while process.poll() is None and len(_shards(folder)) < wanted and time.monotonic() - begin < PATIENCE:
        time.sleep(0.01)
    time.sleep(random.Random(moment).uniform(0.0, 0.05))
    before = {shard.start: shard for shard in _shards(folder)}
    seconds = time.monotonic() - begin
    if kind in ("driver", "ray driver"):
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = subprocess.run(command(folder, address), capture_output=True, env=environment, timeout=PATIENCE)
        code, text = done.returncode, done.stderr.decode(errors="replace")
    elif kind == "store":
        assert cluster is not None
        fill = [sys.executable, "-c", FILLING, cluster.address]
        subprocess.run(fill, capture_output=True, env=environment, timeout=PATIENCE, check=True)
        code, text = process.wait(PATIENCE), log.read_text(errors="replace")
    else:
        assert cluster is not None
        if kind == "worker":
            for pid in cluster.workers()[:1]:
                os.kill(pid, signal.SIGKILL)
        else:
            cluster.replace_second()
        code, text = process.wait(PATIENCE), log.read_text(errors="replace")
        if kind == "node":
            cluster.restore()
    words = f"exit {code}: {text[-300:]}" if code else _verdict(folder, before, reference)
    return Outcome(kind, seconds, len(before), not words, words or "same bits, nothing computed again")


def _shards(folder: Path) -> list[Any]:
    try:
        return RunFolder.open(folder).shards()
    except (FileNotFoundError, SteadyflowError):
        return []


def _verdict(folder: Path, before: dict[int, Any], reference: torch.Tensor) -> str:
    """What is wrong with a finished run, if anything."""
    run = RunFolder.open(folder)
    after = {shard.start: shard for shard in run.shards()}
    lost = [start for start, shard in before.items() if after.get(start) != shard]
    if lost:
        return f"computed again: {lost}"
    found = torch.cat(list(results(run)))
    return "" if torch.equal(found, reference) else "the samples differ from those of an undisturbed run"


def undisturbed(folder: Path) -> torch.Tensor:
    """The samples of a run that nothing happened to."""
    subprocess.run(command(folder, None), check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return torch.cat(list(results(RunFolder.open(folder))))


def main() -> int:
    """Run the trials; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, failed = random.Random(options.seed), 0
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    reference = undisturbed(work / "undisturbed")
    cluster = TwoNodes()
    try:
        for k in range(options.times):
            kind, folder = KINDS[k % len(KINDS)], work / f"trial-{k}"
            found = trial(kind, rng.uniform(0.0, 0.95), folder, reference, cluster)
            failed += not found.good
            when = f"killed after {found.moment:6.2f} s with {found.at_kill:2d} of 80 shards done"
            print(f"{k:3d}  {kind:<10}  {when}: {'ok' if found.good else 'FAILED'}, {found.words}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        cluster.close()
        shutil.rmtree(work, ignore_errors=True)
    print(f"{options.times} kills, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
