"""Mixtures against exact densities, networks and guidance against their definitions."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import steadyflow as sf

GENERATOR = torch.Generator().manual_seed(4)
MEANS = torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64)
WEIGHTS = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)
STDS = {
    "shared": torch.tensor(0.4, dtype=torch.float64),
    "one a component": torch.tensor([0.2, 0.5, 0.3, 0.9, 0.4], dtype=torch.float64),
    "diagonal": 0.2 + torch.rand(5, 3, generator=GENERATOR, dtype=torch.float64),
}
PATHS = {"vp": sf.VPCosine(), "ve": sf.VE(), "flow": sf.RectifiedFlow()}
stds = pytest.mark.parametrize("std", STDS.values(), ids=STDS)


def noisy_log_density(mixture, schedule, x, t):
    """The log density of the mixture after noising, by torch.distributions."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    scale = mixture.std if mixture.std.ndim == 2 else mixture.std.expand(5)[:, None].expand(5, 3)
    scale = ((alpha * scale) ** 2 + sigma**2).sqrt()
    parts = torch.distributions.Normal(alpha * mixture.means, scale).log_prob(x[:, None]).sum(2)
    return (parts + mixture.weights.log()).logsumexp(1)


@pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS)
@stds
def test_the_score_is_the_gradient_of_the_exact_log_density(std, schedule):
    mixture = sf.GaussianMixture(MEANS, std, WEIGHTS)
    model = mixture.denoiser(schedule)
    for t in (0.05, 0.4, 0.9):
        x = torch.randn(16, 3, generator=GENERATOR, dtype=torch.float64).requires_grad_()
        (score,) = torch.autograd.grad(noisy_log_density(mixture, schedule, x, t).sum(), x)
        torch.testing.assert_close(model(x.detach(), t).score, score, rtol=1e-8, atol=1e-8)


@stds
def test_times_of_its_own_for_every_sample_give_the_same(std):
    model = sf.GaussianMixture(MEANS, std, WEIGHTS).denoiser(sf.VPCosine())
    x = torch.randn(6, 3, generator=GENERATOR, dtype=torch.float64)
    t = torch.tensor([0.01, 0.2, 0.4, 0.6, 0.8, 0.99], dtype=torch.float64)
    each = torch.cat([model(x[i : i + 1], float(t[i])).x0 for i in range(6)])
    torch.testing.assert_close(model(x, t).x0, each, rtol=1e-9, atol=1e-9)


def test_x0_is_the_posterior_mean_by_quadrature():
    mixture = sf.GaussianMixture(torch.tensor([[-1.0], [0.5]], dtype=torch.float64), [0.3, 0.6], [0.4, 0.6])
    schedule, t, x = sf.VPLinear(), 0.3, 0.37
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)

    def joint(y):
        prior = 0.4 * stats.norm.pdf(y, -1.0, 0.3) + 0.6 * stats.norm.pdf(y, 0.5, 0.6)
        return prior * stats.norm.pdf(x, alpha * y, sigma)

    mean = integrate.quad(lambda y: y * joint(y), -8, 8)[0] / integrate.quad(joint, -8, 8)[0]
    ours = mixture.denoiser(schedule)(torch.tensor([[x]], dtype=torch.float64), t).x0
    assert ours.item() == pytest.approx(mean, rel=1e-6)


@stds
def test_log_prob_is_the_exact_density(std):
    mixture = sf.GaussianMixture(MEANS, std, WEIGHTS)
    x = mixture.sample(20)
    scale = np.broadcast_to(std.numpy() if std.ndim == 2 else std.expand(5).numpy()[:, None], (5, 3))
    density = sum(
        w * stats.multivariate_normal(m, np.diag(s**2)).pdf(x.numpy())
        for w, m, s in zip(WEIGHTS.numpy(), MEANS.numpy(), scale, strict=True)
    )
    np.testing.assert_allclose(mixture.log_prob(x).numpy(), np.log(density), rtol=1e-9)


@stds
def test_samples_have_the_mixtures_moments_and_shares(std):
    mixture, n = sf.GaussianMixture(MEANS, std, WEIGHTS), 100_000
    x = mixture.sample(n, seed=8)
    scale = std if std.ndim == 2 else std.expand(5)[:, None].expand(5, 3)
    mean = (WEIGHTS[:, None] * MEANS).sum(0)
    second = (WEIGHTS[:, None] * (MEANS**2 + scale**2)).sum(0)
    assert ((x.mean(0) - mean).abs() < 5 * ((second - mean**2) / n).sqrt()).all()
    assert ((x**2).mean(0) / second - 1).abs().max() < 0.05
    assert torch.equal(mixture.sample(10, seed=8, index=50), x[50:60])


