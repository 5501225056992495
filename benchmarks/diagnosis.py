"""Does the diagnosis name the cause of a deliberately spoiled round trip, and does its remedy work?

    python benchmarks/diagnosis.py

Settings are spoiled in five ways (too few steps, a bad grid, guidance mismatch, half precision, an unstable exact
solver) on exact mixtures, the digits and the faces; each diagnosis is verified on all images.
"""

import torch

import steadyflow as sf
from steadyflow.datasets import digits
from steadyflow.diagnostics import in_precision
from steadyflow_lab.datasets import faces
from steadyflow_lab.editing.coupling import conditional_mixture

N = 16


def warped(schedule, steps, power):
    """A grid whose steps crowd at the noisy end (power < 1) or at the very clean one (power > 1)."""
    low, high = schedule.t_range
    return sf.Grid(tuple(low + (high - low) * (1 - k / steps) ** power for k in range(steps + 1)))


def problems():
    for name, path in (
        ("mixture vp", sf.VPScaledLinear()),
        ("mixture flow", sf.RectifiedFlow(t_min=1e-3, t_max=0.999)),
    ):
        data = conditional_mixture()
        zeros = torch.zeros(N, dtype=torch.long)
        yield name, data.denoiser(path).with_condition(zeros), data.sample(N, label=0).float()
    images, labels = digits("held-out")
    yield "digits", sf.load("digits").with_condition(labels[:N]), images[:N]
    images, labels = faces("held-out")
    yield "faces", sf.load("faces").with_condition(labels[:6]), images[:6]


def spoiled(model):
    yield "steps", "ddim, 6 steps", model, {"solver": "ddim", "steps": 6}
    yield "steps", "ees25, 4 steps", model, {"solver": "ees25", "steps": 4}
    yield "steps", "midpoint, 5 steps", model, {"solver": "midpoint", "steps": 5}
    for power in (0.4, 5.0):
        for solver, steps in (("ees25", 16), ("rk4", 16), ("ddim", 60)):
            name = f"{solver}, {steps} steps, t ~ s^{power}"
            yield "grid", name, model, {"solver": solver, "grid": warped(model.schedule, steps, power)}
    yield "guidance", "ees25, w = 1 and 3", model, {"solver": "ees25", "steps": 24, "guidance": 3.0}
    yield "guidance", "ddim, w = 1 and 7.5", model, {"solver": "ddim", "steps": 100, "guidance": 7.5}
    yield "guidance", "rk4, w = 3 and 1", model.with_guidance(3.0), {"solver": "rk4", "steps": 24, "guidance": 1.0}
    if isinstance(model.net, torch.nn.Module):
        # half-precision convolutions take minutes on a CPU, so that images get one of the two types
        for dtype in (torch.bfloat16,) if model.name == "faces" else (torch.float16, torch.bfloat16):
            half = in_precision(model, dtype)
            yield "precision", f"ees25, {dtype}", half, {"solver": "ees25", "steps": 32}
            yield "precision", f"rk4, {dtype}", half, {"solver": "rk4", "steps": 24}
    for name, steps, there, back in (
        ("rex-euler", 24, 1.0, None),
        ("rex-midpoint", 12, 7.5, None),
        ("edict", 24, 7.5, None),
        ("rex-euler", 24, 1.0, 7.5),
        ("rex-rk4", 12, 1.0, 7.5),
    ):
        label = f"{name}, {steps} steps, w = {there:g} and {back or there:g}"
        yield "instability", label, model.with_guidance(there), {"solver": name, "steps": steps, "guidance": back}


right = lower = count = 0
heads = f"{'problem':<13}{'spoiled by':<12}{'setting':<52}{'error':>9}{'named':>13}{'verified':>10}"
print(f"{heads}{'gain':>9}{'predicted':>10}")
for title, model, images in problems():
    for cause, name, spoiled_model, options in spoiled(model):
        try:
            found = sf.diagnose(spoiled_model, images, verify=True, **options)
        except sf.InputError as error:
            print(f"{title:<13}{cause:<12}{name:<52} refused: {str(error)[:60]}")
            continue
        before, after = found.measured.median().item(), found.verified.error.median().item()
        count += 1
        right += found.cause == cause
        lower += after < before
        print(
            f"{title:<13}{cause:<12}{name:<52}{before:>9.1e}{found.cause:>13}{after:>10.1e}{found.verified.gain:>9.3g}"
            f"{found.verified.predicted:>10.3g}",
            flush=True,
        )
print(f"\nright cause named in {right} of {count} ({right / count:.0%})")
print(f"remedy lowers the error in {lower} of {count} ({lower / count:.0%})")
