"""How a run grows with its inputs, in memory and seconds:  python benchmarks/many_inputs.py [--inputs N ...]

Pictures of 8 x 8 pixels in one folder are inverted by a model that costs next to nothing, so that what is measured is
the run: listing and hashing the inputs, reading them and comparing their hashes, writing shards, and the second call of
a finished run, which checks all of it again. The peak is that of the process, of which the imports and the model take
their share with a single picture; "a picture" is the growth since the row above.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import steadyflow as sf
from steadyflow import runs
from steadyflow.runs import driving

BLOCK = 4096


def model():
    """A model of pictures of 8 x 8 pixels that costs nothing."""
    return sf.Denoiser(half, sf.VPCosine(), shape=(1, 8, 8), name="nothing")


def half(x, t):
    """Half of the sample, as its noise."""
    return 0.5 * x


def make(folder, n):
    """Write n pictures, all different."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "BMP")
    head = file.getvalue()[:-64]
    rng = np.random.default_rng(0)
    for start in range(0, n, 10_000):
        values = rng.integers(0, 255, (min(10_000, n - start), 64), dtype=np.uint8)
        for k, one in enumerate(values):
            with open(folder / f"{start + k:09d}.bmp", "wb") as out:
                out.write(head + one.tobytes())


def once(folder, place, n):
    """Do a run and do it again; the seconds, and the peak memory."""
    seconds = {}
    listed = driving.make

    def timed(*args, **words):
        began = time.perf_counter()
        listed(*args, **words)
        seconds["listed"] = time.perf_counter() - began

    driving.make = timed
    job = runs.Inverting("many_inputs:model", n=n, solver="ddim", steps=1, block=BLOCK, input=str(folder))
    began = time.perf_counter()
    runs.run_job(job, place)
    seconds["whole"] = time.perf_counter() - began
    began = time.perf_counter()
    run = runs.run_job(job, place)
    seconds["again"] = time.perf_counter() - began
    began = time.perf_counter()
    figures = run.figures()
    seconds["figures"] = time.perf_counter() - began
    assert figures["samples"] == n
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = sum(path.stat().st_size for path in place.glob("*.sqlite"))
    return {**seconds, "peak": peak, "database": size}


def main():
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, nargs="+", default=[1, 10_000, 100_000, 1_000_000])
    parser.add_argument("--once", nargs=3)
    options = parser.parse_args()
    if options.once:
        sys.path.insert(0, str(Path(__file__).parent))
        folder, place, n = options.once
        print(json.dumps(once(Path(folder), Path(place), int(n))))
        return
    heads = ["pictures", "listed and hashed, s", "whole run, s", "the same command again, s", "figures, s", "peak, MB"]
    heads += ["a picture, bytes", "list and index, MB"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    before = None
    for n in options.inputs:
        work = Path(tempfile.mkdtemp(prefix="many-"))
        try:
            (work / "in").mkdir()
            make(work / "in", n)
            command = [sys.executable, __file__, "--once", str(work / "in"), str(work / "run"), str(n)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
        finally:
            shutil.rmtree(work, ignore_errors=True)
        found = json.loads(done.stdout.splitlines()[-1])
        each = "" if before is None else f"{(found['peak'] - before[1]) / (n - before[0]):.0f}"
        before = n, found["peak"]
        times = " | ".join(f"{found[key]:.1f}" for key in ("listed", "whole", "again", "figures"))
        print(f"| {n:,} | {times} | {found['peak'] / 1e6:.0f} | {each} | {found['database'] / 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
