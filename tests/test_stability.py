"""The stability map, found from the solvers' own steps, against the declared and the closed-form intervals."""

import numpy as np
import pytest
import torch

import steadyflow as sf
from steadyflow import solvers
from steadyflow.diagnostics import stability_region, stiffness

FIXED = [
    n
    for n in solvers.names()
    if not solvers.get(n).properties.stochastic and solvers.get(n).properties.evaluations is not None
]


@pytest.mark.parametrize("name", [n for n in FIXED if solvers.get(n).properties.real_interval is not None])
def test_the_measured_real_interval_is_the_declared_one(name):
    assert stability_region.real_interval(name, 6.0) == pytest.approx(
        solvers.get(name).properties.real_interval, abs=1e-4
    )


@pytest.mark.parametrize("name", [n for n in FIXED if solvers.get(n).properties.imaginary_interval is not None])
def test_the_measured_imaginary_interval_is_the_declared_one(name):
    measured = stability_region.imaginary_interval(name, 6.0)
    assert measured == pytest.approx(solvers.get(name).properties.imaginary_interval, abs=1e-4)


@pytest.mark.parametrize(("name", "options", "real", "imaginary"), [
    ("rk4", {}, 2.7853, 2.8284), ("ssprk3", {}, 2.5127, 1.732), ("edict", {"alternate": False}, 0.1445, 0.102),
    ("edict", {"alternate": False, "coupling": 0.97}, 0.0609, 0.043), ("rex-euler", {"coupling": 0.9}, 0.1, 0.436),
    ("rex-midpoint", {"coupling": 0.9}, 0.1056, 0.314), ("ees27", {"branch": "-"}, 1.389, None),
    ("unipc", {"order": 1}, 1.0, None), ("lms", {"order": 3}, 6 / 11, None), ("deis", {"order": 2}, 1.0, None),
])  # fmt: skip
def test_intervals_of_the_literature(name, options, real, imaginary):
    solver = solvers.get(name, **options)
    assert stability_region.real_interval(solver, 6.0) == pytest.approx(real, abs=2e-4)
    if imaginary is not None:
        assert stability_region.imaginary_interval(solver, 6.0) == pytest.approx(imaginary, abs=5e-4)


@pytest.mark.parametrize("name", ["midpoint", "rk4", "ees25", "ees27", "dopri5"])
def test_growth_is_the_stability_polynomial_all_over_the_complex_plane(name):
    solver = solvers.get(name)
    z = np.random.default_rng(0).normal(size=(40, 2)) @ np.array([1.5, 1.5j])
    expected = np.abs(np.polyval(solver.tableau.stability_polynomial()[::-1], z))
    np.testing.assert_allclose(stability_region.spectral_radius(solver, z), expected, rtol=2e-5)


def test_the_two_roots_of_rex_multiply_to_its_determinant():
    z = torch.tensor([-0.3, -0.01, 0.2, 0.1j], dtype=torch.complex128)
    matrices, _ = stability_region._matrices(solvers.get("rex-midpoint", coupling=0.8), z)
    np.testing.assert_allclose(torch.linalg.det(matrices).numpy(), 0.8 * np.ones(4), atol=1e-9)


def test_placement_finds_the_contraction_off_a_thin_data_set():
    """Point data: eps_hat = (w - mu) / chi off the point, so that z = dchi / chi exactly, on every step."""
    mixture = sf.GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), 1e-6)
    schedule = sf.VPScaledLinear()
    grid = sf.grids.make("quadratic", schedule, 10)
    x = torch.randn(4, 3, dtype=torch.float64)
    place = stiffness(mixture.denoiser(schedule), x, grid, solver="ddim")
    levels = torch.tensor([schedule.ratio(t) for t in grid], dtype=torch.float64)
    expected = (levels[1:] - levels[:-1]) / levels[:-1]
    torch.testing.assert_close(place.z, expected[:, None].expand(10, 4), rtol=1e-4, atol=1e-6)


def test_guidance_stretches_the_placement_linearly():
    """eps = 0.5 w with the condition and 0.2 w without: the guided slope is (0.2 + 0.3 w) times the state."""
    schedule = sf.VE()
    net = lambda x, t, label: x * torch.where(label == 1, 0.5, 0.2)[:, None]  # noqa: E731
    model = sf.Denoiser(net, schedule, shape=(2,), null=0, classes=2)
    grid = sf.Grid((2.0, 1.5, 1.0))
    for guidance in (1.0, 7.5):
        z = stiffness(model.with_condition(1, guidance=guidance), torch.ones(3, 2), grid, solver="ddim").z
        torch.testing.assert_close(z, torch.full((2, 3), -0.5 * (0.2 + 0.3 * guidance)))


def test_the_map_is_drawn_for_any_selection_of_solvers(tmp_path):
    figure = stability_region.figure(["ees25", "rex-euler"], resolution=31)
    figure.savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 5000
    with pytest.raises(sf.UnknownNameError):
        stability_region.figure(["ees52"])


def test_a_rising_grid_has_no_placement():
    model = sf.GaussianMixture.grid(2).denoiser(sf.VPLinear())
    with pytest.raises(sf.InputError, match="falling grid"):
        stiffness(model, torch.zeros(1, 2), sf.Grid((0.1, 0.5)))
