"""Mode interpolation: the restored statements, each against a simulation or an exact mixture."""

import math
from itertools import pairwise

import mpmath
import pytest
import scipy.stats
import sklearn.metrics
import torch

import steadyflow as sf
from steadyflow.diagnostics.detectors import TrajectoryVariance, roc_area
from steadyflow_lab.hallucination import noise, setting
from steadyflow_lab.theory import interpolation as theory
from steadyflow_lab.theory import saddles

SCHEDULE = sf.Tabulated.linear()


def lattice(dim, modes=25, std=0.02):
    return sf.GaussianMixture.grid(5, std=std) if dim == 2 else sf.GaussianMixture.farthest_points(modes, dim, std=std)


def rescaled_path(mixture, start, variances, substeps=40):
    """The probability flow in y and the clock s, by RK4 with substeps between the given variances."""
    path, y = [start], start
    for before, after in pairwise(variances):
        h = theory.clock(before, after) / substeps
        for k in range(substeps):
            s2 = [before * math.exp(-2.0 * h * (k + c)) for c in (0.0, 0.5, 1.0)]
            k1 = theory.slope(mixture, y, s2[0])
            k2 = theory.slope(mixture, y + 0.5 * h * k1, s2[1])
            k3 = theory.slope(mixture, y + 0.5 * h * k2, s2[1])
            k4 = theory.slope(mixture, y + h * k3, s2[2])
            y = y + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        path.append(y)
    return torch.stack(path)


@pytest.mark.parametrize("dim", [2, 8])
def test_the_rescaled_flow_is_the_probability_flow(dim):
    mixture = lattice(dim, std=0.2)
    times = [300.0 - 15.0 * k for k in range(20)]
    variances = [theory.variance(mixture, SCHEDULE, t) for t in times]
    model = mixture.denoiser(SCHEDULE)
    x = mixture.marginal(SCHEDULE, times[0]).sample(40, seed=1)
    y = rescaled_path(mixture, x / SCHEDULE.alpha(times[0]), variances)[-1]
    fine = {"solver": "dopri5", "steps": sf.PIDController(rtol=1e-10, atol=1e-11)}
    solved = sf.sample(model, x=x, t_max=times[0], t_min=times[-1], end="path", **fine).x
    assert torch.allclose(y * SCHEDULE.alpha(times[-1]), solved, atol=1e-6)