def test_a_label_restricts_samples_density_and_denoiser():
    mixture = sf.GaussianMixture(MEANS, 0.05, WEIGHTS, labels=[0, 1, 1, 2, 0])
    alone = sf.GaussianMixture(MEANS[[1, 2]], 0.05, WEIGHTS[[1, 2]])
    x = mixture.sample(500, label=1)
    assert set(torch.cdist(x, MEANS).argmin(1).tolist()) == {1, 2}
    torch.testing.assert_close(mixture.log_prob(x, label=1), alone.log_prob(x))
    schedule = sf.VPLinear()
    torch.testing.assert_close(
        mixture.denoiser(schedule).with_condition(1)(x, 0.4).x0, alone.denoiser(schedule)(x, 0.4).x0
    )
    assert mixture.classes == 3
    with pytest.raises(sf.InputError, match="labels"):
        mixture.sample(3, label=7)


def test_guidance_extrapolates_from_the_unconditional_model():
    mixture = sf.GaussianMixture(MEANS, 0.5, WEIGHTS, labels=[0, 1, 1, 2, 0])
    model = mixture.denoiser(sf.VPLinear())
    x, labels = torch.randn(6, 3, generator=GENERATOR, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    guided = model.with_condition(labels, guidance=3.0)(x, 0.5).eps
    expected = model(x, 0.5).eps + 3.0 * (model.with_condition(labels)(x, 0.5).eps - model(x, 0.5).eps)
    torch.testing.assert_close(guided, expected, rtol=1e-10, atol=1e-12)


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.calls = []

    def forward(self, x, time, label=None):
        self.calls.append((x.shape, x.dtype, time.dtype, None if label is None else label.clone()))
        return x * self.scale * (1.0 if label is None else label.view(-1, 1).to(x.dtype))


def test_guidance_asks_the_network_once_for_both_branches():
    net = Counting()
    model = sf.Denoiser(net, sf.VPLinear(), shape=(2,), null=10, classes=10).with_condition(3, guidance=2.0)
    x = torch.ones(4, 2)
    out = model(x, 0.5).eps
    assert len(net.calls) == 1
    assert net.calls[0][0] == (8, 2)
    assert net.calls[0][3].tolist() == [10] * 4 + [3] * 4
    torch.testing.assert_close(out, x * (10 + 2.0 * (3 - 10)))


def test_without_guidance_one_branch_is_asked():
    net = Counting()
    model = sf.Denoiser(net, sf.VPLinear(), shape=(2,), null=10)
    model.with_condition([1, 2, 3])(torch.ones(3, 2), 0.5)
    model(torch.ones(3, 2), 0.5)
    assert [call[0] for call in net.calls] == [(3, 2), (3, 2)]
    assert net.calls[0][3].tolist() == [1, 2, 3]
    assert net.calls[1][3] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_network_computes_in_its_own_precision_and_the_state_keeps_its(dtype):
    net = Counting().to(dtype)
    out = sf.Denoiser(net, sf.Tabulated.linear(), shape=(2,))(torch.ones(2, 2, dtype=torch.float64), 751.0)
    _, seen, time, _ = net.calls[0]
    assert seen == dtype
    assert time == torch.float32  # half would round 751 to 752
    assert out.eps.dtype == torch.float64


def test_the_network_is_told_the_time_of_its_path():
    seen = []
    for schedule, scale, t, expected in (
        (sf.VPLinear(), 1000.0, 0.5, 500.0),
        (sf.RectifiedFlow(shift=3.0), 1.0, 0.5, 0.75),
        (sf.Tabulated.linear(), 1.0, 123.5, 123.5),
    ):
        sf.Denoiser(lambda x, time: seen.append(time) or x, schedule, time_scale=scale)(torch.ones(3, 1), t)
        assert seen[-1].tolist() == pytest.approx([expected] * 3)


def test_embeddings_may_come_in_a_dictionary_and_are_cut_with_the_batch():
    net = lambda x, t, c: x + c["text"].mean(1, keepdim=True) + c["pooled"]  # noqa: E731
    given = {"text": torch.arange(12.0).view(4, 3), "pooled": torch.ones(1, 1)}
    null = {"text": torch.zeros(1, 3), "pooled": torch.zeros(1, 1)}
    model = sf.Denoiser(net, sf.VPLinear(), shape=(1,), null=null).with_condition(given)
    whole = model(torch.zeros(4, 1), 0.5).eps
    assert whole.flatten().tolist() == [2.0, 5.0, 8.0, 11.0]
    assert torch.equal(model.slice(1, 3)(torch.zeros(2, 1), 0.5).eps, whole[1:3])
    assert torch.equal(model.with_guidance(2.0)(torch.zeros(4, 1), 0.5).eps, 2 * whole)


def test_a_network_that_takes_no_condition_is_given_none():
    model = sf.load("mixture25")
    with pytest.raises(sf.InputError, match="'mixture25' takes none"):
        model.with_condition(3)
    with pytest.raises(sf.InputError, match="takes none"):
        sf.edit(model, torch.zeros(2, 2), 3)
    with pytest.raises(sf.InputError, match="takes none"):
        sf.diagnose(model, torch.zeros(2, 2), target=3)


def test_conditions_that_do_not_fit_are_refused():
    model = sf.Denoiser(Counting(), sf.VPLinear(), shape=(2,), null=3, classes=3)
    with pytest.raises(sf.InputError, match="2 rows for a batch of 3"):
        model.with_condition([0, 1])(torch.ones(3, 2), 0.5)
    with pytest.raises(sf.InputError, match=r"label 5, expected 0\.\.2"):
        model.with_condition([0, 5])
    with pytest.raises(sf.InputError, match="expected a tensor"):
        sf.Denoiser(lambda x, t: None, sf.VPLinear())(torch.ones(1, 2), 0.5)


@pytest.mark.parametrize(("arguments", "message"), [
    (([1.0, 2.0], 0.1), r"means: got shape \(2,\)"),
    ((MEANS, [0.1, 0.2]), "std"),
    ((MEANS, -0.1), "std: expected positive"),
    ((MEANS, 0.1, [1.0, 2.0]), "weights"),
    ((MEANS, 0.1, [1.0, 1.0, 1.0, 1.0, 0.0]), "weights: expected positive"),
    ((MEANS * math.nan, 0.1), "finite"),
    ((MEANS, 0.1, None, [0, 1]), "labels"),
])  # fmt: skip
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(sf.InputError, match=message):
        sf.GaussianMixture(*arguments)


def test_a_state_of_another_dimension_is_refused():
    mixture = sf.GaussianMixture(MEANS, 0.1)
    for call in (
        lambda: mixture.log_prob(torch.zeros(2, 4)),
        lambda: mixture.denoiser(sf.VE())(torch.zeros(2, 4), 1.0),
    ):
        with pytest.raises(sf.InputError, match=r"expected \(n, 3\)"):
            call()


def test_the_grid_has_25_modes_and_farthest_points_are_far():
    grid = sf.GaussianMixture.grid(5, spacing=2.0)
    assert grid.means.shape == (25, 2)
    assert torch.cdist(grid.means, grid.means).fill_diagonal_(9).min() == 2.0
    for dim in (2, 4, 32):
        modes = sf.GaussianMixture.farthest_points(25, dim)
        gaps = torch.cdist(modes.means, modes.means).fill_diagonal_(1e9)
        lattice = sf.GaussianMixture(modes.means[torch.randperm(25)], 0.1)
        assert lattice.dim == dim
        assert gaps.min() >= 2.0
        if dim == 32:
            random_points = (torch.randint(5, (25, dim), generator=GENERATOR).double() - 2) * 2
            assert gaps.min() > torch.cdist(random_points, random_points).fill_diagonal_(1e9).min()
    with pytest.raises(sf.InputError, match="got 30, but the lattice has only"):
        sf.GaussianMixture.farthest_points(30, 2)


def test_a_network_that_writes_to_its_time_does_not_spoil_the_next_call():
    def net(x, t):
        return t.mul_(1000.0)[:, None] * torch.ones_like(x)

    model = sf.Denoiser(net, sf.VPLinear(), shape=(2,))
    x = torch.zeros(1, 2)
    assert [model(x, 0.5).output[0, 0].item() for _ in range(3)] == [500.0] * 3


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow", "score"])
def test_a_bounded_estimate_fits_the_state_with_the_noise_that_remains(kind):
    path = sf.VPLinear()
    plain = sf.Denoiser(lambda x, t: 3.0 * torch.tanh(x), path, prediction=kind)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for clip in (sf.Clip(0.7), sf.Clip(2.0, quantile=0.9)):
        bounded = dataclasses.replace(plain, clip=clip)
        free, found = plain(x, 0.4), bounded(x, 0.4)
        level = path.at(0.4)
        assert torch.allclose(level.alpha * found.x0 + level.sigma * found.eps, x, atol=1e-10)
        if clip.quantile is None:
            assert torch.equal(found.x0, free.x0.clamp(-0.7, 0.7))
        else:
            for row, own in zip(found.x0, free.x0, strict=True):
                s = min(max(np.quantile(own.abs().numpy(), 0.9), 1.0), 2.0)
                assert np.allclose(row, own.clamp(-s, s) / s, rtol=1e-5)
        assert not bounded.defined_at_zero_noise
    for wrong in ({"limit": 0.0}, {"limit": -1.0}, {"quantile": 1.5}):
        with pytest.raises(sf.InputError, match="clip"):
            sf.Clip(**wrong)


def test_bounds_are_saved_with_a_model_and_told_in_its_fingerprint(tmp_path):
    from steadyflow import models
    from steadyflow.loading import fingerprint

    model = sf.load("digits")
    network = {"type": "ResidualMLP", "shape": (1, 8, 8), "hidden": 256, "blocks": 3, "classes": 10}
    bounded = dataclasses.replace(model, clip=sf.Clip(0.9, quantile=0.99))
    assert fingerprint(bounded) != fingerprint(model)
    models.save(bounded, tmp_path / "bounded.safetensors", network)
    again = models.load(str(tmp_path / "bounded.safetensors"))
    assert again.clip == bounded.clip
    assert fingerprint(again) == fingerprint(bounded)
