"""Addressed noise: the same numbers however the work is cut, and the right distribution."""

import hashlib
import itertools
import math
import random
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats

import steadyflow as sf
from steadyflow import noise
from steadyflow.noise import Brownian, White, normal

SOURCES = {"brownian": Brownian, "white": White}


def rows(samples, shape=(3,), seed=5, stream=0, node=(1, 2, 3), **options):
    return normal(seed, stream, node, samples, shape, **options)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (7,), (2, 4), (64,), (3, 5, 5), (511,), (512,), (4099,)])
def test_a_row_is_the_same_in_any_batch_order_and_shard(shape):
    whole = rows(range(50), shape)
    assert whole.shape == (50, *shape)
    assert torch.equal(rows(range(20, 33), shape), whole[20:33])
    assert torch.equal(rows([7], shape), whole[7:8])
    scattered = [31, 4, 5, 6, 49, 0, 4]
    assert torch.equal(rows(scattered, shape), whole[scattered])
    assert torch.equal(torch.cat([rows(range(k, k + 10), shape) for k in range(0, 50, 10)]), whole)


def test_a_large_row_is_the_same_alone_and_in_a_batch():
    """Of 100,003 numbers: more than are drawn at a time, and no multiple of a cell."""
    whole = rows(range(3), (100_003,))
    for k in range(3):
        assert torch.equal(rows([k], (100_003,)), whole[k : k + 1])


@pytest.mark.parametrize("size", [1024, 1000])
def test_rows_are_the_same_across_the_end_of_a_sequence(size):
    end = noise._REEL * noise._CELL // size  # the sample where the next sequence begins
    whole = rows(range(end - 2, end + 3), (size,))
    for k in range(5):
        assert torch.equal(rows([end - 2 + k], (size,)), whole[k : k + 1])
    assert not (whole[2:] == rows(range(3), (size,))).all(1).any()
    assert len(torch.unique(whole, dim=0)) == 5


def test_the_last_index_has_noise_of_its_own():
    last = 2**63 - 1
    row = rows([last], (5000,))
    assert torch.equal(rows(range(last - 1, last + 1), (5000,))[1:], row)
    assert stats.kstest(row[0].double().numpy(), "norm").pvalue > 1e-6
    assert not torch.equal(row, rows([2**62 - 1], (5000,)))


def test_the_low_64_bits_of_a_seed_count():
    for seed in (-1, 0, 7, -(2**63)):
        assert torch.equal(rows(range(3), seed=seed), rows(range(3), seed=seed + 2**64))
        assert torch.equal(rows(range(3), seed=seed), rows(range(3), seed=seed - 2**70))
    assert not torch.equal(rows(range(3), seed=2**32 + 7), rows(range(3), seed=7))


@pytest.mark.parametrize("samples", [[-1], [3, -1, 4], range(-2, 2)])
def test_negative_indices_are_refused(samples):
    with pytest.raises(sf.InputError, match="samples"):
        rows(samples)


def test_no_two_of_400_000_addresses_have_the_same_numbers():
    """Four numbers hold over 90 bits: chance equals 1e-16. Addresses of 32 bits would make 18 pairs."""
    words = (0, 1, 2, 2**32, 2**63, -1)
    nodes = [
        *itertools.product(words, repeat=3),
        *((k, 0, 0) for k in range(3, 450)),
        *((0, 0, k) for k in range(3, 450)),
    ]
    addresses = list(itertools.product((*range(6), 2**32, -1), (0, 1, 2), nodes))
    drawn = torch.cat([rows(range(16), (4,), *address) for address in addresses])
    assert len(drawn) > 400_000
    assert len(np.unique(drawn.numpy().view("V16"))) == len(drawn)


