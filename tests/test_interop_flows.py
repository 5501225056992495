"""Velocities of flow_matching and torchcfm as models, against the libraries: paths, fields, solves, densities."""

import math

import pytest
import torch
from torch import nn

import steadyflow as sf
from steadyflow import schedules

pytest.importorskip("flow_matching")
from flow_matching import path as flow_path
from flow_matching import solver as flow_solver
from flow_matching.path import scheduler as flow_schedulers
from flow_matching.utils import ModelWrapper

MIXTURE = sf.GaussianMixture(
    torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], dtype=torch.float64), 0.4, labels=[0, 1, 1]
)
SCHEDULERS = {
    "cond-ot": flow_schedulers.CondOTScheduler(),
    "polynomial-2": flow_schedulers.PolynomialConvexScheduler(2.0),
    "polynomial-0.5": flow_schedulers.PolynomialConvexScheduler(0.5),
    "vp": flow_schedulers.VPScheduler(0.2, 12.0),
    "linear-vp": flow_schedulers.LinearVPScheduler(),
    "cosine": flow_schedulers.CosineScheduler(),
}
GENERATOR = torch.Generator().manual_seed(0)
X = 1.5 * torch.randn(64, 2, dtype=torch.float64, generator=GENERATOR)


class Exact(nn.Module):
    """The exact velocity of the mixture on a path of flow_matching: alpha' x1_hat + sigma' x0_hat, from its score."""

    def __init__(self, scheduler, label=None):
        super().__init__()
        self.scheduler, self.label = scheduler, label

    def forward(self, x, t, label=None):
        t = t if t.ndim else t.expand(len(x))
        path = self.scheduler(t.double().clamp(1e-4, 1.0 - 1e-6))  # its ends are 0 / 0
        alpha, sigma, da, ds = (v[:, None] for v in (path.alpha_t, path.sigma_t, path.d_alpha_t, path.d_sigma_t))
        ve = MIXTURE.denoiser(sf.VE())
        ve = ve if label is None else ve.with_condition(label)
        x0 = ve(x / alpha, path.sigma_t / path.alpha_t).x0
        return da * x0 + ds * (x - alpha * x0) / sigma


class Small(ModelWrapper):
    """A smooth velocity with random weights."""

    def __init__(self, classes=0):
        super().__init__(None)
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3 + classes, 32), nn.Tanh(), nn.Linear(32, 2)).double()
        self.classes = classes

    def forward(self, x, t, **extras):
        t = t if t.ndim else t.expand(len(x))
        parts = [x, t[:, None]]
        if self.classes:
            parts.append(nn.functional.one_hot(extras["label"], self.classes).to(x.dtype))
        return self.net(torch.cat(parts, 1))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_path_is_the_schedulers_and_the_prediction_the_velocitys(name):
    """alpha, sigma to rounding; the x0 and eps that the velocity's linear equations give; the exact data estimate."""
    scheduler = SCHEDULERS[name]
    model = sf.from_flow_matching(Exact(scheduler), flow_path.AffineProbPath(scheduler), shape=(2,))
    for s in (0.05, 0.3, 0.5, 0.8, 0.97):
        path, t = scheduler(torch.tensor(s, dtype=torch.float64)), 1.0 - s
        assert (model.schedule.alpha(t), model.schedule.sigma(t)) == pytest.approx(
            (float(path.alpha_t), float(path.sigma_t)), rel=1e-9
        )
        found, exact = model(X, t), MIXTURE.denoiser(model.schedule)(X, t)
        torch.testing.assert_close(found.x0, exact.x0, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.eps, exact.eps, rtol=1e-8, atol=1e-8)
        back = path.d_alpha_t * found.x0 + path.d_sigma_t * found.eps
        u = Exact(scheduler)(X, torch.full((64,), s, dtype=torch.float64))
        torch.testing.assert_close(back, u, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_samples_of_every_path_have_the_data_distribution(name):
    """The shares of the modes and the spread within them; the velocity is exact."""
    model = sf.from_flow_matching(Exact(SCHEDULERS[name]), SCHEDULERS[name], shape=(2,))
    n = 3000
    x = sf.sample(model, n=n, nfe=40, dtype=torch.float64, seed=5).x
    mode = torch.cdist(x, MIXTURE.means).argmin(1)
    # five standard errors of a share of 1/3, and of a standard deviation: false alarms below 1e-5
    assert ((mode.bincount(minlength=3) / n - 1 / 3).abs() < 5.0 * math.sqrt(2 / 9 / n)).all()
    spread = (x - MIXTURE.means[mode]).square().mean().sqrt()
    assert abs(spread / 0.4 - 1.0) < 0.03 + 5.0 / (4 * n) ** 0.5


def test_a_fine_solve_is_their_odesolvers():
    velocity = Small()
    model = sf.from_flow_matching(velocity, shape=(2,))
    theirs = flow_solver.ODESolver(velocity).sample(X, step_size=0.01, method="midpoint")
    torch.testing.assert_close(sf.sample(model, x=X, steps=64, solver="rk4").x, theirs, rtol=1e-4, atol=1e-4)
    euler = flow_solver.ODESolver(velocity).sample(X, step_size=0.1, method="euler")
    ours = sf.sample(model, x=X, steps=10, grid="uniform", solver="euler").x
    torch.testing.assert_close(ours, euler, rtol=1e-6, atol=1e-6)  # their grid is in float32


def test_the_log_likelihood_is_their_compute_likelihood():
    velocity = Small()
    model = sf.from_flow_matching(velocity, shape=(2,))
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2).double(), 1.0), 1)
    _, theirs = flow_solver.ODESolver(velocity).compute_likelihood(
        X, normal.log_prob, step_size=0.02, method="midpoint", exact_divergence=True
    )
    torch.testing.assert_close(sf.log_likelihood(model, X, steps=48).value, theirs, rtol=1e-4, atol=1e-4)


