"""Promises that hold for all verbs: no graph unless asked for, nothing ignored, errors of ours at the edges."""

import math

import pytest
import torch

import steadyflow as sf
from oracles import adaptive
from steadyflow.diagnostics import contractivity, stiffness
from steadyflow.jacobians import FlowMap

PATH = sf.VPCosine()


@pytest.fixture(scope="module")
def trainable():
    """A network whose parameters require gradients, as one in training has them."""
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 2)
    return sf.Denoiser(
        lambda x, t, c=None: net(x), PATH, prediction="v_prediction", shape=(2,), dtype=torch.float32, null=0
    )


X = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
GRID = sf.grids.make("uniform", PATH, 3)
VERBS = {
    "sample": lambda m: sf.sample(m, n=3, steps=3).x,
    "invert": lambda m: sf.invert(m, X, steps=3).latent,
    "adaptive": lambda m: adaptive(m, X, rtol=1e-2).x,
    **{
        name: lambda m, name=name: sf.edit(m, X, 1, method=name, steps=3).x
        for name in sf.editing.names()
        if name != "noise-maps" and not isinstance(sf.editing.get(name), sf.editing.injection.Injected)
    },
    "noise-maps": lambda m: sf.editing.noise_maps(m, X, steps=3).maps,
    "log_likelihood": lambda m: sf.log_likelihood(m, X, steps=3).value,
    "flow map": lambda m: FlowMap(m, GRID, sf.RK4())(X),
    "stiffness": lambda m: stiffness(m, X, GRID).z,
    "contractivity": lambda m: contractivity(m, X, GRID).lipschitz,
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_keeps_a_graph_where_only_the_network_requires_gradients(trainable, verb):
    assert not VERBS[verb](trainable).requires_grad


@pytest.mark.parametrize("verb", ["flow map", "adaptive"])
def test_gradients_flow_where_the_start_requires_them(trainable, verb):
    x = X.clone().requires_grad_()
    out = FlowMap(trainable, GRID, sf.RK4())(x) if verb == "flow map" else adaptive(trainable, x).x
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.abs().sum() > 0


def test_the_likelihood_evaluates_the_model_as_often_as_it_says():
    calls = [0]
    mixture = sf.GaussianMixture.grid(2).denoiser(PATH)

    def net(x, t):
        calls[0] += 1
        return mixture(x, float(t[0])).output

    model = sf.Denoiser(net, PATH, prediction="v_prediction", shape=(2,))
    found = sf.log_likelihood(model, mixture.mixture.sample(4), steps=8)
    assert found.nfe == calls[0] == 32


@pytest.mark.parametrize("path", [sf.RectifiedFlow(), sf.VPCosine(), sf.VE()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("s_max", [50.0, math.inf])
@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
def test_churn_reaches_both_ends_of_every_path(path, s_max, grid):
    model = sf.GaussianMixture.grid(2, dtype=torch.float32).denoiser(path)
    out = sf.sample(model, n=5, solver=sf.solvers.get("edm-churn", s_max=s_max), steps=10, grid=grid)
    assert out.x.isfinite().all()


def test_rex_for_sdes_refuses_a_coupling_that_follows_an_ode():
    with pytest.raises(sf.InputError, match="auto"):
        sf.solvers.get("rex-sde", coupling="auto")


def test_a_model_that_answers_nan_ends_an_adaptive_solve_soon():
    calls = [0]

    def net(x, t):
        calls[0] += 1
        return x * math.nan

    model = sf.Denoiser(net, PATH, prediction="v_prediction", shape=(2,))
    with pytest.raises(sf.NonFiniteError, match="no step is small enough"):
        adaptive(model, X)
    assert calls[0] < 500


def test_adaptive_runs_are_saved_with_all_they_know(tmp_path):
    run = adaptive(sf.GaussianMixture.grid(2).denoiser(PATH), X.double() * 3, rtol=1e-6, first_step=0.5)
    assert run.rejected > 0
    run.save(tmp_path / "run.safetensors")
    again = sf.Solution.load(tmp_path / "run.safetensors")
    assert (again.rejected, again.nfe, again.grid) == (run.rejected, run.nfe, run.grid)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: sf.integrate(m, X, GRID, sf.RK4(), stop_after=-1), "stop_after"),
        (lambda m: sf.grids.make("karras", PATH, 4, rho=0.0), "rho"),
        (lambda m: sf.grids.make("karras", PATH, 4, rho=-1.0), "rho"),
        (lambda m: sf.edit(m, X, 1, method="flow-edit", grid=GRID, strength=0.5), "strength"),
        (lambda m: sf.editing.noise_maps(m, X, grid=GRID, strength=0.5), "strength"),
        (lambda m: sf.invert(m, X, grid=GRID, strength=0.5), "strength"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, words):
    labelled = sf.GaussianMixture(torch.eye(2), 0.2, labels=torch.tensor([0, 1])).denoiser(PATH)
    with pytest.raises(sf.InputError, match=words):
        call(labelled)


def test_every_round_of_a_restart_draws_noise_of_its_own():
    drawn = []

    original = sf.noise.White._normal

    def listen(self, stream, node):
        value = original(self, stream, node)
        drawn.append(value)
        return value

    sf.noise.White._normal = listen
    try:
        model = sf.GaussianMixture.grid(2, dtype=torch.float32).denoiser(sf.VPLinear())
        restart = sf.corrections.Restart(remaining=2, back=3, rounds=3, solver="ddpm")
        sf.sample(model, n=4, solver="ddpm", steps=8, noise="white", corrections=[restart])
    finally:
        sf.noise.White._normal = original
    assert len(drawn) > 8
    assert all(not torch.equal(a, b) for k, a in enumerate(drawn) for b in drawn[:k])


def test_conditions_and_negatives_per_sample_follow_their_samples_through_batches():
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5]], dtype=torch.float64)
    model = sf.GaussianMixture(means, 0.25, labels=[0, 1, 2]).denoiser(PATH)
    labels, negatives = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 2, 0, 2, 0])
    model = model.with_negative(negatives).with_condition(labels, guidance=2.0)
    options = {"n": 5, "steps": 6, "dtype": torch.float64}
    torch.testing.assert_close(sf.sample(model, batch_size=2, **options).x, sf.sample(model, **options).x)
    few = model.select(torch.tensor([4, 1]))
    assert (few.condition.tolist(), few.null.tolist()) == ([1, 1], [0, 2])


