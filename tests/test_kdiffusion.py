"""`sample_steady`: k-diffusion's interface, its seeds and its noise, and the models that ComfyUI wraps."""

from itertools import pairwise

import pytest
import torch

import steadyflow as sf

SIGMAS = [10.0, 5.0, 2.0, 1.0, 0.0]
X = 10.0 * torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
STOCHASTIC = ("ddpm", "dpmpp-2m-sde", "seeds-2")


def exact(x, sigma, **extra_args):
    """The denoiser of data ~ N(0, 1) on the path x0 + sigma eps."""
    return x / (1.0 + sigma.view(-1, 1) ** 2)


def run(extra_args=None, x=X, sigmas=SIGMAS, model=exact, **options):
    return sf.sample_steady(model, x, sigmas, extra_args, disable=True, **options)


def test_k_diffusions_signature():
    data = sf.GaussianMixture.grid(2, std=0.2, dtype=torch.float32)
    exact = data.denoiser(sf.VE())
    reports = []

    def model(x, sigma, scale=1.0):
        return scale * exact(x, float(sigma[0])).x0

    sigmas = torch.linspace(10.0**0.5, 0.1, 20) ** 2
    x = 10.0 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    found = sf.sample_steady(model, x, sigmas, {"scale": 1.0}, reports.append, True, solver="dpmpp-2m")
    assert torch.cdist(found, data.means).amin(1).median() < 0.5
    assert [entry["i"] for entry in reports] == list(range(19))
    assert set(reports[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}
    back = sf.sample_steady(model, found, sigmas.flip(0), solver="rk4", disable=True)
    again = sf.sample_steady(model, back, sigmas, solver="rk4", disable=True)
    assert (again - found).abs().median() < 1e-2
    with pytest.raises(sf.NotInvertibleError):
        sf.sample_steady(model, found, sigmas.flip(0), solver="ddpm", disable=True)
    flow = data.denoiser(sf.RectifiedFlow())
    seen = []
    landed = sf.sample_steady(
        lambda x, sigma: flow(x, float(sigma[0])).x0,
        0.1 * x,
        torch.linspace(0.99, 0.0, 30),
        callback=seen.append,
        schedule=sf.RectifiedFlow(),
        solver="ddim",
        disable=True,
    )
    assert torch.cdist(landed, data.means).amin(1).median() < 0.5
    assert torch.allclose(seen[-1]["denoised"], landed, atol=1e-5)


def test_extra_args_reach_the_model_at_every_call():
    seen = []

    def model(x, sigma, **extra_args):
        seen.append(extra_args)
        return exact(x, sigma)

    run({"cond": "a cat", "seed": 3}, model=model, solver="ddpm")
    assert seen == [{"cond": "a cat", "seed": 3}] * 4


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_a_seed_in_extra_args_seeds_the_noise(solver):
    one, other = run({"seed": 1}, solver=solver), run({"seed": 2}, solver=solver)
    assert torch.equal(run({"seed": 1}, solver=solver), one)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_the_argument_seed_wins_over_that_of_extra_args(solver):
    one = run(solver=solver, seed=1)
    assert torch.equal(run({"seed": 2}, solver=solver, seed=1), one)
    assert torch.equal(run({"seed": 1}, solver=solver), one)


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_without_a_seed_the_noise_is_fresh_and_follows_torchs_random_state(solver):
    torch.manual_seed(5)
    first, second = run(solver=solver), run(solver=solver)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(run(solver=solver), first)
    assert torch.equal(run(solver=solver), second)


def test_a_seed_that_is_no_whole_number_is_refused():
    for seed in (1.5, "1", True):
        with pytest.raises(sf.InputError, match="seed: got"):
            run({"seed": seed}, solver="ddpm")


def test_a_second_pass_with_the_same_seed_has_noise_of_its_own():
    generator, solver, n = torch.Generator().manual_seed(1), "dpmpp-2m-sde", 20_000
    sigmas = torch.cat([torch.linspace(10.0**0.25, 0.05**0.25, 60) ** 4, torch.zeros(1)])
    start = (1.0 + sigmas[0] ** 2).sqrt() * torch.randn(n, 2, generator=generator)
    first = run({"seed": 3}, start, sigmas, solver=solver)
    again = sigmas[20:]
    noised = first + again[0] * torch.randn(n, 2, generator=generator)
    second = run({"seed": 3}, noised, again, solver=solver)
    # the deviation of 40,000 values errs by 0.0035 and the solver by 0.001, so that a false alarm is 5.3 deviations
    # off, with a probability below 2e-7 for each line; the same noise twice would give 1.08
    assert first.std().item() == pytest.approx(1.0, abs=0.02)
    assert second.std().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kind", [list, torch.tensor])
@pytest.mark.parametrize("sigmas", [[], [3.0], [3.0, 3.0]], ids=["none", "one", "one twice"])
def test_fewer_than_two_sigmas_make_no_step_and_return_x_itself(sigmas, kind):
    calls = []
    found = sf.sample_steady(lambda *_: calls.append(1), X, kind(sigmas), None, calls.append, True)
    assert found is X
    assert not calls


@pytest.mark.parametrize("solver", ["ees25", "dpmpp-2m", "ddpm"])
def test_repeated_sigmas_are_one_and_the_callback_counts_those_given(solver):
    given, seen = [10.0, 10.0, 5.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0], []
    found = run(sigmas=given, callback=seen.append, solver=solver, seed=1)
    assert torch.equal(found, run(solver=solver, seed=1))
    assert [entry["sigma"] for entry in seen] == SIGMAS[:-1]
    assert [given[entry["i"]] for entry in seen] == SIGMAS[:-1]


@pytest.mark.parametrize("solver", ["ees25", "dpmpp-2m", "ddpm", "edict"])
def test_the_callback_sees_the_state_from_which_each_step_began(solver):
    seen = []
    found = run(callback=seen.append, solver=solver, seed=1)
    assert all(set(entry) == {"x", "i", "sigma", "sigma_hat", "denoised"} for entry in seen)
    assert [(entry["i"], entry["sigma"], entry["sigma_hat"]) for entry in seen] == [
        (i, s, s) for i, s in enumerate(SIGMAS[:-1])
    ]
    assert torch.equal(seen[0]["x"], X)
    for k in (1, 2, 3):
        torch.testing.assert_close(seen[k]["x"], run(sigmas=SIGMAS[: k + 1], solver=solver, seed=1))
    assert not torch.equal(seen[-1]["x"], found)


def ancestral(x, noise):
    """k-diffusion's ancestral Euler over `SIGMAS`, with the noise of each step but the last."""
    for (s0, s1), z in zip(pairwise(SIGMAS), [*noise, torch.zeros_like(x)], strict=True):
        denoised = x / (1.0 + s0**2)
        up, down = (s1**2 * (s0**2 - s1**2) / s0**2) ** 0.5, s1**2 / s0
        x = denoised + (down / s0) * (x - denoised) + up * z
    return x


def test_a_noise_sampler_draws_the_noise_of_each_stochastic_step():
    generator, calls, drawn = torch.Generator().manual_seed(2), [], []

    def sampler(sigma, sigma_next):
        calls.append((float(sigma), float(sigma_next)))
        drawn.append(torch.randn(X.shape, generator=generator))
        return drawn[-1]

    found = run(solver="ddpm", noise_sampler=sampler)
    assert calls == [(10.0, 5.0), (5.0, 2.0), (2.0, 1.0)]
    torch.testing.assert_close(found, ancestral(X, drawn))
    assert not torch.allclose(found, ancestral(X, drawn[::-1]))


def test_a_noise_sampler_is_used_beside_a_seed_of_extra_args_and_a_callback():
    drawn, seen = [torch.randn(X.shape, generator=torch.Generator().manual_seed(k)) for k in range(3)], []
    left = iter(drawn)
    found = run({"seed": 7}, solver="ddpm", noise_sampler=lambda *_: next(left), callback=seen.append)
    torch.testing.assert_close(found, ancestral(X, drawn))
    assert [entry["i"] for entry in seen] == [0, 1, 2, 3]


def test_a_noise_sampler_is_not_asked_by_a_deterministic_solver():
    calls = []
    assert torch.equal(run(solver="ees25", noise_sampler=lambda *ends: calls.append(ends)), run(solver="ees25"))
    assert not calls


def test_a_noise_sampler_that_cannot_be_used_is_refused():
    def sampler(sigma, sigma_next):
        return torch.randn(X.shape)

    with pytest.raises(sf.InputError, match=r"noise_sampler: .*give no seed"):
        run(solver="ddpm", seed=1, noise_sampler=sampler)
    with pytest.raises(sf.InputError, match=r"noise_sampler: returned shape \(8, 2\), expected \(8, 3\)"):
        run(solver="ddpm", noise_sampler=lambda *_: torch.zeros(8, 2))
    with pytest.raises(sf.InputError, match=r"noise_sampler: .*several times a step"):
        run(solver="seeds-2", noise_sampler=sampler)
    with pytest.raises(sf.InputError, match=r"noise_sampler: .*needs more of the noise"):
        run(solver="rex-shark", noise_sampler=sampler)


class Sampling:
    """What ComfyUI's model types derive from, beside one of the classes below."""


CONST, EPS, V_PREDICTION, EDM = (type(name, (), {}) for name in ("CONST", "EPS", "V_PREDICTION", "EDM"))
FLOW_SIGMAS = [1.0, 0.75, 0.5, 0.25, 0.0]


class Wrapped:
    """A model that is called through its wrappers, the outermost of which is told."""

    def __init__(self, **parts):
        self.__dict__.update(parts)

    def __call__(self, x, sigma, **extra_args):
        return torch.tanh(x) * (1.0 + extra_args["gain"] * sigma.view(-1, 1))


class Patcher:
    def __init__(self, **objects):
        self.objects = objects

    def get_model_object(self, name):
        return self.objects[name]


def by_the_inner_model(sampling):
    return Wrapped(inner_model=Wrapped(inner_model=Wrapped(model_sampling=sampling)))


def by_the_patcher(sampling):
    return Wrapped(inner_model=Wrapped(model_patcher=Patcher(model_sampling=sampling)))


def by_both(sampling):
    inner = Wrapped(model_sampling=sampling)
    return Wrapped(inner_model=Wrapped(model_patcher=Patcher(model_sampling=sampling), inner_model=inner))


wrapped = pytest.mark.parametrize("wrap", [by_the_inner_model, by_the_patcher, by_both])


def along(model, schedule=None, solver="ees25"):
    return run({"gain": 0.3}, X / 10.0, FLOW_SIGMAS, model, solver=solver, schedule=schedule, seed=1)


@wrapped
@pytest.mark.parametrize("solver", ["ees25", "ddpm"])
def test_comfyuis_flow_models_are_sampled_along_the_flow(wrap, solver):
    model = wrap(type("ModelSampling", (Sampling, CONST), {})())
    found = along(model, solver=solver)
    assert torch.equal(found, along(Wrapped(), sf.RectifiedFlow(), solver))
    assert not torch.allclose(found, along(Wrapped(), sf.VE(), solver))


@wrapped
@pytest.mark.parametrize("kind", [EPS, V_PREDICTION, EDM])
def test_comfyuis_other_models_are_sampled_along_x0_plus_sigma_eps(wrap, kind):
    model = wrap(type("ModelSampling", (Sampling, kind), {})())
    assert torch.equal(along(model), along(Wrapped(), sf.VE()))


def test_a_model_that_says_nothing_of_its_type_is_sampled_along_x0_plus_sigma_eps():
    for model in (Wrapped(), Wrapped(inner_model=Wrapped(inner_model=Wrapped()))):
        assert torch.equal(along(model), along(Wrapped(), sf.VE()))


def test_a_schedule_that_is_given_wins_over_what_the_model_says():
    model = by_the_inner_model(type("ModelSampling", (Sampling, CONST), {})())
    assert torch.equal(along(model, sf.VE()), along(Wrapped(), sf.VE()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["ees25", "ddpm"])
def test_samples_and_model_keep_the_type_of_x(dtype, solver):
    asked = []

    def model(x, sigma, **extra_args):
        asked.append(x.dtype)
        return exact(x, sigma).to(x.dtype)

    found = run(x=X.to(dtype), model=model, solver=solver, seed=1)
    assert found.dtype == dtype
    assert set(asked) == {dtype}
    rounding = float(torch.finfo(dtype).eps)
    torch.testing.assert_close(found.double(), run(x=X.double(), solver=solver, seed=1), atol=10 * rounding, rtol=1e-6)
