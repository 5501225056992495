"""The other ways to invert and edit: what each stores, what comes back exactly, what it costs."""

import pytest
import torch

import steadyflow as sf
from steadyflow import solvers
from steadyflow.corrections import Anchor


@pytest.fixture(scope="module")
def model():
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], dtype=torch.float64)
    return sf.GaussianMixture(means, 0.25, labels=[0, 1, 1, 0]).denoiser(sf.VPScaledLinear())


@pytest.fixture(scope="module")
def points(model):
    return model.mixture.sample(64, seed=2, label=0)


def class_of(model, x):
    return model.mixture.labels[torch.cdist(x, model.mixture.means).argmin(1)]


@pytest.mark.parametrize("name", ["aidi", "renoise"])
def test_more_rounds_of_the_fixed_point_invert_ddim_more_exactly(name, model, points):
    errors, costs = [], []
    for rounds in (1, 4, 16):
        options = {"average": 1} if name == "renoise" else {}
        back = sf.reconstruct(
            model, points, solver=solvers.get(name, rounds=rounds, **options), steps=40, grid="log-snr"
        )
        errors.append(back.error.median())
        costs.append(back.inversion.nfe)
    assert costs == [80, 200, 680]
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 1e-3 * errors[0]
    plain = sf.reconstruct(model, points, solver="ddim", steps=40, grid="log-snr")
    assert errors[0] < plain.error.median()


def test_anderson_acceleration_beats_the_plain_iteration_at_equal_cost(model, points):
    errors = {
        fast: sf.reconstruct(
            model, points, solver=solvers.get("aidi", rounds=4, accelerate=fast), steps=30
        ).error.median()
        for fast in (False, True)
    }
    assert errors[True] < 0.5 * errors[False]


def test_ddim_inversion_in_both_time_conventions(model, points):
    """Queries at the target level is one round of the fixed point; with `end` the diffusers inverse scheduler."""
    end = sf.invert(model, points, solver=sf.DDIM(inverse_time="end"), steps=30)
    start = sf.invert(model, points, solver="ddim", steps=30)
    assert not torch.allclose(end.latent, start.latent)
    for inversion in (start, end):
        assert (inversion.decode().x - points).norm(dim=1).median() < 0.1


def test_ddim_end_convention_equals_the_inverse_scheduler_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMInverseScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(10)
    eps = lambda x, t: 0.8 * x + 0.1 * torch.sin(3 * x) * (t / 1000)  # noqa: E731
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = x
    for t in theirs.timesteps:
        expected = theirs.step(eps(expected, t), t, expected).prev_sample
    schedule = sf.Tabulated(tuple(theirs.alphas_cumprod.double().tolist()))
    model = sf.Denoiser(lambda x, t: eps(x, t[0]), schedule)
    assert theirs.timesteps[0] == 0  # its first step stays at the first level
    grid = sf.Grid.from_timesteps(theirs.timesteps.tolist())
    ours = sf.integrate(model, x, grid, sf.DDIM(inverse_time="end")).x
    assert (ours - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-sde", "dpmpp-2m-sde", "dpmpp-3m-sde"])
def test_noise_maps_give_the_sample_back_exactly(solver, model, points):
    maps = sf.editing.noise_maps(model.with_condition(0), points, solver=solver, steps=20)
    assert maps.maps.shape == (20, 64, 2)
    assert maps.nfe == 20
    assert (maps.decode().x - points).abs().max() < 1e-12


def test_noise_maps_edit_to_another_condition(model, points):
    maps = sf.editing.noise_maps(model.with_condition(0), points, steps=60, strength=1.0)
    edited = maps.decode(model.with_condition(1), guidance=2.0).x
    assert (class_of(model, edited) == 1).float().mean() > 0.9


def test_noise_maps_are_larger_than_ordinary_noise(model, points):
    """Independent noisy states differ by more than one step's noise: the paper's observation."""
    maps = sf.editing.noise_maps(model.with_condition(0), points, steps=40).maps
    assert maps[:-1].std() > 1.3


@pytest.mark.parametrize("solver", ["ees25", "ddim", "seeds-2", "rex-sde", "rex-shark"])
def test_solvers_without_one_noise_a_step_have_no_noise_maps(solver, model, points):
    with pytest.raises(sf.NotInvertibleError, match="one unit of noise a step"):
        sf.editing.noise_maps(model, points, solver=solver)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "ees25"])
