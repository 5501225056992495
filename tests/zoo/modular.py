"""Tiny modular pipelines: what Modular Diffusers builds of the zoo's components, and of some of its own.

`CASES` maps a name to a `Case`, one form of one family; `assemble(case)` returns its blocks with their denoising loop
exchanged, and the pipeline's components.
"""

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks

from . import build, call_of, parts

ROOT = "diffusers.modular_pipelines"
SIZED_BY_DECODER = ("Wan", "HunyuanVideo 1.5")  # whose latents have as many channels as their decoder takes


@dataclass(frozen=True)
class Case:
    """One form of one family.

    `given` are the inputs that choose it among the family's blocks; None takes the blocks as they are. The components
    are those of a member of the zoo, or what `make` returns; of the latter only the blocks of denoising are run,
    without those in `drop`.
    """

    name: str
    family: str
    form: str
    blocks: str  # module:class below diffusers.modular_pipelines
    given: tuple[str, ...] | None
    member: str | None = None
    call: Callable[[], dict[str, Any]] = dict
    make: Callable[[], dict[str, Any]] | None = None
    scheduler: Callable[[], Any] | None = None
    drop: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("latents",)
    steps: int = 4
    quick: bool = False  # in the default run
    only_one_call: bool = False  # of solvers: the network predicts whole steps
    leave_out: tuple[str, ...] = ()  # of the member's call
    twice: tuple[tuple[str, str], ...] = ()  # components that are also in the place of others


@contextmanager
def patched() -> Iterator[None]:
    """Wan's blocks clean prompts with a package that may be missing; Krea 2's read the layers of a large encoder."""
    wan, krea = (importlib.import_module(f"{ROOT}.{name}.encoders") for name in ("wan", "krea2"))
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(wan, "ftfy", SimpleNamespace(fix_text=str), create=True))
        stack.enter_context(mock.patch.object(krea, "KREA2_TEXT_ENCODER_SELECT_LAYERS", (1, 2)))
        yield


def blocks_of(case: Case) -> Any:
    """The blocks of a case, that nothing else shares."""
    module, name = case.blocks.split(":")
    blocks = getattr(importlib.import_module(f"{ROOT}.{module}"), name)()
    if case.given is not None:
        blocks = blocks.get_execution_blocks(**dict.fromkeys(case.given, True))
    blocks = copy.deepcopy(blocks)
    for name in list(blocks.sub_blocks):
        decodes = name.startswith("decode") and case.family not in SIZED_BY_DECODER
        if decodes or name in case.drop or (case.make is not None and not name.startswith("denoise")):
            blocks.sub_blocks.pop(name)
    return blocks


def loops_of(blocks: Any) -> Iterator[tuple[Any, str]]:
    """Where the denoising loops of some blocks are: what holds them, and under which name."""
    for name, block in list(blocks.sub_blocks.items()):
        if isinstance(block, LoopSequentialPipelineBlocks):
            yield blocks, name
        elif getattr(block, "sub_blocks", None):
            yield from loops_of(block)


def components_of(case: Case) -> dict[str, Any]:
    """The components of a case, always with the same weights."""
    if case.make is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            components = case.make()
            for network in components.values():
                if isinstance(network, torch.nn.Module):
                    network.eval().requires_grad_(False)
                    for weight in network.parameters():
                        if weight.isnan().any() or not weight.any():
                            weight.normal_(std=0.05)
    else:
        assert case.member is not None
        components = {k: v for k, v in build(case.member).components.items() if v is not None}
    for name, other in case.twice:
        components[other] = components[name]
    if case.scheduler is not None:
        components["scheduler"] = case.scheduler()
    return components


def run(case: Case, components: dict[str, Any], exchange: Callable[[Any], Any] | None = None, seed=0, **options: Any):
    """The outputs of a run, with the denoising loop exchanged for what `exchange` makes of it."""
    blocks = blocks_of(case)
    if exchange is not None:
        found = list(loops_of(blocks))
        assert len(found) == 1
        for holder, name in found:
            holder.sub_blocks[name] = exchange(holder.sub_blocks[name])
    with patched():
        pipe = blocks.init_pipeline()
        pipe.set_progress_bar_config(disable=True)
        pipe.update_components(**{k: v for k, v in components.items() if k in pipe._component_specs})
        call = {} if case.member is None else call_of(case.member)
        call = {k: v for k, v in call.items() if k not in case.leave_out} | case.call()
        if "sigmas" not in call:
            call["num_inference_steps"] = case.steps
        generator = torch.Generator().manual_seed(seed)
        results = pipe(generator=generator, output=list(case.outputs), **{**call, **options})
    return [results[name] for name in case.outputs]


