"""Round-trip, endpoint and edit error against evaluations, all solvers:  python benchmarks/solvers.py [--quick]

Problems: exact conditional mixtures in 2, 16 and 64 dimensions on a VP and a flow path, and the digits model. The
references are dopri5 solves with 400 steps. Round trip and edit are for solvers that invert; RK4 and midpoint run
backwards are the controls of the near-reversible ones. Writes benchmarks/solvers.csv and prints the table.
"""

import argparse
import csv
from pathlib import Path

import torch

import steadyflow as sf
from steadyflow import solvers
from steadyflow.datasets import digits
from steadyflow.metrics import rmse
from steadyflow.solvers.base import steps_for

AUTO = [f"rex-{m}:auto" for m in ("euler", "midpoint", "rk4")] + ["edict:auto", "bdia:auto"]


def mixture(dim, components=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(components, dim, generator=generator, dtype=torch.float64)
    std = torch.full((components, dim), 0.05, dtype=torch.float64)
    std[:, : max(1, dim // 4)] = 0.5
    return sf.GaussianMixture(means, std, labels=torch.arange(components) % 2)


def problems(quick):
    for dim in (2, 16) if quick else (2, 16, 64):
        for name, path in (("vp", sf.VPScaledLinear()), ("flow", sf.RectifiedFlow(t_min=1e-3, t_max=0.999))):
            data = mixture(dim)
            x, labels = data.sample(32, label=0), torch.zeros(32, dtype=torch.long)
            yield f"mixture {dim}-D {name}", data.denoiser(path), x, labels, labels + 1
    if not quick:
        images, labels = digits("held-out")
        yield "digits vp", sf.load("digits"), images[:32].double(), labels[:32], (labels[:32] + 5) % 10


def make(name):
    base, _, auto = name.partition(":")
    if not auto:
        return solvers.get(base)
    options = {"coupling": "auto", **({"variable": "flow"} if base.startswith("rex") else {})}
    return solvers.get(base, **options)


def measure(model, x, labels, targets, name, nfe, start, end, edited):
    solver, here, there = make(name), model.condition(labels), model.condition(targets, guidance=3.0)
    row = {"endpoint": "", "round trip": "", "edit": ""}
    try:
        steps = steps_for(solver, nfe)
        row["endpoint"] = rmse(sf.sample(here, x=start, solver=solver, steps=steps).x, end).median().item()
        if solver.invertible:
            inversion = sf.invert(here, x, solver=solver, steps=steps)
            row["round trip"] = rmse(inversion.decode().x, x).median().item()
            row["edit"] = rmse(inversion.decode(there).x, edited).median().item()
    except sf.SteadyflowError as error:
        row["note"] = type(error).__name__
    return row


parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true")
parser.add_argument("--out", default="benchmarks/solvers.csv")
options = parser.parse_args()
names = [n for n in solvers.names() if solvers.get(n).facts.evaluations and not solvers.get(n).facts.stochastic] + AUTO
rows = []
for title, model, x, labels, targets in problems(options.quick):
    here = model.condition(labels)
    exact = sf.invert(here, x, solver="dopri5", steps=400, grid="log-snr")
    edited = exact.decode(model.condition(targets, guidance=3.0)).x
    for nfe in (12, 48) if options.quick else (12, 24, 48, 96):
        print(f"\n{title}, {nfe} evaluations\n{'solver':<24}{'endpoint':>10}{'round trip':>12}{'edit w=3':>10}")
        for name in names:
            row = measure(model, x, labels, targets, name, nfe, exact.latent, x, edited)
            rows.append({"problem": title, "nfe": nfe, "solver": name, **row})
            cells = [f"{v:.1e}" if v != "" else "" for v in (row["endpoint"], row["round trip"], row["edit"])]
            print(f"{name:<24}{cells[0]:>10}{cells[1]:>12}{cells[2]:>10}  {row.get('note', '')}", flush=True)
with Path(options.out).open("w", newline="") as file:
    writer = csv.DictWriter(file, ["problem", "nfe", "solver", "endpoint", "round trip", "edit", "note"])
    writer.writeheader()
    writer.writerows(rows)
