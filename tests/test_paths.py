"""Schedules, grids and predictions against their definitions."""

import json
import math
import pickle
from dataclasses import dataclass
from typing import ClassVar, get_args

import mpmath
import pytest
import torch

import steadyflow as sf
from steadyflow import grids, schedules
from steadyflow.prediction import PredictionType
from steadyflow.schedules import VariancePreserving, _functions, from_spec

ZERO = sf.Tabulated((*sf.Tabulated.linear(100, 1e-3, 0.2).alphas_cumprod[:-1], 0.0))
PATHS = {
    "vp-linear": sf.VPLinear(),
    "vp-scaled-linear": sf.VPScaledLinear(),
    "vp-cosine": sf.VPCosine(),
    "ve": sf.VE(),
    "flow": sf.RectifiedFlow(),
    "flow-shift-3": sf.RectifiedFlow(shift=3.0),
    "sub-vp": schedules.SubVP(),
    "sub-vp-of-sbi": schedules.SubVP(0.01, 10.0),
    "linear-vp": schedules.LinearVP(),
    "polynomial-2": schedules.PolynomialFlow(2.0),
    "polynomial-half": schedules.PolynomialFlow(0.5),
    "noisy-flow": schedules.NoisyFlow(1e-3, 1.001),
    "noisy-flow-0": schedules.NoisyFlow(0.0),
    "smoothed-flow": schedules.SmoothedFlow(0.1),
    "tabulated": sf.Tabulated.linear(),
    "tabulated-scaled": sf.Tabulated.scaled_linear(),
    "tabulated-zero": ZERO,
}
paths = pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS)


def span(schedule):
    low, high = schedule.domain
    return low, min(high, 200.0) if isinstance(schedule, sf.VE) else high


def times(schedule):
    """Times over the whole path, its ends and their neighbourhoods included."""
    low, high = span(schedule)
    near = torch.logspace(-9, -2, 8, dtype=torch.float64) * (high - low)
    inner = torch.linspace(low, high, 101, dtype=torch.float64)
    return torch.cat([inner, low + near, high - near]).unique()


@paths
def test_time_comes_back_from_log_snr_and_ratio_to_1e_10_including_the_ends(schedule):
    t = times(schedule)
    size = span(schedule)[1]
    for there, back in ((schedule.log_snr, schedule.t_from_log_snr), (schedule.ratio, schedule.t_from_ratio)):
        assert (back(there(t)) - t).abs().max() < 1e-10 * size
        assert max(abs(back(there(float(s))) - float(s)) for s in t) < 1e-10 * size


@paths
def test_time_comes_back_from_alpha_and_sigma_where_they_determine_it(schedule):
    """A float64 number near 1 cannot say how near: where sigma or alpha is flat the bound is its conditioning."""
    t = times(schedule)
    size = span(schedule)[1]
    for name in ("alpha", "sigma"):
        if name == "alpha" and isinstance(schedule, sf.VE):
            continue
        there, back = getattr(schedule, name), getattr(schedule, f"t_from_{name}")
        h = 1e-6 * size
        inside = t[(t > span(schedule)[0] + h) & (t < size - h)]
        flatness = ((there(inside + h) - there(inside - h)) / (2 * h)).abs()
        bound = 1e-10 * size + 4e-16 / flatness
        assert ((back(there(inside)) - inside).abs() < bound).all()
        for end in span(schedule):
            assert back(there(end)) == pytest.approx(end, abs=1e-10 * size)


@paths
def test_singular_ends_are_exact(schedule):
    for end in span(schedule):
        level = schedule.log_snr(end)
        if math.isinf(level):
            assert schedule.t_from_log_snr(level) == pytest.approx(end, abs=1e-15)
            floored = isinstance(schedule, schedules.NoisyFlow | schedules.SmoothedFlow)
            top = schedule.sigma(1.0) if floored else 1.0
            assert (schedule.alpha(end), schedule.sigma(end)) == ((1.0, 0.0) if level > 0 else (0.0, top))


def test_the_paths_that_have_singular_ends_are_the_known_ones():
    clean = {name for name, s in PATHS.items() if s.sigma(s.domain[0]) == 0.0}
    noisy = {name for name, s in PATHS.items() if name != "ve" and s.alpha(s.domain[1]) == 0.0}
    others = {"linear-vp", "polynomial-2", "polynomial-half", "noisy-flow-0"}
    known = {"vp-linear", "vp-scaled-linear", "vp-cosine", "ve", "flow", "flow-shift-3", "sub-vp", "sub-vp-of-sbi"}
    assert clean == known | others
    assert noisy == {"vp-cosine", "flow", "flow-shift-3", "tabulated-zero", "noisy-flow", "smoothed-flow"} | others


