"""What near-reversible means, as equations: on a linear problem by algebra, on a mixture's ODE by one step and back.

For a Runge-Kutta method with step map Phi_h, near-reversibility of order m is  Phi_-h(Phi_h(x)) = x + O(h^(m+1)).  On
x' = z x a step multiplies by the stability polynomial R(z), and the product R(z) R(-z) differs from 1 from z^(m+1) on.
EES(2,5;x) has m = 5 and EES(2,7;x) has m = 7 although both are of second order.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from steadyflow.denoisers import GaussianMixture
from steadyflow.grids import Grid
from steadyflow.jacobians import FlowMap
from steadyflow.metrics import rmse
from steadyflow.schedules import RectifiedFlow
from steadyflow.solvers import RungeKutta

from ..findings import Claim, Finding, shown, verdict
from ..studies import Bench
from .methods import NEAR, PLAIN, PUBLISHED, Method, exact, label, median, solver_of

STEPS = (0.08, 0.04)
"""Sizes of the step, in the time of a rectified flow."""
_ROUNDING = 1e-12


def leading(method: Method) -> tuple[int, float] | None:
    """Give the exponent and the factor of the first term of R(z) R(-z) - 1; None for what has no such polynomial."""
    solver = solver_of(method)
    if not isinstance(solver, RungeKutta):
        return None
    there = np.poly1d(solver.tableau.stability_polynomial()[::-1])
    product = (there * np.poly1d(np.array(there.coeffs) * (-1.0) ** np.arange(there.order, -1, -1))).coeffs[::-1]
    return next(((k, float(c)) for k, c in enumerate(product) if k and abs(c) > _ROUNDING), None)


def smooth_mixture() -> GaussianMixture:
    """Make a mixture whose modes are as wide as they are far apart, so that a step has an order."""
    means = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return GaussianMixture(means, 0.8)


def defects(method: Method, x: Tensor, t: float = 0.6) -> Tensor:
    """Give |Phi_-h(Phi_h(x)) - x| for every size of the step, (sizes, n), on the mixture's exact ODE from t down."""
    model = smooth_mixture().denoiser(RectifiedFlow())
    rows = []
    for h in STEPS:
        down, up = (FlowMap(model, Grid(times), solver_of(method)) for times in ((t, t - h), (t - h, t)))
        rows.append(rmse(up(down(x)), x))
    return torch.stack(rows)


def figure(bench: Bench) -> Finding:
    """Check the order to which every solver returns."""
    data = smooth_mixture().sample(min(bench.size.n, 32))
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(bench.size.seed), dtype=data.dtype)
    x = 0.4 * data + 0.6 * noise
    methods = (*PLAIN, *NEAR, ("heun", {}))
    found = dict(zip(map(label, methods), bench.map(lambda m: defects(m, x), methods), strict=True))
    rows, right, said = [], True, []
    for method in methods:
        name, promised = label(method), solver_of(method).properties.antisymmetric_order
        slopes = (found[name][0] / found[name][1]).log() / np.log(STEPS[0] / STEPS[1])
        slope, first = median(slopes), leading(method)
        term = "" if first is None else f"{first[1]:+.3g} z^{first[0]}"
        rows.append([f"`{name}`", str(promised), term, shown(slope, "{:.2f}")])
        if method in NEAR:
            assert first is not None
            assert promised is not None
            right = right and first[0] == promised + 1 and abs(slope.value - promised - 1) < 0.25
            said.append(
                f"{name}: R(z) R(-z) = 1 {term}, defect after a step and its reverse ~ h^{shown(slope, '{:.2f}')}"
            )
    returned = [label(m) for m in PUBLISHED if exact(m)]
    claim = Claim(
        "near-reversibility",
        "EES(2,5) and EES(2,7) return to orders 5 and 7: a step and its reverse leave defects of order h^6 and h^8",
        "antisymmetric orders 5 and 7, in the names of the methods",
        "; ".join(said) + f". Exactly reversible, up to rounding: {', '.join(returned)}",
        verdict(right),
    )
    sizes = f"{STEPS[0]:g} and {STEPS[1]:g}"
    note = (
        f"The exponent is the slope of the defect after a step and its reverse, between steps of {sizes}, on a "
        f"mixture's exact ODE; medians over {len(x)} states."
    )
    heads = ["solver", "antisymmetric order", "first term of R(z) R(-z) - 1", "exponent of the defect"]
    return Finding("equations", "Near-reversibility as equations", [claim], heads, rows, note)
