"""Memory and time of gradients on an accelerator:  python benchmarks/gradients_on_device.py [--device cuda]

A U-Net of pictures 3 x 64 x 64, a batch of 16, float32. "held" is what is allocated between a run and its way back,
"peak" the most that ever is, both over what the network takes; times are those of a second call, of the run and the
way back together. The error is that of the gradient of the start and of all parameters, against plain back-propagation.
"""

import argparse
import time

import torch

import steadyflow as sf
from steadyflow.models.networks import UNet

KINDS = {
    "none": "none",
    "checkpoint": "checkpoint",
    "checkpoint, every=sqrt": sf.Adjoint("checkpoint", every="sqrt"),
    "reversible": "reversible",
    "checkpoint, order=2": sf.Adjoint("checkpoint", order=2),
}
SOLVERS = {
    "heun": sf.solvers.get("heun"),
    "rex-midpoint, auto": sf.solvers.get("rex-midpoint", coordinates="flow", coupling="auto"),
}

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda")
parser.add_argument("--steps", type=int, nargs="+", default=[10, 40])
options = parser.parse_args()
device = torch.get_device_module(options.device)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
torch.manual_seed(0)
net = UNet((3, 64, 64), channels=(64, 128, 128))
torch.nn.init.normal_(net.leave[-1].weight, std=0.02)  # it starts as zero
net = net.to(options.device)
path = sf.RectifiedFlow()
start = torch.randn(16, 3, 64, 64, device=options.device)


def run(adjoint, solver, steps, model, autocast=False):
    """The gradient, the bytes that were held, the peak, and the seconds."""
    x = start.clone().requires_grad_()
    net.zero_grad(set_to_none=True)
    device.synchronize()
    device.empty_cache()
    device.reset_peak_memory_stats()
    before, begin = device.memory_allocated(), time.perf_counter()
    with torch.autocast(options.device, dtype=torch.bfloat16, enabled=autocast):
        found = sf.sample(model, x=x, solver=solver, steps=steps, adjoint=adjoint, progress=False)
    device.synchronize()
    held = device.memory_allocated() - before
    found.x.square().mean().backward()
    device.synchronize()
    seconds = time.perf_counter() - begin
    parts = [x.grad.flatten(), *(parameter.grad.flatten() for parameter in net.parameters())]
    return torch.cat(parts), held / 1e6, (device.max_memory_allocated() - before) / 1e6, seconds


def error(found, plain):
    return ((found - plain).norm() / plain.norm()).item()


model = sf.Denoiser(net, path, prediction="flow", shape=(3, 64, 64))
print(device.get_device_name(), "\n")
print(f"{'solver':<20}{'steps':>6}  {'adjoint':<24}{'error':>9}{'held MB':>10}{'peak MB':>10}{'ms':>8}{'of plain':>10}")
for name, solver in SOLVERS.items():
    for steps in options.steps:
        plain = None
        for title, adjoint in KINDS.items():
            if adjoint == "reversible" and solver.properties.inverse != "exact":
                continue
            run(adjoint, solver, steps, model)
            found = run(adjoint, solver, steps, model)
            plain = found if plain is None else plain
            gradient, held, peak, seconds = found
            print(
                f"{name:<20}{steps:>6}  {title:<24}{error(gradient, plain[0]):>9.0e}{held:>10.0f}{peak:>10.0f}"
                f"{1e3 * seconds:>8.0f}{seconds / plain[3]:>10.2f}",
                flush=True,
            )
compiled = sf.Denoiser(torch.compile(net), path, prediction="flow", shape=(3, 64, 64), dtype=torch.float32)
for title, asked, autocast in (("bf16 by autocast", model, True), ("torch.compile", compiled, False)):
    plain = run("none", SOLVERS["rex-midpoint, auto"], 10, asked, autocast)[0]
    errors = {
        kind: error(run(KINDS[kind], SOLVERS["rex-midpoint, auto"], 10, asked, autocast)[0], plain)
        for kind in ("checkpoint", "reversible", "checkpoint, order=2")
    }
    print(f"\n{title}, rex-midpoint, 10 steps: " + ", ".join(f"{kind} {off:.0e}" for kind, off in errors.items()))
