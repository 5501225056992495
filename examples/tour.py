"""A tour of what the public names are for, on exact models:  python examples/tour.py"""

import tempfile
from pathlib import Path

import torch

import steadyflow as sf

# A path (sf.Schedule), a grid of times on it (sf.Grid), and a model of two classes, exact.
path = sf.VPScaledLinear()
grid = sf.grids.make("quadratic", path, steps=8)
own = sf.Grid((1.0, 0.5, 0.1, path.t_min))
mixture = sf.GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0]]), 0.3, labels=torch.tensor([0, 1, 1]))
model = mixture.denoiser(path)
x = mixture.sample(16, label=0)
assert isinstance(path, sf.Schedule)

# What a model answers: one prediction, read as data, noise, score or velocity.
answer: sf.Prediction = model(x, 0.5)
print(
    "x0 and eps give the state back:",
    torch.allclose(path.alpha(0.5) * answer.x0 + path.sigma(0.5) * answer.eps, x, atol=1e-5),
)

# Solvers by name or by class, all sf.Solver; those that are sf.RungeKutta take a variable.
for solver in (sf.EES27(), sf.Midpoint(coordinates="noise"), sf.SSPRK3(), sf.solvers.get("alf")):
    back = sf.reconstruct(model.with_condition(0), x, solver=solver, nfe=24)
    kind = "Runge-Kutta" if isinstance(solver, sf.RungeKutta) else "other"
    print(f"{solver.name:<9} ({kind}): error {back.error.median():.1e}")

# A choice by trial, an edit, an edit without inversion, noise maps, a diagnosis.
chosen: sf.Choice = sf.choose_solver(model.with_condition(0), x, nfe=24)
edited: sf.Edit = sf.edit(model, x, target=1, source=0, guidance=1.5, solver=chosen.solver, steps=chosen.steps)
flowed: sf.FlowingEdit = sf.flow_edit(model, x, target=1, source=0, steps=20)
maps: sf.NoiseMaps = sf.noise_maps(model.with_condition(0), x, steps=10)
found: sf.Diagnosis = sf.diagnose(model.with_condition(0), x.double(), solver="ddim", steps=8)
print(chosen.reason)
print(
    f"moved by {edited.distance.median():.1f} and {flowed.distance.median():.1f}; cause of DDIM's error: {found.cause}"
)

# A run of one's own: watched (sf.StepInfo), recorded (sf.Trajectory), stopped, saved, resumed (sf.Run).
seen: list[float] = []


def watch(info: sf.StepInfo) -> None:
    seen.append(info.t)


start = sf.noise.initial(0, range(4), (2,)) * path.sigma(grid.times[0])
whole = sf.integrate(model, start, grid, sf.RK4(), record="all", callback=watch)
trajectory = whole.trajectory
assert isinstance(trajectory, sf.Trajectory)
assert len(trajectory) == 9
half = sf.integrate(model, start, grid, sf.RK4(), stop_after=4)
with tempfile.TemporaryDirectory() as folder:
    half.save(Path(folder) / "half.safetensors")
    rest = sf.integrate(model, None, grid, sf.RK4(), resume=sf.Solution.load(Path(folder) / "half.safetensors"))
print("stopped and resumed, the same bits:", torch.equal(rest.x, whole.x), f"after {len(seen)} steps watched")
adaptive: sf.Solution = sf.solve_adaptive(model, start, rtol=1e-5)
print(f"adaptive: {adaptive.grid.steps} steps, {adaptive.rejected} rejected")

# Everything raised on purpose is a sf.SteadyflowError, and says what was wrong and what is accepted.
for what, kind in (
    (lambda: sf.sample(model, n=1, solver="eees25"), sf.UnknownNameError),
    (lambda: sf.invert(model, x, solver="ddpm"), sf.NotInvertibleError),
    (lambda: sf.load(__file__.replace(".py", ".safetensors")), FileNotFoundError),
    (lambda: model(x, 0.0).score, sf.SingularTimeError),
    (lambda: sf.sample(model, x=torch.full((1, 2), float("nan"))), sf.InputError),
):
    try:
        what()
    except kind as error:
        print(f"{type(error).__name__}: {str(error)[:80]}")
# The others: sf.CorruptFileError for damaged files, sf.StorageError for full disks, sf.MissingExtraError for packages
# that are not there, sf.NonFiniteError and sf.ConvergenceError for runs that go wrong.
