"""What a shard of a run costs beside its work, in milliseconds:  python benchmarks/shards.py

"Written": hashing, writing, bringing to the disk, and entering into the index, by the process that drives the run. "By
Ray": a task that returns a shard's tensors, from asking to having them, two at a time on this machine, with and without
them written. All beside the time of the work itself, which is none here.
"""

import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from steadyflow import runs
from steadyflow.runs.jobs import Part
from steadyflow.runs.writer import held

SIZES = {"64 kB": 2**14, "1 MB": 2**18, "16 MB": 2**22, "64 MB": 2**24}
COUNT = 40


def nothing(size, k):
    """The tensors of a shard."""
    return torch.zeros(4, size // 4) + k


def written(folder, size, count):
    """Seconds to add shards."""
    job = runs.Sampling("mixture", n=4 * count, solver=runs.spec_of("ddim"), block=4)
    x = nothing(size, 1)
    with held(folder, job, {}) as (_, writer):
        writer.resume()
        began = time.perf_counter()
        for k in range(count):
            writer.add(4 * k, 4 * k + 4, Part("samples", {"x": x}, {}), 0.0, "here")
        return time.perf_counter() - began


def by_ray(engine, size, count):
    """Seconds to have them from Ray."""
    began = time.perf_counter()
    for _ in engine.each(partial(nothing, size), range(count)):
        pass
    return time.perf_counter() - began


def main():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    engine, work = runs.Ray(), Path(tempfile.mkdtemp(prefix="shards-"))
    by_ray(engine, 16, 8)
    print("| size | written | by Ray | both | MB/s, both |\n|---|---|---|---|---|")
    for name, size in SIZES.items():
        count = COUNT if size < 2**22 else COUNT // 4
        first, second = written(work / name.replace(" ", ""), size, count), by_ray(engine, size, count)
        each = 1e3 * (first + second) / count
        rate = size * 4 / 1e6 / (each / 1e3)
        cells = f"{1e3 * first / count:.1f} | {1e3 * second / count:.1f} | {each:.1f} | {rate:.0f}"
        print(f"| {name} | {cells} |", flush=True)
        shutil.rmtree(work / name.replace(" ", ""))
    shutil.rmtree(work)
    ray.shutdown()


if __name__ == "__main__":
    main()
