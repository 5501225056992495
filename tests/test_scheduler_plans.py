"""However pipelines cut timesteps, the steps, their times and the last state are those of the plan."""

import copy
import itertools
import warnings

import pytest
import torch

from combinations import every_second

diffusers = pytest.importorskip("diffusers")

import pipelines  # noqa: E402
import steadyflow as sf  # noqa: E402
from steadyflow.diffusers import SteadyFlowScheduler, SteadyScheduler  # noqa: E402

SEVERAL = {"heun": 2, "dpm-2": 2, "ees25": 3, "rk4": 4, "rex-midpoint": 4, "edict": 2, "unipc": 1, "dpmpp-2m": 1}
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def seeded(n=0):
    return torch.Generator().manual_seed(n)


@pytest.fixture(scope="module")
def bases():
    return {name: pipelines.build(name) for name in ("sd", "sdxl", "sd3", "flux")}


OTHERS = {
    ("sd", "image"): "StableDiffusionImg2ImgPipeline",
    ("sdxl", "image"): "StableDiffusionXLImg2ImgPipeline",
    ("sd3", "image"): "StableDiffusion3Img2ImgPipeline",
    ("flux", "image"): "FluxImg2ImgPipeline",
    ("sd", "mask"): "StableDiffusionInpaintPipeline",
    ("sdxl", "mask"): "StableDiffusionXLInpaintPipeline",
    ("sd3", "mask"): "StableDiffusion3InpaintPipeline",
    ("flux", "mask"): "FluxInpaintPipeline",
}


def sibling(bases, name, mode):
    pipe = getattr(diffusers, OTHERS[name, mode]).from_pipe(bases[name])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def side(name):
    return 8 if name == "flux" else 32


def put(pipe, name, config, solver, **options):
    kind = SteadyFlowScheduler if name in ("sd3", "flux") else SteadyScheduler
    if name in ("sd3", "flux") and solver in ("edict", "rex-midpoint"):
        options.setdefault("sigma_max", 0.999)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.scheduler = kind.from_config(config, solver=solver, **options)


def asked(pipe, name, solver, config, **call):
    """The times at which the network was called, and the result."""
    put(pipe, name, config, solver)
    times, net = [], pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    def note(module, args, kwargs):
        t = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        times.append(float(t.reshape(-1)[0]) * (1000.0 if name == "flux" else 1.0))

    hook = net.register_forward_pre_hook(note, with_kwargs=True)
    size = {"height": side(name), "width": side(name)} if name in ("flux", "sd3") or "mask_image" in call else {}
    extra = {"max_sequence_length": 77} if name == "flux" else {}
    guidance = {} if name == "flux" else {"guidance_scale": 1.0}
    try:
        found = pipe("a cat", generator=seeded(), output_type="latent", **size, **extra, **guidance, **call).images
    finally:
        hook.remove()
    return times, found


def starts(times, calls):
    return [round(t, 2) for t in times[::calls]]


@pytest.mark.parametrize(
    ("name", "strength"), every_second(["sd", "sdxl", "sd3", "flux"], [0.25, 0.3, 0.5, 0.7, 0.75, 0.9])
)
def test_strength_is_the_same_for_solvers_of_any_number_of_calls(bases, name, strength):
    pipe, config = sibling(bases, name, "image"), bases[name].scheduler.config
    image = torch.rand(1, 3, side(name), side(name), generator=seeded())
    own, _ = asked(pipe, name, "ddim", config, image=image, strength=strength, num_inference_steps=6)
    for solver, calls in SEVERAL.items():
        if solver == "dpm-2" and name == "flux":
            continue  # see below
        times, found = asked(pipe, name, solver, config, image=image, strength=strength, num_inference_steps=6)
        assert found.isfinite().all()
        if solver == "dpm-2" and name == "sd3":  # pure noise and pure data take a step of one call each
            assert len(times) == 2 * len(own) - 1 - (len(own) == 6)
            continue
        assert len(times) == calls * len(own), solver
        if solver not in ("rex-midpoint", "edict"):  # at 0.999 instead of pure noise
            assert starts(times, calls) == pytest.approx([round(t, 2) for t in own], abs=0.02), solver


