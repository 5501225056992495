"""Steering: exact directions, guards, files to go on from, and what is refused."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from tqdm import tqdm

import steadyflow as sf
from steadyflow import steering

PATH = sf.VPCosine()
MIXTURE = sf.GaussianMixture.grid(3, std=0.25)
MODEL = MIXTURE.denoiser(PATH)
GOAL = MIXTURE.means[0]
FEW = {"n": 3, "dtype": torch.float64, "solver": "midpoint", "steps": 4}


def near(x, goal=GOAL):
    """Higher the nearer to a mode."""
    return -(x - goal).square().sum(1)


class Embedded(nn.Module):
    """A smooth network in the plane under an embedding of three numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, x, time, given=None):
        rows = x.new_zeros(len(x), 3) if given is None else given
        rows = rows["text"] * rows["mask"] if isinstance(rows, dict) else rows
        return self.layers(torch.cat([x, time[:, None].to(x.dtype), rows.expand(len(x), 3)], dim=1))


@pytest.fixture(scope="module")
def embedded():
    """Under a condition for each of two samples, at guidance 3."""
    net = Embedded().requires_grad_(False)
    model = sf.Denoiser(net, PATH, prediction="v_prediction", shape=(2,), null=torch.zeros(1, 3).double() - 0.3)
    given = torch.tensor([[1.0, 0.2, -0.5], [0.1, 0.7, 0.4]], dtype=torch.float64)
    return model.with_condition(given, guidance=3.0)


def slope(model, value, over, options, k, way, step=1e-5):
    """The central difference of the reward of sample k along a direction of what is optimised."""
    found = []
    for sign in (1.0, -1.0):
        moved = value + sign * step * way
        if over == "noise":
            one, x = model, moved
        else:
            one = model.with_condition(moved) if over == "condition" else model.with_negative(moved)
            x = START
        found.append(near(sf.sample(one, x=x, **options).x)[k])
    return float(found[0] - found[1]) / (2 * step)


