"""In diffusers pipelines: schedulers equal to our own loop and to diffusers' own, inverses, models over pipelines."""

import json

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import pipelines  # noqa: E402  # needs diffusers
import steadyflow as sf  # noqa: E402
from steadyflow.diffusers import (  # noqa: E402
    SteadyFlowInverseScheduler,
    SteadyFlowScheduler,
    SteadyInverseScheduler,
    SteadyScheduler,
    load_pipeline,
)

FLOWS = ("sd3", "flux")
NAMES = ("sd", "sdxl", "sd3", "flux")
STOCHASTIC = [name for name in sf.solvers.names() if sf.solvers.get(name).properties.stochastic]
UNSCHEDULED = {"edm-churn": "elsewhere than at the latents", "rex-shark": "elsewhere than at the latents"} | {
    name: "no fixed number" for name in sf.solvers.names() if sf.solvers.get(name).properties.evaluations is None
}
SCHEDULED = [name for name in sf.solvers.names() if name not in UNSCHEDULED]
FEW = ["ddim", "ddpm", "dpmpp-2m", "ees25", "rex-midpoint", "rk4"]
"""One of each kind, for a pipeline whose scheduler is that of another one."""


@pytest.fixture(scope="module")
def pipes():
    return {name: (pipe := pipelines.build(name), pipe.scheduler) for name in NAMES}


def scheduler_for(name, own, solver, inverse=False, **options):
    if name in FLOWS:
        kind = SteadyFlowInverseScheduler if inverse else SteadyFlowScheduler
        least = {"sigma_min": 0.02} if solver == "rex-sde" else {}
        options = {"sigma_max": 0.98, "seed": 0, **least, **options}
    else:
        kind = SteadyInverseScheduler if inverse else SteadyScheduler
        options = {"seed": 0, **options}
    return kind.from_config(own.config, solver=solver, **options)


def size(name):
    return {k: v for k, v in pipelines.CALLS[name].items() if k in ("height", "width")}


def call(pipe, name, steps=2, latents=None, seed=0, **options):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    options = {**pipelines.CALLS[name], **options}
    return pipe(
        "a cat", num_inference_steps=steps, generator=generator, latents=latents, output_type="latent", **options
    ).images


@pytest.mark.parametrize("name", NAMES)
def test_every_solver_gives_the_same_in_a_pipeline_as_in_our_own_loop(pipes, name):
    pipe, own = pipes[name]
    shape = sf.from_diffusers(pipe, **size(name)).shape
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    try:
        for solver in SCHEDULED if name != "sdxl" else FEW:
            pipe.scheduler = scheduler_for(name, own, solver)
            model = sf.from_diffusers(pipe, "a cat", **size(name))
            found = pipelines.unpacked(
                name, call(pipe, name, latents=pipelines.packed(name, latents.clone()), seed=None)
            )
            if name == "flux" and solver in STOCHASTIC:  # noise of the packed latents' layout
                assert found.isfinite().all()
                continue
            grid = pipe.scheduler.grid
            expected = sf.sample(model, x=latents, solver=pipe.scheduler.solver, grid=grid, noise="white", end="path").x
            off = (found - expected).abs().max() / expected.abs().max()
            assert off < 1e-5, f"{solver}: {off}"
    finally:
        pipe.scheduler = own


@pytest.mark.parametrize("name", NAMES)
def test_our_ddim_is_diffusers_own(pipes, name):
    pipe, own = pipes[name]
    try:
        expected = call(pipe, name, steps=5)
        pipe.scheduler = scheduler_for(name, own, "ddim", sigma_max=1.0) if name in FLOWS else scheduler_for(
            name, own, "ddim"
        )  # fmt: skip
        found = call(pipe, name, steps=5)
    finally:
        pipe.scheduler = own
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def smooth():
    """Pipelines whose networks are smooth in time, as trained ones are."""
    pipes = {name: pipelines.smooth_in_time(pipelines.build(name)) for name in ("sd", "sd3", "flux")}
    return {name: (pipe, pipe.scheduler) for name, pipe in pipes.items()}