@paths
def test_floats_and_tensors_agree_and_keep_their_kind(schedule):
    t = times(schedule)[1:-1]
    for name in ("log_snr", "alpha", "sigma", "ratio", "model_time"):
        f = getattr(schedule, name)
        loop = torch.tensor([f(float(s)) for s in t], dtype=torch.float64)
        torch.testing.assert_close(f(t), loop, rtol=1e-12, atol=1e-13)
        assert isinstance(f(float(t[3])), float)


@paths
def test_families_hold_and_log_snr_falls(schedule):
    t = times(schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if isinstance(schedule, sf.VE):
        assert (alpha == 1).all()
    elif isinstance(schedule, sf.RectifiedFlow | schedules.PolynomialFlow):
        torch.testing.assert_close(alpha + sigma, torch.ones_like(t))
    elif isinstance(schedule, schedules.SubVP):
        torch.testing.assert_close(alpha**2 + sigma, torch.ones_like(t))
    elif isinstance(schedule, schedules.NoisyFlow | schedules.SmoothedFlow):
        torch.testing.assert_close(alpha + t, torch.ones_like(t))
    else:
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert (schedule.log_snr(t).diff() < 0).all()


@pytest.mark.parametrize("t", [1e-6, 0.013, 0.37, 0.8, 0.999])
def test_schedules_follow_their_definitions_to_fifty_digits(t):
    mpmath.mp.dps = 50
    s = mpmath.mpf(t)
    linear = mpmath.exp(-mpmath.quad(lambda u: mpmath.mpf("0.1") + mpmath.mpf("19.9") * u, [0, s]) / 2)
    root = lambda u: mpmath.sqrt(mpmath.mpf("0.85")) * (1 - u) + mpmath.sqrt(12) * u  # noqa: E731
    scaled = mpmath.exp(-mpmath.quad(lambda u: root(u) ** 2, [0, s]) / 2)
    angle = lambda u: mpmath.cos(mpmath.pi / 2 * (u + mpmath.mpf("0.008")) / mpmath.mpf("1.008"))  # noqa: E731
    cosine = angle(s) / angle(0)
    for schedule, alpha in ((sf.VPLinear(), linear), (sf.VPScaledLinear(), scaled), (sf.VPCosine(), cosine)):
        assert schedule.alpha(t) == pytest.approx(float(alpha), rel=1e-12)
        assert schedule.sigma(t) == pytest.approx(float(mpmath.sqrt(1 - alpha**2)), rel=1e-9)
    sub, power = schedules.SubVP(), schedules.PolynomialFlow(3.0)
    assert (sub.alpha(t), sub.sigma(t)) == pytest.approx((float(linear), float(1 - linear**2)), rel=1e-12)
    assert power.sigma(t) == pytest.approx(float(1 - (1 - s) ** 3), rel=1e-12)
    assert schedules.LinearVP().sigma(t) == pytest.approx(float(mpmath.sqrt(1 - (1 - s) ** 2)), rel=1e-9)
    assert schedules.NoisyFlow(0.01, 1.01).sigma(t) == pytest.approx(t + 0.01, rel=1e-12)
    assert schedules.SmoothedFlow(0.1).sigma(t) == pytest.approx(math.hypot(t, 0.1), rel=1e-12)
    shifted = 3 * s / (1 + 2 * s)
    assert sf.RectifiedFlow(shift=3.0).sigma(t) == pytest.approx(float(shifted), rel=1e-12)


def test_a_table_is_met_at_its_entries_and_log_snr_is_linear_between():
    table = sf.Tabulated.linear()
    for i in (0, 1, 500, 998, 999):
        assert table.alpha(float(i)) ** 2 == pytest.approx(table.alphas_cumprod[i], rel=1e-13)
    middle = 0.5 * (table.log_snr(400.0) + table.log_snr(401.0))
    assert table.log_snr(400.5) == pytest.approx(middle, rel=1e-14)
    assert ZERO.alpha(98.5) == pytest.approx(0.5 * ZERO.alpha(98.0), rel=1e-12)


@paths
def test_a_schedule_survives_its_description_in_json(schedule):
    assert from_spec(json.loads(json.dumps(schedule.spec()))) == schedule


@pytest.mark.parametrize(("make", "message"), [
    (lambda: sf.VPLinear(beta_min=2.0, beta_max=1.0), "beta"),
    (lambda: sf.VPScaledLinear(beta_min=0.0), "beta"),
    (lambda: sf.RectifiedFlow(shift=0.0), "shift"),
    (lambda: sf.Tabulated((0.9,)), "at least 2"),
    (lambda: sf.Tabulated((0.5, 0.9)), "decreasing"),
    (lambda: sf.Tabulated((1.0, 0.5)), r"\[0, 1\)"),
    (lambda: sf.VE().t_from_alpha(1.0), "t_from_sigma"),
    (lambda: from_spec({"type": "VPLinaer"}), "did you mean 'VPLinear'"),
])  # fmt: skip
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(sf.InputError, match=message):
        make()


SPACINGS = {
    "uniform": lambda s, t: t,
    "quadratic": lambda s, t: math.sqrt(t),
    "log-snr": lambda s, t: s.log_snr(t),
    "karras": lambda s, t: s.ratio(t) ** (1 / 7),
}


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("path", ["vp-linear", "vp-cosine", "ve", "flow"])
def test_grids_are_equally_spaced_by_definition_with_their_ends_to_the_bit(name, path):
    schedule = PATHS[path]
    ends = {"t_min": 0.01, "t_max": 0.97}
    grid = grids.make(name, schedule, 17, **ends)
    assert (grid.times[0], grid.times[-1], grid.steps, len(grid)) == (0.97, 0.01, 17, 18)
    marks = torch.tensor([SPACINGS[name](schedule, t) for t in grid], dtype=torch.float64)
    gaps = marks.diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(17), rtol=1e-8, atol=1e-10)
    assert grid.reversed().reversed() == grid
    assert grid.reversed().times == grid.times[::-1]
    assert (grid.rising, grid.reversed().rising) == (False, True)


