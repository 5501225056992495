"""The numbers of a pipeline: our schedulers and models give those of diffusers' own, and refuse what they cannot."""

import warnings

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import pipelines  # noqa: E402
import steadyflow as sf  # noqa: E402
from steadyflow.diffusers import SteadyFlowScheduler, SteadyScheduler  # noqa: E402

STEPS = 5
GUIDED = {"guidance_scale": 4.0}
ROUNDING = 2e-5


def seeded(n=0):
    return torch.Generator().manual_seed(n)


@pytest.fixture(scope="module")
def built():
    return {title: pipelines.in_mode(title) for title in pipelines.MODES}


def solver_of(scheduler):
    """Our name for the method of one of diffusers' schedulers, or None."""
    return {
        "DDIMScheduler": "ddim", "EulerDiscreteScheduler": "euler", "FlowMatchEulerDiscreteScheduler": "euler",
        "LCMScheduler": "lcm", "DDPMScheduler": "ddpm",
    }[type(scheduler).__name__]  # fmt: skip


def ours(scheduler, **options):
    kind = SteadyFlowScheduler if "Flow" in type(scheduler).__name__ else SteadyScheduler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.from_config(scheduler.config, **{"solver": solver_of(scheduler), **options})


def apart(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def against(pipe, call, scheduler, **more):
    """How far our scheduler's result is from that of diffusers' scheduler in the same pipeline."""
    before = pipe.scheduler
    try:
        pipe.scheduler = scheduler
        expected = pipelines.run(pipe, call, STEPS, **more)
        pipe.scheduler = ours(scheduler)
        return apart(pipelines.run(pipe, call, STEPS, **more), expected)
    finally:
        pipe.scheduler = before


@pytest.mark.parametrize("title", list(pipelines.MODES))
def test_our_scheduler_gives_the_numbers_of_the_pipelines_own(built, title):
    pipe, call, _ = built[title]
    guided = {} if "prompt" not in call or title.startswith("Flux") else GUIDED
    assert against(pipe, call, pipe.scheduler, **guided) < ROUNDING
    if guided:
        assert against(pipe, call, pipe.scheduler, guidance_scale=1.0) < ROUNDING
        if "Latent" not in title:
            assert against(pipe, call, pipe.scheduler, negative_prompt="a dog", **GUIDED) < ROUNDING


@pytest.mark.parametrize("title", ["FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"])
def test_flux_with_a_constant_shift_too(built, title):
    pipe, call, _ = built[title]
    for shift in (1.0, 3.0):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False)
        assert against(pipe, call, scheduler) < ROUNDING


@pytest.mark.parametrize(
    "title", [t for t, (name, _) in pipelines.MODES.items() if name in ("sd", "sdxl", "refiner", "controlnet")]
)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("placement", [None, "use_karras_sigmas", "use_exponential_sigmas"])
def test_eulers_scheduler_too_with_any_spacing(built, title, spacing, placement):
    pipe, call, _ = built[title]
    options = {"timestep_spacing": spacing, "prediction_type": "v_prediction" if spacing == "trailing" else "epsilon"}
    if placement is not None:
        options[placement] = True
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **options
    )
    assert against(pipe, call, scheduler, **GUIDED) < 5e-5


