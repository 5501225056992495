"""The verbs: sample, invert, reconstruct, edit; batches, conditions, files."""

import dataclasses

import pytest
import torch

import steadyflow as sf
from steadyflow import solvers

NAMES = solvers.names()
INVERTIBLE = [n for n in NAMES if solvers.get(n).invertible and n != "implicit-midpoint"]  # that takes more steps
APPROXIMATE = [n for n in INVERTIBLE if solvers.get(n).properties.inverse == "approximate"]


@pytest.fixture(scope="module")
def digits():
    from steadyflow.datasets import digits

    images, labels = digits("held-out")
    return images[:12].double(), labels[:12]


@pytest.fixture(scope="module")
def model():
    return sf.load("digits")


@pytest.fixture
def conditional():
    mixture = sf.GaussianMixture.grid(3, std=0.3)
    return sf.GaussianMixture(mixture.means, mixture.std, labels=torch.arange(9) % 3).denoiser(sf.VPCosine())


@pytest.mark.parametrize("noise", ["brownian", "white"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_the_same_whatever_the_batch_the_chunks_and_the_shard(name, noise, conditional):
    options = {"solver": name, "steps": 4, "seed": 9, "noise": noise, "dtype": torch.float64}
    whole = sf.sample(conditional, n=10, **options).x
    chunked = sf.sample(conditional, n=10, batch_size=3, **options).x
    shard = sf.sample(conditional, n=3, index=6, **options).x
    # the model's own matrix products round differently by batch size
    torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shard, whole[6:9], rtol=1e-9, atol=1e-9)


def test_chunks_carry_their_own_conditions_and_trajectories(conditional):
    labels = torch.tensor([0, 1, 2, 0, 1])
    model = conditional.with_condition(labels, guidance=2.0)
    whole = sf.sample(model, n=5, steps=6, record="all", dtype=torch.float64)
    chunked = sf.sample(model, n=5, steps=6, record="all", dtype=torch.float64, batch_size=2)
    torch.testing.assert_close(chunked.x, whole.x)
    torch.testing.assert_close(chunked.trajectory.x, whole.trajectory.x)
    assert chunked.trajectory.x.shape == (7, 5, 2)


def test_another_seed_gives_other_samples(conditional):
    assert not torch.equal(sf.sample(conditional, n=2, seed=0).x, sf.sample(conditional, n=2, seed=1).x)


def test_samples_of_an_exact_mixture_follow_it():
    """Shares of the modes against the weights: 4,000 draws, five standard errors."""
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    model = sf.GaussianMixture(means, 0.1, weights).denoiser(sf.VPLinear())
    for solver in ("ees25", "ddpm"):
        x = sf.sample(model, n=4000, solver=solver, steps=40, noise="white").x
        shares = torch.bincount(torch.cdist(x, means).argmin(1), minlength=4) / 4000
        assert ((shares - weights).abs() < 5 * (weights * (1 - weights) / 4000).sqrt() + 0.005).all()


@pytest.mark.parametrize("name", APPROXIMATE)
def test_reconstruction_of_real_digits_improves_with_steps(name, model, digits):
    images, labels = digits
    few, many = (
        sf.reconstruct(model.with_condition(labels), images, solver=name, steps=k).error.median() for k in (6, 24)
    )
    assert many < 0.5 * few


def test_decode_by_default_uses_the_condition_and_guidance_of_the_inversion(model, digits):
    images, labels = digits
    inversion = sf.invert(model.with_condition(labels, guidance=1.5), images, solver="rk4", steps=24)
    assert inversion.guidance == 1.5
    assert (inversion.decode().x - images).abs().max() < 0.05
    other = inversion.decode(guidance=1.0).x
    assert (other - images).abs().max() > 0.05


@pytest.mark.parametrize("name", INVERTIBLE)
def test_a_saved_inversion_decodes_to_the_same_bits(name, model, digits, tmp_path):
    images, labels = digits
    inversion = sf.invert(model.with_condition(labels), images, solver=name, steps=5)
    inversion.save(tmp_path / "inversion.safetensors")
    loaded = sf.Inversion.load(tmp_path / "inversion.safetensors", model)
    assert torch.equal(loaded.decode().x, inversion.decode().x)
    for field in dataclasses.fields(inversion):
        if field.name not in ("state", "model", "condition", "trajectory"):
            assert getattr(loaded, field.name) == getattr(inversion, field.name)
    assert loaded.dtype == torch.float64
    alone = sf.Inversion.load(tmp_path / "inversion.safetensors")
    with pytest.raises(sf.InputError, match="holds no model"):
        alone.decode()
    assert torch.equal(alone.decode(model.with_condition(labels)).x, inversion.decode().x)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "flipped header", "huge header"])
