"""The study of SteinDiff: laws of states against closed forms and samples, estimators of spreads, verdicts."""

import dataclasses
import itertools
import math

import pytest
import torch

import steadyflow as sf
from steadyflow.corrections import Calibrated, Stein
from steadyflow.metrics.statistics import Estimate
from steadyflow.solvers.base import Step
from steadyflow_lab import studies
from steadyflow_lab.findings import FAILS, HOLDS, OPEN, PARTLY, Finding, Size
from steadyflow_lab.stein import (
    PAPER,
    bound,
    coefficient,
    drifting,
    overhead,
    quality,
    runs,
    settings,
    states,
    trap,
    variance,
)
from steadyflow_lab.stein.problems import problems
from steadyflow_lab.theory.stein import shift_bound, shifts

EVERYWHERE = (0.0, math.inf)
TINY = Size("quick", n=60, long=1000, images=200)
BENCH = studies.Bench(TINY)
LEVELS = (20.0, 2.0, 0.8, 0.3, 0.1)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_on_a_gaussian_the_states_law_is_its_formula_and_the_bound_is_the_error(dim, bias):
    """All is linear there: u and s - s_q are proportional where the mean is none, so that the bound is attained."""
    spread = 0.7
    data = sf.GaussianMixture(torch.zeros(1, dim, dtype=torch.float64), spread)
    mean, variance_of = 0.0, LEVELS[0] ** 2  # of the states, along an axis
    for found, (chi, end) in zip(shifts(data, LEVELS, bias=bias), itertools.pairwise(LEVELS), strict=True):
        total, r = spread**2 + chi**2, end / chi
        a, b = (1.0 - r) * chi**2 / total, -(1.0 - r) * bias  # u = a y + b
        size = dim * (a * a * (variance_of + mean * mean) + 2.0 * a * b * mean + b * b)
        assert found.coefficient == pytest.approx(chi**2 * dim * a / size, rel=1e-5)
        slope = 1.0 / variance_of - 1.0 / total  # s - s_q = slope y + shift
        shift = bias / chi**2 - mean / variance_of
        fisher = dim * (slope**2 * (variance_of + mean**2) + 2.0 * slope * shift * mean + shift**2)
        assert found.bound == pytest.approx(shift_bound(size, fisher, chi), rel=1e-4, abs=1e-7)
        assert found.meant == pytest.approx(chi / (chi - end), rel=1e-6)  # Euler's step to the model's own estimate
        assert found.lipschitz == pytest.approx(1.0 - a, rel=1e-9)
        assert found.identity < 1e-6
        if bias == 0.0:
            assert found.error == pytest.approx(found.bound, rel=1e-3, abs=1e-6)
        assert found.error <= found.bound + 1e-6
        mean, variance_of = (1.0 - a) * mean - b, (1.0 - a) ** 2 * variance_of


@pytest.mark.parametrize("dim", [1, 2])
def test_the_followed_law_is_that_of_the_librarys_run(dim):
    generator = torch.Generator().manual_seed(5)
    data = sf.GaussianMixture(1.2 * torch.randn(3, dim, generator=generator, dtype=torch.float64), 0.3)
    path = sf.VE()
    grid = sf.Grid(tuple(path.t_from_ratio(chi) for chi in LEVELS))
    steins = [Stein("clean", 1e-12, method="exact", levels=EVERYWHERE) for _ in range(20)]  # which change nothing
    for seed, stein in enumerate(steins):
        options = {"n": 1000, "grid": grid, "solver": "ddim", "dtype": torch.float64, "end": "path", "seed": seed}
        sf.sample(data.denoiser(path), corrections=[stein], **options)
    for k, found in enumerate(shifts(data, LEVELS, side=121)):
        drawn = torch.stack([stein.record.coefficients[k][1] for stein in steins])
        error = (drawn.std() / math.sqrt(len(drawn))).item()
        assert abs(found.coefficient - drawn.mean().item()) < 5.0 * error + 0.002
        assert found.identity < 0.01
        assert bound.kept(found)


def test_shifts_refuse_what_they_do_not_know():
    wide = sf.GaussianMixture(torch.zeros(1, 3), 0.5)
    with pytest.raises(sf.InputError, match="one or two dimensions"):
        shifts(wide, LEVELS)
    with pytest.raises(sf.InputError, match="falling"):
        shifts(sf.GaussianMixture(torch.zeros(1, 2), 0.5), LEVELS[::-1])


