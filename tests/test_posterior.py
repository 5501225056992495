"""Posteriors: operators, each method's formula in closed form, exact laws, and what is refused."""

import json
import math
import warnings

import pytest
import scipy.stats
import torch
from typer.testing import CliRunner

import steadyflow as sf
from steadyflow import operators
from steadyflow.cli import app
from steadyflow.corrections import Posterior
from steadyflow.datasets import arrays

D, M = 4, 3
PATHS = [sf.VPLinear(), sf.VPCosine(), sf.VE(), sf.RectifiedFlow()]
LINEAR = {
    "inpainting": operators.Inpainting(torch.tensor([[True, False, True, True]] * 4)),
    "blur": operators.Blur(0.8),
    "blur, reflected": operators.Blur(kernel=torch.linspace(-0.5, 1.0, 15).view(3, 5), padding="reflect"),
    "blur, circular": operators.Blur(kernel=torch.ones(3, 1) / 3, padding="circular"),
    "downsampling": operators.Downsampling(2),
    "linear": operators.Linear(lambda x: x.flatten(1).cumsum(1)[:, ::2], (2, 4, 4)),
}  # fmt: skip


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


A, Y = random(M, D, seed=1), random(5, M, seed=2)
NOISE = 0.4
GAUSSIAN = sf.GaussianMixture(random(1, D, seed=3), random(1, D, seed=4).abs() + 0.3)
MIXTURE = sf.GaussianMixture(2.0 * random(3, D, seed=5), random(3, D, seed=6).abs() * 0.3 + 0.2, [0.2, 0.5, 0.3])


def state(schedule, share, n=5):
    """A time, its level, and states there of a size that the path has."""
    t = schedule.t_min + share * (schedule.t_max - schedule.t_min)
    level = schedule.at(t)
    return t, level, (level.alpha + level.sigma) * random(n, D, seed=7)


def exact(level, x, y, mean, variance):
    """E[x0 | x_t, y] of a Gaussian, by the precision matrix."""
    prior = torch.diag(1.0 / variance)
    precision = prior + (level.alpha / level.sigma) ** 2 * torch.eye(D, dtype=torch.float64) + A.T @ A / NOISE**2
    right = prior @ mean + (level.alpha / level.sigma**2) * x + y @ A / NOISE**2
    return torch.linalg.solve(precision, right.T).T


# operators


@pytest.mark.parametrize("name", LINEAR)
def test_an_operator_has_its_adjoint_and_its_matrix(name):
    operator, shape = LINEAR[name], (2, 4, 4)
    x = random(3, *shape)
    y = operator(x)
    w = random(*y.shape, seed=1)
    back = operator.transpose(w, shape)
    torch.testing.assert_close((y * w).flatten(1).sum(1), (x * back).flatten(1).sum(1))
    matrix = operator.matrix(shape)
    torch.testing.assert_close(x.flatten(1) @ matrix.T, y.flatten(1))
    torch.testing.assert_close(w.flatten(1) @ matrix, back.flatten(1))
    assert operators.check(operator, shape) == tuple(y.shape[1:])


def test_operators_on_pictures_do_what_they_say():
    x = random(1, 1, 4, 4)
    assert torch.equal(operators.Inpainting(torch.eye(4).bool())(x)[0], x[0, 0].diagonal())
    torch.testing.assert_close(operators.Downsampling(4)(x), x.mean((-1, -2), keepdim=True))
    torch.testing.assert_close(operators.Blur(1.3)(torch.ones(2, 3, 5, 5)), torch.ones(2, 3, 5, 5))
    spike = torch.zeros(1, 1, 5, 5)
    spike[..., 2, 2] = 1.0
    kernel = torch.arange(9.0).view(3, 3)
    torch.testing.assert_close(operators.Blur(kernel=kernel)(spike)[0, 0, 1:4, 1:4], kernel)


