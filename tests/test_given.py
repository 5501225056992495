"""What people pass is taken as what it means, or refused by its name, and never a raw error of another library."""

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import steadyflow as sf
from steadyflow import grids, loading, noise, solvers
from steadyflow._internal import given
from steadyflow.datasets import arrays, media
from steadyflow.solvers.saved import check_saved

X = torch.linspace(-1.0, 1.0, 12).view(4, 3)
GRID = grids.make("uniform", sf.VPCosine(), 4)


def net(x, t, label=None):
    return 0.3 * x if label is None else 0.3 * x + 0.01 * label[:, None]


MODEL = sf.Denoiser(net, sf.VPCosine(), shape=(3,), null=3, classes=3, dtype=torch.float32, name="small")
MIXTURE = sf.GaussianMixture.grid(2)


def ints(value):
    """A whole number in all the ways in which people have one."""
    kinds = [np.int64, np.int32, np.uint8, torch.tensor]
    return [value, *(kind(value) for kind in kinds), np.array(value), torch.tensor(value, dtype=torch.uint8)]


NO_INTS = [1.0, 1.5, np.float64(1.0), True, np.bool_(True), torch.tensor(1.0), torch.tensor(True), "1", [1], math.nan,
           torch.tensor([1]), np.array([1]), Decimal(1), Fraction(1), 1j]  # fmt: skip

