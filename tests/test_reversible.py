"""Exactly reversible methods: the round trip, the second state, determinants and stability intervals."""

import math

import numpy as np
import pytest
import torch

import steadyflow as sf
from oracles import field_model
from steadyflow import solvers
from steadyflow._integrate import drive
from steadyflow.solvers.base import Step, each_step

EXACT = [n for n in solvers.names() if solvers.get(n).properties.inverse == "exact" and n != "implicit-midpoint"]
COUPLED = [n for n in EXACT if "coupling" in solvers.get(n).spec()]


@pytest.fixture(scope="module")
def model():
    mixture = sf.GaussianMixture.grid(5, std=0.3)
    return mixture.denoiser(sf.VPScaledLinear())


@pytest.fixture(scope="module")
def points(model):
    return model.mixture.sample(64, seed=1)


def steps_at_48(solver):
    return 48 // solver.properties.evaluations


@pytest.mark.parametrize("coupling", ["default", "auto"])
@pytest.mark.parametrize("name", EXACT)
def test_the_round_trip_is_exact_to_rounding_at_48_evaluations(name, coupling, model, points):
    if coupling == "auto" and (name not in COUPLED or solvers.get(name).properties.stochastic):
        coupling = "default"
    solver = solvers.get(name) if coupling == "default" else solvers.get(name, coupling="auto")
    double = sf.reconstruct(model, points, solver=solver, steps=steps_at_48(solver))
    assert double.error.max() < 1e-12
    single = sf.reconstruct(model, points.float(), solver=solver, steps=steps_at_48(solver))
    assert single.error.median() < 1e-4


@pytest.mark.parametrize("path", [sf.VPCosine(), sf.VE(), sf.RectifiedFlow(t_min=0.01, t_max=0.99)], ids=repr)
@pytest.mark.parametrize("name", EXACT)
def test_the_round_trip_is_exact_on_every_path(name, path):
    mixture = sf.GaussianMixture.grid(3, std=0.4)
    solver = solvers.get(name)
    back = sf.reconstruct(mixture.denoiser(path), mixture.sample(32), solver=solver, steps=steps_at_48(solver))
    assert back.error.max() < 1e-10 * max(1.0, back.inversion.latent.std().item())


@pytest.mark.parametrize("name", EXACT)
def test_dropping_the_second_state_breaks_exactness(name, model, points):
    solver = solvers.get(name)
    inversion = sf.invert(model, points, solver=solver, steps=steps_at_48(solver))
    exact = (inversion.decode().x - points).abs().max()
    alone = sf.sample(model, x=inversion.latent, solver=solver, grid=inversion.grid.reversed(), seed=inversion.seed)
    assert (alone.x - points).abs().max() > 1e6 * exact


@pytest.mark.parametrize("name", EXACT)
def test_a_saved_inversion_carries_the_second_state(name, model, points, tmp_path):
    solver = solvers.get(name)
    inversion = sf.invert(model, points, solver=solver, steps=6)
    inversion.save(tmp_path / "inversion.safetensors")
    loaded = sf.Inversion.load(tmp_path / "inversion.safetensors", model)
    assert torch.equal(loaded.decode().x, inversion.decode().x)


def test_implicit_midpoint_comes_back_to_its_tolerance_and_is_symmetric(model, points):
    back = sf.reconstruct(model, points, solver="implicit-midpoint", steps=24)
    assert back.error.max() < 1e-9
    coarse = sf.reconstruct(model, points, solver=solvers.get("implicit-midpoint", tolerance=1e-3), steps=24)
    assert coarse.error.median() < 1e-2
    assert back.error.max() < coarse.error.max() < 0.2  # between two modes the iteration hardly contracts


def test_implicit_midpoint_gives_a_sample_the_same_in_any_batch(model, points):
    """Each sample stops by itself, also one that takes many more rounds than the others."""
    x = torch.cat([points[:3], 30.0 * points[:1]])
    together = sf.sample(model, x=x, solver="implicit-midpoint", steps=12, end="path").x
    alone = torch.cat([sf.sample(model, x=row[None], solver="implicit-midpoint", steps=12, end="path").x for row in x])
    assert torch.allclose(together, alone, rtol=1e-14, atol=1e-14)


def test_implicit_midpoint_says_where_it_does_not_converge():
    model = field_model("noise", lambda tau, y: 40.0 * y)
    with pytest.raises(sf.ConvergenceError, match=r"at t = 1\.5 the fixed point still moved by"):
        sf.sample(
            model,
            x=torch.ones(1, 2, dtype=torch.float64),
            solver=sf.solvers.get("implicit-midpoint", coordinates="noise"),
            grid=sf.Grid((2.0, 1.0)),
        )


