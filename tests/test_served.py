"""Served pipelines: a pipeline's own call, kept suspended, as a model."""

import copy
import gc
import os
import pickle
import signal
import threading

import diffusers
import pytest
import torch

import pipelines
import steadyflow as sf
import zoo
from steadyflow.diffusers import ServedModel
from steadyflow.diffusers._way_out import reached
from steadyflow.schedules import RectifiedFlow


def served(name, prompt=None, pipe=None, **more):
    call = dict(zoo.call_of(name))
    words = call.pop("prompt", None)
    for word in ("guidance_scale", "true_cfg_scale", "negative_prompt", "strength"):
        call.pop(word, None)
    return sf.from_diffusers(pipe or zoo.build(name), prompt or words, served=True, **{**call, **more})


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("steadyflow")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    if threads():  # of models in a circle of references
        gc.collect()
    assert not threads()


@pytest.fixture(scope="module")
def qwen_pipe():
    return zoo.build("qwenimage")


@pytest.fixture
def qwen(qwen_pipe):
    with served("qwenimage", "a red fox", qwen_pipe) as model:
        yield model


def start(model, n=2, seed=0):
    return torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(seed))


OWN = {"sd": (500.0, {}), "sdxl": (500.0, {}), "sd3": (0.5, {}), "flux": (0.5, {"max_sequence_length": 77})}


@pytest.mark.parametrize("name", OWN)
def test_a_served_pipeline_is_the_model_of_the_adapter(name):
    pipe, (t, more) = pipelines.build(name), OWN[name]
    side = 8 if name == "flux" else 32
    own = sf.from_diffusers(pipe, "a cat", height=side, width=side)
    with sf.from_diffusers(pipe, "a cat", height=side, width=side, served=True, **more) as model:
        x = start(own)
        packed = pipelines.packed(name, x)
        assert type(model) is ServedModel
        assert model.schedule == own.schedule
        assert model.own_grid(4) == own.own_grid(4)
        for guidance in (1.0, 3.0):
            mine, theirs = own.with_guidance(guidance), model.with_guidance(guidance)
            if name == "flux":
                theirs = theirs.with_negative("")
            expected = pipelines.packed(name, mine(x, t).eps)
            torch.testing.assert_close(theirs(packed, t).eps, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.decode(packed), own.decode(x).clamp(-1.0, 1.0), rtol=1e-4, atol=1e-4)
        images = 1.8 * torch.rand(2, *own.image_shape) - 0.9
        assert model.image_shape == own.image_shape
        torch.testing.assert_close(
            model.encode(images), pipelines.packed(name, own.encode(images)), rtol=1e-4, atol=1e-4
        )
        wanted = torch.autograd.grad(own(x.requires_grad_(), t).eps.square().sum(), x)[0]
        packed.requires_grad_()
        got = torch.autograd.grad(model(packed, t).eps.square().sum(), packed)[0]
        torch.testing.assert_close(got, pipelines.packed(name, wanted), rtol=1e-4, atol=1e-6)