def test_direct_inversion_retraces_the_source_exactly_over_any_solver(solver, model, points):
    inversion = sf.invert(model.with_condition(0), points, solver=solver, steps=10, record="all")
    back = inversion.decode(corrections=[Anchor(inversion.trajectory)], guidance=4.0)
    assert torch.equal(back.x, points)


def test_an_anchor_holds_an_edit_near_its_source(model, points):
    inversion = sf.invert(model.with_condition(0), points, solver="ees25", steps=12, record="all")
    free = inversion.decode(model.with_condition(1)).x
    held = inversion.decode(model.with_condition(1), corrections=[Anchor(inversion.trajectory, share=0.3)]).x
    assert (held - points).norm(dim=1).median() < (free - points).norm(dim=1).median()
    coarse = sf.invert(model.with_condition(0), points, solver="ees25", steps=12, record=5)
    with pytest.raises(sf.InputError, match="nothing was recorded"):
        inversion.decode(corrections=[Anchor(coarse.trajectory)])


def test_negative_prompt_inversion_keeps_the_source_where_target_and_source_agree(model, points):
    inversion = sf.invert(model.with_condition(0), points, solver="ees25", steps=24)
    for guidance in (1.0, 3.0, 7.5):
        back = inversion.decode(model.with_negative(0).with_condition(0), guidance=guidance).x
        assert (back - points).abs().max() < 1e-2
    plain = inversion.decode(model.with_condition(0), guidance=7.5).x
    assert (plain - points).abs().max() > 1e-1


def test_flow_edit_moves_to_the_target_and_keeps_what_agrees(model, points):
    same = sf.edit(model, points, 0, source=0, method="flow-edit", guidance=1.0, steps=20)
    torch.testing.assert_close(same.x, points)
    assert same.nfe == 2 * 20
    flow = sf.editing.FlowEdit(average=2)
    moved = sf.edit(model, points, 1, source=0, method=flow, guidance=2.0, steps=60, strength=1.0)
    assert (class_of(model, moved.x) == 1).float().mean() > 0.9
    assert moved.nfe == 2 * 2 * 60


@pytest.mark.parametrize("path", [sf.RectifiedFlow(t_min=1e-3, t_max=0.999), sf.VPScaledLinear()], ids=["flow", "vp"])
def test_rf_inversion_without_pulls_is_euler_there_and_back(path, points, model):
    other = model.mixture.denoiser(path)
    free = sf.editing.RFInversion(gamma=0.0, eta=0.0)
    ours = sf.edit(other, points, 0, source=0, method=free, guidance=1.0, steps=20)
    grid = sf.grids.make("uniform", path, 20)
    euler = sf.reconstruct(other.with_condition(0), points, solver=sf.Euler(coordinates="flow"), grid=grid)
    torch.testing.assert_close(ours.x, euler.x, rtol=1e-9, atol=1e-9)


def test_rf_inversion_with_a_full_pull_ends_at_the_source(model, points):
    flow = model.mixture.denoiser(sf.RectifiedFlow(t_min=1e-3, t_max=0.999))
    full = sf.editing.RFInversion(eta=1.0, window=(0.0, 1.0))
    held = sf.edit(flow, points, 1, source=0, method=full, guidance=3.0, steps=20)
    assert (held.x - points).abs().max() < 1e-2
    free = sf.edit(flow, points, 1, source=0, method=sf.editing.RFInversion(eta=0.0), guidance=3.0, steps=40)
    assert (class_of(model, free.x) == 1).float().mean() > 0.8
    with pytest.raises(sf.InputError, match="gamma and eta"):
        sf.editing.RFInversion(gamma=2.0)


def test_fireflow_costs_one_evaluation_a_step_and_beats_euler(model, points):
    fire = sf.reconstruct(model, points, solver="fireflow", steps=24)
    assert fire.inversion.nfe == 25
    euler = sf.reconstruct(model, points, solver="ddim", steps=24)
    assert fire.error.median() < 0.2 * euler.error.median()


def test_a_diverging_fixed_point_says_where_and_by_how_much():
    stiff = sf.Denoiser(lambda x, t: 30.0 * x, sf.VE(), shape=(2,))
    with pytest.raises(sf.ConvergenceError, match=r"aidi: at t = 1 the fixed point diverges"):
        sf.invert(stiff, torch.ones(2, 2), solver=solvers.get("aidi", accelerate=False), grid=sf.Grid((0.5, 1.0)))