def picture(name, pipe, n=1):
    shape = sf.from_diffusers(pipe, **size(name)).shape
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(2))


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("name", "solver", "steps", "limit"),
    [
        ("sd", "rex-midpoint", 12, 1e-4),
        ("sd", "rex-rk4", 6, 1e-4),
        ("sd", "edict", 24, 1e-4),
        ("sd", "belm", 48, 1e-4),
        ("sd", "ees25", 16, 0.02),
        ("sd3", "rex-midpoint", 12, 1e-4),
        ("sd3", "ees25", 16, 1e-4),
        ("flux", "rex-midpoint", 12, 1e-4),
        ("flux", "ees25", 16, 1e-4),
    ],
)
def test_an_inverse_scheduler_in_the_pipeline_finds_the_latents_that_make_the_image(smooth, name, solver, steps, limit):
    pipe, own = smooth[name]
    image = picture(name, pipe)
    try:
        inverse = pipe.scheduler = scheduler_for(name, own, solver, inverse=True)
        found = call(pipe, name, steps=steps, latents=pipelines.packed(name, image))
        forward = pipe.scheduler = scheduler_for(name, own, solver)
        start = forward.carry(inverse)
        back = pipelines.unpacked(name, call(pipe, name, steps=steps, latents=start))
        fresh = pipe.scheduler = scheduler_for(name, own, solver)
        alone = pipelines.unpacked(name, call(pipe, name, steps=steps, latents=found))
    finally:
        pipe.scheduler = own
    assert relative(back, image) < limit
    if name == "sd" and fresh.solver.properties.states > 1:  # without its second state it is not exact
        assert relative(alone, image) > 100.0 * relative(back, image)
    forward.set_timesteps(**({"sigmas": [0.9, 0.5]} if name in FLOWS else {"num_inference_steps": 3}), **mu(name))
    with pytest.raises(sf.InputError, match="steps differ"):
        forward.step(torch.zeros_like(start), forward.timesteps[0], start)


def mu(name):
    return {"mu": 1.0} if name == "flux" else {}


def test_fifty_times_below_diffusers_ddim_and_its_inverse(smooth):
    """On Stable Diffusion, EES25, 48 network calls each way."""
    pipe, own = smooth["sd"]
    image, errors = picture("sd", pipe), []
    pairs = (
        (diffusers.DDIMInverseScheduler.from_config(own.config), diffusers.DDIMScheduler.from_config(own.config), 48),
        (scheduler_for("sd", own, "ees25", inverse=True), scheduler_for("sd", own, "ees25"), 16),
    )
    try:
        for inverse, forward, steps in pairs:
            pipe.scheduler = inverse
            found = call(pipe, "sd", steps=steps, latents=image)
            pipe.scheduler = forward
            errors.append(relative(call(pipe, "sd", steps=steps, latents=found), image))
    finally:
        pipe.scheduler = own
    assert errors[0] > 50.0 * errors[1], errors


def test_stages_that_lie_symmetrically_round_trip_on_networks_that_are_not_smooth_in_time(pipes):
    """RK4 calls the network at the same times both ways; EES25 does not, and errs by what oscillates within a step."""
    pipe, own = pipes["flux"]
    image, errors = picture("flux", pipe), {}
    try:
        for solver, steps in (("rk4", 12), ("ees25", 16)):
            pipe.scheduler = inverse = scheduler_for("flux", own, solver, inverse=True)
            call(pipe, "flux", steps=steps, latents=pipelines.packed("flux", image))
            pipe.scheduler = forward = scheduler_for("flux", own, solver)
            back = call(pipe, "flux", steps=steps, latents=forward.carry(inverse))
            errors[solver] = relative(pipelines.unpacked("flux", back), image)
    finally:
        pipe.scheduler = own
    assert errors["rk4"] < 1e-4 < errors["ees25"]


def test_round_trips_over_whole_pipelines(smooth):
    """EES25 at 48 evaluations: below 1e-4 on flow models, and far below DDIM on Stable Diffusion."""
    for name in FLOWS:
        model = sf.from_diffusers(smooth[name][0], "a cat", **size(name))
        image = picture(name, smooth[name][0], 2)
        assert relative(sf.reconstruct(model, image, solver="ees25", steps=16, grid="uniform").x, image) < 1e-4
    model, image = sf.from_diffusers(smooth["sd"][0], "a cat"), picture("sd", smooth["sd"][0], 2)
    plan = {"ees25": 16, "ddim": 48, "rex-rk4": 6}
    errors = {
        name: relative(sf.reconstruct(model, image, solver=name, steps=steps, grid="uniform").x, image)
        for name, steps in plan.items()
    }
    assert errors["ees25"] < errors["ddim"] / 10.0, errors
    assert errors["rex-rk4"] < 1e-4


