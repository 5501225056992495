"""Orders, inverses and stability of every registered solver, from its own step code."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import steadyflow as sf
from combinations import every_second
from oracles import (
    SCHEDULES,
    field_model,
    field_step,
    gaussian,
    gaussian_flow,
    inner_range,
    nonlinear,
    slope,
)
from steadyflow import solvers
from steadyflow.solvers import tableaux
from steadyflow.solvers.runge_kutta import RungeKutta

RUNGE_KUTTA = [n for n in solvers.names() if isinstance(solvers.get(n), RungeKutta)]
DETERMINISTIC = [n for n in solvers.names() if not solvers.get(n).properties.stochastic]
EXACT_ORDER_ON_GAUSSIANS = [
    "ddim", "euler", "heun", "ralston", "ssprk3", "rk4", "ees25", "ees27", "edict", "reversible-heun", "belm",
    "implicit-midpoint", "dpm-2", "dpm-3", "dpmpp-2s", "dpmpp-2m",
]  # fmt: skip
ADMISSIBLE_EES27 = [0.1, 1 / 3, (2 - 2**0.5) / 4, -0.3, tableaux.EES27_X]


def in_variable(name, coordinates):
    solver = solvers.get(name)
    return dataclasses.replace(solver, coordinates=coordinates) if isinstance(solver, RungeKutta) else solver


@pytest.fixture
def start():
    return torch.tensor([[0.4, -0.9], [1.1, 0.3]], dtype=torch.float64)


def reference(y0):
    """The solution at tau = 1 from y0 at tau = 2, by scipy to 1e-13."""
    field = lambda tau, y: nonlinear(tau, torch.tensor(y)).numpy()  # noqa: E731
    return solve_ivp(field, (2.0, 1.0), y0, method="DOP853", rtol=1e-13, atol=1e-13).y[:, -1]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_a_nonlinear_equation_is_the_declared_one(name, start):
    """On the variance-exploding path dx/dsigma = eps is any equation one likes, for any solver."""
    solver, model = in_variable(name, "noise"), field_model("noise")
    exact = torch.stack([torch.from_numpy(reference(y0.numpy())) for y0 in start])
    order = solver.properties.order
    steps, errors = {4: [6, 8, 12, 16], 5: [10, 14, 20, 28]}.get(order, [16, 24, 32, 48]), []
    for n in steps:
        grid = sf.Grid(tuple(2.0 - k / n for k in range(n + 1)))
        errors.append((sf.sample(model, x=start, solver=solver, grid=grid, end="path").x - exact).norm().item())
    fitted = -slope(steps, errors)
    assert fitted > order - 0.35
    if name not in ("bdia", "ipndm") and order < 5:  # those gain on equal steps; fifth order is met from above
        assert fitted < order + 0.45


@pytest.mark.parametrize("name", RUNGE_KUTTA)
def test_order_on_a_nonlinear_equation_in_the_data_variable_is_the_declared_one(name, start):
    solver, model = in_variable(name, "data"), field_model("data")
    exact = torch.stack([torch.from_numpy(reference(y0.numpy())) for y0 in start])
    order = solver.properties.order
    steps, errors = {4: [6, 8, 12, 16], 5: [10, 14, 20, 28]}.get(order, [16, 24, 32, 48]), []
    for n in steps:
        y = start
        for k in range(n):
            y = field_step(solver, "data", y, 2.0 - k / n, 2.0 - (k + 1) / n, model)
        errors.append((y - exact).norm().item())
    fitted = -slope(steps, errors)
    assert fitted > order - 0.35
    assert fitted < order + 0.45 or order == 5  # which is met from above


@pytest.mark.parametrize("coordinates", ["noise", "data"])
@pytest.mark.parametrize("name", RUNGE_KUTTA)
def test_the_step_and_the_step_back_cancel_to_the_declared_antisymmetric_order(name, coordinates, start):
    solver = in_variable(name, coordinates)
    order = solver.properties.antisymmetric_order
    sizes = np.array([0.2, 0.14, 0.1, 0.07] if order < 7 else [0.28, 0.22, 0.18, 0.14])
    defects = []
    for h in sizes:
        there = field_step(solver, coordinates, start, 1.0, 1.0 + h)
        back = field_step(solver, coordinates, there, 1.0 + h, 1.0)
        defects.append((back - start).norm().item())
    tolerance = {5: 0.3, 7: 0.4}.get(order, 0.25)
    if solver.properties.order == 5:  # the next terms are as large at these steps, and smaller ones meet rounding
        tolerance = 0.6
    assert slope(sizes, defects) == pytest.approx(order + 1, abs=tolerance)


IN_VARIABLES = [
    (name, coordinates)
    for name in DETERMINISTIC
    if solvers.get(name).properties.order < 5
    for coordinates in (("noise", "data", "flow") if name in RUNGE_KUTTA else ("its own",))
]


@pytest.mark.parametrize(("variables", "path"), every_second(IN_VARIABLES, list(SCHEDULES)))
def test_forward_order_on_gaussian_data_is_the_declared_one_on_every_path(variables, path):
    solver, schedule, name = in_variable(*variables), SCHEDULES[path], variables[0]
    mixture = gaussian()
    model = mixture.denoiser(schedule)
    top, bottom = inner_range(schedule)
    x = torch.tensor([[1.3, -0.2, 2.0]], dtype=torch.float64)
    exact = gaussian_flow(mixture, schedule, x, top, bottom)
    order = solver.properties.order
    # the two errors of stork-2, of the first step and of the others, have different signs and part late
    steps, errors = [96, 192] if name == "stork-2" else [24, 48] if name in RUNGE_KUTTA else [32, 64], []
    for n in steps:
        grid = sf.grids.make("uniform", schedule, n, t_max=top, t_min=bottom)
        errors.append((sf.sample(model, x=x, solver=solver, grid=grid, end="path").x - exact).norm().item())
    # On Gaussian data u = sqrt(tau^2 + s^2) along the flow, and the midpoint rule's leading error,
    # h^3 (u'''/24 + f_u u''/8) = h^3 tau s^2 (tau^2 + s^2)^(-5/2) (-3/24 + 1/8), vanishes: it gains an order,
    # and what is built on it, or tuned in its coupling, may gain some too. Nothing may lose.
    fitted = -slope(steps, errors)
    assert fitted > order - 0.35
    if name in EXACT_ORDER_ON_GAUSSIANS:
        assert fitted == pytest.approx(order, abs=0.35)
    if name == "midpoint":
        assert fitted == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("coordinates", ["noise", "data", "flow"])
def test_euler_in_any_variable_is_ddim(coordinates, schedule):
    model = sf.GaussianMixture.grid(5).denoiser(schedule)
    grid = sf.grids.make("quadratic", schedule, 12)
    x = schedule.sigma(grid.times[0]) * torch.randn(8, 2, dtype=torch.float64)
    ddim = sf.sample(model, x=x, solver="ddim", grid=grid, end="path").x
    euler = sf.sample(model, x=x, solver=sf.Euler(coordinates=coordinates), grid=grid, end="path").x
    torch.testing.assert_close(euler, ddim, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", RUNGE_KUTTA)
def test_the_measured_growth_factor_is_the_stability_polynomial_and_the_interval_its_first_exit(name):
    solver = in_variable(name, "noise")
    facts, polynomial = solver.properties, solver.tableau.stability_polynomial()

    def growth(z):
        model = field_model("noise", lambda tau, y: z * y)
        return field_step(solver, "noise", torch.ones(1, 2, dtype=torch.float64), 1.0, 2.0, model)[0, 0].item()

    for z in np.linspace(-4.5, 0.5, 11):
        assert growth(z) == pytest.approx(np.polyval(polynomial[::-1], z), abs=1e-11)
    inside = np.linspace(-facts.real_interval + 1e-4, 0, 200)
    assert all(abs(growth(z)) <= 1 + 1e-12 for z in inside)
    assert abs(growth(-facts.real_interval - 1e-4)) > 1


@pytest.mark.parametrize(("name", "interval"), [
    ("euler", 2.0), ("midpoint", 2.0), ("ssprk3", 2.51275), ("rk4", 2.78529),
    ("ees25", 3.08738), ("ees27", 3.91557),
])  # fmt: skip
def test_stability_intervals_are_those_of_the_literature(name, interval):
    assert solvers.get(name).properties.real_interval == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize("x", [0.1, 0.25, 1 / 3, -0.7, 2.0])
def test_ees25_identity_r_of_z_times_r_of_minus_z(x):
    z = np.linspace(-2, 2, 9)
    r = np.poly1d(tableaux.ees25(x).stability_polynomial()[::-1])
    np.testing.assert_allclose(r(z) * r(-z), 1 - z**6 / 64, atol=1e-13)


@pytest.mark.parametrize("branch", ["+", "-"])
@pytest.mark.parametrize("x", ADMISSIBLE_EES27)
def test_ees27_identity_and_order_hold_for_every_admissible_x_on_both_branches(x, branch):
    z = np.linspace(-1, 1, 9)
    tableau = tableaux.ees27(x, branch)
    r = np.poly1d(tableau.stability_polynomial()[::-1])
    d = (3 - 2 * 2**0.5) / 8 if branch == "+" else (3 + 2 * 2**0.5) / 8
    np.testing.assert_allclose(r(z) * r(-z), 1 + d**2 * z**8, atol=1e-11)
    b, c = np.array(tableau.b), np.array(tableau.c)
    assert b.sum() == pytest.approx(1, abs=1e-12)
    assert b @ c == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(("make", "x"), [
    *[(lambda x: sf.EES25(x=x, coordinates="noise"), x) for x in (0.25, -0.7, 1 / 3)],
    *[(lambda x: sf.EES27(x=x, coordinates="noise"), x) for x in (0.1, 0.14645, 1 / 3)],
    (lambda x: sf.EES27(x=x, branch="-", coordinates="noise"), 0.1),
])  # fmt: skip
def test_other_members_of_the_ees_families_are_as_reversible(make, x, start):
    solver = make(x)
    sizes = np.array([0.3, 0.22, 0.16, 0.12])
    defects = []
    for h in sizes:
        there = field_step(solver, "noise", start, 1.0, 1.0 + h)
        defects.append((field_step(solver, "noise", there, 1.0 + h, 1.0) - start).norm().item())
    assert slope(sizes, defects) > solver.properties.antisymmetric_order + 1 - 0.5


def test_the_recommended_ees_members_satisfy_the_third_order_bushy_condition():
    for tableau in (tableaux.ees25(), tableaux.ees27()):
        assert np.dot(tableau.b, np.square(tableau.c)) == pytest.approx(1 / 3, abs=1e-13)


def test_ees25_on_25_modes_reconstructs_below_1e_5_and_300_times_better_than_ddim():
    mixture = sf.GaussianMixture.grid(5, spacing=2.0, std=0.02)
    model = mixture.denoiser(sf.VPScaledLinear())
    x = mixture.sample(2000, seed=3)
    ddim = sf.reconstruct(model, x, solver="ddim", steps=60, grid="quadratic")
    ees = sf.reconstruct(model, x, solver=sf.EES25(coordinates="noise"), steps=20, grid="quadratic")
    assert ddim.nfe == ees.nfe == 120
    error = (ees.x - x).norm(dim=1).median()
    assert error < 1e-5
    assert (ddim.x - x).norm(dim=1).median() > 300 * error


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_ddpm_marginals_are_exact_where_the_data_are_a_point(schedule):
    """With x0_hat constant every ancestral step is exact, so the state has the path's own mean and spread."""
    point = torch.tensor([[0.8, -0.6]], dtype=torch.float64)
    model = sf.Denoiser(lambda x, t: point.expand(x.shape), schedule, prediction="sample", shape=(2,))
    top, bottom = inner_range(schedule)
    n = 20000
    noise = sf.noise.initial(11, range(n), (2,), dtype=torch.float64)
    x = schedule.alpha(top) * point + schedule.sigma(top) * noise
    out = sf.sample(
        model, x=x, solver="ddpm", grid=sf.grids.make("uniform", schedule, 7, t_max=top, t_min=bottom), end="path"
    ).x
    deviation = (out - schedule.alpha(bottom) * point) / schedule.sigma(bottom)
    # 40,000 standard normal numbers: five standard errors, an error probability of about 1e-6 each
    assert deviation.mean().abs() < 5 / (2 * n) ** 0.5
    assert (deviation.square().mean() - 1).abs() < 5 * (2 / (2 * n)) ** 0.5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_eta_keeps_the_variance_of_gaussian_data(eta):
    mixture = gaussian()
    model = mixture.denoiser(sf.VPLinear())
    n = 20000
    options = {"steps": 200, "grid": "log-snr", "noise": "white", "seed": 5, "dtype": torch.float64}
    x = sf.sample(model, n=n, solver=sf.DDIM(eta=eta), **options, end="path").x
    wanted = (mixture.std[0] ** 2 * sf.VPLinear().alpha(1e-3) ** 2) + sf.VPLinear().sigma(1e-3) ** 2
    # the discretisation of 200 steps leaves under 2 %, the sampling error of five deviations is 5 %
    assert (x.var(0) / wanted - 1).abs().max() < 0.07