def _flow():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def _noise(*shape: int, seed: int = 3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- families of which there is no other pipeline ---------------------------------------------------------------


def _flux3(flow_map: bool = False):
    return {
        "transformer": diffusers.Flux3Transformer2DModel(
            in_channels=8, cond_in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=12, timestep_channels=16, axes_dims_rope=(4, 4, 4, 4),
            flow_map=flow_map,
        ),
        "scheduler": _flow(),
    }  # fmt: skip


def _flux3_call(**more: Any):
    return {"prompt_embeds": _noise(1, 5, 12), "height": 64, "width": 64, **more}


def _qwen21():
    return {
        "transformer": diffusers.QwenImage21Transformer2DModel(
            in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            context_in_dim=12, axes_dims_rope=(4, 6, 6),
        ),
        "scheduler": _flow(),
        "guider": diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    }  # fmt: skip


def _qwen21_call():
    seen, mask = torch.zeros(1, 5, dtype=torch.bool), torch.ones(1, 5, dtype=torch.long)
    return {
        "prompt_embeds": _noise(1, 5, 12), "prompt_embeds_mask": mask, "image_pad_mask": seen,
        "negative_prompt_embeds": _noise(1, 5, 12, seed=4), "negative_prompt_embeds_mask": mask,
        "negative_image_pad_mask": seen, "height": 64, "width": 64,
    }  # fmt: skip


def _qwen21_image():
    seen, mask = torch.arange(9)[None] >= 5, torch.ones(1, 9, dtype=torch.long)
    return _qwen21_call() | {
        "prompt_embeds": _noise(1, 9, 12), "prompt_embeds_mask": mask, "image_pad_mask": seen,
        "negative_prompt_embeds": _noise(1, 9, 12, seed=4), "negative_prompt_embeds_mask": mask,
        "negative_image_pad_mask": seen, "image_latents": [_noise(1, 4, 1, 4, 4)],
    }  # fmt: skip


def _anima():
    return {
        "transformer": diffusers.CosmosTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2,
            text_embed_dim=12, adaln_lora_dim=4, max_size=(4, 32, 32), concat_padding_mask=False,
            extra_pos_embed_type=None,
        ),
        "scheduler": _flow(),
    }  # fmt: skip


def _anima_call(**more: Any):
    embeds = {"prompt_embeds": _noise(1, 5, 12), "negative_prompt_embeds": _noise(1, 5, 12, seed=4)}
    return {**embeds, "height": 32, "width": 32, **more}


def _echo():
    return {
        "transformer": diffusers.LTX2VideoTransformer3DModel(
            in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
            cross_attention_dim=16, audio_in_channels=16, audio_out_channels=16, audio_num_attention_heads=2,
            audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=1, qk_norm="rms_norm_across_heads",
            caption_channels=32, rope_double_precision=False, rope_type="split",
        ),
    }  # fmt: skip


def _echo_call(**more: Any):
    return {
        "connector_prompt_embeds": _noise(1, 5, 32), "connector_audio_prompt_embeds": _noise(1, 5, 32, seed=4),
        "connector_attention_mask": torch.ones(1, 5), "height": 64, "width": 64, "num_frames": 9, "frame_rate": 25.0,
        "sigmas": [1.0, 0.0], **more,
    }  # fmt: skip


def _picture(size: int = 32, **more: Any):
    return lambda: {"image": parts.picture(size), **more}


def _masked(**more: Any):
    return lambda: {"image": parts.picture(), "mask_image": parts.mask(), "strength": 0.6, **more}


_QWEN, _XL = "qwenimage.modular_blocks_qwenimage", "stable_diffusion_xl:StableDiffusionXLAutoBlocks"
_SOUND = ("latents", "audio_latents")