@pytest.mark.parametrize("form", states.FORMS)
def test_terms_are_those_of_the_librarys_correction(form):
    model, x0 = states.data_of("64-D", 40, 0)
    x, step = states.noised(model, x0, 2.0, 1), states.step_at(model, 2.0, 0.5)
    stein = Stein(form, math.inf, EVERYWHERE, probes=3)
    sf.sample(model, x=x, grid=sf.Grid((step.t0, step.t1)), solver="ddim", corrections=[stein], end="path")
    found = states.terms(model, x, step, form, x0=x0, probes=3)
    assert found.coefficient == pytest.approx(stein.record.coefficients[0][1].item(), rel=1e-4)
    assert states.terms(model, x, step, form, x0=x0, method="exact").above.shape == (1, 40)


def test_states_of_a_run_are_those_of_the_run():
    model, _ = states.data_of("2-D", 10, 0)
    found = states.run_states(model, 10, 4, 0)
    assert len(found) == 4
    assert all(isinstance(step, Step) for _, step in found)
    x, step = found[1]
    landed = sf.sample(model, x=x, grid=sf.Grid((step.t0, step.t1)), solver="ddim", end="path").x
    assert torch.allclose(landed, found[2][0], atol=1e-6)


def made(noise, n=1024, probes=8, seed=0):
    """Terms of mean 2 whose numerator has noise of the probes and of the samples."""
    generator = torch.Generator().manual_seed(seed)
    samples, drawn = torch.randn(n, generator=generator), torch.randn(probes, n, generator=generator)
    above = (2.0 + noise[0] * drawn + noise[1] * samples).double()
    ones = torch.ones(n, dtype=torch.float64)
    return states.Terms("", above, ones, 0.0 * ones, 2.0 * ones, 2.0 * ones, 1.0)


def test_spreads_are_told_apart_by_their_source():
    quiet, probes, batch = made((0.1, 0.1)), made((0.5, 0.1)), made((0.1, 0.5))
    for of in ("probes", "batch", "step"):
        same = variance.spread_ratio(quiet, quiet, 32, of=of)
        assert same.value == same.low == same.high == 1.0
    found = variance.spread_ratio(quiet, probes, 32, of="probes")
    assert found.low < 5.0 < found.high
    found = variance.spread_ratio(quiet, batch, 32, of="probes")
    assert found.value == pytest.approx(1.0, abs=0.05)
    found = variance.spread_ratio(quiet, batch, 32, of="batch")
    assert found.low < math.sqrt(0.26 / 0.02) < found.high


def test_a_ratio_of_means_and_a_median_have_intervals_that_hold_them():
    generator = torch.Generator().manual_seed(0)
    below = 1.0 + torch.rand(4000, generator=generator, dtype=torch.float64)
    found = states.ratio_of_means(3.0 * below + torch.randn(4000, generator=generator), below, level=0.9999)
    assert found.low < 3.0 < found.high
    assert found.high - found.low < 0.2
    assert overhead.median([1.0, 2.0, 9.0]).value == 2.0


def test_verdicts_and_ratios_count_what_broke_off():
    assert quality.decided([True, True]) == HOLDS
    assert quality.decided([True, False]) == PARTLY
    assert quality.decided([False, False]) == FAILS
    good = runs.Result("p", "exact", 5, "plain", "plain", 0, 2.0, 1.0, 1.0, 1.0, math.nan, 0.0, math.nan)
    broken = dataclasses.replace(good, distance=math.inf)
    half = dataclasses.replace(good, distance=1.0)
    assert runs.log_ratios([half], [good]) == [math.log(0.5)]
    assert runs.log_ratios([broken], [good]) == [math.log(1e3)]
    assert runs.log_ratios([good], [broken]) == [-math.log(1e3)]


def test_the_papers_forms_act_everywhere_per_batch_and_permuting_moves_factors_to_other_levels():
    found = settings.families()
    assert {*settings.FREE, *settings.CLAMPED, *settings.CONTROLS, "moments, calibrated"} <= set(found)
    problem = problems("tuning", 30)[0]
    for label, setting in settings.settings().items():
        correction = setting.make(problem)
        if setting.family.startswith("paper"):
            assert isinstance(correction, Stein)
            assert correction.levels == EVERYWHERE
            assert correction.per == "batch"
            assert (correction.trust == math.inf) == ("free" in label)
    factors = Calibrated((0.1, 1.0, 10.0, 20.0), (0.9, 1.0, 1.1, 1.2))
    moved = settings.permuted(factors, 1)
    assert moved.factors != factors.factors
    assert sorted(moved.factors) == sorted(factors.factors)
    assert moved.levels == factors.levels


