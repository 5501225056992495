"""Programs as they are: inference mode, autocast, copies, threads, offloading, moves, compilation, seeds."""

import copy
import importlib
import pickle
import threading
import warnings

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import pipelines  # noqa: E402
import steadyflow as sf  # noqa: E402
from steadyflow.diffusers import SteadyFlowScheduler, SteadyScheduler  # noqa: E402
from steadyflow.loading import fingerprint, load_model  # noqa: E402

VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULED = [
    name
    for name in sf.solvers.names()
    if sf.solvers.get(name).properties.evaluations is not None and name not in ("edm-churn", "rex-shark")
]
STOCHASTIC = [name for name in SCHEDULED if sf.solvers.get(name).properties.stochastic]


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def net(x, t):
    return 0.3 * torch.tanh(x) + 0.1 * float(t) / 1000


def to_the_end(scheduler, x, first=0, generator=None):
    for t in list(scheduler.timesteps)[first:]:
        x = scheduler.step(net(x, t), t, x, generator=generator).prev_sample
    return x


# --- copies at any moment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SCHEDULED)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_made_at_any_moment_ends_as_the_run_does(solver, how):
    def copied(value):
        return copy.deepcopy(value) if how == "deepcopy" else pickle.loads(pickle.dumps(value))

    options = {"timesteps": [901, 601, 301]}
    scheduler = SteadyScheduler(solver=solver, set_alpha_to_one=False, **VP)
    scheduler.set_timesteps(**options)
    x = torch.randn(2, 1, 2, 2, generator=seeded())
    stochastic = solver in STOCHASTIC
    scheduler.generator = seeded(3) if stochastic else None
    expected = to_the_end(copied(scheduler), x)
    for at in range(len(scheduler.timesteps) + 1):
        one, state = copied(scheduler), x
        for t in list(one.timesteps)[:at]:
            state = one.step(net(state, t), t, state).prev_sample
        other, kept = copied(one), state.clone()
        assert torch.equal(to_the_end(one, state, at), expected)
        assert torch.equal(to_the_end(other, kept, at), expected), at
    one.set_timesteps(**options)
    one.generator = seeded(3) if stochastic else None
    assert torch.equal(to_the_end(one, x), expected)  # and after the end, for another run


@pytest.mark.parametrize("solver", ["ddim", "ees25", "unipc", "rex-midpoint", "dpmpp-2m-sde", "seeds-2"])
def test_a_stepper_is_copied_with_what_it_was_told(solver):
    path, grid = sf.VPLinear(), sf.Grid((0.9, 0.5, 0.2))
    method = sf.solvers.get(solver)
    x = torch.randn(2, 3, generator=seeded())
    noise = sf.noise.White.of(x, 1)
    stepper = sf.Stepper(method, path, grid, x, noise=noise)

    def answer(s):
        query = s.query
        return sf.Prediction(query.x, net(query.x, 1000 * query.t), "epsilon", path.alpha(query.t), path.sigma(query.t))

    copies = [pickle.loads(pickle.dumps(stepper))]
    while stepper.query is not None:
        stepper.feed(answer(stepper))
        copies.append(copy.deepcopy(stepper))
    for made in copies:
        while made.query is not None:
            made.feed(answer(made))
        assert torch.equal(made.x, stepper.x)
        assert made.nfe == stepper.nfe


# --- modes of torch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_pipelines_and_verbs_run_under_inference_mode_and_give_the_same(title):
    pipe, call, side = pipelines.in_mode(title)
    kind = SteadyFlowScheduler if "3" in title or "Flux" in title else SteadyScheduler
    pipe.scheduler = kind.from_config(pipe.scheduler.config, solver="ees25")
    plain = pipelines.run(pipe, call, 3)
    with torch.inference_mode():
        assert torch.equal(pipelines.run(pipe, call, 3), plain)
        model = sf.from_diffusers(pipe, "a cat", height=side, width=side)
        x = torch.randn(1, *model.shape, generator=seeded())
        inside = sf.sample(model, x=x, solver="dpmpp-2m", steps=3).x
        back = sf.reconstruct(model, x, solver="rk4", steps=4)
    outside = sf.sample(model, x=x, solver="dpmpp-2m", steps=3).x
    assert torch.equal(inside, outside)
    assert back.x.isfinite().all()