@pytest.mark.parametrize("strength", [0.3, 0.55, 0.8])
def test_strength_with_listed_sigmas_and_timesteps(bases, strength):
    lists = {
        ("sdxl", "timesteps"): [901, 801, 601, 401, 251, 101],
        ("sdxl", "sigmas"): [10.0, 5.0, 2.0, 1.0, 0.5, 0.1],
        ("sd3", "sigmas"): [1.0, 0.8, 0.6, 0.4, 0.2, 0.1],
        ("flux", "sigmas"): [1.0, 0.8, 0.6, 0.4, 0.2, 0.1],
    }
    for (name, word), values in lists.items():
        pipe, config = sibling(bases, name, "image"), bases[name].scheduler.config
        image = torch.rand(1, 3, side(name), side(name), generator=seeded())
        call = {"image": image, "strength": strength, word: values}
        own, _ = asked(pipe, name, "ddim", config, **call)
        for solver in ("heun", "ees25", "rk4"):
            times, _ = asked(pipe, name, solver, config, **call)
            assert starts(times, SEVERAL[solver]) == pytest.approx(own, abs=0.02), (name, word, solver)


def test_a_cut_that_is_no_whole_number_of_steps_is_refused_before_the_first_call(bases):
    pipe, config = sibling(bases, "flux", "image"), bases["flux"].scheduler.config
    image, called = torch.rand(1, 3, 8, 8, generator=seeded()), []
    hook = pipe.transformer.register_forward_pre_hook(lambda m, a, k: called.append(1), with_kwargs=True)
    with pytest.raises(sf.InputError, match="no whole number of the 6 steps"):
        asked(pipe, "flux", "dpm-2", config, image=image, strength=0.7, num_inference_steps=6)
    hook.remove()
    assert not called
    pipe, config = sibling(bases, "sd", "image"), diffusers.DDIMScheduler(clip_sample=False, **VP).config  # ends clean
    image = torch.rand(1, 3, 32, 32, generator=seeded())
    for strength in (0.3, 0.5, 0.6, 0.85):
        call = {"image": image, "strength": strength, "timesteps": [901, 801, 601, 401, 251, 101]}
        own, _ = asked(pipe, "sd", "ddim", config, **call)
        try:
            times, _ = asked(pipe, "sd", "ees25", config, **call)
        except sf.InputError as error:
            assert "no whole number" in str(error)  # noqa: PT017  # either is right
        else:
            assert times[0] == own[0]


def test_a_config_that_ends_clean_has_steps_of_equal_calls_and_one_last_call():
    for source in (diffusers.DDIMScheduler(clip_sample=False, **VP), diffusers.EulerDiscreteScheduler(**VP)):
        for solver, calls in SEVERAL.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scheduler = SteadyScheduler.from_config(source.config, solver=solver)
            scheduler.set_timesteps(8)
            assert scheduler.grid.clean
            assert scheduler.order == calls
            assert len(scheduler.timesteps) == 7 * calls + 1
            assert scheduler.num_inference_steps == 8
            assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
            assert scheduler.sigmas[-1] == 0.0


def shares():
    """Half of all combinations, in which any two values meet; the others, and shares between, are slow."""
    for share, spacing, ends in itertools.product((0.2, 0.35, 0.5, 0.8), ("leading", "trailing"), (True, False)):
        quick = share in (0.35, 0.8) and (share == 0.8) ^ (spacing == "trailing") ^ ends
        yield pytest.param(share, spacing, ends, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("share", "spacing", "ends"), list(shares()))
def test_a_base_and_a_refiner_share_one_run(bases, share, spacing, ends):
    base, refiner = bases["sdxl"], sibling(bases, "sdxl", "image")
    config, names = base.scheduler.config, {"timestep_spacing": spacing, "set_alpha_to_one": ends}
    latents = torch.randn(1, 4, 16, 16, generator=seeded())
    call = {"num_inference_steps": 8, "output_type": "latent", "guidance_scale": 1.0}
    try:
        for solver, calls in SEVERAL.items():
            if solver in ("unipc", "dpmpp-2m", "rex-midpoint", "edict"):
                continue  # their history, or their second state, does not cross
            put(base, "sdxl", config, solver, **names)
            whole = base("a cat", latents=latents.clone(), **call).images
            times = []
            hook = base.unet.register_forward_pre_hook(lambda m, a, times=times: times.append(float(a[1])))
            half = base("a cat", latents=latents.clone(), denoising_end=share, **call).images
            put(refiner, "sdxl", config, solver, **names)
            found = refiner("a cat", image=half, denoising_start=share, **call).images
            hook.remove()
            full = copy.deepcopy(base.scheduler)
            full.set_timesteps(8)
            assert times == full.timesteps.tolist(), solver
            assert torch.allclose(found, whole, rtol=1e-4, atol=1e-4 * whole.abs().max().item()), (solver, calls)
    finally:
        base.scheduler = diffusers.DDIMScheduler.from_config(config)


