"""Counting triangles: drawn images with known counts, touching, cut by the edge, faint, noisy."""

import pytest
import torch

import steadyflow as sf
from steadyflow.metrics import count_shapes
from steadyflow_lab.datasets.triangles import draw, triangles

RADII = torch.tensor([[8.0, 8.0]])


def two(first, second, brightness=1.0):
    return draw(torch.tensor([[first, second]], dtype=torch.float32), RADII, brightness)


@pytest.mark.parametrize("each", [0, 1, 2, 3, 4])
def test_drawn_triangles_are_counted(each):
    assert (count_shapes(triangles(200, each=each, seed=each)) == each).all()


def test_the_data_set_is_three_separate_triangles_and_the_same_every_time():
    images = triangles(50)
    assert images.shape == (50, 1, 64, 64)
    assert images.min() == -1.0
    assert images.max() == 1.0
    assert (images[:, :, [0, -1]] < -0.5).all()
    assert (images[:, :, :, [0, -1]] < -0.5).all()
    assert torch.equal(images, triangles(50))
    assert not torch.equal(images, triangles(50, seed=1))


@pytest.mark.parametrize("overlap", [0.0, 1.0, 2.0, 4.0])
def test_touching_triangles_are_told_apart(overlap):
    beside = two((20.0, 40.0), (20.0 + 8.0 * 3**0.5 - overlap, 40.0))
    above = two((20.0, 20.0), (20.0, 32.0 - overlap))
    assert count_shapes(beside).item() == 2
    assert count_shapes(above).item() == 2


@pytest.mark.parametrize("place", [(0.0, 30.0), (3.0, 30.0), (40.0, 64.0), (67.0, 10.0), (10.0, -1.0)])
def test_a_triangle_cut_by_the_edge_counts(place):
    assert count_shapes(two(place, (32.0, 40.0))).item() == 2


def test_faint_triangles_count_from_the_contrast_asked_for():
    for brightness, expected in ((0.2, 1), (0.3, 2), (0.6, 2)):
        image = two((15.0, 30.0), (40.0, 30.0), torch.tensor([[1.0, brightness]]))
        assert count_shapes(image).item() == expected
        assert count_shapes(image, contrast=0.1).item() == 2


def test_noise_is_not_a_shape():
    images = triangles(200)
    noisy = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert (count_shapes(noisy) == 3).double().mean() > 0.97
    assert (count_shapes(torch.full((1, 1, 64, 64), -1.0)) == 0).all()


def test_bad_input_is_named():
    with pytest.raises(sf.InputError, match="shape"):
        count_shapes(torch.zeros(3, 64, 64))
    with pytest.raises(sf.InputError, match="contrast"):
        count_shapes(torch.zeros(1, 1, 8, 8), contrast=0.0)
    with pytest.raises(sf.InputError, match="each image"):
        triangles(3, each=9)
