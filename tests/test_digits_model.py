"""The models of digits do what is said of them, measured by a classifier of real digits."""

from importlib import resources
from pathlib import Path

import pytest
import torch

import steadyflow as sf
from steadyflow import models
from steadyflow.datasets import digits
from steadyflow_lab.digits import quality
from steadyflow_lab.models import WEIGHTS
from steadyflow_lab.models import load as load_of_lab

FILES = {
    "digits": Path(str(resources.files("steadyflow.models"))) / "weights" / "digits.safetensors",
    "digits-flow": WEIGHTS / "digits-flow.safetensors",
}


def load(name):
    return sf.load("digits") if name == "digits" else load_of_lab(name)


@pytest.fixture(scope="module", params=FILES)
def figures(request):
    return quality(load(request.param))


def test_the_judge_knows_real_digits_it_has_not_seen(figures):
    assert figures["classifier"] >= 0.97


def test_conditional_samples_are_recognised(figures):
    assert figures["recognised"] >= 0.95


def test_samples_are_not_copies_of_training_digits(figures):
    assert figures["novelty"] >= 0.8


@pytest.mark.parametrize("name", FILES)
def test_the_weights_are_under_2_megabytes(name):
    assert FILES[name].stat().st_size < 2_000_000


def test_the_flow_model_is_of_the_straight_path_and_has_guidance():
    model = load("digits-flow")
    assert model.schedule == sf.RectifiedFlow()
    assert (model.prediction, model.classes, model.null, model.shape) == ("flow", 10, 10, (1, 8, 8))
    guided = sf.sample(model.with_condition(3, guidance=2.0), n=4, nfe=12)
    assert torch.isfinite(guided.x).all()


def test_the_flow_models_velocity_is_as_good_as_is_said():
    model, (x0, labels) = load("digits-flow"), digits("held-out")
    generator = torch.Generator().manual_seed(1)
    t = ((torch.arange(len(x0)) + 0.5) / len(x0))[torch.randperm(len(x0), generator=generator)]
    eps, at = torch.randn(x0.shape, generator=generator), t[:, None, None, None]
    output = model.net((1 - at) * x0 + at * eps, t, labels)
    assert (output - (eps - x0)).square().mean() == pytest.approx(0.403, abs=0.03)


def test_the_split_holds_297_digits_out_and_shares_none():
    train, held_out = digits("train"), digits("held-out")
    assert (len(train[0]), len(held_out[0])) == (1500, 297)
    assert torch.cdist(held_out[0].flatten(1), train[0].flatten(1)).min() > 0
    assert held_out[0].min() == -1.0
    assert held_out[0].max() == 1.0


def test_a_model_saved_and_loaded_predicts_the_same(tmp_path):
    model = sf.load("digits")
    network = {"type": "ResidualMLP", "shape": (1, 8, 8), "hidden": 256, "blocks": 3, "classes": 10}
    models.save(model, tmp_path / "again.safetensors", network)
    again = sf.load(str(tmp_path / "again.safetensors"))
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again.with_condition(4)(x, 0.5).x0, model.with_condition(4)(x, 0.5).x0)
    assert again.schedule == model.schedule


def test_an_unknown_or_damaged_model_is_refused(tmp_path):
    with pytest.raises(sf.UnknownNameError, match="did you mean 'digits'"):
        sf.load("digit")
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"\x00" * 64)
    with pytest.raises(sf.CorruptFileError):
        sf.load(str(path))
    sf.invert(sf.GaussianMixture.grid(2).denoiser(sf.VE()), torch.zeros(1, 2)).save(path)
    with pytest.raises(sf.CorruptFileError, match="expected a steadyflow model, found a inversion"):
        sf.load(str(path))
