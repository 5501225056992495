"""Train the lab's models of 25 modes:  python scripts/train_mixture.py [--dim D] [--ablation NAME] [--out FILE]

The protocol of arXiv 2605.06831: 25 modes at spacing 2 with spread 0.02 (a 5 x 5 grid in the plane, the farthest points
of a lattice beyond), all divided by 2 sqrt(2); 100,000 training samples; linear betas over 1,000 steps; a residual
perceptron with 3 blocks; batches of 10,000, Adam from 1e-4 to 1e-5, gradients clipped at 1, weights not averaged.
Goes on from its checkpoint (OUT.checkpoint) where there is one.

--ablation trains for figure E.16, by a shorter protocol that is the same for all of them (30,000 steps at batches of
2,000 from 1e-3): "base", "wide" (spread 0.05), "near" (spacing 1) or "short" (250 steps of diffusion).
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import steadyflow as sf
from steadyflow.models import save
from steadyflow.models.networks import ResidualMLP
from steadyflow.models.training import train

parser = argparse.ArgumentParser()
parser.add_argument("--dim", type=int, default=2)
parser.add_argument("--ablation", choices=("base", "wide", "near", "short"))
parser.add_argument("--steps", type=int)
parser.add_argument("--batch", type=int)
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out")
options = parser.parse_args()

ablation = options.ablation
options.steps = options.steps or (30_000 if ablation else 100_000)
options.batch = options.batch or (2_000 if ablation else 10_000)
spacing, spread = (1.0 if ablation == "near" else 2.0), (0.05 if ablation == "wide" else 0.02)
top = 250 if ablation == "short" else 1000
name = "mixture25" if options.dim == 2 else f"mixture25-{options.dim}d"
name = f"{name}-{ablation}" if ablation else name
out = Path(options.out or f"lab/src/steadyflow_lab/weights/{name}.safetensors")
scale = 8.0**0.5
if options.dim == 2:
    mixture = sf.GaussianMixture.grid(5, spacing=spacing / scale, std=spread / scale, dtype=torch.float32)
else:
    mixture = sf.GaussianMixture.farthest_points(
        25, options.dim, spacing=spacing / scale, std=spread / scale, dtype=torch.float32
    )
data = mixture.sample(100_000, seed=options.seed + 1)

torch.manual_seed(options.seed)
network = {"shape": (options.dim,), "hidden": options.hidden, "blocks": 3, "frequencies": 32}
schedule = sf.Tabulated.linear(top, 0.1 / top, 20.0 / top)
model = sf.Denoiser(ResidualMLP(**network), schedule, shape=(options.dim,), name=name, time_scale=10.0 / top)


def batch(generator):
    return data[torch.randint(len(data), (options.batch,), generator=generator)], None


net = train(
    model,
    batch,
    steps=options.steps,
    lr=1e-3 if ablation else 1e-4,
    last_lr=1e-5,
    average=0.0,
    seed=options.seed,
    report=lambda step, loss: print(f"step {step:6d}  loss {loss:.5f}", flush=True),
    every=1000,
    checkpoint=out.with_suffix(".checkpoint"),
)
model = replace(model, net=net.eval().requires_grad_(False))
save(model, out, {"type": "ResidualMLP", **network}, training={**vars(options), "out": out.name})
out.with_suffix(".checkpoint").unlink()
