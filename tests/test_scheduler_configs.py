"""A scheduler's config is a contract: every field of every class of diffusers is honoured, or refused by its name."""

import ast
import copy
import inspect
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from diffusers import SchedulerMixin  # noqa: E402
from diffusers.configuration_utils import FrozenDict  # noqa: E402

import pipelines  # noqa: E402
import steadyflow as sf  # noqa: E402
from steadyflow.diffusers import SteadyFlowScheduler, SteadyInverseScheduler, SteadyScheduler  # noqa: E402
from steadyflow.diffusers._families import FAMILIES  # noqa: E402
from steadyflow.diffusers._identify import parameters_of  # noqa: E402
from steadyflow.diffusers._paths import path_of  # noqa: E402
from steadyflow.diffusers._sources import (  # noqa: E402
    FIELDS,
    NETWORK_FIELDS,
    PIPELINE_FIELDS,
    REFUSED,
    SOURCES,
    VAE_FIELDS,
)

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def all_classes():
    found = {}
    for name in dir(diffusers):
        if "Pipeline" in name:  # some are listed and missing where onnx or k-diffusion is installed
            continue
        kind = getattr(diffusers, name)
        if inspect.isclass(kind) and issubclass(kind, SchedulerMixin) and kind is not SchedulerMixin:
            found[name] = kind
    return found


CLASSES = all_classes()
TABLES = [name for name, source in SOURCES.items() if source.kind != "flow"]
FLOWS = [name for name, source in SOURCES.items() if source.kind != "table"]
FLOW_OPTIONS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def source_of(name, flow=False, **options):
    base = (FLOW_OPTIONS if SOURCES[name].kind == "either" else {}) if flow else SD
    known = inspect.signature(CLASSES[name].__init__).parameters
    return CLASSES[name](**{k: v for k, v in {**base, **options}.items() if k in known})