def test_pipelines_and_verbs_run_under_autocast():
    pipe, call, side = pipelines.in_mode("StableDiffusionPipeline")
    pipelines.smooth_in_time(pipe)
    pipe.scheduler = SteadyScheduler.from_config(pipe.scheduler.config, solver="ees25")
    plain = pipelines.run(pipe, call, 3)
    model = sf.from_diffusers(pipe, "a cat", height=side, width=side)
    x = torch.randn(1, *model.shape, generator=seeded())
    full = sf.sample(model, x=x, solver="ees25", steps=4).x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = pipelines.run(pipe, call, 3)
        low = sf.sample(model, x=x, solver="ees25", steps=4).x
    assert pipe.scheduler.state.dtype == torch.float32
    assert low.dtype == torch.float32
    for found, expected in ((half.float(), plain), (low, full)):
        assert 0.0 < (found - expected).norm() / expected.norm() < 0.1


def test_a_compiled_network_is_a_network():
    pipe, call, side = pipelines.in_mode("StableDiffusionPipeline")
    call["guidance_scale"] = 1.0  # one call for two batches, which would be compiled for each
    plain = sf.from_diffusers(pipe, "a cat", height=side, width=side)
    x = torch.randn(1, *plain.shape, generator=seeded())
    expected = sf.sample(plain, x=x, solver="rk4", steps=2).x
    of_pipe, known = pipelines.run(pipe, call, 2), fingerprint(plain)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    compiled = sf.from_diffusers(pipe, "a cat", height=side, width=side)
    assert torch.allclose(sf.sample(compiled, x=x, solver="rk4", steps=2).x, expected, atol=1e-5)
    assert torch.allclose(pipelines.run(pipe, call, 2), of_pipe, atol=1e-5)
    assert fingerprint(compiled) == known


# --- where the weights are ------------------------------------------------------------------------------------------

MOVED = ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"]


@pytest.mark.parametrize("title", MOVED)
def test_weights_that_are_offloaded_module_by_module(title):
    accelerate = pytest.importorskip("accelerate")
    pipe, call, side = pipelines.in_mode(title)
    plain = sf.from_diffusers(pipe, "a cat", height=side, width=side)
    x = torch.randn(1, *plain.shape, generator=seeded())
    expected, picture = sf.sample(plain, x=x, solver="ees25", steps=2).x, plain.decode(x)
    encoded = plain.encode(picture)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(part, execution_device=torch.device("cpu"))
    assert next(pipe.components["vae"].parameters()).device.type == "meta"
    pipelines.run(pipe, call, 1)
    model = sf.from_diffusers(pipe, "a cat", height=side, width=side)
    assert torch.allclose(sf.sample(model, x=x, solver="ees25", steps=2).x, expected, atol=1e-5)
    assert torch.allclose(model.decode(x), picture, atol=1e-5)
    assert torch.allclose(model.encode(picture), encoded, atol=1e-5)


@pytest.mark.parametrize("title", MOVED)
def test_a_pipeline_that_moves_after_the_model_was_made(title):
    pipe, _, side = pipelines.in_mode(title)
    model = sf.from_diffusers(pipe, "a cat", height=side, width=side)
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    network.to("meta")  # stands for an accelerator
    x = torch.zeros(2, *model.shape, device="meta")
    t = 0.5 if model.prediction == "flow" else 500.0
    assert model(x, t).x0.device.type == "meta"
    guided = model.with_guidance(3.0)
    assert guided(x, t).x0.shape == x.shape


# --- threads and seeds ----------------------------------------------------------------------------------------------