def test_queries_may_come_in_any_order_and_number(qwen):
    x, y = start(qwen), start(qwen, seed=1)
    times = (0.9, 0.1, 0.5, 0.5, 0.0, 1.0)
    first = [qwen(x, t).output for t in times]
    qwen(y, 0.7)
    again = [qwen(x, t).output for t in reversed(times)][::-1]
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.0)
    mixed = qwen(x, torch.tensor([0.9, 0.1])).output
    torch.testing.assert_close(mixed[0], first[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed[1], first[1][1], rtol=1e-5, atol=1e-6)


def test_answers_are_kept_when_the_pipeline_goes_on(qwen):
    answer = qwen(start(qwen), 0.5).output
    copy = answer.clone()
    for k in range(3):
        qwen(start(qwen, seed=k), 0.1 * k)
    assert torch.equal(answer, copy)


def test_two_prompts_are_asked_at_once_and_each_keeps_its_own(qwen):
    other = qwen.with_condition("seven blue ships")
    x = start(qwen)
    alone = qwen(x, 0.5).output
    for _ in range(2):
        theirs = other(x, 0.5).output
        torch.testing.assert_close(qwen(x, 0.5).output, alone, rtol=0.0, atol=0.0)
    assert not torch.allclose(alone, theirs)
    both = qwen.with_condition(["a red fox", "seven blue ships"])
    rows = both(x, 0.5).output
    torch.testing.assert_close(rows[0], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[1], theirs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.slice(1, 2)(x[1:], 0.5).output, rows[1:], rtol=1e-4, atol=1e-5)
    picked = both.select(torch.tensor([1, 0]))(x.flip(0), 0.5).output
    torch.testing.assert_close(picked, rows.flip(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(sf.InputError, match="2 rows for a batch of 3"):
        both(start(qwen, 3), 0.5)


def test_only_the_last_few_calls_are_kept_open(qwen):
    x = start(qwen, 1)
    for k in range(7):
        qwen.with_condition(f"{k} ships")(x, 0.5)
    assert qwen.server.lines <= 4
    assert len(threads()) <= 4


def test_a_long_run_opens_the_call_again(monkeypatch):
    monkeypatch.setattr("steadyflow.diffusers._server._STEPS", 5)
    with served("zimage") as model:
        x = start(model, 1)
        expected = model(x, 0.5).output
        for _ in range(12):
            assert torch.equal(model(x, 0.5).output, expected)


def test_samples_of_one_prompt_are_computed_together(qwen, monkeypatch):
    seen = []
    hook = qwen.pipe.transformer.register_forward_hook(lambda m, a, k, o: seen.append(o[0].shape[0]), with_kwargs=True)
    x = start(qwen, 3)
    together = qwen(x, 0.5).output
    assert 3 in seen
    monkeypatch.setattr(qwen.server, "_alone", True)
    one_by_one = qwen(x, 0.5).output
    hook.remove()
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)


def test_guidance_is_the_pipelines_own():
    # Z-Image guides by pos + w (pos - neg), Wan by neg + g (pos - neg): the scale means the same here
    for name in ("zimage", "wan"):
        with served(name, "a red fox") as model:
            x, t = start(model, 1), 0.5
            positive, negative = model(x, t).output, model.with_condition("a dull day")(x, t).output
            guided = model.with_negative("a dull day").with_guidance(3.0)(x, t).output
            torch.testing.assert_close(guided, torch.lerp(negative, positive, 3.0), rtol=1e-4, atol=1e-4)
            with pytest.raises(sf.InputError, match=r"guidance: got 0\.5"):
                model.with_guidance(0.5)


def test_guidance_that_a_network_takes_as_an_input_has_its_own_word():
    pipe = zoo.build("flux2")
    with served("flux2", pipe=pipe) as model, served("flux2", pipe=pipe, embedded_guidance=1.0) as weaker:
        x = start(model, 1)
        assert not torch.allclose(model(x, 0.5).output, weaker(x, 0.5).output)
        with pytest.raises(sf.InputError, match="embedded_guidance"):
            model.with_guidance(4.0)
        with pytest.raises(sf.InputError, match="takes no negative prompt"):
            model.with_negative("blurred")
    with pytest.raises(sf.InputError, match="embedded_guidance: the network of this WanPipeline takes none"):
        served("wan", embedded_guidance=3.0)


def test_pictures_of_the_call_act_and_can_be_changed():
    call = zoo.call_of("flux_kontext")
    with served("flux_kontext") as model:
        x = start(model, 1)
        before = model(x, 0.5).output
        other = model.with_condition({"image": call["image"].rotate(90)})
        assert not torch.allclose(other(x, 0.5).output, before)
        assert torch.equal(model(x, 0.5).output, before)


def test_states_of_video_and_sound_are_one_state_in_a_round_trip():
    with served("ltx2") as model:
        x = start(model, 1)
        assert len(model.server.sizes) == 2
        again = sf.reconstruct(model, x, solver="rex-midpoint", steps=3, t_max=0.98)
        assert float(again.error.max()) < 1e-3
        decoded = model.decode(x)
        assert set(decoded) == {"video", "audio"}
        assert decoded["video"].ndim == 5
        assert model.image_shape == {name: tuple(part.shape[1:]) for name, part in decoded.items()}
        with pytest.raises(sf.InputError, match="video and audio in one"):
            model.encode(decoded["video"])


def test_times_that_are_read_by_the_number_of_the_step_are_those_that_are_asked_for():
    pipe = zoo.build("ltx2_condition")  # the sound's time is audio_timesteps[i]
    told = []
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, k: told.append((float(k["sigma"].max()), float(k["audio_sigma"].max()))), with_kwargs=True
    )
    with served("ltx2_condition", pipe=pipe) as model:
        x = start(model, 1)
        told.clear()
        model(x, 0.3)
        model(x, 0.8)
        expected = {round(1000.0 * model.schedule.sigma(t), 1) for t in (0.3, 0.8)}
    assert all(sound == video for video, sound in told)
    assert {round(video, 1) for video, _ in told} == expected


def test_a_pipeline_that_uses_the_first_state_before_the_last_is_asked_twice_an_iteration():
    with served("ltx2_i2v") as model:
        x, y = start(model, 1), start(model, 1, seed=1)
        a, b = model(x, 0.5).output, model(y, 0.3).output
        assert torch.equal(model(x, 0.5).output, a)
        assert torch.equal(model(y, 0.3).output, b)


@pytest.mark.parametrize("name", ["qwenimage", "wan", "zimage", "flux_kontext"])
def test_the_whole_run_is_that_of_the_scheduler_in_the_pipeline(name):
    pipe = zoo.build(name)
    call = {k: v for k, v in zoo.call_of(name).items() if k not in ("guidance_scale", "true_cfg_scale")}
    if name == "wan":  # UniPC would round the times that its network is told
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    own = pipe.scheduler
    with served(name, pipe=pipe, generator=torch.Generator().manual_seed(3)) as model:
        grid = model.own_grid(4)
        start, words = model.noise.clone(), model.server.signature.guided(1.0, False)
        for solver in ("ees25", "rk4"):
            mine = sf.integrate(model, start.float(), grid, sf.solvers.get(solver)).x
            plain = copy.copy(pipe)
            plain.scheduler = sf.SteadyFlowScheduler.from_config(own.config, solver=solver)
            generator = torch.Generator().manual_seed(3)
            theirs = plain(**{**call, **words}, num_inference_steps=4, generator=generator, output_type="latent")[0]
            theirs = theirs if isinstance(theirs, torch.Tensor) else theirs[0]
            torch.testing.assert_close(mine, theirs.view_as(mine).float(), rtol=1e-5, atol=1e-5)


def test_verbs_work_on_a_served_model(qwen):
    images = 1.8 * torch.rand(2, *qwen.image_shape) - 0.9
    x = qwen.encode(images)
    exact = sf.reconstruct(qwen, x, solver="rex-midpoint", steps=4, t_max=0.98)
    assert float(exact.error.max()) < 1e-3  # random networks magnify rounding
    for method in ("inversion", "flow-edit", "direct", "flow-align", "uni-edit"):
        edited = sf.edit(qwen, x, target="a blue fox", method=method, steps=3, guidance=2.0)
        assert edited.x.isfinite().all()
        assert not torch.allclose(edited.x, x)
    known = {"source": "a red fox", "steps": 3, "grid": "uniform"}
    below = sf.edit(qwen, x, "a blue fox", method="uni-edit", **known)  # the way up is under no prompt, not under this
    other = sf.edit(qwen, x, "a blue fox", method="uni-edit:empty=false", **known)
    assert not torch.allclose(below.x, other.x)
    same = sf.edit(qwen, x, "a red fox", method="flow-align", guidance=3.0, **known)
    torch.testing.assert_close(same.x, x)
    inversion = sf.invert(qwen, x, steps=3)
    assert torch.isfinite(inversion.decode(qwen.with_condition("a dog")).x).all()
    flow = sf.FlowMap(qwen, sf.Grid((0.9, 0.5)), "ddim")
    direction = torch.ones_like(x[:1])
    pushed, step = flow.jvp(x[:1], direction), 1e-2
    difference = (flow(x[:1] + step * direction) - flow(x[:1] - step * direction)) / (2.0 * step)
    torch.testing.assert_close(pushed, difference, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["qwenimage", "wan", "animatediff"])
def test_a_mask_over_pixels_lies_where_the_pixels_are_encoded(name):
    with served(name, "a red fox") as model:
        size = model.image_shape
        white = torch.zeros(1, *size[-2:])
        white[..., : size[-1] // 2] = 1.0
        weights = sf.editing.mask_for(model, white)
        assert weights.shape == (1, *model.shape)
        z = torch.zeros(1, *model.shape)
        moved = reached(model.server, model.request, weights) - reached(model.server, model.request, z)
        columns = moved.abs().flatten(0, -2).amax(0) > 0.0
        half = len(columns) // 2
        assert columns[:half].all()
        assert not columns[half:].any()
        assert bool((moved[..., :half] != 0.0).all())
        edited = sf.edit(model, z, target="a blue fox", steps=2, mask=weights)
        torch.testing.assert_close(edited.x[weights == 0], z[weights == 0], rtol=1e-3, atol=1e-3)


def test_the_inversion_of_a_served_model_is_saved_and_loaded(qwen, tmp_path):
    inversion = sf.invert(qwen, start(qwen), steps=3)
    inversion.save(tmp_path / "kept.safetensors")
    loaded = sf.Inversion.load(tmp_path / "kept.safetensors", qwen)
    torch.testing.assert_close(loaded.decode().x, inversion.decode().x, rtol=1e-5, atol=1e-5)


# ---- refusals


def refused(name, match, **more):
    with pytest.raises(sf.InputError, match=match):
        served(name, **more)


def test_what_is_no_field_is_refused_with_its_cause():
    refused("sd_controlnet", "control_guidance_end: got 0.5, a window of steps", control_guidance_end=0.5)
    refused("sd_controlnet", "control_guidance_start: got 0.9", control_guidance_start=0.9)
    refused("sd3", "skip_guidance_layers: acts in a window", skip_guidance_layers=[0])
    refused("sd_pag", "exchanges the attention of its unet")
    refused("skyreels_df", "steps 3 schedulers|no sample of one path|time of its own|made no step")
    refused("flux_inpaint", r"another step than the present one .to blend in a mask.*sf\.edit\(mask")
    refused("joyimage_edit", "changes the latents between its steps")
    refused("hunyuanimage", "guider with a memory")
    refused("ltx_condition", "time of its own")
    refused("anyflow", "more than steps along one path")
    pipe = zoo.build("flux")
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    refused("flux", r"a cache is on for its transformer.*disable_cache", pipe=pipe)
    pipe = zoo.build("qwenimage")
    pipe.transformer.train()
    pipe.transformer.register_forward_hook(lambda m, a, k, o: (o[0] + torch.randn_like(o[0]), *o[1:]), with_kwargs=True)
    refused("qwenimage", "two answers", pipe=pipe)


def test_guiders_without_a_memory_are_served():
    pipe = zoo.build("hunyuanimage")
    from diffusers.guiders import ClassifierFreeGuidance

    pipe.guider = pipe.ocr_guider = ClassifierFreeGuidance(guidance_scale=3.0)
    with served("hunyuanimage", pipe=pipe) as model:
        assert model(start(model, 1), 0.5).output.isfinite().all()
        with pytest.raises(sf.InputError, match="guider"):
            model.with_guidance(2.0)


def test_arguments_that_are_ours_or_nobodys_are_refused_by_name():
    refused("qwenimage", "num_inference_steps: the verb takes steps", num_inference_steps=5)
    refused("qwenimage", "latents: they are the state", latents=torch.zeros(1))
    with pytest.raises(sf.InputError, match="true_cfg_scale: it is guidance"):
        sf.from_diffusers(zoo.build("qwenimage"), "a fox", true_cfg_scale=4.0)
    with pytest.raises(sf.InputError, match="colour: the call of QwenImagePipeline takes none; it takes"):
        sf.from_diffusers(zoo.build("qwenimage"), "a fox", colour="red")
    with pytest.raises(sf.InputError, match="num_images_per_prompt"):
        sf.from_diffusers(zoo.build("qwenimage"), "a fox", num_images_per_prompt=2)
    with pytest.raises(sf.InputError, match="shift: got"):
        sf.from_diffusers(zoo.build("svd"), shift=2.0, image=zoo.call_of("svd")["image"])
    with pytest.raises(sf.InputError, match="to wrap its network"):
        sf.from_diffusers(object())


def test_a_call_that_the_pipeline_refuses_says_what_the_pipeline_said():
    with pytest.raises(sf.InputError, match=r"the call of QwenImagePipeline failed: ValueError"):
        sf.from_diffusers(zoo.build("qwenimage"), "a fox", height=32, width=32, max_sequence_length=5000)
    with pytest.raises(sf.InputError, match="got a prompt and prompt_embeds"):
        sf.from_diffusers(zoo.build("qwenimage"), "a fox", height=32, width=32, prompt_embeds=torch.zeros(1, 4, 16))


def test_pictures_of_another_shape_are_refused(qwen):
    with pytest.raises(sf.InputError, match=r"images: got shape \(1, 3, 8, 8\)"):
        qwen.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(sf.InputError, match="x: got samples of shape"):
        qwen(torch.zeros(1, 3), 0.5)


def test_transforms_that_do_not_reach_another_thread_are_refused(qwen):
    with pytest.raises(sf.InputError, match=r"torch\.func"):
        torch.func.jvp(lambda x: qwen(x, 0.5).output, (start(qwen, 1),), (start(qwen, 1),))


def test_every_kind_of_request_is_checked_not_only_the_first():
    with served("ace_step") as model:  # its guidance has a momentum
        x = start(model, 1)
        assert model(x, 0.5).output.isfinite().all()
        with pytest.raises(sf.InputError, match="two answers"):
            model.with_guidance(3.0)(x, 0.5)
        assert model(x, 0.5).output.isfinite().all()
    with served("sd_controlnet") as model, pytest.raises(sf.InputError, match=r"control_guidance_end: got 0\.001"):
        model.with_condition({"control_guidance_end": 0.001})(start(model, 1), 500.0)


def test_what_is_changed_after_the_opening_is_noticed():
    pipe = zoo.build("zimage")
    with served("zimage", pipe=pipe) as model:
        x = start(model, 2)
        before = model(x, 0.5).output
        weight = next(pipe.transformer.parameters())
        with torch.no_grad():
            weight.mul_(3.0)
        after = model(x, 0.5).output
        rows = torch.cat([model(x[k : k + 1], 0.5).output for k in range(2)])
        torch.testing.assert_close(after, rows, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(before, after)
        pipe.transformer.train()
        model(x, 0.5)
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
        with pytest.raises(sf.InputError, match="scheduler: that of the pipeline was replaced"):
            model(x, 0.5)
    pipe = zoo.build("flux")
    with served("flux", pipe=pipe) as model:
        x = start(model, 1)
        model(x, 0.5)
        pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))
        with pytest.raises(sf.InputError, match="a cache is on"):
            model(x, 0.5)


def test_weights_that_are_offloaded_module_by_module_are_no_change():
    import accelerate

    plain = served("zimage")
    x = start(plain, 1)
    expected = plain(x, 0.5).output
    plain.close()
    pipe = zoo.build("zimage")
    for part in (pipe.transformer, pipe.text_encoder, pipe.vae):
        accelerate.cpu_offload(part, execution_device=torch.device("cpu"))
    with served("zimage", pipe=pipe) as model:
        assert torch.equal(model(x, 0.5).output, expected)
        lines = dict(model.server._lines)
        model.decode(x)
        assert torch.equal(model(x, 0.5).output, expected)
        assert dict(model.server._lines) == lines


def test_inputs_are_those_that_were_given_whatever_becomes_of_them():
    generator = torch.Generator().manual_seed(5)
    with served("wan_i2v", generator=generator) as model:
        x = start(model, 1)
        expected = model(x, 0.5).output
        torch.randn(100, generator=generator)
        model.close()
        assert torch.equal(model(x, 0.5).output, expected)


@pytest.mark.parametrize("name", ["sd_inpaint9", "flux_fill", "latte"])
def test_samples_that_are_asked_together_are_those_asked_alone(name):
    with served(name) as model:
        x, t = start(model, 2), 500.0 if name != "flux_fill" else 0.5
        together = model(x, t).output
        alone = torch.cat([model(x[k : k + 1], t).output for k in range(2)])
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_the_first_latents_are_noise_where_a_picture_is_given():
    pipe = zoo.build("sd_img2img")
    with pytest.warns(UserWarning, match="image: in StableDiffusionImg2ImgPipeline it is where a run begins"):
        model = served("sd_img2img", pipe=pipe)
    with model:
        assert 0.8 < float(model.noise.std()) < 1.2


def test_a_prompt_is_given_in_one_way():
    with served("zimage", "a fox") as model:
        x = start(model, 1)
        embeds = model.pipe.encode_prompt("seven ships", do_classifier_free_guidance=False, max_sequence_length=96)[0]
        embedded = model.with_condition({"prompt_embeds": embeds})
        ships, fox = embedded(x, 0.5).output, model(x, 0.5).output
        torch.testing.assert_close(ships, model.with_condition("seven ships")(x, 0.5).output, rtol=1e-4, atol=1e-5)
        assert torch.equal(embedded.with_condition("a fox")(x, 0.5).output, fox)
        with pytest.raises(sf.InputError, match="got a prompt and prompt_embeds"):
            model.with_condition({"prompt": "a fox", "prompt_embeds": embeds})


def test_bad_words_are_named():
    with served("qwenimage", "a fox") as model:
        x = start(model, 2)
        for condition, match in (({"prompt": 5}, "prompt: got 5"), ({"height": 64, "width": 64}, "height")):
            with pytest.raises(sf.InputError, match=match):
                model.with_condition(condition)(x, 0.5)
        for t, match in ((torch.ones(3), "3 times for 2 samples"), (torch.ones(2, requires_grad=True), "gradients")):
            with pytest.raises(sf.InputError, match=match):
                model(x, t)
        with pytest.raises(sf.InputError, match="empty batch"):
            model(x[:0], 0.5)
        with pytest.raises(sf.InputError, match="pickle"):
            pickle.dumps(model.server)
        assert copy.deepcopy(model).server is model.server
        both = model.with_condition(["a", "b"]).with_negative(["a", "b", "c"]).with_guidance(2.0)
        with pytest.raises(sf.InputError, match="3 for 2 prompts"):
            both(x, 0.5)
    with pytest.raises(sf.InputError, match="guidance: got 'abc'"):
        sf.from_diffusers(zoo.build("qwenimage"), guidance="abc")
    with pytest.raises(sf.InputError, match=r"shift: got 0\.0"):
        sf.from_diffusers(zoo.build("qwenimage"), served=True, shift=0.0)


def test_asking_from_within_the_call_is_refused_not_waited_for():
    with served("zimage") as model:
        x = start(model, 1)
        model(x, 0.5)
        hook = model.pipe.transformer.register_forward_pre_hook(lambda *a: model(x, 0.3))
        with pytest.raises(sf.InputError, match="from within its pipeline's own call"):
            model(x, 0.5)
        hook.remove()


def test_times_that_are_told_before_the_shift_are_told_so():
    pipe = zoo.build("cogview4")
    told = []
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, k: told.append(float(k["timestep"].flatten()[0])), with_kwargs=True
    )
    with served("cogview4", pipe=pipe) as model:
        grid, x = model.own_grid(4), start(model, 1)
        told.clear()
        for t in grid.times[:4]:
            model(x, t)
    assert told == pytest.approx([1000.0, 667.0, 334.0, 1.0], abs=1.0)