def ours(source, flow=False, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = SteadyFlowScheduler if flow else SteadyScheduler
        return kind.from_config(source.config, **{"solver": "ddim", **options})


def test_every_scheduler_class_of_diffusers_is_followed_or_refused_with_a_reason():
    assert not set(SOURCES) & set(REFUSED)
    assert set(CLASSES) - set(SOURCES) - set(REFUSED) == set(), "new in this diffusers: add to _configs"


def test_every_field_of_every_followed_class_is_known():
    fields = {field for name in SOURCES for field in parameters_of(name)}
    assert fields - set(FIELDS) == set(), "new in this diffusers: add to _configs.FIELDS"
    assert set(FIELDS) - fields == set(), "no class has these any more"


INSIDE = {
    "act_fn", "add_attention", "addition_embed_type_num_heads", "addition_time_embed_dim", "attention_head_dim",
    "attention_type", "attn_norm_num_groups", "axes_dims_rope", "block_out_channels", "caption_projection_dim",
    "center_input_sample",
    "class_embeddings_concat", "conv_in_kernel", "conv_out_kernel", "cross_attention_dim", "cross_attention_norm",
    "decoder_block_out_channels", "down_block_types", "downsample_padding", "downsample_type", "dropout",
    "dual_attention_layers", "dual_cross_attention", "encoder_block_out_channels", "encoder_hid_dim",
    "flip_sin_to_cos", "freq_shift", "joint_attention_dim", "latent_magnitude", "latent_shift", "layers_per_block",
    "mid_block_add_attention", "mid_block_only_cross_attention", "mid_block_scale_factor", "mid_block_type",
    "norm_eps", "norm_num_groups", "num_attention_heads", "num_decoder_blocks", "num_encoder_blocks", "num_layers",
    "num_single_layers", "num_train_timesteps", "only_cross_attention", "out_channels", "pooled_projection_dim",
    "pos_embed_max_size", "projection_class_embeddings_input_dim", "qk_norm", "resnet_out_scale_factor",
    "resnet_skip_time_act", "resnet_time_scale_shift", "reverse_transformer_layers_per_block", "sample_size",
    "time_embedding_act_fn", "time_embedding_dim", "time_embedding_type", "timestep_post_act",
    "transformer_layers_per_block", "up_block_types", "upcast_attention", "upsample_fn", "upsample_type",
    "upsampling_scaling_factor", "use_linear_projection", "use_post_quant_conv", "use_quant_conv",
}  # fmt: skip
"""Fields that act within a network or a VAE, whoever calls it."""
OF_PICTURES = {"requires_safety_checker", "add_watermarker"}
"""Fields of pipelines that change the decoded picture only."""


def test_every_field_of_networks_vaes_and_pipelines_is_known():
    networks = ("UNet2DConditionModel", "UNet2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel")
    for names, known in ((networks, NETWORK_FIELDS), (("AutoencoderKL", "AutoencoderTiny"), VAE_FIELDS)):
        for name in names:
            fields = set(parameters_of(name))
            assert fields - set(known) - INSIDE == set(), f"new in this diffusers: {name}"
    for name in FAMILIES:
        parts = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
        settings = {p.name for p in parts if isinstance(p.default, bool | int | float | str)}
        assert settings - set(PIPELINE_FIELDS) - OF_PICTURES == set(), f"new in this diffusers: {name}"


def test_configs_are_read_in_one_place():
    folder = Path(sf.__file__).parent / "diffusers"
    reading = {
        path.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "config"
    }
    # the planner reads the scheduler that it has made, `_configured` our own
    assert reading == {"_configs.py", "_planner.py", "_configured.py"}


@pytest.mark.parametrize("name", sorted(set(REFUSED) & set(CLASSES)))
def test_a_refused_class_is_named_with_the_reason(name):
    config = {k: p.default for k, p in inspect.signature(CLASSES[name].__init__).parameters.items() if k != "self"}
    for kind in (SteadyScheduler, SteadyFlowScheduler):
        with pytest.raises(sf.InputError, match=name):
            kind.from_config({**config, "_class_name": name})


def test_a_class_and_a_field_that_nobody_knows_are_refused_by_name():
    config = dict(diffusers.DDIMScheduler(**SD).config)
    with pytest.raises(sf.InputError, match="sharpness=3"):
        SteadyScheduler.from_config({k: v for k, v in config.items() if k[0] != "_"} | {"sharpness": 3, "new": 1})
    with pytest.raises(sf.InputError, match="sharpness"):
        SteadyScheduler.from_config(config, sharpness=3)
    with pytest.raises(sf.InputError, match="AutoencoderKL is not known"):
        SteadyScheduler.from_config({"_class_name": "AutoencoderKL", "beta_start": 1e-4})
    made, unused = SteadyScheduler.from_config(config, return_unused_kwargs=True, sharpness=3)
    assert unused == {"sharpness": 3}
    assert made.config.beta_start == 0.00085


# --- what each field does, told by what diffusers' own scheduler does with it ---------------------------------------

VALUES = {
    "num_train_timesteps": 500, "beta_start": 0.0005, "beta_end": 0.03, "beta_schedule": "squaredcos_cap_v2",
    "trained_betas": np.linspace(1e-4, 0.03, 1000).tolist(), "rescale_betas_zero_snr": True, "snr_shift_scale": 2.0,
    "timestep_spacing": "trailing", "steps_offset": 3, "set_alpha_to_one": False, "final_sigmas_type": "sigma_min",
    "use_karras_sigmas": True, "use_exponential_sigmas": True, "use_beta_sigmas": True, "use_lu_lambdas": True,
    "lambda_min_clipped": -3.0, "interpolation_type": "log_linear", "flow_shift": 3.0, "shift": 3.0,
    "shift_terminal": 0.1, "use_dynamic_shifting": True, "time_shift_type": "linear", "sigma_min": 0.05,
    "sigma_max": 9.0, "original_inference_steps": 40,
}  # fmt: skip
"""A value other than the default for every field that places steps or makes the path."""
REFUSED_VALUES = {
    "timestep_type": "continuous", "invert_sigmas": True, "use_flow_sigmas": True, "scale_factors": [0.5, 1.0],
}  # fmt: skip


def outputs(scheduler, x, scale):
    """A whole loop with a network that is no fixed point of any method."""
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.tanh(1.3 * seen) + scale * float(t) / 1000, t, x, return_dict=False)[0]
    return x


ONE_CALL = ["DDIMScheduler", "DDIMParallelScheduler", "CogVideoXDDIMScheduler", "EulerDiscreteScheduler"]