def test_numbers_are_those_of_the_documented_generator():
    """SHA-256, PCG64 DXSM and Box-Muller anew, in float64, for numbers in several cells."""
    size, half, sample = 700, noise._CELL // 2, 9
    digest = hashlib.sha256(struct.pack("<6Q", 5, 3, 1, 2, 2**64 - 3, 0)).digest()
    state, step = (int.from_bytes(part, "little") for part in (digest[:16], digest[16:]))
    generator = np.random.PCG64DXSM()
    generator.state = {**generator.state, "state": {"state": state, "inc": step | 1}}
    words = generator.random_raw((sample + 1) * size).view(np.int32)
    for position in (0, 1, 255, 256, 511, 512, 699):
        cell, place = divmod(sample * size + position, 2 * half)
        pair = place % half
        u = abs(words[2 * half * cell + pair] + 0.5) / 2**31
        turn = words[2 * half * cell + half + pair] * math.pi / 2**31
        expected = math.sqrt(-2 * math.log(u)) * (math.cos(turn) if place < half else math.sin(turn))
        assert abs(rows([sample], (size,), stream=3, node=(1, 2, -3))[0, position] - expected) < 3e-6


def test_the_rarest_words_give_finite_numbers():
    class Words:
        def random_raw(self, count):
            return np.tile(np.array([0, -1, 1, -(2**31), 2**31 - 1, 5, 6, 7], dtype=np.int32), count // 4).view(
                np.uint64
            )

    cells = np.empty((3, 2, noise._CELL // 2), dtype=np.float32)
    noise._fill(cells, Words())
    length = np.hypot(cells[:, 0], cells[:, 1])
    assert np.isfinite(cells).all()
    assert abs(length.max() - math.sqrt(64 * math.log(2))) < 1e-5
    assert length.min() == 0


def test_threads_do_not_disturb_one_another():
    addresses = [(seed, (size,)) for seed in range(40) for size in (3, 5000, 70_000)]
    serial = [rows(range(3), shape, seed=seed) for seed, shape in addresses]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            drawn = list(pool.map(lambda a: rows(range(3), a[1], seed=a[0]), addresses))
            assert all(map(torch.equal, drawn, serial))


def test_neither_import_nor_a_draw_starts_a_thread():
    code = (
        "import threading, steadyflow.noise as n; n.normal(0, 0, (0, 0, 0), range(3), (5000,)); "
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_leaves_the_global_generators_alone():
    before, ours = torch.get_rng_state(), np.random.get_state()[1].copy()
    rows(range(3), (5000,))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == ours).all()


def test_huge_indices_and_any_seed_have_noise_of_their_own():
    far = rows(range(2**40, 2**40 + 4))
    assert torch.equal(rows([2**40 + 2]), far[2:3])
    assert not torch.equal(far, rows(range(4)))
    for seed in (-1, 0, 2**63, 2**64 - 1):
        assert rows(range(3), seed=seed).isfinite().all()
    assert not torch.equal(rows(range(3), seed=1), rows(range(3), seed=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_precision_changes_the_type_alone(dtype):
    assert torch.equal(rows(range(9), dtype=dtype), rows(range(9)).to(dtype))


@pytest.mark.parametrize(("samples", "size"), [(range(1_000_000), 4), (range(0, 2000, 2), 4096), ([2**50], 2**22)])
def test_four_million_numbers_are_standard_normal(samples, size):
    """Kolmogorov-Smirnov at an error probability of 1e-6, moments to five standard errors (6e-7 each), no infinity."""
    z = rows(samples, (size,)).double().flatten()
    n = len(z)
    assert z.isfinite().all()
    assert 4.5 < z.abs().max() < 6.7
    assert stats.kstest(z[::4].numpy(), "norm").pvalue > 1e-6
    assert z.mean().abs() < 5 / math.sqrt(n)
    assert (z.square().mean() - 1).abs() < 5 * math.sqrt(2 / n)
    assert (z**3).mean().abs() < 5 * math.sqrt(15 / n)
    assert ((z**4).mean() - 3).abs() < 5 * math.sqrt(96 / n)


def assert_unrelated(a, b):
    """Neither numbers nor their squares are correlated, to five standard errors: an error probability of 1e-6."""
    a, b = a.double().flatten(), b.double().flatten()
    assert (a * b).mean().abs() < 5 / math.sqrt(len(a))
    assert ((a.square() - 1) * (b.square() - 1)).mean().abs() < 10 / math.sqrt(len(a))


@pytest.mark.parametrize("other", [
    {"seed": 6}, {"seed": 5 + 2**32}, {"stream": 1}, {"node": (1, 2, 4)}, {"node": (2, 2, 3)}, {"node": (2, 1, 3)},
    {"samples": range(200_000, 400_000)}, *({"samples": range(2**k, 2**k + 200_000)} for k in (20, 32, 40, 48, 62)),
])  # fmt: skip
def test_other_addresses_are_uncorrelated(other):
    options = {"samples": range(200_000), **other}
    assert_unrelated(rows(range(200_000)), rows(options.pop("samples"), **options))


@pytest.mark.parametrize("distance", [1, 2, 64, 2**20, 2**30, 2**40, 2**50])
def test_large_samples_are_uncorrelated(distance):
    samples = range(7, 7 + 64)
    assert_unrelated(rows(samples, (4096,)), rows([i + distance for i in samples], (4096,)))


def test_one_position_is_uncorrelated_over_seeds_and_nodes():
    drawn = [[rows([3], (2,), seed=s, node=(k, 0, 0))[0] for s in range(5000)] for k in range(2)]
    a, b = (torch.stack(column) for column in drawn)
    assert_unrelated(a, b)
    assert_unrelated(a[1:], a[:-1])
    assert stats.kstest(a.flatten().double().numpy(), "norm").pvalue > 1e-6


def test_neighbouring_numbers_are_uncorrelated():
    z = rows(range(400_000), (2,)).flatten()
    for lag in (1, 2, 7, 8, 255, 256, 257, 512, 65_536):
        assert_unrelated(z[lag:], z[:-lag])


def brownian(n=4, shape=(2,), seed=3, dtype=torch.float64, samples=None):
    return Brownian(seed, range(n) if samples is None else samples, shape, dtype=dtype)


@pytest.mark.parametrize("low_high", [(0.0, 1.0), (1e-8, 1e8), (0.0, 3e-19), (0.3, 0.3001), (1e5, 1e6)])
def test_increments_over_parts_add_up_to_the_whole(low_high):
    low, high = low_high
    rng = random.Random(1)
    for _ in range(5):
        cuts = sorted({low, high, *(low + (high - low) * rng.random() ** 3 for _ in range(30))})
        source = brownian()
        parts = sum(source.increment(a, b) for a, b in itertools.pairwise(cuts))
        whole = brownian().increment(low, high)
        assert (parts - whole).abs().max() <= 1e-13 * math.sqrt(high) + 1e-14 * whole.abs().max()


def test_going_back_is_the_negative_and_nowhere_is_zero():
    for kind in SOURCES.values():
        source = kind(0, range(3), (2,), dtype=torch.float64)
        assert torch.equal(source.increment(0.2, 0.9), -source.increment(0.9, 0.2))
    assert (brownian().increment(0.4, 0.4) == 0).all()


def test_the_order_of_questions_does_not_matter():
    rng = random.Random(2)
    spans = [tuple(sorted((10 ** rng.uniform(-6, 6), 10 ** rng.uniform(-6, 6)))) for _ in range(200)]
    fresh = {s: brownian().increment(*s) for s in spans}
    used = brownian()
    for s in rng.sample(spans, len(spans)):
        assert torch.equal(used.increment(*s), fresh[s])


def test_a_path_belongs_to_its_sample():
    whole = brownian(20).increment(0.1, 7.0)
    assert torch.equal(brownian(samples=[13, 2]).increment(0.1, 7.0), whole[[13, 2]])


def test_thousands_of_questions_neither_recurse_nor_run_out_of_range():
    source = brownian(2, ())
    for k in range(1500):
        source.increment(1e-9 * 1.03**k, 1e-9 * 1.03 ** (k + 1))
    assert len(source._binades) <= 5
    assert sum(map(len, source._descents.values())) <= 2 * 21


@pytest.mark.parametrize("kind", SOURCES.values(), ids=SOURCES)
def test_answers_may_be_overwritten(kind):
    source, spans = kind(0, range(3), (2,)), [(0.5, 0.75), (0.75, 0.5), (0.5, 1.0), (0.3, 0.8), (0.0, 4.0), (1.0, 2.0)]
    for ask in (source.increment, source.unit, source.area):
        for span in spans:
            first = ask(*span)
            kept = first.clone()
            first.fill_(math.nan)
            assert torch.equal(ask(*span), kept)


def test_a_step_costs_few_draws(monkeypatch):
    """One for white noise; for a Brownian path on a walk up or down, less than the twenty levels of a binade."""
    draws = []
    monkeypatch.setattr(noise, "normal", lambda *args, **options: draws.append(1) or normal(*args, **options))
    walk = [0.5 + 0.01 * k for k in range(50)]
    for kind, most in ((White, 1), (Brownian, 20)):
        for clock in (walk, walk[::-1]):
            source = kind(0, range(2), (2,))
            source.unit(clock[0], clock[1])
            draws.clear()
            for a, b in itertools.pairwise(clock[1:]):
                source.unit(a, b)
            assert len(draws) <= most * 48


@pytest.mark.parametrize("interval", [(0.0, 1e-6), (0.7, 0.9), (1.0, 37.0), (3e4, 4e6)])
def test_increments_have_the_variance_of_their_interval(interval):
    a, b = interval
    n = 40_000
    w = brownian(n, (1,)).increment(a, b)[:, 0]
    assert (w.square().mean() / (b - a) - 1).abs() < 5 * math.sqrt(2 / n) + 2e-6
    assert w.mean().abs() < 5 * math.sqrt((b - a) / n)
    assert stats.kstest((w / math.sqrt(b - a)).numpy(), "norm").pvalue > 1e-6
    unit = brownian(n, (1,)).unit(a, b)
    assert (unit.square().mean() - 1).abs() < 5 * math.sqrt(2 / n)


def test_disjoint_increments_are_independent_also_inside_a_binade():
    source, n = brownian(40_000, (1,)), 40_000
    edges = [0.5, 0.6, 0.61, 0.75, 0.9, 1.3, 5.0]
    units = [source.unit(a, b)[:, 0] for a, b in itertools.pairwise(edges)]
    for i, u in enumerate(units):
        for v in units[:i]:
            assert (u * v).mean().abs() < 5 / math.sqrt(n)


def test_additivity_and_variance_are_those_of_torchsde():
    """The oracle: torchsde's Brownian interval adds up to its own tolerance, ours to rounding."""
    torchsde = pytest.importorskip("torchsde")
    n, cuts = 20_000, [0.0, 0.13, 0.37, 0.5, 0.92, 1.0]
    theirs = torchsde.BrownianInterval(0.0, 1.0, size=(n, 1), dtype=torch.float64, entropy=7)
    ours = brownian(n, (1,))
    for increment in (lambda a, b: theirs(a, b), ours.increment):
        parts = sum(increment(a, b) for a, b in itertools.pairwise(cuts))
        assert (parts - increment(0.0, 1.0)).abs().max() < 1e-12
        for a, b in itertools.pairwise(cuts):
            assert (increment(a, b).square().mean() / (b - a) - 1).abs() < 5 * math.sqrt(2 / n)


def test_white_noise_is_addressed_by_its_interval():
    source = White(1, range(20_000), (1,), dtype=torch.float64)
    a, b = source.unit(0.1, 0.2), source.unit(0.1, 0.3)
    assert torch.equal(a, White(1, range(20_000), (1,), dtype=torch.float64).unit(0.1, 0.2))
    assert (a * b).mean().abs() < 5 / math.sqrt(20_000)
    assert (source.increment(0.0, 4.0).square().mean() / 4 - 1).abs() < 5 * math.sqrt(2 / 20_000)


@pytest.mark.parametrize(("a", "b"), [(-1.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
@pytest.mark.parametrize("kind", SOURCES.values(), ids=SOURCES)
def test_clocks_that_are_negative_or_infinite_are_refused(kind, a, b):
    with pytest.raises(sf.InputError, match="clock"):
        kind(0, range(2), (2,)).increment(a, b)


def test_an_interval_below_the_resolution_and_no_samples_are_refused():
    with pytest.raises(sf.InputError, match="resolution"):
        brownian().unit(1.0, 1.0 + 1e-9)
    with pytest.raises(sf.InputError, match="samples"):
        Brownian(0, [], (2,))