def test_the_rescaled_sde_keeps_the_marginals():
    """dy = 2 (m - y) ds + sqrt(2 s2) dW carries the mixture of variance s2 to a smaller one (KS test, p > 1e-3)."""
    mixture = sf.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.3)
    start, end, steps, n = 1.5, 0.3**2, 400, 20_000
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(n, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    y = mixture.means[torch.randint(2, (n,), generator=generator)] + math.sqrt(start) * draw()
    h = theory.clock(start, end) / steps
    for k in range(steps):
        s2 = start * math.exp(-2.0 * h * (k + 0.5))
        y = y + h * theory.drift(mixture, y, s2) + math.sqrt(2.0 * s2 * h) * draw()
    cdf = lambda v: 0.5 * (scipy.stats.norm.cdf(v, -1.0, end**0.5) + scipy.stats.norm.cdf(v, 1.0, end**0.5))  # noqa: E731
    assert scipy.stats.kstest(y[:, 0].numpy(), cdf).pvalue > 1e-3


@pytest.mark.parametrize("dim", [2, 8, 32, 64])
def test_the_distance_to_the_segment_shrinks_as_the_theorem_says(dim):
    mixture, kappa = lattice(dim), 7.0
    times = [float(t) for t in range(120, -1, -4)]
    variances = [theory.variance(mixture, SCHEDULE, t) for t in times]
    start = mixture.marginal(SCHEDULE, times[0]).sample(200, seed=dim) / SCHEDULE.alpha(times[0])
    path = rescaled_path(mixture, start, variances, substeps=10)
    first = theory.first_dominance(mixture, path, variances, kappa)
    tail, checked = theory.far_modes(mixture, kappa), 0
    assert (first < len(times)).double().mean() > 0.9
    for sample in range(200):
        begin = int(first[sample])
        if begin >= len(times) - 1:
            continue
        i, j = theory.dominance(mixture, path[begin, sample][None], variances[begin]).pair[0]
        line = path[begin:, sample]
        pairs = torch.stack(
            [theory.dominance(mixture, y[None], s2).pair[0] for y, s2 in zip(line, variances[begin:], strict=True)]
        )
        if not (pairs.sort(1).values == torch.stack([i, j]).sort().values).all():
            continue  # the second nearest mode changed: the theorem speaks of one pair
        distance = theory.distance_to_segment(line, mixture.means[i], mixture.means[j])
        for k, s2 in enumerate(variances[begin:]):
            assert distance[k] <= theory.contraction_bound(distance[0], variances[begin], s2, tail) + 1e-9
        checked += 1
    assert checked > 50


def test_the_slope_of_the_contraction_is_one():
    """Far from all other modes the distance to the line falls exactly like sqrt(s2)."""
    mixture = sf.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64), 0.02)
    variances = [0.2 * 0.8**k for k in range(20)]
    start = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    path = rescaled_path(mixture, start, variances)
    _, eta = theory.pair_coordinates(path[:, 0], *mixture.means)
    slope = (eta[-1] / eta[0]).log() / math.log((variances[-1] / variances[0]) ** 0.5)
    assert slope.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("ratio", "odds"), [(3.0, 0.0), (6.0, 0.0), (40.0, 0.7), (40.0, -1.5), (5.0, 2.0), (1e4, 0.0)])
def test_the_equilibria_are_all_zeros_of_the_pair_slope(ratio, odds):
    found = saddles.equilibria(ratio, odds)
    xi = torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64)
    values = saddles.pair_slope(xi, ratio, odds)
    crossings = int(((values[1:] > 0) != (values[:-1] > 0)).sum())
    assert len(found) in (1, 3)
    if ratio < 100:
        assert len(found) == crossings
    for point in found:
        assert abs(mpmath.mpf(1) / (1 + mpmath.exp(-(ratio * (point.xi - 0.5) + odds))) - point.xi) < 1e-9
    assert [p.rate < 0 for p in found] == ([True, False, True] if len(found) == 3 else [True])
    if len(found) == 3 and odds == 0.0:
        assert found[1].xi == pytest.approx(0.5, abs=1e-9)
        assert found[1].rate == pytest.approx(saddles.saddle_rate(ratio), rel=1e-6)
    if len(found) == 3 and odds > 0:
        assert found[1].xi < 0.5  # the heavier mode is j, at 1; the saddle moves towards the lighter


def test_the_saddles_equation_holds_for_unequal_weights():
    ratio, odds = 30.0, math.log(3.0)
    saddle = saddles.equilibria(ratio, odds)[1]
    assert math.log(saddle.xi / (1.0 - saddle.xi)) == pytest.approx(odds + ratio * (saddle.xi - 0.5), abs=1e-9)
    assert saddle.rate == pytest.approx(ratio * saddle.xi * (1.0 - saddle.xi) - 1.0, rel=1e-9)


@pytest.mark.parametrize("dim", [2, 8, 32])
def test_what_starts_inside_the_bound_stays_trapped(dim):
    """A trajectory of the two-mode flow from inside `trapped_start` ends inside theta; from well outside it leaves."""
    length, s0 = 2.0, 0.3
    means = torch.zeros(2, dim, dtype=torch.float64)
    means[1, 0] = length
    mixture = sf.GaussianMixture(means, s0)
    start, end = 0.8, 0.35
    theta = saddles.trapping_radius(length**2 / start, length**2 / end)
    inner = saddles.trapped_start(length, start, end)
    offsets = torch.tensor([-1.0, -0.5, 0.5, 1.0, 3.0 * theta / inner], dtype=torch.float64) * inner
    y = torch.zeros(len(offsets), dim, dtype=torch.float64)
    y[:, 0] = (0.5 + offsets) * length
    y[:, 1] = 0.2  # an orthogonal offset changes nothing
    final = rescaled_path(mixture, y, [start, 0.6, 0.45, end])[-1]
    xi, _ = theory.pair_coordinates(final, *means)
    assert ((xi[:4] - 0.5).abs() <= theta).all()
    assert (xi[4] - 0.5).abs() > theta
    assert inner < theta