def test_a_listed_run_may_begin_at_any_of_its_steps():
    scheduler = SteadyScheduler(solver="ees25", **VP)  # ends clean: 13 calls of 5 steps
    x = torch.randn(1, 1, 2, 2, generator=seeded())
    for k in range(5):
        scheduler.set_timesteps(timesteps=[901, 701, 501, 301, 101])
        first = scheduler.timesteps.tolist().index([901, 701, 501, 301, 101][k])
        for t in list(scheduler.timesteps)[first:]:
            x = scheduler.step(0.1 * x, t, x).prev_sample
        assert scheduler.step_index == 13


def test_a_loop_of_ones_own_may_begin_at_any_step_without_saying_so():
    for solver, calls in SEVERAL.items():
        scheduler = SteadyScheduler(solver=solver, set_alpha_to_one=False, **VP)
        scheduler.set_timesteps(10)
        expected, x = None, torch.randn(1, 4, 8, 8, generator=seeded())
        for told in (True, False):
            one, state = copy.deepcopy(scheduler), x
            if told:
                one.set_begin_index(5 * one.order)
            for t in one.timesteps[5 * one.order :]:
                state = one.step(0.1 * state, t, state).prev_sample
            assert one.step_index == 10 * calls
            if expected is not None:
                assert torch.equal(state, expected)
            expected = state


def test_a_loop_that_begins_where_no_step_begins_is_refused():
    scheduler = SteadyScheduler(solver="ees25", set_alpha_to_one=False, **VP)
    scheduler.set_timesteps(5)
    x = torch.zeros(1, 4, 8, 8)
    inner = scheduler.timesteps[4]
    with pytest.raises(sf.InputError, match="no step begins at timestep"):
        scheduler.step(x, inner, x)
    with pytest.raises(sf.InputError, match="steps begin at 801, 601"):
        scheduler.step(x, 700, x)


def test_methods_whose_first_step_has_further_calls_refuse_to_begin_in_the_middle():
    uneven = [
        name
        for name in sf.solvers.names()
        if sf.solvers.get(name).properties.startup_evaluations and sf.solvers.get(name).properties.evaluations
    ]
    assert uneven
    for name in uneven:
        scheduler = SteadyScheduler(solver=name, set_alpha_to_one=False, **VP)
        scheduler.set_timesteps(6)
        with pytest.raises(sf.InputError, match="cannot begin in the middle"):
            scheduler.timesteps[2 * scheduler.order :]
        with pytest.raises(sf.InputError, match="cannot begin in the middle"):
            scheduler.set_begin_index(2)


def test_methods_that_cannot_begin_at_pure_noise_say_so_before_the_first_call_and_may_begin_later(bases):
    pipe, config = sibling(bases, "sd3", "image"), bases["sd3"].scheduler.config
    image = torch.rand(1, 3, 32, 32, generator=seeded())
    pipe.scheduler = SteadyFlowScheduler.from_config(config, solver="edict")
    call = {"image": image, "num_inference_steps": 10, "height": 32, "width": 32, "guidance_scale": 1.0}
    assert pipe("a cat", strength=0.3, output_type="latent", generator=seeded(), **call).images.isfinite().all()
    called = []
    hook = pipe.transformer.register_forward_pre_hook(lambda m, a, k: called.append(1), with_kwargs=True)
    with pytest.raises(sf.SingularTimeError, match=r"sigma_max=0\.98"):
        pipe("a cat", strength=1.0, output_type="latent", generator=seeded(), **call)
    hook.remove()
    assert not called


