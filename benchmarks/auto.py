"""How often solver="auto" is near the best fixed choice:  python benchmarks/auto.py

Mixtures in 2, 16 and 64 dimensions and the digits model, VP, cosine and flow paths, 24 and 48 evaluations, the way back
at guidance 1 (round trip) and 3 (edit against a fine reference). For each case the error of auto's choice on 32 samples
is compared with the best of a list of fixed solvers; it counts if within a factor 1.5. Prints every case and the share.
"""

import torch

import steadyflow as sf
from steadyflow import solvers
from steadyflow.datasets import digits
from steadyflow.metrics import rmse
from steadyflow.tasks.choosing import APPROXIMATE
from steadyflow_lab.editing.coupling import conditional_mixture

FIXED = [*((n, o, g) for n, o in APPROXIMATE for g in ("quadratic", "uniform")), ("ddim", {}, "quadratic")]


def small(dim):
    generator = torch.Generator().manual_seed(dim)
    means = torch.randn(8, dim, generator=generator, dtype=torch.float64)
    std = torch.full((8, dim), 0.05, dtype=torch.float64)
    std[:, : max(1, dim // 4)] = 0.5
    return sf.GaussianMixture(means, std, labels=torch.arange(8) % 2)


def cases():
    paths = {"vp": sf.VPScaledLinear(), "cosine": sf.VPCosine(), "flow": sf.RectifiedFlow(t_min=1e-3, t_max=0.999)}
    for name, data in (("2-D", small(2)), ("16-D", conditional_mixture()), ("64-D", small(64))):
        for path, schedule in paths.items():
            labels = torch.zeros(32, dtype=torch.long)
            yield f"{name} {path}", data.denoiser(schedule), data.sample(32, label=0), labels, labels + 1
    images, labels = digits("held-out")
    yield "digits", sf.load("digits"), images[:32].double(), labels[:32], (labels[:32] + 5) % 10


def error(inversion, x, there, reference):
    back = rmse(inversion.decode().x, x)
    if there is None:
        return back.median().item()
    return torch.maximum(back, rmse(inversion.decode(there).x, reference)).median().item()


near, total = 0, 0
for title, model, x, labels, targets in cases():
    here = model.with_condition(labels)
    exact = sf.invert(here, x, solver="dopri5", steps=300, grid="log-snr")
    for guidance in (1.0, 3.0):
        there = None if guidance == 1.0 else model.with_condition(targets, guidance=guidance)
        reference = None if there is None else exact.decode(there).x
        for nfe in (24, 48):
            choice = sf.choose_solver(here, x, nfe=nfe, target=there)
            chosen = sf.invert(here, x, solver=choice.solver, steps=choice.steps, grid=choice.grid)
            mine = error(chosen, x, there, reference)
            fixed = {
                f"{n} {o.get('coordinates', '')} {g}": error(
                    sf.invert(here, x, solver=solvers.get(n, **o), nfe=nfe, grid=g), x, there, reference
                )
                for n, o, g in FIXED
            }
            best = min(fixed, key=fixed.get)
            good = mine <= 1.5 * fixed[best]
            near, total = near + good, total + 1
            verdict = "" if good else "  <- not within 1.5"
            name, case = f"{choice.solver.name} {choice.grid}", f"{title:<12} w={guidance:g} nfe={nfe}"
            print(f"{case}  auto {mine:.1e} ({name})  best {fixed[best]:.1e} ({best}){verdict}", flush=True)
print(f"within a factor 1.5 of the best fixed choice in {near} of {total} cases ({near / total:.0%})")