REFUSED_OPERATORS = {
    "not linear": (lambda: operators.Linear(lambda x: x**2, (D,))(random(2, D)), "not linear"),
    "an affine one": (lambda: operators.Linear(lambda x: x + 1, (D,))(random(2, D)), "not linear"),
    "another shape": (lambda: operators.Linear(lambda x: x, (D,))(random(2, 3)), "samples of shape"),
    "too large": (lambda: operators.Blur(1.0).matrix((1, 65, 65)), "up to 4096"),
    "no shape": (lambda: operators.Inpainting(torch.eye(4)).transpose(random(2, 3)), "shape: "),
    "no measurement": (lambda: operators.Inpainting(torch.zeros(4)), "mask: "),
    "a mask of greys": (lambda: operators.Inpainting(torch.full((4,), 0.5)), "mask: "),
    "a mask of another shape": (lambda: operators.Inpainting(torch.ones(3))(random(2, 4)), "mask: "),
    "no divisor": (lambda: operators.Downsampling(3)(random(1, 1, 4, 4)), "factor: "),
    "an even kernel": (lambda: operators.Blur(kernel=torch.ones(2, 2)), "kernel: "),
    "neither": (lambda: operators.Blur(), "blur: "),
    "a negative spread": (lambda: operators.Blur(-1.0), "sigma: "),
    "another padding": (lambda: operators.Blur(1.0, padding="mirror"), "padding"),
    "a transpose of what is not linear": (lambda: operators.of(torch.sin).transpose(Y), "not linear"),
    "a matrix of what is not linear": (lambda: operators.of(torch.sin).matrix((2,)), "not linear"),
    "a wide kernel, reflected": (lambda: operators.Blur(3.0, padding="reflect")(random(1, 1, 4, 4)), "reaches over"),
    "nothing": (lambda: operators.of(3), "operator: got 3"),
}


@pytest.mark.parametrize("what", REFUSED_OPERATORS)
def test_an_operator_that_does_not_fit_is_refused_by_name(what):
    make, words = REFUSED_OPERATORS[what]
    with pytest.raises(sf.InputError, match=words):
        make()


# formulas


