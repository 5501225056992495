"""The error budget adds up, the cause is named, and the remedy works."""

import dataclasses
import json

import pytest
import torch
from sklearn.svm import SVC

import steadyflow as sf
from steadyflow.datasets import digits
from steadyflow.diagnostics import CAUSES, in_precision
from steadyflow.diagnostics import report as report
from steadyflow.diagnostics.budget import _pushed
from steadyflow_lab.datasets import faces
from steadyflow_lab.editing.coupling import conditional_mixture

PATHS = {"vp": sf.VPLinear(), "flow": sf.RectifiedFlow()}


def conditional(path="vp", n=12):
    data = conditional_mixture()
    schedule = sf.RectifiedFlow(t_min=1e-3, t_max=0.999) if path == "flow" else sf.VPScaledLinear()
    return data.denoiser(schedule).with_condition(torch.zeros(n, dtype=torch.long)), data.sample(n, label=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("solver", "steps"), [("ddim", 100), ("ees25", 24), ("rk4", 12)])
def test_the_budget_adds_up_in_the_linear_regime(path, solver, steps):
    mixture = sf.GaussianMixture.farthest_points(6, 8, std=0.2)
    found = sf.diagnose(mixture.denoiser(PATHS[path]), mixture.sample(32), solver=solver, steps=steps)
    close = (found.total / found.measured - 1.0).abs() < 0.1
    assert found.linear.double().mean() >= 0.8
    assert close[found.linear].double().mean() >= 0.9
    assert torch.allclose(torch.stack(list(found.terms.values())).sum(0), found.total, rtol=1e-9)
    assert (found.budget.remainder >= (found.total - found.measured).abs() - 1e-12).all()


def test_the_coefficient_is_the_growth_of_the_inversion_error():
    mixture = sf.GaussianMixture.farthest_points(6, 4, std=0.3)
    found = sf.diagnose(mixture.denoiser(sf.VPLinear()), mixture.sample(6), solver="ddim", steps=200)
    terms, budget = found.terms, found.budget
    assert torch.allclose(budget.growth[-1], budget.coefficient)
    amplified, plain = terms["inversion"] + terms["amplification"], terms["inversion"]
    assert torch.allclose(amplified / plain, budget.coefficient)
    assert budget.times[0] > budget.times[-1]


def test_a_long_way_from_the_linear_regime_is_said_so():
    mixture = sf.GaussianMixture.grid(std=0.02)
    found = sf.diagnose(mixture.denoiser(sf.VPLinear()), mixture.sample(24), solver="ddim", steps=5)
    assert not found.linear.all()
    assert "the budget is a guide only" in found.summary()


@pytest.mark.parametrize(("cause", "path", "options"), [
    ("steps", "vp", {"solver": "ddim", "steps": 6}),
    ("steps", "flow", {"solver": "midpoint", "steps": 5}),
    ("guidance", "vp", {"solver": "ees25", "steps": 24, "guidance": 3.0}),
    ("guidance", "flow", {"solver": "rk4", "steps": 24, "guidance": 5.0}),
    ("grid", "vp", {"solver": "rk4", "grid": 0.4}),
    ("grid", "flow", {"solver": "ees25", "grid": 0.4}),
    ("instability", "flow", {"solver": "rex-euler", "steps": 24}),
    ("instability", "vp", {"solver": "rex-euler", "steps": 24, "guidance": 7.5}),
])  # fmt: skip
def test_the_cause_is_named_and_the_remedy_works(cause, path, options):
    model, x = conditional(path)
    if "grid" in options:
        low, high = model.schedule.t_range
        times = tuple(low + (high - low) * (1 - k / 16) ** options["grid"] for k in range(17))
        options = {**options, "grid": sf.Grid(times)}
    found = sf.diagnose(model, x.float(), verify=True, **options)
    assert found.cause == cause
    assert found.cause in CAUSES
    assert found.verified.gain > 5.0
    assert found.verified.error.median() < found.measured.median() / 5.0
    assert "verified: median error" in found.summary()
    json.dumps(found.figures())


def test_half_precision_is_named():
    images, labels = digits("held-out")
    model = in_precision(sf.load("digits"), torch.bfloat16).with_condition(labels[:3])
    found = sf.diagnose(model, images[:3], solver="rk4", steps=24, verify=True)
    assert found.cause == "precision"
    assert "float32" in found.recommendation.call
    assert found.verified.gain > 10.0


def test_an_exact_solver_leaves_rounding_alone():
    model, x = conditional()
    found = sf.diagnose(model, x, solver="rex-euler", steps=24)
    assert found.measured.max() < 1e-10
    assert torch.allclose(found.terms["rounding"], found.measured)
    assert all((term == 0).all() for name, term in found.terms.items() if name != "rounding")
    assert found.cause == "none"


