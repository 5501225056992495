"""Jacobians of journeys, instability coefficients, likelihoods and statistics, against dense and exact ones."""

import math

import pytest
import scipy.stats
import torch

import steadyflow as sf
from steadyflow import grids, solvers
from steadyflow.diagnostics import amplification
from steadyflow.jacobians import singular_values
from steadyflow.metrics.statistics import pearson, spearman, wilson

PATHS = {"vp": sf.VPLinear(), "flow": sf.RectifiedFlow(), "ve": sf.VE()}
DETERMINISTIC = [n for n in solvers.names() if not solvers.get(n).properties.stochastic]


def mixture(dim, std=0.4):
    return sf.GaussianMixture.farthest_points(min(6, 5**dim), dim, std=std)


def generation(dim, path="vp", solver="ees25", steps=16, n=4, grid="quadratic"):
    model = mixture(dim).denoiser(PATHS[path])
    times = grids.make(grid, model.schedule, steps)
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    return sf.FlowMap(model, times, solvers.get(solver)), z * model.schedule.sigma(times.times[0])


def noise_like(z, seed=1):
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=z.dtype)


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_both_products_agree_with_autograd_for_every_solver(solver):
    journey, z = generation(3, solver=solver, steps=6, n=2)
    u, w = noise_like(z), noise_like(z, 2)
    x = z.clone().requires_grad_()
    state = journey.solver.start(x, journey.model.schedule, journey.grid.times[0])
    from steadyflow._integrate import drive
    from steadyflow.solvers.base import each_step

    for step in each_step(journey.model.schedule, journey.grid):
        state, _ = drive(journey.solver.step(state, step), journey.model)
    end = journey.solver.output(state)
    (transposed,) = torch.autograd.grad(end, x, w)
    assert torch.allclose(journey.vjp(z, w), transposed, rtol=1e-9, atol=1e-11)
    # <w, J u> = <J^T w, u>
    assert (w * journey.jvp(z, u)).sum().item() == pytest.approx((transposed * u).sum().item(), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize(("dim", "path", "steps"), [(2, "ve", 16), (8, "vp", 12), (8, "flow", 12), (32, "vp", 5)])
def test_coefficients_agree_with_the_dense_jacobian(dim, path, steps):
    journey, z = generation(dim, path, steps=steps)
    u = noise_like(z)
    dense = journey.dense(z)
    stretched = torch.einsum("bij,bj->bi", dense, u)
    expected = stretched.norm(dim=1) / u.norm(dim=1)
    assert torch.allclose(amplification.coefficient(journey, z, u), expected, rtol=1e-9)
    values = torch.linalg.svdvals(dense)
    k = min(3, dim)
    spectrum = singular_values(journey, z, k)
    assert torch.allclose(spectrum.values, values[:, :k], rtol=1e-5)
    first = torch.einsum("bij,bj->bi", dense, spectrum.directions[:, 0])
    assert torch.allclose(first.norm(dim=1), values[:, 0], rtol=1e-5)
    overall, error = amplification.isotropic(journey, z)
    assert torch.allclose(overall, (values.square().mean(1)).sqrt(), rtol=1e-9)
    assert (error == 0).all()


def test_equal_singular_values_are_all_found():
    model = sf.GaussianMixture(torch.zeros(1, 6, dtype=torch.float64), 0.5).denoiser(sf.VPLinear())
    journey = sf.FlowMap(model, grids.make("quadratic", model.schedule, 24), solvers.get("rk4"))
    spectrum = singular_values(journey, torch.ones(2, 6, dtype=torch.float64), 6)
    low, high = model.schedule.t_range
    scale = [math.sqrt((model.schedule.alpha(t) * 0.5) ** 2 + model.schedule.sigma(t) ** 2) for t in (low, high)]
    assert torch.allclose(spectrum.values, torch.full((2, 6), scale[0] / scale[1], dtype=torch.float64), rtol=1e-3)


def test_hutchinson_is_unbiased_within_its_error():
    journey, z = generation(16, n=64, steps=6)
    exact, _ = amplification.isotropic(journey, z)
    drawn, error = amplification.isotropic(journey, z, probes=64)
    scores = (drawn - exact) / error
    assert scores.mean().abs() < 5 / 8  # five standard errors of a mean of 64 standard scores
    assert 0.6 < scores.std() < 1.6


def test_perturbation_jvp_and_closed_form_agree_on_gaussian_data():
    """On N(0, s^2) the map is a multiple of the identity, sqrt(alpha0^2 s^2 + sigma0^2) over the same at t_max."""
    s = 0.5
    model = sf.GaussianMixture(torch.zeros(1, 4, dtype=torch.float64), s).denoiser(sf.VPLinear())
    journey = sf.FlowMap(model, grids.make("quadratic", model.schedule, 64), solvers.get("rk4"))
    z = noise_like(torch.zeros(3, 4, dtype=torch.float64))
    low, high = model.schedule.t_range
    exact = math.sqrt((model.schedule.alpha(low) * s) ** 2 + model.schedule.sigma(low) ** 2) / math.sqrt(
        (model.schedule.alpha(high) * s) ** 2 + model.schedule.sigma(high) ** 2
    )
    u = noise_like(z, 3)
    assert amplification.coefficient(journey, z, u).tolist() == pytest.approx([exact] * 3, rel=1e-3)
    assert amplification.perturbed(journey, z, u, 1e-3).tolist() == pytest.approx([exact] * 3, rel=1e-3)
    found = amplification.sweep(journey, z, u)
    assert found.linear.all()  # a linear map has no other regime
    assert found.coefficient.tolist() == pytest.approx([exact] * 3, rel=1e-3)
    mean, _ = amplification.geometric_mean(model, journey(z), steps=128)
    assert mean.tolist() == pytest.approx([exact] * 3, rel=1e-3)


def test_the_sweep_finds_where_perturbation_and_jacobian_agree():
    journey, z = generation(8, n=6)
    u = noise_like(z)
    exact = amplification.coefficient(journey, z, u)
    found = amplification.sweep(journey, z, u, tolerance=1e-3)
    assert torch.allclose(found.coefficient, exact, rtol=1e-3)
    low, high = found.regime
    assert low < 1e-3 < high
    single = amplification.sweep(
        sf.FlowMap(journey.model, journey.grid, journey.solver), z.float(), u.float(), tolerance=2e-2
    )
    assert torch.allclose(single.coefficient.double(), exact, rtol=2e-2)  # rounding narrows the regime from below
    assert single.linear.sum() < found.linear.numel()


def test_the_geometric_mean_is_the_determinant():
    journey, z = generation(4, steps=96, solver="rk4")
    x = journey(z)
    prior = mixture(4).marginal(journey.model.schedule, journey.grid.times[0])
    logs = torch.linalg.slogdet(journey.dense(z)).logabsdet / 4
    mean, error = amplification.geometric_mean(journey.model, x, steps=96)
    assert torch.allclose(mean.log(), logs, atol=1e-3)
    assert (error == 0).all()
    # and with the exact marginals p(x) |det J| = p(z)
    value = mixture(4).marginal(journey.model.schedule, journey.grid.times[-1]).log_prob(x)
    assert torch.allclose((prior.log_prob(z) - value) / 4, logs, atol=1e-3)


@pytest.mark.parametrize(("path", "dim"), [("vp", 2), ("vp", 8), ("flow", 2), ("flow", 8), ("ve", 2)])
def test_the_likelihood_is_the_mixtures_density(path, dim):
    data, schedule = mixture(dim), PATHS[path]
    low, high = schedule.t_range
    x = data.marginal(schedule, low).sample(24, seed=5)
    found = sf.log_likelihood(
        data.denoiser(schedule), x, steps=160, solver="dopri5", prior=data.marginal(schedule, high).log_prob
    )
    assert (found.value - data.marginal(schedule, low).log_prob(x)).abs().max() < 1e-3  # nats


def test_hutchinsons_likelihood_agrees_within_its_error():
    data, schedule = mixture(16), sf.VPLinear()
    x = data.marginal(schedule, schedule.t_range[0]).sample(48, seed=2)
    exact = sf.log_likelihood(data.denoiser(schedule), x, steps=32)
    drawn = sf.log_likelihood(data.denoiser(schedule), x, steps=32, probes=16)
    scores = (drawn.value - exact.value) / drawn.error
    assert scores.mean().abs() < 5 / math.sqrt(48)
    assert (exact.error == 0).all()


def test_bits_per_dimension_of_a_uniform_quantisation():
    """A density of one 8-bit bin's inverse width a dimension is 0 bits; half of it is 1 bit."""
    width = 2.0 / 255.0
    value = torch.tensor([3 * -math.log(width), 3 * -math.log(2 * width)], dtype=torch.float64)
    found = sf.diagnostics.Likelihood(value, value, torch.zeros(2, 3), torch.zeros(2), 0)
    assert found.bits_per_dimension().tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_the_tangent_is_recorded_along_the_way():
    journey, z = generation(4, solver="rk4", steps=10)
    u = noise_like(z)
    tangent = journey.carry(z, u)
    assert tangent.norms.shape == (11, 4)
    assert torch.allclose(tangent.norms[0], u.norm(dim=1))
    assert torch.allclose(tangent.norms[-1], tangent.change.norm(dim=1))
    half = sf.FlowMap(journey.model, sf.Grid(journey.grid.times[:6]), journey.solver)
    assert torch.allclose(tangent.norms[5], half.jvp(z, u).norm(dim=1))


def test_the_memory_of_a_transposed_product_does_not_hold_all_graphs():
    """While a step's graph is alive no other is: the largest number of saved tensors does not grow with the steps."""

    def peak(steps):
        journey, z = generation(2, solver="rk4", steps=steps)
        alive, most = 0, 0

        class Saved:
            def __init__(self, x):
                nonlocal alive, most
                self.x = x
                alive += 1
                most = max(most, alive)

            def __del__(self):
                nonlocal alive
                alive -= 1

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.x):
            journey.vjp(z, noise_like(z))
        return most

    assert peak(24) == peak(6)


