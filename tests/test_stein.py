"""Stein corrections, their estimators, and the contractivity of steps: identities, exact mixtures, controls."""

import math

import pytest
import torch

import steadyflow as sf
from steadyflow.corrections import Calibrated, MomentMatching, Relaxed, Stein
from steadyflow.diagnostics import contractivity
from steadyflow.jacobians.divergences import divergence
from steadyflow.jacobians.maps import StepMap
from steadyflow.solvers.base import each_step
from steadyflow_lab.theory.stein import edm_scalings, shift_bound

EVERYWHERE = (0.0, math.inf)
PATHS = {"vp": sf.VPLinear(), "ve": sf.VE(), "flow": sf.RectifiedFlow(t_max=0.98)}


def mixture(dim=3):
    generator = torch.Generator().manual_seed(dim)
    return sf.GaussianMixture(2.0 * torch.randn(4, dim, generator=generator, dtype=torch.float64), 0.5)


def one_step(model, x, t0, t1, correction, solver="ddim"):
    return sf.sample(model, x=x, grid=sf.Grid((t0, t1)), solver=solver, corrections=[correction], end="path").x


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("level", [0.2, 1.0, 4.0])
def test_on_exact_marginals_the_coefficient_of_eulers_step_is_one(path, level):
    schedule, data = PATHS[path], mixture()
    t0, t1 = schedule.t_from_ratio(level), schedule.t_from_ratio(0.4 * level)
    model, n = data.denoiser(schedule), 20_000
    x = data.marginal(schedule, t0).sample(n, seed=1)
    stein = Stein("next", method="exact", trust=5.0, levels=EVERYWHERE)
    corrected = one_step(model, x, t0, t1, stein)
    ((_, found),) = stein.record.coefficients
    # its Monte Carlo error, from parts of the sample
    parts = []
    for part in x.split(1000):
        small = Stein("next", method="exact", trust=5.0, levels=EVERYWHERE)
        one_step(model, part, t0, t1, small)
        parts.append(float(small.record.coefficients[0][1]))
    error = torch.tensor(parts).std().item() / math.sqrt(len(parts))
    assert abs(found.item() - 1.0) < 5.0 * error + 1e-3
    assert (corrected - one_step(model, x, t0, t1, Relaxed(found.item()))).abs().max() < 1e-9


def test_the_clean_coefficient_jumps_to_the_denoised_point():
    schedule, data = PATHS["ve"], mixture()
    model = data.denoiser(schedule)
    t0, t1 = schedule.t_from_ratio(2.0), schedule.t_from_ratio(1.0)
    x = data.marginal(schedule, t0).sample(40_000, seed=2)
    stein = Stein("clean", method="exact", trust=5.0, levels=EVERYWHERE)
    landed = one_step(model, x, t0, t1, stein)
    assert stein.record.coefficients[0][1].item() == pytest.approx(2.0, rel=0.03)  # chi0 / (chi0 - chi1)
    assert (landed - model(x, t0).x0).square().mean().sqrt() < 0.1


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp-2s"])
def test_divergence_estimates_are_unbiased_within_their_standard_errors(solver):
    data = mixture(4)
    schedule = PATHS["vp"]
    model = data.denoiser(schedule)
    grid = sf.Grid((schedule.t_from_ratio(1.5), schedule.t_from_ratio(0.7)))
    (step,) = each_step(schedule, grid)
    x = data.marginal(schedule, grid.times[0]).sample(6, seed=3)
    step = StepMap(model, sf.solvers.get(solver), step, x)
    exact = divergence(step, x, method="exact")[0]
    dense = torch.stack([torch.func.jacrev(lambda z: step(z[None])[0])(row).trace() for row in x])
    assert torch.allclose(exact, dense, atol=1e-9)
    estimates = {m: divergence(step, x, method=m, probes=400, seed=1) for m in ("vjp", "jvp", "difference")}
    assert torch.allclose(estimates["vjp"], estimates["jvp"], atol=1e-8)
    assert torch.allclose(estimates["vjp"], estimates["difference"], atol=1e-4)
    error = estimates["vjp"].std(0) / 20.0
    assert ((estimates["vjp"].mean(0) - exact).abs() < 5.0 * error + 1e-9).all()