def test_noise_levels_above_the_table_are_refused_and_rounded_ones_taken():
    from diffusers.schedulers import AysSchedules

    scheduler = SteadyScheduler(solver="dpmpp-2m", **VP)
    for name in ("StableDiffusionSigmas", "StableDiffusionXLSigmas"):
        scheduler.set_timesteps(sigmas=AysSchedules[name])
        assert scheduler.timesteps[0] == 999
        assert len(scheduler.timesteps) == len(AysSchedules[name]) - 1
    for given in ({"sigmas": [20.0, 5.0]}, {"timesteps": [1000, 500]}, {"timesteps": [-1]}, {"timesteps": []}):
        with pytest.raises(sf.InputError):
            scheduler.set_timesteps(**given)
    with pytest.raises(sf.InputError, match="falling"):
        scheduler.set_timesteps(timesteps=[100, 500])
    with pytest.raises(sf.InputError, match="give one of"):
        scheduler.set_timesteps(5, sigmas=[5.0, 1.0])
    with pytest.raises(sf.InputError, match="strength is not taken"):
        scheduler.set_timesteps(5, strength=0.5)
    flow = SteadyFlowScheduler(solver="ddim")
    flow.set_timesteps(5)
    without = flow.timesteps.tolist()
    flow.set_timesteps(5, mu=1.0)  # FLUX's pipelines hand it over also where the config shifts by a constant
    assert flow.timesteps.tolist() == without


def test_a_run_over_its_own_list_is_the_run():
    sources = (
        diffusers.DDIMScheduler(clip_sample=False), diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
        diffusers.EulerDiscreteScheduler(timestep_spacing="leading", final_sigmas_type="sigma_min"),
    )  # fmt: skip
    for source in sources:
        for solver in ("ddim", "dpmpp-2m"):
            named, listed = (SteadyScheduler.from_config(source.config, solver=solver) for _ in range(2))
            named.set_timesteps(10)
            source.set_timesteps(10)
            for given in ({"timesteps": [float(t) for t in named.timesteps]}, {"sigmas": named.sigmas.tolist()}):
                listed.set_timesteps(**given)
                assert listed.timesteps.tolist() == pytest.approx(named.timesteps.tolist(), abs=1e-3)
                assert listed.grid.clean == named.grid.clean
                assert listed.init_noise_sigma == pytest.approx(named.init_noise_sigma, rel=1e-6)
                ends = []
                for one in (named, listed):
                    one.set_begin_index(0)
                    again = copy.deepcopy(one)
                    x = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
                    for t in again.timesteps:
                        x = again.step(torch.tanh(x), t, x).prev_sample
                    ends.append(x)
                assert torch.allclose(*ends, rtol=1e-5, atol=1e-5)