def test_fingerprints_tell_inputs_apart():
    from steadyflow.diffusers._media import digest
    from steadyflow.loading import fingerprint

    pairs = (
        ({"scale": 0.5}, {"scale": 1.0}),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(1), torch.zeros(1, dtype=torch.int32)),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
        ([1, 2], [1, 3]),
    )
    for a, b in pairs:
        assert digest(a) == digest(a)
        assert digest(a) != digest(b)
    with pytest.raises(sf.InputError, match="cannot be compared"):
        digest(object())
    pipe = zoo.build("flux")
    prints = []
    for scale in (0.5, 1.0):
        with served("flux", pipe=pipe, joint_attention_kwargs={"scale": scale}) as model:
            prints.append(fingerprint(model))
    assert prints[0] != prints[1]


# ---- the end


def test_closing_ends_every_thread_and_the_model_opens_again():
    model = served("zimage")
    x = start(model, 1)
    first = model(x, 0.5).output
    assert threads()
    model.close()
    assert not threads()
    model.close()
    assert torch.equal(model(x, 0.5).output, first)
    del model
    gc.collect()
    assert not threads()


def test_an_error_in_the_network_comes_back_and_the_model_goes_on():
    model = served("zimage")
    x = start(model, 1)
    first = model(x, 0.5).output

    def fails(*args, **kwargs):
        raise RuntimeError("out of something")

    hook = model.pipe.transformer.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of something"):
        model(x, 0.5)
    hook.remove()
    assert torch.equal(model(x, 0.5).output, first)
    model.close()