def test_hutchinsons_variance_is_the_formulas():
    data, schedule = mixture(4), PATHS["vp"]
    grid = sf.Grid((schedule.t_from_ratio(1.0), schedule.t_from_ratio(0.5)))
    (step,) = each_step(schedule, grid)
    x = data.marginal(schedule, grid.times[0]).sample(3, seed=4)
    step = StepMap(data.denoiser(schedule), sf.DDIM(), step, x)
    jacobian = torch.stack([torch.func.jacrev(lambda z: step(z[None])[0])(row) for row in x])
    symmetric = 0.5 * (jacobian + jacobian.mT)
    off = symmetric.square().sum((1, 2)) - symmetric.diagonal(dim1=1, dim2=2).square().sum(1)
    found = divergence(step, x, probes=4000, seed=2).var(0)
    assert torch.allclose(found, 2.0 * off, rtol=0.12)


def test_a_corrected_step_reports_its_cost_and_keeps_the_history_of_a_multistep_solver():
    model = mixture().denoiser(PATHS["vp"])
    still = Stein(trust=1e-12, levels=EVERYWHERE)
    for solver in ("ddim", "dpmpp-2m", "heun", "ees25"):
        options = {"n": 50, "steps": 6, "solver": solver, "end": "path", "dtype": torch.float64}
        plain = sf.sample(model, **options)
        kept = sf.sample(model, corrections=[still], **options)
        assert torch.allclose(plain.x, kept.x, atol=1e-8)
    stein = Stein(probes=2, levels=EVERYWHERE)
    sf.sample(model, n=50, steps=6, solver="ddim", corrections=[stein], end="path")
    assert stein.record.evaluations == 6 * 5.0
    assert len(stein.record.coefficients) == 6
    few = Stein(levels=(0.0, 1.0))
    sf.sample(model, n=50, steps=6, solver="ddim", corrections=[few], end="path")
    assert 0 < len(few.record.coefficients) < 6


def test_coefficients_a_sample_do_not_depend_on_the_batch():
    model = mixture().denoiser(PATHS["vp"])
    options = {"n": 30, "steps": 5, "solver": "ddim", "end": "path", "dtype": torch.float64}
    whole = sf.sample(model, corrections=[Stein(per="sample", probes=2, levels=EVERYWHERE)], **options).x
    parts = sf.sample(model, corrections=[Stein(per="sample", probes=2, levels=EVERYWHERE)], batch_size=7, **options).x
    assert torch.allclose(whole, parts, atol=1e-10)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_with_alpha_one_the_papers_form_is_the_clean_one(share):
    schedule, data = PATHS["ve"], mixture()
    model = data.denoiser(schedule)
    t0, t1 = schedule.t_from_ratio(2.0), schedule.t_from_ratio(2.0 * share)
    x = data.marginal(schedule, t0).sample(50, seed=2)
    for per in ("batch", "sample"):
        landed = [one_step(model, x, t0, t1, Stein(f, math.inf, EVERYWHERE, per)) for f in ("clean", "vp")]
        assert (landed[0] - landed[1]).abs().max() < 1e-9


@pytest.mark.parametrize("level", [0.3, 2.0, 30.0])
def test_the_papers_form_on_a_gaussian_is_its_formula_and_lands_at_the_denoised_point(level):
    schedule, spread, dim = PATHS["vp"], 0.7, 3
    data = sf.GaussianMixture(torch.zeros(1, dim, dtype=torch.float64), spread)
    model, (t0, t1) = data.denoiser(schedule), (schedule.t_from_ratio(level), schedule.t_from_ratio(0.5 * level))
    x = data.marginal(schedule, t0).sample(200_000, seed=4)
    stein = Stein("vp", math.inf, EVERYWHERE, method="exact")
    landed = one_step(model, x, t0, t1, stein)
    start, end = schedule.at(t0), schedule.at(t1)
    variance = start.alpha**2 * spread**2 + start.sigma**2
    kept = (end.alpha * start.alpha * spread**2 + end.sigma * start.sigma) / variance  # T(x) = kept x
    drift = (1.0 - 1.0 / start.alpha) / (1.0 - kept)
    found = stein.record.coefficients[0][1].item()
    batch = drift + start.sigma**2 / start.alpha * dim / ((1.0 - kept) * x.square().sum(1).mean().item())
    assert found == pytest.approx(batch, rel=1e-8)
    meant = (1.0 - start.alpha * spread**2 / variance) / (1.0 - kept)  # its mean
    noise = start.sigma**2 / (start.alpha * variance * (1.0 - kept)) * math.sqrt(2.0 / (dim * len(x)))
    assert abs(found - meant) < 5.0 * noise
    off = (landed - start.alpha * spread**2 / variance * x).square().mean().sqrt().item()
    assert off < 5.0 * noise * (1.0 - kept) * math.sqrt(variance)


