"""What a served query costs over the pipeline's own step, and that openings leave nothing:  python benchmarks/served.py

A pipeline's own loop and the same number of queries of the model over it, in turns; the difference of the medians is
what the hand-over between the two threads costs. Then a thousand openings and closings, with the process's memory and
threads.
"""

import gc
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch

import steadyflow as sf
import zoo

FAMILIES = ("qwenimage", "zimage", "wan", "flux_kontext", "sd_controlnet")
QUERIES, ROUNDS, OPENINGS = 60, 7, 1000


def model_of(name):
    """A served model and a call of the pipeline for some steps."""
    pipe, call = zoo.build(name), dict(zoo.call_of(name))
    for word in ("guidance_scale", "true_cfg_scale", "negative_prompt"):
        call.pop(word, None)
    model = sf.from_diffusers(pipe, call.pop("prompt"), served=True, **call)
    given = {**call, "prompt": model.condition, **model.server.signature.guided(1.0, False)}

    def loop(steps):
        pipe(**given, num_inference_steps=steps, output_type="latent", generator=torch.Generator().manual_seed(0))

    return model, loop


def seconds(work):
    """How long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def costs(name):
    """Milliseconds of the pipeline's own step and of a query, medians over rounds."""
    model, loop = model_of(name)
    x, own, asked = model.noise.float(), [], []
    model(x, model.schedule.t_from_sigma(0.5))
    for _ in range(ROUNDS):
        whole, one = seconds(lambda: loop(QUERIES + 2)), seconds(lambda: loop(2))  # what precedes the loop is left out
        own.append((whole - one) / QUERIES)
        asked.append(seconds(lambda: [model(x, 0.9 - 0.8 * k / QUERIES) for k in range(QUERIES)]) / QUERIES)
    model.close()
    return 1e3 * statistics.median(own), 1e3 * statistics.median(asked)


def resident():
    """The process's resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@torch.no_grad()
def openings():
    """Memory and threads after some openings and after all of them."""
    model, _ = model_of("qwenimage")
    x, rows = model.noise.float(), []
    for k in range(1, OPENINGS + 1):
        model(x, 0.5)
        model.close()
        if k in (OPENINGS // 10, OPENINGS // 2, OPENINGS):
            gc.collect()
            rows.append((k, resident(), len(os.listdir("/proc/self/task"))))
    return rows


@torch.no_grad()
def queries():
    """Memory after some queries of one suspended call and after all of them."""
    model, _ = model_of("qwenimage")
    x, rows = model.noise.float(), []
    for k in range(1, 5001):
        model(x, 0.5)
        if k in (500, 2500, 5000):
            rows.append((k, resident()))
    model.close()
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{'pipeline':<14}{'own step, ms':>14}{'query, ms':>12}{'difference':>12}")
    for name in FAMILIES:
        own, asked = costs(name)
        print(f"{name:<14}{own:>14.2f}{asked:>12.2f}{asked - own:>12.2f}", flush=True)
    print("\nopenings and closings of qwenimage: memory in MB, threads of the process")
    for k, memory, threads in openings():
        print(f"{k:>6}{memory:>10.0f}{threads:>6}")
    print("\nqueries of one call: memory in MB")
    for k, memory in queries():
        print(f"{k:>6}{memory:>10.0f}")
