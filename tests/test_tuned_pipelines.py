"""Tuned solvers in pipelines of diffusers: as schedulers, and in the block for Modular Diffusers."""

import copy
import dataclasses
import json
import pickle
import warnings

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import pipelines  # noqa: E402
import steadyflow as sf  # noqa: E402
from steadyflow.diffusers import (  # noqa: E402
    SteadyFlowInverseScheduler,
    SteadyFlowScheduler,
    SteadyInverseScheduler,
    SteadyScheduler,
)
from tuned_solvers import replaced, sampler, tripper  # noqa: E402

ROUNDING = 2e-5
SIZES = {"StableDiffusionPipeline": 4.0, "StableDiffusionXLPipeline": 4.0, "StableDiffusion3Pipeline": 4.0,
         "FluxPipeline": 1.0}  # fmt: skip


@pytest.fixture(scope="module")
def built():
    return {title: pipelines.in_mode(title) for title in SIZES}


def kind_of(scheduler, inverse=False):
    if "Flow" in type(scheduler).__name__:
        return SteadyFlowInverseScheduler if inverse else SteadyFlowScheduler
    return SteadyInverseScheduler if inverse else SteadyScheduler


def path_of(scheduler):
    return kind_of(scheduler).from_config(scheduler.config, solver="ddim").schedule


@pytest.fixture(scope="module")
def table():
    scheduler = pipelines._ddim()
    return scheduler, path_of(scheduler)


@pytest.fixture(scope="module")
def flow():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return scheduler, path_of(scheduler)


def apart(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def net(x, t):
    """A smooth network of one number a value."""
    return 0.6 * x + 0.3 * torch.tanh(2.0 * x) * torch.cos(torch.as_tensor(t) / 400.0)


def looped(scheduler, x, steps=None, **given):
    """The loop of a pipeline."""
    scheduler.set_timesteps(steps, **given)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("title", SIZES)
def test_a_pipelines_picture_is_that_of_sample(title, built, tmp_path):
    pipe, call, side = built[title]
    name, guidance = pipelines.MODES[title][0], SIZES[title]
    tuned = sampler(path_of(pipe.scheduler), (5, 7), guidance=(1.0, 4.0))
    tuned.save(tmp_path / "fast.json")
    model = sf.from_diffusers(pipe, "a cat", guidance=guidance, height=side, width=side)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    more = {} if name == "flux" else {"guidance_scale": guidance}
    before = pipe.scheduler
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        scheduler = kind_of(before).from_config(before.config, solver=str(tmp_path / "fast.json"))
    try:
        for steps in (5, 7):
            pipe.scheduler = scheduler
            found = pipelines.run(pipe, call, steps, latents=pipelines.packed(name, x), **more)
            expected = sf.sample(model, x=x, solver=tuned, nfe=steps).x
            assert apart(found, pipelines.packed(name, expected)) < ROUNDING
            assert len(scheduler.timesteps) == steps
        with pytest.raises(sf.InputError, match=r"num_inference_steps: got 6.*5, 7 calls"):
            pipelines.run(pipe, call, 6, **more)
    finally:
        pipe.scheduler = before


def test_a_change_of_the_latents_by_a_callback_is_taken_in(built):
    pipe, call, side = built["StableDiffusionPipeline"]
    tuned = sampler(path_of(pipe.scheduler), (5,), "ddim")
    model = sf.from_diffusers(pipe, "a cat", height=side, width=side)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))

    def moved(pipe, i, t, values):
        return {"latents": values["latents"] + 0.1} if i == 1 else values

    before, found = pipe.scheduler, []
    try:
        for solver in (tuned, "ddim"):
            pipe.scheduler = SteadyScheduler.from_config(before.config, solver=solver)
            if solver == "ddim":
                expected = sf.sample(
                    model, x=x, solver=tuned, corrections=[lambda info: info.x + 0.1 if info.done == 2 else None]
                )
                found.append(expected.x)
            else:
                found.append(pipelines.run(pipe, call, 5, latents=x, guidance_scale=1.0, callback_on_step_end=moved))
    finally:
        pipe.scheduler = before
    assert apart(*found) < ROUNDING