def test_a_free_coefficient_is_taken_as_it_is_and_a_step_to_nowhere_is_left_alone():
    schedule, data = PATHS["vp"], mixture()
    t0, t1 = schedule.t_from_ratio(2.0), schedule.t_from_ratio(1.0)
    x = data.marginal(schedule, t0).sample(100, seed=2)
    for form in ("clean", "vp", "next"):
        free = Stein(form, math.inf, EVERYWHERE)
        one_step(data.denoiser(schedule), x, t0, t1, free)
        assert free.record.factors[0][1] == free.record.coefficients[0][1]
    values = torch.tensor([math.nan, math.inf, -math.inf, 7.0])
    assert free.within_trust(values).tolist() == [1.0, math.inf, -math.inf, 7.0]
    assert Stein(trust=0.5).within_trust(values).tolist() == [1.0, 1.5, 0.5, 1.5]


CORRECTIONS = {
    "stein": lambda: Stein("next", 0.3, (0.0, 5.0)),
    "the paper's": lambda: Stein("vp", 0.3, EVERYWHERE),
    "per sample": lambda: Stein("inverse", 0.1, EVERYWHERE, "sample"),
    "moments": lambda: MomentMatching(1.5),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_calibrated_correction_gives_sample_7_the_same_bits_in_any_batch(name, tmp_path):
    # a model that works element by element, so that it gives the same bits in any batch itself
    model = sf.Denoiser(lambda x, t: 1.2 * x / (1.0 + x.abs()), PATHS["vp"], prediction="sample", shape=(3,))
    correction = CORRECTIONS[name]()
    options = {"steps": 5, "solver": "ddim", "t_max": 0.99, "dtype": torch.float64}
    fitted = sf.sample(model, n=30, corrections=[correction], **options).x
    fixed = Calibrated.of(correction)
    fixed.save(tmp_path / "factors.json")
    fixed = Calibrated.load(tmp_path / "factors.json")
    assert fixed == Calibrated.of(correction)
    whole = sf.sample(model, n=30, corrections=[fixed], **options).x
    if name != "per sample":
        assert torch.allclose(whole, fitted, rtol=0, atol=1e-12)  # at the levels of the fit, the same factors
    cut = sf.sample(model, n=30, corrections=[fixed], batch_size=7, **options).x
    alone = sf.sample(model, n=1, index=7, corrections=[fixed], **options).x
    assert torch.equal(whole, cut)
    assert torch.equal(whole[7], alone[0])
    if name != "per sample":
        measured = sf.sample(model, n=30, corrections=[CORRECTIONS[name]()], batch_size=7, **options).x
        assert (measured - fitted).abs().max() > 1e-3  # which the correction that measures does not


def test_a_calibrated_correction_interpolates_between_levels_and_refuses_others():
    fixed = Calibrated((0.1, 1.0, 100.0), (0.9, 1.0, 1.4))
    assert [fixed.factor(level) for level in fixed.levels] == list(fixed.factors)
    assert fixed.factor(10.0) == pytest.approx(1.2)
    assert fixed.factor(math.sqrt(0.1)) == pytest.approx(0.95)
    assert fixed.factor(100.0 * (1.0 + 1e-7)) == 1.4
    for level in (0.05, 101.0):
        with pytest.raises(sf.InputError, match=f"noise level {level:g}, outside"):
            fixed.factor(level)
    model = mixture().denoiser(PATHS["vp"])
    with pytest.raises(sf.InputError, match="outside"):
        sf.sample(model, n=3, steps=5, solver="ddim", t_max=0.999, corrections=[fixed])


def test_what_a_calibrated_correction_is_not_made_from(tmp_path):
    with pytest.raises(sf.InputError, match="seen no step"):
        Calibrated.of(Stein())
    for wrong in (((), ()), ((1.0,), (1.0, 2.0)), ((2.0, 1.0), (1.0, 1.0)), ((1.0,), (math.nan,)), ((0.0,), (1.0,))):
        with pytest.raises(sf.InputError, match="calibrated"):
            Calibrated(*wrong)
    with pytest.raises(sf.UnknownNameError, match="space"):
        Calibrated((1.0,), (1.0,), "data")  # type: ignore[arg-type]
    path = tmp_path / "factors.json"
    with pytest.raises(FileNotFoundError):
        Calibrated.load(path)
    Calibrated((1.0, 2.0), (0.9, 1.1)).save(path)
    good = path.read_text()
    for damaged in (good[:40], "[]", good.replace("1.1", '"many"'), good.replace("calibrated", "other"), "\0" * 80):
        path.write_text(damaged)
        with pytest.raises(sf.CorruptFileError, match=r"factors\.json"):
            Calibrated.load(path)


@pytest.mark.parametrize("path", PATHS)
def test_moment_matching_gives_each_level_its_second_moment(path):
    data, schedule = mixture(), PATHS[path]
    model = data.denoiser(schedule)
    mean_square = float((data.means.square().sum(1).mean() / 3) + 0.25)
    seen = []

    def watch(info):
        expected = mean_square + schedule.ratio(info.t) ** 2
        seen.append(float((info.x / schedule.alpha(info.t)).square().mean()) / expected)

    matching = MomentMatching(mean_square, trust=0.9)
    options = {"n": 4000, "steps": 5, "solver": "ddim", "end": "path", "dtype": torch.float64}
    sf.sample(model, corrections=[matching], callback=watch, **options)
    plain = []
    plain_watch = lambda m: plain.append(m)  # noqa: E731
    sf.sample(model, callback=plain_watch, **options)
    off = [float((m.x / schedule.alpha(m.t)).square().mean()) / (mean_square + schedule.ratio(m.t) ** 2) for m in plain]
    assert max(abs(s - 1.0) for s in seen[1:]) < 0.02
    assert max(abs(s - 1.0) for s in off) > 0.02


@pytest.mark.parametrize("solver", ["ddim", "heun", "ees25", "dpmpp-2m"])
def test_the_gauge_is_the_largest_singular_value_of_the_step(solver):
    data, schedule = mixture(), PATHS["vp"]
    model = data.denoiser(schedule)
    grid = sf.grids.make("quadratic", schedule, 4)
    x = data.marginal(schedule, grid.times[0]).sample(5, seed=5)
    found = contractivity(model, x, grid, solver)
    (step, *_) = each_step(schedule, grid)
    method = sf.solvers.get(solver)

    def taken(start):
        return StepMap(model, method, step, method.start(start, schedule, step.t0))

    jacobian = torch.stack([torch.func.jacrev(lambda z: taken(z[None])(z[None])[0])(row) for row in taken(x).x])
    scale = schedule.alpha(step.t0) / schedule.alpha(step.t1)
    assert torch.allclose(found.lipschitz[0], scale * torch.linalg.svdvals(jacobian)[:, 0], rtol=1e-6)
    assert found.lipschitz.shape == (4, 5)


def test_ddims_steps_contract_where_the_denoiser_does_and_the_rest_grows_with_the_step():
    """L = r + (1 - r) |A|: half way between two modes |A| > 1 and larger steps are worse; at a mode they are not."""
    schedule = PATHS["ve"]
    data = sf.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.1)
    model = data.denoiser(schedule)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    t0, constants = schedule.t_from_ratio(0.5), []
    for share in (0.9, 0.5, 0.1):
        found = contractivity(model, x, sf.Grid((t0, schedule.t_from_ratio(0.5 * share))), coordinates="noise")
        expected = share + (1.0 - share) * abs(_slope(model, x[:1], t0))
        assert found.lipschitz[0, 0].item() == pytest.approx(expected, rel=1e-6)
        constants.append(found.lipschitz[0])
    assert constants[0][0] < constants[1][0] < constants[2][0]
    assert all(c[1] < 1.0 for c in constants)