@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_moment_matching_is_exact_for_a_gaussian(schedule, share):
    """V is the true covariance of x0 given x_t, and with as many rounds as measurements the system is solved."""
    t, level, x = state(schedule, share)
    model = Posterior(A, Y, NOISE, "mmps", iterations=M).of(GAUSSIAN.denoiser(schedule))
    expected = exact(level, x, Y, GAUSSIAN.means[0], GAUSSIAN.std[0] ** 2)
    torch.testing.assert_close(model(x, t).x0, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model(x, t).eps, (x - level.alpha * expected) / level.sigma, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
def test_more_rounds_than_there_are_measurements_change_nothing(schedule):
    t, _, x = state(schedule, 0.5)
    base = MIXTURE.denoiser(schedule)
    few, many = (Posterior(A, Y, NOISE, iterations=k).of(base)(x, t).x0 for k in (M, M + 4))
    torch.testing.assert_close(few, many)


def test_at_alpha_zero_the_estimate_is_that_of_the_data_given_y():
    flow = sf.RectifiedFlow()
    model = Posterior(A, Y, NOISE, iterations=M).of(GAUSSIAN.denoiser(flow))
    x = random(5, D)
    mean = torch.stack([GAUSSIAN.posterior(A, y, NOISE).mean() for y in Y])
    # of order alpha / sigma = 1e-3 where the likelihood is taken
    torch.testing.assert_close(model(x, 1.0).x0, mean, rtol=0, atol=2e-2)
    assert torch.equal(model(x, 0.0).x0, GAUSSIAN.denoiser(flow)(x, 0.0).x0)


@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("variance", [1.0, 2.5])
def test_pseudo_inverse_guidance_is_exact_for_a_normal_prior_of_its_variance(schedule, variance):
    t, level, x = state(schedule, 0.6)
    prior = sf.GaussianMixture(torch.zeros(1, D, dtype=torch.float64), variance**0.5)
    model = Posterior(A, Y, NOISE, "pigdm", prior_variance=variance).of(prior.denoiser(schedule))
    expected = exact(level, x, Y, torch.zeros(D, dtype=torch.float64), torch.full((D,), variance, dtype=torch.float64))
    torch.testing.assert_close(model(x, t).x0, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
def test_dps_is_the_likelihood_whose_variance_is_the_residual_s_own(schedule):
    """For a Gaussian J is diag(alpha s^2 / v), in closed form."""
    t, level, x = state(schedule, 0.5)
    model = GAUSSIAN.denoiser(schedule)
    found = Posterior(A, Y, NOISE, "dps", zeta=0.7).of(model)(x, t).x0
    variance = GAUSSIAN.std[0] ** 2
    jacobian = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
    x0 = model(x, t).x0
    residual = Y - x0 @ A.T
    v = residual.square().mean(1, keepdim=True).clamp_min(NOISE**2)
    expected = x0 + level.sigma**2 / level.alpha * 0.7 * (residual / v) @ A * jacobian
    torch.testing.assert_close(found, expected)


def test_a_nonlinear_operator_s_jacobian_is_taken_at_the_estimate():
    """An affine function is measured as a nonlinear one, and gives what the matrix gives."""
    t, _, x = state(PATHS[0], 0.5)
    model = MIXTURE.denoiser(PATHS[0])
    for method in ("mmps", "dps"):
        plain = Posterior(A, Y, NOISE, method).of(model)(x, t).x0
        shifted = Posterior(lambda v: v @ A.T + 3.0, Y + 3.0, NOISE, method).of(model)(x, t).x0
        torch.testing.assert_close(plain, shifted)


@pytest.mark.parametrize("method", ["dps", "pigdm", "mmps"])
def test_noise_by_entry_is_that_of_measurements_scaled(method):
    """A and y over the noise, measured with noise 1."""
    t, _, x = state(PATHS[0], 0.5)
    model, noise = MIXTURE.denoiser(PATHS[0]), torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    found = Posterior(A, Y, noise, method).of(model)(x, t).x0
    expected = Posterior(A / noise[:, None], Y / noise, 1.0, method).of(model)(x, t).x0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow", "score"])
def test_every_kind_of_prediction_moves_along(prediction):
    schedule = PATHS[0]
    exact_model = MIXTURE.denoiser(schedule)

    def net(x, time):
        found = exact_model(x, float(time[0]))
        level = schedule.at(float(time[0]))
        outputs = {"epsilon": found.eps, "sample": found.x0, "flow": found.flow, "score": found.score}
        return outputs.get(prediction, level.alpha * found.eps - level.sigma * found.x0)

    model = sf.Denoiser(net, schedule, prediction=prediction, shape=(D,), dtype=torch.float64)
    t, _, x = state(schedule, 0.5)
    expected = Posterior(A, Y, NOISE).of(exact_model)(x, t)
    found = Posterior(A, Y, NOISE).of(model)(x, t)
    torch.testing.assert_close(found.x0, expected.x0)
    torch.testing.assert_close(found.eps, expected.eps)


# runs


@pytest.mark.parametrize("method", ["dps", "pigdm", "mmps", "ddrm"])
def test_a_row_of_y_goes_with_its_sample(method):
    """Whatever the batch is cut into, and through `select`."""
    model = MIXTURE.denoiser(sf.VPLinear())
    correction = Posterior(A, Y, torch.tensor([0.4, 0.4, 0.5], dtype=torch.float64), method)
    words = {"solver": "ddim", "steps": 6, "dtype": torch.float64}
    whole = sf.sample(model, n=5, corrections=[correction], **words).x
    parts = sf.sample(model, n=5, corrections=[correction], batch_size=2, **words).x
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-9)
    alone = sf.sample(model, n=1, index=3, corrections=[Posterior(A, Y[3:4], correction.noise, method)], **words).x
    torch.testing.assert_close(whole[3:4], alone, rtol=1e-9, atol=1e-9)
    for n, size in ((3, 1), (12, 5)):
        with pytest.raises(sf.InputError, match=f"y: got 5 measurements for a batch of {n} samples"):
            sf.sample(model, n=n, corrections=[correction], batch_size=size, **words)
    if method == "ddrm":
        with pytest.raises(sf.InputError, match="no change of the model"):
            correction.of(model)
        with pytest.raises(sf.InputError, match="two of method 'ddrm'"):
            sf.sample(model, n=5, corrections=[correction, Posterior(A, Y, 0.5, method)], **words)
        return
    bound = correction.of(model)
    t, _, x = state(sf.VPLinear(), 0.5)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(bound.select(rows)(x[rows], t).x0, bound(x, t).x0[rows])
    torch.testing.assert_close(bound.slice(1, 3)(x[1:3], t).x0, bound(x, t).x0[1:3])


def test_conditions_guidance_smoothing_and_bounds_stay_inside():
    mixture = sf.GaussianMixture(MIXTURE.means, MIXTURE.std, labels=[0, 1, 1])
    model = mixture.denoiser(sf.VPLinear())
    t, _, x = state(sf.VPLinear(), 0.5)
    how = Posterior(A, Y, NOISE)
    for change in (
        lambda m: m.with_condition(torch.tensor([0, 1, 1, 0, 1])),
        lambda m: m.with_condition(1, guidance=2.0),
        lambda m: m.with_condition(0).with_guidance(1.5).slice(0, 5),
        lambda m: m.with_smoothing(0.3),
    ):
        torch.testing.assert_close(change(how.of(model))(x, t).x0, how.of(change(model))(x, t).x0)
    assert how.of(model).cost == 7
    assert how.of(model.with_smoothing(0.3)).cost == 7 * model.with_smoothing(0.3).cost
    bounded = sf.Denoiser(
        lambda x, t: 3.0 * x, sf.VPLinear(), "sample", shape=(D,), dtype=torch.float64, clip=sf.Clip()
    )
    found = how.of(bounded)(x, t)
    free = how.of(sf.Denoiser(lambda x, t: 3.0 * x, sf.VPLinear(), "sample", shape=(D,), dtype=torch.float64))(x, t)
    torch.testing.assert_close(found.x0, free.x0.clamp(-1.0, 1.0))


def test_a_run_follows_the_model_that_a_correction_makes():
    """`corrections=[p]` is `p.of(model)`; the evaluations are counted; a model of its own is not wrapped again."""
    model, how = MIXTURE.denoiser(sf.VPLinear()), Posterior(A, Y, NOISE, iterations=2)
    words = {"n": 5, "solver": "ees25", "steps": 4, "end": "path", "dtype": torch.float64}
    one, other = sf.sample(model, corrections=[how], **words), sf.sample(how.of(model), **words)
    assert torch.equal(one.x, other.x)
    assert one.nfe == other.nfe == 5 * sf.sample(model, **words).nfe
    assert how.of(how.of(model)) is not None
    assert torch.equal(sf.sample(how.of(model), corrections=[how], **words).x, one.x)
    latent = sf.invert(model, MIXTURE.sample(5), steps=4, solver="ees25")
    decoded = latent.decode(corrections=[how])
    assert decoded.nfe == 5 * latent.decode().nfe
    assert not torch.equal(decoded.x, latent.decode().x)


@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
def test_samples_of_a_gaussian_have_its_exact_posterior(schedule):
    """Mean and covariance over 3,000 samples, on every path: all but one in 10^5 exact samplers would pass."""
    n, y = 3000, Y[:1]
    law = GAUSSIAN.posterior(A, y, NOISE)
    run = sf.sample(
        GAUSSIAN.denoiser(schedule), n=n, steps=40, solver="ees25", dtype=torch.float64,
        moments=(GAUSSIAN.means[0], GAUSSIAN.std[0] ** 2), corrections=[Posterior(A, y, NOISE, iterations=M)],
    )  # fmt: skip
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(law.covariance()), (run.x - law.mean()).T, upper=False
    ).T
    assert scipy.stats.chi2.sf(n * float(white.mean(0).square().sum()), D) > 5e-6
    # of the sum of squares of n D independent normal numbers, and of the off-diagonal covariances
    spread = float(white.square().sum())
    assert min(scipy.stats.chi2.sf(spread, n * D), scipy.stats.chi2.cdf(spread, n * D)) > 1e-6
    pairs = torch.cov(white.T)[torch.triu_indices(D, D, 1).unbind()]
    assert float(pairs.abs().max()) < 5.0 / math.sqrt(n)


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-2m", "heun"])
def test_other_solvers_reach_the_same_mean(solver):
    y = Y[:1]
    law = GAUSSIAN.posterior(A, y, NOISE)
    how = Posterior(A, y, NOISE, iterations=M)
    run = sf.sample(
        GAUSSIAN.denoiser(sf.VPLinear()), n=1000, steps=60, solver=solver, dtype=torch.float64, corrections=[how]
    )
    error = (run.x.mean(0) - law.mean()) / law.covariance().diagonal().sqrt()
    assert float(error.abs().max()) < 0.2  # six standard errors of 1/sqrt(1000)


