"""The study of edits, small: what it claims must show, its verdicts can come out either way, and its runs go on."""

import math

import pytest
import torch

pytest.importorskip("diffusers")

import steadyflow as sf
from steadyflow.errors import UnknownNameError
from steadyflow_lab.editing import PAPER, coupling, diagnostic, equations, ink, knob, smoothing, tradeoff
from steadyflow_lab.editing.ink import Seen
from steadyflow_lab.editing.methods import AUTO, METHODS, PUBLISHED, label, paired_rates, solver_of
from steadyflow_lab.findings import Size
from steadyflow_lab.studies import Bench

FEW = (("ees25", {}), ("ees27", {}), ("rex-euler", {}), ("rex-midpoint", AUTO), ("edict", {}), ("belm", {}))
TINY = Bench(Size("quick", n=4, long=1, images=2))


@pytest.fixture(scope="module")
def rows():
    return {row.method: row for row in coupling.study(Bench(Size("full", n=24)), "mixture", FEW, (1.0, 7.5))}


def median(values):
    return sorted(values)[len(values) // 2]


def test_some_exactly_reversible_solvers_blow_up_under_strong_guidance_where_near_reversible_ones_do_not(rows):
    assert rows["rex-euler"].largest[7.5] > 100
    assert rows["edict"].largest[7.5] > 10
    for name in ("ees25", "ees27", "belm"):  # and not all of them do
        assert rows[name].largest[7.5] < 5


def test_automatic_coupling_is_exact_at_every_guidance_and_near_the_fine_solve(rows):
    auto, fixed = rows["rex-midpoint, flow, auto"], rows["rex-euler"]
    assert median(auto.edit_error[7.5]) < median(fixed.edit_error[7.5]) / 50
    assert max(auto.round_trip[1.0] + auto.round_trip[7.5]) < 1e-12
    assert median(auto.edit_error[7.5]) < 0.02
    assert median(rows["ees25"].round_trip[7.5]) > 100 * median(rows["ees25"].round_trip[1.0])


def test_all_methods_spend_the_same_evaluations(rows):
    assert {row.nfe for row in rows.values()} == {48}


def test_an_unknown_problem_is_refused():
    with pytest.raises(UnknownNameError, match="problem 'mixtures'"):
        coupling.problem("mixtures", 3)


def test_every_exactly_reversible_family_is_compared():
    families = {"alf", "belm", "bdia", "edict", "reversible-heun", "rex-euler", "rex-midpoint"}
    assert families <= {name for name, _ in PUBLISHED}
    assert all(solver_of(method).properties.inverse == "exact" for method in PUBLISHED)
    assert len(METHODS) == len(set(map(label, METHODS)))


def test_near_reversibility_is_an_equation():
    """By hand: R(z) of EES(2,5;x) is 1 + z + z^2/2 + z^3/8 for every x."""
    power, factor = equations.leading(("ees25", {}))
    assert (power, factor) == (6, pytest.approx(-1 / 64))
    assert equations.leading(("ees25", {"x": 0.3}))[1] == pytest.approx(-1 / 64)
    assert equations.leading(("rk4", {})) == (6, pytest.approx(1 / 72))
    assert equations.leading(("ees27", {}))[0] == 8
    assert equations.leading(("belm", {})) is None
    (claim,) = equations.figure(TINY).claims
    assert claim.verdict == "holds"


def seen(kept, aligned, success, blown=False, n=12):
    """What is seen of pictures that differ by a little."""
    wave = [0.01 * math.sin(k) for k in range(n)]
    hits = [k < success * n for k in range(n)]
    return Seen([kept + w for w in wave], [aligned + w for w in wave], hits, [0.0] * n, [blown] * n)


def row(method, w, *what, **more):
    return tradeoff.Row(method, w, seen(*what, **more), 1.0, tradeoff.median([0.0, 0.0]))


def test_the_trade_off_is_judged_by_paired_differences():
    def found(kept, aligned):
        return {
            ("ees25", 3.0): row("ees25", 3.0, 20.0, 0.8, 1.0),
            ("edict", 3.0): row("edict", 3.0, kept, aligned, 1.0),
        }

    verdicts = [tradeoff._trade(found(*what), ["edict"], [3.0]).verdict for what in ((22.0, 0.5), (18.0, 0.5))]
    assert verdicts == ["holds", "does not hold"]
    assert tradeoff._trade(found(22.0, 0.799), ["edict"], [3.0]).verdict == "does not hold"  # nobody would see that


def test_stability_under_large_edits_is_judged_against_every_exact_solver():
    near = row("ees25", 7.5, 20.0, 0.8, 1.0)
    for others, verdict in (
        ({"edict": 0.2, "belm": 0.2}, "holds"),
        ({"edict": 0.2, "belm": 1.0}, "holds in part"),
        ({"edict": 1.0, "belm": 1.0}, "not decided"),
    ):
        found = {("ees25", 7.5): near} | {(m, 7.5): row(m, 7.5, 20.0, 0.8, s) for m, s in others.items()}
        assert tradeoff._stable(found, list(others), 7.5).verdict == verdict
    found = {("ees25", 7.5): row("ees25", 7.5, 20.0, 0.8, 0.3), ("belm", 7.5): row("belm", 7.5, 20.0, 0.8, 1.0)}
    assert tradeoff._stable(found, ["belm"], 7.5).verdict == "does not hold"


@pytest.mark.parametrize(
    ("ees", "exact", "verdict"), [(22.0, 22.5, "holds"), (20.2, 23.0, "does not hold"), (21.0, 20.0, "says nothing")]
)
def test_what_is_retained_of_the_background_is_a_share_of_what_there_is_to_retain(ees, exact, verdict):
    kept = {"ddim": 20.0, "ees25": ees, "belm": exact}
    found = {(m, w): row(m, w, value, 0.8, 1.0) for m, value in kept.items() for w in (1.0, 3.0)}
    assert tradeoff._retained(found, list(kept), [3.0]).verdict == verdict


def test_the_comparison_goes_on_where_it_stopped(tmp_path, monkeypatch):
    bench = Bench(TINY.size, folder=tmp_path)
    first = tradeoff.study(bench, [("ddim", {})], (1.0,), nfe=2)
    assert len(first[0].seen.kept) == 2
    assert len(list((tmp_path / "cells").iterdir())) == 1

    def refuse(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(tradeoff, "piece", refuse)
    assert tradeoff.study(bench, [("ddim", {})], (1.0,), nfe=2) == first
    with pytest.raises(AssertionError, match="again"):
        tradeoff.study(bench, [("ddim", {})], (1.0,), nfe=3)


def test_pictures_are_judged_alike_in_any_chunk():
    job = ink.task(3)
    whole, part = ink.look(job, 0, job.latents), ink.look(job, 1, job.latents[1:])
    assert part.kept == pytest.approx(whole.kept[1:], abs=1e-3)
    assert part.success == whole.success[1:]
    assert ink.task(2).limit == job.limit
    found = ink.look(job, 0, torch.cat([job.latents[:1], torch.full_like(job.latents[:1], torch.nan)]))
    assert found.blown == [False, True]
    assert found.kept[0] > 25.0  # the source itself, but for the codec


def test_smoothing_at_equal_evaluations_takes_fewer_steps_and_smooths_the_ways_that_are_asked_for():
    method = ("ees25", {})
    plain, up = smoothing.Setting(method), smoothing.Setting(method, "inversion", 0.2)
    assert (plain.steps(48), up.steps(48)) == (16, 10)
    assert smoothing.Setting(method, "both", 0.2).steps(48) == 8
    assert smoothing.Setting(method, "both", 0.2, "steps").steps(48) == 16
    model = sf.load("digits").with_condition(3)
    here, there = up.models(model, model)
    assert (here.cost, there.cost) == (2, 1)
    here, there = smoothing.Setting(method, "generation", 0.2).models(model, model)
    assert (here.cost, there.cost) == (1, 2)


@pytest.mark.parametrize(
    ("evaluations", "steps", "n", "verdict"),
    [
        (2.0, 2.0, 60, "holds"),
        (2.0, 0.0, 60, "holds in part"),
        (0.0, 0.0, 60, "does not hold"),
        (0.0, 0.0, 12, "not decided"),  # so few pictures cannot exclude a gain
        (-2.0, -2.0, 12, "does not hold"),
    ],
)
def test_smoothing_improves_edits_only_if_it_does_at_equal_steps_too(evaluations, steps, n, verdict):
    method, base = ("ees25", {}), 20.0
    results = [(smoothing.Setting(method), [seen(base, 0.5, 1.0, n=n)] * 2)]
    for equal, gain in (("evaluations", evaluations), ("steps", steps)):
        setting = smoothing.Setting(method, "inversion", 0.2, equal)
        results.append((setting, [seen(base + gain, 0.5, 1.0, n=n)] * 2))
    claim = smoothing._improves(results, method, ("inversion",), "smoothing", "says", "paper")
    assert claim.verdict == verdict


def test_the_difference_of_rates_has_a_width_where_no_picture_differs():
    alike = paired_rates([True] * 16, [True] * 16)
    assert alike.value == 0.0
    assert alike.high == pytest.approx(sf.metrics.statistics.wilson(0, 16).high)
    apart = paired_rates([True] * 16, [False] * 16)
    assert apart.low > 0.7
    assert paired_rates([False] * 16, [True] * 16).low == pytest.approx(-apart.high)


def test_the_numerical_error_of_an_edit_falls_with_the_tolerance(monkeypatch):
    monkeypatch.setattr(coupling, "FINE", 80)
    coarse, fine = (
        diagnostic.solve(3, (1.0,), diagnostic.Way(("dopri5", {}), tolerance=tolerance)) for tolerance in (1e-2, 1e-5)
    )
    assert (fine.error[1.0] < coarse.error[1.0]).all()
    assert fine.error[1.0].max() < 1e-3


def test_quality_is_held_against_error_picture_by_picture():
    error = torch.tensor([5e-3] * 200 + [5.0] * 200)
    differs = error > 1.0
    assert diagnostic._visible(error, differs).verdict == "holds"
    assert diagnostic._visible(error, ~differs).verdict == "does not hold"


def test_the_assumption_fails_where_refinement_does_not_help():
    def solved(first, last):
        errors = {12: first, 48: last}
        return {
            diagnostic.Way(("edict", {}), nfe).name: diagnostic.Solved({7.5: torch.full((8,), e)}, {}, {})
            for nfe, e in errors.items()
        }

    verdicts = [diagnostic._converges(solved(9.0, last), [("edict", {})], (12, 48), 7.5).verdict for last in (0.1, 9.0)]
    assert verdicts == ["holds", "does not hold"]


def test_the_knob_is_that_of_the_solvers_and_its_best_value_has_an_interval():
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = sf.load("digits").with_condition(3)
    both = knob.Bounded(), sf.solvers.get("rex-midpoint", **AUTO)
    ours, theirs = (sf.invert(model, x, solver=solver, steps=4).latent for solver in both)
    assert torch.equal(ours, theirs)
    other = sf.invert(model, x, solver=knob.Bounded(power=0.4), steps=4)
    assert not torch.equal(other.latent, ours)
    assert (other.decode().x - x).abs().max() < 1e-12  # exact whatever the exponent
    table = torch.tensor([[1.0, 2.0, 3.0], [0.1, 0.2, 0.3], [1.0, 1.0, 1.0]])
    assert knob.best(table, (0.0, 0.5, 1.0)) == (0.5, 0.5, 0.5)
    close = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    assert knob.best(close, (0.0, 1.0))[1:] == (0.0, 1.0)


def test_the_knob_has_a_rule_only_if_following_it_pays_everywhere():
    def swept(weak, strong, name="digits"):
        """Errors of eight samples at three values, the best of which is 1 at either end."""
        tables = {1.0: weak, 7.5: strong}
        full = {w: torch.tensor(t)[:, None] * torch.linspace(1.0, 1.1, 8) for w, t in tables.items()}
        return knob.sweep(name, "x of ees25", (0.0, 0.1, 0.2), full)

    moving, still = swept([1.0, 1.5, 3.0], [3.0, 1.5, 1.0]), swept([1.0, 1.5, 3.0], [1.0, 1.5, 3.0], "mixture")
    idle = swept([1.0, 1.01, 1.02], [1.02, 1.01, 1.0])
    assert moving.moves == pytest.approx(0.2)
    assert [knob.judged(some).verdict for some in ([moving, moving], [moving, still], [idle], [still])] == [
        "holds", "holds in part", "does not hold", "does not hold",
    ]  # fmt: skip


def test_the_budget_of_edits_is_a_figure():
    found = diagnostic._budget(2, (("ddim", {}), 3.0))
    assert torch.allclose(found["inversion"] + found["generation"], torch.ones(2).double(), atol=1e-4)


def test_the_paper_has_a_figure_for_every_part():
    assert set(PAPER.figures) == {
        "equations", "coupling-mixture", "coupling-digits", "tradeoff", "smoothing", "smoothing-digits", "diagnostic",
        "budget", "knob", "scenes-choices", "scenes", "scenes-few",
    }  # fmt: skip