def test_the_midpoint_grows_at_the_integrated_rate():
    length, start, end = 2.0, 0.5, 0.1
    mixture = sf.GaussianMixture(torch.tensor([[0.0], [length]], dtype=torch.float64), 0.02)
    y = torch.tensor([[length / 2 + 1e-8]], dtype=torch.float64)
    final = rescaled_path(mixture, y, [start, 0.25, end], substeps=200)[-1]
    growth = (final[0, 0] - length / 2).item() / 1e-8
    assert math.log(growth) == pytest.approx(saddles.growth_integral(length, start, end), rel=1e-4)


def test_samples_are_told_apart():
    mixture = lattice(2)
    near = mixture.sample(500)
    between = 0.5 * (mixture.means[0] + mixture.means[1]) + 0.03 * torch.randn(100, 2, dtype=torch.float64).clamp(-2, 2)
    away = torch.tensor([[1.0, 0.7], [9.0, 9.0]], dtype=torch.float64)  # off every axis-parallel and diagonal segment
    found = theory.classify(torch.cat([near, between, away]), mixture)
    assert (found.kind[:500] == theory.VALID).all()
    assert (found.kind[500:600] == theory.INTERPOLATED).all()
    assert (found.pair[500:600].sort(1).values == torch.tensor([0, 1])).all()
    assert found.kind[601] == theory.INVALID
    rate = found.rate()
    assert rate.value == pytest.approx(100 / int((found.kind != theory.INVALID).sum()), abs=1e-2)
    assert found.balance(25).sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("dim", [2, 8, 32, 64])
def test_exact_samples_are_valid_in_every_dimension(dim):
    mixture = lattice(dim)
    found = theory.classify(mixture.sample(4000), mixture)
    assert (found.kind == theory.VALID).double().mean() > 0.998


def test_coarse_uniform_steps_interpolate_with_the_exact_score_and_fine_quadratic_ones_do_not():
    """The effect needs a coarse grid, a learned score, or a start near a midpoint: the exact ODE does not show it."""
    mixture = sf.GaussianMixture.grid(5, spacing=2.0 / 8**0.5, std=0.02 / 8**0.5)
    model = mixture.denoiser(SCHEDULE)

    def rate(steps, grid):
        x = sf.sample(model, n=3000, solver="ddim", steps=steps, grid=grid, t_max=800.0, end="path").x
        return theory.classify(model(x, 0.0).x0, mixture).rate()

    assert rate(20, "uniform").low > 0.1
    assert rate(50, "quadratic").high < 0.005