@pytest.mark.parametrize("which", ["table", "flow"])
def test_the_config_is_json_and_holds_the_solver(which, request, tmp_path):
    scheduler, path = request.getfixturevalue(which)
    tuned, kind = sampler(path, (6, 5)), kind_of(scheduler)
    tuned.save(tmp_path / "fast.json")
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    by_path = kind.from_config(scheduler.config, solver=str(tmp_path / "fast.json"))
    expected = looped(by_path, x, 6)
    assert by_path.config.solver == str(tmp_path / "fast.json")
    for given in (
        {"solver": tuned},
        {"solver": tuned.spec()},
        {"solver": "tuned", "solver_options": {"document": tuned.document()}},
    ):
        made = kind.from_config(scheduler.config, **given)
        assert made.config.solver == "tuned"
        json.dumps(dict(made.config))
        made.save_pretrained(tmp_path / "kept")
        for again in (kind.from_pretrained(tmp_path / "kept"), kind.from_config(made.config), copy.deepcopy(made)):
            assert torch.equal(looped(again, x, 6), expected)
    own = SteadyScheduler if which == "table" else SteadyFlowScheduler
    assert own.from_config(made.config, solver="ddim", solver_options=None).solver.name == "ddim"
    with pytest.raises(sf.InputError, match="solver: got 3"):
        kind.from_config(scheduler.config, solver=3)
    with pytest.raises(sf.InputError, match="solver_options"):
        kind.from_config(scheduler.config, solver=tuned, solver_options={"document": {}})


@pytest.mark.parametrize("which", ["table", "flow"])
def test_a_scheduler_is_copied_and_pickled_in_the_middle(which, request):
    scheduler, path = request.getfixturevalue(which)
    made = kind_of(scheduler).from_config(scheduler.config, solver=sampler(path, (6,)))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    expected = looped(made, x, 6)
    made.set_timesteps(6)
    for t in made.timesteps[:].tolist()[:3]:
        x = made.step(net(x, t), t, x).prev_sample
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        y = x
        for t in again.timesteps.tolist()[3:]:
            y = again.step(net(y, t), t, y).prev_sample
        assert apart(y, expected) < 1e-6


@pytest.mark.parametrize("which", ["table", "flow"])
def test_lists_are_its_own_or_refused_by_name(which, request):
    scheduler, path = request.getfixturevalue(which)
    tuned = sampler(path, (6, 5))
    made = kind_of(scheduler).from_config(scheduler.config, solver=tuned)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    expected = looped(made, x, 5)
    is_flow = which == "flow"
    levels = torch.tensor(tuned.sigmas(5, flow=is_flow), dtype=torch.float32).tolist()
    times = made.timesteps.tolist()
    for given in ({"sigmas": levels}, {"sigmas": levels[:-1]}, {"timesteps": times}):
        assert apart(looped(made, x, **given), expected) < 1e-4
    if is_flow:
        assert apart(looped(made, x, sigmas=[1.0 - k / 5 for k in range(5)]), expected) < 1e-6  # as pipelines pass it
    for given in ({"sigmas": levels[1:]}, {"sigmas": [0.9, 0.5, 0.1]}, {"timesteps": [900.0, 500.0, 20.0]},
                  {"timesteps": times[:-1]}):  # fmt: skip
        with pytest.raises(sf.InputError, match=f"{next(iter(given))}: got .* calls; leave the grid"):
            made.set_timesteps(**given)
    made.set_timesteps(5)
    for cut in (lambda: made.timesteps[2:], lambda: made.timesteps[:3], lambda: made.set_begin_index(1)):
        with pytest.raises(sf.InputError, match="in the middle, as solver 'tuned'"):
            cut()
    assert len(made.timesteps[0:]) == 5
    with pytest.raises(sf.InputError, match="num_inference_steps: got 7"):
        made.set_timesteps(7)
    with pytest.raises(sf.InputError, match="grid: has no meaning"):
        kind_of(scheduler).from_config(scheduler.config, solver=tuned, grid="karras")
    if is_flow:
        with pytest.raises(sf.InputError, match="sigma_max"):
            SteadyFlowScheduler.from_config(scheduler.config, solver=tuned, sigma_max=0.9)
    else:
        with pytest.raises(sf.InputError, match="strength"):
            made.set_timesteps(5, strength=0.5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_first_noise_is_what_the_config_says(spacing):
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing=spacing
    )
    path = path_of(scheduler)
    made = SteadyScheduler.from_config(scheduler.config, solver=sampler(path, (5,)))
    made.set_timesteps(5)
    sigma = path.at(made.grid.times[0]).sigma
    assert made.init_noise_sigma == pytest.approx(sigma if spacing == "trailing" else 1.0)
    assert made.grid.clean