@pytest.mark.parametrize("name", ["dpmpp-sde", "dpmpp-2m-sde", "dpmpp-3m-sde"])
@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
def test_any_share_of_the_reverse_sdes_noise_keeps_the_variance_of_gaussian_data(name, eta):
    mixture = gaussian()
    model = mixture.denoiser(sf.VPLinear())
    options = {"steps": 200, "grid": "log-snr", "noise": "white", "seed": 5, "dtype": torch.float64}
    x = sf.sample(model, n=20000, solver=solvers.get(name, eta=eta), **options, end="path").x
    wanted = (mixture.std[0] ** 2 * sf.VPLinear().alpha(1e-3) ** 2) + sf.VPLinear().sigma(1e-3) ** 2
    # steps of 200 leave under 2 %, five deviations of the sampling error are 5 %
    assert (x.var(0) / wanted - 1).abs().max() < 0.07


@pytest.mark.parametrize(("noisy", "quiet"), [("dpmpp-sde", "ddim"), ("dpmpp-2m-sde", "dpmpp-2m")])
def test_without_noise_the_stochastic_multistep_methods_are_the_deterministic_ones(noisy, quiet):
    model = sf.GaussianMixture.grid(3, std=0.4).denoiser(sf.VPLinear())
    with_a_little = sf.sample(
        model, n=16, solver=solvers.get(noisy, eta=1e-20), steps=12, dtype=torch.float64, end="path"
    ).x
    without = sf.sample(model, n=16, solver=quiet, steps=12, dtype=torch.float64, end="path").x
    assert (with_a_little - without).abs().max() < 1e-8
    with pytest.raises(sf.InputError, match="eta 0"):
        solvers.get(noisy, eta=0)


