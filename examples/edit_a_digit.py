"""Invert a real digit once, and make several edits of it:  python examples/edit_a_digit.py

The inversion is exact (Rex over midpoint with automatic coupling), so the first picture is the source itself.
"""

import torch

import steadyflow as sf
from steadyflow.datasets import arrays, digits

images, labels = digits("held-out")
model = sf.load("digits")
solver = sf.Rex("midpoint", coordinates="flow", coupling="auto")
inversion = sf.invert(model.with_condition(labels[:1]), images[:1], solver=solver, nfe=48)
row = [inversion.decode().x]
row += [inversion.decode(model.with_condition(target), guidance=2.0).x for target in range(10)]
print(f"the round trip is exact to {(row[0] - images[:1]).abs().max():.1e}")
arrays.write("digit.png", torch.cat(row))
print("the digit, and its edits to 0..9: digit.png")