def test_ddrm_is_the_paper_s_update():
    """A diagonal operator, for which the singular vectors are the axes; the three cases by hand."""
    schedule, eta, eta_b = sf.VE(), 0.7, 0.9
    scales = torch.tensor([2.0, 0.05, 0.0, 0.0], dtype=torch.float64)
    matrix = torch.diag(scales)[:2]
    y = torch.tensor([[0.6, 0.02]], dtype=torch.float64)
    noise, model = 0.1, MIXTURE.denoiser(schedule)
    grid = sf.Grid((2.0, 1.0))
    x = 2.0 * random(1, D)
    how = Posterior(matrix, y, noise, "ddrm", eta=eta, eta_b=eta_b)
    source = sf.noise.White.of(x, 5)
    found = sf.integrate(model, x, grid, sf.DDIM(), corrections=[how], noise=source).x
    z = sf.noise.like(x, 5, sf.noise.RENOISING, (1, 0, 2))
    guess = model(x, 2.0)
    x0, error, chi = guess.x0, guess.eps, 1.0
    seen = y[0] / scales[:2]
    tau = noise / scales[:2]  # 0.05 and 2: what is measured well, and little
    expected = x0 + math.sqrt(1.0 - eta**2) * chi * error + eta * chi * z
    expected[0, 0] = (1 - eta_b) * x0[0, 0] + eta_b * seen[0] + torch.sqrt(chi**2 - tau[0] ** 2 * eta_b**2) * z[0, 0]
    expected[0, 1] = x0[0, 1] + math.sqrt(1.0 - eta**2) * chi * (seen[1] - x0[0, 1]) / tau[1] + eta * chi * z[0, 1]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