def test_grids_from_sigmas_and_timesteps():
    table = sf.Tabulated.scaled_linear()
    sigmas = [14.0, 3.0, 0.5]
    grid = sf.Grid.from_sigmas(sigmas, table)
    assert [table.ratio(t) for t in grid] == pytest.approx(sigmas, rel=1e-10)
    assert sf.Grid.from_timesteps([900, 500], final=0).times == (900.0, 500.0, 0.0)
    top = torch.tensor(table.ratio(999.0)).float().item() * (1 + 5e-8)  # the end of the path, in single precision
    assert sf.Grid.from_sigmas([top, 1.0], table).times[0] == 999.0
    assert grids.make(grid.reversed(), table, 99) == grid


@pytest.mark.parametrize(("make", "message"), [
    (lambda s: sf.Grid((0.5,)), "at least 2"),
    (lambda s: sf.Grid((0.5, 0.7, 0.6)), "entry 1 is 0.7 and entry 2 is 0.6"),
    (lambda s: sf.Grid((0.5, 0.5)), "strictly"),
    (lambda s: sf.Grid((0.5, float("nan"))), "finite"),
    (lambda s: sf.Grid((1.5, 0.5)).check_domain(s), "defined on"),
    (lambda s: grids.make("unifrom", s, 5), "did you mean 'uniform'"),
    (lambda s: grids.make("uniform", s, 0), "steps"),
    (lambda s: grids.make("uniform", s, 5, t_min=0.9, t_max=0.1), "t_min < t_max"),
    (lambda s: grids.make("log-snr", sf.RectifiedFlow(), 5), "infinite"),
    (lambda s: grids.make("karras", sf.RectifiedFlow(), 5), "infinite"),
    (lambda s: grids.make("uniform", s, 5, rho=3.0), "rho"),
    (lambda s: grids.make(sf.Grid((0.5, 0.1)), s, 5, t_max=0.4), "its own times"),
])  # fmt: skip
def test_bad_grids_are_refused(make, message):
    with pytest.raises(sf.InputError, match=message):
        make(sf.VPLinear())


KINDS = ["epsilon", "sample", "v_prediction", "flow", "score"]


def outputs(kind, x0, eps, alpha, sigma):
    return {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": alpha * eps - sigma * x0,
        "flow": eps - x0,
        "score": -eps / sigma,
    }[kind]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@paths
