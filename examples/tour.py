"""The public names of steadyflow in use, on exact models:  python examples/tour.py"""

import tempfile
from pathlib import Path

import torch

import steadyflow as sf

# A path (sf.Schedule), a grid of times on it (sf.Grid), and an exact model of two classes.
path = sf.VPScaledLinear()
grid = sf.grids.make("quadratic", path, steps=8)
by_hand = sf.Grid((1.0, 0.5, 0.1, path.t_min))
mixture = sf.GaussianMixture(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0]]), 0.3, labels=torch.tensor([0, 1, 1]))
model = mixture.denoiser(path)
x = mixture.sample(16, label=0)
assert isinstance(path, sf.Schedule)
print("the noise levels of a grid:", [round(sigma, 2) for sigma in by_hand.sigmas(path)])

# A model answers with an sf.Prediction, which can be read as data, noise, score or velocity.
prediction: sf.Prediction = model(x, 0.5)
state = path.alpha(0.5) * prediction.x0 + path.sigma(0.5) * prediction.eps
print("x0 and eps give the state back:", torch.allclose(state, x, atol=1e-5))

# Solvers by class, by class with options, or by name. Their properties are known before they run.
for solver in (sf.EES27(), sf.Midpoint(coordinates="noise"), sf.Rex("rk4"), sf.solvers.get("alf")):
    back: sf.Reconstruction = sf.reconstruct(model.with_condition(0), x, solver=solver, nfe=24)
    print(f"{solver.name:<9} inverse {solver.properties.inverse:<11} error {back.error.median():.1e}")

# The verbs share their options (sf.Options): here a strength, a budget, and adaptive steps.
out: sf.Solution = sf.sample(model.with_condition(1), n=4, solver="dopri5", steps=sf.PIDController(rtol=1e-5))
print(f"adaptive: {out.steps} steps, {out.rejected} rejected, {out.nfe} evaluations")
inversion: sf.Inversion = sf.invert(model.with_condition(0), x, solver=sf.Auto(samples=4), nfe=24, strength=0.8)
print(inversion.reason)
choice: sf.Choice = sf.choose_solver(model.with_condition(0), x, nfe=24)
print(f"{len(choice.errors)} candidates tried, {choice.solver.name} chosen")

# Ways of editing, by name or as objects with options of their own.
for method in ("inversion", sf.editing.FlowEdit(average=2), sf.editing.RFInversion(eta=0.5), "noise-maps"):
    edited: sf.Edit = sf.edit(model, x, target=1, source=0, method=method, guidance=1.5, nfe=24)
    print(f"{edited.method}: moved by {edited.distance.median():.1f} for {edited.nfe} evaluations")

smooth = sf.edit(model, x, target=1, source=0, nfe=24, smoothing=sf.denoisers.Smoothing(radius=0.1))
print(f"on a smoothed field: moved by {smooth.distance.median():.1f} for {smooth.nfe} evaluations")

# A diagnosis, the likelihood of samples, and a run as a differentiable map.
found: sf.Diagnosis = sf.diagnose(model.with_condition(0), x.double(), solver="ddim", steps=8)
print(f"the cause of DDIM's error: {found.cause}")
print(f"log-likelihood: {sf.log_likelihood(model.with_condition(0), x).value.mean():.2f} nats")
generation = sf.FlowMap(model.with_condition(0), grid, sf.Heun())
z = sf.noise.initial(0, range(4), (2,)) * path.sigma(grid.times[0])
print(f"singular values: {sf.jacobians.singular_values(generation, z, 2).values[0].tolist()}")

# The loop itself: watched (sf.StepInfo), recorded (sf.Trajectory), stopped, saved, and resumed.
seen: list[float] = []


def watch(info: sf.StepInfo) -> None:
    seen.append(info.t)


whole = sf.integrate(model, z, grid, sf.RK4(), record="all", callback=watch)
trajectory = whole.trajectory
assert isinstance(trajectory, sf.Trajectory)
assert len(trajectory) == 9
half = sf.integrate(model, z, grid, sf.RK4(), stop_after=4)
with tempfile.TemporaryDirectory() as folder:
    half.save(Path(folder) / "half.safetensors")
    rest = sf.integrate(model, None, grid, sf.RK4(), resume=sf.Solution.load(Path(folder) / "half.safetensors"))
print("stopped and resumed, the same bits:", torch.equal(rest.x, whole.x), f"after {len(seen)} steps watched")


# A network of k-diffusion's kind, x0 = net(x, sigma): on the verbs, and under the interface that its programs call.
def net(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return x / (1 + sigma[:, None] ** 2)  # exact for data from a standard normal distribution


unit = sf.Denoiser(net, sf.VE(), "sample")
fall = sf.grids.make("karras", unit.schedule, steps=8, clean=True)
steady = sf.sample(unit, x=80 * x, solver=sf.Euler(), grid=fall).x
same = sf.kdiffusion.sample_steady(net, 80 * x, fall.sigmas(unit.schedule), solver="euler")
print(f"the two differ by {sf.metrics.rmse(steady, same).max():.1e}")

# Every error raised on purpose is an sf.SteadyflowError. It names what was wrong and what is accepted.
broken = sf.Denoiser(lambda x, t: x * float("nan"), path, "epsilon")
for what, kind in (
    (lambda: sf.sample(model, n=1, solver="eees25"), sf.UnknownNameError),
    (lambda: sf.invert(model, x, solver="ddpm"), sf.NotInvertibleError),
    (lambda: sf.load(__file__.replace(".py", ".safetensors")), FileNotFoundError),
    (lambda: sf.Solution.load(__file__), sf.CorruptFileError),
    (lambda: model(x, 0.0).score, sf.SingularTimeError),
    (lambda: sf.sample(broken, x=x), sf.NonFiniteError),
    (lambda: sf.sample(model, x=torch.full((1, 2), float("nan"))), sf.InputError),
):
    try:
        what()
    except kind as error:
        print(f"{type(error).__name__}: {str(error)[:80]}")
# The others: an iteration that does not converge, a package that is not installed, a broken one, a disk that is full.
for kind in (sf.ConvergenceError, sf.MissingExtraError, sf.BrokenExtraError, sf.StorageError):
    assert issubclass(kind, sf.SteadyflowError)
