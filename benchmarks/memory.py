"""Peak memory of the largest singular value of a generation map:  python benchmarks/memory.py [--steps N]

A batch of 16 images of 3 x 64 x 64, a U-Net of half a million weights, 50 steps: two rounds of power iteration, each
one Jacobian product and one transposed product. The peak does not depend on the number of rounds.
"""

import argparse
import resource

import torch

import steadyflow as sf
from steadyflow.diagnostics import instability
from steadyflow.models.networks import UNet

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=50)
options = parser.parse_args()
torch.manual_seed(0)
net = UNet((3, 64, 64), channels=(32, 64, 64))
torch.nn.init.normal_(net.leave[-1].weight, std=0.02)  # it starts as zero
model = sf.Denoiser(net.requires_grad_(False), sf.VPCosine(), prediction="v_prediction", shape=(3, 64, 64))
grid = sf.grids.make("quadratic", model.schedule, options.steps)
journey = sf.JourneyMap(model, grid, sf.solvers.get("ddim"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = instability.singular_values(journey, torch.randn(16, 3, 64, 64), 1, products=2)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"steps {options.steps}, peak {after / 1e6:.2f} GB, of which {before / 1e6:.2f} GB before the work")
print(f"largest singular values after two rounds: {found.values[:, 0].min():.3g} to {found.values[:, 0].max():.3g}")