def test_conditions_go_through_extras():
    velocity, labels = Small(classes=3), torch.arange(64) % 3
    model = sf.from_flow_matching(velocity, extra="label", shape=(2,), null=2, classes=2)
    u = velocity(X, torch.full((64,), 0.6, dtype=torch.float64), label=labels)
    torch.testing.assert_close(model.with_condition({"label": labels})(X, 0.4).flow, -u)
    torch.testing.assert_close(model.with_condition(labels)(X, 0.4).flow, -u)
    none = velocity(X, torch.full((64,), 0.6, dtype=torch.float64), label=torch.full((64,), 2))
    one = velocity(X, torch.full((64,), 0.6, dtype=torch.float64), label=torch.full((64,), 1))
    guided = model.with_condition(1, guidance=3.0)(X, 0.4).flow
    torch.testing.assert_close(guided, -(none + 3.0 * (one - none)))
    times = torch.linspace(0.1, 0.9, 64, dtype=torch.float64)
    torch.testing.assert_close(model.with_condition(labels)(X, times).flow, -velocity(X, 1 - times, label=labels))
    with pytest.raises(sf.InputError, match=r"condition: got one value, but not the keyword"):
        sf.from_flow_matching(velocity, shape=(2,)).with_condition(labels)(X, 0.4)
    with pytest.raises(sf.InputError, match=r"null: got one value, but not the keyword"):
        sf.from_flow_matching(velocity, null=2)


def test_a_transformed_model_is_on_the_path_of_its_new_scheduler():
    old, new = flow_schedulers.CondOTScheduler(), flow_schedulers.CosineScheduler()
    moved = flow_schedulers.ScheduleTransformedModel(Exact(old), old, new)
    found = sf.from_flow_matching(moved, new, shape=(2,))(X, 0.4)
    with pytest.raises(sf.InputError, match="takes one time for the batch"):
        sf.from_flow_matching(moved, new)(X, torch.linspace(0.1, 0.9, 64, dtype=torch.float64))
    torch.testing.assert_close(found.x0, MIXTURE.denoiser(found_path(new))(X, 0.4).x0, rtol=1e-7, atol=1e-7)


def found_path(scheduler):
    return sf.from_flow_matching(Small(), scheduler).schedule


def test_what_is_refused_of_flow_matching():
    class Mine(flow_schedulers.CosineScheduler):
        def __call__(self, t):
            found = super().__call__(t)
            found.sigma_t = 0.9 * found.sigma_t
            return found

    class Another(flow_schedulers.Scheduler):
        def __call__(self, t):
            return flow_schedulers.CondOTScheduler()(t)

        def snr_inverse(self, snr):
            return snr

    with pytest.raises(sf.InputError, match=r"path: Mine is not the path of its class: at t = 0.1"):
        sf.from_flow_matching(Small(), Mine())
    with pytest.raises(sf.InputError, match="path: Another is none of flow_matching's schedulers CondOT"):
        sf.from_flow_matching(Small(), Another())
    with pytest.raises(sf.InputError, match="path: got MixtureDiscreteProbPath, expected an AffineProbPath"):
        sf.from_flow_matching(
            Small(), flow_path.MixtureDiscreteProbPath(flow_schedulers.PolynomialConvexScheduler(1.0))
        )
    with pytest.raises(sf.InputError, match="path: got VE"):
        sf.from_flow_matching(Small(), sf.VE())
    with pytest.raises(sf.InputError, match=r"path: got SubVP"):
        sf.from_flow_matching(Small(), schedules.SubVP())
    with pytest.raises(sf.InputError, match=r"velocity: its parameters are \(a, b\), expected x and t"):
        sf.from_flow_matching(lambda a, b: a)
    own = sf.from_flow_matching(Small(), schedules.LinearVP())
    assert own.schedule == schedules.LinearVP()


@pytest.fixture(scope="module")
def cfm():
    return pytest.importorskip("torchcfm.conditional_flow_matching")


def regressed(matcher, s, n=200_000):
    """x_s and u of a matcher's own training pairs, for independent draws of noise and data."""
    torch.manual_seed(0)
    x1, x0 = MIXTURE.sample(n, seed=1), torch.randn(n, 2, dtype=torch.float64)
    base = super(type(matcher), matcher) if "OptimalTransport" in type(matcher).__name__ else matcher
    _, xt, ut = base.sample_location_and_conditional_flow(x0, x1, t=torch.full((n,), s, dtype=torch.float64))
    return x1, xt, ut


