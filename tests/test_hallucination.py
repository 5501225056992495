"""The mode interpolation study: the paper's claims on the bundled models, small; runs that go on."""

import json

import pytest
import torch

import steadyflow as sf
from steadyflow.diagnostics import critical_window
from steadyflow.diagnostics.detectors import TrajectoryVariance, roc_area
from steadyflow.jacobians import largest_singular_value
from steadyflow_lab.findings import Size
from steadyflow_lab.hallucination import PAPER, convergence, rates, saddle, setting
from steadyflow_lab.hallucination.drawing import Request, run
from steadyflow_lab.studies import Bench, run_figures
from steadyflow_lab.theory.interpolation import INTERPOLATED

SMALL = Size("quick", 4000, 1500, 16)


def test_the_papers_grid_is_fifty_rising_timesteps_turned_around():
    times = setting.quadratic(50).times
    assert len(times) == 50
    assert times[-10:] == (26.0, 21.0, 16.0, 11.0, 8.0, 5.0, 3.0, 2.0, 1.0, 0.0)
    assert times[0] == 800.0
    assert setting.every().times[:2] == (999.0, 998.0)


def test_the_plane_has_forty_segments_and_starts_lie_on_them():
    problem = setting.exact()
    assert len(setting.segments(problem.mixture)) == 40
    states = setting.on_segments(problem, torch.full((40,), 0.1))
    t = setting.quadratic(50).times[-10]
    assert setting.near_midpoint(problem, states, t, 0.11).all()
    assert not setting.near_midpoint(problem, states, t, 0.09).any()


HOLDING = {
    "1": ["figure 1"],
    "4": ["T4.2, figure 4", "T4.2, figure 4", "figure 4", "C4.3"],
    "5": ["figure 5", "figure 5"],
    "D": ["D.1, figure 1"],
    "E.12": ["P4.7 (1)", "figure E.12"],
    "E.14": ["equation 5, figure E.14", "equation 6, figure E.14"],
}


@pytest.mark.parametrize("figure", HOLDING)
def test_the_papers_claims_hold_in_the_small(figure):
    found = PAPER.figures[figure](Bench(SMALL))
    assert [claim.label for claim in found.claims] == HOLDING[figure]
    open_ = {"figure 4"}  # a slope over 200 noisy trajectories, too few for its margin
    verdicts = {claim.label: claim.verdict for claim in found.claims}
    assert all(word == "holds" or (word == "not decided" and label in open_) for label, word in verdicts.items())


def test_with_the_exact_score_the_midpoint_holds_only_what_starts_next_to_it():
    """The start on the midpoint itself is of measure zero, and counts for nothing."""
    found = PAPER.figures["E.15"](Bench(SMALL))
    assert found.claims[0].verdict == "holds in part"
    offsets = [float(head) for head in found.heads[1:]]
    assert min(offsets) > 0.0
    rates = dict(zip(offsets, found.curves[0].y, strict=True))
    assert rates[1e-12] == 1.0
    assert rates[0.05] == 0.0


def test_the_centre_of_a_cell_is_in_no_midpoints_neighbourhood():
    problem = setting.exact()
    t = setting.quadratic(50).times[-10]
    alpha, means = problem.schedule.alpha(t), problem.mixture.means
    pair = means[setting.segments(problem.mixture)[0]]
    length = setting.pair_length(problem)
    centre = means[[0, 1, 5, 6]].mean(0)
    across = pair.mean(0) + torch.tensor([[0.3 * length, 0.0], [0.0, 0.3 * length]])
    states = alpha * torch.cat([pair.mean(0)[None], across, centre[None], pair[:1]])
    assert setting.near_midpoint(problem, states, t, 0.35).tolist() == [True, True, True, False, False]


def test_a_verdict_can_come_out_the_other_way(monkeypatch):
    """DDPM and DDIM change places: the claim of figure 1 fails, and so does that of I.1."""
    swapped = (
        setting.Method("DDIM-50", "ddpm", setting.every),
        setting.Method("DDPM-1000", "ddim", setting.quadratic_50),
    )
    monkeypatch.setattr(rates, "ddim", lambda count=50: swapped[0])
    monkeypatch.setattr(rates, "DDPM", swapped[1])
    assert rates.figure_1(Bench(Size("small", 1500, 4000))).claims[0].verdict == "does not hold"


def test_trajectories_that_change_their_pair_or_come_late_are_judged_too():
    problem = setting.exact()
    found = convergence.paths(problem, setting.ddim(200), 300)
    by = convergence.convergence(problem, found)
    assert by.judged.double().mean() > 0.99
    assert by.alone.any()
    assert len(by.bounded) == int(by.judged.sum())
    assert by.bounded.all()
    away = convergence.Paths(found.y.clone(), found.s2)
    away.y[-1] += 0.15  # off the segment at the very end, by more than the tail
    assert not convergence.convergence(problem, away).bounded.all()


def test_the_trapping_radius_is_that_of_the_parallel_dynamics():
    problem = setting.learned()
    seen = saddle.observed_radius(problem, 91)
    told = saddle.reduced_radius(saddle.profile(problem), saddle.factors(problem)[0])
    assert (told / seen).log().abs().median() < 0.1
    assert (seen > 0.005).all()


