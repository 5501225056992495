"""What a step costs beside the model, in microseconds a model call, one thread:  python benchmarks/overhead.py

The model answers with a tensor that is there already. diffusers' schedulers run in the loop of its documentation; ours
run in `integrate` with a `Denoiser`, and, as they would in a pipeline, as a diffusers scheduler. The least of several
runs of 50 steps each; k-diffusion where it is installed. A pass is a torch.lerp over the state into a new tensor.
"""

import time
import warnings

import torch

import steadyflow as sf
from steadyflow import solvers
from steadyflow.integrate import integrate

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
SHAPES = ((1, 4, 64, 64), (1, 16, 128, 128), (64, 3, 32, 32))
STEPS, REPEATS = 50, 7
OURS = {"ddim": "ddim", "dpmpp-2m": "dpmpp-2m", "unipc": "unipc", "heun": "heun", "ddpm": "ddpm", "euler": "euler"}


def least(run, calls):
    """Microseconds a call."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e6 * min(times) / calls


def a_pass(shape):
    """Microseconds of torch.lerp over the state."""
    x, y = torch.randn(shape), torch.randn(shape)
    return least(lambda: [torch.lerp(x, y, 0.3) for _ in range(200)], 200)


def ours(name, shape):
    """`integrate` over Stable Diffusion's path."""
    x = torch.randn(shape)
    answer = torch.randn(shape)
    model = sf.Denoiser(lambda x, t: answer, sf.Tabulated.scaled_linear(), shape=shape[1:])
    method = solvers.get(name)
    grid = sf.grids.make("uniform", model.schedule, STEPS)
    calls = [0]

    def run():
        noise = sf.noise.SOURCES["white"](0, range(len(x)), x.shape[1:])
        calls[0] = integrate(model, x, grid, method, noise=noise, progress=False).nfe

    run()
    return least(run, calls[0])


def scheduled(scheduler, shape):
    """A scheduler in the loop of diffusers' documentation, less the planning of the steps."""
    x, answer = torch.randn(shape), torch.randn(shape)
    scheduler.set_timesteps(STEPS)
    calls = len(scheduler.timesteps)

    def run():
        scheduler.set_timesteps(STEPS)
        sample = x
        for t in scheduler.timesteps:
            scheduler.scale_model_input(sample, t)
            sample = scheduler.step(answer, t, sample, return_dict=False)[0]

    planned = least(lambda: scheduler.set_timesteps(STEPS), calls)
    return least(run, calls) - planned


def ours_scheduled(name, shape):
    """As a diffusers scheduler."""
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
    scheduler = kinds[name](beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **options)
    return scheduled(scheduler, shape)


def k_diffusion(name, shape):
    """k-diffusion's function of the same method, where it is installed."""
    functions = {"euler": "sample_euler", "heun": "sample_heun", "dpmpp-2m": "sample_dpmpp_2m"}
    if name not in functions:
        return None
    try:
        from k_diffusion import sampling
    except (ImportError, RuntimeError):  # it needs torchvision, which may be there and broken
        return None
    x, answer = torch.randn(shape), torch.randn(shape)
    sigmas = sampling.get_sigmas_karras(STEPS, 0.03, 14.0)
    calls = STEPS if name != "heun" else 2 * STEPS - 1
    function = getattr(sampling, functions[name])
    return least(lambda: function(lambda x, s: answer, x * 14.0, sigmas, disable=True), calls)


def main():
    for shape in SHAPES:
        print(f"\nstate {shape}; one pass {a_pass(shape):.1f} us\n")
        heads = ("solver", "ours", "ours, as a scheduler", "diffusers", "k-diffusion", "ours / diffusers")
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
        for name in OURS:
            mine, scheduled, other, k = (f(name, shape) for f in (ours, ours_scheduled, theirs, k_diffusion))
            known = "" if k is None else f"{k:.0f}"
            print(f"| {name} | {mine:.0f} | {scheduled:.0f} | {other:.0f} | {known} | {mine / other:.2f} |", flush=True)


if __name__ == "__main__":
    main()