@pytest.mark.parametrize("field", [f for f in VALUES if f not in ("flow_shift", "shift", "shift_terminal")])
@pytest.mark.parametrize("name", ONE_CALL)
@torch.no_grad()
def test_a_field_changes_our_run_as_it_changes_diffusers_own(name, field):
    known = inspect.signature(CLASSES[name].__init__).parameters
    if field not in known or field in ("use_dynamic_shifting", "time_shift_type", "original_inference_steps"):
        return
    options = {field: VALUES[field], "clip_sample": False}
    if field in ("rescale_betas_zero_snr", "snr_shift_scale"):
        options["prediction_type"] = "v_prediction"
    if field in ("sigma_min", "sigma_max"):
        options["use_karras_sigmas"] = True
    if field == "interpolation_type":
        options["timestep_spacing"] = "linspace"  # the other ways to lay timesteps do not fit its noise levels
    if field == "steps_offset":
        options["timestep_spacing"] = "leading"
    source = source_of(name, **{"timestep_spacing": "leading", **options})
    scheduler = ours(source)
    for s in (source, scheduler):
        s.set_timesteps(8)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs = outputs(source, x * source.init_noise_sigma, 0.1)
    found = outputs(scheduler, x * scheduler.init_noise_sigma, 0.1)
    assert torch.allclose(found, theirs, rtol=2e-4, atol=2e-4 * theirs.abs().max().item()), (found - theirs).abs().max()
    if field not in ("steps_offset", "num_train_timesteps", "lambda_min_clipped"):
        plain = ours(source_of(name, **{"timestep_spacing": "leading", **options, field: known[field].default}))
        plain.set_timesteps(8)
        assert (outputs(plain, x * plain.init_noise_sigma, 0.1) - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", [n for n in TABLES if "Inverse" not in n and "timestep_spacing" in parameters_of(n)])
def test_steps_begin_where_the_class_itself_steps(name, spacing):
    offset = 1 if spacing == "leading" else 0
    source = source_of(name, timestep_spacing=spacing, steps_offset=offset, clip_sample=False, skip_prk_steps=True)
    scheduler = ours(source)
    source.set_timesteps(9)
    scheduler.set_timesteps(9)
    times = [float(t) for t in source.timesteps]
    if name == "HeunDiscreteScheduler":
        times = [times[0], *times[1::2]]
    elif source.order == 2:
        times = times[::2]
    times = list(dict.fromkeys(times))
    if times[-1] == 0.0 and not scheduler.grid.clean:
        times.pop()  # a step from the end to the end
    assert scheduler.timesteps.tolist() == pytest.approx(times, abs=1e-2)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
@pytest.mark.parametrize(
    "placement", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"]
)
def test_placements_by_noise_level_are_the_classes_own(name, placement):
    if placement not in parameters_of(name):
        return
    source = source_of(name, **{placement: True})
    scheduler = ours(source)
    source.set_timesteps(7)
    scheduler.set_timesteps(7)
    times, levels = [float(t) for t in source.timesteps], [float(s) for s in source.sigmas]
    if levels[-1] == pytest.approx(levels[-2]):
        times, levels = times[:-1], levels[:-1]  # a step from the end to the end
    assert scheduler.timesteps.tolist() == times
    assert scheduler.sigmas.tolist() == pytest.approx(levels, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in FLOWS if "Inverse" not in n and "Heun" not in n and "LTX" not in n])
@pytest.mark.parametrize(
    "field", ["flow_shift", "shift", "shift_terminal", "use_karras_sigmas", "use_dynamic_shifting"]
)
def test_shifts_under_all_their_names(name, field):
    takes_mu = "mu" in inspect.signature(CLASSES[name].set_timesteps).parameters
    changes_its_config = name.startswith("DPMSolver") and field == "use_dynamic_shifting"
    if field not in parameters_of(name) or (field == "use_dynamic_shifting" and not takes_mu) or changes_its_config:
        return
    mu = {"mu": 0.7} if field == "use_dynamic_shifting" else {}
    source = source_of(name, flow=True, **{field: VALUES[field]})
    source.set_timesteps(6, **mu)
    levels, times = [float(s) for s in source.sigmas], [float(t) for t in source.timesteps]
    if max(levels) > 1.0:  # such classes lay the noise levels of a table
        with pytest.raises(sf.InputError, match=f"{field}: .* flow model end at 1"):
            ours(source, flow=True)
        return
    scheduler = ours(source, flow=True)
    scheduler.set_timesteps(6, **mu)
    if name in ("DEISMultistepScheduler", "SASolverScheduler"):
        levels[-1] = 0.0  # they would end with the noise of their last step
    assert scheduler.sigmas.tolist() == pytest.approx(levels, abs=1e-6)
    assert scheduler.timesteps.tolist() == times
    assert mu or levels != pytest.approx([1 - k / 6 for k in range(7)], abs=0.02)


def test_the_schedulers_of_ltx_inherit_their_shifts():
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1, shift=2.0)
    source = diffusers.LTXEulerAncestralRFScheduler.from_config(own.config)
    scheduler = ours(source, flow=True)
    for one in (own, source, scheduler):
        one.set_timesteps(6)
    assert scheduler.sigmas.tolist() == pytest.approx(own.sigmas.tolist(), abs=1e-6)
    assert source.sigmas.tolist() == own.sigmas.tolist()


