"""Train the lab's models of images with three triangles:  python scripts/train_triangles.py [--out FOLDER]

A U-Net on 10,000 drawn images of 64x64 (4x4 pixels a position), linear betas over 1,000 steps. Written are the
averaged weights after 20, 40 and 80 epochs as `triangles-20`, `triangles-40` and `triangles`, about an hour on one
core. Goes on from its checkpoint where there is one.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import steadyflow as sf
from steadyflow.models import save
from steadyflow.models.networks import UNet
from steadyflow.models.training import train
from steadyflow_lab.datasets import triangles

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="lab/src/steadyflow_lab/weights")
parser.add_argument("--epochs", type=int, default=80)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

out = Path(options.out)
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(options.seed)
network = {"shape": (1, 64, 64), "channels": (32, 64, 64), "patch": 4}
data = triangles()
model = sf.Denoiser(UNet(**network), sf.Tabulated.linear(), shape=(1, 64, 64), name="triangles", time_scale=1e-3)
epoch = -(-len(data) // options.batch)


def batch(generator):
    return data[torch.randint(len(data), (options.batch,), generator=generator)], None


def write(step, net):
    done = step // epoch
    if done in (options.epochs // 4, options.epochs // 2, options.epochs):
        name = "triangles" if done == options.epochs else f"triangles-{done}"
        now = replace(model, net=net, name=name)
        facts = {**vars(options), "out": out.name, "epoch": done}
        save(now, out / f"{name}.safetensors", {"type": "UNet", **network}, training=facts)


train(
    model,
    batch,
    steps=options.epochs * epoch,
    lr=options.lr,
    seed=options.seed,
    report=lambda step, loss: print(f"epoch {step // epoch:3d}  loss {loss:.5f}", flush=True),
    snapshot=write,
    every=epoch,
    checkpoint=out / "triangles.checkpoint",
)
(out / "triangles.checkpoint").unlink()
