"""Train the bundled digits model:  python scripts/train_digits.py [--out FILE] [--steps N] [--seed S]

Class-conditional, label dropout 0.1, on 1,500 real digits of scikit-learn; three minutes on two cores. Prints
the figures by which the model is judged (see `steadyflow_lab.digits`), with its weights rounded to float16 as they are
stored.
"""

import argparse
import json
from dataclasses import replace

import torch

import steadyflow as sf
from steadyflow.datasets import digits
from steadyflow.models import save
from steadyflow.models.networks import ResidualMLP
from steadyflow.models.training import train
from steadyflow_lab.digits import quality

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="src/steadyflow/models/weights/digits.safetensors")
parser.add_argument("--steps", type=int, default=3000)
parser.add_argument("--batch", type=int, default=256)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--weight-decay", type=float, default=0.05)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

torch.manual_seed(options.seed)
network = {"shape": (1, 8, 8), "hidden": 256, "blocks": 3, "classes": 10}
net = ResidualMLP(**network)
images, labels = digits("train")


def batch(generator):
    rows = torch.randint(len(images), (options.batch,), generator=generator)
    return images[rows], labels[rows]


model = sf.Denoiser(net, sf.VPCosine(), prediction="v_prediction", shape=(1, 8, 8), null=10, classes=10, name="digits")
averaged = train(
    model,
    batch,
    steps=options.steps,
    lr=options.lr,
    weight_decay=options.weight_decay,
    seed=options.seed,
    report=lambda step, loss: print(f"step {step:6d}  loss {loss:.4f}", flush=True),
)
model = replace(model, net=averaged.half().float().eval().requires_grad_(False))
figures = quality(model)
print(json.dumps(figures, indent=2))
facts = {"training": vars(options), "quality": figures}
save(model, options.out, {"type": "ResidualMLP", **network}, dtype=torch.float16, **facts)
