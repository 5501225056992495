"""What precision does to each solver:  python benchmarks/precision.py

Held-out digits and the bundled model (patched so that its network computes in float64 too), 12 steps on the quadratic
grid. "Sample": the root mean square distance of samples from the same run with network and state in float64. "Round
trip": the error of inverting and generating again in that precision, less nothing. A state is float32 or float64; a
network may compute in half precision under a float32 state. What a solver refuses is said so.
"""

import copy
import dataclasses

import torch

import steadyflow as sf
from steadyflow.datasets import digits

torch.set_num_threads(1)
AUTO = ("rex-euler", "rex-midpoint", "rex-rk4")
SETTINGS = {
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "bfloat16 network": (torch.bfloat16, torch.float32),
    "float16 network": (torch.float16, torch.float32),
}


def in_precision(model, dtype):
    """The model with its network in a precision."""
    return dataclasses.replace(model, net=copy.deepcopy(model.net).to(dtype), dtype=dtype)


def rms(x, y):
    return (x.double() - y.double()).square().mean().sqrt().item()


def main():
    images, labels = (part[:16] for part in digits("held-out"))
    model = sf.load("digits").with_condition(labels)
    start = sf.noise.initial(0, range(16), (1, 8, 8), dtype=torch.float64) * model.schedule.sigma(model.schedule.t_max)
    heads = [f"sample, {name}" for name in list(SETTINGS)[1:]] + [f"round trip, {name}" for name in SETTINGS]
    print("| solver | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
    stable = {f"{name}, flow, auto": (name, {"coordinates": "flow", "coupling": "auto"}) for name in AUTO}
    for title, (name, given) in {**{name: (name, {}) for name in sf.solvers.names()}, **stable}.items():
        solver = sf.solvers.get(name, **given)
        samples, trips = {}, {}
        for label, (network, state) in SETTINGS.items():
            here = in_precision(model, network)
            try:
                samples[label] = sf.sample(here, x=start.to(state), solver=solver, steps=12, progress=False).x
            except sf.SteadyflowError as error:
                samples[label] = type(error).__name__
            if not solver.invertible:
                trips[label] = ""
                continue
            try:
                back = sf.reconstruct(here, images.to(state), solver=solver, steps=12, progress=False)
                trips[label] = f"{back.error.median().item():.1e}"
            except sf.SteadyflowError as error:
                trips[label] = type(error).__name__
        exact = samples["float64"]
        cells = []
        for label in list(SETTINGS)[1:]:
            found = samples[label]
            both = isinstance(found, torch.Tensor) and isinstance(exact, torch.Tensor)
            cells.append(f"{rms(found, exact):.1e}" if both else str(found if isinstance(found, str) else exact))
        print(f"| {title} | " + " | ".join([*cells, *trips.values()]) + " |", flush=True)


if __name__ == "__main__":
    main()
