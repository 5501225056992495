"""Other libraries, as the benchmarks here use them."""

import importlib
import importlib.util
import inspect
import itertools
import math
import sys
from functools import cache, partial
from types import ModuleType

import torch

import steadyflow as sf
from steadyflow.coordinates import FLOW

TABLE = 1000
"""The times of the table by which diffusers' schedulers know a path."""
SPACINGS = ("linspace", "trailing", "karras", "exponential", "beta")
FAMILIES = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {"solver_order": 2, "lower_order_final": True}),
    "DPM++ 3S": ("DPMSolverSinglestepScheduler", {"solver_order": 3, "lower_order_final": True}),
    "UniPC 2": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "UniPC 3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "DEIS 2": ("DEISMultistepScheduler", {"solver_order": 2}),
    "DEIS 3": ("DEISMultistepScheduler", {"solver_order": 3}),
    "SA-Solver, tau 0": ("SASolverScheduler", {"tau_func": lambda t: 0}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "PNDM": ("PNDMScheduler", {}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
}
OF_FLOWS = {
    "Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    **{name: FAMILIES[name] for name in ("DPM++ 2M", "DPM++ 3M", "DPM++ 2S", "UniPC 2", "UniPC 3", "DEIS 2", "DEIS 3")},
}
LEFT_OUT = {
    "diffusers": {
        "IPNDMScheduler": "a path of its own",
        "EDMEulerScheduler, EDMDPMSolverMultistepScheduler": "for variance-exploding networks",
        "DDPM, Euler ancestral, KDPM2 ancestral, DPMSolverSDE, LCM, TCD": "stochastic",
    },
    "k-diffusion": {
        "sample_euler_ancestral, sample_dpm_2_ancestral": "stochastic",
        "sample_dpm_adaptive": "no fixed number of calls",
    },
}
"""What is not run, and why. Samplers with a noise term that eta = 0 removes are run with it."""


@cache
def k_diffusion_sampling():
    """k-diffusion's `sampling` module, or None where it is not installed.

    Its samplers module alone is used: `pip install --no-deps k-diffusion torchdiffeq torchsde trampoline` is enough.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        return None
    package, helpers = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations)
    # its own helpers need torchvision; the samplers need this one function of them
    helpers.append_dims = lambda x, ndim: x[(..., *(None,) * (ndim - x.ndim))]
    package.utils = helpers
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": helpers})
    return importlib.import_module("k_diffusion.sampling")


def k_diffusion_samplers(schedule, calls):
    """k-diffusion's deterministic samplers with its spacings: {name: run(model, start) -> samples}.

    On variance-preserving paths the states are those over sigma / alpha. On flows, whose ratio is infinite at the
    start, sigma is the flow's own time, as in programs that run flow models with these samplers; the exponential
    integrators, which assume variance-exploding states, are left out there.

    Args:
        schedule: The path.
        calls: The number of network calls, which is not exceeded.
    """
    module = k_diffusion_sampling()
    if module is None:
        return {}
    low, high = (schedule.at(t) for t in schedule.t_range)
    flow = isinstance(schedule, sf.RectifiedFlow)
    smallest, largest = (1e-3, 1.0) if flow else (max(low.ratio, schedule.at(_above(schedule)).ratio), high.ratio)
    quiet = {"disable": True, "noise_sampler": lambda a, b: 0.0}
    second = (calls + 1) // 2
    samplers = {
        "euler": (calls, module.sample_euler, {"disable": True}),
        "heun": (second, module.sample_heun, {"disable": True}),
        "dpm_2": (second, module.sample_dpm_2, {"disable": True}),
        "lms": (calls, module.sample_lms, {"disable": True}),
        "dpmpp_2m": (calls, module.sample_dpmpp_2m, {"disable": True}),
        "dpmpp_2s, eta 0": (second, module.sample_dpmpp_2s_ancestral, {**quiet, "eta": 0.0}),
        "dpmpp_sde, eta 0": (second, module.sample_dpmpp_sde, {**quiet, "eta": 0.0}),
        "dpmpp_2m_sde, eta 0": (calls, module.sample_dpmpp_2m_sde, {**quiet, "eta": 0.0}),
        "dpmpp_3m_sde, eta 0": (calls, module.sample_dpmpp_3m_sde, {**quiet, "eta": 0.0}),
    }
    if flow:
        samplers = {name: samplers[name] for name in ("euler", "heun", "dpm_2", "lms")}
    found = {}
    for name, (n, sampler, options) in samplers.items():
        if n < 1:
            continue
        for spacing, sigmas in _sigmas(module, schedule, n, smallest, largest, flow).items():
            found[f"{name}, {spacing}"] = partial(_k_diffusion, sampler, sigmas, options, flow)
    if not flow:
        found["dpm_fast"] = partial(_dpm_fast, module.sample_dpm_fast, smallest, largest, calls)
    return found


def _above(schedule):
    """The smallest time at which there is noise."""
    low, high = schedule.t_range
    return low if schedule.at(low).sigma > 0.0 else low + (high - low) / TABLE


def _sigmas(module, schedule, n, low, high, flow):
    """The spacings of n calls and a last 0; "discrete" is uniform in the path's time, as its wrappers' default is."""
    kinds = {
        "karras": module.get_sigmas_karras(n, low, high),
        "exponential": module.get_sigmas_exponential(n, low, high),
        "polyexponential": module.get_sigmas_polyexponential(n, low, high, rho=2.0),
    }
    times = torch.linspace(schedule.t_range[1], _above(schedule), n, dtype=torch.float64).tolist()
    levels = [t if flow else schedule.at(t).ratio for t in times]
    kinds["discrete"] = torch.tensor([*levels, 0.0])
    return {name: sigmas.double() for name, sigmas in kinds.items()}


def _denoised(model, flow):
    """The network as these samplers call it."""
    schedule = model.schedule
    bottom, top = schedule.t_range

    def call(x, sigma):
        value = float(sigma.flatten()[0])
        t = value if flow else FLOW.when(schedule, value / (1.0 + value))
        t = min(max(t, bottom), top)
        return model(x if flow else schedule.at(t).alpha * x, t).x0

    return call


def _begin(model, start, flow):
    return start if flow else start / model.schedule.at(model.schedule.t_range[1]).alpha


def _k_diffusion(sampler, sigmas, options, flow, model, start):
    return sampler(_denoised(model, flow), _begin(model, start, flow), sigmas, **options)


def _dpm_fast(sampler, low, high, calls, model, start):
    found = sampler(_denoised(model, False), _begin(model, start, False), low, high, calls, disable=True)
    return found


def diffusers_samplers(schedule, calls):
    """diffusers' deterministic schedulers with its spacings: {name: run(model, start) -> samples}.

    A path that is no table of theirs is given as one of its values at 1,000 times.

    Args:
        schedule: The path.
        calls: The number of network calls, which is not exceeded.
    """
    if importlib.util.find_spec("diffusers") is None or isinstance(schedule, sf.VE):
        return {}
    flow = isinstance(schedule, sf.RectifiedFlow)
    found = {}
    for name, (kind, options) in (OF_FLOWS if flow else FAMILIES).items():
        for spacing in SPACINGS:
            scheduler = _scheduler(schedule, kind, options, spacing, flow)
            if scheduler is not None and _set(scheduler, calls):
                found[f"{name}, {spacing}"] = partial(_diffusers, kind, options, spacing, flow, calls)
    return found


def _scheduler(schedule, kind, options, spacing, flow):
    """A scheduler on a path; None where it has no such spacing."""
    import diffusers

    scheduler = getattr(diffusers, kind)
    known = inspect.signature(scheduler.__init__).parameters
    own = dict(options)
    if flow and not kind.startswith("FlowMatch"):
        own |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        if spacing != "linspace":
            return None
    elif not flow:
        own |= {"trained_betas": _betas(schedule), "prediction_type": "epsilon"}
    if spacing in ("linspace", "trailing"):
        if "timestep_spacing" in known:
            own["timestep_spacing"] = spacing
        elif spacing == "trailing":
            return None
    elif f"use_{spacing}_sigmas" in known:
        own[f"use_{spacing}_sigmas"] = True
    else:
        return None
    return scheduler(num_train_timesteps=TABLE, **own)


def _set(scheduler, calls):
    """Set the timesteps for as many calls as the budget allows."""
    for n in range(calls, 0, -1):
        try:
            scheduler.set_timesteps(n)
        except (ValueError, IndexError, ZeroDivisionError):
            continue
        if len(scheduler.timesteps) <= calls:
            return True
    return False


@cache
def _betas(schedule):
    """The betas of a path's values at the times of the table."""
    alphas = [schedule.at(_time(schedule, k)).alpha for k in range(TABLE)]
    products = [1.0, *(a * a for a in alphas)]
    return [1.0 - after / before for before, after in itertools.pairwise(products)]


def _time(schedule, k):
    """The path's time of an index of the table."""
    low, high = schedule.t_range
    return min(max(low + (high - low) * float(k) / (TABLE - 1), low), high)


def _diffusers(kind, options, spacing, flow, calls, model, start):
    scheduler = _scheduler(model.schedule, kind, options, spacing, flow)
    if not _set(scheduler, calls):
        raise ValueError(f"{kind}: no timesteps for {calls} calls")
    x = start
    if hasattr(scheduler, "init_noise_sigma") and float(scheduler.init_noise_sigma) != 1.0 and not flow:
        x = _begin(model, start, False)  # a scheduler over sigma / alpha
    for k in scheduler.timesteps:
        if flow:
            slope = model(x, float(k) / TABLE).scaled(*FLOW.prediction)
            output = slope.factor * slope.tensor
        else:
            seen = scheduler.scale_model_input(x, k)
            output = model(seen, _time(model.schedule, k)).eps
        x = scheduler.step(output, k, x, return_dict=False)[0]
        if not math.isfinite(float(x.sum())):
            raise ValueError(f"{kind}: diverged")
    return x