def test_guidance_and_prompts_are_the_pipelines_own(pipes):
    pipe, own = pipes["sd"]
    try:
        pipe.scheduler = scheduler_for("sd", own, "dpmpp-2m")
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
        expected = call(pipe, "sd", steps=4, latents=latents, guidance_scale=5.0, negative_prompt="dog")
        model = sf.from_diffusers(pipe, "a cat", negative_prompt="dog", guidance=5.0)
        found = sf.sample(model, x=latents, solver="dpmpp-2m", grid=pipe.scheduler.grid, end="path").x
    finally:
        pipe.scheduler = own
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_prompts_is_the_prompts_one_by_one(pipes, name):
    pipe, _ = pipes[name]
    prompts = ["a cat", "two dogs on a mat"]
    model = sf.from_diffusers(pipe, **size(name))
    together = sf.sample(model.with_condition(prompts), n=2, solver="ees25", steps=2, grid="uniform").x
    for k, prompt in enumerate(prompts):
        alone = sf.sample(model.with_condition(prompt), n=1, index=k, solver="ees25", steps=2, grid="uniform").x
        assert (alone - together[k]).abs().max() < 1e-4 * together.abs().max()


def test_a_diagnosis_and_an_edit_over_a_pipeline(smooth):
    model = sf.from_diffusers(smooth["flux"][0], "a cat", **size("flux"))
    images = 0.5 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    latents = model.codec.encode(images)
    assert latents.shape == (2, *model.shape)
    assert model.codec.decode(latents).shape == images.shape
    edited = sf.edit(model, latents, target="a dog", solver="ees25", steps=4, guidance=2.0, grid="uniform")
    assert edited.x.isfinite().all()
    found = sf.diagnose(model, latents, solver="ees25", steps=4, grid="uniform", tolerance=1e-2)
    assert found.measured.isfinite().all()


def test_an_unconditional_model_and_its_clean_end():
    pipe = pipelines.build("unconditional")
    model = sf.from_diffusers(pipe)
    assert sf.sample(model, n=2, steps=3).x.shape == (2, 3, 16, 16)
    expected = pipe(batch_size=1, num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="np")
    pipe.scheduler = SteadyScheduler.from_config(pipe.scheduler.config, solver="ddim")
    assert pipe.scheduler.config.set_alpha_to_one
    latents = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x = latents
    pipe.scheduler.set_timesteps(5)
    for t in pipe.scheduler.timesteps:
        x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
    images = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(images - expected.images).max() < 1e-4
    with pytest.raises(sf.InputError, match="takes none"):
        sf.from_diffusers(pipe, "a cat")


@pytest.mark.parametrize("solver", ["ees25", "dpmpp-2m", "rex-midpoint"])
def test_the_last_call_of_a_clean_end_is_read_as_the_clean_estimate(solver):
    ends = {}
    for clean in (False, True):
        scheduler = SteadyScheduler(solver=solver, set_alpha_to_one=clean)
        scheduler.set_timesteps(4)
        x = torch.linspace(-1.0, 1.0, 48).view(1, 3, 4, 4)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
        ends[clean] = x, scheduler
    (x, without), (found, scheduler) = ends[False], ends[True]
    starts = [t.item() for t in scheduler.timesteps[:: scheduler.order]]
    assert starts == [750, 500, 250, 0][: len(starts)]
    assert scheduler.num_inference_steps == 4
    level, last = scheduler.schedule.at(starts[-1]), without.schedule.at(starts[-1])
    assert level == last
    assert len(scheduler.timesteps) == 3 * scheduler.order + 1  # the last step takes one call
    assert torch.isfinite(found).all()
    assert torch.isfinite(x).all()


def test_a_saved_pipeline_keeps_its_scheduler(pipes, tmp_path):
    pipe, own = pipes["sd"]
    try:
        pipe.scheduler = scheduler_for("sd", own, "rex-midpoint", solver_options={"coupling": 0.99})
        before = call(pipe, "sd")
        pipe.save_pretrained(tmp_path)
        named = json.loads((tmp_path / "model_index.json").read_text())["scheduler"]
        again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
        again.set_progress_bar_config(disable=True)
        after = call(again, "sd")
    finally:
        pipe.scheduler = own
    assert (after - before).abs().max() < 1e-5 * before.abs().max()  # weights lie elsewhere in memory: another rounding
    assert named == ["steadyflow.diffusers.schedulers", "SteadyScheduler"]
    assert SteadyScheduler.__module__ == "steadyflow.diffusers.schedulers"
    assert again.scheduler.solver == sf.solvers.get("rex-midpoint", coupling=0.99)


