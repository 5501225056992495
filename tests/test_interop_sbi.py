"""sbi's posteriors as models, against sbi: its field, its samplers, its densities, its conditions."""

import math
import pickle

import pytest
import torch

import steadyflow as sf
from steadyflow import schedules
from steadyflow.loading import fingerprint

pytest.importorskip("sbi")
from sbi.inference import NPE, NPSE
from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior
from sbi.neural_nets import posterior_flow_nn, posterior_score_nn
from sbi.neural_nets.estimators.score_estimator import VPScoreEstimator

pytestmark = pytest.mark.filterwarnings("ignore")  # sbi's own, of its trackers and of z-scoring
MEAN, STD, NOISE = torch.tensor([1.0, -2.0]), torch.tensor([1.0, 2.0]), 0.5
PRIOR = torch.distributions.MultivariateNormal(MEAN, torch.diag(STD**2))
SEEN = torch.tensor([[1.5, -3.0]])
BUILDERS = {
    "vp": lambda: posterior_score_nn(sde_type="vp", hidden_features=16, num_layers=2),
    "vp betas": lambda: posterior_score_nn(
        sde_type="vp", hidden_features=16, num_layers=2, beta_min=0.1, beta_max=20.0
    ),
    "subvp": lambda: posterior_score_nn(sde_type="subvp", hidden_features=16, num_layers=2),
    "ve": lambda: posterior_score_nn(sde_type="ve", hidden_features=16, num_layers=2, sigma_max=20.0),
    "flow": lambda: posterior_flow_nn(hidden_features=16, num_layers=2),
    "flow noise": lambda: posterior_flow_nn(hidden_features=16, num_layers=2, noise_scale=0.05),
    "flow baseline": lambda: posterior_flow_nn(hidden_features=16, num_layers=2, gaussian_baseline=True),
}
PATHS = {"vp": sf.VPLinear, "sub": schedules.SubVP, "ve": sf.VE, "flo": schedules.NoisyFlow}
kinds = pytest.mark.parametrize("kind", BUILDERS)


def simulations(n, seed=0):
    torch.manual_seed(seed)
    theta = PRIOR.sample((n,))
    return theta, theta + NOISE * torch.randn_like(theta)


def estimator(kind):
    """With random weights: a field like any other, and built at once."""
    theta, x = simulations(200)
    torch.manual_seed(1)
    return BUILDERS[kind]()(theta, x)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """sbi writes its logs into the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    theta, x = simulations(1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sbi"))
        inference = NPSE(PRIOR, sde_type="vp", show_progress_bars=False)
    inference.append_simulations(theta, x).train(max_num_epochs=25, learning_rate=3e-3)
    return inference.build_posterior().set_default_x(SEEN)


def own_time(est, kind, t):
    """sbi's time at one of ours."""
    return math.log(t / est.sigma_min) / math.log(est.sigma_max / est.sigma_min) if kind == "ve" else t


@kinds
def test_the_path_and_the_field_are_those_of_the_estimator(kind):
    est = estimator(kind)
    model = sf.from_sbi(est, x=SEEN)
    low, high = model.schedule.t_range
    assert type(model.schedule) is next(path for name, path in PATHS.items() if kind.startswith(name))
    assert own_time(est, kind, low) == pytest.approx(est.t_min, abs=1e-7)
    assert own_time(est, kind, high) == pytest.approx(est.t_max)
    theta = torch.randn(50, 2) * 2.0
    for share in (0.01, 0.2, 0.5, 0.77, 0.95):
        t = low * (high / low) ** share if kind == "ve" else low + (high - low) * share
        time = torch.full((50,), own_time(est, kind, t))
        level = model.schedule.at(t)
        assert (level.alpha, level.sigma) == pytest.approx(
            (est.mean_t_fn(time)[0].item(), est.std_fn(time)[0].item()), rel=1e-5, abs=1e-6
        )
        found = model(theta, t)
        score = est.score(theta, SEEN, time[:1])
        # the velocity of sbi's flows belongs to sigma = t + noise_scale; its score leaves out a factor
        factor = 1.0 + est.noise_scale if kind.startswith("flow") else 1.0
        torch.testing.assert_close(found.score * factor, score, rtol=2e-4, atol=2e-4 * float(score.abs().max()))
        if kind.startswith("flow"):
            torch.testing.assert_close(found.flow, est.ode_fn(theta, SEEN, time), rtol=1e-5, atol=1e-5)