def step_matrix(solver, z, neighbours=3):
    """The 2 x 2 matrix of one sampling step of size h = -1 on dx/dsigma = -z x, in the noise coordinates.

    On the variance-exploding path alpha = 1, so that model space is the noise coordinates.
    """
    model = field_model("noise", lambda tau, y: -z * y)
    step = Step.between(model.schedule, neighbours + 0.0, neighbours - 1.0, 0, 1)
    columns = []
    for x, y in ((1.0, 0.0), (0.0, 1.0)):
        one = torch.full((1, 2), x, dtype=torch.float64)
        two = torch.full((1, 2), y, dtype=torch.float64)
        start = type(solver.start(one, model.schedule, step.t0))
        if start.__name__ == "Pair":
            state = start(one, two)
        elif start.__name__ == "Neighbours":
            state = start(one, two, neighbours + 1.0)
        elif solver.name == "alf":
            state = start(one, None, two)
        else:  # reversible Heun: the auxiliary state, and the slope there
            state = start(one, two, -z * two)
        state, _ = drive(solver.step(state, step), model)
        second = state[2] if solver.name == "alf" else state[1]
        columns.append([state[0][0, 0].item(), second[0, 0].item()])
    return np.array(columns).T, step


MATRICES = [
    ("rex-euler", {"coupling": 0.9}), ("rex-euler", {"coupling": 0.999}), ("rex-midpoint", {"coupling": 0.9}),
    ("rex-rk4", {"coupling": 0.7}), ("edict", {"coupling": 0.93}), ("edict", {"coupling": 0.93, "alternate": False}),
    ("bdia", {"coupling": 0.96}), ("belm", {}), ("reversible-heun", {}), ("alf", {}), ("alf", {"damping": 0.85}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), MATRICES, ids=str)
@pytest.mark.parametrize("z", [-0.7, -0.05, 0.3])
def test_the_determinant_of_the_step_map_is_the_declared_one(name, options, z):
    solver = solvers.get(name, **options)
    matrix, step = step_matrix(solver, z)
    assert abs(np.linalg.det(matrix)) == pytest.approx(abs(solver.determinant(step)), abs=1e-10)


def radius(name, options, z):
    return np.abs(np.linalg.eigvals(step_matrix(solvers.get(name, **options), z)[0])).max()


@pytest.mark.parametrize(("name", "options", "interval"), [
    ("rex-euler", {"coupling": 0.9}, 0.1), ("rex-euler", {"coupling": 0.5}, 0.5),
    ("rex-euler", {"coupling": 0.999}, 0.001),
    ("rex-midpoint", {"coupling": 0.9}, 0.1056), ("rex-rk4", {"coupling": 0.9}, 0.1054),
    ("edict", {"coupling": 0.93, "alternate": False}, 0.14450), ("edict", {"coupling": 0.5, "alternate": False}, 1.0),
    ("bdia", {"coupling": 0.96}, 2 * 0.04 / 1.96), ("bdia", {"coupling": 0.5}, 2 / 3),
    ("alf", {"damping": 0.85}, 2 * 0.15 / 0.85), ("alf", {"damping": 0.75}, 2 / 3),
])  # fmt: skip
def test_the_real_stability_interval_is_the_closed_form_one(name, options, interval):
    assert radius(name, options, -interval + min(1e-4, 0.1 * interval)) <= 1 + 1e-9
    assert radius(name, options, -interval - 1e-4) > 1
    declared = solvers.get(name, **options).properties.real_interval
    if declared is not None:
        assert declared == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize(("name", "options"), [("reversible-heun", {}), ("alf", {}), ("belm", {})])
def test_undamped_methods_contract_nothing(name, options):
    for z in (-0.01, -0.1, -0.5):
        assert radius(name, options, z) > 1
    assert solvers.get(name, **options).properties.real_interval == 0.0