@pytest.mark.parametrize("which", ["table", "flow"])
def test_inverse_schedulers_take_round_trips_alone(which, request):
    scheduler, path = request.getfixturevalue(which)
    inverse, forward = kind_of(scheduler, True), kind_of(scheduler)
    with pytest.raises(sf.NotInvertibleError, match="sampling alone"):
        inverse.from_config(scheduler.config, solver=sampler(path))
    trip = tripper(path, (6,), "ddim" if which == "table" else "euler")
    up, down = (kind.from_config(scheduler.config, solver=trip) for kind in (inverse, forward))
    x = 0.5 * torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    latent = looped(up, x, 6)
    start = down.carry(up)
    back = looped(down, start, 6)

    predicted = "epsilon" if which == "table" else "flow"
    scale = 1.0 if which == "table" else 1000.0
    model = sf.Denoiser(lambda x, t: net(x, t[0]), path, prediction=predicted, time_scale=scale)
    expected = sf.invert(model, x, solver=trip)
    assert apart(latent, expected.latent) < 1e-4
    assert apart(back, expected.decode().x) < 1e-4
    with pytest.raises(sf.InputError, match="takes its number of calls"):
        up.set_timesteps(timesteps=up.timesteps.tolist())


def test_a_plain_solver_in_its_place_runs_in_a_pipeline_too(table):
    scheduler, path = table
    made = SteadyScheduler.from_config(scheduler.config, solver=replaced(path, 8, "midpoint"))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    found = looped(made, x, 8)
    model = sf.Denoiser(lambda x, t: net(x, t[0]), path)
    assert apart(found, sf.sample(model, x=x, solver=replaced(path, 8, "midpoint")).x) < 1e-4


def test_another_path_is_told(table):
    scheduler, path = table
    other = dataclasses.replace(sampler(path), schedule=json.dumps(sf.Tabulated.linear(1000, 1e-4, 0.02).spec()))
    with pytest.warns(UserWarning, match="on another path.*does not hold here"):
        SteadyScheduler.from_config(scheduler.config, solver=other)


def test_the_bundled_pipeline(tmp_path):
    model = pytest.importorskip("steadyflow.loading").load_model("ink")
    pipe = getattr(model, "pipe", None)
    if pipe is None:
        pytest.skip("the bundled model is no pipeline")
    model = model.with_condition("a handwritten seven").with_guidance(3.0)
    tuned = sampler(model.schedule, (5,), guidance=(3.0, 3.0))
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    before = pipe.scheduler
    try:
        pipe.scheduler = kind_of(before).from_config(before.config, solver=tuned)
        found = pipe(
            "a handwritten seven", latents=x, num_inference_steps=5, guidance_scale=3.0, output_type="latent"
        ).images  # fmt: skip
    finally:
        pipe.scheduler = before
    assert apart(found, sf.sample(model, x=x, solver=tuned).x) < ROUNDING


def test_modular_diffusers_runs_it_over_its_own_timesteps_alone():
    modular = pytest.importorskip("zoo.modular")
    from steadyflow.diffusers.modular import SteadyDenoise

    case = modular.CASES["flux"]
    parts = modular.components_of(case)
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    tuned = sampler(path_of(own), (case.steps,), "euler")

    def run(solver, scheduler):
        return modular.run(case, {**parts, "scheduler": scheduler}, lambda block: SteadyDenoise(block, solver), 0)

    with pytest.raises(sf.InputError, match="its own grids, of 4 calls"):
        run(tuned, own)
    scheduler = SteadyFlowScheduler.from_config(own.config, solver=tuned)
    for found, expected in zip(run(tuned, scheduler), run("euler", scheduler), strict=True):
        assert apart(found, expected) < 1e-4
