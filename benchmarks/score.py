"""DDPM over exact scores against the bare loop over them:  python benchmarks/score.py [--steps N] [--samples N]

100,000 points of 25 modes through 1,000 ancestral steps in float32, addressed noise and all; and for the same number
of steps nothing but the matrix product, the softmax and the second product that the score cannot do without, in chunks
that stay in the cache and, for comparison, whole. Alternating, the least of three runs each.
"""

import argparse
import time

import torch

import steadyflow as sf

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--samples", type=int, default=100_000)
options = parser.parse_args()
n, steps = options.samples, options.steps
mixture = sf.GaussianMixture.grid(5, spacing=2.0 / 8**0.5, std=0.02 / 8**0.5, dtype=torch.float32)
schedule = sf.Tabulated.linear()
model = mixture.denoiser(schedule)
grid = sf.Grid(tuple(999.0 * (1 - k / steps) for k in range(steps + 1)))


def ddpm(size):
    sf.sample(model, n=n, solver="ddpm", grid=grid, noise="white", batch_size=size, progress=False)


def bare(size):
    x, bias, means = torch.randn(n, 2), torch.randn(25), mixture.means
    scaled = means.T.contiguous()
    for _ in range(steps):
        for part in x.split(size or n):
            torch.addmm(bias, part, scaled).softmax(1) @ means


runs = {
    "bare loop, chunks of 2,500": lambda: bare(2500),
    "bare loop, whole": lambda: bare(None),
    "DDPM, whole": lambda: ddpm(None),
    "DDPM, batch_size=10,000": lambda: ddpm(10_000),
}
least = dict.fromkeys(runs, float("inf"))
for _ in range(3):
    for name, work in runs.items():
        begin = time.perf_counter()
        work()
        least[name] = min(least[name], time.perf_counter() - begin)
best = min(least["bare loop, chunks of 2,500"], least["bare loop, whole"])
for name, seconds in least.items():
    each = seconds / (n * 25 * steps) * 1e9
    print(f"{name:<28} {seconds:7.2f} s  {each:5.2f} ns a sample and mode  {seconds / best:5.2f} x bare")
