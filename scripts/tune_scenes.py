"""Fit the tuned solver of the study of edits over photographs:  python scripts/tune_scenes.py [--calls N] [--seed S]

Both ways together, at 12 calls each, on pictures of the training set that the study does not have, against their round
trips and against fine edits of them. Some ten minutes of one core.
"""

import argparse

import torch

import steadyflow as sf
from steadyflow_lab.datasets.scenes import DIGITS, caption, scenes
from steadyflow_lab.editing.scenes import scene_model
from steadyflow_lab.editing.ways import FEW, TUNED

AGAINST = ["ddim", "rk4", "ees25", "ees27", "fireflow"]
"""Plain solvers that it is judged against, on every grid: all there are would take an hour."""

parser = argparse.ArgumentParser()
parser.add_argument("--out", default=str(TUNED))
parser.add_argument("--pictures", type=int, default=96)
parser.add_argument("--fine", type=int, default=96)
parser.add_argument("--calls", type=int, default=60_000)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

pictures = scenes("train", options.pictures, torch.Generator().manual_seed(options.seed), empty=0.0)
facts = torch.stack([pictures.digit, pictures.colour, pictures.size, pictures.place, pictures.ground], 1)
others = facts.clone()
others[:, 0] = (facts[:, 0] + 1 + torch.arange(len(facts)) % (len(DIGITS) - 1)) % len(DIGITS)
model = scene_model()
tuned = sf.tune(
    model,
    nfe=FEW // 2,
    task="round trip",
    x=model.encode(pictures.images),
    conditions=[caption(*row) for row in facts.tolist()],
    targets=[caption(*row) for row in others.tolist()],
    guidance=(1.0, 5.0),
    against=AGAINST,
    fine=options.fine,
    calls=options.calls,
    seed=options.seed,
    progress=True,
)
tuned.save(options.out)
print(tuned.verdict)