@pytest.mark.parametrize("field", sorted(REFUSED_VALUES))
def test_what_puts_a_model_on_another_path_is_refused_by_name(field):
    tried = 0
    for name in SOURCES:
        if field not in parameters_of(name):
            continue
        flow = SOURCES[name].kind == "flow"
        given = {field: REFUSED_VALUES[field], **({"prediction_type": "v_prediction"} if not flow else {})}
        config = {"_class_name": name, **{k: p.default for k, p in parameters_of(name).items()}, **given}
        kind = SteadyFlowScheduler if flow else SteadyScheduler
        with pytest.raises(sf.InputError, match=field):
            kind.from_config(config)
        tried += 1
    assert tried


def test_a_value_that_the_class_itself_does_not_act_on_is_none():
    source = diffusers.EulerDiscreteScheduler(timestep_type="continuous", timestep_spacing="leading", **SD)  # epsilon
    plain = diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **SD)
    for one in (a := ours(source), b := ours(plain)):
        one.set_timesteps(5)
    assert a.timesteps.tolist() == b.timesteps.tolist()
    with pytest.raises(sf.InputError, match="log_linear"):
        ours(diffusers.EulerDiscreteScheduler(interpolation_type="log_linear", **SD), solver="rk4")


def test_the_noise_levels_of_cosmos_are_refused():
    source = diffusers.FlowMatchEulerDiscreteScheduler()
    source.register_to_config(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0)
    with pytest.raises(sf.InputError, match="sigma_data"):
        SteadyFlowScheduler.from_config(source.config)


@pytest.mark.parametrize("name", [n for n, s in SOURCES.items() if s.kind == "either"])
def test_configs_of_one_kind_are_refused_by_the_scheduler_of_the_other(name):
    table, flow = source_of(name), source_of(name, flow=True)
    with pytest.raises(sf.InputError, match="use SteadyScheduler"):
        SteadyFlowScheduler.from_config(table.config)
    with pytest.raises(sf.InputError, match="use SteadyFlowScheduler"):
        SteadyScheduler.from_config(flow.config)
    with pytest.raises(sf.InputError, match="use_flow_sigmas"):
        SteadyScheduler.from_config({**table.config, "use_flow_sigmas": True})
    with pytest.raises(sf.InputError, match="prediction_type"):
        SteadyScheduler.from_config({**table.config, "prediction_type": "flow_prediction"})


# --- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [
        ("DDIMScheduler", "ddim", {"clip_sample": True}),
        ("DDIMScheduler", "ddim", {"clip_sample": True, "clip_sample_range": 2.0}),
        ("DDIMScheduler", "ddim", {"clip_sample": False, "thresholding": True, "sample_max_value": 1.7}),
        ("DDIMScheduler", "ddim", {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}),
        ("DPMSolverMultistepScheduler", "ddim", {"thresholding": True, "sample_max_value": 1.5, "solver_order": 1}),
        ("DPMSolverMultistepScheduler", "dpmpp-2m", {"thresholding": True, "sample_max_value": 1.5}),
        ("UniPCMultistepScheduler", "unipc", {"thresholding": True, "sample_max_value": 1.5}),
        ("DDPMScheduler", "ddpm", {"clip_sample": True}),
        ("DDPMScheduler", "ddpm", {"clip_sample": False, "thresholding": True}),
        ("HeunDiscreteScheduler", "heun", {"clip_sample": True, "coordinates": "noise"}),
    ],
)
@torch.no_grad()
def test_estimates_are_clipped_as_the_class_clips_them(name, solver, options):
    spacing = {"timestep_spacing": "leading", "steps_offset": 1}
    given = {k: v for k, v in options.items() if k != "coordinates"}
    source = source_of(name, **{**spacing, **given})
    scheduler = ours(source, solver=solver, solver_options={k: v for k, v in options.items() if k == "coordinates"})
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ends = []
    for one in (source, scheduler):
        one.set_timesteps(6)
        state, seed = x * one.init_noise_sigma, torch.Generator().manual_seed(1)
        for t in one.timesteps:
            output = 1.5 * torch.tanh(one.scale_model_input(state, t)) + 0.3
            more = {"generator": seed} if name == "DDPMScheduler" else {}
            state = one.step(output, t, state, **more).prev_sample
        ends.append(state)
    assert torch.allclose(ends[0], ends[1], rtol=1e-4, atol=2e-4), (ends[0] - ends[1]).abs().max()
    free = ours(source, solver=solver, clip_sample=False, thresholding=False)
    assert free.clip is None
    assert scheduler.clip is not None