@pytest.fixture
def small(monkeypatch):
    """The study on one exact problem and the digits, with a few settings."""
    kept = ("plain", "twice the steps", "one more step", "clean, free", "VP, free", "clean, trust 0.1", "VP, trust 0.1")
    kept += ("times 0.985, first", "times 1.05, all", "moments, trust 0.3", "moments, trust 0.3, kept")
    few = {label: one for label, one in settings.settings().items() if label in kept}
    chosen = ("2-D", "digits")
    monkeypatch.setattr(runs, "settings", lambda: few)
    for module in (runs, quality):
        monkeypatch.setattr(module, "families", lambda: list(dict.fromkeys(s.family for s in few.values())))
        monkeypatch.setattr(module, "problems", lambda part, n: [p for p in problems(part, n) if p.name in chosen])
    monkeypatch.setattr(quality, "_KINDS", ("exact", "learned"))


def test_the_study_tells_the_coefficient_as_written_from_its_controls(small, tmp_path):
    bench = dataclasses.replace(BENCH, folder=tmp_path)
    found = quality.study_figure(bench, "ddim")
    assert [claim.verdict for claim in found.claims if "as written" in claim.label] == [FAILS]
    study = runs.study(bench, "ddim")  # from the cells of the folder
    assert study.ratio("paper, clean, free").low > 1.5
    assert study.ratio("equal cost").high < 1.0
    assert study.chosen["constant"] in ("times 0.985, first", "times 1.05, all")
    clipped = [r.limited for r in study.of("paper, clean, clamped")]
    assert all(0.0 <= share <= 1.0 for share in clipped)
    assert all(math.isnan(r.recognised) == (r.kind == "exact") for r in study.results)
    table = quality.quality(bench)
    assert len(table.rows) == 1 + len(quality._SHOWN)
    assert Finding.read(dataclasses.asdict(table)) == table


def verdicts(found):
    return {claim.label: claim.verdict for claim in found.claims}


def test_the_bound_is_kept_and_its_tightness_is_told():
    found = bound.bound(BENCH)
    got = verdicts(found)
    assert got["bound"] == got["bound, where contraction fails"] == HOLDS
    assert got["ours: tight"] == PARTLY
    assert len(found.rows) == 12


def test_figures_of_the_coefficient():
    held = verdicts(coefficient.coefficient(BENCH))
    assert held["reference-free along a run, VP"] != HOLDS
    assert all(held[f"closed form, {name}"] != FAILS for name in ("clean (EDM)", "VP"))
    assert verdicts(coefficient.edm(BENCH))["EDM view"] == HOLDS
    drift = drifting.drift(BENCH)
    assert verdicts(drift)["VP singularity"] == HOLDS
    assert [curve.y[-1] > curve.y[0] for curve in drift.curves] == [True] * 6
    spread = variance.variance(BENCH)
    assert len(spread.rows) == 3 * 5 * 2


def test_the_trap_is_in_the_constants_and_time_in_the_products(monkeypatch):
    monkeypatch.setattr(trap, "_GUIDANCES", (7.5,))
    monkeypatch.setattr(trap, "_SOLVERS", ("ddim",))
    assert verdicts(trap.trap(BENCH))["trap: constants"] != FAILS
    timed = overhead._Timed("digits", {"plain": [1.0] * 5, "the rest": [1.02] * 5, **{
        f"{method}, {m}": [2.0 + 0.8 * m] * 5 for method in ("vjp", "jvp") for m in (1, 2, 4)}},
        {f"vjp, {m}": 2.0 + 2.0 * m for m in (1, 2, 4)})  # fmt: skip
    got = {claim.label: claim for claim in overhead._claims([timed])}
    assert "0.8 [0.8, 0.8]" in got["table 3: a VJP"].here
    assert got["table 3: a VJP"].verdict == got["table 3: the rest"].verdict == HOLDS
    assert got["ours: the counter"].verdict == FAILS
    wide = {"a": Estimate(1.0, 0.5, 1.5)}
    assert [overhead.below(limit, wide) for limit in (2.0, 1.0, 0.4)] == [HOLDS, OPEN, FAILS]
    assert set(PAPER.figures) >= {"trap", "overhead", "bound", "quality", *(f"study-{s}" for s in runs.SOLVERS)}