def test_timesteps_behave_as_a_tensor_and_survive_copies():
    import pickle

    scheduler = SteadyScheduler(solver="ees25", **VP)
    scheduler.set_timesteps(4)
    times = scheduler.timesteps
    for other in (copy.deepcopy(times), pickle.loads(pickle.dumps(times)), times.to("cpu"), times.cpu()):
        assert torch.equal(other + 0, times + 0)
        assert torch.equal(other[4:] + 0, times[6:] + 0)  # to the next step's beginning
    assert type(times + 0) is torch.Tensor
    assert type(times[0]) is torch.Tensor
    assert all(type(t) is torch.Tensor for t in times)
    assert times[:1].repeat(2).tolist() == [times[0].item()] * 2
    assert len(list(times[:1])) == 3  # a loop over a peek makes the whole step
    assert len(times[:4]) == 6
    assert (times < times[3].item()).sum() == len(times) - 6
    assert times[-1:].tolist() == [times[-1].item()]


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])  # SD3's inpainting takes no network as small as ours
def test_inpainting_works_with_the_default_solver_and_keeps_the_history_of_multistep_ones(bases, name):
    pipe, config = sibling(bases, name, "mask"), bases[name].scheduler.config
    n = side(name)
    image, mask = torch.rand(1, 3, n, n, generator=seeded()), torch.zeros(1, 1, n, n)
    mask[..., n // 2 :] = 1
    call = {"image": image, "mask_image": mask, "strength": 1.0, "num_inference_steps": 8}
    results = {}
    for solver in ("ddim", "dpmpp-2m", "unipc", "deis"):
        _, results[solver] = asked(pipe, name, solver, config, **call)
    for solver in ("dpmpp-2m", "unipc", "deis"):
        apart = (results[solver] - results["ddim"]).abs().max()
        assert apart > 1e-3 * results["ddim"].abs().max(), solver
    with pytest.raises(sf.InputError, match="name a solver of one call a step"):
        asked(pipe, name, "rk4", config, **call)
    kind = SteadyFlowScheduler if name in ("sd3", "flux") else SteadyScheduler
    pipe.scheduler = kind.from_config(config)
    calls = []
    net = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    hook = net.register_forward_pre_hook(lambda m, a, k: calls.append(1), with_kwargs=True)
    size = {"height": n, "width": n}
    extra = {"max_sequence_length": 77} if name == "flux" else {"guidance_scale": 1.0}
    with pytest.warns(UserWarning, match="each network call is a step of 'dpmpp-2m'"):
        found = pipe("a cat", generator=seeded(), output_type="latent", **size, **call, **extra).images
    hook.remove()
    assert len(calls) == len(pipe.scheduler.timesteps)
    assert found.isfinite().all()
    pipe.scheduler.set_timesteps(4, **({"mu": 0.5} if name == "flux" else {}))
    assert pipe.scheduler.solver.name == "ees25"  # the next run begins as planned


def test_call_by_call_is_the_named_method_over_the_calls_times():
    """Where the latents change at every call, the default is dpmpp-2m over the planned times of the calls."""
    default = SteadyScheduler(set_alpha_to_one=False, **VP)
    default.set_timesteps(3)
    x = first = torch.randn(1, 4, 4, 4, generator=seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, t in enumerate(default.timesteps):
            x = default.step(0.2 * torch.tanh(x), t, x).prev_sample
            x = x + 0.1 * (i < len(default.timesteps) - 1)
    listed = SteadyScheduler(solver="dpmpp-2m", set_alpha_to_one=False, **VP)
    listed.set_timesteps(timesteps=default.timesteps.tolist())
    y = first
    for i, t in enumerate(listed.timesteps):
        y = listed.step(0.2 * torch.tanh(y), t, y).prev_sample
        y = y + 0.1 * (i < len(listed.timesteps) - 1)
        if i == 0:
            listed = SteadyScheduler(solver="dpmpp-2m", set_alpha_to_one=False, **VP)
            listed.set_timesteps(timesteps=default.timesteps.tolist())
            listed.set_begin_index(1)
    assert torch.allclose(x, y, atol=1e-5)


def test_calls_that_are_not_those_of_the_plan_are_refused():
    for solver in ("dpmpp-2m", "ees25"):
        scheduler = SteadyScheduler(solver=solver, set_alpha_to_one=False, **VP)
        scheduler.set_timesteps(10)
        x = torch.zeros(1, 1, 2, 2)
        x = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
        with pytest.raises(sf.InputError, match="planned is"):
            scheduler.step(x, scheduler.timesteps[2], x)
    scheduler.set_timesteps(100)  # where calls lie closer than the rounding of bfloat16
    with pytest.raises(sf.InputError, match="no step begins"):
        scheduler.step(x, scheduler.timesteps[1], x)
    scheduler = SteadyScheduler(solver="ddpm", set_alpha_to_one=False, **VP)
    scheduler.set_timesteps(4)
    x = torch.zeros(3, 1, 2, 2)
    x = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    with pytest.raises(sf.InputError, match="within a run of"):
        scheduler.step(x[:2], scheduler.timesteps[1], x[:2])
    for wrong in ([None], [seeded(), None], 5):
        scheduler.set_timesteps(4)
        with pytest.raises((sf.InputError, TypeError), match=r"generator|iterable"):
            scheduler.step(x, scheduler.timesteps[0], x, generator=wrong)


def test_a_cut_that_leaves_no_step_is_refused(bases):
    pipe = sibling(bases, "sdxl", "image")
    image = torch.rand(1, 3, 32, 32, generator=seeded())
    source = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **{**VP, "steps_offset": 0})
    with pytest.raises(sf.InputError, match=r"leaves no step|add_noise"):
        asked(pipe, "sdxl", "ddim", source.config, image=image, strength=0.1, num_inference_steps=10)
    scheduler = SteadyScheduler(solver="rk4", set_alpha_to_one=False, **VP)
    scheduler.set_timesteps(5)
    with pytest.raises(sf.InputError, match="leaves no step"):
        scheduler.timesteps[-3:]
    with pytest.raises(sf.InputError, match="asked to begin at entry 500"):
        scheduler.set_begin_index(500)
    x = torch.zeros(2, 1, 2, 2)
    for times in (torch.tensor([]), torch.tensor([5000.0]), torch.tensor([-1.0]), torch.tensor([1.0, 2.0, 3.0])):
        with pytest.raises(sf.InputError, match="add_noise"):
            scheduler.add_noise(x, x, times)


@pytest.mark.parametrize(
    "given",
    [
        {"timesteps": [999.0, float("nan"), 10.0]}, {"timesteps": [999, -5]}, {"timesteps": [1200, 500]},
        {"timesteps": ["a"]}, {"timesteps": 5}, {"timesteps": [[999, 500]]}, {"sigmas": [1.0, float("nan")]},
        {"sigmas": [0.0]}, {"sigmas": [None]}, {"sigmas": [1.0, -0.5]}, {"sigmas": []},
    ],
)  # fmt: skip
def test_lists_that_are_no_noise_levels_are_refused_by_both_schedulers(given):
    for kind in (SteadyFlowScheduler, SteadyScheduler):
        if kind is SteadyScheduler and given == {"sigmas": [1.0, -0.5]}:
            continue  # a level below the table's is its end
        with pytest.raises(sf.InputError, match=r"sigmas|timesteps"):
            kind(solver="ddim").set_timesteps(**given)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_an_inversion_is_carried_over_whatever_the_spacing(spacing):
    source = diffusers.EulerDiscreteScheduler(timestep_spacing=spacing, **VP)
    from steadyflow.diffusers import SteadyInverseScheduler

    def loop(scheduler, x):
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * torch.tanh(x) + 1e-4 * float(t), t, x).prev_sample
        return x

    image = torch.randn(1, 1, 4, 4, generator=seeded())
    inverse = SteadyInverseScheduler.from_config(source.config, solver="rex-midpoint", timestep_spacing=spacing)
    forward = SteadyScheduler.from_config(
        source.config, solver="rex-midpoint", timestep_spacing=spacing, set_alpha_to_one=False
    )
    inverse.set_timesteps(8)
    loop(inverse, image)
    start = forward.carry(inverse)
    forward.set_timesteps(8)
    assert forward.init_noise_sigma == 1.0  # pipelines multiply given latents by it
    assert torch.allclose(loop(forward, start * forward.init_noise_sigma), image, atol=1e-4)
    forward.set_timesteps(8)
    with pytest.raises(sf.InputError, match="not those that `carry` returned"):
        loop(forward, start * 0.998)


