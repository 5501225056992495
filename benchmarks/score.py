"""Exact scores against the bare loop over them, one thread:  python benchmarks/score.py [--steps N] [--samples N]

The bare loop is nothing but the matrix product, the softmax and the second product that the score cannot do without, in
the best of four chunk sizes, on the score's own numbers (chances that underflow slow both). "Evaluation": a call of the
model. "Compiled": the same loop through torch.compile, and in two dimensions also written without products, which it
can fuse whole. "DDPM": ancestral sampling of 25 modes, addressed noise and all. "Memory": the peak of a process that
samples ten million points, and of one that samples none. All take turns; the least of several runs counts, with a C
library that keeps the memory it is given back (but for "memory").
"""

import argparse
import os
import resource
import subprocess
import sys
import time

import torch
from timing import KEEP, keep_memory, least

import steadyflow as sf

torch.set_num_threads(1)
CASES = ((25, 100_000), (100, 50_000), (1000, 5000), (10_000, 1000))


def evaluations():
    """One call of the model beside the bare loop."""
    print("\n| type | modes | dimension | samples | ours, ms | bare, ms | ours / bare | ns a sample and mode |")
    print("|---" * 8 + "|")
    for dtype in (torch.float32, torch.float64):
        for modes, n in CASES:
            for d in (2, 16):
                generator = torch.Generator().manual_seed(0)
                means = 3.0 * torch.randn(modes, d, generator=generator, dtype=dtype)
                path, spread, t = sf.VPLinear(), 0.1, 0.3
                model, x = sf.GaussianMixture(means, spread).denoiser(path), torch.randn(n, d, dtype=dtype)
                gain = path.alpha(t) / ((path.alpha(t) * spread) ** 2 + path.sigma(t) ** 2)
                scaled, bias = (gain * means.T).contiguous(), -0.5 * path.alpha(t) * gain * means.square().sum(1)
                out = torch.empty_like(x)

                def bare(size, x=x, out=out, scaled=scaled, bias=bias, means=means):
                    for part, to in zip(x.split(size), out.split(size), strict=True):
                        torch.mm(torch.addmm(bias, part, scaled).softmax(1), means, out=to)

                work = {size: lambda size=size, bare=bare: bare(size) for size in (64, 256, 1024, 2500)}
                found = least({"ours": lambda model=model, x=x, t=t: model(x, t).output, **work})
                best = min(found[size] for size in work)
                cells = f"{1e3 * found['ours']:.1f} | {1e3 * best:.1f} | {found['ours'] / best:.2f}"
                kind = str(dtype).removeprefix("torch.")
                print(
                    f"| {kind} | {modes} | {d} | {n} | {cells} | {1e9 * found['ours'] / (n * modes):.2f} |", flush=True
                )


def compiled():
    """Whether torch.compile pays."""
    print("\n| modes | products, ms | compiled | without products, compiled | first call, s |\n" + "|---" * 5 + "|")
    for modes, n in CASES[:3]:
        x, means, bias = torch.randn(n, 2), torch.randn(modes, 2), torch.randn(modes)
        scaled, size = means.T.contiguous(), max(64, 2**16 // modes)
        parts = [part for part in x.split(size) if len(part) == size]

        def products(part, bias=bias, scaled=scaled, means=means):
            return torch.addmm(part, torch.addmm(bias, part, scaled).softmax(1), means, beta=0.5, alpha=-0.3)

        def written(part, bias=bias, scaled=scaled, means=means):
            chances = (bias + part[:, :1] * scaled[0] + part[:, 1:] * scaled[1]).softmax(1)
            mean = torch.stack([(chances * means[:, 0]).sum(1), (chances * means[:, 1]).sum(1)], 1)
            return 0.5 * part - 0.3 * mean

        began = time.perf_counter()
        fast, whole = torch.compile(products, dynamic=False), torch.compile(written, dynamic=False)
        fast(parts[0]), whole(x)
        first = time.perf_counter() - began
        found = least(
            {
                "eager": lambda parts=parts, f=products: [f(part) for part in parts],
                "compiled": lambda parts=parts, f=fast: [f(part) for part in parts],
                "written": lambda x=x, f=whole: f(x),
            }
        )
        print(f"| {modes} | " + " | ".join(f"{1e3 * v:.1f}" for v in found.values()) + f" | {first:.1f} |", flush=True)


def ddpm(n, steps):
    """Ancestral sampling beside the bare loop of as many steps."""
    mixture = sf.GaussianMixture.grid(5, spacing=2.0 / 8**0.5, std=0.02 / 8**0.5, dtype=torch.float32)
    model = mixture.denoiser(sf.Tabulated.linear())
    grid = sf.Grid(tuple(999.0 * (1 - k / steps) for k in range(steps + 1)))

    def sampled(size):
        sf.sample(model, n=n, solver="ddpm", grid=grid, noise="white", batch_size=size, progress=False)

    def bare(size):
        x, bias, means = torch.randn(n, 2), torch.randn(25), mixture.means
        scaled = means.T.contiguous()
        for _ in range(steps):
            for part in x.split(size):
                torch.addmm(bias, part, scaled).softmax(1) @ means

    work = {
        "bare loop, chunks of 2,500": lambda: bare(2500),
        "DDPM, whole": lambda: sampled(None),
        "DDPM, batch_size=10,000": lambda: sampled(10_000),
    }
    print(f"\n{n:,} samples of 25 modes, {steps:,} steps\n")
    found = least(work, 3)
    for name, seconds in found.items():
        each, ratio = seconds / (n * 25 * steps) * 1e9, seconds / found["bare loop, chunks of 2,500"]
        print(f"{name:<28} {seconds:7.2f} s  {each:5.2f} ns a sample and mode  {ratio:5.2f} x bare", flush=True)


def memory():
    """Peak memory over the number of samples."""
    plain = {name: value for name, value in os.environ.items() if name not in KEEP}
    for n, size in ((0, None), (10_000, None), (10_000_000, None), (10_000_000, 100_000)):
        command = [sys.executable, __file__, "--draw", str(n), *([] if size is None else ["--batch", str(size)])]
        print(subprocess.run(command, capture_output=True, text=True, check=True, env=plain).stdout.strip(), flush=True)


def draw(n, size):
    """Sample in this process and tell its peak."""
    began = time.perf_counter()
    if n:
        model = sf.GaussianMixture.grid(5, dtype=torch.float32).denoiser(sf.VPLinear())
        sf.sample(model, n=n, steps=5, batch_size=size, progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    how = "" if size is None else f" in batches of {size:,}"
    print(f"{n:>10,} points{how}: peak {peak:.2f} GB, {time.perf_counter() - began:.1f} s")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--draw", type=int)
    parser.add_argument("--batch", type=int)
    options = parser.parse_args()
    if options.draw is not None:
        draw(options.draw, options.batch)
        return
    keep_memory()
    memory()  # first, as a process begins with the peak of the one it comes from
    evaluations()
    compiled()
    ddpm(options.samples, options.steps)


if __name__ == "__main__":
    main()