def test_classes_that_accept_clipping_and_never_read_it_do_not_clip_here():
    for name in ("CogVideoXDDIMScheduler", "TCDScheduler"):
        source = source_of(name, clip_sample=True)
        scheduler = SteadyScheduler.from_config({**source.config, "_class_name": name}, solver="ddim")
        assert scheduler.clip is None


@torch.no_grad()
def test_ddim_takes_the_noise_of_the_clipped_data_where_the_pipeline_says_so():
    source = diffusers.DDIMScheduler(steps_offset=1)
    scheduler = ours(source)
    x, ends = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), []
    for one in (source, scheduler):
        one.set_timesteps(5)
        state = x
        for t in one.timesteps:
            state = one.step(1.5 * torch.tanh(state), t, state, use_clipped_model_output=True).prev_sample
        ends.append(state)
    assert torch.allclose(*ends, atol=1e-4)


# --- ends, variances, saving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in TABLES if "Inverse" not in n])
def test_a_run_ends_where_the_class_ends_it(name):
    source = source_of(name, clip_sample=False, timestep_spacing="trailing")
    named = {**source.config, "_class_name": name}  # the configs of LCM and TCD have the same fields
    scheduler = SteadyScheduler.from_config(named, solver="ddim")
    scheduler.set_timesteps(5)
    own = scheduler.sigmas[-1].item()
    if hasattr(source, "final_alpha_cumprod") and name != "TCDScheduler":
        last = float(source.final_alpha_cumprod)
        expected = ((1 - last) / last) ** 0.5
    elif name == "TCDScheduler":
        first = float(source.alphas_cumprod[0])
        expected = ((1 - first) / first) ** 0.5
    elif hasattr(source, "sigmas"):
        source.set_timesteps(5)
        expected = float(source.sigmas[-1])
    else:
        expected = 0.0
    assert own == pytest.approx(expected, abs=1e-5)
    for asked in (True, False):
        scheduler = ours(source, set_alpha_to_one=asked)
        scheduler.set_timesteps(5)
        assert scheduler.grid.clean == asked


@torch.no_grad()
def test_the_last_call_is_read_as_the_clean_estimate():
    source = source_of("EulerDiscreteScheduler", timestep_spacing="trailing")
    for solver in ("ees25", "dpmpp-2m", "rex-midpoint", "unipc"):
        scheduler = ours(source, solver=solver)
        scheduler.set_timesteps(4)
        x = torch.linspace(-1.0, 1.0, 48).view(1, 3, 4, 4)
        for t in scheduler.timesteps:
            before, output = x, torch.tanh(x)
            x = scheduler.step(output, t, x).prev_sample
        level = scheduler.schedule.at(float(scheduler.timesteps[-1]))
        assert torch.allclose(x, (before - level.sigma * output) / level.alpha, atol=1e-5)


def test_a_learned_variance_is_left_aside_and_any_other_doubling_refused():
    x = torch.randn(2, 3, 4, 4)
    for variance in ("learned", "learned_range"):
        scheduler = ours(diffusers.DDPMScheduler(variance_type=variance, clip_sample=False, **SD))
        scheduler.set_timesteps(3)
        doubled = torch.cat([0.1 * x, torch.ones_like(x)], dim=1)
        plain = copy.deepcopy(scheduler)
        t = scheduler.timesteps[0]
        assert torch.equal(scheduler.step(doubled, t, x).prev_sample, plain.step(0.1 * x, t, x).prev_sample)
        with pytest.raises(sf.InputError, match="variance_type"):
            ours(diffusers.DDPMScheduler(variance_type=variance, **SD), solver="ddpm")
    scheduler = ours(diffusers.DDPMScheduler(**SD))
    with pytest.raises(sf.InputError, match="network returned shape"):
        scheduler.step(torch.cat([x, x], dim=1), scheduler.timesteps[0], x)
    with pytest.raises(sf.InputError, match="fixed_large"):
        ours(diffusers.DDPMScheduler(variance_type="fixed_large", **SD), solver="ddpm")


