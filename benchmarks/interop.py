"""Other libraries' samplers beside ours, on their own models:  python benchmarks/interop.py [EDM checkout]

Models are trained, each by its library's own means or loss, and sampled by the library's sampler and by ours, from the
same network and in the same process:

  sbi            NPSE and FMPE as they come, on two moons with 5,000 simulations; the exact posterior is known
  flow_matching  a velocity on the CondOT path, on a mixture of 25 modes, whose density is known
  EDM            a preconditioned network of 2206.00364 on the same mixture, with the paper's sampler (algorithm 1,
                 written here; with a checkout of github.com/NVlabs/edm, its own `edm_sampler` too)

"to truth" is the sliced Wasserstein distance to exact samples, beside that of a second exact set; "to fine" the root
mean square distance to a fine solve of the same field from the same start, in units of the states. Seconds are of the
processor, the least of three runs (of one, where it takes over 2 s), for all samples at once. Evaluations are per
sample that is returned; those that are drawn again because they lie outside the prior count. sbi's defaults are "sde,
500 steps" for NPSE and "ode" for FMPE.
"""

import itertools
import math
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import nn

import steadyflow as sf
from steadyflow.metrics import rmse, sliced_wasserstein

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
N = 2000
GRID = sf.GaussianMixture.grid(5, spacing=1.0, std=0.1, dtype=torch.float32)


def timed(run, rounds=3):
    """The least seconds of some runs; of one, where it takes long."""
    least = math.inf
    for _ in range(rounds):
        began = time.process_time()
        run()
        least = min(least, time.process_time() - began)
        if least > 2.0:
            break
    return least


def ours(model, x, **options):
    """Our samples from a start."""
    return sf.sample(model, x=x, **options).x.float()


class Count:
    """How many samples some networks have been asked for, and with that the evaluations per sample."""

    def __init__(self, *nets):
        self.rows = 0
        for net in nets:
            net.register_forward_hook(self.add)

    def add(self, net, given, found):
        self.rows += len(found)

    def per(self, run, n):
        """What a run returns, and its evaluations per sample."""
        self.rows = 0
        found = run()
        return found, self.rows / n


def table(rows, count, truth, fine=None):
    """Run and print: name, evaluations, seconds, distances."""
    for name, run in rows:
        with torch.no_grad():
            x, calls = count.per(run, N)
            seconds = timed(run)
        far = (
            f"  to fine {rmse(x, fine).square().mean().sqrt().item():.1e}"
            if fine is not None and x.shape == fine.shape
            else ""
        )
        distance = sliced_wasserstein(x, truth)
        print(f"  {name:<46} {calls:6.1f} evaluations  {seconds:7.2f} s  to truth {distance:.4f}{far}", flush=True)


# sbi -----------------------------------------------------------------------------------------------------------------


def moon(n):
    """Noise on a crescent, as in the two moons of Greenberg et al. 2019 (1905.07488)."""
    angle, radius = (torch.rand(n) - 0.5) * math.pi, 0.1 + 0.01 * torch.randn(n)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


def simulate(theta):
    a, b = theta.T
    return moon(len(theta)) + torch.stack([-(a + b).abs(), b - a], 1) / 2**0.5


def posterior_samples(x, n):
    """Exact: x less the noise is the shift, which comes from two thetas; those in the box of the prior are kept."""
    shift = x - moon(4 * n)
    total, difference = -shift[:, 0] * 2**0.5, shift[:, 1] * 2**0.5
    sign = 1.0 - 2.0 * (torch.rand(4 * n) < 0.5)
    total, valid = sign * total, total >= 0
    theta = torch.stack([(total - difference) / 2, (total + difference) / 2], 1)
    return theta[valid & (theta.abs() <= 1).all(1)][:n]


def ours_in_prior(model, **options):
    """As sbi: until N samples lie in the prior's support."""
    kept, index = [], 0
    while sum(map(len, kept)) < N:
        draw = N if not kept else max(64, int(1.2 * (N - sum(map(len, kept)))))
        x = sf.sample(model, n=draw, index=index, **options).x
        kept, index = [*kept, x[model.within_prior(x)]], index + draw
    return torch.cat(kept)[:N]


