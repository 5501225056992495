"""The study of reconstruction's instability, small: its conditions hold, and its verdicts follow the numbers."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch

import steadyflow as sf
from steadyflow import grids, solvers
from steadyflow.metrics.statistics import spearman
from steadyflow_lab.findings import FAILS, HOLDS, OPEN, PARTLY, Size
from steadyflow_lab.instability import PAPER, chain, correlation, toys, training
from steadyflow_lab.instability.correlations import exceeds, median, partial_spearman
from steadyflow_lab.instability.setting import (
    Amplified,
    Dense,
    Problem,
    RoundTrip,
    amplified,
    densities,
    problem,
    round_trip,
)  # fmt: skip
from steadyflow_lab.studies import Bench
from steadyflow_lab.theory import instability as theory

TINY = Bench(Size("quick", n=20, images=6))
PATHS = {"vp": sf.VPLinear(), "flow": sf.RectifiedFlow(), "cosine": sf.VPCosine()}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generation(mixture, schedule, steps=96):
    return sf.FlowMap(mixture.denoiser(schedule), grids.make("quadratic", schedule, steps), solvers.get("rk4"))


def pair(length, spread, dim=3):
    means = torch.zeros(2, dim, dtype=torch.float64)
    means[:, 0] = torch.tensor([-0.5 * length, 0.5 * length])
    return sf.GaussianMixture(means, spread)


@pytest.mark.parametrize("path", PATHS)
def test_the_stretch_of_two_modes_is_the_closed_form(path):
    schedule, spread, length = PATHS[path], 0.25, 1.2
    z = normal(6, 3)
    z[0] = 0.0
    journey = generation(pair(length, spread), schedule)
    dense, x = journey.dense(z), journey(z)
    along = theory.pair_stretch(schedule, spread, length, z[:, 0], x[:, 0])
    assert torch.allclose(dense[:, 0, 0], along, rtol=1e-5)
    across = theory.gaussian_stretch(schedule, spread).expand(6)
    assert torch.allclose(dense[:, 1, 1], across, rtol=1e-5)
    assert torch.allclose(torch.linalg.slogdet(dense).logabsdet, (along * across**2).log(), atol=1e-4)
    assert theory.midpoint_stretch(schedule, spread, length) == pytest.approx(dense[0, 0, 0].item(), rel=1e-5)
    assert (along[1:] < along[0]).all()
    assert torch.allclose(theory.pair_map(schedule, spread, length, z[:, 0]), x[:, 0], atol=1e-6)
    mixture = pair(length, spread)
    assert torch.allclose(theory.log_amplification(mixture, schedule, z, x), (along * across**2).log(), atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_two_modes_expand_beyond_their_threshold_and_not_before(path):
    schedule, spread = PATHS[path], 0.2
    length = theory.expansion_threshold(schedule, spread)
    assert length == pytest.approx(spread * (8.0 * np.log(1.0 / spread)) ** 0.5, rel=5e-3)
    z = torch.zeros(1, 2, dtype=torch.float64)
    for factor, expands in ((0.98, False), (1.02, True)):
        dense = generation(pair(factor * length, spread, 2), schedule).dense(z)
        assert bool(torch.linalg.svdvals(dense)[0, 0] > 1.0) == expands
    wide = theory.mean_threshold(schedule, spread, 2)
    dense = generation(pair(wide, spread, 2), schedule).dense(z)
    assert torch.linalg.slogdet(dense).logabsdet.item() == pytest.approx(0.0, abs=1e-3)


def test_one_wide_gaussian_expands_and_no_stretch_exceeds_the_bound():
    schedule = sf.VPLinear()
    spreads = torch.tensor([0.5, 2.0], dtype=torch.float64)
    wide = sf.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), spreads[None])
    values = torch.diagonal(generation(wide, schedule).dense(normal(2, 2)), dim1=1, dim2=2)
    assert torch.allclose(values, theory.gaussian_stretch(schedule, spreads).expand(2, 2), rtol=1e-5)
    assert values[0, 0] < 1.0 < values[0, 1]
    mixture = sf.GaussianMixture(2.0 * torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).double(), 0.3)
    bound = theory.midpoint_stretch(schedule, 0.3, theory.diameter(mixture))
    assert torch.linalg.svdvals(generation(mixture, schedule, 48).dense(normal(40, 3))).max() < bound
    with pytest.raises(sf.InputError, match="one spread"):
        theory.diameter(wide)


def test_partial_correlations_are_those_of_the_residuals_of_ranks():
    x, y, a, b = normal(4, 50)
    y = y + 0.8 * a
    x = x - a + 0.3 * b
    x[5:9] = x[5]  # ties
    for given in ([a], [a, b]):
        ranks = [scipy.stats.rankdata(v.numpy()) for v in (x, y, *given)]
        design = np.stack([np.ones(50), *ranks[2:]], 1)
        rest = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks[:2]]
        found = partial_spearman(x, y, given)
        assert found.value == pytest.approx(np.corrcoef(*rest)[0, 1], abs=1e-9)
        assert found.low < found.value < found.high
    chained = a + 0.3 * normal(50, seed=3), a, a + 0.3 * normal(50, seed=4)
    assert partial_spearman(chained[0], chained[2], [chained[1]]).low < 0.1  # all of it goes by way of the middle one
    assert spearman(chained[0], chained[2]).low > 0.7
    with pytest.raises(sf.InputError, match="few"):
        partial_spearman(x[:4], y[:4], [a[:4]])
    with pytest.raises(sf.InputError, match="finite"):
        partial_spearman(x, y * float("nan"), [a])


def test_how_often_one_group_exceeds_another_is_mann_and_whitneys():
    x, y = normal(40) + 0.5, normal(30, seed=1)
    y[:3] = x[:3]
    expected = scipy.stats.mannwhitneyu(x.numpy(), y.numpy()).statistic / (40 * 30)
    found = exceeds(x, y)
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    assert median(x).value == pytest.approx(np.median(x.numpy()))


def test_expansion_grows_certain_with_dimension_for_real_data_but_not_for_generated():
    rows = [row for dim in (1, 8, 32) for row in toys.shares(dim, 0.1, n=60, steps=24)]
    real = [row.random for row in rows if row.data == "real"]
    generated = [row.random for row in rows if row.data == "generated"]
    assert real[0].high < real[-1].low
    assert real[-1].low > 0.9
    assert generated[-1].high < 0.2


def test_the_toys_expand_between_their_modes_and_contract_on_them():
    line = toys.toy(2, 0.3, own=False, n=200, steps=128)
    between = line.inside & (line.near > 3.0)
    assert (line.values[between, 0] > 1.0).all()
    assert (line.values[~line.inside & (line.near > 3.0), 0] < 1.0).all()
    assert torch.allclose(line.values[:, 0].log(), line.ratio, atol=1e-3)
    plane = toys.toy(5, 0.3, own=True, n=50)
    assert (plane.values[:, 0] >= plane.values[:, 1]).all()
    assert torch.allclose(plane.log_det, plane.ratio, atol=1e-3)
    assert torch.allclose(plane.values.log().sum(1), plane.log_det, atol=1e-3)


def test_the_likelihood_of_the_digits_model_is_its_determinant():
    data = dataclasses.replace(problem("digits", 1), reference=32)
    found, density = amplified(TINY, data), densities(TINY, data)
    model, axes = data.model.with_condition(data.given[:1].expand(64)), torch.eye(64).reshape(64, 1, 8, 8)
    journey = sf.FlowMap(model, data.generation(0, 1).grid, solvers.get("rk4"))
    z = found.latent.float().expand(64, -1, -1, -1).contiguous()
    dense = journey.jvp(z, axes).flatten(1).double()
    assert torch.linalg.slogdet(dense).logabsdet.item() / 64 == pytest.approx(density.mean.item(), abs=0.02)
    exact = dense.square().sum().div(64).sqrt()
    assert exact.item() == pytest.approx(found.isotropic.item(), abs=5.0 * found.random_error.item())


def test_the_coefficient_along_the_error_is_the_growth_of_the_error():
    data = dataclasses.replace(problem("digits", 4), directions=1)
    found = amplified(TINY, data)
    trip = round_trip(TINY, data, found, "euler", 200)
    at = found.latent.float()
    offset = sf.invert(data.under(0, 4), data.images, solver="euler", steps=200, grid="uniform").latent - at
    exact = sf.diagnostics.amplification.coefficient(data.generation(0, 4), at, offset)
    assert torch.allclose(trip.inversion, exact.double(), rtol=0.02)
    fine = round_trip(TINY, data, found, "rk4", 200)
    assert fine.error.median() < trip.error.median() / 10.0


def trip(error, inversion, solver="euler", nfe=500):
    return RoundTrip(solver, nfe, error, torch.full_like(error, 0.1) * (1.0 + 0.1 * normal(len(error), seed=7)).abs(),
                     inversion)  # fmt: skip


def correlated(sign, amplification):
    """A finding of made-up images whose errors follow the coefficient with this sign."""
    random = (0.5 + normal(40).abs())[:, None] * torch.tensor([[0.99, 1.01]])
    found = Amplified(normal(40, 2), random)
    error = random.mean(1) ** sign * (1.0 + 0.05 * normal(40, seed=1).abs())
    along = torch.full((40,), amplification, dtype=torch.float64) + 0.01 * normal(40, seed=2)
    data = Problem("made up", sf.Denoiser(lambda x, t: x, sf.VPLinear()), normal(40, 2), ["a"] * 40, None)
    made = []
    for solver, gain in (("euler", 1.0), ("rk4", 100.0)):
        errors = error / gain if solver == "euler" else (1.0 + normal(40, seed=5).abs()) / gain
        one = trip(errors, along, solver)
        against = {"random": found.random, "inversion error": one.inversion, "isotropic": found.isotropic,
                   "latent error": one.latent_error}  # fmt: skip
        correlations = {name: spearman(v, one.error) for name, v in against.items()}
        made.append(correlation.Row(one, median(one.error), 1.0, correlations))
    top = torch.full((10,), 3.0 * amplification, dtype=torch.float64)
    return correlation.report("made up", found, made, top, (1e-3, 0.1), data)


def test_the_verdicts_on_the_correlation_follow_the_numbers():
    strong = [claim.verdict for claim in correlated(1, 2.0).claims]
    assert strong == [HOLDS, HOLDS, HOLDS, HOLDS, HOLDS, HOLDS]
    reversed_, contracting = correlated(-1, 2.0).claims, correlated(1, 0.1).claims
    assert reversed_[0].verdict == FAILS
    assert [claim.verdict for claim in contracting][1:3] == [FAILS, FAILS]


def group(density, amplification, error):
    dense = Dense(density, -density, torch.zeros_like(density))
    found = Amplified(normal(len(error), 2), amplification[:, None] * torch.tensor([[0.99, 1.01]]))
    return chain.Chain(dense, found, trip(error, 0.5 * amplification))


def test_the_verdicts_on_the_chain_follow_the_numbers():
    data = Problem("made up", sf.Denoiser(lambda x, t: x, sf.VPLinear()), normal(60, 2), ["a"] * 60, None)
    noise = (1.0 + 0.1 * normal(60, seed=9).abs(), 1.0 + 0.1 * normal(60, seed=8).abs())
    density = -normal(60).abs() - 0.5  # below the prior's: the map expands
    stretch = (-density) * noise[0]
    real = group(density, stretch, stretch * noise[1])
    own = group(density + 3.0, torch.ones(60).double() + 0.1 * normal(60, seed=4).abs(), 0.1 * noise[0] * noise[1])
    verdicts = [claim.verdict for claim in chain.report(data, real, own, 100).claims]
    assert verdicts == [HOLDS, HOLDS, HOLDS, HOLDS, HOLDS]
    other = [claim.verdict for claim in chain.report(data, own, real, 100).claims]
    assert other[1] == FAILS
    assert other[4] == FAILS
    unrelated = group(density, stretch, 1.0 + normal(60, seed=6).abs())
    found = [claim.verdict for claim in chain.report(data, unrelated, own, 100).claims]
    assert found[0] == HOLDS
    assert found[3] in (OPEN, FAILS)
    assert found[4] in (PARTLY, HOLDS)


def trained(sparsity, random, distance, seed=0):
    values = {key: (1.0 + 0.1 * normal(30, seed=k).abs()).tolist() for k, key in enumerate(training.KEYS)}
    values["sparsity"] = (sparsity + 0.1 * normal(30, seed=seed)).tolist()
    values["random"] = (random * (1.0 + 0.1 * normal(30, seed=seed + 1).abs())).tolist()
    return training.Trained(**values, recognised=[True] * 10, distance=distance)


def test_the_verdict_on_training_follows_the_numbers():
    plain = [trained(1.0, 1.0, 0.1), trained(1.0, 1.0, 0.1, 3)]
    better = training.report({"plain": plain, "noise": [trained(0.2, 0.5, 0.2), trained(0.2, 0.5, 0.2, 5)]}, 30)
    assert [claim.verdict for claim in better.claims][::2] == [HOLDS, HOLDS]
    worse = training.report({"plain": plain, "noise": [trained(0.2, 2.0, 0.2), trained(0.2, 2.0, 0.2, 5)]}, 30)
    assert worse.claims[0].verdict == FAILS
    same = training.report({"plain": plain, "noise": [trained(1.5, 0.5, 0.2), trained(1.5, 0.5, 0.2, 5)]}, 30)
    assert {claim.verdict for claim in same.claims} == {OPEN}


def test_noise_on_the_data_makes_the_trained_distribution_less_sparse():
    def sparsity(way):
        data = problem("digits", 4)
        model = training.train(250, **training.WAYS[way])
        return densities(TINY, dataclasses.replace(data, model=model, steps=6, reference=8).own()).value.mean()

    assert sparsity("noise 0.3") < sparsity("plain") - 0.1


def test_a_trained_network_is_measured():
    data = problem("digits", 4)
    found = training.measure(TINY, data.model, 4, 10)
    assert all(len(getattr(found, key)) == 4 for key in training.KEYS)
    assert sum(found.recognised) >= 8


def test_every_figure_has_a_small_form():
    found = toys.theorem(TINY)
    assert len(found.rows) == 16
    assert set(PAPER.figures) >= {"correlation-digits", "chain-ink", "theorem", "training"}
    real = dataclasses.replace(problem("digits", 6), steps=4, reference=8)
    small = chain.report(real, *(chain.measure(TINY, data, 12) for data in (real, real.own())), 12)
    assert all(len(row) == len(small.heads) for row in small.rows)
    with pytest.raises(sf.UnknownNameError):
        problem("cats", 3)
