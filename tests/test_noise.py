"""Addressed noise: the same numbers however the work is cut, and the right distribution."""

import itertools
import math
import random

import pytest
import torch
from scipy import stats

import steadyflow as sf
from steadyflow.noise import Brownian, White, normal

SOURCES = {"brownian": Brownian, "white": White}


def rows(samples, shape=(3,), seed=5, node=(1, 2, 3), **options):
    return normal(seed, 0, node, samples, shape, **options)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (7,), (2, 4), (64,), (3, 5, 5)])
def test_a_row_is_the_same_in_any_batch_order_and_shard(shape):
    whole = rows(range(50), shape)
    assert whole.shape == (50, *shape)
    assert torch.equal(rows(range(20, 33), shape), whole[20:33])
    assert torch.equal(rows([7], shape), whole[7:8])
    scattered = [31, 4, 5, 6, 49, 0, 4]
    assert torch.equal(rows(scattered, shape), whole[scattered])
    assert torch.equal(torch.cat([rows(range(k, k + 10), shape) for k in range(0, 50, 10)]), whole)


def test_huge_indices_and_any_seed_have_noise_of_their_own():
    far = rows(range(2**40, 2**40 + 4))
    assert torch.equal(rows([2**40 + 2]), far[2:3])
    assert not torch.equal(far, rows(range(4)))
    for seed in (-1, 0, 2**63, 2**64 - 1):
        assert rows(range(3), seed=seed).isfinite().all()
    assert not torch.equal(rows(range(3), seed=1), rows(range(3), seed=2))


def test_precision_changes_the_type_alone():
    assert torch.equal(rows(range(9), dtype=torch.float64), rows(range(9)).double())


def test_four_million_numbers_are_standard_normal():
    """Kolmogorov-Smirnov at an error probability of 1e-6, moments to five standard errors, no infinity."""
    z = rows(range(1_000_000), (4,)).double().flatten()
    n = len(z)
    assert z.isfinite().all()
    assert 4.5 < z.abs().max() < 6.7
    assert stats.kstest(z[::4].numpy(), "norm").pvalue > 1e-6
    assert z.mean().abs() < 5 / math.sqrt(n)
    assert (z.square().mean() - 1).abs() < 5 * math.sqrt(2 / n)
    assert (z**3).mean().abs() < 5 * math.sqrt(15 / n)
    assert ((z**4).mean() - 3).abs() < 5 * math.sqrt(96 / n)


@pytest.mark.parametrize("other", [
    {"seed": 6}, {"node": (1, 2, 4)}, {"node": (2, 2, 3)}, {"samples": range(200_000, 400_000)},
])  # fmt: skip
def test_other_addresses_are_uncorrelated(other):
    options = {"samples": range(200_000), **other}
    a, b = rows(range(200_000)).flatten(), rows(options.pop("samples"), **options).flatten()
    assert (a * b).mean().abs() < 5 / math.sqrt(len(a))


def test_neighbouring_numbers_are_uncorrelated():
    z = rows(range(400_000), (2,)).flatten()
    for lag in (1, 2, 7, 8):
        assert (z[lag:] * z[:-lag]).mean().abs() < 5 / math.sqrt(len(z))


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