@pytest.mark.parametrize("name", [n for n in solvers.names() if solvers.get(n).properties.strong_order])
def test_stochastic_solvers_converge_path_by_path_with_the_order_they_state(name):
    generator = torch.Generator().manual_seed(0)
    mixture = sf.GaussianMixture(torch.randn(4, 2, generator=generator, dtype=torch.float64), 1.2)
    model = mixture.denoiser(sf.VPLinear(t_min=0.05, t_max=0.8))
    options = {"n": 400, "solver": name, "grid": "log-snr", "seed": 3, "dtype": torch.float64}
    ends = {steps: sf.sample(model, steps=steps, **options, end="path").x for steps in (20, 80, 480)}
    coarse, fine = ((ends[steps] - ends[480]).square().mean().sqrt() for steps in (20, 80))
    assert 0.75 < math.log(coarse / fine, 4) / solvers.get(name).properties.strong_order < 1.3


def test_one_noise_path_serves_grids_of_any_step_count():
    model = sf.GaussianMixture.grid(3, std=0.4).denoiser(sf.VPLinear())
    runs = {
        (noise, k): sf.sample(model, n=64, solver="ddpm", steps=k, grid="log-snr", seed=2, noise=noise, end="path").x
        for noise in ("brownian", "white")
        for k in (200, 400)
    }
    gap = {n: (runs[n, 200] - runs[n, 400]).norm(dim=1).median() for n in ("brownian", "white")}
    assert gap["brownian"] < 0.2 * gap["white"]