def test_data_and_noise_come_back_from_every_prediction(schedule, kind, per_sample):
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    low, high = span(schedule)
    t = low + (high - low) * torch.tensor([0.2, 0.4, 0.5, 0.7, 0.9], dtype=torch.float64)
    t = t if per_sample else float(t[1])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if per_sample:
        alpha, sigma = alpha[:, None], sigma[:, None]
    x = alpha * x0 + sigma * eps
    net = lambda x, time: outputs(kind, x0, eps, alpha, sigma)  # noqa: E731
    prediction = sf.Denoiser(net, schedule, prediction=kind)(x, t)
    torch.testing.assert_close(prediction.x0, x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prediction.eps, eps, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prediction.flow, eps - x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prediction.score, -eps / sigma, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prediction.mix(0.3, -2.0), 0.3 * x0 - 2.0 * eps, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", get_args(PredictionType))
@pytest.mark.parametrize(("data", "noise"), [(1.0, 0.0), (0.0, 1.0), (-1.0, 1.0), (0.3, 0.8)])
@pytest.mark.parametrize(("alpha", "sigma"), [(0.6, 0.8), (1e-4, 1.0), (1.0, 1e-4), (1.0, 80.0)])
def test_a_reading_up_to_a_factor_is_the_reading(kind, data, noise, alpha, sigma):
    x, output = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    prediction = sf.Prediction(x, output, kind, alpha, sigma)
    tensor, factor = prediction.scaled(data, noise)
    wanted = prediction.mix(data, noise)
    torch.testing.assert_close(factor * tensor, wanted, rtol=1e-12, atol=1e-12 * float(wanted.abs().max()))


@pytest.mark.parametrize(("kind", "alpha", "sigma", "reading"), [
    ("epsilon", 0.0, 1.0, "x0"), ("score", 0.0, 1.0, "x0"), ("sample", 1.0, 0.0, "eps"), ("epsilon", 1.0, 0.0, "score"),
])  # fmt: skip
def test_readings_that_do_not_exist_at_a_singular_end_say_so(kind, alpha, sigma, reading):
    prediction = sf.Prediction(torch.ones(1, 1), torch.ones(1, 1), kind, alpha, sigma)
    with pytest.raises(sf.SingularTimeError, match="> 0"):
        getattr(prediction, reading)


def test_an_unknown_prediction_or_schedule_is_refused():
    with pytest.raises(sf.UnknownNameError, match="did you mean 'epsilon'"):
        sf.Denoiser(lambda x, t: x, sf.VPLinear(), prediction="epsilom")
    with pytest.raises(sf.InputError, match="expected a steadyflow schedule"):
        sf.Denoiser(lambda x, t: x, "cosine")


def test_scalar_helpers_have_the_limits_at_infinity():
    assert _functions.sigmoid(-math.inf) == 0.0
    assert _functions.sigmoid(math.inf) == 1.0
    assert _functions.softplus(-math.inf) == 0.0
    assert _functions.exp(1e4) == math.inf
    assert _functions.log(0.0) == -math.inf


@dataclass(frozen=True)
class Counted(VariancePreserving):
    """A path of the user's own that says only how its log-SNR falls, and counts how often it is asked."""

    slope: float = 8.0
    t_min: float = 0.1
    t_max: float = 0.9
    asked: ClassVar[list[float]] = []

    def log_snr(self, t):
        self.asked.append(t)
        return self.slope * (0.5 - t)


def test_the_numbers_of_a_level_are_worked_out_once_for_equal_paths_and_not_sent_along():
    Counted.asked.clear()
    first = Counted().at(0.25)
    count = len(Counted.asked)
    assert Counted().at(0.25) is first
    assert len(Counted.asked) == count
    assert Counted(slope=9.0).at(0.25) != first
    path = sf.VPCosine()
    for k in range(1, 10_000):
        path.at(k / 10_000)
    again = pickle.loads(pickle.dumps(path))
    assert again == path
    assert len(pickle.dumps(path)) < 500


def test_a_level_holds_the_numbers_of_the_path():
    for path in (sf.VPLinear(), sf.VPCosine(), sf.VE(), sf.RectifiedFlow(), sf.Tabulated.linear()):
        for t in (path.t_min, 0.5 * (path.t_min + path.t_max), path.t_max):
            expected = (t, path.alpha(t), path.sigma(t), path.log_snr(t), path.ratio(t))
            assert tuple(path.at(t)) == expected


def test_a_path_without_an_inverse_of_its_own_is_inverted_by_bisection():
    path = Counted()
    for t in (0.1, 0.37, 0.9):
        assert path.t_from_log_snr(path.log_snr(t)) == pytest.approx(t, abs=1e-12)
    times = torch.tensor([0.1, 0.37, 0.9], dtype=torch.float64)
    torch.testing.assert_close(path.t_from_log_snr(path.log_snr(times)), times)
    assert schedules.from_spec(path.spec()) == path
    model = sf.GaussianMixture.grid(2, std=0.3).denoiser(path)
    assert sf.reconstruct(model, model.mixture.sample(4)).error.max() < 1e-3


def test_a_path_that_asks_its_base_at_another_time_is_not_answered_from_memory():
    class Slower(sf.VPLinear):
        def log_snr(self, t):
            return super().log_snr(0.5 * t)

    times = (0.25, 0.5, 1.0)
    for order in (times, times[::-1]):
        path = Slower()
        assert {t: path.log_snr(t) for t in order} == {t: sf.VPLinear().log_snr(0.5 * t) for t in order}
