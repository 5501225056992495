"""Round-trip, endpoint and edit error against evaluations, all solvers:

    python benchmarks/solvers.py [--quick] [--read benchmarks/solvers.csv]

Problems: exact conditional mixtures in 2, 16 and 64 dimensions on a VP and a flow path, and the digits model. The
references are dopri5 solves with 400 steps. Round trip and edit are for solvers that invert; what AIDI and ReNoise
iterate on the way up is not counted. RK4 and midpoint run backwards are the controls of the near-reversible ones.
Writes every figure to benchmarks/solvers.csv, from which --read prints the summary again. About twelve minutes on two
cores.
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

CONTROLS = ("ddim", "midpoint", "rk4", "ees25", "ees27", "rex-euler", "rex-midpoint:auto", "edict")
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
    options = {"coupling": "auto", **({"coordinates": "flow"} if base.startswith("rex") else {})}
    return solvers.get(base, **options)


def measure(model, x, labels, targets, name, nfe, start, end, edited):
    solver, here, there = make(name), model.with_condition(labels), model.with_condition(targets, guidance=3.0)
    row = {"endpoint": "", "round trip": "", "edit": ""}
    try:
        steps = steps_for(solver, nfe)
        row["endpoint"] = rmse(sf.sample(here, x=start, solver=solver, steps=steps, end="path").x, end).median().item()
        if solver.invertible:
            inversion = sf.invert(here, x, solver=solver, steps=steps)
            row["round trip"] = rmse(inversion.decode().x, x).median().item()
            row["edit"] = rmse(inversion.decode(there).x, edited).median().item()
    except sf.SteadyflowError as error:
        row["note"] = type(error).__name__
    return row


def summary(rows):
    """For each problem and budget the best few by each measure, and the controls."""
    for title, nfe in dict.fromkeys((row["problem"], int(row["nfe"])) for row in rows):
        chosen = [row for row in rows if (row["problem"], int(row["nfe"])) == (title, nfe)]
        print(f"\n{title}, {nfe} evaluations each way")
        for measure in ("endpoint", "round trip", "edit"):
            values = {row["solver"]: float(row[measure]) for row in chosen if row[measure] not in ("", None)}
            if measure == "round trip":  # exact ones are exact; what is compared is the others
                values = {name: v for name, v in values.items() if make(name).properties.inverse != "exact"}
            best = sorted((v, name) for name, v in values.items() if v == v)[:4]
            controls = [
                (values[name], name) for name in CONTROLS if name in values and (values[name], name) not in best
            ]
            text = [", ".join(f"{name} {v:.1e}" for v, name in some) for some in (best, controls)]
            print(f"  {measure:<11} {text[0]}   [{text[1]}]")


parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true")
parser.add_argument("--out", default="benchmarks/solvers.csv")
parser.add_argument("--read")
options = parser.parse_args()
if options.read:
    with Path(options.read).open(newline="") as file:
        summary(list(csv.DictReader(file)))
    raise SystemExit
names = [
    n for n in solvers.names() if solvers.get(n).properties.evaluations and not solvers.get(n).properties.stochastic
] + AUTO
rows = []
for title, model, x, labels, targets in problems(options.quick):
    here = model.with_condition(labels)
    exact = sf.invert(here, x, solver="dopri5", steps=400, grid="log-snr")
    edited = exact.decode(model.with_condition(targets, guidance=3.0)).x
    for nfe in (12, 48) if options.quick else (12, 24, 48, 96):
        for name in names:
            row = measure(model, x, labels, targets, name, nfe, exact.latent, x, edited)
            rows.append({"problem": title, "nfe": nfe, "solver": name, **row})
with Path(options.out).open("w", newline="") as file:
    writer = csv.DictWriter(file, ["problem", "nfe", "solver", "endpoint", "round trip", "edit", "note"])
    writer.writeheader()
    writer.writerows(rows)
summary(rows)