@pytest.mark.parametrize("name", [n for n in SOURCES if "Inverse" not in n])
def test_a_scheduler_made_from_a_config_is_saved_and_loaded_whole(name, tmp_path):
    flow = SOURCES[name].kind == "flow"
    options = {"use_karras_sigmas": True} if "use_karras_sigmas" in parameters_of(name) else {}
    source = source_of(name, flow=flow, **options)
    scheduler = ours(source, flow=flow, solver="dpmpp-2m")
    scheduler.save_pretrained(tmp_path)
    json.loads((tmp_path / "scheduler_config.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    again = type(scheduler).from_pretrained(tmp_path)
    direct = type(scheduler).from_config(scheduler.config)
    for one in (scheduler, again, direct):
        one.set_timesteps(6)
    assert again.grid == scheduler.grid == direct.grid
    assert again.solver == scheduler.solver == direct.solver
    assert again.schedule == scheduler.schedule == direct.schedule
    assert torch.equal(again.timesteps.cpu(), scheduler.timesteps.cpu())
    back = CLASSES[name].from_config(scheduler.config)
    for field, value in source.config.items():
        if field in FIELDS and FIELDS[field] != "method" and field not in SOURCES[name].unread:
            assert getattr(back.config, field) == value, field


def test_what_a_config_inherited_from_another_class_does_not_count():
    ddim = diffusers.DDIMScheduler(set_alpha_to_one=False, clip_sample=True, timestep_spacing="trailing", **SD)
    euler = diffusers.EulerDiscreteScheduler.from_config(ddim.config)
    scheduler = ours(euler)
    assert scheduler.grid.clean  # as Euler ends, whatever DDIM's config says
    assert scheduler.clip is None
    assert scheduler.config.follows["_class_name"] == "EulerDiscreteScheduler"


def test_an_offset_for_leading_steps_is_not_dropped_by_a_default_spacing():
    source = diffusers.EulerDiscreteScheduler(steps_offset=1, **SD)
    with pytest.warns(UserWarning, match="steps_offset=1"):
        scheduler = SteadyScheduler.from_config(source.config, solver="ddim")
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == [876, 751, 626, 501, 376, 251, 126, 1]
    chosen = SteadyScheduler.from_config(source.config, solver="ddim", timestep_spacing="linspace")
    chosen.set_timesteps(8)
    assert chosen.timesteps[0] == 999


def test_short_tables_and_impossible_ones():
    for n in (2, 3, 11):
        betas = np.linspace(0.01, 0.2, n).tolist()
        scheduler = SteadyScheduler(trained_betas=betas, num_train_timesteps=n, timestep_spacing="linspace")
        assert len(scheduler.alphas_cumprod) == n
    for options in ({"beta_start": 0.01, "beta_end": 2.0}, {"trained_betas": [0.5, -1.5, 0.1]}):
        with pytest.raises(sf.InputError, match=r"betas: .* diffusion model"):
            SteadyScheduler(solver="rk4", **options)


def test_an_inverse_scheduler_takes_the_configs_of_diffusers_inverses():
    for name in ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"):
        scheduler = SteadyInverseScheduler.from_config({**source_of(name).config, "_class_name": name}, solver="ees25")
        scheduler.set_timesteps(5)
        assert scheduler.grid.rising
        assert scheduler.grid.times[0] == 0.0


def test_a_file_says_its_class_whatever_its_first_fields_are():
    """Configs as they are stored: a class's name, and only some of its fields."""
    stored = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    for more in ({"shift_terminal": 0.1}, {"use_karras_sigmas": True}, {}):
        source = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **more)
        scheduler = SteadyFlowScheduler.from_config({**stored, **more}, solver="euler")
        for one in (source, scheduler):
            one.set_timesteps(4)
        assert scheduler.sigmas.tolist() == pytest.approx(source.sigmas.tolist(), abs=1e-6)
    with pytest.raises(sf.InputError, match="invert_sigmas"):
        SteadyFlowScheduler.from_config({**stored, "invert_sigmas": True})
    for nameless in ({"shift": 3.0}, {"num_train_timesteps": 1000, "shift": 3.0}):
        assert SteadyFlowScheduler.from_config(nameless).config.shift == 3.0
    dynamic = SteadyFlowScheduler.from_config({"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True})
    assert dynamic.config.use_dynamic_shifting


def test_configs_of_two_classes_with_the_same_fields_are_told():
    for source, other in ((diffusers.TCDScheduler(**SD), "TCDScheduler"),
                          (diffusers.FlowMapEulerDiscreteScheduler(), "FlowMapEulerDiscreteScheduler")):  # fmt: skip
        kind = SteadyFlowScheduler if "Flow" in other else SteadyScheduler
        with pytest.warns(UserWarning, match=f"or of {other}"):
            kind.from_config(source.config)
    named = {**diffusers.TCDScheduler(**SD).config, "_class_name": "TCDScheduler"}
    assert SteadyScheduler.from_config(named).config.follows["_class_name"] == "TCDScheduler"
    with pytest.raises(sf.InputError, match="FlowMapEulerDiscreteScheduler"):
        SteadyFlowScheduler.from_config({"_class_name": "FlowMapEulerDiscreteScheduler", "shift": 1.0})


@pytest.mark.parametrize(
    ("flow", "change"),
    [
        (False, {"eta": 1.0}), (False, {"algorithm_type": "sde-dpmsolver++"}), (False, {"solver_order": 3}),
        (False, {"stochastic_sampling": True}), (False, {"timestep_scaling": 5.0}), (False, {"shift": 3.0}),
        (False, {"use_karras_sigmas": True}), (False, {"follows": {"_class_name": "Nope"}}),
        (True, {"eta": 1.0}), (True, {"stochastic_sampling": True}), (True, {"prediction_type": "epsilon"}),
        (True, {"set_alpha_to_one": True}), (True, {"follows": {"_class_name": "DDIMScheduler"}}),
    ],
)  # fmt: skip
def test_a_change_that_cannot_act_is_refused_by_name(flow, change):
    source = diffusers.FlowMatchEulerDiscreteScheduler() if flow else diffusers.DDIMScheduler(**SD)
    with pytest.raises(sf.InputError, match=next(iter(change))):
        ours(source, flow=flow, **change)


def test_a_spacing_that_was_chosen_later_is_no_default():
    source = diffusers.EulerDiscreteScheduler(steps_offset=1, **SD)
    source.register_to_config(timestep_spacing="trailing")
    scheduler = SteadyScheduler.from_config(source.config, solver="ddim")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


@pytest.mark.parametrize(
    "options",
    [
        {"num_train_timesteps": 0}, {"trained_betas": []}, {"steps_offset": 0.5}, {"seed": 1.5}, {"seed": "x"},
        {"beta_end": "a"}, {"follows": {"_class_name": "IPNDMScheduler"}}, {"beta_schedule": "exp"},
    ],
)  # fmt: skip
def test_fields_of_the_wrong_kind_are_refused(options):
    with pytest.raises(sf.InputError):
        SteadyScheduler(solver="ddim", **options)


@pytest.mark.parametrize("steps", [0, -1, 4.5, "5", None, True, 1001])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(sf.InputError, match=r"num_inference_steps|give one of"):
        SteadyScheduler(solver="ddim").set_timesteps(steps)
    if steps != 1001:
        with pytest.raises(sf.InputError, match="num_inference_steps"):
            SteadyFlowScheduler(solver="ddim").set_timesteps(steps)
    scheduler = SteadyScheduler(solver="ddim")
    scheduler.set_timesteps(np.int64(5))
    assert scheduler.num_inference_steps == 5


def both(source, **options):
    return source, ours(source, **options)


def change(scheduler, how, **fields):
    match how:
        case "replaced":  # Stable Diffusion
            scheduler._internal_dict = FrozenDict({**scheduler.config, **fields})
        case "registered":  # Cosmos, AnimateDiff
            scheduler.register_to_config(**fields)
        case "attribute":  # LEDITS++, Stable Cascade
            for name, value in fields.items():
                setattr(scheduler.config, name, value)


def run_of(scheduler, steps=4):
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x).prev_sample
    return x


@pytest.mark.parametrize("how", ["replaced", "registered", "attribute"])
@pytest.mark.parametrize(
    "field",
    [{"steps_offset": 1}, {"timestep_spacing": "trailing"}, {"clip_sample": False}, {"clip_sample_range": 0.5},
     {"prediction_type": "v_prediction"}],
)  # fmt: skip
def test_a_field_that_a_pipeline_changes_in_a_scheduler_acts_as_in_diffusers_own(field, how):
    stock, own = both(diffusers.DDIMScheduler(**SD, set_alpha_to_one=False, steps_offset=2, clip_sample=True))
    before = run_of(own)
    for scheduler in (stock, own):
        change(scheduler, how, **field)
    assert torch.allclose(run_of(own), run_of(stock), atol=1e-4)
    assert own.timesteps.tolist() == stock.timesteps.tolist()
    assert not torch.allclose(run_of(own), before, atol=1e-3)


def test_a_pipelines_constructor_changes_our_scheduler_and_what_is_saved_of_it(tmp_path):
    stock, own = both(diffusers.DDIMScheduler(**SD, set_alpha_to_one=False, clip_sample=True))
    for scheduler in (stock, own):
        pipe = pipelines.build("sd")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = diffusers.StableDiffusionPipeline(**{**pipe.components, "scheduler": scheduler})
        assert pipe.scheduler is scheduler
    stock.set_timesteps(2)
    copies = [copy.deepcopy(own)]
    path = path_of(copy.deepcopy(own))
    assert path.clip is None
    assert path.grid(path.schedule(), 2, None, None).times == (501.0, 1.0, 0.0)
    own.set_timesteps(2)
    assert own.timesteps.tolist() == stock.timesteps.tolist() == [501, 1]
    assert own.clip is None
    assert own.config["steps_offset"] == 1
    own.save_pretrained(tmp_path)
    copies += [copy.deepcopy(own), SteadyScheduler.from_pretrained(tmp_path), SteadyScheduler.from_config(own.config)]
    for made in copies:
        made.set_timesteps(2)
        assert made.timesteps.tolist() == [501, 1]
        assert made.clip is None
        assert made.solver == own.solver


def test_a_changed_config_keeps_what_it_does_not_say():
    own = ours(diffusers.DDIMScheduler(**SD), solver="ees25", seed=3)
    own.generator, solver = torch.Generator(), own.solver
    generator = own.generator
    change(own, "replaced", steps_offset=1)
    own.set_timesteps(4)
    assert own.solver == solver
    assert own.generator is generator
    assert own.config["seed"] == 3
    before = own._plan
    own.set_timesteps(4)
    assert own._plan is before  # a changed config is read once
    change(own, "registered", solver="ddim")
    own.set_timesteps(4)
    assert own.solver.name == "ddim"


def test_a_followed_field_that_is_changed_acts_and_is_saved():
    source = diffusers.UniPCMultistepScheduler(**FLOW_OPTIONS, flow_shift=3.0)
    for how in ("replaced", "registered"):
        stock, own = both(copy.deepcopy(source), flow=True)
        for scheduler in (stock, own):
            change(scheduler, how, flow_shift=5.0, use_karras_sigmas=False, solver_order=3)
            scheduler.set_timesteps(4)
        assert own.sigmas.tolist() == pytest.approx(stock.sigmas.tolist(), abs=1e-5)
        again = SteadyFlowScheduler.from_config(own.config)
        again.set_timesteps(4)
        assert torch.equal(again.sigmas, own.sigmas)
    stock, own = both(source_of("EulerDiscreteScheduler", final_sigmas_type="sigma_min"))
    for scheduler in (stock, own):
        change(scheduler, "replaced", final_sigmas_type="zero")
    early = ours(stock)  # before any run
    for scheduler in (stock, own, early):
        scheduler.set_timesteps(4)
        assert float(scheduler.sigmas[-1]) == 0.0


def test_what_the_followed_class_does_not_read_changes_nothing():
    for name, field in (
        ("DPMSolverSinglestepScheduler", {"steps_offset": 1}),
        ("EulerDiscreteScheduler", {"skip_prk_steps": True, "solver_order": 3}),
        ("TCDScheduler", {"clip_sample": True}),
        ("FlowMatchEulerDiscreteScheduler", {"beta_end": 0.1, "flow_shift": 9.0}),
    ):
        kind = SteadyFlowScheduler if name.startswith("Flow") else SteadyScheduler
        own = kind.from_config({**source_of(name).config, "_class_name": name}, solver="ddim")
        before = run_of(own)
        change(own, "replaced", **field)
        assert torch.equal(run_of(own), before)


@pytest.mark.parametrize(
    ("flow", "field", "value"),
    [(True, "sigma_data", 1.0), (True, "invert_sigmas", True), (False, "masking_schedule", "linear"),
     (False, "prediction_type", "flow_prediction"), (False, "timestep_spacing", "none")],
)  # fmt: skip
def test_a_changed_field_that_cannot_be_honoured_is_refused_by_name_before_the_run(flow, field, value):
    source = diffusers.FlowMatchEulerDiscreteScheduler() if flow else diffusers.DDIMScheduler(**SD)
    own = ours(source, flow=flow)
    change(own, "registered", **{field: value})
    for _ in range(2):
        with pytest.raises(sf.InputError, match=field):
            own.set_timesteps(4)


def test_an_inversion_that_was_carried_over_stays_where_the_changed_config_leaves_its_path():
    options = {"solver": "rex-midpoint", "set_alpha_to_one": False}
    source = diffusers.DDIMScheduler(**SD, clip_sample=False)
    inverse, own = SteadyInverseScheduler.from_config(source.config, **options), ours(source, **options)
    for scheduler in (inverse, own):
        change(scheduler, "replaced", steps_offset=1)
        scheduler.set_timesteps(4)
    run = x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in inverse.timesteps:
        run = inverse.step(0.3 * torch.tanh(run), t, run).prev_sample
    run = own.carry(inverse)
    change(own, "replaced", clip_sample_range=2.0)
    own.set_timesteps(4)
    for t in own.timesteps:
        run = own.step(0.3 * torch.tanh(run), t, run).prev_sample
    assert torch.allclose(run, x, atol=1e-4)
    change(own, "replaced", beta_end=0.02)
    with pytest.raises(sf.InputError, match="beta_end: was changed in the config, and the inversion"):
        own.set_timesteps(4)