def test_the_roc_area_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(300, generator=generator) < 0.2
    scores = (torch.randn(300, generator=generator) + positive.float()).round(decimals=1)  # with ties
    expected = sklearn.metrics.roc_auc_score(positive, scores)
    assert roc_area(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_bad_input_is_named():
    with pytest.raises(sf.InputError, match="one spread"):
        theory.classify(torch.zeros(2, 2), sf.GaussianMixture(torch.eye(2), torch.tensor([0.1, 0.2])))
    with pytest.raises(sf.InputError, match="saddle"):
        saddles.trapping_radius(3.0, 5.0)
    with pytest.raises(sf.InputError, match="shape"):
        theory.classify(torch.zeros(2, 3), lattice(2))
    with pytest.raises(sf.InputError, match="NaN"):
        theory.classify(torch.full((2, 2), float("nan")), lattice(2))


def sde_paths(length, variances, start, n, seed, *, wrong=lambda z: 0.0, substeps=200):
    """|z| at every time of the two-mode SDE dz = 2 (f(z) + error) ds + sqrt(2 s2) dW, Euler-Maruyama; (T, n)."""
    generator = torch.Generator().manual_seed(seed)
    z, path = torch.full((n,), start, dtype=torch.float64), []
    for before, after in pairwise(variances):
        h = theory.clock(before, after) / substeps
        for k in range(substeps):
            s2 = before * math.exp(-2.0 * h * (k + 0.5))
            noise = torch.randn(n, generator=generator, dtype=torch.float64)
            z = z + 2.0 * h * (saddles.outward(z, length, s2) + wrong(z)) + math.sqrt(2.0 * s2 * h) * noise
            path.append(z)
    return torch.stack(path)


VARIANCES = [0.25 * 0.85**k for k in range(12)]


def test_noise_leaves_the_midpoint_at_least_as_often_as_the_bounds_say():
    length = 2.0
    furthest = sde_paths(length, VARIANCES, 0.0, 20_000, 0).abs().amax(0)
    for radius in (0.25, 0.4, 0.7):
        stayed = furthest <= radius
        low = theory.wilson(int(stayed.sum()), len(stayed), 0.9999).low
        bound = saddles.escape_bound(length, VARIANCES, radius)
        assert low <= bound < 1.0
        assert low <= saddles.confinement_bound(length, VARIANCES, radius)
        smaller = saddles.escape_bound(length, VARIANCES, 0.5 * radius)
        assert smaller < bound


def test_the_confinement_bound_is_brownian_motions_where_nothing_drifts():
    """With modes that have merged the drift is inward; a slab of pure noise is left as a Brownian motion leaves it."""
    length, variances = 1e-6, [1.0, 0.999]
    bound = saddles.confinement_bound(length, variances, 0.05)
    drift = 2.0 * 0.05 * theory.clock(1.0, 0.999)
    expected = 4.0 / math.pi * math.exp(-(math.pi**2) * 0.001 / (8.0 * (0.05 + drift) ** 2))
    assert bound == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dim", [2, 8, 32, 64])
def test_the_terminal_event_is_no_more_frequent_than_equation_7_says(dim):
    """25 modes as near as in the plane; paths from the bisector and from the edge of the slab, in all dimensions."""
    problem = setting.exact(dim, level=True, dtype=torch.float64)
    mixture, length = problem.mixture, setting.pair_length(problem)
    i, j = setting.segments(mixture)[0].tolist()
    variances = [(0.07 * length) ** 2 * 0.95**k for k in range(12)]
    theta, outer, n = 0.1 * length, 0.3 * length, 600
    path = noise.stochastic_flow(mixture, (i, j), variances, n, 0, step=0.1)
    assert path[0].abs().max() < 1e-12
    ended = theory.wilson(int((path[-1].abs() <= theta).sum()), n, 0.9999)
    stayed = theory.wilson(int((path.abs() <= 2.0 * theta).all(0).sum()), n, 0.9999)
    first = saddles.escape_bound(length, variances, 2.0 * theta)
    sharp = saddles.terminal_bound(length, variances, theta, outer, sharp=True)
    assert ended.low <= sharp < 1.0 < saddles.terminal_bound(length, variances, theta, outer)
    assert first / 20.0 < stayed.low <= first < sharp  # a first term much smaller would be refuted


def test_equation_7_bounds_nothing_at_any_setting_of_a_search():
    least, tried = noise.least_of_equation_7()
    assert tried > 1000
    assert 0.9 < least < 1.0


def test_the_papers_confinement_bound_says_nothing_at_its_own_parameters_and_the_sharper_one_does():
    """At tau_3 = 9 steps of 50 and theta = 0.35 l the noise that is left is small against the slab."""
    mixture = sf.GaussianMixture.grid(5, spacing=2.0 / 8**0.5, std=0.02 / 8**0.5)
    grid = sf.grids.make("quadratic", SCHEDULE, 50, t_max=800.0)
    variances = [theory.variance(mixture, SCHEDULE, t) for t in grid.times[-10:]]
    length = 2.0 / 8**0.5
    assert saddles.confinement_bound(length, variances, 0.35 * length) > 1.0
    assert saddles.escape_bound(length, variances, 0.1 * length) < 1e-3
    assert saddles.least_outward(length, variances[0], 0.1 * length, 0.3 * length) > 0.0


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_what_has_left_comes_back_no_more_often_than_the_bound_says(error):
    length, inner, start, outer = 2.0, 0.2, 0.35, 0.8
    path = sde_paths(length, VARIANCES, start, 20_000, 1, wrong=lambda z: -error * z.sign())
    back = torch.zeros(path.shape[1], dtype=torch.bool)
    gone = torch.zeros_like(back)
    for z in path:
        back |= (z <= inner) & ~gone
        gone |= z >= outer
    bound = saddles.return_bound(length, VARIANCES[0], inner, start, outer, error)
    assert theory.wilson(int(back.sum()), len(back), 0.9999).low <= bound < 1.0


def test_escape_survives_a_score_error_of_bounded_slope():
    length, radius, lipschitz = 2.0, 0.3, 0.5
    for wrong in (lambda z: -lipschitz * z, lambda z: 0.1 - lipschitz * z.abs(), lambda z: lipschitz * torch.sin(z)):
        stayed = (sde_paths(length, VARIANCES, 0.0, 10_000, 2, wrong=wrong).abs() <= radius).all(0)
        bound = saddles.escape_bound(length, VARIANCES, radius, lipschitz)
        assert theory.wilson(int(stayed.sum()), len(stayed), 0.9999).low <= bound < 1.0
    assert saddles.escape_bound(length, VARIANCES, radius, 0.0) >= saddles.escape_bound(length, VARIANCES, radius)


@pytest.mark.parametrize("dim", [2, 8, 32, 64])
def test_a_score_error_moves_the_saddle_within_the_bound_and_can_make_it_stable(dim):
    """A constructed error: psi = (e + g z) u near the midpoint of an exact pair in `dim` dimensions."""
    length, s2 = 2.0, 0.2
    means = torch.zeros(2, dim, dtype=torch.float64)
    means[1, 0] = length
    mixture = sf.GaussianMixture(means, 0.1)
    for error, gradient in ((0.05, 0.0), (0.2, -1.0), (-0.1, 0.7)):

        def speed(z, error=error, gradient=gradient):
            y = torch.zeros(1, dim, dtype=torch.float64)
            y[0, 0] = 0.5 * length + z
            return float(theory.slope(mixture, y, s2)[0, 0]) + error + gradient * z

        low, high = -0.6, 0.6
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if speed(middle) < 0.0 else (low, middle)
        rate = (speed(high + 1e-5) - speed(high - 1e-5)) / 2e-5
        assert rate == pytest.approx(saddles.perturbed_rate(length, s2, high, gradient), rel=1e-5)
        size = abs(error + gradient * high)  # the error where the saddle now is
        assert abs(high) <= saddles.saddle_shift(length, s2, size) + 1e-9
        assert saddles.saddle_shift(length, s2, size) >= size / saddles.saddle_rate(length**2 / s2)
    assert saddles.perturbed_rate(length, s2, 0.0, -5.0) < 0.0 < saddles.perturbed_rate(length, s2, 0.0, 0.0)
    with pytest.raises(sf.InputError, match="exceeds"):
        saddles.saddle_shift(length, s2, 10.0)


def test_the_drift_bounds_are_those_of_a_scan():
    length = 2.0
    for s2 in (0.05, 0.3, 0.9, 2.0):
        z = torch.linspace(0.0, 0.9, 5001, dtype=torch.float64)
        f = 2.0 * saddles.outward(z, length, s2)
        assert saddles.greatest_outward(length, s2, 0.9) == pytest.approx(f.abs().max().item(), rel=1e-5)
        inside = f[(z >= 0.2) & (z <= 0.7)]
        assert saddles.least_outward(length, s2, 0.2, 0.7) == pytest.approx(inside.min().item(), abs=2e-3)


def test_the_pair_of_a_sample_is_that_of_its_two_nearest_modes():
    """Six spreads from a mode along an axis: long oblique segments pass nearer than the one that the sample lies on."""
    mixture = sf.GaussianMixture.grid(5, spacing=1.0, std=0.01)
    angles = torch.tensor([0.0, 0.03, 0.3, 0.44, 0.6])  # in radians off the axis
    x = mixture.means[12] + 0.06 * torch.stack([angles.cos(), angles.sin()], 1)
    found = theory.classify(x, mixture)
    assert (found.kind == theory.INTERPOLATED).all()
    assert not theory.diagonals(found.pair, mixture).any()
    assert (torch.cdist(x, mixture.means).topk(2, largest=False).indices == found.pair).all()
    pairs = torch.tensor([[0, 6], [1, 5], [0, 1], [0, 5], [0, 7], [0, 12], [0, 2]])
    assert theory.diagonals(pairs, mixture).tolist() == [True, True, False, False, False, False, False]


@pytest.mark.parametrize("dim", [2, 8])
def test_near_a_mode_trajectories_come_together_at_the_rate_that_is_bounded(dim):
    """P4.5 and C4.6: the flow points inward on the ball, and any two trajectories in it approach each other."""
    mixture = lattice(dim, std=0.05)
    length = float(torch.cdist(mixture.means, mixture.means).fill_diagonal_(torch.inf).min())
    radius, s2 = 0.25 * length, (0.2 * length) ** 2
    rate, pull = theory.mode_contraction(mixture, radius, s2), theory.mode_pull(mixture, radius, s2)
    assert 0.0 < rate < 1.0
    assert pull < radius
    generator = torch.Generator().manual_seed(0)
    away = torch.nn.functional.normalize(torch.randn(2, 500, dim, generator=generator, dtype=torch.float64), dim=2)
    y = mixture.means[3] + radius * away * torch.rand(2, 500, 1, generator=generator, dtype=torch.float64)
    slopes = torch.stack([theory.slope(mixture, part, s2) for part in y])
    gap, closing = y[0] - y[1], slopes[0] - slopes[1]
    assert ((gap * closing).sum(1) <= -rate * gap.square().sum(1) + 1e-12).all()
    edge = mixture.means[3] + radius * away[0]
    assert ((edge - mixture.means[3]) * theory.slope(mixture, edge, s2)).sum(1).max() < 0.0
    assert theory.mode_contraction(mixture, 0.5 * length, s2) < rate  # half way there is a saddle


def test_what_is_in_the_tube_stays_there():
    """C4.3: with kappa and a tube of T4.2's tail, the exact flow never leaves while two modes dominate."""
    mixture, kappa = lattice(2, std=0.02), 3.0
    tail = theory.far_modes(mixture, kappa)
    generator = torch.Generator().manual_seed(0)
    draw = lambda: 2.0 * torch.rand(4000, generator=generator, dtype=torch.float64) - 1.0  # noqa: E731
    y = torch.stack([mixture.means[12, 0] + 1.0 + draw(), mixture.means[12, 1] + 0.9 * draw()], 1)  # around a segment
    variances = [0.3 * 0.8**k for k in range(16)]
    path = rescaled_path(mixture, y, variances, substeps=10)
    i, j = mixture.means[12], mixture.means[17 if float(mixture.means[17, 0] - mixture.means[12, 0]) > 0.5 else 13]
    distance = torch.stack([theory.distance_to_segment(z, i, j) for z in path])
    held = torch.stack([theory.dominance(mixture, z, v).kappa >= kappa for z, v in zip(path, variances, strict=True)])
    steps = 0
    for k in range(len(path) - 1):
        inside = held[k] & held[k + 1] & (distance[k] <= tail)
        steps += int(inside.sum())
        assert (distance[k + 1][inside] <= tail + 1e-9).all()
    assert steps > 10_000


def test_the_trapping_bound_of_measured_rates_is_p47s_with_the_exact_ones():
    length, count = 2.0, 2000
    variances = [0.8 * (0.35 / 0.8) ** (k / count) for k in range(count + 1)]
    rates = [saddles.saddle_rate(length**2 / v) for v in variances[:-1]]
    spans = [theory.clock(a, b) for a, b in pairwise(variances)]
    curvature = (length**2 / variances[-1]) ** 2 / 4.0
    found = saddles.trapping_bound(rates, spans, curvature)
    assert found == pytest.approx(saddles.trapped_start(length, variances[0], variances[-1]), rel=1e-3)
    assert saddles.trapping_bound([-0.1, 2.0], [1.0, 1.0], 3.0) == 0.0  # no saddle at one of the times


def test_a_diagonal_pair_never_dominates_on_a_grid():
    """D.1: not at all in the strict sense; in the weak one its lighter mode has a share below e^-2kappa."""
    mixture = lattice(2)
    generator = torch.Generator().manual_seed(0)
    y = 10.0 * torch.rand(20_000, 2, generator=generator, dtype=torch.float64) - 5.0
    for s2 in (0.05, 0.3, 1.0):
        found = theory.dominance(mixture, y, s2)
        assert (found.kappa[theory.diagonals(found.pair, mixture)] <= 1e-9).all()
        squares = torch.cdist(y, mixture.means).square()
        corner = torch.tensor([[0, 6], [1, 5]])  # the two diagonals of the first cell
        (i, j), (k, m) = corner.tolist()
        kappa = (squares[:, [k, m]].amin(1) - squares[:, [i, j]].amin(1)) / (2.0 * s2)
        shares = theory.responsibilities(mixture, y, s2)[:, [i, j]].amin(1)
        held = kappa > 0.0
        assert held.any()
        assert (shares[held] <= torch.exp(-2.0 * kappa[held]) + 1e-12).all()
    assert theory.diagonal_share(3.0) == pytest.approx(math.exp(-6.0))


def test_the_decomposition_adds_up():
    inside = torch.tensor([True] * 10 + [False] * 90)
    hallucinated = torch.tensor([True] * 4 + [False] * 6 + [True] * 1 + [False] * 89)
    found = theory.decompose(hallucinated, inside)
    total = found.given_inside.value * found.inside.value + found.given_outside.value * (1 - found.inside.value)
    assert total == pytest.approx(0.05)
    assert found.from_inside == pytest.approx(0.8)
    with pytest.raises(sf.InputError, match="outside"):
        theory.decompose(hallucinated, torch.ones(100, dtype=torch.bool))


def test_the_variance_over_a_late_window_is_that_of_the_predictions():
    mixture = sf.GaussianMixture.grid(5, spacing=2.0 / 8**0.5, std=0.02 / 8**0.5)
    model = mixture.denoiser(SCHEDULE)
    detector = TrajectoryVariance(window=6, last=1)
    options = {"solver": "ddim", "steps": 20, "t_max": 800.0, "end": "path", "record": "all", "dtype": torch.float64}
    run = sf.sample(model, n=40, callback=detector, batch_size=15, **options)
    path = run.trajectory
    clean = torch.stack([model(x, t).x0 for x, t in zip(path.x[:-1], path.times[:-1], strict=True)])
    assert torch.allclose(detector.scores, clean[13:19].var(0).mean(1), rtol=1e-6, atol=1e-12)
    with pytest.raises(sf.InputError, match="no run"):
        TrajectoryVariance().scores  # noqa: B018
    with pytest.raises(sf.InputError, match="window"):
        sf.sample(model, n=2, steps=5, callback=TrajectoryVariance(8))