def test_a_damaged_inversion_is_refused(damage, conditional, tmp_path):
    path = tmp_path / "inversion.safetensors"
    sf.invert(conditional, torch.zeros(2, 2)).save(path)
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[: len(data) - 5]
    elif damage == "garbage":
        data = bytearray(b"not a file of tensors at all, just text")
    elif damage == "empty":
        data = bytearray()
    elif damage == "flipped header":
        data[20] ^= 0xFF
    else:
        data[:8] = (1 << 62).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(sf.CorruptFileError):
        sf.Inversion.load(path)


def test_a_missing_inversion_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        sf.Inversion.load(tmp_path / "none.safetensors")


def test_saving_replaces_a_file_whole_and_leaves_nothing_beside_it(conditional, tmp_path, monkeypatch):
    path = tmp_path / "inversion.safetensors"
    inversion = sf.invert(conditional, torch.zeros(2, 2))
    inversion.save(path)
    before = path.read_bytes()

    def fails(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("steadyflow._internal.files.save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        inversion.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_decoding_on_another_path_is_refused(conditional):
    inversion = sf.invert(conditional, torch.zeros(2, 2))
    other = conditional.mixture.denoiser(sf.VPLinear())
    with pytest.raises(sf.InputError, match="made on"):
        inversion.decode(other)


def test_partial_inversion_goes_up_only_as_far_as_asked(conditional):
    inversion = sf.invert(conditional, torch.ones(3, 2), strength=0.4, steps=8)
    low, high = conditional.schedule.t_range
    assert inversion.grid.times[-1] == pytest.approx(low + 0.4 * (high - low))
    for strength in (0.0, 1.5, -1.0):
        with pytest.raises(sf.InputError, match="strength"):
            sf.invert(conditional, torch.ones(3, 2), strength=strength)
    with pytest.raises(sf.InputError, match="strength"):
        sf.invert(conditional, torch.ones(3, 2), strength=0.5, grid=sf.Grid((0.5, 0.1)))


def test_edits_move_digits_to_the_target(model, digits):
    from steadyflow_lab.digits import recognise

    images, labels = digits
    target = (labels + 5) % 10
    result = sf.edit(model, images, target, source=labels, guidance=2.0, steps=16)
    assert (recognise(result.x) == target).float().mean() > 0.8
    kept = sf.edit(model, images, target, source=labels, guidance=2.0, steps=16, strength=0.5)
    assert kept.distance.median() < result.distance.median()
    assert result.nfe == 2 * 3 * 16


def test_an_edit_needs_a_target(model, digits):
    with pytest.raises(sf.InputError, match="target"):
        sf.edit(model, digits[0], None)


def test_guidance_without_a_null_condition_is_refused():
    model = sf.Denoiser(lambda x, t: x, sf.VPLinear(), shape=(2,))
    with pytest.raises(sf.InputError, match="null condition"):
        model.with_guidance(3.0)


def test_labels_that_the_model_does_not_know_are_refused(model):
    with pytest.raises(sf.InputError, match=r"label 11, expected 0\.\.9"):
        model.with_condition(11)


@pytest.mark.parametrize(("options", "message"), [
    ({}, "either n"),
    ({"n": 3, "x": torch.zeros(3, 2)}, "either n"),
    ({"n": 0}, "n: got 0"),
    ({"n": 2.5}, "n: got 2.5"),
    ({"n": 2, "batch_size": 0}, "batch_size"),
    ({"n": 2, "noise": "pink"}, "unknown noise 'pink'"),
    ({"n": 2, "grid": "cubic"}, "unknown grid 'cubic'"),
    ({"n": 2, "record": 0}, "record"),
    ({"n": 2, "record": "some"}, "record"),
])  # fmt: skip
def test_bad_arguments_of_sample_are_named(options, message, conditional):
    with pytest.raises(sf.InputError, match=message):
        sf.sample(conditional, **options)


def test_a_model_without_a_shape_cannot_draw():
    model = sf.Denoiser(lambda x, t: x, sf.VPLinear())
    with pytest.raises(sf.InputError, match=r"Denoiser\(shape=...\)"):
        sf.sample(model, n=2)


@pytest.mark.parametrize("path", ["cosine", "flow", "ve", "table"])
def test_a_network_of_the_users_own_goes_through_every_verb(path):
    schedule = {
        "cosine": sf.VPCosine(),
        "flow": sf.RectifiedFlow(),
        "ve": sf.VE(),
        "table": sf.Tabulated.scaled_linear(),
    }[path]
    kind = {"flow": "flow", "table": "epsilon"}.get(path, "sample")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)).double()
    scale = 80.0 if path == "ve" else 1.0
    model = sf.Denoiser(lambda x, t: net(x / scale), schedule, prediction=kind, shape=(4,))
    with torch.no_grad():
        x = sf.sample(model, n=5, steps=12, dtype=torch.float64).x
        back = sf.reconstruct(model, x, solver="ees25", steps=48)
    assert back.error.max() < 2e-3 * x.std()