def test_a_copy_for_every_thread_runs_as_alone():
    scheduler = SteadyScheduler(solver="ees25", set_alpha_to_one=False, **VP)
    scheduler.set_timesteps(12)
    starts = [torch.randn(1, 1, 4, 4, generator=seeded(k)) for k in range(8)]
    expected = [to_the_end(copy.deepcopy(scheduler), x) for x in starts]
    found = [None] * len(starts)

    def work(k):
        found[k] = to_the_end(copy.deepcopy(scheduler), starts[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(starts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_verbs_share_a_model_among_threads():
    pipe, _, _ = pipelines.in_mode("StableDiffusionPipeline")
    model = sf.from_diffusers(pipe, "a cat")
    expected = [sf.sample(model, n=1, seed=k, solver="ees25", steps=2).x for k in range(4)]
    found = [None] * 4

    def work(k):
        found[k] = sf.sample(model, n=1, seed=k, solver="ees25", steps=2).x

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_noise_is_fresh_unless_a_seed_or_a_generator_is_given(solver):
    x = torch.randn(2, 1, 2, 2, generator=seeded())

    def run(seed=None, generator=None, own=None):
        scheduler = SteadyScheduler(solver=solver, set_alpha_to_one=False, seed=seed, **VP)
        scheduler.set_timesteps(4)
        scheduler.generator = own
        return to_the_end(scheduler, x, generator=generator)

    assert not torch.equal(run(), run())
    torch.manual_seed(5)
    first = run()
    torch.manual_seed(5)
    assert torch.equal(run(), first)  # fresh noise follows torch's own state, as every peer's
    assert torch.equal(run(seed=1), run(seed=1))
    assert not torch.equal(run(seed=1), run(seed=2))
    forms = (
        lambda n: {"generator": seeded(n)},
        lambda n: {"own": seeded(n)},
        lambda n: {"generator": [seeded(n), seeded(n + 10)]},
        lambda n: {"own": [seeded(n), seeded(n + 10)]},
    )
    for form in forms:
        assert torch.equal(run(**form(1)), run(**form(1)))
        assert not torch.equal(run(**form(1)), run(**form(2)))
        assert torch.equal(run(seed=4, **form(1)), run(**form(1)))  # a generator goes before the config's seed
    with pytest.raises(sf.InputError, match="generator: got 3"):
        run(generator=[seeded(0), seeded(1), seeded(2)])


def test_pictures_made_in_a_loop_have_noise_of_their_own():
    pipe, call, _ = pipelines.in_mode("StableDiffusionPipeline")
    pipe.scheduler = SteadyScheduler.from_config(pipe.scheduler.config, solver="ddpm")
    start = torch.randn(1, 4, 16, 16, generator=seeded())
    a, b = (pipe(num_inference_steps=4, latents=start.clone(), **call).images for _ in range(2))
    assert not torch.equal(a, b)


def test_a_replaced_state_keeps_the_noise_of_its_step():
    """A callback that changes nothing but the tensor's identity changes nothing."""
    for solver in STOCHASTIC:
        scheduler = SteadyScheduler(solver=solver, set_alpha_to_one=False, **VP)
        x, ends = torch.randn(2, 1, 2, 2, generator=seeded()), []
        for touched in (False, True):
            scheduler.set_timesteps(4)
            generator, state = seeded(2), x
            for t in scheduler.timesteps:
                state = scheduler.step(net(state, t), t, state, generator=generator).prev_sample
                if touched:
                    state = state.clone()
            ends.append(state)
        assert torch.equal(*ends)


def test_a_warning_free_import_and_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = SteadyScheduler(solver="ees25", **VP)
        scheduler.set_timesteps(3)
        to_the_end(scheduler, torch.zeros(1, 1, 2, 2))


def test_a_pipeline_that_a_function_makes_is_moved_to_the_device_that_was_asked_for(tmp_path, monkeypatch):
    pipe, _, side = pipelines.in_mode("StableDiffusionPipeline")
    (tmp_path / "makes_a_pipeline.py").write_text("def model():\n    return made\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("makes_a_pipeline").made = sf.from_diffusers(pipe, height=side, width=side)
    assert load_model("makes_a_pipeline:model").pipe.device.type == "cpu"
    moved = load_model("makes_a_pipeline:model", "meta")
    assert {p.device.type for part in (moved.pipe.unet, moved.pipe.vae) for p in part.parameters()} == {"meta"}
