"""What the times of a tuned solver are worth to plain solvers, without its factors:  python benchmarks/tuned_grid.py

Digits at 8 calls. For programs that take only a list of noise levels. About a minute on one core.
"""

import torch

import steadyflow as sf

CALLS, ROWS = 8, 256
model = sf.load("digits")
tuned = sf.tune(model, nfe=CALLS, n=128, judge=64, progress=False)
judged = model.with_condition(torch.arange(ROWS) % 10)
start = sf.noise.initial(3, range(ROWS), model.shape) * model.schedule.sigma(model.schedule.t_max)
fine = sf.sample(judged, x=start, solver="rk4", nfe=400, grid="quadratic", progress=False).x


def error(solver, **how):
    found = sf.sample(judged, x=start, solver=solver, progress=False, **how)
    assert found.nfe == CALLS
    return sf.metrics.rmse(found.x, fine).median().item()


print(f"digits, {CALLS} calls, median error on {ROWS} starts; the tuned solver itself: {error(tuned):.2e}")
times = sf.Grid(tuned.own_grid(model.schedule).times)
for name in ("ddim", "deis", "unipc", "dpmpp-2m"):
    found = {}
    for grid in sf.grids.names():
        if grid.startswith("ays"):  # tables that begin below the noise of these starts
            continue
        try:
            found[grid] = error(name, nfe=CALLS, grid=grid)
        except sf.InputError:  # it cannot cover the path
            continue
    best = min(found, key=found.get)
    print(f"  {name:<9} on the tuned times {error(name, grid=times):.2e}, on its best grid {found[best]:.2e} ({best})")