@pytest.mark.parametrize("end", ["clean", "noisy"])
@pytest.mark.parametrize(
    "name", [n for n in DETERMINISTIC if solvers.get(n).properties.inverse != "exact" and n != "fireflow"]
)
def test_a_singular_end_of_the_path_is_crossed_by_a_ddim_step(name, end):
    schedule = sf.RectifiedFlow()
    mixture = sf.GaussianMixture.grid(3, std=0.3)
    model = mixture.denoiser(schedule)
    x = torch.randn(4, 2, dtype=torch.float64)
    grid = sf.Grid((0.3, 0.0)) if end == "clean" else sf.Grid((1.0, 0.7))
    solver = in_variable(name, "data" if end == "clean" else "noise")
    prediction = model(x, grid.times[0])
    ddim = schedule.alpha(grid.times[1]) * prediction.x0 + schedule.sigma(grid.times[1]) * prediction.eps
    torch.testing.assert_close(
        sf.sample(model, x=x, solver=solver, grid=grid, end="path").x, ddim, rtol=1e-12, atol=1e-12
    )


def test_the_flow_variable_takes_full_order_over_the_whole_of_a_flow_path():
    mixture = gaussian(std=(0.5, 1.2, 0.9))
    schedule = sf.RectifiedFlow()
    model = mixture.denoiser(schedule)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = gaussian_flow(mixture, schedule, x, 1.0, 0.0)
    steps, errors = [16, 32, 64], []
    for n in steps:
        out = sf.sample(model, x=x, solver="ees25", grid="quadratic", steps=n, end="path")
        assert out.nfe == 3 * n  # no step fell back to DDIM
        errors.append((out.x - exact).norm().item())
    assert -slope(steps, errors) == pytest.approx(2, abs=0.25)