def sbi_section():
    import sbi
    from sbi.inference import FMPE, NPSE
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((5000,))
    x = simulate(theta)
    seen = torch.zeros(1, 2)
    truth = posterior_samples(seen, N)
    floor = sliced_wasserstein(posterior_samples(seen, N), truth)
    print(f"sbi {sbi.__version__}, two moons at x = (0, 0), {N} samples; another exact set: to truth {floor:.4f}")
    kinds = {
        "NPSE, ve": NPSE(prior, show_progress_bars=False),
        "FMPE": FMPE(prior, show_progress_bars=False),
    }
    for kind, inference in kinds.items():
        estimator = inference.append_simulations(theta, x).train(max_num_epochs=80)
        print(f" {kind}, {inference.summary['epochs_trained'][-1]} epochs")
        sde, ode = (inference.build_posterior(estimator, prior, sample_with=way) for way in ("sde", "ode"))
        sbi_rows(sde, ode, seen, truth, "karras" if kind == "NPSE, ve" else "quadratic")


def sbi_rows(sde, ode, seen, truth, grid):
    """One estimator: samples, and densities."""
    count = Count(sde.vector_field_estimator.net, ode.vector_field_estimator.net)
    model = sf.from_sbi(sde, x=seen)
    theirs = {"x": seen, "show_progress_bars": False}
    rows = [("sbi, sde, 500 steps", partial(sde.sample, (N,), **theirs))]
    rows += [(f"sbi, sde, {steps} steps", partial(sde.sample, (N,), steps=steps, **theirs)) for steps in (50, 20)]
    rows.append(("sbi, ode (adaptive dopri5)", partial(ode.sample, (N,), **theirs)))
    for solver, nfe in (("unipc", 10), ("ees25", 10), ("unipc", 20), ("ees25", 20), ("ees25", 48), ("ddpm", 50)):
        rows.append((f"steadyflow, {solver}, {grid}", partial(ours_in_prior, model, solver=solver, nfe=nfe, grid=grid)))
    table(rows, count, truth)
    points = truth[:200]
    ours = partial(sf.log_likelihood, model, points, steps=32, grid=grid)
    for name, run in (("sbi", partial(ode.log_prob, points, x=seen)), ("steadyflow, rk4, 32 steps", ours)):
        found, calls = count.per(run, len(points))
        seconds = timed(run)
        mean = getattr(found, "value", found).double().mean().item()
        print(
            f"  mean log density at 200 exact samples {mean:.3f}: {name}, {calls:.1f} evaluations, {seconds:.2f} s",
            flush=True,
        )


# flow_matching and EDM -----------------------------------------------------------------------------------------------


class Field(nn.Module):
    """A field on the plane; `time` is fed with some of its harmonics."""

    def __init__(self, width=192):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 + 9, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                 nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))  # fmt: skip

    def forward(self, x, t):
        t = (t if t.ndim else t.expand(len(x)))[:, None]
        waves = t * torch.tensor([1.0, 2.0, 4.0, 8.0]) * math.pi / 2
        return self.net(torch.cat([x, t, waves.sin(), waves.cos()], 1))


def fit(net, loss, steps=4000, batch=512):
    """Adam with a falling rate, and the average of the weights."""
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    mean = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss(GRID.sample(batch, seed=step)).backward()
        optimizer.step()
        mean.update_parameters(net)
    return mean.module.eval().requires_grad_(False)


def flow_section():
    import importlib.metadata

    from flow_matching.path import CondOTProbPath
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    torch.manual_seed(1)
    path, field = CondOTProbPath(), Field()

    def loss(x1):
        sample = path.sample(t=torch.rand(len(x1)), x_0=torch.randn_like(x1), x_1=x1)
        return (field(sample.x_t, sample.t) - sample.dx_t).square().mean()

    field = fit(field, loss)

    class Velocity(ModelWrapper):
        def forward(self, x, t, **extras):
            return self.model(x, t)

    velocity = Velocity(field)
    count, solver, model = Count(velocity), ODESolver(velocity), sf.from_flow_matching(velocity, path, shape=(2,))
    x = sf.noise.initial(0, range(N), (2,))
    truth = GRID.sample(N, seed=10**6)
    floor = sliced_wasserstein(GRID.sample(N, seed=10**6 + 1), truth)
    fine = sf.sample(model, x=x, steps=200, solver="rk4").x
    version = importlib.metadata.version("flow_matching")
    print(f"\nflow_matching {version}, CondOT, 25 modes, {N} samples; another exact set: to truth {floor:.4f}")
    rows = [
        (f"flow_matching, {method}, step {step}", partial(solver.sample, x, step_size=step, method=method))
        for method, step in (("euler", 0.1), ("euler", 0.02), ("midpoint", 0.1), ("midpoint", 0.05))
    ]
    rows.append(("flow_matching, dopri5, tolerances 1e-5", partial(solver.sample, x, step_size=None, method="dopri5")))
    for nfe, (name, grid) in itertools.product(
        (10, 20, 40), (("unipc", "quadratic"), ("ees25", "quadratic"), ("midpoint", "uniform"))
    ):
        rows.append((f"steadyflow, {name}, {grid}", partial(ours, model, x, solver=name, nfe=nfe, grid=grid)))
    adaptive = partial(ours, model, x, solver="dopri5", steps=sf.PIDController(rtol=1e-5, atol=1e-5))
    table([*rows, ("steadyflow, dopri5, tolerances 1e-5", adaptive)], count, truth, fine)