def test_bad_input_is_named():
    journey, z = generation(2)
    with pytest.raises(sf.InputError, match="products"):
        singular_values(journey, z, 3)
    with pytest.raises(sf.InputError, match="rising"):
        amplification.sweep(journey, z, z, sizes=(1e-2, 1e-3))
    with pytest.raises(sf.InputError, match="stochastic"):
        sf.FlowMap(journey.model, journey.grid, solvers.get("ddpm"))
    with pytest.raises(sf.InputError, match="Runge-Kutta"):
        sf.log_likelihood(journey.model, z, solver="ddim")
    with pytest.raises(sf.InputError, match="probes"):
        amplification.isotropic(journey, z, probes=1)
    with pytest.raises(sf.InputError, match="NaN"):
        journey.jvp(z * float("nan"), z)


def test_correlations_and_rates_agree_with_scipy():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, generator=generator)
    y = x + torch.randn(60, generator=generator)
    y[10:20] = y[10]  # ties
    assert pearson(x, y).value == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-6)
    assert spearman(x, y).value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-6)
    ours, theirs = pearson(x, y, resamples=5000), scipy.stats.pearsonr(x, y).confidence_interval()
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=0.1), pytest.approx(theirs.high, abs=0.1))
    for hits, n in ((0, 50), (3, 50), (50, 50), (480, 1000)):
        expected = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
        found = wilson(hits, n)
        assert (found.low, found.high) == (
            pytest.approx(expected.low, abs=1e-9),
            pytest.approx(expected.high, abs=1e-9),
        )
    with pytest.raises(sf.InputError, match="correlation"):
        pearson(x[:2], y[:2])
