"""Peak memory of the largest singular value of a generation map:  python benchmarks/memory.py [--steps N]

A batch of 16 images of 3 x 64 x 64, a U-Net of half a million weights, 50 steps: two rounds of power iteration, each
one Jacobian product and one transposed product. The peak does not depend on the number of rounds. Measured twice: as
the C library allocates by default, and with tensors mapped one by one (MALLOC_MMAP_THRESHOLD_), which shows what is
alive without what glibc keeps in pieces between.
"""

import argparse
import os
import resource
import subprocess
import sys

import torch

import steadyflow as sf
from steadyflow.jacobians import singular_values
from steadyflow.models.networks import UNet

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--once", action="store_true")
options = parser.parse_args()
if not options.once:
    command = [sys.executable, __file__, "--once", "--steps", str(options.steps)]
    for title, extra in (("default", {}), ("mapped", {"MALLOC_MMAP_THRESHOLD_": "1000000"})):
        print(f"allocation: {title}", flush=True)
        subprocess.run(command, env={**os.environ, **extra}, check=True)
    sys.exit()
torch.manual_seed(0)
net = UNet((3, 64, 64), channels=(32, 64, 64))
torch.nn.init.normal_(net.leave[-1].weight, std=0.02)  # it starts as zero
model = sf.Denoiser(net.requires_grad_(False), sf.VPCosine(), prediction="v_prediction", shape=(3, 64, 64))
grid = sf.grids.make("quadratic", model.schedule, options.steps)
journey = sf.FlowMap(model, grid, sf.solvers.get("ddim"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = singular_values(journey, torch.randn(16, 3, 64, 64), 1, products=2)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak, start = (kib * 1024 / 1e9 for kib in (after, before))
print(f"  steps {options.steps}, peak {peak:.2f} GB, of which {start:.2f} GB before the work", flush=True)
print(f"  largest singular values after two rounds: {found.values[:, 0].min():.3g} to {found.values[:, 0].max():.3g}")