def test_a_pipeline_saved_without_a_part_is_loaded_without_it(pipes, tmp_path):
    """Stable Diffusion 3 without its third text encoder, which diffusers loads only if told that there is none."""
    pipe, _ = pipes["sd3"]
    parts = {**pipe.components, "text_encoder_3": None, "tokenizer_3": None}
    diffusers.StableDiffusion3Pipeline(**parts).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text_encoder_3"):
        diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path)
    model = load_pipeline(tmp_path, height=16, width=16)
    assert model.pipe.text_encoder_3 is None
    assert model.with_condition("a cat").condition["prompt_embeds"].shape[0] == 1
    (tmp_path / "model_index.json").write_text("[1")
    with pytest.raises(sf.CorruptFileError, match="no pipeline"):
        load_pipeline(tmp_path)


def test_image_to_image_starts_at_a_whole_step(pipes):
    pipe, own = pipes["sd"]
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    for solver, calls in (("ees25", 3), ("ddim", 1), ("rk4", 4)):
        other.scheduler = scheduler_for("sd", own, solver)
        seen = []

        def note(p, i, t, kwargs, seen=seen):
            seen.append(t)
            return kwargs

        result = other(
            "a cat", image, strength=0.5, num_inference_steps=4, generator=torch.Generator().manual_seed(0),
            output_type="latent", guidance_scale=1.0, callback_on_step_end=note,
        ).images  # fmt: skip
        assert other.scheduler.order == calls
        assert len(seen) == 2 * calls
        assert result.isfinite().all()
    other.scheduler = scheduler_for("sd", own, "ees25")
    other.scheduler.set_timesteps(4)
    other.scheduler.set_begin_index(1)
    assert other.scheduler.begin_index == 3  # the next step's beginning


def test_latents_changed_by_a_callback_are_noticed(pipes):
    pipe, own = pipes["sd"]

    def meddle(at):
        def change(p, i, t, kwargs):
            if i == at:
                kwargs["latents"] = kwargs["latents"] * 0.5
            return kwargs

        return change

    try:
        for solver, at, refused in (("ddim", 0, False), ("ees25", 2, False), ("ees25", 0, True)):
            pipe.scheduler = scheduler_for("sd", own, solver)
            plain = call(pipe, "sd", steps=3)
            if refused:
                with pytest.raises(sf.InputError, match="changed within a step"):
                    call(pipe, "sd", steps=3, callback_on_step_end=meddle(at))
            else:
                changed = call(pipe, "sd", steps=3, callback_on_step_end=meddle(at))
                assert (changed - plain).abs().max() > 1e-3 * plain.abs().max()
    finally:
        pipe.scheduler = own


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_half_precision_pipelines(name, dtype, limit):
    """The network computes in half, times and the solver's state do not; the result stays near that of float32."""
    full, half = (pipelines.smooth_in_time(pipelines.build(name)) for _ in range(2))
    half.to(dtype)
    times = []
    net = half.unet if name == "sd" else half.transformer
    inner = net.forward
    net.forward = lambda *a, **k: (times.append(k.get("timestep", a[1] if len(a) > 1 else None)), inner(*a, **k))[1]
    models = [sf.from_diffusers(pipe, "a cat", **size(name)) for pipe in (full, half)]
    start = torch.randn(2, *models[0].shape, generator=torch.Generator().manual_seed(1))
    results = [sf.sample(model, x=start, solver="ees25", steps=4, grid="uniform") for model in models]
    assert all(time.dtype == torch.float32 for time in times)
    assert results[1].x.dtype == torch.float32
    assert 0.0 < relative(results[1].x, results[0].x) < limit
    latents = pipelines.packed(name, start[:1])
    ends = []
    for pipe, kind in ((full, torch.float32), (half, dtype)):
        pipe.scheduler = scheduler_for(name, pipe.scheduler, "ees25")
        ends.append(call(pipe, name, steps=4, latents=latents.to(kind)))
        assert pipe.scheduler.state.dtype == torch.float32
        assert pipe.scheduler.timesteps.dtype == torch.float32
    assert ends[1].dtype == dtype
    assert relative(ends[1].float(), ends[0]) < 3.0 * limit  # pipelines keep latents in half, FLUX's its times too