def _slope(model, x, t):
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(leaf, t).x0.sum(), leaf)
    return slope.item()


def test_certificates_fail_on_the_digits_as_steps_grow_and_guidance_rises():
    model = sf.load("digits").with_condition(3)
    x = sf.noise.initial(0, range(6), (1, 8, 8)).double()
    worst = {}
    for steps, guidance in ((4, 1.0), (16, 1.0), (4, 7.5)):
        guided = model.with_guidance(guidance)
        grid = sf.grids.make("quadratic", model.schedule, steps)
        found = contractivity(guided, x.float(), grid, coordinates="flow", products=4)
        worst[steps, guidance] = found.lipschitz.amax(0).median().item()
        assert found.certified.shape == (steps,)
    assert worst[4, 1.0] > worst[16, 1.0] > 1.0
    assert worst[4, 7.5] > 1.5 * worst[4, 1.0]


def test_bad_input_is_named():
    model = mixture().denoiser(PATHS["vp"])
    with pytest.raises(sf.InputError, match="stochastic"):
        sf.sample(model, n=3, steps=3, solver="ddpm", corrections=[Stein()])
    with pytest.raises(sf.InputError, match="trust"):
        Stein(trust=0.0)
    with pytest.raises(sf.UnknownNameError, match="form"):
        Stein("nearest")  # type: ignore[arg-type]
    with pytest.raises(sf.InputError, match="factor"):
        Relaxed(2.5)
    with pytest.raises(sf.InputError, match="positive"):
        MomentMatching(0.0)
    flow = mixture().denoiser(sf.RectifiedFlow())
    with pytest.raises(sf.InputError, match="singular"):
        contractivity(flow, torch.zeros(1, 3), sf.grids.make("uniform", flow.schedule, 4))


