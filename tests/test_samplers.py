"""ER-SDE, SA-Solver, RES, gradient estimation and STORK: orders, identities, and agreement with other code."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import steadyflow as sf
from oracles import field_step, gaussian, gaussian_flow, inner_range, slope
from steadyflow import solvers
from steadyflow._integrate import drive
from steadyflow.coordinates import DATA, by_name
from steadyflow.diagnostics.stability_region import real_interval
from steadyflow.noise import White
from steadyflow.solvers.base import Step, each_step
from steadyflow.solvers.multistep import History
from steadyflow.solvers.stork import gegenbauer_rule

PATH = sf.VPLinear()
X = torch.tensor([[1.3, -0.2, 2.0]], dtype=torch.float64)
WHOLE = {"sigma_min": 0.0, "sigma_max": math.inf}
ER_SCALES = ["sde", "sde-1", "sde-2", "sde-3", "sde-5"]


def end_of(name, x=X, steps=12, schedule=PATH, model=None, grid=None, **options):
    """The end of a run on Gaussian data between sigma/alpha = 3 and 0.2."""
    top, bottom = inner_range(schedule)
    grid = grid or sf.grids.make("uniform", schedule, steps, t_max=top, t_min=bottom)
    solver = solvers.get(name, **options)
    return sf.sample(model or gaussian().denoiser(schedule), x=x, solver=solver, grid=grid, end="path").x


class Still(White):
    """No noise: on Gaussian data, whose x0_hat is linear in x, a run gives the mean of the SDE from its start."""

    def _normal(self, stream, node):
        return torch.zeros(len(self.samples), *self.shape, dtype=self.dtype)


def mean_of(solver, steps):
    grid = sf.grids.make("uniform", PATH, steps, t_max=inner_range(PATH)[0], t_min=inner_range(PATH)[1])
    return sf.integrate(gaussian().denoiser(PATH), X, grid, solver, noise=Still.of(X)).x


# --- orders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [
    *[("er-sde", {"order": k, "scale": "ode"}) for k in (1, 2, 3)],
    *[("sa-solver", {"predictor": p, "corrector": c, "tau": 0.0})
      for p, c in ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 3), (3, 0), (3, 4), (4, 4))],
    *[("stork-4", {"order": k}) for k in (1, 2, 4)], ("stork-2", {"order": 2}), ("stork-2", {"stages": 3}),
    ("res-2s", {"c": 0.3}), ("res-2s", {"c": 1.0}), ("gradient-estimation", {"gamma": 1.2}),
])  # fmt: skip
def test_the_order_is_the_declared_one_for_other_options(name, options):
    exact = gaussian_flow(gaussian(), PATH, X, *inner_range(PATH))
    steps = [48, 96, 192]
    errors = [(end_of(name, steps=n, **options) - exact).norm().item() for n in steps]
    assert -slope(steps, errors) > solvers.get(name, **options).properties.order - 0.3
    if "sa-solver" not in name or options["predictor"] < 3:  # the larger errors fall first
        assert -slope(steps, errors) < solvers.get(name, **options).properties.order + 0.35


@pytest.mark.parametrize(("name", "options"), [
    *[("er-sde", {"order": k}) for k in (1, 2, 3)],
    *[("sa-solver", {"predictor": p, "corrector": c, "tau": 0.6, **WHOLE})
      for p, c in ((1, 0), (1, 1), (2, 2), (2, 3))],
])  # fmt: skip
def test_the_mean_of_the_stochastic_ones_has_the_declared_order(name, options):
    """With tau = 1 there would be nothing to see: on Gaussian data the mean of an ancestral step is exact."""
    solver = solvers.get(name, **options)
    steps, reference = [24, 48, 96], mean_of(solver, 768)
    errors = [(mean_of(solver, n) - reference).norm().item() for n in steps]
    assert -0.4 < -slope(steps, errors) - solver.properties.order < 0.6  # a third-order part of (2, 2) falls first


def from_an_exact_history(solver, steps):
    """The error of a run whose first predictions are exact, so that its start is as accurate as the method."""
    schedule = sf.VE()
    mixture, model = gaussian(), gaussian().denoiser(schedule)
    grid = sf.grids.make("uniform", schedule, steps, t_max=3.0, t_min=0.5)
    states = [gaussian_flow(mixture, schedule, X, 3.0, t) for t in grid]
    past = range(solver.order - 2, -1, -1)
    slopes = tuple(model(states[k], grid.times[k]).scaled(*by_name(solver.coordinates).prediction) for k in past)
    state = History(states[solver.order - 1], tuple(grid.times[k] for k in past), slopes)
    for step in each_step(schedule, grid, first=solver.order - 1):
        state, _ = drive(solver.step(state, step), model)
    return (state.x - states[-1]).norm().item()


@pytest.mark.parametrize(("name", "options", "order"), [
    ("res-3m", {}, 3), ("res-2m", {}, 2), ("er-sde", {"order": 3, "scale": "ode"}, 2), ("stork-2", {}, 2),
    ("stork-4", {"order": 3}, 3), ("stork-4", {"order": 4}, 4),
])  # fmt: skip
def test_the_order_from_an_exact_history_is_that_of_the_docstring(name, options, order):
    """ER-SDE-Solver-3 as published has order 2, and STORK-2 has order 2 with three velocities."""
    steps = [48, 96, 192]
    errors = [from_an_exact_history(solvers.get(name, **options), n) for n in steps]
    assert -slope(steps, errors) == pytest.approx(order, abs=0.35)


def test_res_2s_and_its_step_back_cancel_to_order_three():
    solver, start = solvers.get("res-2s"), torch.tensor([[0.4, -0.9], [1.1, 0.3]], dtype=torch.float64)
    sizes, defects = np.array([0.2, 0.14, 0.1, 0.07]), []
    for h in sizes:
        there = field_step(solver, "data", start, 1.0, 1.0 + h)
        defects.append((field_step(solver, "data", there, 1.0 + h, 1.0) - start).norm().item())
    assert slope(sizes, defects) == pytest.approx(solver.properties.antisymmetric_order + 1, abs=0.25)


def test_sa_solver_with_noise_on_the_whole_path_converges_path_by_path():
    solver = solvers.get("sa-solver", tau=0.7, **WHOLE)
    assert solver.properties.strong_order == 1
    assert solvers.get("sa-solver").properties.strong_order is None
    generator = torch.Generator().manual_seed(0)
    mixture = sf.GaussianMixture(torch.randn(4, 2, generator=generator, dtype=torch.float64), 1.2)
    model = mixture.denoiser(sf.VPLinear(t_min=0.05, t_max=0.8))
    options = {"n": 200, "solver": solver, "grid": "log-snr", "seed": 3, "dtype": torch.float64, "end": "path"}
    ends = {steps: sf.sample(model, steps=steps, **options).x for steps in (20, 80, 480)}
    coarse, fine = ((ends[steps] - ends[480]).square().mean().sqrt() for steps in (20, 80))
    assert 0.75 < math.log(coarse / fine, 4) < 1.3


@pytest.mark.parametrize(("name", "options"), [
    *[("er-sde", {"scale": scale, "order": 2}) for scale in ER_SCALES],
    ("sa-solver", {"tau": 0.7, "predictor": 3, "corrector": 4, **WHOLE}), ("sa-solver", {"corrector": 0, "tau": 1.3}),
])  # fmt: skip
def test_every_share_of_noise_keeps_the_spread_of_gaussian_data(name, options):
    mixture, n = gaussian(), 10000
    settings = {"steps": 120, "grid": "log-snr", "noise": "white", "seed": 5, "dtype": torch.float64, "end": "path"}
    x = sf.sample(mixture.denoiser(PATH), n=n, solver=solvers.get(name, **options), **settings).x
    wanted = mixture.std[0] ** 2 * PATH.alpha(1e-3) ** 2 + PATH.sigma(1e-3) ** 2
    # 120 steps leave under 2 %; five standard errors are 7 % of a variance, an error probability of 6e-7 each
    assert (x.var(0) / wanted - 1).abs().max() < 0.09
    assert ((x.mean(0) - PATH.alpha(1e-3) * mixture.means[0]).abs() / wanted.sqrt()).max() < 5 / n**0.5 + 0.02


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "other", "others"), [
    ("gradient-estimation", {"gamma": 1.0}, "ddim", {}), ("gradient-estimation", {"order": 1}, "ddim", {}),
    ("res-2m", {}, "dpmpp-3m", {"order": 2}), ("res-3m", {}, "dpmpp-3m", {"order": 3}),
    ("er-sde", {"order": 1, "scale": "ode"}, "ddim", {}), ("stork-4", {"order": 1}, "ddim", {}),
    ("sa-solver", {"predictor": 1, "corrector": 0, "tau": 0.0}, "ddim", {}),
    *[("sa-solver", {"predictor": k, "corrector": k + 1, "tau": 0.0}, "unipc", {"order": k, "kind": "bh1"})
      for k in (1, 2, 3)],
    ("er-sde", {"order": 1, "scale": "sde"}, "ddpm", {}),
    ("sa-solver", {"predictor": 1, "corrector": 0, **WHOLE}, "ddpm", {}),
    ("sa-solver", {"predictor": 1, "corrector": 0, "tau": 0.5**0.5, **WHOLE}, "dpmpp-sde", {"eta": 0.5}),
    ("sa-solver", {"sigma_min": 1e-9, "sigma_max": 1e-8}, "sa-solver", {"tau": 0.0}),
])  # fmt: skip
def test_special_cases_are_the_methods_that_they_should_be(name, options, other, others):
    x = torch.cat([X, -X, 0.3 * X])
    close = 1e-5 if other == "ddpm" else 1e-10  # as one of the two rounds the noise's clock
    torch.testing.assert_close(end_of(name, x, **options), end_of(other, x, **others), rtol=close, atol=close)


def test_gradient_estimation_with_three_halves_on_equal_steps_is_adams_bashforth():
    schedule = sf.VE()
    grid = sf.Grid(tuple(3.0 - 0.25 * k for k in range(11)))
    ours = end_of("gradient-estimation", schedule=schedule, grid=grid, gamma=1.5)
    torch.testing.assert_close(ours, end_of("lms", schedule=schedule, grid=grid, order=2), rtol=1e-12, atol=1e-12)


def test_gradient_estimation_is_its_formula():
    schedule = sf.VE()
    model, times = gaussian().denoiser(schedule), (3.0, 2.2, 1.5, 0.7, 0.3)
    x, before = X, None
    for s0, s1 in itertools.pairwise(times):
        eps = model(x, s0).eps
        x = x + (s1 - s0) * (eps if before is None else 2.0 * eps - before)
        before = eps
    ours = end_of("gradient-estimation", schedule=schedule, grid=sf.Grid(times))
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "exact"), [("res-2s", True), ("dpmpp-2s", False)])
def test_res_integrates_a_linear_prediction_exactly_where_dpm_solver_does_not(name, exact):
    """With x0_hat = lambda, sigma d(x / sigma) = alpha lambda dlambda has the solution alpha (lambda - 1) + C sigma."""
    schedule = sf.VE()
    model = sf.Denoiser(lambda x, t: -t.log()[:, None].expand(x.shape), schedule, prediction="sample", shape=(3,))
    end = end_of(name, schedule=schedule, model=model, grid=sf.Grid((2.0, 0.5)))
    at = lambda s: -math.log(s) - 1.0  # noqa: E731
    wanted = at(0.5) + (X - at(2.0)) * 0.5 / 2.0
    assert torch.allclose(end, wanted, rtol=1e-12, atol=1e-12) == exact


def test_er_sde_is_its_formula_with_the_integrals_of_scipy():
    """With no noise drawn, the third step of ER-SDE-Solver-3 from its difference quotients."""
    schedule, solver, levels = sf.VE(), solvers.get("er-sde"), (4.0, 2.5, 1.4, 0.9)
    phi = lambda s: s * (math.exp(s**0.3) + 10.0)  # noqa: E731
    m2, m1, m0, x = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s2, s1, s0, end = levels
    first = end - s0 + phi(end) * quad(lambda s: 1.0 / phi(s), end, s0)[0]
    second = (end - s0) ** 2 / 2 + phi(end) * quad(lambda s: (s - s0) / phi(s), end, s0)[0]
    slope0, slope1 = (m0 - m1) / (s0 - s1), (m1 - m2) / (s1 - s2)
    ratio = phi(end) / phi(s0)
    wanted = ratio * x + (1 - ratio) * m0 + first * slope0 + second * 2 * (slope0 - slope1) / (s0 - s2)
    model = sf.Denoiser(lambda x, t: m0, schedule, prediction="sample", shape=(3,))
    past = tuple(sf.Prediction(m, m, "sample", 1.0, s).scaled(*DATA.prediction) for m, s in ((m1, s1), (m2, s2)))
    step = Step.between(schedule, s0, end, noise=Still.of(X))
    state, _ = drive(solver.step(History(x, (s1, s2), past), step), model)
    torch.testing.assert_close(state.x, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scale", ER_SCALES)
def test_the_noise_of_er_sde_has_the_stated_spread_and_adds_up(scale):
    """Where x0_hat is constant a step of any length is exact in law: the spread at the end is sigma."""
    schedule = sf.VE()
    model = sf.Denoiser(lambda x, t: torch.zeros_like(x), schedule, prediction="sample", shape=(1,))
    x = 30.0 * sf.noise.initial(1, range(20000), (1,), dtype=torch.float64)
    runs = [
        sf.sample(model, x=x, solver=solvers.get("er-sde", scale=scale), grid=sf.Grid(times), seed=4, end="path").x
        for times in ((30.0, 2.0, 0.3), (30.0, 0.3))
    ]
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-4)  # one path; the clock is rounded to 2^-20
    # five standard errors of the variance of 20,000 numbers, an error probability of 6e-7
    assert (runs[0].square().mean() / 0.09 - 1).abs() < 5 * (2 / 20000) ** 0.5


def test_er_sde_begins_with_a_ddim_step_where_its_clock_is_not_resolved():
    schedule = sf.RectifiedFlow()
    model = gaussian().denoiser(schedule)
    grid = sf.Grid((1.0 - 1e-6, 0.9))
    ours = end_of("er-sde", schedule=schedule, grid=grid)
    torch.testing.assert_close(ours, end_of("ddim", schedule=schedule, grid=grid), rtol=1e-12, atol=1e-12)
    assert sf.sample(model, n=3, solver="er-sde", grid=sf.Grid((1.0, 0.99999, 0.5, 0.0)), end="path").x.isfinite().all()


# --- STORK ----------------------------------------------------------------------------------------------------------


def test_stork_4_is_adams_bashforth_in_flow_coordinates():
    schedule = sf.RectifiedFlow()
    model, times = gaussian().denoiser(schedule), tuple(0.9 - 0.1 * k for k in range(8))
    rows = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12]]
    x, past = X, []
    for t in times[:-1]:
        past = [model(x, t).flow, *past][:3]
        x = x - 0.1 * sum(w * v for w, v in zip(rows[len(past) - 1], past, strict=True))
    ours = end_of("stork-4", schedule=schedule, grid=sf.Grid(times))
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["stork-2", "stork-4"])
def test_stork_takes_its_own_steps_over_the_whole_of_a_flow_path(name):
    schedule = sf.RectifiedFlow()
    exact = gaussian_flow(gaussian(), schedule, X, 1.0, 0.0)
    steps, errors = [40, 80, 160], []
    for n in steps:
        grid = sf.grids.make("quadratic", schedule, n, t_max=1.0, t_min=0.0)
        errors.append((end_of(name, schedule=schedule, grid=grid) - exact).norm().item())
    assert -slope(steps, errors) > 1.7


@pytest.mark.parametrize(("name", "options"), [
    ("stork-2", {"order": 4}), ("stork-2", {"order": 2}), ("stork-2", {"stages": 3}), ("stork-4", {"order": 4}),
    ("gradient-estimation", {"gamma": 1.0}), ("gradient-estimation", {"gamma": 4.0}),
])  # fmt: skip
def test_stability_intervals_follow_the_options(name, options):
    solver = solvers.get(name, **options)
    assert real_interval(solver, 6.0) == pytest.approx(solver.properties.real_interval, abs=1e-4)


def gegenbauer_stages(x, expansion, h, stages):
    """A step of the second-order Runge-Kutta-Gegenbauer method on du/dt = expansion(t), stage by stage."""
    b = lambda j: (1.0, 1 / 3)[j] if j < 2 else 4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3))  # noqa: E731
    w, time = 6 / ((stages + 4) * (stages - 1)), lambda j: (j * j + 3 * j - 4) / (stages * stages + 3 * stages - 4)
    before, last = x, x + w * h * expansion(0.0)
    for j in range(2, stages + 1):
        mu, nu = (2 * j + 1) * b(j) / (j * b(j - 1)), -(j + 1) * b(j) / (j * b(j - 2))
        slope = expansion(h * (w if j == 2 else time(j - 1)))
        at_start = -mu * w * (1 - j * (j + 1) * b(j - 1) / 2)
        stage = mu * last + nu * before + (1 - mu - nu) * x + h * (mu * w * slope + at_start * expansion(0.0))
        before, last = last, stage
    return last


def test_stork_2_is_the_taylor_expansion_in_the_stages_of_the_gegenbauer_method():
    schedule, h = sf.RectifiedFlow(), -0.1
    model, times = gaussian().denoiser(schedule), (0.8, 0.7, 0.6, 0.5)
    x, past = X, []
    for t in times[:-1]:
        past = [model(x, t).flow, *past]
        if len(past) < 3:
            last = x
            x = end_of("stork-2", schedule=schedule, grid=sf.Grid(times[: len(past) + 1]))
            assert not torch.equal(last, x)
    v, v1, v2 = past
    first, second = (3 * v - 4 * v1 + v2) / (2 * h), (v - 2 * v1 + v2) / h**2
    wanted = gegenbauer_stages(x, lambda s: v + s * first + s * s / 2 * second, h, 50)
    ours = end_of("stork-2", schedule=schedule, grid=sf.Grid(times))
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stages", [3, 10, 50])
def test_the_gegenbauer_rule_has_order_two_at_its_own_times_and_order_one_at_those_of_legendre(stages):
    nodes, weights = gegenbauer_rule(stages)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert weights @ nodes == pytest.approx(0.5, abs=1e-12)
    assert weights @ nodes**2 == pytest.approx(0.25, abs=0.04)
    s = np.arange(stages)
    legendre = (s * s + s - 2) / (stages * stages + stages - 2)
    legendre[:2] = 0.0, 4 / (3 * (stages * stages + stages - 2))
    assert weights @ legendre < 0.49
    if stages == 50:
        assert weights @ legendre == pytest.approx(0.4896, abs=1e-4)


# --- other code -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("predictor", "corrector", "tau"), [(1, 1, 0.0), (2, 2, 0.0), (2, 2, 1.0), (3, 4, 1.0)])
@torch.no_grad()
def test_sa_solver_agrees_with_the_scheduler_of_diffusers(predictor, corrector, tau, monkeypatch):
    """With the same noise. Its lower orders in the last steps are off: here only the clean estimate ends a run."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_sasolver

    theirs = diffusers.SASolverScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, lower_order_final=False,
        predictor_order=predictor, corrector_order=corrector, tau_func=lambda t: tau if 200 <= t <= 800 else 0,
    )  # fmt: skip
    theirs.set_timesteps(20)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.SiLU(), torch.nn.Linear(64, 8)).double()
    x, schedule = torch.randn(4, 8, dtype=torch.float64), sf.Tabulated.scaled_linear()
    eps = lambda x: 0.3 * net(x) + 0.9 * x  # noqa: E731
    grid = sf.Grid.from_sigmas(theirs.sigmas.tolist(), schedule)
    source = White.of(x, 7)
    snr = [math.exp(schedule.at(t).log_snr) for t in grid]
    draws = iter([source.unit(a, b) for a, b in itertools.pairwise(snr)])
    monkeypatch.setattr(scheduling_sasolver, "randn_tensor", lambda *args, **options: next(draws))
    expected = x
    for t in theirs.timesteps:
        expected = theirs.step(eps(expected), t, expected).prev_sample
    solver = solvers.get("sa-solver", predictor=predictor, corrector=corrector, tau=tau)
    ours = sf.integrate(sf.Denoiser(lambda x, t: eps(x), schedule), x, grid, solver, noise=source).x
    assert (ours - expected).norm() / expected.norm() < 1e-4


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "option", "words"), [
    ("er-sde", {"order": 4}, "from 1 to 3"), ("er-sde", {"scale": "sde-9"}, "'sde-5'"),
    ("sa-solver", {"predictor": 5}, "1, 2, 3 or 4"), ("sa-solver", {"corrector": -1}, "0, 1, 2, 3 or 4"),
    ("sa-solver", {"tau": -1.0}, "tau >= 0"), ("sa-solver", {"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min"),
    ("res-2s", {"c": 0.0}, r"\(0, 1\]"), ("res-2s", {"c": math.nan}, r"\(0, 1\]"),
    ("gradient-estimation", {"gamma": 0.5}, "at least 1"), ("gradient-estimation", {"order": 3}, "from 1 to 2"),
    ("stork-2", {"stages": 1}, "from 2 to 1000"), ("stork-4", {"order": 5}, "from 1 to 4"),
    ("stork-4", {"stages": 9}, "no option"), ("res-2m", {"order": 3}, "no option|multiple values"),
])  # fmt: skip
def test_options_out_of_range_are_refused_with_what_is_accepted(name, option, words):
    with pytest.raises(sf.InputError, match=f"{name}.*({words})"):
        solvers.get(name, **option)


@pytest.mark.parametrize(("name", "options"), [
    ("er-sde", {"scale": "ode"}), ("sa-solver", {"tau": 0.0}), ("sa-solver", {"tau": 0.0, "predictor": 4}),
])  # fmt: skip
def test_without_noise_they_invert(name, options):
    solver = solvers.get(name, **options)
    assert not solver.properties.stochastic
    mixture = sf.GaussianMixture.grid(3, std=0.4, dtype=torch.float64)
    x = mixture.sample(32, seed=1).double()
    back = sf.reconstruct(mixture.denoiser(sf.VPCosine()), x, solver=solver, steps=60, grid="log-snr")
    assert (back.x - x).norm(dim=1).median() < 0.02
    assert solvers.from_spec(solver.spec()) == solver