def test_a_zero_terminal_snr_table_can_be_sampled_from_its_very_end():
    table = sf.Tabulated.linear(50, 2e-3, 0.3)
    zero = sf.Tabulated((*table.alphas_cumprod[:-1], 0.0))
    model = sf.GaussianMixture.grid(3, std=0.3).denoiser(zero)
    out = sf.sample(model, n=500, solver="ees25", steps=30, grid="uniform", dtype=torch.float64, end="path")
    assert out.x.isfinite().all()
    nearest = torch.cdist(out.x, zero.alpha(0.0) * model.mixture.means).min(1).values
    assert nearest.median() < 0.6


@pytest.mark.parametrize("name", RUNGE_KUTTA)
def test_any_precision_gives_the_same_answer_to_its_rounding(name):
    model = sf.GaussianMixture.grid(5).denoiser(sf.VPCosine())
    x = sf.noise.initial(0, range(32), (2,))
    single = sf.sample(model, x=x, solver=name, steps=8, end="path").x
    double = sf.sample(model, x=x.double(), solver=name, steps=8, end="path").x
    assert single.dtype == torch.float32
    assert (single - double).abs().median() < 1e-4


def test_ddim_equals_the_scheduler_of_diffusers_on_the_same_timesteps():
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    reference.set_timesteps(20)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(9, 64), torch.nn.SiLU(), torch.nn.Linear(64, 8))

    def epsilon(x, t):
        return net(torch.cat([x, t[:, None] / 1000], 1))

    x = torch.randn(4, 8)
    theirs = x
    with torch.no_grad():
        for t in reference.timesteps:
            theirs = reference.step(epsilon(theirs, t.expand(4).float()), t, theirs).prev_sample
        model = sf.Denoiser(epsilon, sf.Tabulated(tuple(reference.alphas_cumprod.double().tolist())))
        grid = sf.Grid.from_timesteps(reference.timesteps.tolist(), final=0)
        for solver in ("ddim", sf.Euler(coordinates="noise"), sf.Euler(coordinates="data")):
            ours = sf.sample(model, x=x, solver=solver, grid=grid, end="path").x
            assert (ours - theirs).norm() / theirs.norm() < 1e-5