def test_an_interrupt_leaves_nothing_behind():
    model = served("zimage")
    x = start(model, 1)
    first = model(x, 0.5).output
    seen = threading.Event()

    def interrupts(*args):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as the kernel may choose another thread
        seen.wait(10.0)

    hook = model.pipe.transformer.register_forward_pre_hook(interrupts)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            model(x, 0.5)
    finally:
        seen.set()
        signal.signal(signal.SIGINT, before)
    hook.remove()
    for thread in threads():
        thread.join(5.0)
    assert torch.equal(model(x, 0.5).output, first)
    model.close()


def test_many_openings_leave_no_thread_and_no_memory(qwen):
    def task_count():
        return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()

    x = start(qwen, 1)
    qwen(x, 0.5)
    qwen.close()
    before = None
    for k in range(40):  # benchmarks/served.py counts to a thousand
        qwen(x, 0.5)
        qwen.close()
        if k == 10:
            gc.collect()
            before = task_count(), len(gc.get_objects())
    gc.collect()
    assert task_count() <= before[0]
    assert len(gc.get_objects()) < before[1] + 2000


def test_settings_of_the_asking_thread_reach_the_pipeline(qwen):
    x = start(qwen, 1)
    plain = qwen(x, 0.5).output
    with torch.autocast("cpu", torch.bfloat16):
        rough = qwen(x, 0.5).output
    assert not torch.equal(plain, rough)
    torch.testing.assert_close(plain, rough.to(plain), rtol=0.2, atol=0.2)
    assert torch.equal(qwen(x, 0.5).output, plain)
    with torch.inference_mode():
        assert torch.equal(qwen(x, 0.5).output, plain)
    assert torch.equal(qwen(x, 0.5).output, plain)


