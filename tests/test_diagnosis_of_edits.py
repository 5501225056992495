"""The error budget of an edit adds up, what dominates is named, and the wanted change is no error."""

import json

import pytest
import torch

import steadyflow as sf
from steadyflow.datasets import digits
from steadyflow.diagnostics import CAUSES, in_precision
from steadyflow.diagnostics import report as report
from steadyflow.metrics import rmse

PATHS = {"vp": sf.VPLinear(), "flow": sf.RectifiedFlow(t_min=1e-3, t_max=0.999)}


def two_classes(first, second, path="vp", n=8):
    """A mixture of two classes of three modes each in four dimensions, of given spreads, and samples of the first."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    std = torch.tensor([first] * 3 + [second] * 3, dtype=torch.float64)[:, None].expand(6, 4)
    mixture = sf.GaussianMixture(means, std, labels=torch.tensor([0, 0, 0, 1, 1, 1]))
    return mixture.denoiser(PATHS[path]).with_condition(torch.zeros(n, dtype=torch.long)), mixture.sample(n, label=0)


@pytest.mark.parametrize(
    ("path", "solver", "steps", "guidance"),
    [("vp", "ddim", 100, 1.0), ("flow", "ees25", 24, 3.0), ("flow", "rk4", 12, 3.0), ("vp", "belm", 100, 1.0)],
)
def test_the_parts_add_up_to_the_distance_from_the_exact_edit(path, solver, steps, guidance):
    model, x = two_classes(0.3, 0.3, path)
    options = {"target": 1, "guidance": guidance}
    found = sf.diagnose(model, x, solver=solver, steps=steps, **options)
    up = sf.invert(model, x, solver="dopri5", steps=100)
    exact = up.decode(model.with_condition(1), guidance).x
    edited = sf.invert(model, x, solver=solver, steps=steps).decode(model.with_condition(1), guidance).x
    assert torch.allclose(found.measured, rmse(edited, exact), rtol=0.02)
    assert torch.allclose(found.budget.change, rmse(exact, x), rtol=1e-3)
    close = (found.total / found.measured - 1.0).abs() < 0.1
    assert found.linear.double().mean() >= 0.8
    assert close[found.linear].double().mean() >= 0.9
    assert torch.allclose(torch.stack(list(found.terms.values())).sum(0), found.total, rtol=1e-9)
    assert (found.budget.remainder >= (found.total - found.measured).abs() - 1e-12).all()
    assert "guidance" not in found.terms  # what another condition changes is wanted


def test_the_amplified_part_is_that_of_the_targets_map():
    """In one dimension of Gaussians the maps are scalings, so E is the ratio of the spreads that the ODE carries."""
    mixture = sf.GaussianMixture(
        torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[0.5], [2.0]], dtype=torch.float64), labels=[0, 1]
    )
    schedule = sf.VPLinear()
    model = mixture.denoiser(schedule).with_condition(0)
    found = sf.diagnose(model, mixture.sample(8, label=0), target=1, solver="ddim", steps=60)
    t0, t1 = schedule.t_range
    spread = [(schedule.alpha(t) ** 2 * 4.0 + schedule.sigma(t) ** 2) ** 0.5 for t in (t0, t1)]
    assert torch.allclose(found.budget.coefficient, torch.full((8,), spread[0] / spread[1]).double(), rtol=1e-4)


@pytest.mark.parametrize(
    ("cause", "first", "second", "guidance"), [("inversion", 0.02, 1.0, 1.0), ("generation", 1.0, 0.3, 3.0)]
)
def test_the_way_that_is_off_is_named_and_the_remedy_works(cause, first, second, guidance):
    """Thin modes and guidance are hard to follow in few steps, wide modes are easy: one of the two ways is spoiled."""
    model, x = two_classes(first, second)
    found = sf.diagnose(model, x, target=1, guidance=guidance, solver="ddim", steps=12, verify=True)
    assert found.cause == cause
    assert found.recommendation.text.startswith(CAUSES[cause])
    assert ("the map to the target" in found.recommendation.text) == (cause == "inversion")
    assert "decode(model.with_condition(target), guidance=" in found.recommendation.call
    assert found.verified.gain > 3.0
    json.dumps(found.figures())


def test_half_precision_and_instability_are_named():
    images, labels = (part[:3] for part in digits("held-out"))
    model, targets = sf.load("digits").with_condition(labels), (labels + 5) % 10
    half = in_precision(model, torch.bfloat16)
    found = sf.diagnose(half, images, target=targets, guidance=7.5, solver="rk4", steps=24, verify=True, tolerance=1e-4)
    assert found.cause == "precision"
    assert found.verified.gain > 3.0
    found = sf.diagnose(model, images, target=targets, guidance=7.5, solver="rex-midpoint", nfe=48, tolerance=1e-3)
    assert found.cause == "instability"
    assert found.recommendation.gain > 10.0
    assert (found.measured > 3.0 * found.budget.change).all()


def test_an_error_that_is_small_against_the_change_is_no_cause():
    images, labels = (part[:3] for part in digits("held-out"))
    model = sf.load("digits").with_condition(labels)
    found = sf.diagnose(model, images, target=(labels + 5) % 10, guidance=3.0, solver="rk4", steps=24, tolerance=1e-4)
    assert found.cause == "change"
    assert found.measured.median() < 0.01 * found.budget.change.median()
    assert "`strength` or a `mask` will" in found.summary()
    assert found.recommendation.gain == 1.0


class Half:
    """A codec that drops half of the dimensions."""

    def encode(self, images):
        return images[:, :4]

    def decode(self, latents):
        return torch.cat([latents, torch.zeros_like(latents)], 1)


def test_the_codecs_floor_is_a_term_and_what_the_edit_changes_is_none():
    model, x = two_classes(0.3, 0.3)
    floor = 0.4 * torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = sf.diagnose(model, torch.cat([x, floor], 1), target=1, solver="rk4", steps=24, codec=Half())
    assert found.cause == "codec"
    assert torch.allclose(found.terms["codec"], floor.square().sum(1).div(8).sqrt(), rtol=1e-2)
    plain = sf.diagnose(model, x, target=1, solver="rk4", steps=24)
    assert torch.allclose(found.budget.change, plain.budget.change / 2**0.5, rtol=1e-4)


def test_an_edit_that_diverges_is_diagnosed_against_the_exact_one():
    model, x = two_classes(0.02, 0.02, n=4)
    found = sf.diagnose(model.with_guidance(1.0), x.float(), target=1, guidance=300.0, solver="rk4", steps=3)
    assert found.budget.change.isfinite().all()
    assert found.cause in CAUSES
    assert "cause" in found.summary()


def test_the_command_diagnoses_an_edit_and_its_report_shows_the_exact_one(call, tmp_path):
    words = (
        "--label",
        3,
        "--target",
        8,
        "--guidance",
        3,
        "--n",
        2,
        "--solver",
        "ddim",
        "--nfe",
        20,
        "--tolerance",
        1e-3,
    )
    status, text, err = call("diagnose", *words, "--json", "--out", tmp_path)
    assert status == 0, err
    figures = json.loads(text)
    assert figures["cause"] == "generation"
    assert len(figures["change"]) == 2
    html = (tmp_path / "diagnosis.html").read_text()
    assert "The edit of an exact solver" in html
    assert "An exact solver would change the images by" in html
    status, text, err = call("diagnose", *words, "--run", tmp_path / "run", "--batch-size", 1, "--json")
    assert status == 0, err
    assert json.loads(text)["change of the exact edit, median"] > 0.1
    assert call("diagnose", "--target", "a dog")[0] == 1
    status, _, err = call("diagnose", "--contractivity", "--target", 3, "--n", 2)
    assert "not valid with --contractivity" in err