def rough_network():
    """A field that no scheduler can have been tuned to; without time, which schedulers round differently."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.SiLU(), torch.nn.Linear(64, 8)).double()
    for layer in net[::2]:
        torch.nn.init.normal_(layer.weight, std=0.2)
    return lambda x: 0.3 * net(x) + 0.9 * x


@pytest.mark.parametrize(("kind", "options", "solver"), [
    ("DPMSolverMultistepScheduler", {"solver_order": 1}, sf.DDIM()),
    ("DPMSolverMultistepScheduler", {"solver_order": 2}, solvers.get("dpmpp-2m")),
    ("UniPCMultistepScheduler", {"solver_order": 1}, solvers.get("unipc", order=1)),
    ("UniPCMultistepScheduler", {"solver_order": 2}, solvers.get("unipc", order=2)),
    ("HeunDiscreteScheduler", {}, sf.Heun(coordinates="noise")),
])  # fmt: skip
@torch.no_grad()
def test_solvers_agree_with_the_schedulers_of_diffusers_on_the_same_sigmas(kind, options, solver):
    diffusers = pytest.importorskip("diffusers")
    theirs = getattr(diffusers, kind)(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, use_karras_sigmas=True, **options
    )
    theirs.set_timesteps(20)
    sigmas, eps = theirs.sigmas.tolist(), rough_network()
    x = torch.randn(4, 8, dtype=torch.float64)
    schedule = sf.Tabulated.scaled_linear()
    frame = 1.0
    if kind == "HeunDiscreteScheduler":  # works in the variance-exploding frame, and lists each level twice
        sigmas = [sigmas[0], *sigmas[1:-1:2], 0.0]
        frame = (1 + sigmas[0] ** 2) ** 0.5
    expected = x * frame
    for t in theirs.timesteps:
        expected = theirs.step(eps(theirs.scale_model_input(expected, t)), t, expected).prev_sample
    model = sf.Denoiser(lambda x, t: eps(x), schedule)
    # the last step of each scheduler, to sigma = 0, is the reading of the clean estimate
    ours = sf.sample(model, x=x, solver=solver, grid=sf.Grid.from_sigmas(sigmas[:-1], schedule)).x
    assert (ours - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize(("name", "order"), [("dpmpp-3m", 3), ("deis", 3), ("lms", 4), ("lms", 3), ("lms", 2)])
def test_multistep_methods_reach_their_own_order_from_an_exact_history(name, order):
    """The low-order start of a run caps the order of convergence at two; the method itself has more."""
    from steadyflow._integrate import drive
    from steadyflow.coordinates import by_name
    from steadyflow.solvers.base import each_step
    from steadyflow.solvers.multistep import History

    mixture, schedule = gaussian(), sf.VE()
    model = mixture.denoiser(schedule)
    solver = solvers.get(name, order=order)
    top = torch.tensor([[1.3, -0.2, 2.0]], dtype=torch.float64)
    steps, errors = [32, 48, 64, 96], []
    for n in steps:
        grid = sf.grids.make("uniform", schedule, n, t_max=3.0, t_min=0.5)
        states = [gaussian_flow(mixture, schedule, top, 3.0, t) for t in grid]
        past = range(order - 2, -1, -1)
        slopes = tuple(model(states[k], grid.times[k]).scaled(*by_name(solver.coordinates).prediction) for k in past)
        state = History(states[order - 1], tuple(grid.times[k] for k in past), slopes)
        for step in each_step(schedule, grid, first=order - 1):
            state, _ = drive(solver.step(state, step), model)
        errors.append((state.x - states[-1]).norm().item())
    assert -slope(steps, errors) > order - 0.3


@pytest.mark.parametrize("name", [n for n in solvers.names() if solvers.get(n).properties.stochastic])
def test_stochastic_solvers_keep_the_spread_of_gaussian_data(name):
    mixture, schedule = gaussian(), sf.VPLinear()
    model = mixture.denoiser(schedule)
    if name in ("lcm", "rex-sde", "rex-shark"):
        pytest.skip("consistency steps are for distilled models; rex-sde and rex-shark are tested with the exact ones")
    n = 20000
    x = sf.sample(
        model, n=n, solver=name, steps=200, grid="log-snr", dtype=torch.float64, seed=5, noise="white", end="path"
    ).x
    wanted = mixture.std[0] ** 2 * schedule.alpha(1e-3) ** 2 + schedule.sigma(1e-3) ** 2
    # 200 steps leave under 3 %; five deviations of the sampling error are 5 %
    assert (x.var(0) / wanted - 1).abs().max() < 0.08
    assert (x.mean(0) - schedule.alpha(1e-3) * mixture.means[0]).abs().max() < 5 * 1.7 / n**0.5 + 0.02


def test_consistency_steps_of_an_exact_consistency_function_give_the_data():
    """A one-point data set has a constant consistency function: whatever the noise, LCM ends there."""
    point = torch.tensor([0.8, -0.6])
    model = sf.Denoiser(lambda x, t: point.expand(x.shape), sf.VPCosine(), prediction="sample", shape=(2,))
    x = sf.sample(model, n=5, solver="lcm", grid=sf.Grid((0.9, 0.5, 0.2, 0.0)), end="path").x
    torch.testing.assert_close(x, point.expand(5, 2))


@pytest.mark.parametrize(("name", "option"), [
    ("dpmpp-2m", {"order": 3}), ("lms", {"order": 0}), ("deis", {"order": 9}), ("unipc", {"order": 4}),
    ("unipc", {"kind": "bh3"}), ("edm-churn", {"churn": -1}),
])  # fmt: skip
def test_options_out_of_range_are_refused(name, option):
    with pytest.raises(sf.InputError, match=name):
        solvers.get(name, **option)


def test_options_behind_a_name_are_read_by_the_types_of_the_solver():
    for text, wanted in {
        "euler": sf.Euler(), "ddim:eta=0.5": sf.DDIM(eta=0.5), "ees25:coordinates=noise,x=0.2": sf.EES25("noise", 0.2),
        "rex-rk4:coupling=auto": solvers.get("rex-rk4", coupling="auto"),
        "edict:alternate=false": solvers.get("edict", alternate=False),
        "dpmpp-2m-sde:eta=0.3": solvers.get("dpmpp-2m-sde", eta=0.3),
    }.items():  # fmt: skip
        name, options = solvers.parse(text)
        assert solvers.get(name, **options) == wanted
    for name in solvers.registry.built_in():
        assert solvers.parse(name) == (name, {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ddim:et=1", "no option 'et'; it takes eta, inverse_time"),
        ("ddim:eta=much", "eta: got 'much', expected a number"),
        ("ddim:eta", "expected a name with options"), ("dim", "did you mean 'ddim'"), ("tuned", "unknown solver"),
        ("fast.json", "unknown solver"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_read_are_refused(text, words):
    with pytest.raises(sf.InputError, match=words):
        solvers.parse(text)


@pytest.mark.parametrize("name", ["heun", "rk4", "tsit5"])
def test_stages_at_clean_data_keep_the_order_up_to_the_end_of_flow_paths(name):
    """A step that ends at sigma = 0 asks flow and v models there, instead of ending with a step of first order."""
    model = sf.GaussianMixture.grid(2, std=0.3, dtype=torch.float64).denoiser(sf.RectifiedFlow())
    x = sf.sample(model, n=64, solver="rk4", steps=400, grid="uniform", end="path").x.double()
    errors = []
    for steps in (20, 40):
        back = sf.reconstruct(
            model, x, solver=name, grid=sf.Grid(tuple(0.9 - 0.9 * k / steps for k in range(steps + 1)))
        )
        errors.append((back.x - x).norm().item())
    order = sf.solvers.get(name).properties.order
    assert np.log2(errors[0] / errors[1]) > order - 0.5
    plain = sf.Denoiser(lambda x, t: torch.zeros_like(x), sf.RectifiedFlow(), prediction="sample")
    assert not plain.defined_at_zero_noise
    assert sf.sample(plain, x=x, solver=name, steps=4, end="path").x.isfinite().all()


def test_a_model_that_answers_in_two_ways_within_a_step_is_refused():
    schedule = sf.VPCosine()
    stepper = sf.Stepper(sf.Heun(), schedule, sf.grids.make("uniform", schedule, 2), torch.ones(1, 2))

    def answered(kind):
        x, t = stepper.query
        return sf.Prediction(x, x, kind, schedule.alpha(t), schedule.sigma(t))

    stepper.feed(answered("epsilon"))
    with pytest.raises(sf.InputError, match="epsilon, then v_prediction"):
        stepper.feed(answered("v_prediction"))
