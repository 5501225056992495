"""Train the lab's flow model of digits:  python scripts/train_digits_flow.py [--out FILE] [--steps N] [--seed S]

The counterpart of the bundled digits model (see train_digits.py) on the straight path of flow matching. The same data,
1,500 real digits of scikit-learn (Alpaydin & Kaynak 1998, UCI Machine Learning Repository, CC BY 4.0); also
class-conditional with label dropout 0.1; about ten minutes on one core. A run that is stopped goes on from its
checkpoint. Prints the figures by which the model is judged (see `steadyflow_lab.digits`) and the mean square error of
its velocity, with its weights rounded to float16 as they are stored.

The model in the lab: all of 1,000 samples at guidance 1 are recognised as their class by a classifier that is right on
99.3 % of held-out digits; samples are 0.89 times as far from the training digits as held-out ones are. The velocity's
error is 0.309 on the training digits and 0.403 on the held-out ones; that of the bundled digits model, read as a
velocity at the same noise-to-signal ratios, is 0.343 and 0.391.
"""

import argparse
import json
from dataclasses import replace

import torch

import steadyflow as sf
from steadyflow._internal.tensors import broadcast
from steadyflow.datasets import digits
from steadyflow.models import save
from steadyflow.models.networks import ResidualMLP
from steadyflow.models.training import target, train
from steadyflow_lab.digits import quality

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="lab/src/steadyflow_lab/weights/digits-flow.safetensors")
parser.add_argument("--checkpoint", default="digits-flow.checkpoint", help="the file of the state of the training")
parser.add_argument("--steps", type=int, default=6000)
parser.add_argument("--batch", type=int, default=256)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--weight-decay", type=float, default=0.05)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--hidden", type=int, default=240)
parser.add_argument("--blocks", type=int, default=3)
options = parser.parse_args()

torch.manual_seed(options.seed)
network = {"shape": (1, 8, 8), "hidden": options.hidden, "blocks": options.blocks, "classes": 10}
net = ResidualMLP(**network)
images, labels = digits("train")


def batch(generator):
    rows = torch.randint(len(images), (options.batch,), generator=generator)
    return images[rows], labels[rows]


def loss(model, part, draws=64):
    """The mean square error of the velocity under the true label, at times spread over the path."""
    x0, label = digits(part)
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for _ in range(draws):
        t = (torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) / len(x0)
        t = t[torch.randperm(len(x0), generator=generator)]
        eps = torch.randn(x0.shape, generator=generator)
        alpha, sigma = broadcast(1.0 - t, x0), broadcast(t, x0)
        output = model.net(alpha * x0 + sigma * eps, t, label)
        total += (output - target("flow", x0, eps, alpha, sigma)).square().mean().item() / draws
    return total


model = sf.Denoiser(
    net, sf.RectifiedFlow(), prediction="flow", shape=(1, 8, 8), null=10, classes=10, name="digits-flow"
)
averaged = train(
    model,
    batch,
    steps=options.steps,
    lr=options.lr,
    weight_decay=options.weight_decay,
    seed=options.seed,
    report=lambda step, loss: print(f"step {step:6d}  loss {loss:.4f}", flush=True),
    checkpoint=options.checkpoint,
)
model = replace(model, net=averaged.half().float().eval().requires_grad_(False))
figures = {**quality(model), "loss": {part: loss(model, part) for part in ("train", "held-out")}}
print(json.dumps(figures, indent=2))
told = {name: value for name, value in vars(options).items() if name not in ("out", "checkpoint")}
facts = {"training": told, "quality": figures}
save(model, options.out, {"type": "ResidualMLP", **network}, dtype=torch.float16, **facts)