@pytest.fixture(scope="module")
def cogview4():
    import zoo

    return zoo.build("cogview4")


def told_by(pipe, scheduler, **call):
    """What the network of a pipeline is told, and the result."""
    import zoo

    pipe.scheduler, told = scheduler, []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    try:
        found = pipe(**{**zoo.call_of("cogview4"), "output_type": "latent", **call}, generator=seeded()).images
    finally:
        hook.remove()
    assert told[::2] == told[1::2]  # with the prompt and without
    return told[::2], found


def shifted(sigma, mu):
    return mu * sigma / (1.0 + (mu - 1.0) * sigma)


@pytest.mark.parametrize("lists", ["its own", "sigmas alone", "both"])
@pytest.mark.parametrize("solver", ["ddim", "euler", "dpmpp-2m"])
def test_a_list_of_timesteps_beside_sigmas_is_what_the_network_is_told(cogview4, solver, lists):
    stock = cogview4.scheduler
    call = {
        "its own": {"num_inference_steps": 5},
        "sigmas alone": {"sigmas": [1.0, 0.7, 0.2], "num_inference_steps": 3},
        "both": {"timesteps": [900, 500, 100], "sigmas": [1.0, 0.7, 0.2]},
    }[lists]
    told, wanted = told_by(cogview4, stock, **call)
    try:
        ours, found = told_by(cogview4, SteadyFlowScheduler.from_config(stock.config, solver=solver), **call)
    finally:
        cogview4.scheduler = stock
    assert ours == told
    if solver != "dpmpp-2m":
        assert torch.allclose(found, wanted, rtol=0.0, atol=2e-5)