WHOLE = {
    "sample n": lambda v: sf.sample(MODEL, n=v, steps=2).x,
    "sample seed": lambda v: sf.sample(MODEL, n=2, steps=2, seed=v, solver="ddpm").x,
    "sample index": lambda v: sf.sample(MODEL, n=2, steps=2, index=v, solver="ddpm").x,
    "sample steps": lambda v: sf.sample(MODEL, n=2, steps=v).x,
    "sample nfe": lambda v: sf.sample(MODEL, n=2, nfe=v, solver="ddim").x,
    "sample batch_size": lambda v: sf.sample(MODEL, n=4, steps=2, batch_size=v).x,
    "sample record": lambda v: sf.sample(MODEL, n=2, steps=4, record=v).trajectory.x,
    "invert steps": lambda v: sf.invert(MODEL, X, steps=v).x,
    "reconstruct steps": lambda v: sf.reconstruct(MODEL, X, steps=v).x,
    "edit nfe": lambda v: sf.edit(MODEL.with_condition(0), X, target=1, nfe=v, solver="ddim").x,
    "integrate stop_after": lambda v: sf.integrate(MODEL, X, GRID, solvers.get("ddim"), stop_after=v).x,
    "grids steps": lambda v: torch.tensor(grids.make("karras", sf.VPCosine(), v).times),
    "gits steps": lambda v: torch.tensor(sf.gits(MODEL, steps=v, n=4, fine=8).times),
    "normal seed": lambda v: noise.normal(v, noise.INITIAL, (0, 0, 0), range(2), (3,)),
    "normal samples": lambda v: noise.normal(0, noise.INITIAL, (0, 0, 0), [v], (3,)),
    "brownian seed": lambda v: noise.Brownian(v, range(2), (3,)).increment(0.0, 1.0),
    "mixture n": lambda v: MIXTURE.sample(v),
    "mixture seed": lambda v: MIXTURE.sample(2, seed=v),
    "mixture index": lambda v: MIXTURE.sample(2, index=v),
    "condition label": lambda v: sf.sample(MODEL.with_condition(v), n=2, steps=2).x,
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_of_every_kind_are_taken_and_others_refused_by_name(name):
    call, word = WHOLE[name], name.split()[1]
    expected = call(2)
    for value in ints(2):
        assert torch.equal(call(value), expected), type(value)
    for value in NO_INTS:
        if name.split()[0] == "condition" and isinstance(value, list | np.ndarray | torch.Tensor) and np.ndim(value):
            continue  # one label for each sample
        with pytest.raises(sf.InputError, match=word if word != "label" else "condition"):
            call(value)


NUMBERS = {
    "guidance": lambda v: MODEL.with_condition(1).with_guidance(v).guidance,
    "guidance in the class": lambda v: sf.Denoiser(net, sf.VPCosine(), null=3, guidance=v).guidance,
    "guidance of sample": lambda v: sf.sample(MODEL.with_condition(1), n=1, steps=1, guidance=v).x.sum().item(),
    "strength": lambda v: sf.sample(MODEL, n=1, steps=1, strength=v).grid.times[0],
    "t_max": lambda v: sf.sample(MODEL, n=1, steps=1, t_max=v).grid.times[0],
    "t_min": lambda v: sf.invert(MODEL, X, steps=1, t_min=v).grid.times[0],
    "rho": lambda v: grids.make("karras", sf.VPCosine(), 3, rho=v).times[1],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_every_kind_are_taken_and_texts_refused_by_name(name):
    call = NUMBERS[name]
    expected = call(0.5)
    for value in (np.float64(0.5), np.float32(0.5), torch.tensor(0.5), Fraction(1, 2), torch.tensor(0.5).double()):
        assert call(value) == expected
    for value in ("0.5", "2", [0.5], True, 1j, math.nan, torch.tensor([0.5, 0.5]), object()):
        if "guidance" in name and isinstance(value, torch.Tensor):
            value = torch.stack([value, value])  # two scales are one for each of two samples, a table is none
        with pytest.raises(sf.InputError, match=name.split()[0]):
            call(value)


DRAWN = {
    "sample": lambda **words: sf.sample(MODEL, n=1, steps=1, **words),
    "gits": lambda **words: sf.gits(MODEL, steps=1, n=1, fine=2, **words),
    "tune": lambda **words: sf.tune(MODEL, nfe=2, n=8, judge=8, fine=16, against=["ddim"], minutes=0, **words),
    "normal": lambda **words: noise.normal(0, noise.INITIAL, (0, 0, 0), range(2), (3,), **words),
    "brownian": lambda **words: noise.Brownian(0, range(2), (3,), **words),
}


@pytest.mark.parametrize("name", DRAWN)
def test_devices_and_types_are_named_or_refused_by_name(name):
    call = DRAWN[name]
    for device in (
        "gpu",
        "cpu:x",
        "",
        1.5,
        None,
        Path("cpu"),
        b"cpu",
        "cuda:99" if torch.cuda.is_available() else "cuda",
    ):
        with pytest.raises(sf.InputError, match=r"device: got .*expected 'cpu'"):
            call(device=device)
    for dtype in (torch.int64, torch.bool, torch.complex64, "float32", np.float32, float, None):
        with pytest.raises(sf.InputError, match="dtype: got"):
            call(dtype=dtype)
    call(device=torch.device("cpu"), dtype=torch.float64)


def test_models_are_loaded_by_paths_onto_devices(tmp_path):
    for device in ("cpu", torch.device("cpu")):
        assert loading.load_model("digits", device).name == "digits"
    with pytest.raises(sf.InputError, match="device: got 'gpu'"):
        loading.load_model("digits", "gpu")
    weights = Path(sf.__file__).parent / "models" / "weights" / "digits.safetensors"
    for load in (sf.load, loading.load_model):
        assert load(weights).name == load(str(weights)).name


def test_solvers_are_named_by_paths_and_nothing_else():
    with pytest.raises(sf.StorageError, match=r"none\.json"):
        solvers.get(Path("none.json"))
    for name in (3, None, b"ddim", ["ddim"], 1.5):
        with pytest.raises(sf.UnknownNameError, match="solver"):
            solvers.get(name)


@pytest.mark.parametrize("prompt", ["a \ud800 cat", ["a cat", "\udfff"]])
def test_prompts_with_half_of_a_character_are_refused_by_name(prompt):
    with pytest.raises(sf.InputError, match=r"prompt: got .*half of one"):
        MODEL.with_condition(prompt)


@pytest.fixture
def elsewhere():
    """Tensors are made on another device, unless one is named."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_another_default_device_changes_nothing_on_the_cpu(elsewhere, tmp_path):
    model = sf.load("digits")
    assert next(model.net.parameters()).device.type == "cpu"
    found = sf.sample(model.with_condition(1), n=2, steps=3, solver="ddpm", device="cpu").x
    assert found.device.type == "cpu"
    kept = sf.invert(model, found, steps=3)
    for name, shape in (("x.png", (1, 8, 16)), ("x.npy", (1, 8, 8)), ("x.safetensors", (1, 8, 8))):
        arrays.write(tmp_path / name, found)
        assert arrays.read(tmp_path / name, shape).device.type == "cpu"
    kept.save(tmp_path / "kept")
    check_saved(kept.solver, sf.Inversion.load(tmp_path / "kept").state)
    video = torch.zeros(1, 3, 2, 16, 16, device="cpu")
    media.write(tmp_path / "x.mp4", video, fps=8.0)
    assert sf.diagnose(model, found, steps=3).budget.measured.device.type == "cpu"
    for correction in (sf.corrections.Restart(remaining=1, back=1), sf.corrections.Relaxed(0.9)):
        sf.sample(model.with_condition(1), n=2, steps=4, corrections=[correction], device="cpu")


def test_helpers_keep_what_is_python_s_own():
    assert given.whole("n", 2**80) == 2**80
    assert given.number("x", 10**400) == math.inf
    assert given.text("prompt", "ok 🙂") == "ok 🙂"
    for low, high, value, words in (
        (1, None, 0, "of at least 1"),
        (0, 5, 6, "from 0 to 5"),
        (0, 2**63 - 1, -1, "2\\^63"),
    ):
        with pytest.raises(sf.InputError, match=words):
            given.whole("n", value, low, high)
