"""Where the steps of a sampler contract, on the digits model:  python benchmarks/contractivity.py

Local Lipschitz constants of single steps in the flow coordinates, by power iteration, from the latents of 16 held-out
digits; the last number is their product, an upper bound on what the whole way adds to an error.
"""

import torch

import steadyflow as sf
from steadyflow import grids
from steadyflow.datasets import digits
from steadyflow.diagnostics import contractivity

torch.set_num_threads(1)


def main():
    model, (images, labels) = sf.load("digits"), digits("held-out")
    images, labels = images[:16], labels[:16]
    latent = sf.invert(model.with_condition(labels), images, solver="rk4", steps=24).latent
    print("| guidance | steps | solver | certified | median | largest | product |\n|---|---|---|---|---|---|---|")
    for guidance in (1.0, 3.0, 7.5):
        for steps in (5, 10, 20, 50):
            for solver in ("ddim", "heun"):
                grid = grids.make("quadratic", model.schedule, steps)
                field = model.with_condition(labels).with_guidance(guidance)
                found = contractivity(field, latent, grid, solver, coordinates="flow")
                size = found.lipschitz
                cells = (f"{(size < 1).float().mean():.0%}", f"{size.median():.2f}", f"{size.max():.2f}")
                product = f"{found.worst.median():.3g}"
                print(f"| {guidance:g} | {steps} | {solver} | {' | '.join(cells)} | {product} |", flush=True)


if __name__ == "__main__":
    main()
