"""Train the lab's model of face patches:  python scripts/train_faces.py [--out FILE] [--steps N] [--seed S]

A U-Net on 16x16 grey patches of real faces (label 1) and photographs (label 0) from scikit-image, label dropout 0.1;
about twelve minutes on two cores. Prints how far samples and held-out faces are from the training set.
"""

import argparse
import json
from dataclasses import replace

import torch

import steadyflow as sf
from steadyflow.models import save
from steadyflow.models.networks import UNet
from steadyflow.models.training import train
from steadyflow_lab.datasets import faces

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="lab/src/steadyflow_lab/weights/faces.safetensors")
parser.add_argument("--steps", type=int, default=8000)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--weight-decay", type=float, default=0.01)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

torch.manual_seed(options.seed)
network = {"shape": (1, 16, 16), "channels": (16, 32, 64), "classes": 2}
net = UNet(**network)
images, labels = faces("train")


def batch(generator):
    """Half faces, half photographs."""
    people = int((labels == 1).sum())
    photographs = len(images) - people
    half = options.batch // 2
    rows = torch.cat(
        [
            torch.randint(photographs, (half,), generator=generator),
            photographs + torch.randint(people, (half,), generator=generator),
        ]
    )
    return images[rows], labels[rows]


model = sf.Denoiser(net, sf.VPCosine(), prediction="v_prediction", shape=(1, 16, 16), null=2, classes=2, name="faces")
averaged = train(
    model,
    batch,
    steps=options.steps,
    lr=options.lr,
    weight_decay=options.weight_decay,
    seed=options.seed,
    report=lambda step, loss: print(f"step {step:6d}  loss {loss:.4f}", flush=True),
)
model = replace(model, net=averaged.eval().requires_grad_(False))
known = images[labels == 1].flatten(1)
drawn = sf.sample(model.with_condition(1), n=200, solver="ddim", steps=50, seed=1).x
distance = {
    name: torch.cdist(x.flatten(1), known).amin(1).median().item()
    for name, x in (("samples", drawn), ("held-out", faces("held-out")[0]))
}
figures = {"nearest training face, median distance": distance}
print(json.dumps(figures, indent=2))
save(model, options.out, {"type": "UNet", **network}, training=vars(options), quality=figures)
