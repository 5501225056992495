"""Problems with known answers, shared by the tests."""

import math

import numpy as np
import torch

import steadyflow as sf
from steadyflow._integrate import drive
from steadyflow.solvers.base import Step

SCHEDULES = {
    "vp-linear": sf.VPLinear(),
    "vp-scaled-linear": sf.VPScaledLinear(),
    "vp-cosine": sf.VPCosine(),
    "ve": sf.VE(),
    "flow": sf.RectifiedFlow(t_min=0.02, t_max=0.98),
    "flow-shift-3": sf.RectifiedFlow(shift=3.0, t_min=0.02, t_max=0.98),
    "tabulated": sf.Tabulated.linear(),
}


def slope(sizes, errors):
    """The fitted order p of errors ~ sizes^p."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def nonlinear(tau, y):
    """A nonlinear, non-autonomous field in the plane."""
    a, b = y[..., 0], y[..., 1]
    return torch.stack([torch.sin(b) + 0.3 * tau * a, -a * b + torch.cos(tau * torch.ones_like(a))], -1)


def field_model(coordinates, f=nonlinear):
    """A denoiser on the variance-exploding path whose equation in a variable is exactly du/dtau = f(tau, u)."""
    if coordinates == "noise":  # u = x, tau = sigma
        return sf.Denoiser(lambda x, t: f(t[0].item(), x), sf.VE(), prediction="epsilon", shape=(2,))
    # u = x / sigma, tau = 1 / sigma
    return sf.Denoiser(lambda x, t: f(1.0 / t[0].item(), x / t[0].item()), sf.VE(), prediction="sample", shape=(2,))


def field_step(solver, coordinates, y, tau0, tau1, model=None):
    """One step of a solver on du/dtau = f(tau, u) from tau0 to tau1, by its own code."""
    model = model or field_model(coordinates)
    if coordinates == "noise":
        step = Step.between(model.schedule, tau0, tau1, 0, 1)
        return drive(solver.step(y, step), model)[0]
    step = Step.between(model.schedule, 1.0 / tau0, 1.0 / tau1, 0, 1)
    return drive(solver.step(y / tau0, step), model)[0] * tau1


def gaussian(mean=(0.7, -1.1, 0.4), std=(0.5, 1.7, 0.9)):
    """A Gaussian in three dimensions, as a mixture of one component."""
    return sf.GaussianMixture(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64))


def gaussian_flow(mixture, schedule, x, t0, t1):
    """The exact probability flow of Gaussian data from t0 to t1."""
    mean, std = mixture.means[0], mixture.std[0]
    a0, s0, a1, s1 = schedule.alpha(t0), schedule.sigma(t0), schedule.alpha(t1), schedule.sigma(t1)
    stretch = ((a1 * std).square() + s1**2).sqrt() / ((a0 * std).square() + s0**2).sqrt()
    return a1 * mean + (x - a0 * mean) * stretch


def inner_range(schedule):
    """Two times well inside a path, the noisier first: sigma/alpha from 3 to 0.2."""
    return schedule.t_from_ratio(3.0), schedule.t_from_ratio(0.2)


def wilson(successes, n, z=5.0):
    """The Wilson interval of a rate; z = 5 is an error probability of 6e-7."""
    p, d = successes / n, 1 + z * z / n
    centre, half = (p + z * z / (2 * n)) / d, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    return centre - half, centre + half


def adaptive(model, x, *, solver="dopri5", t_start=None, t_end=None, **control):
    """An adaptive run from t_start to t_end, from t_max to t_min by default."""
    t_min, t_max = model.schedule.t_range
    grid = sf.Grid((t_max if t_start is None else t_start, t_min if t_end is None else t_end))
    return sf.integrate(model, x, grid, sf.solvers.get(solver), controller=sf.PIDController(**control))