def test_the_pipeline_itself_is_left_as_it_was(qwen):
    scheduler, state = qwen.pipe.scheduler, torch.random.get_rng_state()
    other = qwen.with_condition("a new prompt")
    other(start(qwen, 1), 0.5)
    assert qwen.pipe.scheduler is scheduler
    assert isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_serves_several_threads_of_the_user(qwen):
    x = start(qwen, 1)
    expected = [qwen(x, t).output for t in (0.2, 0.8)]
    found = {}

    def ask(k, t):
        found[k] = [qwen(x, t).output for _ in range(5)]

    asking = [threading.Thread(target=ask, args=(k, t)) for k, t in enumerate((0.2, 0.8))]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    for k, answers in found.items():
        assert all(torch.equal(answer, expected[k]) for answer in answers)


def test_special_paths_are_their_own():
    for name, kind in (("cosmos2", "VE"), ("svd", "ContinuousVP"), ("sana_sprint", "TrigFlow")):
        with served(name) as model:
            assert type(model.schedule).__name__ == kind
    with served("mochi", pipe=_turned(True)) as turned, served("mochi", pipe=_turned(False)) as model:
        assert type(turned.schedule) is RectifiedFlow
        x = start(model, 1)
        # the network's time grows towards the data, and its output is minus the velocity
        torch.testing.assert_close(turned(x, 0.25).output, -model(x, 0.75).output, rtol=1e-5, atol=1e-6)


def _turned(back):
    pipe = zoo.build("mochi")
    config = {**pipe.scheduler.config, "invert_sigmas": back}
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    return pipe