def test_smoothing_acts_on_exact_mixtures_too():
    plain = sf.GaussianMixture.grid(2, std=0.3).denoiser(PATH)
    x = torch.randn(3, 2, dtype=torch.float64)
    smooth = plain.with_smoothing(0.2)
    assert smooth.cost == 2
    assert not torch.equal(smooth(x, 0.4).output, plain(x, 0.4).output)
    assert smooth.with_guidance(1.0).smoothing == smooth.smoothing


def test_a_round_of_a_restart_draws_increments_and_areas_independently():
    from steadyflow.corrections.restart import _Round

    noise = _Round(3, range(20_000), (1,), dtype=torch.float64)
    noise.where = 1
    increment, area = noise.unit(0.3, 0.8), noise.area(0.3, 0.8)
    correlation = torch.corrcoef(torch.stack([increment.flatten(), area.flatten()]))[0, 1]
    assert correlation.abs() < 5 / 20_000**0.5


@pytest.mark.parametrize("correction", [sf.corrections.Restart(8, 2), sf.corrections.Escape(8, 2)])
def test_a_correction_that_could_never_act_is_refused(correction):
    model = sf.GaussianMixture.grid(2).denoiser(sf.VPLinear())
    with pytest.raises(sf.InputError, match="acts with 8 steps left, but the run has 5"):
        sf.sample(model, n=2, solver="ddim", steps=5, corrections=[correction])


def test_a_diagnosis_of_a_part_of_the_way_recommends_for_that_part():
    model = sf.GaussianMixture.grid(2, std=0.3).denoiser(sf.VPLinear())
    x = model.mixture.sample(4)
    grid = sf.Grid((0.5, 0.3, 0.1, 0.001))
    for options in ({"grid": grid}, {"t_max": 0.5, "steps": 3}):
        found = sf.diagnose(model, x, solver="ddim", **options)
        assert "t_min=0.001, t_max=0.5" in found.recommendation.call or "grid=grid" in found.recommendation.call
        assert found.recommendation.setting.ends == (0.001, 0.5)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: sf.Rex("midpiont"), "did you mean 'midpoint'"),
    (lambda: sf.Denoiser(lambda x, t, c: x, PATH, condition=1, guidance=2.0), "no null condition"),
])  # fmt: skip
def test_what_would_fail_in_the_run_fails_before_it(make, message):
    with pytest.raises(sf.InputError, match=message):
        make()


def test_one_sample_whose_fixed_point_diverges_is_noticed_among_many():
    def net(x, t):
        return torch.where(x[:, :1] > 5.0, 30.0, 0.1) * x

    model = sf.Denoiser(net, sf.VE(), shape=(2,))
    x = torch.cat([torch.full((1, 2), 6.0), torch.full((9, 2), 1e-3)]).double()
    solver = sf.solvers.get("aidi", accelerate=False)
    with pytest.raises(sf.ConvergenceError, match="diverges"):
        sf.invert(model, x, solver=solver, grid=sf.Grid((0.5, 1.0)))