@pytest.mark.parametrize("solver", ["ees25", "ddpm"])
def test_a_batch_in_a_pipeline_is_its_pictures_one_by_one(pipes, solver):
    pipe, own = pipes["sd"]
    prompts = ["a cat", "two dogs on a mat"]
    try:
        pipe.scheduler = scheduler_for("sd", own, solver)
        options = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
        seeds = [torch.Generator().manual_seed(k) for k in (3, 4)]
        together = pipe(prompts, generator=seeds, **options).images
        for k, prompt in enumerate(prompts):
            alone = pipe(prompt, generator=torch.Generator().manual_seed(3 + k), **options).images[0]
            assert relative(alone, together[k]) < 1e-5
    finally:
        pipe.scheduler = own


def test_generators_are_honoured_also_where_the_pipeline_passes_none(pipes):
    pipe, own = pipes["flux"]
    try:
        pipe.scheduler = scheduler_for("flux", own, "ddpm")
        seeded = []
        for seed in (1, 1, 2):
            pipe.scheduler.generator = torch.Generator().manual_seed(seed)
            seeded.append(call(pipe, "flux", steps=4))
        assert torch.equal(seeded[0], seeded[1])
        assert not torch.equal(seeded[0], seeded[2])
        pipe.scheduler.generator = None
        assert torch.equal(call(pipe, "flux", steps=4), call(pipe, "flux", steps=4))  # the config's seed
        pipe.scheduler = scheduler_for("flux", own, "ddpm", seed=None)
        assert not torch.equal(call(pipe, "flux", steps=4), call(pipe, "flux", steps=4))  # fresh
    finally:
        pipe.scheduler = own
    pipe, own = pipes["sd"]
    try:
        pipe.scheduler = scheduler_for("sd", own, "ddpm")
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        a, b, c = (call(pipe, "sd", steps=4, latents=latents, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    finally:
        pipe.scheduler = own


# The ten behaviours that diffusers' common scheduler tests require of a scheduler.

COMMON = [
    (SteadyScheduler, {}),
    (SteadyScheduler, {"solver": "ddim", "set_alpha_to_one": True}),
    (SteadyScheduler, {"solver": "dpmpp-2m", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    (
        SteadyScheduler,
        {"solver": "ddpm", "seed": 1, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"},
    ),
    (
        SteadyScheduler,
        {
            "solver": "unipc",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ),
    (SteadyInverseScheduler, {"solver": "rk4"}),
    (SteadyFlowScheduler, {"shift": 3.0}),
    (SteadyFlowInverseScheduler, {"solver": "rex-midpoint"}),
]


def steps_of(scheduler, n=4, **options):
    x = torch.linspace(-1.0, 1.0, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps:
        output = x * float(t) / (float(t) + 1.0)
        found = scheduler.step(output, t, x, **options)
        x = found.prev_sample if hasattr(found, "prev_sample") else found[0]
    return x


@pytest.mark.parametrize(("kind", "options"), COMMON)
def test_common_behaviours_of_schedulers(kind, options, tmp_path):
    scheduler = kind(**options)
    # 1-2: saving and loading, whole and as a config
    scheduler.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert torch.equal(steps_of(scheduler), steps_of(loaded))
    assert torch.equal(steps_of(kind.from_config(scheduler.config)), steps_of(kind(**options)))
    # 3: compatible classes keep and accept the config
    assert scheduler.compatibles
    for other in scheduler.compatibles:
        assert kind.from_config(other.from_config(scheduler.config).config).solver == scheduler.solver
    # 4: shapes; 5: tuple and output object agree; 6: the public names
    whole, parts = steps_of(kind(**options)), steps_of(kind(**options), return_dict=False)
    assert whole.shape == (4, 3, 8, 8)
    assert torch.equal(whole, parts)
    assert isinstance(scheduler.init_noise_sigma, float)
    x = torch.ones(1, 3, 8, 8)
    assert torch.equal(scheduler.scale_model_input(x, 0.0), x)
    # 7: noise at any network time; 8: no keyword that is deprecated; 9: given betas; 10: attributes of the config
    fresh = kind(**options)
    assert len(fresh.timesteps) > 0
    noisy = fresh.add_noise(x, torch.zeros_like(x), fresh.timesteps[:1])
    assert noisy.shape == x.shape
    if issubclass(kind, SteadyScheduler):
        betas = np.array([0.02, 0.03])
        assert torch.allclose(
            kind(trained_betas=betas, timestep_spacing="linspace").betas.double(), torch.from_numpy(betas)
        )
    assert fresh.config.num_train_timesteps == 1000
    with pytest.raises(AttributeError):
        fresh.no_such_attribute  # noqa: B018


def test_custom_sigmas_and_timesteps_place_the_steps():
    scheduler = SteadyScheduler(solver="heun", beta_schedule="scaled_linear")
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.grid == sf.Grid((900.0, 500.0, 100.0), clean=True)
    scheduler.set_timesteps(sigmas=[10.0, 1.0, 0.1])
    levels = [scheduler.schedule.ratio(t) for t in scheduler.grid.times[:3]]
    assert levels == pytest.approx([10.0, 1.0, 0.1])
    flow = SteadyFlowScheduler(use_dynamic_shifting=True, solver="ddim")
    flow.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4), mu=1.0)
    own = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    own.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4), mu=1.0)
    assert torch.allclose(flow.timesteps, own.timesteps, rtol=1e-5)


def test_bad_input_is_named(pipes):
    pipe, _ = pipes["sd"]
    x = torch.zeros(1, 4, 8, 8)

    def begin(solver):
        scheduler = SteadyScheduler(solver=solver, beta_schedule="scaled_linear", steps_offset=1)
        scheduler.step(x, scheduler.timesteps[0], x)

    for name, reason in UNSCHEDULED.items():
        with pytest.raises(sf.InputError, match=reason):
            begin(name)
    with pytest.raises(sf.NotInvertibleError):
        SteadyInverseScheduler(solver="ddpm")
    with pytest.raises(sf.InputError, match="SteadyFlowScheduler"):
        SteadyScheduler(prediction_type="flow_prediction")
    with pytest.raises(sf.InputError, match="beta_schedule"):
        SteadyScheduler(beta_schedule="cubic")
    with pytest.raises(sf.InputError, match="needs mu"):
        SteadyFlowScheduler(use_dynamic_shifting=True).set_timesteps(4)
    with pytest.raises(sf.InputError, match="use SteadyFlowScheduler"):
        SteadyScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config)
    with pytest.raises(sf.InputError, match="use SteadyScheduler"):
        SteadyFlowScheduler.from_config(diffusers.DDIMScheduler().config, solver="rk4")
    scheduler = SteadyScheduler(solver="ddim")
    with pytest.raises(sf.InputError, match="use timestep_spacing='trailing'"):
        scheduler.set_timesteps(1)
    scheduler = SteadyScheduler(solver="ddim", timestep_spacing="trailing", set_alpha_to_one=False)
    scheduler.set_timesteps(1)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(sf.InputError, match="run is over"):
        scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(sf.InputError, match="network returned shape"):
        scheduler.step(x[:, :2], 1, x)
    forward = SteadyScheduler(solver="rk4")
    inverse = SteadyInverseScheduler(solver="rex-rk4")
    with pytest.raises(sf.InputError, match="carry"):
        forward.carry(inverse)
    textless = pipelines.build("sd", text=False)
    with pytest.raises(sf.InputError, match="no text encoder"):
        sf.from_diffusers(textless, "a cat")
    bare = sf.from_diffusers(textless)
    with pytest.raises(sf.InputError, match="no text encoder"):
        sf.sample(bare, n=1, steps=2)
    embedded = bare.with_condition({"prompt_embeds": torch.zeros(1, 77, 32)})
    assert sf.sample(embedded, n=2, steps=2).x.isfinite().all()
    with pytest.raises(sf.InputError, match="multiples of"):
        sf.from_diffusers(pipe, height=33, width=32)
    with pytest.raises(sf.InputError, match="to wrap its network"):
        sf.from_diffusers(object())


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "rk4"])
def test_schedulers_step_the_same_under_inference_mode(solver):
    def run():
        scheduler = sf.SteadyScheduler(solver=solver)
        scheduler.set_timesteps(4)
        latents = torch.linspace(-1, 1, 8).view(1, 2, 2, 2)
        for t in scheduler.timesteps:
            latents = scheduler.step(0.3 * latents, t, latents).prev_sample
        return latents

    with torch.no_grad():
        plain = run()
    with torch.inference_mode():
        assert torch.equal(run(), plain)
