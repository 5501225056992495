"""Interpolated samples of 25 exact modes on coarse grids, with and without corrections:  python benchmarks/escape.py"""

import torch

import steadyflow as sf
from steadyflow_lab.theory.interpolation import classify

N = 4000
schedule = sf.Tabulated.linear()
mixture = sf.GaussianMixture.grid(5, spacing=2.0 / 8**0.5, std=0.02 / 8**0.5)
model = mixture.denoiser(schedule)
print(f"{N} samples, DDIM from t = 800; share of interpolated samples with Wilson's 95 % interval")
for steps, grid, remaining in ((10, "quadratic", 2), (20, "uniform", 2), (50, "uniform", 4)):
    back = min(steps - 4, 20)
    for correction in (None, sf.corrections.Restart(remaining, back), sf.corrections.Escape(remaining, back)):
        corrections = [] if correction is None else [correction]
        options = {
            "solver": "ddim",
            "steps": steps,
            "grid": grid,
            "t_max": 800.0,
            "end": "path",
            "dtype": torch.float64,
        }
        run = sf.sample(model, n=N, corrections=corrections, **options)
        rate = classify(model(run.x, 0.0).x0, mixture).rate()
        extra = {"NoneType": 0.0, "Restart": float(back)}.get(type(correction).__name__)
        cost = run.nfe + (correction.record.cost if extra is None else extra)
        name = "plain" if correction is None else type(correction).__name__
        share = f"{rate.value:8.2%} [{rate.low:.2%}, {rate.high:.2%}]"
        print(f"  {steps:3d} {grid:<10} {name:<8} {share}  {cost:6.1f} evaluations")
