"""Few-step accuracy beside diffusers and k-diffusion on the same problem:  python benchmarks/accuracy.py

A 16-dimensional mixture on the Stable Diffusion table, from the same starting latents to the same level sigma_min,
at 5, 10, 20 and 50 evaluations. Theirs use Karras and exponential (log-SNR) sigmas, ours every grid and other rho. The
error is the median root mean square distance to a dopri5 solve at tolerance 1e-10. k-diffusion is measured where it
is installed (see peers.py).
"""

import diffusers
import torch
from peers import k_diffusion_sampling

import steadyflow as sf
from steadyflow import solvers
from steadyflow.metrics import rmse
from steadyflow.solvers.base import steps_for
from steadyflow_lab.editing.coupling import conditional_mixture

TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
THEIRS = {
    "EulerDiscrete": (diffusers.EulerDiscreteScheduler, {}, 1),
    "Heun": (diffusers.HeunDiscreteScheduler, {}, 2),
    "DPM++ 2M": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 2}, 1),
    "DPM++ 3M": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 3}, 1),
    "DPM++ 2S": (diffusers.DPMSolverSinglestepScheduler, {"solver_order": 2}, 1),
    "UniPC 2": (diffusers.UniPCMultistepScheduler, {"solver_order": 2}, 1),
    "UniPC 3": (diffusers.UniPCMultistepScheduler, {"solver_order": 3}, 1),
    "DEIS": (diffusers.DEISMultistepScheduler, {"solver_order": 3}, 1),
    "LMS": (diffusers.LMSDiscreteScheduler, {}, 1),
    "KDPM2": (diffusers.KDPM2DiscreteScheduler, {}, 2),
}
OURS = [
    *(
        (n, {})
        for n in solvers.names()
        if not solvers.get(n).properties.stochastic and solvers.get(n).properties.evaluations
    ),
    *(("unipc", {"order": order, "kind": kind}) for order in (1, 3) for kind in ("bh1", "bh2")),
    *(("deis", {"order": order}) for order in (2, 4)),
]
GRIDS = ("karras", 3.0, 5.0, 15.0, "quadratic", "log-snr", "uniform")  # a number is Karras' rho, else 7
CROWSON = ("sample_euler", "sample_heun", "sample_dpm_2", "sample_lms", "sample_dpmpp_2m")

diffusers.logging.set_verbosity_error()
schedule = sf.Tabulated.scaled_linear()
mixture = conditional_mixture()
model = mixture.denoiser(schedule)
noise = sf.noise.initial(0, range(64), (16,), dtype=torch.float64)
low, high = schedule.t_range
start = schedule.sigma(high) * noise


def level(sigma):
    return schedule.t_from_ratio(min(max(float(sigma), schedule.ratio(low)), schedule.ratio(high)))


def eps(x, sigma):
    """The exact noise of the variance-exploding state x at this level."""
    t = level(sigma)
    return model(x * schedule.alpha(t), t).eps


finest = sf.PIDController(rtol=1e-10, atol=1e-11)
fine = sf.sample(model, x=start, solver="dopri5", steps=finest, end="path")
reference = model(fine.x, low).x0  # every program ends with a step from sigma_min to 0


def theirs(kind, options, cost, nfe, spacing):
    scheduler = kind(**TABLE, **options, **{f"use_{spacing}_sigmas": True})
    steps = max(1, (nfe + 1) // 2) if cost == 2 else nfe
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas
    vp = not hasattr(scheduler, "_sigma_to_alpha_sigma_t")
    scale = float(sigmas[0]) / schedule.sigma(high) if vp else 1.0
    x, used = start * scale, 0
    for t in scheduler.timesteps:
        index = scheduler.step_index if scheduler.step_index is not None else 0
        sigma = float(sigmas[index])
        ve = x if vp else x / schedule.alpha(level(sigma))
        x = scheduler.step(eps(ve, sigma), t, x).prev_sample
        used += 1
    return x, used


def crowson(name, nfe, spacing):
    if sampling is None:
        return None
    double = name in ("sample_heun", "sample_dpm_2")
    steps = max(1, (nfe + 1) // 2) if double else nfe
    sigmas = getattr(sampling, f"get_sigmas_{spacing}")(steps, schedule.ratio(low), schedule.ratio(high)).double()
    denoise = lambda x, sigma: x - sigma[:, None] * eps(x, sigma[0])  # noqa: E731
    x = start / schedule.sigma(high) * sigmas[0]
    return getattr(sampling, name)(denoise, x, sigmas, disable=True)


def ours(name, options, grid, nfe):
    solver = solvers.get(name, **options)
    if isinstance(grid, float):
        steps = steps_for(solver, nfe, clean=True)
        run = sf.sample(model, x=start, solver=solver, grid=sf.grids.make("karras", schedule, steps - 1, rho=grid))
    else:
        run = sf.sample(model, x=start, solver=solver, nfe=nfe, grid=grid)
    return run.x, run.nfe


print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, steadyflow {sf.__version__}")
sampling = k_diffusion_sampling()
print("k-diffusion", "not installed" if sampling is None else "measured")
for nfe in (5, 10, 20, 50):
    rows = []
    for spacing in ("karras", "exponential"):
        for label, (kind, options, cost) in THEIRS.items():
            try:
                x, used = theirs(kind, options, cost, nfe, spacing)
                rows.append((rmse(x, reference).median().item(), f"diffusers {label} {spacing}", used))
            except (ValueError, AssertionError, IndexError, RuntimeError, TypeError) as error:
                print(f"  diffusers {label} {spacing} at {nfe}: {type(error).__name__}")
        for name in CROWSON:
            x = crowson(name, nfe, spacing)
            if x is not None:
                rows.append((rmse(x, reference).median().item(), f"k-diffusion {name} {spacing}", nfe))
    for name, options in OURS:
        for grid in GRIDS:
            try:
                x, used = ours(name, options, grid, nfe)
                rows.append(
                    (
                        rmse(x, reference).median().item(),
                        " ".join(["steadyflow", name, *map(str, options.values()), str(grid)]),
                        used,
                    )
                )
            except sf.SteadyflowError:
                continue  # the budget pays for no step
    rows = sorted((row for row in rows if row[0] == row[0]), key=lambda row: row[0])
    best = {
        program: next((r for r in rows if r[1].startswith(program)), None)
        for program in ("diffusers", "k-diff", "steadyflow")
    }
    print(f"\n{nfe} evaluations: best of each")
    for row in best.values():
        if row is not None:
            print(f"  {row[0]:.2e}  {row[1]} ({row[2]} evaluations)")
    print(
        "  next of ours:",
        ", ".join(f"{r[1].split(' ', 1)[1]} {r[0]:.1e}" for r in rows if r[1].startswith("steady"))[:200],
    )