@pytest.mark.parametrize("title", list(pipelines.MODES))
def test_a_model_over_a_pipeline_gives_its_numbers_or_says_that_it_cannot(built, title):
    pipe, call, side = built[title]
    name, mode = pipelines.MODES[title]
    if mode == "control":
        with pytest.raises(sf.InputError, match="StableDiffusionControlNetPipeline"):
            sf.from_diffusers(pipe, "a cat")
        return
    if mode is not None:
        return  # the model of a picture's pipeline is that of the text's; see below
    before, solver = pipe.scheduler, solver_of(pipe.scheduler)
    size = {"height": side, "width": side}
    for guidance in (1.0, 4.0):
        if name in ("unconditional", "ddpm"):
            model, more = sf.from_diffusers(pipe), {}
        elif name == "flux":
            model, more = sf.from_diffusers(pipe, "a cat", negative_prompt="", guidance=guidance, **size), {
                "true_cfg_scale": guidance, "negative_prompt": "",
            }  # fmt: skip
        elif name == "lcm":
            model, more = (
                sf.from_diffusers(pipe, "a cat", embedded_guidance=guidance, **size),
                {"guidance_scale": guidance},
            )
        else:
            model, more = sf.from_diffusers(pipe, "a cat", guidance=guidance, **size), {"guidance_scale": guidance}
        x = torch.randn(1, *model.shape, generator=seeded())
        if solver in ("ddpm", "lcm"):  # their noise is fresh: the deterministic method on the same steps
            pipe.scheduler, method = ours(before, solver="ddim"), "ddim"
        else:
            method = solver
        try:
            latents = {} if name in ("unconditional", "ddpm") else {"latents": pipelines.packed(name, x)}
            expected = pipelines.run(pipe, call, STEPS, **latents, **more)
        finally:
            pipe.scheduler = before
        if solver == "euler":
            method = sf.Euler(coordinates="flow")
        found = sf.sample(model, x=x, solver=method, grid=model.own_grid(STEPS)).x
        if name in ("unconditional", "ddpm"):
            found = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        assert apart(pipelines.packed(name, found), expected) < ROUNDING


def test_what_guidance_starts_from_is_what_the_pipeline_takes(built):
    for title in ("StableDiffusionXLPipeline", "StableDiffusionPipeline"):
        pipe, call, _ = built[title]
        for forced in (True, False) if "XL" in title else (None,):
            if forced is not None:
                pipe.register_to_config(force_zeros_for_empty_prompt=forced)
            for negative in (None, "", "a dog"):
                model = sf.from_diffusers(pipe, "a cat", negative_prompt=negative, guidance=6.0)
                x = torch.randn(1, *model.shape, generator=seeded())
                more = {} if negative is None else {"negative_prompt": negative}
                expected = pipelines.run(pipe, call, STEPS, latents=x, guidance_scale=6.0, **more)
                found = sf.sample(model, x=x, solver="ddim", grid=model.own_grid(STEPS)).x
                assert apart(found, expected) < 1e-4
            again = model.with_negative(None)
            assert set(again.null) == set(model.null)
        if "XL" in title:
            pipe.register_to_config(force_zeros_for_empty_prompt=True)