START = torch.tensor([[0.3, -1.1], [0.9, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize("solver", ["ees25", "dpmpp-2m", "ddpm"])
def test_a_plain_step_goes_along_the_gradient_of_finite_differences(solver):
    """Also through a stochastic solver, whose noise is that of the address."""
    options = {"solver": solver, "nfe": 9, "seed": 4}
    found = steering.steer(MODEL, near, x=START, rounds=1, rate=1e-3, optimizer="plain", guard="none", **options)
    moved = found.work["at"][""]
    for k in range(2):
        for j in range(2):
            way = torch.zeros_like(START)
            way[k, j] = PATH.at(PATH.t_max).sigma  # one standard deviation of the start
            assert float(moved[k, j]) / 1e-3 == pytest.approx(slope(MODEL, START, "noise", options, k, way), rel=1e-5)
    assert found.rewards.shape == (2, 2)
    assert torch.equal(found.rewards[0], near(sf.sample(MODEL, x=START, **options).x))


def test_a_gradient_of_a_part_is_found_out_if_asked(embedded):
    words = {"rounds": 1, **FEW}
    sf.steer(MODEL, near, verify=True, **words)
    sf.steer(embedded, near, over="null", verify=True, **{**words, "n": 2, "dtype": torch.float32})
    half = {"corrections": [lambda info: 0.5 * (info.x + info.x.detach()) if info.done == 2 else None]}
    sf.steer(MODEL, near, **half, **words)
    with pytest.raises(sf.InputError, match="verify: along a random direction, the gradient is off by"):
        sf.steer(MODEL, near, verify=True, **half, **words)
    with pytest.raises(sf.InputError, match="verify: along a random direction"):
        sf.steer(MODEL, lambda x: near(x) - near(x.detach()) * 0.5, verify=True, **words)


@pytest.mark.parametrize("over", ["condition", "null"])
def test_an_embedding_moves_along_the_gradient_of_finite_differences(over, embedded):
    options = {"solver": "midpoint", "steps": 3}
    found = sf.steer(embedded, near, over=over, x=START, rounds=1, rate=1e-3, optimizer="plain", **options)
    first = embedded.condition if over == "condition" else embedded.null.expand(2, 3)
    size = first.square().mean(1).sqrt()
    for k in range(2):
        for j in range(3):
            way = torch.zeros(2, 3, dtype=torch.float64)
            way[k, j] = size[k]
            expected = slope(embedded, first, over, options, k, way)
            assert float(found.work["at"][""][k, j]) / 1e-3 == pytest.approx(expected, rel=1e-5)


def test_round_0_is_the_plain_sample_and_what_was_found_gives_the_result_again():
    options = {"nfe": 8, "seed": 3, "index": 5}
    plain = sf.sample(MODEL, n=4, dtype=torch.float64, **options)
    still = sf.steer(MODEL, near, n=4, rounds=0, dtype=torch.float64, **options)
    assert torch.equal(still.x, plain.x)
    assert (still.seed, still.index, still.solver, still.grid) == (plain.seed, 5, plain.solver, plain.grid)
    found = sf.steer(MODEL, near, n=4, rounds=6, rate=0.02, dtype=torch.float64, **options)
    assert torch.equal(found.rewards[0], near(plain.x))
    assert torch.equal(sf.sample(MODEL, x=found.start, nfe=8).x, found.x)
    torch.testing.assert_close(found.reward, near(found.x), rtol=0, atol=0)
    assert torch.equal(found.reward, found.rewards.amax(0))
    assert found.reward.mean() > found.rewards[0].mean() + 0.1


def test_a_sample_is_steered_alike_in_any_batch():
    whole = sf.steer(MODEL, near, rounds=5, **{**FEW, "n": 4})
    shard = sf.steer(MODEL, near, rounds=5, index=2, **{**FEW, "n": 2})
    chunks = sf.steer(MODEL, near, rounds=5, batch_size=3, **{**FEW, "n": 4})
    torch.testing.assert_close(shard.x, whole.x[2:], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(chunks.x, whole.x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["gradient", "flowopt", steering.ZeroOrder(pairs=6, radius=0.3)], ids=str)
def test_every_method_reaches_a_mode_by_its_label(method):
    """log p(label | x) of an exact mixture: at the start one in nine is there."""
    mixture = sf.GaussianMixture(MIXTURE.means, 0.4, labels=torch.arange(9))

    def log_label(x):
        return (-(x[:, None] - mixture.means).square().sum(2) / (2 * 0.4**2)).log_softmax(1)[:, 4]

    rate = 0.05 if method == "flowopt" else 0.15
    found = sf.steer(
        mixture.denoiser(PATH), log_label, method=method, rounds=40, rate=rate, guard="none", nfe=8, n=12,
        dtype=torch.float64,
    )  # fmt: skip
    there = torch.cdist(found.x, mixture.means).argmin(1) == 4
    assert there.float().mean() > 0.8
    assert found.reward.mean() > found.rewards[0].mean() + 3


ASKED = []


class Counted(type(MODEL)):
    """The mixture, which notes for how many samples it is asked."""

    def __call__(self, x, t):
        ASKED.append(len(x))
        return super().__call__(x, t)


ADJOINTS = ["none", "checkpoint", "reversible", sf.Adjoint("checkpoint", every=2), sf.Adjoint("checkpoint", every=3)]


@pytest.mark.parametrize("path", [PATH, sf.RectifiedFlow()], ids=str)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_every_adjoint_steers_alike_and_what_it_asks_again_is_counted(adjoint, path):
    ASKED.clear()
    exact = sf.Rex("midpoint", coordinates="flow", coupling="auto")
    words = {**FEW, "solver": exact if adjoint == "reversible" else "midpoint", "rounds": 3}
    found = sf.steer(Counted(MIXTURE, path), near, adjoint=adjoint, **words)
    assert found.nfe == sum(ASKED) / 3
    held = sf.steer(MIXTURE.denoiser(path), near, adjoint="none", **words)
    torch.testing.assert_close(found.x, held.x, rtol=1e-7, atol=1e-7)


def test_evaluations_are_counted():
    """Against what the network was asked for."""
    asked, model = ASKED, Counted(MIXTURE, PATH)
    for method in ("gradient", "flowopt", steering.ZeroOrder(pairs=2)):
        asked.clear()
        found = sf.steer(model, near, method=method, rounds=3, **FEW)
        assert found.nfe == sum(asked) / 3


def test_guards_keep_the_norm():
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = {"rounds": 10, "rate": 0.3, "solver": "midpoint", "steps": 3}
    for method in ("gradient", "flowopt", "zero-order"):
        held = sf.steer(MODEL, near, x=x, method=method, guard="norm", **options)
        torch.testing.assert_close(held.start.norm(dim=1), x.norm(dim=1))
        assert (held.distances["norm"] - held.distances["norm"][0]).abs().max() < 1e-12
    free = sf.steer(MODEL, near, x=x, guard="none", **options)
    assert (free.distances["norm"] - free.distances["norm"][0]).abs().max() > 0.1
    ball = sf.steer(MODEL, near, x=x, guard=steering.Norm("gaussian"), **options)
    assert ball.distances["norm"][1:].abs().max() < 1e-12


@pytest.mark.parametrize("path", [sf.VE(t_min=0.01, t_max=40.0), sf.VPLinear(), sf.RectifiedFlow()], ids=str)
def test_the_noise_of_a_start_is_standard_normal_on_every_path(path):
    """Means and variances of 400 samples of two numbers, within five deviations."""
    mixture = sf.GaussianMixture([[2.0, -1.0]], 0.5)
    found = sf.steer(mixture.denoiser(path), near, n=400, rounds=0, solver="midpoint", steps=2, dtype=torch.float64)
    assert found.distances["norm"].abs().mean() < 0.6
    big = sf.Denoiser(lambda x, t: x, path, prediction="v_prediction", shape=(800,))
    drawn = sf.steer(big, lambda x: x.sum(1), n=2, rounds=0, solver="midpoint", steps=2)
    assert drawn.distances["norm"].abs().max() < 5 / math.sqrt(1600)
    assert drawn.distances["kl"].max() < 0.02


def test_the_regularity_of_noise_is_a_bound_and_falls_off_the_gaussian():
    """The share of Gaussian draws beyond a bound is at most the bound; what is shifted or scaled is improbable."""
    draws = torch.randn(4000, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    blocks = draws.view(4000, 32, 2)
    m, k = 32, 2
    means = blocks.mean(1).norm(dim=1)
    spectral = torch.linalg.eigvalsh(blocks.transpose(1, 2) @ blocks / m - torch.eye(2)).abs().amax(1)
    for most in (0.3, 0.45, 0.6):
        assert (means > most).double().mean() <= min(1, 2 * math.exp(-m * most**2 / (2 * k))) + 0.01
    for most in (0.8, 1.2):
        beyond = max(0.0, math.sqrt(1 + most) - 1 - math.sqrt(k / m))
        assert (spectral > most).double().mean() <= min(1, 2 * math.exp(-m * beyond**2 / 2)) + 0.01
    usual = steering.log_probability(draws, 2)
    assert (usual == 0).double().mean() > 0.7
    assert usual.mean() > -0.2
    big = torch.randn(8, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for odd in (big + 0.2, 1.5 * big, big.abs()):
        assert (steering.log_probability(odd, 2) < -10).all()
    ordered = big.sort(1).values.view(8, 2, 2048).transpose(1, 2).reshape(8, 4096)  # a pattern that repeats
    looked = steering.Regular(permutations=2)
    assert (looked.value(ordered, 0, 0) < -10).all()
    assert torch.equal(looked.value(ordered, 0, 0), looked.value(ordered, 0, 0))
    assert (steering.Regular().value(big, 0, 1) > -1).all()


def test_regular_noise_stays_regular():
    model = sf.Denoiser(lambda x, t: 0.1 * x, PATH, prediction="sample", shape=(256,))
    options = {"n": 2, "rounds": 25, "rate": 0.1, "solver": "ddim", "steps": 2}
    free = sf.steer(model, lambda x: x.sum(1), guard="none", **options)
    kept = sf.steer(model, lambda x: x.sum(1), guard=steering.Regular(weight=1.0), **options)
    assert (kept.distances["kl"][-1] < 0.3 * free.distances["kl"][-1]).all()
    assert (kept.objectives <= kept.rewards).all()
    assert (kept.objectives[-1] < kept.rewards[-1]).any()


def test_a_reward_without_a_gradient_grows_by_pairs_of_runs():
    """How many numbers are above 1, an integer."""
    model = sf.GaussianMixture.farthest_points(12, 16, std=0.3).denoiser(PATH)
    asked = []

    def count(x):
        asked.append(x.dtype)
        return (x > 1.0).sum(1)

    method = steering.ZeroOrder(pairs=8, radius=0.5)
    found = sf.steer(model, count, n=6, method=method, rounds=15, rate=0.2, nfe=5)
    assert found.reward.mean() > found.rewards[0].mean() + 1
    assert found.nfe == 5 * (16 + 15 * 16)
    with pytest.raises(sf.InputError, match="no grad_fn"):
        sf.steer(model, count, n=2, nfe=5)


def test_shapes_of_rewards_make_no_estimate_depend_on_their_scale():
    few = torch.tensor([[1.0, 5.0], [2.0, 5.0], [2.0, 5.0], [9.0, 5.0]], dtype=torch.float64)
    rank = steering.ZeroOrder(shaping="rank")
    assert rank.shaped(few).tolist() == [[-0.5, 0.0], [0.0, 0.0], [0.0, 0.0], [0.5, 0.0]]
    assert torch.equal(rank.shaped(few), rank.shaped(few.exp()))
    spread = steering.ZeroOrder(shaping="standard").shaped(few)
    torch.testing.assert_close(spread, steering.ZeroOrder(shaping="standard").shaped(7 * few + 3))
    assert (spread[:, 1] == 0).all()


def test_smoothing_estimates_the_gradient():
    """Of the smoothed reward, which for a linear sampler and reward is the reward's own; within five deviations."""
    model = sf.Denoiser(lambda x, t: 0.0 * x, PATH, prediction="v_prediction", shape=(3,))
    way = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x = torch.ones(1, 3, dtype=torch.float64)
    options = {"rounds": 1, "rate": 1.0, "optimizer": "plain", "guard": "none", "solver": "ddim", "steps": 3}
    exact = sf.steer(model, lambda x: x @ way, x=x, **options).work["at"][""]
    method = steering.ZeroOrder(pairs=400, radius=0.1, shaping="none")
    found = sf.steer(model, lambda x: x @ way, x=x, method=method, **options).work["at"][""]
    assert (found - exact).norm() < 5 * exact.norm() * math.sqrt(4 / 400)


def test_a_reward_that_no_run_changes_is_said():
    with pytest.warns(UserWarning, match="no two runs of a sample had different rewards"):
        sf.steer(MODEL, lambda x: (x > 1e6).sum(1), method="zero-order", rounds=2, **FEW)


def test_flowopt_makes_the_step_of_its_paper():
    target = torch.tensor([[1.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)
    options = {"solver": "midpoint", "steps": 4}
    model = sf.GaussianMixture.grid(3, std=0.25).denoiser(sf.RectifiedFlow())
    z = START
    for _ in range(3):
        z = z - 0.2 * (sf.sample(model, x=z, **options).x - target)
    found = sf.steer(
        model, lambda x: -(x - target).square().sum(1) / 2, method="flowopt", x=START, rounds=3, rate=0.2,
        guard="none", **options,
    )  # fmt: skip
    torch.testing.assert_close(START + found.work["at"][""], z)


METHODS = ["gradient", "flowopt", "zero-order"]


@pytest.mark.parametrize("optimizer", ["adam", "plain", torch.optim.RMSprop], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_call_goes_on_to_the_same_bits(method, optimizer, tmp_path):
    def call(**words):
        return sf.steer(
            MODEL, near, method=method, optimizer=optimizer, solver="ddpm", guard=steering.Regular(block=1), nfe=4,
            seed=2, n=3, **words,
        )  # fmt: skip

    whole = call(rounds=4)
    call(rounds=2).save(tmp_path / "found.safetensors")
    part = sf.Steered.load(tmp_path / "found.safetensors")
    on = call(rounds=4, resume=part)
    for name in ("rewards", "objectives", "best", "start", "x"):
        assert torch.equal(getattr(on, name), getattr(whole, name)), name
    assert all(torch.equal(on.distances[name], curve) for name, curve in whole.distances.items())
    assert on.nfe == whole.nfe + 4  # the round that is made again
    assert call(rounds=2, resume=part).nfe == part.nfe


def test_a_checkpoint_is_gone_on_from_and_kept_intact_by_errors(tmp_path):
    path = tmp_path / "work.safetensors"
    whole = sf.steer(MODEL, near, rounds=6, **FEW)
    turns = []

    def breaks(x):
        turns.append(len(x))
        return near(x) * (math.nan if len(turns) == 4 else 1.0)

    with pytest.raises(sf.NonFiniteError, match=r"round 3 for sample\(s\) 0, 1, 2; the rounds before are in .*work"):
        sf.steer(MODEL, breaks, rounds=6, checkpoint=path, **FEW)
    assert sf.Steered.load(path).rounds == 2
    done = []
    found = sf.steer(MODEL, near, rounds=6, checkpoint=path, callback=done.append, **FEW)
    assert torch.equal(found.x, whole.x)
    assert torch.equal(found.rewards, whole.rewards)
    assert [one.round for one in done] == [3, 4, 5, 6]
    assert torch.equal(done[-1].rewards, found.rewards[-1])
    with pytest.raises(sf.InputError, match=r"whose rate was 0\.1 and not 0\.2"):
        sf.steer(MODEL, near, rounds=6, rate=0.2, checkpoint=path, **FEW)
    other = MIXTURE.denoiser(sf.VPLinear())
    with pytest.raises(sf.InputError, match="is of another call, whose model was"):
        sf.steer(other, near, rounds=6, checkpoint=path, **FEW)
    with pytest.raises(sf.InputError, match="the reward or the model is another"):
        sf.steer(MODEL, lambda x: 2 * near(x), rounds=8, checkpoint=path, **FEW)
    with pytest.raises(sf.InputError, match="rounds: got 4"):
        sf.steer(MODEL, near, rounds=4, checkpoint=path, **FEW)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(sf.CorruptFileError):
        sf.steer(MODEL, near, rounds=6, checkpoint=path, **FEW)
    foreign = tmp_path / "solution.safetensors"
    sf.sample(MODEL, n=1, nfe=4).save(foreign)
    with pytest.raises(sf.CorruptFileError, match="expected a steadyflow steered"):
        sf.Steered.load(foreign)


def test_a_condition_of_several_entries_is_saved_and_its_mask_stays(embedded, tmp_path):
    entries = {"text": embedded.condition, "mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    model = sf.Denoiser(embedded.net, PATH, prediction="v_prediction", shape=(2,)).with_condition(entries)
    found = sf.steer(model, near, over="condition", x=START, rounds=4, rate=0.1, solver="midpoint", steps=3)
    assert torch.equal(found.start["mask"], entries["mask"])
    assert torch.equal(sf.sample(model.with_condition(found.start), x=START, solver="midpoint", steps=3).x, found.x)
    found.save(tmp_path / "found.safetensors")
    back = sf.Steered.load(tmp_path / "found.safetensors")
    assert torch.equal(back.start["text"], found.start["text"])
    assert torch.equal(back.x, found.x)
    assert (back.over, back.rounds, back.about) == ("condition", 4, found.about)
    assert (found.reward > found.rewards[0]).all()


def test_a_null_embedding_brings_a_guided_round_trip_back(embedded):
    """Null-text inversion (2211.09794), with one embedding for all steps."""
    options = {"solver": "midpoint", "steps": 6}
    source = sf.sample(embedded, x=START, guidance=1.0, **options).x
    latent = sf.invert(embedded, source, source_guidance=1.0, **options).latent
    found = sf.steer(
        embedded, lambda x: -(x - source).square().sum(1), over="null", x=latent, rounds=60, rate=0.1, **options
    )
    assert found.reward.min() > 0.02 * found.rewards[0].max()
    assert found.reward.min() > -0.01


def test_a_scale_of_guidance_moves_along_the_gradient_and_ends_as_one_per_sample(embedded):
    options = {"solver": "midpoint", "steps": 3}
    found = sf.steer(embedded, near, over="guidance", x=START, rounds=1, rate=1e-3, optimizer="plain", **options)
    for k in range(2):
        up, down = (near(sf.sample(embedded, x=START, guidance=3.0 + h, **options).x)[k] for h in (1e-5, -1e-5))
        assert float(found.work["at"][""][k]) / 1e-3 == pytest.approx(float(up - down) / 2e-5, rel=1e-5)
    assert torch.equal(found.rewards[0], near(sf.sample(embedded, x=START, **options).x))
    several = {"guidance": torch.tensor([2.0, 4.0])}
    for words in ({"method": steering.ZeroOrder(pairs=2)}, {}, several, {"batch_size": 1}):
        far = sf.steer(embedded, near, over="guidance", x=START, rounds=10, **words, **options)
        assert far.start.shape == (2,)
        assert (far.reward > far.rewards[0]).all()
        again = sf.sample(embedded.with_guidance(far.start), x=START, **options)
        torch.testing.assert_close(again.x, far.x, rtol=0, atol=1e-12)
    labels = LABELS.with_condition(torch.tensor([0, 1, 2]))
    far = sf.steer(labels, near, over="guidance", rounds=10, **FEW)
    assert far.reward.mean() > far.rewards[0].mean()


def test_work_under_a_condition_is_not_gone_on_with_under_another():
    part = sf.steer(LABELS.with_condition(1), near, rounds=1, **FEW)
    with pytest.raises(sf.InputError, match="resume: is of another call, whose condition was"):
        sf.steer(LABELS.with_condition(2), near, rounds=2, resume=part, **FEW)


LABELS = sf.GaussianMixture(MIXTURE.means, 0.3, labels=torch.arange(9) % 3).denoiser(PATH)


@pytest.mark.parametrize(("words", "message"), [
    ({"reward": 3.0}, "reward: got 3.0"),
    ({"reward": lambda x: x.sum()}, r"reward: returned shape \(\) for 3 samples, expected \(3,\): one number per"),
    ({"reward": lambda x: x}, r"reward: returned shape \(3, 2\)"),
    ({"reward": lambda x: 1.5}, "reward: returned float"),
    ({"reward": lambda x: near(x.detach())}, "reward: does not depend .* detach"),
    ({"reward": lambda x: near(x.detach()) + 0 * x.sum(1)}, "reward: its gradient is 0"),
    ({"reward": lambda x: near(x.detach()) + 0 * x.sum(1), "method": "flowopt"}, "reward: its gradient is 0"),
    ({"reward": lambda x: torch.sqrt(0 * x.sum(1))}, "its gradient is NaN or infinite at round 0"),
    ({"reward": lambda x: near(x) * torch.tensor([1.0, math.nan, 1.0])}, r"round 0 for sample\(s\) 1; this is"),
    ({"reward": lambda x: near(x) / 0, "method": "zero-order"}, "NaN or infinite at round 0"),
    ({"corrections": [lambda info: info.x.detach() * 1.0]}, "no gradient comes through the sampler"),
    ({"over": "latent"}, "unknown over 'latent'"),
    ({"method": "newton"}, "unknown method 'newton'"),
    ({"guard": "sphere"}, "unknown guard 'sphere'"),
    ({"guard": 3}, "guard: got 3"),
    ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
    ({"optimizer": 3}, "optimizer: got 3"),
    ({"optimizer": torch.optim.LBFGS}, "optimizer: got LBFGS"),
    ({"optimizer": lambda leaves, lr: None}, "factory returned a NoneType"),
    ({"rate": 0.0}, "rate: got 0.0"),
    ({"rate": "fast"}, "rate: got 'fast'"),
    ({"clip": -1.0}, "clip: got -1.0"),
    ({"clip": 1.0, "optimizer": "sgd"}, "clip: has no meaning"),
    ({"optimizer": lambda leaves: None}, "optimizer: cannot be called as"),
    ({"callback": 3}, "callback: got 3"),
    ({"verify": True, "method": "flowopt"}, "verify: compares"),
    ({"model": sf.GaussianMixture([[0.0]], 1.0).denoiser(PATH)}, "guard: 'norm' holds samples of one number"),
    ({"adjoint": "checkpoint", "method": "flowopt"}, "adjoint: has no meaning for this method"),
    ({"adjoint": "reversible", "solver": "dpmpp-2m"}, "adjoint: 'reversible' cannot recover"),
    ({"adjoint": "reversed"}, "unknown adjoint 'reversed'"),
    ({"corrections": [sf.corrections.Stein()]}, "correction 'Stein': has no gradient"),
    ({"model": sf.Denoiser(lambda x, t: x.detach(), PATH, shape=(2,))}, "does not depend on the state"),
    ({"rounds": -1}, "rounds: got -1"),
    ({"n": None}, "either n"),
    ({"x": START}, "either n"),
    ({"record": "all"}, "record: has no meaning for steer"),
    ({"steps": sf.PIDController()}, "steps: a controller"),
    ({"stepz": 4}, "unknown option 'stepz'"),
    ({"resume": "file"}, "resume: got str"),
    ({"over": "condition"}, "over: 'condition' needs a model under a condition"),
    ({"over": "null"}, "over: 'null' needs a model under a condition"),
    ({"over": "guidance"}, "over: 'guidance' needs a model under a condition"),
    ({"over": "condition", "model": LABELS.with_condition(1)}, "condition: got the label 1"),
    ({"over": "condition", "model": LABELS.with_condition(torch.tensor([0, 1, 2]))}, "got the label a tensor"),
    ({"over": "null", "model": LABELS.with_condition(1)}, "over: a null condition has no effect at guidance 1"),
    ({"over": "null", "model": LABELS.with_condition(1), "guidance": 2.0}, "null: got the label"),
    ({"guard": "regular", "over": "guidance", "model": LABELS.with_condition(1)}, "guard: got 'regular'"),
    ({"guard": "norm", "n": None, "x": torch.zeros(3, 2)}, "guard: the start of sample 0 has no noise"),
    ({"guard": steering.Regular(block=2)}, "guard: blocks of 2 numbers say nothing of samples of 2"),
    ({"method": "flowopt", "over": "guidance", "model": LABELS.with_condition(1)}, "method: 'flowopt' is for"),
])  # fmt: skip
def test_what_is_wrong_is_named(words, message):
    words = {**FEW, "model": MODEL, "reward": near, "rounds": 2, **words}
    with pytest.raises(sf.SteadyflowError, match=message):
        sf.steer(words.pop("model"), words.pop("reward"), **words)


def test_a_prompt_is_refused_by_name():
    class Prompted(sf.Denoiser):
        def _check_labels(self, given):
            pass

    model = Prompted(Embedded(), PATH, shape=(2,)).with_condition("a cat")
    with pytest.raises(sf.InputError, match="condition: got a prompt, 'a cat'; give what the network takes of it"):
        sf.steer(model, near, over="condition", **FEW)


def test_a_reward_that_writes_to_the_samples_changes_nothing():
    def writes(x):
        with torch.no_grad():
            found = near(x)
        return near(x.mul_(1.0)) + 0 * found

    ok = sf.steer(MODEL, near, rounds=2, **FEW)
    odd = sf.steer(MODEL, lambda x: near(x.clone()) + 0 * x.mul_(0.0).sum(1), rounds=2, **FEW)
    torch.testing.assert_close(odd.x, ok.x)
    assert torch.equal(sf.steer(MODEL, writes, rounds=2, **FEW).x, ok.x)


def test_nothing_is_left_of_gradients_in_the_model_or_the_start():
    net = Embedded()
    model = sf.Denoiser(net, PATH, prediction="v_prediction", shape=(2,))
    x = START.clone().requires_grad_()
    with torch.no_grad():
        found = sf.steer(model, near, x=x, rounds=2, solver="midpoint", steps=2)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert x.grad is None
    assert not found.x.requires_grad
    assert not found.start.requires_grad
    with torch.inference_mode(), pytest.raises(sf.InputError, match="inference_mode"):
        sf.steer(model, near, x=START, rounds=2, nfe=4)


def test_clipping_bounds_the_gradient_of_each_sample():
    options = {"x": START, "rounds": 1, "rate": 1.0, "guard": "none", "solver": "midpoint", "steps": 3}
    plain = sf.steer(MODEL, near, optimizer="plain", **options).work["at"][""]
    held = sf.steer(MODEL, near, optimizer="plain", clip=1e-2, **options).work["at"][""]
    torch.testing.assert_close(held.norm(dim=1), torch.full((2,), 1e-2, dtype=torch.float64))
    torch.testing.assert_close(held / held.norm(dim=1, keepdim=True), plain / plain.norm(dim=1, keepdim=True))
    sgd = sf.steer(MODEL, near, optimizer="sgd", **{**options, "rate": 0.1}).work["at"][""]
    torch.testing.assert_close(sgd.square().mean(1).sqrt(), torch.full((2,), 0.1, dtype=torch.float64))


def test_fine_tuning_through_the_last_steps_draws_more_of_a_class():
    """The example in small: DRaFT-2 of eight rounds, with what it says of collapse."""
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "finetune_digits.py"))
    (before, spread), (after, later) = example["main"](last=2, rounds=8, batch=48, n=300, epochs=60, rate=3e-3)
    assert after > before + 0.1
    assert 0.3 < later < spread + 0.1


ACTING = {
    "solver": "ddim",
    "steps": 5,
    "grid": "log-snr",
    "strength": 0.5,
    "t_min": 0.02,
    "t_max": 0.8,
    "seed": 5,
    "index": 3,
    "noise": "white",
    "corrections": [lambda info: 0.9 * info.x],
}


@pytest.mark.parametrize("word", ACTING)
def test_every_word_of_sample_acts(word):
    base = {"n": 2, "rounds": 1, "solver": "ddpm", "dtype": torch.float64} | ({} if word == "steps" else {"steps": 4})
    plain = sf.steer(MODEL, near, **base)
    assert not torch.equal(sf.steer(MODEL, near, **{**base, word: ACTING[word]}).rewards, plain.rewards)


def test_batches_and_bars_are_those_that_were_asked_for():
    ASKED.clear()
    bar = tqdm(disable=True)
    counted = []
    bar.update = lambda n=1: counted.append(n)
    sf.steer(Counted(MIXTURE, PATH), near, rounds=2, batch_size=2, progress=bar, **FEW)
    assert max(ASKED) == 2
    assert sum(counted) == 2
    with pytest.raises(sf.UnknownNameError, match="unknown option 'end'"):
        sf.steer(MODEL, near, end="path", **FEW)