@pytest.mark.parametrize("spread", [1.0, 1.2, 2.0])
@pytest.mark.parametrize("step", [0.7, 0.1])
def test_the_coefficient_on_shifted_states_is_within_the_scores_bound(spread, step):
    """States from a wider mixture than the model's: the bound holds, also where the step does not contract."""
    schedule, data = PATHS["ve"], mixture()
    wider = sf.GaussianMixture(data.means, data.std * spread, data.weights)
    model, level, n = data.denoiser(schedule), 1.0, 40_000
    t0, t1 = schedule.t_from_ratio(level), schedule.t_from_ratio(step * level)
    x = wider.marginal(schedule, t0).sample(n, seed=3)
    stein = Stein("clean", method="exact", trust=5.0, levels=EVERYWHERE)
    landed = one_step(model, x, t0, t1, Relaxed(1.0, EVERYWHERE))
    one_step(model, x, t0, t1, stein)
    u = x - landed
    own, other = model(x, t0).score, wider.denoiser(schedule)(x, t0).score
    meant = -(level**2) * (u * own).sum(1).mean() / u.square().sum(1).mean()
    bound = shift_bound(u.square().sum(1).mean().item(), (own - other).square().sum(1).mean().item(), level)
    found = stein.record.coefficients[0][1]
    assert abs(found - meant) < bound + 0.03 * abs(meant)
    if spread == 2.0:
        assert bound > 0.03 * abs(meant)  # the bound is what is tested, not the Monte Carlo error


@pytest.mark.parametrize("level", [0.1, 1.0, 10.0])
def test_edms_scalings_are_steins_coefficient_along_the_state(level):
    data = mixture()
    centred = sf.GaussianMixture(data.means - data.sample(200_000, seed=5).mean(0), data.std, data.weights)
    x0 = centred.sample(200_000, seed=6)
    noise = level * torch.randn(x0.shape, generator=torch.Generator().manual_seed(7), dtype=x0.dtype)
    x0, y = torch.cat([x0, x0]), torch.cat([x0 + noise, x0 - noise])  # so that their correlation is none
    skip, out = edm_scalings(level, x0.square().mean().item())
    best = (y * (y - x0)).sum() / y.square().sum()  # argmin over gamma of |y - gamma y - x0|
    assert 1.0 - skip == pytest.approx(best.item(), rel=0.01)
    assert out**2 == pytest.approx((x0 - skip * y).square().mean().item(), rel=0.02)
    with pytest.raises(sf.InputError):
        edm_scalings(level, 0.0)
    with pytest.raises(sf.InputError):
        shift_bound(0.0, 1.0, 1.0)