LEAST = 1e-3
"""What `sigmas` says of a call at no noise at all."""


@pytest.mark.parametrize("solver", ["heun", "ees25", "rk4"])
def test_between_two_lists_that_agree_the_network_is_told_by_their_rule(cogview4, solver):
    stock, calls = cogview4.scheduler, SEVERAL[solver]
    begins, _ = told_by(cogview4, stock, num_inference_steps=4)
    try:
        told, found = told_by(
            cogview4, SteadyFlowScheduler.from_config(stock.config, solver=solver), num_inference_steps=4
        )
        levels = cogview4.scheduler.sigmas.tolist()
    finally:
        cogview4.scheduler = stock
    assert found.isfinite().all()
    assert told[::calls] == begins
    assert len(told) == calls * len(begins)
    assert all(b <= a for a, b in itertools.pairwise(told))
    mu = levels[calls] * (1000.0 - begins[1]) / (begins[1] * (1.0 - levels[calls]))  # of the second step
    assert mu > 0.0
    assert levels[:-1] == pytest.approx([shifted(t / 1000.0, mu) or LEAST for t in told], abs=1e-5)


def test_two_lists_may_name_the_sigmas_after_the_shift():
    scheduler = SteadyFlowScheduler(shift=3.0, solver="rk4")
    given = [1.0, 0.6, 0.3]
    scheduler.set_timesteps(sigmas=given, timesteps=[1000.0 * shifted(s, 3.0) for s in given])
    told = [t or 1000.0 * LEAST for t in scheduler.timesteps.tolist()]
    assert told == pytest.approx((1000.0 * scheduler.sigmas[:-1]).tolist(), abs=1e-3)
    times = torch.tensor([float(scheduler.timesteps[1])])
    noisy = scheduler.add_noise(torch.zeros(1, 2), torch.ones(1, 2), times)
    assert noisy[0, 0] == pytest.approx(float(scheduler.sigmas[1]), abs=1e-6)


def test_noise_is_added_at_the_time_of_the_path_where_two_lists_name_the_unshifted_sigmas():
    scheduler = SteadyFlowScheduler(shift=3.0, solver="rk4")
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.3], timesteps=[1000, 600, 300])
    for time, level in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        noisy = scheduler.add_noise(torch.zeros(1, 2), torch.ones(1, 2), time)
        assert (float(noisy[0, 0]) or LEAST) == pytest.approx(float(level), abs=1e-6)


def test_a_bound_on_sigma_moves_what_the_network_is_told_by_the_rule_of_the_lists():
    scheduler = SteadyFlowScheduler(shift=3.0, solver="edict", sigma_max=0.9)
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.3], timesteps=[1000, 600, 300])
    assert float(scheduler.sigmas[0]) == pytest.approx(0.9)
    assert shifted(float(scheduler.timesteps[0]) / 1000.0, 3.0) == pytest.approx(0.9)


def test_two_lists_that_contradict_each_other_are_refused_where_the_solver_calls_between_them():
    lists = {"sigmas": [1.0, 0.6, 0.3], "timesteps": [900, 500, 100]}
    for solver in ("heun", "ees25", "rk4"):
        with pytest.raises(sf.InputError, match=f"timesteps are those of neither .* {solver!r}"):
            SteadyFlowScheduler(shift=3.0, solver=solver).set_timesteps(**lists)
    scheduler = SteadyFlowScheduler(shift=3.0, solver="dpmpp-2m")
    scheduler.set_timesteps(**lists)
    assert scheduler.timesteps.tolist() == [900.0, 500.0, 100.0]
    with pytest.raises(sf.InputError, match="3 timesteps and 2 sigmas"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5], timesteps=[1000, 500, 100])
    with pytest.raises(sf.InputError, match="falling"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5], timesteps=[500, 1000])
    with pytest.raises(sf.InputError, match="give one of"):
        scheduler.set_timesteps(3, sigmas=[1.0, 0.5], timesteps=[1000, 500])