class Projection:
    """A linear codec from 12 to 8 dimensions: what it drops is the floor."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.basis = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q[:, :8]

    def encode(self, images):
        return images @ self.basis

    def decode(self, latents):
        return latents @ self.basis.T


class Normalised:
    """A decoder with group normalisation, in the layout of memory that image networks run fast in."""

    def __init__(self):
        torch.manual_seed(0)
        parts = (torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.GroupNorm(4, 8), torch.nn.Conv2d(8, 3, 3, padding=1))
        self.net = torch.nn.Sequential(*parts).double().to(memory_format=torch.channels_last)

    def encode(self, images):
        raise NotImplementedError

    def decode(self, latents):
        return self.net(latents.contiguous(memory_format=torch.channels_last))


def test_differences_are_brought_through_a_decoder_in_any_layout_of_memory():
    codec, draw = Normalised(), torch.Generator().manual_seed(1)
    x, v = (torch.randn(2, 2, 8, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        slope = (codec.decode(x + 1e-5 * v) - codec.decode(x - 1e-5 * v)) / 2e-5
    assert torch.allclose(_pushed(codec, x, v), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("floor", "cause"), [(0.3, "codec"), (1e-4, "steps")])
def test_the_codecs_floor_is_a_term(floor, cause):
    codec, mixture = Projection(), sf.GaussianMixture.farthest_points(4, 8, std=0.3)
    latents = mixture.sample(12)
    rest = torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rest = rest - rest @ codec.basis @ codec.basis.T
    images = codec.decode(latents) + floor * rest
    found = sf.diagnose(mixture.denoiser(sf.VPLinear()), images, solver="ddim", steps=30, codec=codec)
    assert found.cause == cause
    assert found.linear.double().mean() >= 0.9  # a point between two modes may go to the other one
    assert ((found.total / found.measured - 1.0).abs() < 0.1)[found.linear].all()
    if cause == "codec":
        dropped = (floor * rest).square().mean(1).sqrt()
        assert (found.terms["codec"] > 0.9 * dropped * dropped / found.total).all()


def test_a_run_that_diverges_is_diagnosed():
    _, x = conditional()
    wild = dataclasses.replace(
        sf.Denoiser(lambda x, t: 1e30 * x.pow(3), sf.VPLinear(), shape=(16,)), prediction="epsilon"
    )
    found = sf.diagnose(wild, x, solver="rk4", steps=8)
    assert not found.measured.isfinite().any()
    assert found.cause in CAUSES
    assert "cause" in found.summary()


def test_bad_input_is_named():
    model, x = conditional()
    with pytest.raises(sf.NotInvertibleError):
        sf.diagnose(model, x, solver="ddpm")
    with pytest.raises(sf.InputError, match="not both"):
        sf.diagnose(model, x, steps=3, nfe=9)
    with pytest.raises(sf.InputError, match="NaN"):
        sf.diagnose(model, x * float("nan"))
    with pytest.raises(sf.UnknownNameError):
        sf.diagnose(model, x, solver="ees52")


def test_the_report_is_one_file_with_alternatives_to_its_pictures(tmp_path):
    images, labels = digits("held-out")
    found = sf.diagnose(sf.load("digits").with_condition(labels[:3]), images[:3], solver="ddim", steps=20, verify=True)
    html = report.write(found, tmp_path / "report.html").read_text()
    assert html.count("<img") == html.count('alt="') == 5
    assert "http" not in html.replace("http-equiv", "")
    assert found.recommendation.call.replace('"', "&#34;") in html


def test_the_command_prints_figures_and_writes_a_report(call, tmp_path):
    words = ("diagnose", "--n", 3, "--solver", "ddim", "--steps", 12, "--json", "--verify", "--out", tmp_path)
    status, text, err = call(*words)
    assert status == 0, err
    figures = json.loads(text)
    assert figures["cause"] == "steps"
    assert figures["verified"]["gain"] > 1.0
    assert (tmp_path / "diagnosis.html").is_file()


def test_the_faces_are_real_and_split():
    train, labels = faces("train")
    held_out, faces_only = faces("held-out")
    assert held_out.shape == (100, 1, 16, 16)
    assert set(labels.tolist()) == {0, 1}
    assert set(faces_only.tolist()) == {1}
    assert train.abs().max() <= 1.0
    assert torch.cdist(held_out.flatten(1), train.flatten(1)).min() > 1.0  # no face is in both


def test_conditional_samples_are_taken_for_faces():
    """By a classifier of the real faces and photographs."""
    images, labels = faces("train")
    judge = SVC(class_weight="balanced").fit(images[::3].flatten(1).numpy(), labels[::3].numpy())
    model = sf.load("faces")
    seen = {
        label: judge.predict(sf.sample(model.with_condition(label), n=24, solver="ddim", steps=20).x.flatten(1).numpy())
        for label in (0, 1)
    }
    assert (judge.predict(faces("held-out")[0].flatten(1).numpy()) == 1).mean() > 0.9
    assert (seen[1] == 1).mean() > 0.7 > 0.3 > (seen[0] == 1).mean()