def test_auto_coupling_of_rex_euler_follows_the_strongest_contraction_of_every_leg():
    """Its interval 1 - zeta is then exactly |z| = 1 - chi1 / chi0, the contraction off the data manifold."""
    schedule = sf.VPScaledLinear()
    solver = solvers.get("rex-euler", coupling="auto")
    for step in each_step(schedule, sf.grids.make("quadratic", schedule, 24)):
        z = 1 - schedule.ratio(step.t1) / schedule.ratio(step.t0)
        assert 1 - solver.determinant(step) == pytest.approx(z, abs=1e-12)
    growth = solver.inverse_growth(schedule, sf.grids.make("uniform", schedule, 24))
    assert growth == pytest.approx(schedule.ratio(schedule.t_max) / schedule.ratio(schedule.t_min), rel=1e-9)


@pytest.mark.parametrize(("name", "coupling", "steps"), [("bdia", 0.5, 48), ("edict", 0.5, 24), ("rex-euler", 0.5, 48)])
def test_a_coupling_whose_inverse_drowns_in_rounding_is_refused_with_its_growth(name, coupling, steps, model, points):
    solver = solvers.get(name, coupling=coupling)
    growth = solver.inverse_growth(model.schedule, sf.grids.make("quadratic", model.schedule, steps))
    assert math.log(growth) == pytest.approx(-steps * math.log(coupling) * (2 if name == "edict" else 1), rel=0.2)
    with pytest.raises(sf.InputError, match=r"amplify rounding errors .*e\+\d+ times"):
        sf.invert(model, points.float(), solver=solver, steps=steps)


@pytest.mark.parametrize("coupling", [0.0, -0.5, 1.5, float("nan"), "tight"])
@pytest.mark.parametrize("name", ["rex-euler", "edict", "bdia"])
def test_couplings_out_of_range_are_refused(name, coupling):
    with pytest.raises(sf.InputError, match=r"coupling .* expected a number in \(0, 1\]"):
        solvers.get(name, coupling=coupling)


@pytest.mark.parametrize("name", ["rex-euler", "reversible-heun", "alf", "edict", "bdia", "belm"])
def test_a_singular_end_is_refused_by_name(name):
    model = sf.GaussianMixture.grid(3, std=0.3).denoiser(sf.RectifiedFlow())
    with pytest.raises(sf.SingularTimeError, match="t_max"):
        sf.invert(model, torch.zeros(2, 2, dtype=torch.float64), solver=name, steps=8, t_min=0.01)


def test_rex_in_the_flow_variable_crosses_both_ends_of_a_flow_path_exactly():
    mixture = sf.GaussianMixture.grid(3, std=0.4)
    model = mixture.denoiser(sf.RectifiedFlow())
    x = mixture.sample(32)
    for method in ("euler", "midpoint", "rk4"):
        solver = solvers.get(f"rex-{method}", coordinates="flow")
        assert sf.reconstruct(model, x, solver=solver, steps=12).error.max() < 1e-12


def test_shark_follows_the_sde_more_closely_than_euler_maruyama():
    """Spread of Gaussian data after 40 steps, 20,000 samples, averaged over three deviations."""
    mixture = sf.GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), 0.8)
    schedule = sf.VPLinear(t_min=0.05, t_max=0.9)
    model, n = mixture.denoiser(schedule), 20_000
    wanted = (0.8 * schedule.alpha(0.05)) ** 2 + schedule.sigma(0.05) ** 2
    off = {}
    for name in ("rex-sde", "rex-shark"):
        start = sf.noise.initial(3, range(n), (3,), dtype=torch.float64)
        top = ((0.8 * schedule.alpha(0.9)) ** 2 + schedule.sigma(0.9) ** 2) ** 0.5
        x = sf.sample(model, x=top * start, solver=name, steps=40, grid="log-snr", noise="white", end="path").x
        off[name] = (x.var() / wanted - 1).abs().item()
    assert off["rex-shark"] < 0.02 + 5 * (2 / (3 * n)) ** 0.5
    assert off["rex-shark"] < off["rex-sde"]


def test_levy_areas_have_their_variance_and_are_independent_of_the_increment():
    n = 40_000
    source = sf.noise.Brownian(2, range(n), (1,), dtype=torch.float64)
    area, w = source.area(0.3, 0.8), source.increment(0.3, 0.8)
    assert torch.equal(area, source.area(0.8, 0.3))
    assert (area.square().mean() * 12 / 0.5 - 1).abs() < 5 * math.sqrt(2 / n)
    assert (area * w).mean().abs() < 5 * 0.5 / math.sqrt(12 * n)


@pytest.mark.parametrize("options", [{"coordinates": "flow"}, {"coordinates": "noise"}])
def test_shark_is_for_the_data_variable(options):
    with pytest.raises(sf.InputError, match="use 'data'"):
        solvers.get("rex-shark", **options)