@kinds
def test_the_start_is_sbis_base_distribution(kind):
    est, n = estimator(kind), 40_000
    grid = sf.Grid((sf.from_sbi(est).schedule.t_max, 0.999 * sf.from_sbi(est).schedule.t_max))
    step = {"grid": grid, "solver": "ddim", "end": "path", "record": "all", "seed": 4}
    began = sf.sample(sf.from_sbi(est, x=SEEN), n=n, **step).trajectory.x[0]
    top = 1.0 + est.noise_scale if kind.startswith("flow") else 1.0  # what its path has, where sbi starts from 1
    std = est.std_base[0] * top
    # five standard errors of a mean and of a standard deviation: a false alarm has a probability below 1e-5
    assert ((began.mean(0) - est.mean_base[0]).abs() < 5.0 * std / n**0.5).all()
    assert ((began.std(0) / std - 1.0).abs() < 5.0 / (2 * n) ** 0.5).all()


@pytest.mark.parametrize("kind", ["vp", "subvp", "ve", "flow"])
def test_a_fine_solve_is_sbis_own_ode_and_the_density_is_its_log_prob(kind):
    posterior = VectorFieldPosterior(estimator(kind), PRIOR, sample_with="ode")
    est = posterior.vector_field_estimator
    model = sf.from_sbi(posterior, x=SEEN)
    ode = posterior.potential_fn.neural_ode(SEEN)
    torch.manual_seed(2)
    z = est.mean_base + est.std_base * torch.randn(64, 2)
    theirs = ode.transform.inv(z).detach()
    ours = sf.sample(model, x=z, steps=100, solver="rk4", end="path").x
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
    base = None if kind != "flow" else lambda z: torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    density = sf.log_likelihood(model, model.to_state(theirs), steps=64, prior=base).value + model.log_det
    torch.testing.assert_close(density, posterior.log_prob(theirs, x=SEEN), rtol=2e-3, atol=5e-3)


def test_samples_and_densities_of_a_trained_posterior(trained):
    """Against sbi's stochastic sampler of 500 steps, and the exact posterior of the Gaussian simulator."""
    n = 1000
    torch.manual_seed(3)
    theirs = trained.sample((n,), show_progress_bars=False)
    model = sf.from_sbi(trained)
    ours = sf.sample(model, n=n, nfe=20).x
    pooled = torch.cat([ours, theirs])
    for k in range(2):
        at = pooled[:, k].sort().values
        shares = [torch.searchsorted(part[:, k].sort().values, at, right=True) / n for part in (ours, theirs)]
        distance = (shares[0] - shares[1]).abs().max().item()
        # Kolmogorov and Smirnov: equal distributions exceed 0.12 with a probability of 2 exp(-n 0.12^2) = 1e-6
        assert distance < 0.12
    precision = 1.0 / STD**2 + 1.0 / NOISE**2
    exact = (MEAN / STD**2 + SEEN[0] / NOISE**2) / precision
    assert ((ours.mean(0) - exact).abs() < 0.25).all()  # half a standard deviation: what so short a training gives
    theta = exact + torch.randn(20, 2) * 0.3
    density = sf.log_likelihood(model, model.to_state(theta), steps=48).value
    torch.testing.assert_close(density, trained.log_prob(theta), rtol=1e-3, atol=1e-2)


def test_observations_one_for_all_or_one_per_sample():
    est = estimator("vp")
    model = sf.from_sbi(est)
    theta, several = torch.randn(5, 2), torch.randn(5, 2)
    time = torch.full((5,), 0.4)
    torch.testing.assert_close(model.with_condition(several)(theta, 0.4).score, est.score(theta, several, time))
    torch.testing.assert_close(model.with_condition(SEEN[0])(theta, 0.4).score, est.score(theta, SEEN, time))
    torch.testing.assert_close(sf.from_sbi(est, x=several)(theta, 0.4).score, est.score(theta, several, time))
    times = torch.linspace(0.1, 0.9, 5)
    torch.testing.assert_close(model.with_condition(several)(theta, times).score, est.score(theta, several, times))
    whole = sf.sample(model.with_condition(several), n=5, nfe=8).x
    part = sf.sample(model.with_condition(several[3:4]), n=1, index=3, nfe=8).x
    torch.testing.assert_close(whole[3:4], part)
    cut = sf.sample(model.with_condition(several), n=5, nfe=8, batch_size=2).x
    torch.testing.assert_close(whole, cut)


