"""Networks that take a noise level: EDM's, beside the sampler of the paper, and k-diffusion's own wrappers."""

import importlib
import importlib.util
import itertools
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

import steadyflow as sf

SIGMA_DATA = 0.5
GENERATOR = torch.Generator().manual_seed(0)


class Preconditioned(nn.Module):
    """c_skip x + c_out F(c_in x; c_noise) of 2206.00364, table 1, called as NVlabs' networks are."""

    def __init__(self, label_dim=0, sigma_min=0.0, sigma_max=float("inf")):
        super().__init__()
        self.img_channels, self.img_resolution, self.label_dim = 1, 2, label_dim
        self.sigma_min, self.sigma_max, self.asked = sigma_min, sigma_max, []
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(5 + label_dim, 32), nn.Tanh(), nn.Linear(32, 4))

    def forward(self, x, sigma, class_labels=None, force_fp32=False, **model_kwargs):
        self.asked.append((class_labels, force_fp32))
        assert x.dtype == torch.float32
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        parts = [(x / total).flatten(1), (sigma.log() / 4).flatten(1).expand(len(x), 1)]
        if self.label_dim:
            parts.append(torch.zeros(len(x), self.label_dim) if class_labels is None else class_labels)
        found = self.inner(torch.cat(parts, 1)).view_as(x)
        return (SIGMA_DATA / total) ** 2 * x + sigma * SIGMA_DATA / total * found

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


