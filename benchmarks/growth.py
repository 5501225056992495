"""How the cost of sampling an exact mixture grows:  python benchmarks/growth.py

DDIM in float32 on one thread. One quantity at a time is doubled from the middle setting up and down; the exponent is
the slope of the logarithm of the time over that of the quantity, with the standard error of the fit.
"""

import time

import numpy as np
import torch

import steadyflow as sf

torch.set_num_threads(1)
MIDDLE = {"samples": 20_000, "dimension": 16, "modes": 64, "steps": 20}
FACTORS = (0.25, 0.5, 1, 2, 4, 8)


def seconds(samples, dimension, modes, steps):
    """The least of three runs."""
    means = 3.0 * torch.randn(modes, dimension, generator=torch.Generator().manual_seed(0))
    model = sf.GaussianMixture(means, 0.1).denoiser(sf.VPLinear())
    x = torch.randn(samples, dimension)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        sf.sample(model, x=x, solver="ddim", steps=steps, batch_size=10_000, progress=False)
        times.append(time.perf_counter() - began)
    return min(times)


def main():
    seconds(**MIDDLE)
    print(
        "| quantity | "
        + " | ".join(f"x {f:g}" for f in FACTORS)
        + " | exponent |\n"
        + "|---" * (len(FACTORS) + 2)
        + "|"
    )
    for name, middle in MIDDLE.items():
        sizes = [int(middle * factor) for factor in FACTORS]
        times = [seconds(**{**MIDDLE, name: size}) for size in sizes]
        (slope, _), covariance = np.polyfit(np.log(sizes), np.log(times), 1, cov=True)
        cells = " | ".join(f"{1e3 * t:.0f} ms" for t in times)
        print(f"| {name} ({middle}) | {cells} | {slope:.2f} +- {covariance[0, 0] ** 0.5:.2f} |", flush=True)


if __name__ == "__main__":
    main()