def test_one_observation_is_embedded_once():
    theta, x = simulations(200)
    rows = []

    class Embedding(torch.nn.Linear):
        def forward(self, x):
            rows.append(len(x))
            return super().forward(x)

    est = posterior_score_nn(sde_type="vp", hidden_features=16, embedding_net=Embedding(2, 3))(theta, x)
    model = sf.from_sbi(est, x=SEEN)
    rows.clear()
    model(torch.randn(50, 2), 0.5)
    assert rows == [1]


def test_composed_standardization_is_undone():
    est = estimator("vp")
    est.mean_0.zero_(), est.std_0.fill_(1.0)
    est._mean_base.zero_(), est._theta_shift.copy_(MEAN), est._theta_scale.copy_(STD)
    est._compose_standardization.fill_(True)
    est._std_base.fill_(est.approx_marginal_std(torch.ones(1)).max())
    posterior = VectorFieldPosterior(est, PRIOR, sample_with="ode")
    model = sf.from_sbi(posterior, x=SEEN)
    theta = PRIOR.sample((16,))
    torch.testing.assert_close(model.to_parameters(model.to_state(theta)), theta)
    density = sf.log_likelihood(model, model.to_state(theta), steps=64).value + model.log_det
    torch.testing.assert_close(density, posterior.log_prob(theta, x=SEEN), rtol=2e-3, atol=5e-3)


def test_what_lies_outside_the_prior_is_told():
    from sbi.utils import BoxUniform

    prior = BoxUniform(torch.tensor([0.0, -3.0]), torch.tensor([2.0, 0.0]))
    model = sf.from_sbi(VectorFieldPosterior(estimator("flow"), prior), x=SEEN)
    assert model.within_prior(torch.tensor([[1.0, -1.0], [3.0, -1.0]])).tolist() == [True, False]
    with pytest.raises(sf.InputError, match="within_prior: an estimator has no prior"):
        sf.from_sbi(estimator("flow")).within_prior(SEEN)


def test_a_model_goes_to_another_process():
    for kind in ("ve", "flow"):
        model = sf.from_sbi(estimator(kind), x=SEEN)
        again = pickle.loads(pickle.dumps(model))
        torch.testing.assert_close(again(SEEN, 0.5).score, model(SEEN, 0.5).score)
        assert fingerprint(again) == fingerprint(model)


def test_round_trips_and_adaptive_steps_work_on_a_posterior():
    model = sf.from_sbi(estimator("flow"), x=SEEN)
    theta = sf.sample(model, n=4, nfe=20, end="path").x
    assert sf.reconstruct(model, theta, solver=sf.Rex("midpoint", coordinates="flow"), nfe=24).error.max() < 1e-4
    found = sf.sample(model, n=4, steps=sf.PIDController(rtol=1e-4, atol=1e-4), solver="dopri5", end="path", seed=0)
    torch.testing.assert_close(found.x, sf.sample(model, n=4, nfe=200, end="path").x, rtol=5e-3, atol=5e-3)


def test_refusals(trained):
    est = estimator("vp")
    model = sf.from_sbi(est)
    with pytest.raises(sf.InputError, match=r"condition: the estimator is conditional; give the observation"):
        sf.sample(model, n=1)
    with pytest.raises(sf.InputError, match=r"condition: got an observation of shape \(3,\), expected \(2,\), or one"):
        model.with_condition(torch.zeros(3))
    with pytest.raises(sf.InputError, match="condition: got 'a', expected an observation"):
        model.with_condition("a")
    with pytest.raises(sf.InputError, match="condition: got 3 rows for a batch of 5"):
        model.with_condition(torch.zeros(3, 2))(torch.zeros(5, 2), 0.5)
    with pytest.raises(sf.InputError, match="no null condition"):
        sf.from_sbi(est, x=SEEN).with_guidance(2.0)
    iid = VectorFieldPosterior(est, PRIOR)
    iid.set_default_x(torch.zeros(3, 2))
    with pytest.raises(sf.InputError, match="default_x holds 3 independent observations"):
        sf.from_sbi(iid)
    with pytest.raises(sf.InputError, match="posterior: got NPE_C, expected the VectorFieldPosterior"):
        sf.from_sbi(NPE(PRIOR))

    class Bent(VPScoreEstimator):
        def std_fn(self, times):
            return super().std_fn(times) ** 2

    est.__class__ = Bent
    with pytest.raises(sf.InputError, match="path: Bent is not the path of its class: at t = "):
        sf.from_sbi(est)
