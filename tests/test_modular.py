"""The block for Modular Diffusers: what it replaces is the loop of every family, or it is refused by name."""

import importlib
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

diffusers = pytest.importorskip("diffusers", minversion="0.42")
pytest.importorskip("diffusers.modular_pipelines.flux3")

from diffusers import (  # noqa: E402
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks  # noqa: E402

import steadyflow as sf  # noqa: E402
from steadyflow.diffusers import SteadyFlowScheduler, SteadyScheduler  # noqa: E402
from steadyflow.diffusers.modular import SteadyDenoise  # noqa: E402
from zoo import modular  # noqa: E402
from zoo.modular import CASES  # noqa: E402

ALL = [pytest.param(name, marks=() if case.quick else pytest.mark.families) for name, case in CASES.items()]
PAGE = Path(__file__).parents[1] / "docs" / "diffusers.md"
NO_LOOP = ("cosmos", "helios", "minimax_h3", "minimax_music3", "wan_animate_2")  # their loops have no after_denoiser


@cache
def components(name):
    return modular.components_of(CASES[name])


def run(name, solver=None, scheduler=None, call=None, seed=0, **options):
    """A run of a case: by its own loop, or by a solver."""
    parts = {**components(name), **({} if scheduler is None else {"scheduler": scheduler})}
    exchange = None if solver is None else lambda block: SteadyDenoise(block, solver, **options)
    return modular.run(CASES[name], parts, exchange, seed, **(call or {}))


@cache
def loop_of(name):
    """What a case's own loop returns."""
    return run(name)


def change(first, second):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_ddim_is_the_loop_itself_and_other_solvers_run(name):
    own = loop_of(name)
    assert change(run(name, "ddim"), own) < 1e-5
    if CASES[name].only_one_call:
        with pytest.raises(sf.InputError, match="tells its network where every step ends"):
            run(name, "ees25")
        return
    held = []
    better = run(name, "ees25", corrections=[lambda info: held.append((info.done, info.x.shape))])
    assert all(x.isfinite().all() for x in better)
    assert change(better, own) > 1e-3
    assert [done for done, _ in held] == list(range(1, len(held) + 1))
    assert len({shape for _, shape in held}) == 1
    assert change(run(name, "ees25"), better) == 0.0
    assert all(x.isfinite().all() for x in run(name, "rk4"))
    assert change(run(name), own) == 0.0, "the pipeline is not as it was"


def with_seed(name, solver, seed, **call):
    def exchange(block):
        return SteadyDenoise(block, solver, seed=seed)

    return modular.run(CASES[name], components(name), exchange, **call)


@pytest.mark.parametrize(
    "name", ["flux", *(pytest.param(name, marks=pytest.mark.families) for name in ("ltx2", "sdxl_inpaint"))]
)
@pytest.mark.parametrize("solver", ["dpmpp-sde", "ddpm"])
def test_the_noise_of_stochastic_solvers_is_that_of_their_seed(name, solver):
    first = with_seed(name, solver, 5)
    assert all(x.isfinite().all() for x in first)
    assert change(with_seed(name, solver, 5), first) == 0.0
    assert change(with_seed(name, solver, 6), first) > 1e-3


def pushed(info):
    return info.x + 1.0


HELD = ("sdxl_inpaint", "ltx_i2v", "ltx2_i2v")


@pytest.mark.parametrize("name", ["qwenimage_inpaint", *(pytest.param(k, marks=pytest.mark.families) for k in HELD)])
def test_what_is_outside_of_a_mask_and_a_first_frame_stay(name):
    own = loop_of(name)
    moved = run(name, "ddim", corrections=[pushed])  # the loop has the last word
    kept = torch.isclose(moved[0], own[0], atol=1e-6)
    assert 0.05 < kept.float().mean() < 0.95
    reversible = ("rex-rk4",) if "inpaint" in name else ()  # whose coordinates are singular where a flow begins
    for solver in ("ees25", "dpmpp-2m", *reversible):
        ours = run(name, solver)
        assert torch.allclose(ours[0][kept], own[0][kept], atol=1e-6), solver
        assert change(ours, own) > 1e-4


@pytest.mark.families
def test_a_correction_sees_video_and_sound_as_one_state():
    video, sound = loop_of("ltx2")
    seen = []
    run("ltx2", "ees25", corrections=[lambda info: seen.append(info.x.shape)])
    assert set(seen) == {(1, video.numel() + sound.numel())}


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("sdxl", DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)),
        ("sdxl", DDIMScheduler(beta_schedule="scaled_linear", set_alpha_to_one=False)),
        pytest.param(
            "sdxl_inpaint",
            DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False),
            marks=pytest.mark.families,
        ),
        ("sdxl", DDIMScheduler(beta_schedule="scaled_linear", clip_sample=True, prediction_type="v_prediction")),
        ("sdxl", DPMSolverMultistepScheduler(beta_schedule="scaled_linear", solver_order=1, use_karras_sigmas=True)),
        ("sdxl", SteadyScheduler(solver="ddim", beta_schedule="scaled_linear", steps_offset=1)),
        (
            "wan",
            DPMSolverMultistepScheduler(
                use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", solver_order=1
            ),
        ),
        ("flux", SteadyFlowScheduler(solver="ddim", shift=2.0)),
        ("zimage", FlowMatchEulerDiscreteScheduler(shift=2.0, shift_terminal=0.1)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_steps_lie_and_end_where_the_scheduler_lays_them(name, scheduler):
    bound = 3e-5 if scheduler.config.get("clip_sample") else 1e-5  # rounding, where little noise is left
    assert change(run(name, "ddim", scheduler), run(name, scheduler=scheduler)) < bound


def refused(name, match, solver="ees25", **options):
    with pytest.raises(sf.InputError, match=match):
        run(name, solver, **options)


def test_schedulers_off_the_path_are_refused_by_name():
    refused("sdxl", "EulerDiscreteScheduler are scaled", scheduler=EulerDiscreteScheduler())
    refused("wan", "FlowMatchHeunDiscreteScheduler lists times twice", scheduler=FlowMatchHeunDiscreteScheduler())
    refused("sdxl", "this SteadyScheduler calls the network several times", scheduler=SteadyScheduler())
    refused("wan", "invert_sigmas|inverted", scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    edm = FlowMatchEulerDiscreteScheduler()
    edm.register_to_config(sigma_data=1.0, sigma_min=0.002, sigma_max=80.0)
    refused("zimage", "'edm', neither a flow nor a table", scheduler=edm)


def test_what_the_solver_takes_the_place_of_is_refused_by_name():
    refused("sdxl", "eta: an option of the scheduler's step", call={"eta": 0.5})


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
def test_a_guider_with_a_memory_takes_solvers_of_one_call_a_step(solver):
    guider = diffusers.AdaptiveProjectedGuidance(guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.5)
    parts = {**components("qwenimage"), "guider": guider}

    def go(solver=None):
        return modular.run(CASES["qwenimage"], parts, solver and (lambda block: SteadyDenoise(block, solver)))

    own, ours = go(), go(solver)
    assert change(ours, own) < 1e-5 if solver == "ddim" else change(ours, own) > 1e-5
    with pytest.raises(sf.InputError, match="guider: AdaptiveProjectedGuidance has adaptive_projected_guidance_mom"):
        go("rk4")


def test_a_network_with_a_cache_takes_solvers_of_one_call_a_step():
    parts = modular.components_of(CASES["ltx"])
    parts["transformer"].enable_cache(diffusers.FirstBlockCacheConfig(threshold=1e-6))
    with pytest.raises(sf.InputError, match="transformer: LTXVideoTransformer3DModel has a cache"):
        modular.run(CASES["ltx"], parts, lambda block: SteadyDenoise(block, "heun"))


@pytest.mark.parametrize("name", ["qwenimage", *(pytest.param(k, marks=pytest.mark.families) for k in ("ltx2", "wan"))])
def test_several_samples_and_half_precision(name):
    several = {"num_videos_per_prompt" if name in ("ltx2", "wan") else "num_images_per_prompt": 2}
    own = run(name, call=several)
    assert len(own[0]) == 2
    assert change(run(name, "ddim", call=several), own) < 1e-5
    half = modular.components_of(CASES[name])
    for part in half.values():
        if isinstance(part, torch.nn.Module):
            part.to(torch.bfloat16)
    own = modular.run(CASES[name], half)
    ours = modular.run(CASES[name], half, lambda block: SteadyDenoise(block, "ddim"))
    assert [x.dtype for x in ours] == [x.dtype for x in own]
    assert change(ours, own) < 0.05


def test_loops_with_blocks_that_move_the_state_before_the_step_are_refused():
    class Moving:
        expected_components = expected_configs = inputs = intermediate_outputs = ()

        def __call__(self, components, values, i, t):
            values.latents = 0.9 * values.latents
            return components, values

    def exchange(block):
        block.sub_blocks["moving"] = Moving()
        block.sub_blocks.move_to_end("moving", last=False)
        return SteadyDenoise(block, "ddim")

    with pytest.raises(sf.InputError, match="FluxDenoiseStep changes its state before 'after_denoiser'"):
        modular.run(CASES["flux"], components("flux"), exchange)


@pytest.mark.families
def test_a_network_of_mean_flows_takes_ddim():
    case = CASES["hunyuan15_i2v"]
    parts = modular.components_of(case)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = parts["transformer"]
        parts["transformer"] = type(network)(**{**network.config, "use_meanflow": True}).eval().requires_grad_(False)
    own = modular.run(case, parts)
    assert change(modular.run(case, parts, lambda block: SteadyDenoise(block, "ddim")), own) < 1e-5
    for solver in ("ees25", "dpmpp-2m"):
        with pytest.raises(sf.InputError, match="tells its network where every step ends"):
            modular.run(case, parts, lambda block, solver=solver: SteadyDenoise(block, solver))


@pytest.mark.families
def test_sound_at_other_times_than_the_video_is_refused():
    def exchange(block):
        steady = SteadyDenoise(block, "ddim")
        denoise = steady._denoise

        def shifted(components, values):
            values.audio_scheduler = FlowMatchEulerDiscreteScheduler(shift=9.0)
            values.audio_scheduler.set_timesteps(len(values.timesteps))
            return denoise(components, values)

        steady._denoise = shifted
        return steady

    with pytest.raises(sf.InputError, match="audio_scheduler: has other times"):
        modular.run(CASES["ltx2"], components("ltx2"), exchange)


@pytest.mark.families
def test_a_loop_that_is_refused_or_fails_is_as_it_was():
    def fail(info):
        raise RuntimeError("stop")

    own = run("ltx2")
    with pytest.raises(RuntimeError, match="stop"):
        run("ltx2", "ddim", corrections=[fail])
    assert change(run("ltx2"), own) == 0.0


@pytest.mark.families
@pytest.mark.parametrize("name", ["echo", "echo_picture"])
def test_echo_is_denoised_along_its_own_noise_levels(name):
    """Echo's own loop draws new noise at every level: without it, it makes the steps of DDIM."""
    sigmas = [1.0, 0.7, 0.4, 0.0]

    class Determined:
        expected_components = expected_configs = intermediate_outputs = ()

        def __init__(self, block):
            self.inputs = block.inputs

        def __call__(self, components, values, i, sigma):
            after = values.sigmas[i + 1]
            for state, estimate in (("latents", "predicted_video_x0"), ("audio_latents", "predicted_audio_x0")):
                x, x0 = getattr(values, state), getattr(values, estimate)
                setattr(values, state, x0 * (1.0 - after) + (x - (1.0 - sigma) * x0) / sigma * after)
            return components, values

    def determined(block):
        block.sub_blocks["after_denoiser"] = Determined(block.sub_blocks["after_denoiser"])
        return block

    own = modular.run(CASES[name], components(name), determined, sigmas=sigmas)
    ours = run(name, "ddim", call={"sigmas": sigmas})
    assert change(ours, own) < 1e-5
    assert all(x.isfinite().all() for x in with_seed(name, "lcm", 0, sigmas=sigmas))
    if name == "echo_picture":
        frame = CASES[name].call()["first_frame_latents"]
        for solver in ("ddim", "rk4", "lcm"):
            assert torch.equal(with_seed(name, solver, 0, sigmas=sigmas)[0][:, :, :1], frame)


def loops_in(family):
    """The classes of denoising loops in a family of diffusers."""
    module = importlib.import_module(f"diffusers.modular_pipelines.{family}.denoise")
    return {
        name: form
        for name, form in vars(module).items()
        if isinstance(form, type) and issubclass(form, LoopSequentialPipelineBlocks) and form.block_names
    }


@pytest.mark.parametrize("family", NO_LOOP)
def test_loops_of_another_kind_are_refused_by_name(family):
    loops = loops_in(family)
    for name, form in loops.items():
        assert "after_denoiser" not in list(form.block_names), name
        with pytest.raises(sf.InputError, match=f"got {name}, expected a pipeline's denoising loop"):
            SteadyDenoise(form())
    with pytest.raises(sf.InputError, match="denoising loop"):
        SteadyDenoise(SimpleNamespace())


def test_the_page_says_what_is_tested():
    section = PAGE.read_text().split("### Modular Diffusers")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    told = {family: works.split(", ") for family, works, _ in rows[2:] if works}
    forms: dict[str, list[str]] = {}
    for case in CASES.values():
        forms.setdefault(case.family, []).append(case.form)
    assert told == forms
    assert len(forms) == 17
