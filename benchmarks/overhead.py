"""What a step costs beside the model, in microseconds per model call, one thread:  python benchmarks/overhead.py

The model returns a tensor that is ready before the run. diffusers' schedulers run in the loop of its documentation,
without the planning of the steps. Our solvers run in `integrate` with a `Denoiser`, and, as in a pipeline, as a
diffusers scheduler. k-diffusion's functions run where it is installed (see peers.py). All take turns, and the least of
several runs of 50 steps counts. A pass is a torch.lerp over the state into a new tensor. The C library is set to keep
the memory that is freed, so that page faults, which hit whoever comes first, do not count for anyone.
"""

import time
import warnings
from functools import partial

import torch
from peers import k_diffusion_sampling
from timing import keep_memory, least, repeated

import steadyflow as sf
from steadyflow import solvers
from steadyflow._integrate import integrate

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
SHAPES = ((1, 4, 64, 64), (1, 16, 128, 128), (64, 3, 32, 32))
STEPS, ROUNDS = 50, 40
NAMES = ("ddim", "euler", "heun", "dpmpp-2m", "unipc", "ddpm")
SAMPLING = k_diffusion_sampling()


def ours(name, shape):
    """`integrate` over Stable Diffusion's path, to its end: a function that makes a run, and its model calls."""
    x, answer = torch.randn(shape), torch.randn(shape)
    model = sf.Denoiser(lambda x, t: answer, sf.Tabulated.scaled_linear(), shape=shape[1:])
    method = solvers.get(name)
    grid = sf.grids.make("uniform", model.schedule, STEPS)

    def run():
        noise = sf.noise.White(0, range(len(x)), x.shape[1:])
        return integrate(model, x, grid, method, noise=noise, progress=False)

    return run, run().nfe


def scheduled(scheduler, shape):
    """A scheduler in the loop of diffusers' documentation, timed without the planning of its steps."""
    x, answer = torch.randn(shape), torch.randn(shape)
    scheduler.set_timesteps(STEPS)
    calls = len(scheduler.timesteps)

    def run():
        scheduler.set_timesteps(STEPS)
        began = time.perf_counter()
        sample = x
        for t in scheduler.timesteps:
            scheduler.scale_model_input(sample, t)
            sample = scheduler.step(answer, t, sample, return_dict=False)[0]
        return time.perf_counter() - began

    return run, calls


def ours_scheduled(name, shape):
    """Our solver as a diffusers scheduler."""
    from steadyflow.diffusers import SteadyScheduler

    scheduler = SteadyScheduler(solver=name, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False)
    scheduler.generator = torch.Generator().manual_seed(0)
    return scheduled(scheduler, shape)


def theirs(name, shape):
    """diffusers' own scheduler."""
    import diffusers

    kinds = {
        "ddim": diffusers.DDIMScheduler,
        "dpmpp-2m": diffusers.DPMSolverMultistepScheduler,
        "unipc": diffusers.UniPCMultistepScheduler,
        "heun": diffusers.HeunDiscreteScheduler,
        "ddpm": diffusers.DDPMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
    }
    options = {"clip_sample": False} if name in ("ddim", "ddpm") else {}
    return scheduled(kinds[name](beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **options), shape)


def k_diffusion(name, shape):
    """k-diffusion's function for the same method, or None where there is none."""
    functions = {"euler": "sample_euler", "heun": "sample_heun", "dpmpp-2m": "sample_dpmpp_2m"}
    if name not in functions or SAMPLING is None:
        return None
    x, answer = 14.0 * torch.randn(shape), torch.randn(shape)
    sigmas = SAMPLING.get_sigmas_karras(STEPS, 0.03, 14.0)
    function = getattr(SAMPLING, functions[name])
    calls = STEPS if name != "heun" else 2 * STEPS - 1
    return lambda: function(lambda x, s: answer, x, sigmas, disable=True), calls


def each(work):
    """Microseconds per call for each piece of work, {name: (function, calls)}."""
    found = least({name: run for name, (run, _) in work.items()}, ROUNDS)
    return {name: 1e6 * seconds / work[name][1] for name, seconds in found.items()}


def main():
    keep_memory()
    print(f"torch {torch.__version__}, k-diffusion {'not installed' if SAMPLING is None else 'measured'}")
    for shape in SHAPES:
        x, y = torch.randn(shape), torch.randn(shape)
        one_pass = repeated(partial(torch.lerp, x, y, 0.3), 200), 200
        print(f"\nstate {shape}\n")
        heads = [
            "solver",
            "ours",
            "as a scheduler",
            "diffusers",
            "k-diffusion",
            "ours / diffusers",
            "ours / k-diffusion",
        ]
        heads += ["a pass", "ours / a pass"]
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
        for name in NAMES:
            kinds = {"ours": ours, "scheduled": ours_scheduled, "theirs": theirs, "k": k_diffusion}
            made = {key: make(name, shape) for key, make in kinds.items()}
            found = each({key: work for key, work in made.items() if work is not None} | {"pass": one_pass})
            cells = [f"{found[key]:.0f}" if key in found else "" for key in kinds]
            cells.append(f"{found['ours'] / found['theirs']:.2f}")
            cells.append(f"{found['ours'] / found['k']:.2f}" if "k" in found else "")
            cells += [f"{found['pass']:.1f}", f"{found['ours'] / found['pass']:.1f}"]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\nnormal numbers, nanoseconds each\n\n| how many | addressed | torch.randn | ratio |\n|---|---|---|---|")
    for n in (4_096, 16_384, 262_144, 4_194_304):
        source, times = sf.noise.White(0, range(1), (n,)), max(1, 1_000_000 // n)
        kinds = {"ours": partial(source.unit, 0.1, 0.2), "randn": partial(torch.randn, n)}
        found = each({name: (repeated(draw, times), times * n / 1e3) for name, draw in kinds.items()})
        print(f"| {n:,} | {found['ours']:.2f} | {found['randn']:.2f} | {found['ours'] / found['randn']:.2f} |")


if __name__ == "__main__":
    main()