CASES: dict[str, Case] = {case.name: case for case in [
    Case("flux", "FLUX.1", "text", "flux:FluxAutoBlocks", ("prompt",), "flux", quick=True),
    Case("flux_i2i", "FLUX.1", "picture", "flux:FluxAutoBlocks", ("prompt", "image"), "flux",
         _picture(strength=0.6)),
    Case("kontext", "FLUX.1", "edit", "flux:FluxKontextAutoBlocks", ("prompt", "image"), "flux_kontext"),
    Case("flux2", "FLUX.2", "text", "flux2:Flux2AutoBlocks", ("prompt",), "flux2"),
    Case("flux2_image", "FLUX.2", "edit", "flux2:Flux2AutoBlocks", ("prompt", "image"), "flux2_image"),
    Case("klein", "FLUX.2", "klein", "flux2:Flux2KleinAutoBlocks", ("prompt",), "klein"),
    Case("klein_base", "FLUX.2", "klein base", "flux2:Flux2KleinBaseAutoBlocks", ("prompt",), "klein"),
    Case("klein_base_image", "FLUX.2", "klein base edit", "flux2:Flux2KleinBaseAutoBlocks", ("prompt", "image"),
         "klein_image"),
    Case("flux3", "FLUX.3", "text", "flux3:Flux3AutoBlocks", ("prompt",), None,
         lambda: _flux3_call(negative_prompt_embeds=_noise(1, 5, 12, seed=4)), _flux3),
    Case("flux3_image", "FLUX.3", "edit", "flux3:Flux3AutoBlocks", ("prompt", "image"), None,
         lambda: _flux3_call(negative_prompt_embeds=_noise(1, 5, 12, seed=4),
                             image_cond_latents=[_noise(1, 8, 4, 4)]), _flux3),
    Case("flux3_distilled", "FLUX.3", "distilled", "flux3:Flux3DistilledAutoBlocks", ("prompt",), None,
         _flux3_call, lambda: _flux3(True), only_one_call=True),
    Case("qwenimage", "Qwen-Image", "text", f"{_QWEN}:QwenImageAutoBlocks", ("prompt",), "qwenimage", quick=True),
    Case("qwenimage_i2i", "Qwen-Image", "picture", f"{_QWEN}:QwenImageAutoBlocks", ("prompt", "image"), "qwenimage",
         _picture(strength=0.6)),
    Case("qwenimage_inpaint", "Qwen-Image", "inpainting", f"{_QWEN}:QwenImageAutoBlocks",
         ("prompt", "image", "mask_image"), "qwenimage", _masked(), quick=True),
    Case("qwenimage_controlnet", "Qwen-Image", "ControlNet", f"{_QWEN}:QwenImageAutoBlocks",
         ("prompt", "control_image"), "qwenimage_controlnet"),
    Case("qwenimage_edit", "Qwen-Image", "edit", f"{_QWEN}_edit:QwenImageEditAutoBlocks", ("prompt", "image"),
         "qwenimage_edit"),
    Case("qwenimage_edit_plus", "Qwen-Image", "edit plus", f"{_QWEN}_edit_plus:QwenImageEditPlusAutoBlocks",
         ("prompt", "image"), "qwenimage_edit_plus"),
    Case("qwenimage_edit_inpaint", "Qwen-Image", "edit inpainting", f"{_QWEN}_edit:QwenImageEditAutoBlocks",
         ("prompt", "image", "mask_image"), "qwenimage_edit", _masked(), leave_out=("height", "width")),
    Case("qwenimage21", "Qwen-Image 2.1", "text", "qwenimage21:QwenImage21AutoBlocks", ("prompt",), None,
         _qwen21_call, _qwen21),
    Case("qwenimage21_image", "Qwen-Image 2.1", "edit", "qwenimage21:QwenImage21AutoBlocks", ("prompt", "image"), None,
         _qwen21_image, _qwen21),
    Case("qwenimage21_turbo", "Qwen-Image 2.1", "turbo", "qwenimage21:QwenImage21TurboAutoBlocks", ("prompt",), None,
         lambda: {k: v for k, v in _qwen21_call().items() if "negative" not in k}, _qwen21),
    Case("wan", "Wan", "text", "wan:WanBlocks", ("prompt",), "wan", scheduler=_flow, quick=True),
    Case("wan22", "Wan", "2.2", "wan:Wan22Blocks", ("prompt",), "wan22", scheduler=_flow),
    Case("wan_i2v", "Wan", "picture", "wan:WanImage2VideoAutoBlocks", ("prompt", "image"), "wan_i2v", scheduler=_flow),
    Case("wan22_i2v", "Wan", "2.2 picture", "wan:Wan22Image2VideoBlocks", ("prompt", "image"), "wan22_i2v",
         scheduler=_flow),
    Case("wan_vace", "Wan", "2.2 VACE", "wan:Wan22VaceBlocks", None, "wan_vace", scheduler=_flow,
         twice=(("transformer", "transformer_2"),)),
    Case("ltx", "LTX-Video", "text", "ltx:LTXAutoBlocks", ("prompt", "num_frames"), "ltx"),
    Case("ltx_i2v", "LTX-Video", "picture", "ltx:LTXAutoBlocks", ("prompt", "image", "num_frames"), "ltx_i2v"),
    Case("ltx2", "LTX-2", "text", "ltx2:LTX2AutoBlocks", ("prompt", "num_frames"), "ltx2", outputs=_SOUND,
         leave_out=("spatio_temporal_guidance_blocks",)),
    Case("ltx2_i2v", "LTX-2", "picture", "ltx2:LTX2AutoBlocks", ("prompt", "image", "num_frames"), "ltx2_i2v",
         outputs=_SOUND, leave_out=("spatio_temporal_guidance_blocks",)),
    Case("ltx2_condition", "LTX-2", "conditions", "ltx2:LTX2AutoBlocks", ("prompt", "conditions", "num_frames"),
         "ltx2_condition", outputs=_SOUND, leave_out=("spatio_temporal_guidance_blocks",)),
    Case("zimage", "Z-Image", "text", "z_image:ZImageAutoBlocks", ("prompt",), "zimage", quick=True),
    Case("zimage_i2i", "Z-Image", "picture", "z_image:ZImageAutoBlocks", ("prompt", "image"), "zimage",
         _picture(16, strength=0.6)),
    Case("sd3", "SD3", "text", "stable_diffusion_3:StableDiffusion3AutoBlocks", ("prompt",), "sd3"),
    Case("sd3_i2i", "SD3", "picture", "stable_diffusion_3:StableDiffusion3AutoBlocks", ("prompt", "image"), "sd3",
         _picture(strength=0.6)),
    Case("sdxl", "SDXL", "text", _XL, ("prompt",), "sdxl", lambda: {"height": 32, "width": 32}, quick=True),
    Case("sdxl_i2i", "SDXL", "picture", _XL, ("prompt", "image"), "sdxl", _picture(strength=0.6)),
    Case("sdxl_inpaint", "SDXL", "inpainting", _XL, ("prompt", "image", "mask_image"), "sdxl",
         _masked(height=32, width=32)),
    Case("sdxl_controlnet", "SDXL", "ControlNet", _XL, ("prompt", "control_image"), "sdxl_controlnet",
         lambda: {"control_image": parts.picture(), "height": 32, "width": 32}, leave_out=("image",)),
    Case("hunyuan15", "HunyuanVideo 1.5", "text", "hunyuan_video1_5:HunyuanVideo15AutoBlocks", ("prompt",),
         "hunyuan_video_15"),
    Case("hunyuan15_i2v", "HunyuanVideo 1.5", "picture", "hunyuan_video1_5:HunyuanVideo15AutoBlocks",
         ("prompt", "image"), "hunyuan_video_15_i2v"),
    Case("krea2", "Krea 2", "text", "krea2:Krea2AutoBlocks", ("prompt",), "krea2"),
    Case("krea2_turbo", "Krea 2", "turbo", "krea2:Krea2TurboAutoBlocks", ("prompt",), "krea2"),
    Case("ernie", "ERNIE-Image", "text", "ernie_image:ErnieImageAutoBlocks", ("prompt",), "ernie",
         leave_out=("use_pe",)),
    Case("ideogram4", "Ideogram 4", "text", "ideogram4:Ideogram4AutoBlocks", ("prompt",), "ideogram4",
         lambda: {"guidance_schedule": [5.0, 5.0, 4.0, 3.0]}, leave_out=("guidance_scale",)),
    Case("anima", "Anima", "text", "anima:AnimaAutoBlocks", ("prompt",), None, _anima_call, _anima,
         drop=("denoise.text_conditioning",)),
    Case("anima_i2i", "Anima", "picture", "anima:AnimaAutoBlocks", ("prompt", "image"), None,
         lambda: _anima_call(image_latents=_noise(1, 4, 1, 4, 4), strength=0.6), _anima,
         drop=("denoise.text_conditioning",)),
    Case("echo", "Echo", "text", "echo:EchoBlocks", ("prompt",), None, _echo_call, _echo,
         outputs=_SOUND),
    Case("echo_picture", "Echo", "picture", "echo:EchoBlocks", ("prompt", "image"), None,
         lambda: _echo_call(first_frame_latents=_noise(1, 4, 1, 2, 2)), _echo,
         outputs=_SOUND),
]}  # fmt: skip