class Preconditioned(nn.Module):
    """Table 1 of 2206.00364 with sigma_data = 1.4, that of the mixture, called as NVlabs' networks are."""

    sigma_min, sigma_max, label_dim, data = 0.0, math.inf, 0, 1.4

    def __init__(self):
        super().__init__()
        self.field = Field()

    def forward(self, x, sigma, class_labels=None, **_):
        sigma = sigma.to(torch.float32).reshape(-1, 1)
        total = (sigma**2 + self.data**2).sqrt()
        found = self.field(x.float() / total, (sigma.log() / 4).flatten().expand(len(x)))
        return (self.data / total) ** 2 * x + sigma * self.data / total * found

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


def algorithm_1(net, x, steps, low=0.002, high=80.0, rho=7.0):
    """The paper's deterministic sampler: Heun's method, and Euler's in the last step."""
    share = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    levels = [*((high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho), torch.tensor(0.0)]
    x = x.double() * levels[0]
    for s0, s1 in itertools.pairwise(levels):
        slope = (x - net(x.float(), s0).double()) / s0
        ahead = x + (s1 - s0) * slope
        if s1 > 0:
            ahead = x + (s1 - s0) * 0.5 * (slope + (ahead - net(ahead.float(), s1).double()) / s1)
        x = ahead
    return x.float()


def edm_section(checkout):
    torch.manual_seed(2)
    net = Preconditioned()

    def loss(x0):
        sigma = (-0.8 + 1.4 * torch.randn(len(x0))).exp()[:, None]
        weight = (sigma**2 + net.data**2) / (sigma * net.data) ** 2
        return (weight * (net(x0 + sigma * torch.randn_like(x0), sigma.flatten()) - x0).square()).mean()

    net = fit(net, loss)
    count, model = Count(net), sf.from_edm(net, shape=(2,))
    x = sf.noise.initial(0, range(N), (2,))
    truth = GRID.sample(N, seed=10**6)
    floor = sliced_wasserstein(GRID.sample(N, seed=10**6 + 1), truth)
    fine = sf.sample(model, x=80.0 * x, steps=300, solver="rk4", grid="karras").x
    print(f"\nEDM, 25 modes, {N} samples; another exact set: to truth {floor:.4f}")
    rows = [(f"algorithm 1, {steps} steps", partial(algorithm_1, net, x, steps)) for steps in (5, 10, 18, 40)]
    if checkout is not None:
        sys.path.insert(0, str(checkout))
        from generate import edm_sampler

        rows.append(("edm_sampler of NVlabs, 18 steps", lambda: edm_sampler(net, x, num_steps=18).float()))
    heun = partial(ours, model, 80.0 * x.double(), solver=sf.Heun(coordinates="noise"), grid=model.own_grid(18))
    rows.append(("steadyflow, heun, own grid of 18 steps", heun))
    for nfe, name, grid in itertools.product((9, 20, 35), ("dpmpp-2m", "unipc", "ees25"), ("karras", "quadratic")):
        rows.append((f"steadyflow, {name}, {grid}", partial(ours, model, 80.0 * x, solver=name, nfe=nfe, grid=grid)))
    table(rows, count, truth, fine)


if __name__ == "__main__":
    print(f"torch {torch.__version__}, steadyflow {sf.__version__}, one thread")
    sbi_section()
    flow_section()
    edm_section(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