def test_the_refiners_model_is_its_pipelines(built):
    pipe, call, _ = built["StableDiffusionXLImg2ImgPipeline (refiner)"]
    model = sf.from_diffusers(pipe, "a cat", guidance=3.0)
    seen = []
    real = pipe.scheduler.step

    def noting(output, t, sample, **options):
        seen.append((output, t, sample))
        return real(output, t, sample, **options)

    pipe.scheduler.step = noting
    try:
        pipelines.run(pipe, call, STEPS, guidance_scale=3.0)
    finally:
        del pipe.scheduler.step
    for output, t, sample in seen:
        assert torch.allclose(model(sample, float(t)).output, output, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("title", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"])
def test_in_half_precision_to_its_rounding(title, dtype):
    pipe, call, _ = pipelines.in_mode(title)
    pipelines.smooth_in_time(pipe).to(dtype)
    more = {} if title.startswith("Flux") else GUIDED
    limit = {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    assert against(pipe, call, pipe.scheduler, **more) < limit


def test_statistics_and_scale_of_the_vae_are_the_pipelines(built):
    pipe, call, _ = built["StableDiffusionXLPipeline"]
    latents = torch.randn(1, 4, 16, 16, generator=seeded())
    old = {k: pipe.vae.config[k] for k in ("latents_mean", "latents_std")}
    try:
        for mean, std in (([1.0, 2.0, 3.0, 4.0], [2.0, 0.5, 2.0, 1.0]), (None, None)):
            pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
            codec = sf.from_diffusers(pipe, "a cat").codec
            ends = []

            def end(output, t, sample, ends=ends, **options):
                ends.append(latents)
                return (latents,)

            real, pipe.scheduler.step = pipe.scheduler.step, end
            try:
                picture = torch.from_numpy(pipelines.run(pipe, call, 1, output_type="np").numpy()).permute(0, 3, 1, 2)
            finally:
                pipe.scheduler.step = real
            assert torch.allclose((codec.decode(latents) / 2 + 0.5).clamp(0, 1), picture, atol=1e-5)
            picture = torch.rand(1, 3, 32, 32, generator=seeded()) * 2 - 1
            moments = pipe.vae.encode(picture).latent_dist
            other = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
            moments.std.zero_() if hasattr(moments, "std") else None
            ours_, theirs = codec.encode(picture), []
            for k in range(400):
                theirs.append(other.prepare_latents(
                    picture, None, 1, 1, torch.float32, "cpu", seeded(k), False,
                ))  # fmt: skip
            spread = torch.cat(theirs).std(0)
            off = (torch.cat(theirs).mean(0) - ours_[0]).abs()
            assert bool((off <= 6.0 * spread / 20.0 + 1e-5).all())  # six standard errors: 1e-6 over the picture
    finally:
        pipe.vae.register_to_config(**old)


def test_a_vae_that_overflows_in_half_is_run_in_full(built):
    pipe, _, _ = pipelines.in_mode("StableDiffusionXLPipeline")
    pipe.to(torch.float16)
    codec = sf.from_diffusers(pipe, "a cat").codec
    types = []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda m, a: types.append(a[0].dtype))
    for forced, expected in ((True, torch.float32), (False, torch.float16)):
        pipe.vae.register_to_config(force_upcast=forced)
        codec.decode(torch.zeros(1, 4, 16, 16))
        assert types.pop() == expected
        assert pipe.vae.dtype == torch.float16
    hook.remove()


REFUSED_FIELDS = {
    "class_embed_type": "timestep", "num_class_embeds": 10, "addition_embed_type": "text",
    "encoder_hid_dim_type": "text_proj",
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(REFUSED_FIELDS))
def test_a_network_that_takes_further_inputs_is_refused_by_the_name_of_the_field(field):
    pipe, _, _ = pipelines.in_mode("StableDiffusionPipeline")
    pipe.unet.register_to_config(**{field: REFUSED_FIELDS[field]})
    with pytest.raises(sf.InputError, match=f"has to be served: {field}"):
        sf.from_diffusers(pipe, "a cat", served=False)


def test_pipelines_with_other_inputs_are_refused_at_once_and_say_what_to_do():
    pipe, _, _ = pipelines.in_mode("StableDiffusionPipeline")
    wide = diffusers.UNet2DConditionModel.from_config(pipe.unet.config, in_channels=9)
    inpaint = diffusers.StableDiffusionInpaintPipeline(
        **{**pipe.components, "unet": wide}, requires_safety_checker=False
    )
    with pytest.raises(sf.InputError, match=r"call of StableDiffusionInpaintPipeline failed.*in_channels: "):
        sf.from_diffusers(inpaint, "a cat")
    doubled = diffusers.UNet2DConditionModel.from_config(pipe.unet.config, out_channels=8)
    pipe.unet = doubled
    with pytest.raises(sf.InputError, match="out_channels"):
        sf.from_diffusers(pipe, "a cat")
    flux, _, _ = pipelines.in_mode("FluxPipeline")
    fill = diffusers.FluxTransformer2DModel.from_config(flux.transformer.config, in_channels=12, out_channels=4)
    flux.transformer = fill
    with pytest.raises(sf.InputError, match="in_channels"):
        sf.from_diffusers(flux, "a cat")

    class Mine(diffusers.StableDiffusionPipeline):
        pass

    plain, _, _ = pipelines.in_mode("StableDiffusionPipeline")
    mine = Mine(**plain.components, requires_safety_checker=False)
    assert sf.from_diffusers(mine, "a cat").name == "Mine"

    class Watched(diffusers.StableDiffusionPipeline):
        def __init__(self, vae, text_encoder, tokenizer, unet, scheduler, watcher, safety_checker=None,
                     feature_extractor=None, image_encoder=None, requires_safety_checker=False):  # fmt: skip
            super().__init__(vae, text_encoder, tokenizer, unet, scheduler, None, None, None, False)
            self.register_modules(watcher=watcher)

    parts = {k: plain.components[k] for k in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    watched = Watched(**parts, watcher=torch.nn.Linear(2, 2))
    with pytest.raises(sf.InputError, match=r"has to be served: .*has a watcher"):
        sf.from_diffusers(watched, "a cat", served=False)
    plain.unet.encoder_hid_proj = torch.nn.Linear(2, 2)
    with pytest.raises(sf.InputError, match="IP-Adapter"):
        sf.from_diffusers(plain, "a cat", served=False)


def test_a_learned_variance_is_left_aside():
    pipe, _, _ = pipelines.in_mode("DDPMPipeline")
    wide = diffusers.UNet2DModel.from_config(pipe.unet.config, out_channels=6).eval().requires_grad_(False)
    pipe.unet, pipe.scheduler = wide, diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    model = sf.from_diffusers(pipe)
    x = torch.randn(1, 3, 16, 16, generator=seeded())
    assert torch.allclose(model(x, 500.0).output, wide(x, 500.0).sample[:, :3], atol=1e-6)
    pipe.scheduler = diffusers.DDPMScheduler(clip_sample=False)
    with pytest.raises(sf.InputError, match="variance_type"):
        sf.from_diffusers(pipe)


def test_arguments_that_a_pipeline_cannot_honour_are_refused():
    pipe, _, _ = pipelines.in_mode("StableDiffusionPipeline")
    for word, value in (("embedded_guidance", 3.5), ("shift", 3.0)):
        with pytest.raises(sf.InputError, match=word):
            sf.from_diffusers(pipe, "a cat", **{word: value})
    plain, _, _ = pipelines.in_mode("DDIMPipeline")
    for word, value in (("prompt", "a cat"), ("negative_prompt", ""), ("guidance", 2.0)):
        with pytest.raises(sf.InputError, match=word):
            sf.from_diffusers(plain, **{word: value})


def test_shifts_of_the_config_place_named_grids():
    pipe, _, _ = pipelines.in_mode("StableDiffusion3Pipeline")
    pipe.scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    assert sf.from_diffusers(pipe, "a cat", height=32, width=32).schedule.shift == 5.0
    assert sf.from_diffusers(pipe, "a cat", height=32, width=32, shift=2.0).schedule.shift == 2.0
    pipe.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(sf.InputError, match="over a table of betas"):
        sf.from_diffusers(pipe, "a cat", height=32, width=32)
    flux, _, _ = pipelines.in_mode("FluxPipeline")
    shifts = [sf.from_diffusers(flux, "a cat", height=n, width=n).schedule.shift for n in (8, 64)]
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    expected = [torch.tensor(calculate_shift((n // 2) ** 2)).exp().item() for n in (8, 64)]
    assert shifts == pytest.approx(expected, rel=1e-6)


def test_eta_is_refused_unless_it_is_the_solvers(built):
    pipe, call, _ = built["StableDiffusionPipeline"]
    before = pipe.scheduler
    try:
        pipe.scheduler = ours(before)
        with pytest.raises(sf.InputError, match="eta"):
            pipelines.run(pipe, call, 2, eta=0.5)
        pipe.scheduler = before
        expected = pipelines.run(pipe, call, STEPS, eta=0.5)
        pipe.scheduler = ours(before, solver_options={"eta": 0.5})
        assert apart(pipelines.run(pipe, call, STEPS, eta=0.5), expected) < 1e-4
    finally:
        pipe.scheduler = before
