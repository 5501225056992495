"""Arithmetic on batches, bisection, and figures that are written whole or not at all."""

import pytest
import torch

import steadyflow as sf
from steadyflow._internal import plots, tensors
from steadyflow._internal.numerics import last_where


@pytest.mark.parametrize(
    "factors", [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.3, 0.0, -1.0), (0.0, 1.0, 0.5)]
)
def test_a_total_is_the_sum_and_leaves_its_terms_alone(factors):
    terms = list(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    before = [term.clone() for term in terms]
    wanted = sum(f * term for f, term in zip(factors, terms, strict=True))
    assert torch.allclose(tensors.linear_combination(factors, terms), wanted, rtol=1e-15, atol=1e-15)
    assert all(torch.equal(a, b) for a, b in zip(terms, before, strict=True))


def test_terms_without_weight_are_not_read():
    nan = torch.full((2, 3), torch.nan)
    assert torch.equal(
        tensors.combine(1.0, torch.ones(2, 3), [0.0, 2.0], [nan, torch.ones(2, 3)]), torch.full((2, 3), 3.0)
    )


def test_what_is_taken_a_sample_keeps_samples_apart():
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))
    x[1] = 0.0
    for k in range(3):
        assert tensors.norm(x)[k] == x[k].norm()
        assert torch.isclose(tensors.rms(x)[k], x[k].square().mean().sqrt())
        assert tensors.max_abs(x)[k] == x[k].abs().max()
        assert torch.isclose(tensors.dot(x, x)[k], x[k].square().sum())
    assert torch.allclose(tensors.norm(tensors.unit(x)), torch.tensor([1.0, 0.0, 1.0]))
    assert tensors.broadcast(torch.arange(3), x).shape == (3, 1, 1)
    assert torch.equal(sum(a * (a * x).flatten(1).sum(1).view(-1, 1, 1) for a in tensors.basis_vectors(x)), x)


def test_bisection_finds_the_last_float_where_a_condition_holds():
    edge = last_where(lambda v: v * v <= 2.0, 0.0, 2.0)
    assert edge == pytest.approx(2.0**0.5, abs=1e-15)
    assert edge * edge <= 2.0


def test_figures_are_of_the_kind_that_their_name_says(tmp_path):
    plots.save(plots.figure(2, 2), tmp_path / "plain")
    assert (tmp_path / "plain").read_bytes()[:4] == b"\x89PNG"
    plots.save(plots.figure(2, 2), tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()
    with pytest.raises(sf.InputError, match="unknown kind 'doc'"):
        plots.save(plots.figure(2, 2), tmp_path / "figure.doc")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_figure_that_cannot_be_drawn_leaves_what_was_there(tmp_path):
    path = tmp_path / "deep" / "picture.png"
    figure = plots.figure(2, 2)
    plots.save(figure, path)
    before = path.read_bytes()
    assert before[:4] == b"\x89PNG"
    figure.savefig = lambda *args, **options: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with pytest.raises(sf.StorageError, match="untouched"):
        plots.save(figure, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]
