"""Round trips and half precision in tiny diffusers pipelines, beside diffusers' own:  python benchmarks/in_pipelines.py

The weights are random, so the numbers say something about solvers, not about pictures. The network "as it is" responds
to every frequency of the time embedding, down to a period of six timesteps; the "smooth" one only to the slow half, as
networks do that were trained over neighbouring times. Each way takes 48 network calls at guidance 1, inverted and
generated in the pipeline itself.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from diffusers import DDIMInverseScheduler, DDIMScheduler

import pipelines
import steadyflow as sf
from steadyflow.diffusers import (
    SteadyFlowInverseScheduler,
    SteadyFlowScheduler,
    SteadyInverseScheduler,
    SteadyScheduler,
)

METHODS = (("ddim", 48), ("ees25", 16), ("rk4", 12), ("rex-midpoint", 12), ("edict", 24))
SIZES = {"flux": {"height": 8, "width": 8}}


def call(pipe, name, latents, steps):
    """The latents that the pipeline returns for the given ones."""
    options = {**pipelines.CALLS[name], "latents": latents, "num_inference_steps": steps}
    return pipe("a cat", output_type="latent", **options).images


def latents(name, pipe):
    """The latents of a picture, packed as the pipeline takes them."""
    shape = sf.from_diffusers(pipe, **SIZES.get(name, {})).shape
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2))
    return pipelines.packed(name, x)


def round_trip(pipe, name, solver, steps):
    """The relative error of a picture's latents that were inverted and generated again."""
    own, flow = pipe.scheduler, name in ("sd3", "flux")
    there, back = (
        (SteadyFlowInverseScheduler, SteadyFlowScheduler) if flow else (SteadyInverseScheduler, SteadyScheduler)
    )
    options = {"solver": solver, **({"sigma_max": 0.98} if flow else {})}
    image = latents(name, pipe)
    try:
        inverse = pipe.scheduler = there.from_config(own.config, **options)
        call(pipe, name, image, steps)
        forward = pipe.scheduler = back.from_config(own.config, **options)
        found = call(pipe, name, forward.carry(inverse), steps)
    finally:
        pipe.scheduler = own
    return ((found - image).norm() / image.norm()).item()


def diffusers_own(pipe, steps=48):
    """The relative error of the round trip by diffusers' own DDIM and its inverse."""
    own, image = pipe.scheduler, latents("sd", pipe)
    try:
        pipe.scheduler = DDIMInverseScheduler.from_config(own.config)
        noise = call(pipe, "sd", image, steps)
        pipe.scheduler = DDIMScheduler.from_config(own.config)
        found = call(pipe, "sd", noise, steps)
    finally:
        pipe.scheduler = own
    return ((found - image).norm() / image.norm()).item()


def main():
    print("relative error of the round trip, 48 network calls each way\n")
    heads = ["pipeline", "network", "diffusers' DDIM", *(name for name, _ in METHODS)]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name in ("sd", "sdxl", "sd3", "flux"):
        for kind in ("as it is", "smooth"):
            pipe = pipelines.build(name)
            pipe = pipelines.smooth_in_time(pipe) if kind == "smooth" else pipe
            theirs = f"{diffusers_own(pipe):.1e}" if name == "sd" else ""
            cells = [f"{round_trip(pipe, name, solver, steps):.1e}" for solver, steps in METHODS]
            print("| " + " | ".join([name, kind, theirs, *cells]) + " |", flush=True)
    print("\nrelative error of half precision against float32, EES25, 8 steps, smooth networks\n")
    print("| pipeline | bfloat16 | float16 |\n|---|---|---|")
    for name in ("sd", "flux"):
        ends = []
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            pipe = pipelines.smooth_in_time(pipelines.build(name)).to(dtype)
            model = sf.from_diffusers(pipe, "a cat", **SIZES.get(name, {}))
            start = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1))
            ends.append(sf.sample(model, x=start, solver="ees25", steps=8, grid="uniform", end="path").x)
        errors = [f"{((e - ends[0]).norm() / ends[0].norm()).item():.1e}" for e in ends[1:]]
        print("| " + " | ".join([name, *errors]) + " |", flush=True)


if __name__ == "__main__":
    main()