def test_ddrm_fits_what_is_measured(schedule):
    y = A @ MIXTURE.sample(1)[0]
    how = Posterior(A, y[None], 0.05, "ddrm")
    words = {"n": 200, "steps": 40, "solver": "ddim", "dtype": torch.float64}
    words["grid"] = "kl-optimal" if isinstance(schedule, sf.VE) else "quadratic"
    run = sf.sample(MIXTURE.denoiser(schedule), **words, corrections=[how])
    assert run.nfe == 40
    assert how.misfit(run.x).median() < 2.0


@pytest.mark.parametrize("method", ["dps", "pigdm", "mmps"])
@pytest.mark.parametrize("operator", ["matrix", "function"])
def test_gradients_through_a_run_are_exact(method, operator):
    """Against central differences, in the start and in y."""
    if (method, operator) == ("pigdm", "function"):
        return
    model = MIXTURE.denoiser(sf.VPCosine())
    given = A if operator == "matrix" else lambda v: torch.tanh(v @ A.T)

    def end(x, y):
        grid = sf.grids.make("uniform", model.schedule, 3)
        how = Posterior(given, y, NOISE, method)
        return (sf.integrate(how.of(model), x, grid, sf.DDIM()).x * random(1, D, seed=9)).sum()

    x, y = random(1, D, seed=8).requires_grad_(), Y[:1].clone().requires_grad_()
    found = torch.autograd.grad(end(x, y), (x, y))
    for k, (name, value) in enumerate((("x", x), ("y", y))):
        direction = random(*value.shape, seed=10)
        step = 1e-5
        moved = [{"x": x.detach(), "y": y.detach(), name: value.detach() + s * step * direction} for s in (1, -1)]
        difference = (end(**moved[0]) - end(**moved[1])) / (2 * step)
        assert float((found[k] * direction).sum()) == pytest.approx(float(difference), rel=1e-5), name


def test_without_gradients_nothing_keeps_a_graph():
    model = Posterior(A, Y, NOISE).of(MIXTURE.denoiser(sf.VPLinear()))
    t, _, x = state(sf.VPLinear(), 0.5)
    assert not model(x, t).x0.requires_grad
    with torch.no_grad():
        assert torch.equal(model(x, t).x0, model(x.clone().requires_grad_(), t).x0)


def test_a_time_per_sample_is_taken():
    schedule = sf.VPLinear()
    model = Posterior(A, Y, NOISE).of(MIXTURE.denoiser(schedule))
    x, times = random(5, D), torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    each = [model.slice(k, k + 1)(x[k : k + 1], float(times[k])).x0 for k in range(5)]
    torch.testing.assert_close(model(x, times).x0, torch.cat(each))


# exact posteriors


