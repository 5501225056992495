"""Does the diagnosis name the cause of settings that it was not made on?

    python benchmarks/diagnosis_held_out.py

The settings of `diagnosis.py` come from the same hands as the thresholds of the diagnosis. Here they are drawn at
random: solvers that are not among those, the numbers of steps, the grids, the scales of guidance, on mixtures of other
modes and paths and on other digits. A draw whose error stays below 1e-5 spoils nothing and is drawn again, up to ten
times.
"""

import random

import torch

import steadyflow as sf
from steadyflow import solvers
from steadyflow.datasets import digits
from steadyflow.diagnostics import in_precision
from steadyflow.metrics.statistics import wilson
from steadyflow.solvers.base import steps_for

N, DRAWS = 8, 5
GOOD = ("heun", "ralston", "ssprk3", "bogacki-shampine", "dopri5", "tsit5", "ees27")
EXACT = ("rex-heun", "rex-ralston", "rex-ssprk3", "rex-tsit5", "bdia", "belm", "alf", "reversible-heun")


def problems():
    shifted = sf.RectifiedFlow(3.0, 1e-3, 0.999)
    for name, path, dim in (("mixture cosine", sf.VPCosine(), 6), ("mixture shifted flow", shifted, 12)):
        means = sf.GaussianMixture.farthest_points(8, dim, seed=3).means / 2.0
        data = sf.GaussianMixture(means, 0.25, labels=[0, 0, 0, 0, 1, 1, 1, 1])
        model = data.denoiser(path).with_condition(torch.zeros(N, dtype=torch.long))
        yield name, model, data.sample(N, seed=5, label=0).float()
    images, labels = digits("held-out")
    yield "digits", sf.load("digits").with_condition(labels[100 : 100 + N]), images[100 : 100 + N]


def grid(schedule, steps, power):
    low, high = schedule.t_range
    return sf.Grid(tuple(low + (high - low) * (1 - k / steps) ** power for k in range(steps + 1)))


def draw(cause, model, rng):
    """A setting that is spoiled in one way: its words, the model, and the options of `diagnose`."""
    solver = rng.choice(GOOD)
    fine = steps_for(solvers.get(solver), rng.randint(80, 160))
    if cause == "steps":
        steps = steps_for(solvers.get(solver), rng.randint(8, 20))
        return f"{solver}, {steps} steps", model, {"solver": solver, "steps": steps}
    if cause == "grid":
        steps, power = steps_for(solvers.get(solver), rng.randint(40, 100)), rng.choice((0.3, 0.5, 4.0, 6.0))
        return (
            f"{solver}, {steps} steps, t ~ s^{power}",
            model,
            {"solver": solver, "grid": grid(model.schedule, steps, power)},
        )
    if cause == "guidance":
        there, back = rng.choice(((1.0, 2.0), (1.0, 4.0), (2.0, 5.0), (5.0, 1.0), (3.0, 6.0)))
        options = {"solver": solver, "steps": fine, "guidance": back}
        return f"{solver}, {fine} steps, w = {there:g} and {back:g}", model.with_guidance(there), options
    if cause == "precision":
        dtype = rng.choice((torch.float16, torch.bfloat16))
        half = in_precision(model, dtype)
        return f"{solver}, {fine} steps, {dtype}", half, {"solver": solver, "steps": fine}
    solver, there = rng.choice(EXACT), rng.choice((1.0, 3.0, 5.0))
    back, steps = rng.choice((there, 6.0)), steps_for(solvers.get(solver), rng.randint(20, 60))
    options = {"solver": solver, "steps": steps, "guidance": back}
    return f"{solver}, {steps} steps, w = {there:g} and {back:g}", model.with_guidance(there), options


rng, right, count, tally = random.Random(0), 0, 0, {}
print(f"{'problem':<22}{'spoiled by':<13}{'setting':<46}{'error':>9}{'named':>13}")
for title, model, images in problems():
    for cause in ("steps", "grid", "guidance", "precision", "instability"):
        if cause == "precision" and not isinstance(model.net, torch.nn.Module):
            continue
        for _ in range(DRAWS):
            for _ in range(10):
                words, spoiled, options = draw(cause, model, rng)
                found = sf.diagnose(spoiled, images, **options)
                error = found.measured.median().item()
                if not error < 1e-5:
                    break
            else:
                continue
            count += 1
            right += found.cause == cause
            tally.setdefault(cause, []).append(found.cause == cause)
            print(f"{title:<22}{cause:<13}{words:<46}{error:>9.1e}{found.cause:>13}", flush=True)
print()
for cause, hits in tally.items():
    print(f"{cause:<13}{sum(hits)} of {len(hits)}")
e = wilson(right, count)
print(f"\nright cause named in {right} of {count} ({e.value:.0%} [{e.low:.0%}, {e.high:.0%}])")
