"""The mode interpolation study: the paper's claims on the bundled models, small; runs that go on."""

import json

import pytest
import torch

import steadyflow as sf
from steadyflow.diagnostics.detectors import TrajectoryVariance, roc_area
from steadyflow.jacobians import largest_singular_value
from steadyflow_lab import hallucination
from steadyflow_lab.hallucination import setting
from steadyflow_lab.hallucination.drawing import Request, run
from steadyflow_lab.hallucination.findings import QUICK, Size
from steadyflow_lab.theory.interpolation import INTERPOLATED

SMALL = Size(4000, 1500, 16)


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


@pytest.mark.parametrize("figure", ["1", "4", "E.6", "E.12", "E.14", "I.1"])
def test_the_papers_claims_hold_in_the_small(figure):
    assert hallucination.FIGURES[figure](SMALL).holds


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


def test_a_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    first = hallucination.run_figures(["E.12"], quick=True, folder=tmp_path)
    monkeypatch.setitem(hallucination.FIGURES, "E.12", lambda size: pytest.fail("was there"))
    assert hallucination.run_figures(["E.12"], quick=True, folder=tmp_path) == first
    path = tmp_path / "hallucination-E.12-quick.json"
    data = json.loads(path.read_text())
    assert data["stamp"]["n"] == QUICK.n
    path.write_text(path.read_text()[:100])
    with pytest.raises(sf.CorruptFileError, match="delete it"):
        hallucination.run_figures(["E.12"], quick=True, folder=tmp_path)
    with pytest.raises(sf.UnknownNameError, match=r"E\.99"):
        hallucination.run_figures(["E.99"])