def algorithm_1(net, latents, labels=None, steps=18, low=0.002, high=80.0, rho=7.0):
    """The deterministic sampler of the paper: Heun's method in sigma, Euler's in the last step."""
    i = torch.arange(steps, dtype=torch.float64)
    sigmas = (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    sigmas = torch.cat([net.round_sigma(sigmas), torch.zeros(1, dtype=torch.float64)])
    x = latents.double() * sigmas[0]
    ask = lambda x, s: net(x.float(), s, labels).double()  # noqa: E731
    for s0, s1 in itertools.pairwise(sigmas):
        slope = (x - ask(x, s0)) / s0
        ahead = x + (s1 - s0) * slope
        if s1 > 0:
            ahead = x + (s1 - s0) * 0.5 * (slope + (ahead - ask(ahead, s1)) / s1)
        x = ahead
    return x


def test_heun_on_the_networks_own_grid_is_the_papers_sampler():
    net, latents = Preconditioned(label_dim=3), torch.randn(6, 1, 2, 2, generator=GENERATOR)
    labels = torch.arange(6) % 3
    model = sf.from_edm(net, labels=labels)
    assert model.shape == (1, 2, 2)
    assert model.schedule == sf.VE(0.002, 80.0)
    theirs = algorithm_1(net, latents, nn.functional.one_hot(labels, 3).float())
    found = sf.sample(model, x=80.0 * latents.double(), solver=sf.Heun(coordinates="noise"), grid=model.own_grid(18))
    assert found.nfe == 35
    torch.testing.assert_close(found.x, theirs, rtol=1e-5, atol=1e-5)


def test_no_class_is_a_row_of_zeros_and_guidance_starts_from_it():
    net, x = Preconditioned(label_dim=3), torch.randn(4, 1, 2, 2)
    model = sf.from_edm(net)
    zeros, two = torch.zeros(4, 3), nn.functional.one_hot(torch.full((4,), 2), 3).float()
    sigma = torch.tensor(3.0)
    torch.testing.assert_close(model(x, 3.0).x0, net(x, sigma))
    torch.testing.assert_close(model(x, 3.0).x0, net(x, sigma, zeros))
    guided = net(x, sigma, zeros) + 2.0 * (net(x, sigma, two) - net(x, sigma, zeros))
    torch.testing.assert_close(model.with_condition(2, guidance=2.0)(x, 3.0).x0, guided)


def test_levels_are_kept_in_the_networks_range_and_rounded_as_it_rounds():
    class Coarse(Preconditioned):
        levels = torch.logspace(2, -2, 60, dtype=torch.float64)

        def round_sigma(self, sigma):
            sigma = torch.as_tensor(sigma, dtype=torch.float64)
            return self.levels[(sigma.reshape(-1, 1) - self.levels).abs().argmin(1)].reshape(sigma.shape)

    model = sf.from_edm(Coarse(sigma_min=0.02, sigma_max=50.0))
    known = set(Coarse.levels.tolist())
    assert model.schedule.t_range == (Coarse().round_sigma(0.02), Coarse().round_sigma(50.0))
    assert set(model.own_grid(10).times) <= known
    with pytest.raises(sf.InputError, match="steps: got 200, but the network knows fewer noise levels"):
        model.own_grid(200)
    assert sf.from_edm(lambda x, sigma, labels: x, shape=(2,)).own_grid(1).times == (80.0,)


def test_options_of_the_network():
    net = Preconditioned()
    sf.from_edm(net, force_fp32=True)(torch.zeros(1, 1, 2, 2), 1.0)
    sf.from_edm(net)(torch.zeros(1, 1, 2, 2), 1.0)
    assert net.asked == [(None, True), (None, False)]
    with pytest.raises(sf.InputError, match="force_fp32: the network takes no such argument"):
        sf.from_edm(lambda x, sigma, labels: x, force_fp32=True)
    with pytest.raises(sf.InputError, match="condition: got 1, but the model 'EDM' takes none"):
        sf.from_edm(net, labels=1)
    with pytest.raises(sf.InputError, match="condition: got dict, expected a class"):
        sf.from_edm(Preconditioned(label_dim=3)).with_condition({"label": torch.tensor(1)})(
            torch.zeros(1, 1, 2, 2), 1.0
        )
    with pytest.raises(sf.InputError, match=r"condition: got label 3, expected 0\.\.2"):
        sf.from_edm(Preconditioned(label_dim=3), labels=3)
    with pytest.raises(sf.InputError, match="no null condition"):
        sf.from_edm(net).with_guidance(2.0)
    with pytest.raises(sf.InputError, match=r"sigma_min, sigma_max: got 0.002 and 80.0, of which 90.0..80.0 is left"):
        sf.from_edm(Preconditioned(sigma_min=90.0))
    with pytest.raises(sf.InputError, match="network: got 3, expected something to call"):
        sf.from_edm(3)


TABLE = torch.linspace(0.9999, 0.01, 100) ** 2


@pytest.fixture(scope="module")
def external():
    """k-diffusion's wrappers, without its package, which needs torchvision for other things."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed: pip install --no-deps k-diffusion")
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "k_diffusion"}
    package, sampling, utils = (ModuleType(f"k_diffusion{end}") for end in ("", ".sampling", ".utils"))
    package.__path__ = list(spec.submodule_search_locations)
    sampling.append_zero = lambda x: torch.cat([x, x.new_zeros([1])])
    utils.append_dims = lambda x, ndim: x[(..., *(None,) * (ndim - x.ndim))]
    package.sampling, package.utils = sampling, utils
    sys.modules.update({"k_diffusion": package, "k_diffusion.sampling": sampling, "k_diffusion.utils": utils})
    yield importlib.import_module("k_diffusion.external")
    for name in [name for name in sys.modules if name.split(".")[0] == "k_diffusion"]:
        del sys.modules[name]
    sys.modules.update(before)


class Inner(nn.Module):
    """A network of a noisy vector, its own time and a condition, with the entries of CompVis' and OpenAI's models."""

    def __init__(self, learned=False):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4 if learned else 2))
        self.times, self.alphas_cumprod = [], TABLE

    def forward(self, x, t, cond=None):
        self.times.append(t)
        extra = torch.zeros(len(x)) if cond is None else cond
        return self.net(torch.cat([x, t.float().reshape(-1, 1).expand(len(x), 1) / 100, extra[:, None]], 1))

    apply_model = forward


X = torch.randn(16, 2, generator=torch.Generator().manual_seed(2))
WRAPPERS = {
    "v": lambda k: k.VDenoiser(Inner()),
    "compvis": lambda k: k.CompVisDenoiser(Inner()),
    "compvis quantized": lambda k: k.CompVisDenoiser(Inner(), quantize=True),
    "compvis v": lambda k: k.CompVisVDenoiser(Inner()),
    "openai": lambda k: k.OpenAIDenoiser(Inner(True), type("Diffusion", (), {"alphas_cumprod": TABLE.tolist()})),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_prediction_is_what_the_wrapper_returns_and_the_levels_are_its_tables(external, kind):
    denoiser = WRAPPERS[kind](external)
    model = sf.from_kdiffusion(denoiser, shape=(2,), extra="cond")
    cond = torch.randn(16)
    for sigma in (0.02, 0.7, 8.0, 50.0):
        theirs = denoiser(X, torch.full((16,), sigma), cond=cond)
        torch.testing.assert_close(model.with_condition(cond)(X, sigma).x0, theirs)
        torch.testing.assert_close(model.with_condition({"cond": cond})(X, sigma).x0, theirs)
    if kind == "v":
        assert model.schedule == sf.VE(0.002, 80.0)
        assert model.own_grid(12).times[0] == 80.0
    else:
        assert model.schedule.t_range == pytest.approx((float(denoiser.sigma_min), float(denoiser.sigma_max)))
        assert model.own_grid(12).sigmas(model.schedule) == pytest.approx(denoiser.get_sigmas(12).tolist())
        assert sf.sample(model.with_condition(cond), n=16, grid=model.own_grid(12), solver="unipc").nfe == 12
        with pytest.raises(sf.InputError, match=r"grid: the denoiser's table has noise levels from .* asked at 150"):
            model.with_condition(cond)(X, 150.0)
        with pytest.raises(sf.InputError, match=r"sigma_min, sigma_max: got .* and 200, but the denoiser's table"):
            sf.from_kdiffusion(denoiser, sigma_max=200.0)


def test_the_wrappers_own_times_are_reached(external):
    """Interpolated between the entries of the table, or the nearest one."""
    for quantize in (False, True):
        inner = Inner()
        model = sf.from_kdiffusion(external.CompVisDenoiser(inner, quantize=quantize), shape=(2,))
        sf.sample(model, n=2, nfe=7, solver="ees25")
        times = torch.cat([t.float() for t in inner.times])
        assert torch.equal(times, times.round()) == quantize


def test_our_euler_is_theirs_on_their_sigmas(external):
    denoiser = external.CompVisDenoiser(Inner())
    model = sf.from_kdiffusion(denoiser, shape=(2,))
    sigmas = denoiser.get_sigmas(10)
    x = X * sigmas[0]
    ours = sf.sample(model, x=x, grid=model.own_grid(10), solver=sf.Euler(coordinates="noise")).x
    with torch.no_grad():
        for s0, s1 in itertools.pairwise(sigmas):
            x = x + (s1 - s0) * (x - denoiser(x, s0.expand(16))) / s0
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def plain(x, sigma, cond=None, scale=1.0):
    """A denoiser that is any function: the mean of data ~ N(cond, 1)."""
    mean = 0.0 if cond is None else cond[:, None]
    return scale * ((x - mean) / (1.0 + sigma.view(-1, 1) ** 2) + mean)


def test_extra_args_are_conditions_or_fixed():
    model = sf.from_kdiffusion(plain, {"scale": 0.5}, shape=(2,), extra="cond", null=0.0, sigma_max=20.0)
    one = model.with_condition(torch.tensor(1.0), guidance=2.0)
    sigma = torch.full((16,), 3.0)
    torch.testing.assert_close(one(X, 3.0).x0, plain(X, sigma, torch.full((16,), 2.0), 0.5))
    found = sf.sample(model.with_condition(torch.arange(2.0)), n=2, nfe=12).x
    assert found.shape == (2, 2)
    with pytest.raises(sf.InputError, match="condition: scale is fixed for every call"):
        model.with_condition({"scale": torch.ones(16)})(X, 3.0)
    with pytest.raises(sf.InputError, match="condition: got one value, but not the keyword"):
        sf.from_kdiffusion(plain).with_condition(1)(X, 3.0)
    with pytest.raises(sf.InputError, match="null: got one value, but not the keyword"):
        sf.from_kdiffusion(plain, null=0)
    with pytest.raises(sf.InputError, match=r"sigma_min, sigma_max: got 5.0 and 2.0"):
        sf.from_kdiffusion(plain, sigma_min=5.0, sigma_max=2.0)
    for steps in (0, True):
        with pytest.raises(sf.InputError, match="steps: got"):
            model.own_grid(steps)


def test_the_way_to_k_diffusion_and_back_is_the_same_run():
    model = sf.from_kdiffusion(plain, shape=(2,), sigma_max=20.0)
    grid = model.own_grid(8)
    x = 20.0 * X.double()
    ours = sf.sample(model, x=x, grid=grid, solver="ees25", end="path").x
    theirs = sf.sample_steady(plain, x, list(grid.times), solver="ees25", disable=True)
    torch.testing.assert_close(ours, theirs)
