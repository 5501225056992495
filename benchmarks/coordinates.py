"""Round-trip error of Runge-Kutta methods in the three variables:  python benchmarks/coordinates.py

Exact mixtures on three paths, and the digits model on held-out digits, at 24 and 60 evaluations each way on the
quadratic grid. Median root mean square error, float64. About four minutes on two cores.
"""

import torch

import steadyflow as sf
from steadyflow.datasets import digits
from steadyflow_lab.editing.coupling import conditional_mixture

METHODS = ("midpoint", "heun", "rk4", "ees25", "ees27")

modes = sf.GaussianMixture.grid(5, spacing=2.0, std=0.02)
thin = conditional_mixture()
images, labels = digits("held-out")
problems = {
    "25 modes, scaled linear": (modes.denoiser(sf.VPScaledLinear()), modes.sample(500)),
    "25 modes, cosine": (modes.denoiser(sf.VPCosine()), modes.sample(500)),
    "25 modes, flow": (modes.denoiser(sf.RectifiedFlow()), modes.sample(500)),
    "16-D thin, scaled linear": (thin.denoiser(sf.VPScaledLinear()), thin.sample(200)),
    "digits, cosine": (sf.load("digits").with_condition(labels[:60]), images[:60].double()),
}
print(f"torch {torch.__version__}, steadyflow {sf.__version__}")
print(f"{'problem':<26}{'nfe':>4}  {'coordinates':<12}" + "".join(f"{m:>10}" for m in METHODS))
for title, (model, x) in problems.items():
    for nfe in (24, 60):
        for coordinates in ("noise", "data", "flow"):
            errors = []
            for method in METHODS:
                solver = sf.solvers.get(method, coordinates=coordinates)
                steps = nfe // solver.properties.evaluations
                errors.append(sf.reconstruct(model, x, solver=solver, steps=steps).error.median().item())
            print(f"{title:<26}{nfe:>4}  {coordinates:<12}" + "".join(f"{e:>10.1e}" for e in errors))