def test_near_the_midpoint_ddim_stays_where_ddpm_and_hybrids_leave():
    problem = setting.learned()
    start = setting.on_segments(problem, torch.linspace(-0.15, 0.15, 800))
    methods = (setting.ddim(), setting.hybrid(5), setting.DDPM)
    requests = [Request(method, 800, start=start, tau=setting.TAU) for method in methods]
    rates = [outcome.classes.rate() for outcome in run(problem, requests)]
    assert rates[0].low > 2.0 * rates[2].high
    assert rates[0].low > rates[1].high


def test_escape_frees_the_learned_models_trapped_samples_at_little_cost():
    """Against DDIM at 50 evaluations; the bound of 1.15 times that counts a Jacobian product as two."""
    problem = setting.learned()
    escape = setting.Method("escape", "ddim", setting.quadratic_50, sf.corrections.Escape)
    plain, freed = run(problem, [Request(method, 6000, seed=1) for method in (setting.ddim(), escape)])
    before, after = plain.classes.rate(), freed.classes.rate()
    assert before.low > 0.003
    assert after.value <= before.value / 20.0
    assert freed.evaluations <= 57.5
    assert (plain.classes.balance(25) - freed.classes.balance(25)).abs().sum() < 0.05


def test_the_detectors_find_interpolated_samples_without_knowing_the_modes():
    problem = setting.learned()
    (outcome,) = run(problem, [Request(setting.ddim(), 10_000, watch=_Looks)])
    positive = outcome.classes.kind == INTERPOLATED
    assert roc_area(outcome.found[:, 1], positive) > 0.99
    assert roc_area(outcome.found[:, 0], positive) > 0.95


class _Looks:
    def __init__(self):
        self.variance = TrajectoryVariance(10)

    def __call__(self, info):
        self.variance(info)
        if info.remaining == 7:
            self.look = largest_singular_value(info.model, info.x, info.t)

    @property
    def found(self):
        return torch.stack([self.variance.scores, self.look], 1)


@pytest.mark.parametrize("dim", [2, 8])
def test_the_critical_window_is_where_the_modes_say_that_samples_are_decided(dim):
    problem = setting.exact(dim, level=True)
    window = critical_window(problem.model, n=400, grid=setting.quadratic(50), solver="ddim", end="path", seed=0)
    length = setting.pair_length(problem)
    s2 = torch.tensor([problem.mixture.spread**2 + problem.schedule.ratio(float(t)) ** 2 for t in window.times])
    merged = window.undecided[(length**2 / (4.0 * s2) < 0.5)]
    assert len(merged) > 5
    assert (merged == 0.0).all()
    assert window.opens > window.peak > window.closes
    assert window.undecided.max() == window.undecided[window.remaining == window.peak]
    assert window.undecided[window.remaining == window.closes] <= 0.1
    assert window.evaluations == 5.0 * len(window.remaining)
    assert (window.decided[window.decided >= 0] <= window.opens).all()


def test_escape_placed_by_the_window_frees_what_one_set_by_hand_does_not():
    """Twenty uniform steps with the exact score: the settings for fifty quadratic ones act where nothing is decided."""
    problem = setting.exact()
    method = setting.Method("DDIM", "ddim", setting.uniform_20)
    options = {"grid": setting.uniform_20(), "solver": "ddim", "end": "path", "noise": "white", "seed": 3}
    escape = sf.corrections.Escape.within(critical_window(problem.model, n=256, **options))
    placed = setting.Method("placed", "ddim", setting.uniform_20, lambda: escape)
    plain, freed = run(problem, [Request(m, 3000, seed=1) for m in (method, placed)])
    assert plain.classes.rate().low > 0.1
    assert freed.classes.rate().high < plain.classes.rate().low / 4.0
    assert freed.evaluations < 35.0


def test_a_critical_window_that_is_not_there_is_named():
    one = sf.GaussianMixture(torch.zeros(1, 2), 0.5).denoiser(sf.VPLinear())
    with pytest.raises(sf.InputError, match="contracts everywhere"):
        critical_window(one, n=16, steps=10)
    with pytest.raises(sf.InputError, match="level"):
        critical_window(one, level=1.0)
    with pytest.raises(sf.InputError, match="single step"):
        critical_window(one, n=4, steps=1, solver="ddim")
    with pytest.raises(sf.InputError, match="products"):
        critical_window(one, products=0)
    for name in ("x", "callback"):
        with pytest.raises(sf.InputError, match=f"{name} is set here"):
            critical_window(one, **{name: None})


def test_a_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    first = run_figures(PAPER, ["E.12"], quick=True, folder=tmp_path)
    monkeypatch.setitem(PAPER.figures, "E.12", lambda bench: pytest.fail("was there"))
    assert run_figures(PAPER, ["E.12"], quick=True, folder=tmp_path) == first
    path = tmp_path / "hallucination-E.12-quick.json"
    data = json.loads(path.read_text())
    assert data["stamp"]["size"]["n"] == PAPER.quick.n
    path.write_text(path.read_text()[:100])
    with pytest.raises(sf.CorruptFileError, match="delete it"):
        run_figures(PAPER, ["E.12"], quick=True, folder=tmp_path)
    with pytest.raises(sf.UnknownNameError, match=r"E\.99"):
        run_figures(PAPER, ["E.99"])