def test_a_start_part_of_the_way_up_has_the_paths_own_moments():
    """Of a single Gaussian, whose states are Gaussian: five deviations of the sampling error are 3.6 %."""
    mixture = sf.GaussianMixture(torch.tensor([[2.0, -1.0]], dtype=torch.float64), torch.tensor([[0.5, 1.5]]).double())
    model = mixture.denoiser(sf.VPLinear())
    options = {"n": 10_000, "solver": "rk4", "steps": 12, "t_max": 0.3, "seed": 4, "dtype": torch.float64}
    x = sf.sample(model, moments=(mixture.means[0], mixture.std[0] ** 2), **options).x
    assert (x.mean(0) - mixture.means[0]).abs().max() < 0.08
    assert (x.var(0) / mixture.std[0] ** 2 - 1).abs().max() < 0.08
    without = sf.sample(model, **options).x
    assert (without.mean(0) - mixture.means[0]).abs().max() > 0.5
    with pytest.raises(sf.InputError, match="do not fit"):
        sf.sample(model, moments=(torch.zeros(3), 1.0), **options)
    with pytest.raises(sf.InputError, match="at least 0"):
        sf.sample(model, moments=(0.0, -1.0), **options)
    with pytest.raises(sf.InputError, match="only valid with n"):
        sf.sample(model, x=x, moments=(0.0, 1.0), solver="rk4", steps=2)


@pytest.mark.parametrize("path", [sf.VPLinear(), sf.RectifiedFlow(), sf.VE(t_min=0.01, t_max=40.0)], ids=str)
def test_without_a_solver_sample_takes_the_one_that_is_recommended(path):
    model = sf.GaussianMixture(torch.eye(3, dtype=torch.float64), torch.full((3, 3), 0.3)).denoiser(path)
    solver, grid = sf.tasks.recommended(path)
    for words in ({}, {"nfe": 8}, {"steps": 5}, {"solver": "auto", "nfe": 6}):
        found = sf.sample(model, n=3, **words)
        rest = {name: value for name, value in words.items() if name != "solver"}
        expected = sf.sample(model, n=3, solver=solver, grid=grid, **rest)
        assert torch.equal(found.x, expected.x)
        assert found.nfe == words.get("nfe", found.nfe)
        assert ("recommended" in found.reason) == ("solver" in words)
    assert (
        sf.sample(model, n=3, nfe=8, grid="uniform").grid
        == sf.sample(model, n=3, nfe=8, grid="uniform", solver=solver).grid
    )
    assert sf.sample(model, n=3, nfe=2).nfe == 2
    assert sf.sample(model, n=2, steps=sf.PIDController(rtol=1e-2, atol=1e-2)).solver.name == "ees25"
    assert sf.sample(model, n=2, nfe=12, corrections=[lambda info: None]).solver.name == "ees25"