@pytest.mark.parametrize(
    ("name", "sigma"),
    [("ConditionalFlowMatcher", 0.0), ("ConditionalFlowMatcher", 0.3), ("TargetConditionalFlowMatcher", 0.2),
     ("TargetConditionalFlowMatcher", 0.0), ("VariancePreservingConditionalFlowMatcher", 0.0)],
)  # fmt: skip
@pytest.mark.parametrize("s", [0.2, 0.6, 0.95])
def test_the_matchers_paths_and_what_their_velocity_says_of_the_data(cfm, name, sigma, s):
    """The training pairs have the path's moments, and their target, read as the model reads it, is x1 on average."""
    matcher, t = getattr(cfm, name)(sigma), 1.0 - s
    x1, xt, ut = regressed(matcher, s)
    model = sf.from_torchcfm(lambda t, x: ut, matcher, shape=(2,))
    level, n = model.schedule.at(t), len(x1)
    noise = xt - level.alpha * x1
    # means and variances over 400,000 values, to five standard errors
    assert abs(noise.mean()) < 5.0 * level.sigma / (2 * n) ** 0.5
    assert abs(noise.var() / level.sigma**2 - 1.0) < 5.0 * (2 / (2 * n)) ** 0.5
    read = model(xt, t).x0 - x1
    for weight in (torch.ones_like(xt), xt, xt.sin()):
        product = read * weight
        assert abs(product.mean()) < 5.0 * product.std() / (2 * n) ** 0.5 + 1e-12


def test_torchcfms_networks_are_called_as_they_are(cfm):
    from torchcfm.models.models import MLP

    torch.manual_seed(0)
    net, x = MLP(2, time_varying=True), torch.randn(8, 2)
    u = net(torch.cat([x, torch.full((8, 1), 0.7)], 1))
    torch.testing.assert_close(sf.from_torchcfm(net, shape=(2,))(x, 0.3).flow, -u)

    class torch_wrapper(nn.Module):  # noqa: N801  # as in torchcfm.utils, which imports plotting
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, t, x, *args, **kwargs):
            return self.model(torch.cat([x, t.repeat(x.shape[0])[:, None]], 1))

    torch.testing.assert_close(sf.from_torchcfm(torch_wrapper(net))(x, 0.3).flow, -u)
    labelled = sf.from_torchcfm(lambda t, x, y: x * y[:, None], extra="y")
    torch.testing.assert_close(labelled.with_condition(torch.arange(8.0))(x, 0.3).flow, -x * torch.arange(8.0)[:, None])
    with pytest.raises(sf.InputError, match="time_varying=False"):
        sf.from_torchcfm(MLP(2))


def test_a_coupled_velocity_is_followed_as_an_ode_and_refuses_noise(cfm):
    velocity = Small()
    matcher = cfm.ExactOptimalTransportConditionalFlowMatcher(sigma=0.1)
    model = sf.from_torchcfm(velocity, matcher, shape=(2,))
    assert model.schedule == sf.RectifiedFlow()
    theirs = flow_solver.ODESolver(velocity).sample(X, step_size=0.01, method="midpoint")
    for solver in ("rk4", "dpmpp-2m", "unipc"):
        torch.testing.assert_close(sf.sample(model, x=X, steps=200, solver=solver).x, theirs, rtol=2e-3, atol=2e-3)
    for solver in ("ddpm", "dpmpp-sde"):
        with pytest.raises(sf.InputError, match=f"solver: '{solver}' adds noise and needs the score"):
            sf.sample(model, n=4, solver=solver, steps=4)
    assert sf.from_torchcfm(velocity, cfm.SchrodingerBridgeConditionalFlowMatcher(0.5)).has_score is False
    assert sf.sample(sf.from_torchcfm(velocity, shape=(2,)), n=4, solver="ddpm", steps=4).x.shape == (4, 2)


def test_what_is_refused_of_torchcfm(cfm):
    with pytest.raises(sf.UnknownNameError, match="unknown matcher 'otcfm'"):
        sf.from_torchcfm(Small(), "otcfm")
    with pytest.raises(sf.UnknownNameError, match="unknown matcher 'Small'"):
        sf.from_torchcfm(Small(), Small())
    with pytest.raises(sf.InputError, match=r"sigma: got 0.1 with 'variance-preserving'"):
        sf.from_torchcfm(Small(), "variance-preserving", sigma=0.1)
    with pytest.raises(sf.InputError, match=r"sigma: got 0.2, but the matcher has 0.1"):
        sf.from_torchcfm(Small(), cfm.ConditionalFlowMatcher(0.1), sigma=0.2)
    with pytest.raises(sf.InputError, match=r"sigma: got -1.0"):
        sf.from_torchcfm(Small(), sigma=-1.0)
    with pytest.raises(sf.InputError, match=r"velocity: its parameters are \(a, b\)"):
        sf.from_torchcfm(lambda a, b: a)