def test_the_posterior_of_a_mixture_is_bayes_rule_on_a_fine_grid():
    prior = sf.GaussianMixture(random(3, 2, seed=1), [[0.5, 0.3], [0.2, 0.4], [0.6, 0.6]], [0.2, 0.3, 0.5])
    matrix, y, noise = torch.tensor([[1.0, -0.5]], dtype=torch.float64), torch.tensor([0.3]), 0.2
    law = prior.posterior(matrix, y, noise)
    axis = torch.linspace(-6.0, 6.0, 601, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    joint = prior.log_prob(points).exp() * torch.exp(-0.5 * ((0.3 - points @ matrix[0]) / noise) ** 2)
    cell = (axis[1] - axis[0]) ** 2
    density = joint / (joint.sum() * cell)
    torch.testing.assert_close(law.log_prob(points).exp(), density, rtol=1e-6, atol=1e-9)
    mean = (density[:, None] * points).sum(0) * cell
    torch.testing.assert_close(law.mean(), mean, rtol=1e-6, atol=1e-9)
    away = points - mean
    torch.testing.assert_close(law.covariance(), (density * away.T) @ away * cell, rtol=1e-6, atol=1e-9)


def test_samples_of_an_exact_posterior_have_its_moments():
    law = MIXTURE.posterior(operators.Matrix(A), Y[0], torch.tensor([0.3, 0.4, 0.5]))
    x = law.sample(20_000, seed=2)
    error = (x.mean(0) - law.mean()) / (law.covariance().diagonal() / len(x)).sqrt()
    assert float(error.abs().max()) < 5.0
    torch.testing.assert_close(torch.cov(x.T), law.covariance(), rtol=0.1, atol=0.03)
    assert torch.equal(law.sample(3, seed=2, index=5), x[5:8])
    assert law.log_prob(x).mean() > law.log_prob(x + 0.5).mean()


# the command


def test_a_picture_is_restored_from_what_was_measured(tmp_path, monkeypatch):
    """The missing pixels of a held-out digit; what was measured stays within its noise, and the samples differ."""
    monkeypatch.chdir(tmp_path)
    truth = sf.datasets.digits("held-out")[0][7:8]
    hole = torch.full((1, 1, 8, 8), -1.0)
    hole[..., 2:6, 2:6] = 1.0
    arrays.write("hole.png", hole)
    arrays.write("holed.npy", truth.where(hole < 0, 0.3))
    words = ["restore", "holed.npy", "--mask", "hole.png", "--noise", "0.05", "--steps", "20", "--json"]
    done = CliRunner().invoke(app, [*words, "--samples", "3", "--out", "restored.npy"])
    assert done.exit_code == 0, done.exception
    x = arrays.read(tmp_path / "restored.npy", (1, 8, 8))
    away = (x - truth).abs()
    assert away[:, hole[0] < 0].max() < 0.25  # five spreads
    assert x[:, hole[0] > 0].std(0).max() > 0.05
    assert (x[:, hole[0] > 0] - 0.3).abs().mean() > 0.1  # what stood there did not count
    figures = json.loads(done.stdout)
    assert figures["evaluations"] == 20 * 7
    assert 0.2 < figures["misfit"] < 2.0
    refused = CliRunner().invoke(app, [*words, "--out", "restored.xyz"])
    assert str(refused.exception).startswith("out: ")


def test_a_picture_that_is_damaged_first_is_compared_with_what_it_was():
    words = ["restore", "--damage", "--task", "superres", "--label", "3", "--steps", "10", "--json"]
    figures = []
    for more in ([], ["--noise", "1.0"]):
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 0, done.exception
        figures.append(json.loads(done.stdout))
    assert figures[0]["psnr of the mean"] > figures[0]["psnr"] > 8.0
    assert figures[0]["psnr of the mean"] > figures[1]["psnr of the mean"]


def test_a_model_of_latents_decodes_first():
    """The gradient passes through the decoder, and the decoded samples fit what was measured of a picture."""
    pytest.importorskip("diffusers")
    from steadyflow.loading import load_model

    model = load_model("ink")
    operator = operators.Downsampling(4)
    y = operator(model.decode(sf.sample(model.with_condition("a handwritten seven"), n=1, steps=4).x)).detach()
    how = Posterior(lambda z: operator(model.decode(z)), y, 0.2, "mmps", iterations=1)
    words = {"n": 1, "steps": 5, "solver": "ddpm", "seed": 3}
    plain, run = (sf.sample(model.with_condition("a handwritten seven"), corrections=c, **words) for c in ([], [how]))
    assert how.misfit(run.x) < 0.5 * how.misfit(plain.x)


# checks


def test_the_misfit_of_exact_samples_is_a_chi_square():
    """Over truths, measurements and samples of their exact posteriors (KS test, p > 1e-4)."""
    truth = MIXTURE.sample(300, seed=4)
    y = truth @ A.T + NOISE * random(300, M, seed=11)
    x = torch.cat([MIXTURE.posterior(A, row, NOISE).sample(1, index=k) for k, row in enumerate(y)])
    how = Posterior(A, y, NOISE)
    assert scipy.stats.kstest(how.misfit(x).numpy() * M, scipy.stats.chi2(M).cdf).pvalue > 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(how.check(x), how.misfit(x))


@pytest.mark.parametrize(("declared", "words"), [(0.1, "do not explain y"), (2.0, "declared too large")])
def test_a_noise_that_is_not_the_measurement_s_is_reported(declared, words):
    truth = MIXTURE.sample(100, seed=4)
    y = truth @ A.T + NOISE * random(100, M, seed=11)
    with pytest.warns(UserWarning, match=words):
        Posterior(A, y, declared).check(truth)


def run(how, model=None, **words):
    model = MIXTURE.denoiser(sf.VPLinear()) if model is None else model
    return sf.sample(model, n=5, **{"steps": 2, "solver": "ddim", "dtype": torch.float64, **words}, corrections=[how()])


def measured(function):
    return run(lambda: Posterior(function, random(5, D), NOISE))


def inverted(how):
    return sf.invert(MIXTURE.denoiser(sf.VPLinear()), MIXTURE.sample(5), steps=2, corrections=[how])


PLAIN = sf.Denoiser(lambda x, t: x.detach() * 0.5, sf.VPLinear(), shape=(D,), dtype=torch.float64)
BAD_Y = Y.clone()
BAD_Y[3, 1] = math.nan
REFUSED = {
    "y of another shape": (lambda: run(lambda: Posterior(A, Y[:, :2], NOISE)), r"y: got measurements of shape \(2,\)"),
    "y of another batch": (lambda: run(lambda: Posterior(A, Y[:3], NOISE)), "y: got 3 measurements for a batch of 5"),
    "y without a batch": (lambda: Posterior(A, Y[0], NOISE), r"y: got shape \(3,\)"),
    "NaN in y": (lambda: Posterior(A, BAD_Y, NOISE), r"y: NaN or infinity in measurement\(s\) 3"),
    "y of integers": (lambda: Posterior(A, torch.ones(2, M).long(), NOISE), "y: got torch.int64"),
    "no noise": (lambda: Posterior(A, Y, 0.0), "noise: got 0.0"),
    "negative noise": (lambda: Posterior(A, Y, torch.tensor([0.1, -0.1, 1.0])), "noise: got a number that is not"),
    "infinite noise": (lambda: Posterior(A, Y, math.inf), "noise: got inf"),
    "noise of another shape": (lambda: Posterior(A, Y, torch.ones(2)), r"noise: got shape \(2,\)"),
    "an operator that mixes the batch": (lambda: measured(lambda x: x - x.mean(0)), "depends on the others"),
    "an operator of one batch": (lambda: measured(lambda x: x[:1]), "operator: returned shape"),
    "an operator without x": (lambda: measured(torch.ones_like), "does not depend on x"),
    "an operator that detaches": (lambda: measured(torch.detach), "does not depend on x"),
    "a function for pigdm": (lambda: Posterior(torch.sin, Y, NOISE, "pigdm"), "operator: method 'pigdm' needs"),
    "a function for ddrm": (lambda: Posterior(torch.sin, Y, NOISE, "ddrm"), "operator: method 'ddrm' needs"),
    "another method": (lambda: Posterior(A, Y, NOISE, "mmpss"), "unknown method"),
    "an option of another method": (lambda: Posterior(A, Y, NOISE, "dps", iterations=3), "iterations: has no meaning"),
    "no strength": (lambda: Posterior(A, Y, NOISE, "dps", zeta=0.0), "zeta: got 0.0"),
    "no rounds": (lambda: Posterior(A, Y, NOISE, iterations=0), "iterations: got 0"),
    "eta out of range": (lambda: Posterior(A, Y, NOISE, "ddrm", eta=1.5), "eta: got 1.5"),
    "ddrm with another solver": (lambda: run(lambda: Posterior(A, Y, NOISE, "ddrm"), solver="ees25"), "solver 'ees25'"),
    "ddrm with noise of its own": (lambda: run(lambda: Posterior(A, Y, NOISE, "ddrm"), solver="ddpm"), "solver 'ddpm'"),
    "ddrm with a noise each": (lambda: Posterior(A, Y, torch.rand(5, 1) + 0.1, "ddrm"), "noise: method 'ddrm'"),
    "a model without derivatives": (lambda: run(lambda: Posterior(A, Y, NOISE), PLAIN), "does not depend on the state"),
    "an inversion": (lambda: inverted(Posterior(A, Y, NOISE)), "only valid on the way to data"),
    "a mixture and a nonlinear operator": (lambda: MIXTURE.posterior(torch.sin, Y[0], NOISE), "not linear"),
    "a mixture and y of another shape": (lambda: MIXTURE.posterior(A, Y, NOISE), "y: got shape"),
    "a mixture and no noise": (lambda: MIXTURE.posterior(A, Y[0], 0.0), "noise: "),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_by_name(what):
    make, words = REFUSED[what]
    with pytest.raises(sf.InputError, match=words):
        make()


def test_derivatives_are_refused_where_torch_has_none():
    with torch.inference_mode(), pytest.raises(sf.InputError, match="inference_mode"):
        run(lambda: Posterior(A, Y, NOISE))


@pytest.mark.parametrize("method", ["dps", "pigdm", "mmps"])
def test_gradients_reach_guidance_and_parameters_through_a_posterior(method):
    net = torch.nn.Linear(4 + 2, 4, dtype=torch.float64)

    def run(scale, adjoint):
        model = sf.Denoiser(
            lambda x, t, c: torch.tanh(net(torch.cat([x, c], 1))),
            sf.RectifiedFlow(),
            prediction="flow",
            shape=(4,),
            condition=torch.ones(1, 2, dtype=torch.float64),
            null=torch.zeros(1, 2, dtype=torch.float64),
            guidance=scale,
        )
        x = torch.linspace(-1.0, 1.0, 20, dtype=torch.float64).view(5, 4)
        words = {"corrections": [Posterior(A, Y, NOISE, method)], "solver": "heun", "steps": 4}
        return sf.sample(model, x=x, adjoint=adjoint, **words).x.sin().sum()

    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        ahead, behind = (run(scale + h, None) for h in (1e-6, -1e-6))
    for adjoint in ("none", "checkpoint", sf.Adjoint("checkpoint", order=2)):
        slope, *parts = torch.autograd.grad(run(scale, adjoint), [scale, *net.parameters()])
        assert slope.item() == pytest.approx(((ahead - behind) / 2e-6).item(), rel=1e-4)
        if adjoint == "none":
            plain = parts
        for found, expected in zip(parts, plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_model_around_another_is_told_from_one_of_another_measurement():
    from steadyflow.denoisers import fingerprint
    from steadyflow.identity import identify

    base = MIXTURE.denoiser(sf.VPLinear())
    other = sf.GaussianMixture(MIXTURE.means + 1.0, MIXTURE.std).denoiser(sf.VPLinear())
    made = [
        Posterior(A, Y, NOISE).of(base),
        Posterior(A, Y + 1.0, NOISE).of(base),
        Posterior(A, Y, 2.0 * NOISE).of(base),
        Posterior(A, Y, NOISE, "dps").of(base),
        Posterior(A, Y, NOISE, iterations=2).of(base),
        Posterior(2.0 * A, Y, NOISE).of(base),
        Posterior(A, Y, NOISE).of(other),
        base,
    ]
    for told in (fingerprint, lambda model: str(identify(model).parts)):
        assert len({told(model) for model in made}) == len(made)
        assert told(Posterior(A, Y, NOISE).of(base)) == told(made[0])


def test_samples_at_the_clean_end_are_left_as_they_are():
    model = MIXTURE.denoiser(sf.RectifiedFlow())
    bound = Posterior(A, Y, NOISE).of(model)
    _, _, x = state(sf.RectifiedFlow(), 0.5)
    times = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.0], dtype=torch.float64)
    found = bound(x, times).output
    assert found.isfinite().all()
    torch.testing.assert_close(found[::2], model(x, 0.0).output[::2])
