"""Distances between samples, against closed forms and scipy."""

import math

import pytest
import scipy.stats
import torch

import steadyflow as sf
from steadyflow.metrics import energy_distance, sliced_wasserstein


def draws(n, dim, seed, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_sliced_distance_of_shifted_gaussians_is_the_shifts_mean_projection():
    shift = torch.tensor([3.0, 0.0, 0.0, 4.0], dtype=torch.float64)
    x = draws(4000, 4, 0)
    expected = shift.norm().item() / math.sqrt(4)  # E <direction, shift>^2 = |shift|^2 / d
    assert sliced_wasserstein(x, x + shift, directions=4000) == pytest.approx(expected, rel=0.03)
    assert sliced_wasserstein(x, x) == 0.0
    assert sliced_wasserstein(x, draws(2500, 4, 1)) < 0.12


def test_on_the_line_the_energy_distance_is_that_of_scipy():
    x, y = draws(300, 1, 0), draws(200, 1, 1, shift=0.7, scale=1.5)
    squared = scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2  # of the empirical laws, thus biased upwards
    correction = sum(torch.cdist(z, z).sum().item() / len(z) ** 2 / (len(z) - 1) for z in (x, y))
    assert energy_distance(x, y, chunk=64) == pytest.approx(squared - correction, rel=1e-9)


def test_bad_input_is_named():
    with pytest.raises(sf.InputError, match="shapes"):
        sliced_wasserstein(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(sf.InputError, match="y: NaN"):
        energy_distance(torch.zeros(4, 2), torch.full((4, 2), math.nan))
