"""Families that make pictures."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.pipelines.joyimage.image_processor import JoyImageEditImageProcessor
from transformers import ByT5Tokenizer, SmolLM3Config, SmolLM3ForCausalLM

from . import parts
from ._member import Member
from .parts import PROMPT, mask, picture


def _call(**options) -> Callable[[], dict[str, Any]]:
    """Arguments of a run; those that are functions are called anew for every run."""
    return lambda: {key: value() if callable(value) else value for key, value in options.items()}


def _with(make: Callable[[], Any], form, **options) -> Callable[[], Any]:
    """Another form of a pipeline, made of the same components and of the `options`, called where they are functions."""

    def make_form():
        own = {key: value() if callable(value) else value for key, value in options.items()}
        return form(**{**make().components, **own})

    return make_form


def _ddim(**options):
    return DDIMScheduler(**{
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1, **options,
    })  # fmt: skip


_flow = FlowMatchEulerDiscreteScheduler


# --- Stable Diffusion -------------------------------------------------------------------------------------------


def _unet(**options):
    return diffusers.UNet2DConditionModel(**{
        "block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 16, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 2, "cross_attention_dim": 32,
        **options,
    })  # fmt: skip


_UNSAFE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _sd():
    return diffusers.StableDiffusionPipeline(
        unet=_unet(), vae=parts.vae(), scheduler=_ddim(), text_encoder=parts.clip(), tokenizer=parts.clip_tokenizer(),
        **_UNSAFE,
    )  # fmt: skip


def _controlnet(**options):
    return diffusers.ControlNetModel(**{
        "block_out_channels": (8, 16), "layers_per_block": 1, "in_channels": 4, "cross_attention_dim": 32,
        "norm_num_groups": 2, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4,
        "conditioning_embedding_out_channels": (8, 16), **options,
    })  # fmt: skip


def _sd_control():
    parts_of_sd = {**_sd().components, **_UNSAFE}
    return diffusers.StableDiffusionControlNetPipeline(**parts_of_sd, controlnet=_controlnet())


def _lcm():
    scheduler = diffusers.LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    components = {**_sd().components, **_UNSAFE, "unet": _unet(time_cond_proj_dim=16), "scheduler": scheduler}
    return diffusers.LatentConsistencyModelPipeline(**components)


def _upscale():
    unet = _unet(in_channels=7, class_embed_type=None, num_class_embeds=1000)
    return diffusers.StableDiffusionUpscalePipeline(
        unet=unet, vae=parts.vae(channels=(8, 8, 16), scaling_factor=0.08333),
        scheduler=_ddim(prediction_type="v_prediction"), low_res_scheduler=diffusers.DDPMScheduler(),
        text_encoder=parts.clip(), tokenizer=parts.clip_tokenizer(),
        max_noise_level=350,
    )  # fmt: skip


_STABLE_DIFFUSION = [
    Member("sd", "Stable Diffusion", _sd, _call(prompt=PROMPT), image_sibling="sd_img2img", quick=True),
    Member(
        "sd_img2img", "Stable Diffusion, image to image",
        _with(_sd, diffusers.StableDiffusionImg2ImgPipeline, **_UNSAFE),
        _call(prompt=PROMPT, image=picture, strength=0.6), text_to_image=False,
    ),
    Member(
        "sd_inpaint", "Stable Diffusion, inpainting with a text-to-image network",
        _with(_sd, diffusers.StableDiffusionInpaintPipeline, **_UNSAFE),
        _call(prompt=PROMPT, image=picture, mask_image=mask, height=32, width=32, strength=0.6), text_to_image=False,
    ),
    Member(
        "sd_inpaint9", "Stable Diffusion, inpainting with a network of its own",
        _with(_sd, diffusers.StableDiffusionInpaintPipeline, unet=lambda: _unet(in_channels=9), **_UNSAFE),
        _call(prompt=PROMPT, image=picture, mask_image=mask, height=32, width=32), text_to_image=False,
        note="the network reads nine channels: latents, mask, masked picture",
    ),
    Member("sd_controlnet", "Stable Diffusion with a ControlNet", _sd_control,
           _call(prompt=PROMPT, image=picture), text_to_image=False),
    Member(
        "sd_pix2pix", "InstructPix2Pix",
        _with(_sd, diffusers.StableDiffusionInstructPix2PixPipeline, unet=lambda: _unet(in_channels=8), **_UNSAFE),
        _call(prompt=PROMPT, image=picture), text_to_image=False, note="three network rows: two scales of guidance",
    ),
    Member("sd_upscale", "Stable Diffusion, upscaling", _upscale, _call(prompt=PROMPT, image=lambda: picture(16)),
           text_to_image=False),
    Member("sd_pag", "Stable Diffusion with perturbed attention", _with(
        _sd, diffusers.StableDiffusionPAGPipeline, pag_applied_layers="mid", **_UNSAFE), _call(prompt=PROMPT)),
    Member("lcm", "Latent Consistency Models", _lcm, _call(prompt=PROMPT), image_sibling="lcm_img2img"),
    Member("lcm_img2img", "Latent Consistency Models, image to image",
           _with(_lcm, diffusers.LatentConsistencyModelImg2ImgPipeline, **_UNSAFE),
           _call(prompt=PROMPT, image=picture, strength=0.6), text_to_image=False),
]  # fmt: skip


# --- Stable Diffusion XL ----------------------------------------------------------------------------------------


def _xl_unet(**options):
    return _unet(**{
        "attention_head_dim": (2, 4), "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2), "cross_attention_dim": 64,
        "projection_class_embeddings_input_dim": 80, **options,
    })  # fmt: skip


def _sdxl():
    return diffusers.StableDiffusionXLPipeline(
        unet=_xl_unet(), vae=parts.vae(), scheduler=_ddim(), text_encoder=parts.clip(),
        text_encoder_2=parts.clip_projected(), tokenizer=parts.clip_tokenizer(), tokenizer_2=parts.clip_tokenizer(),
        add_watermarker=False,
    )  # fmt: skip


def _sdxl_control():
    components = {k: v for k, v in _sdxl().components.items() if k not in ("image_encoder", "feature_extractor")}
    net = _controlnet(
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), cross_attention_dim=64,
        projection_class_embeddings_input_dim=80,
    )  # fmt: skip
    return diffusers.StableDiffusionXLControlNetPipeline(**components, controlnet=net, add_watermarker=False)


_XL = [
    Member("sdxl", "Stable Diffusion XL", _sdxl, _call(prompt=PROMPT), image_sibling="sdxl_img2img"),
    Member(
        "sdxl_img2img", "Stable Diffusion XL, image to image",
        _with(_sdxl, diffusers.StableDiffusionXLImg2ImgPipeline, add_watermarker=False),
        _call(prompt=PROMPT, image=picture, strength=0.6), text_to_image=False,
    ),
    Member(
        "sdxl_inpaint", "Stable Diffusion XL, inpainting",
        _with(_sdxl, diffusers.StableDiffusionXLInpaintPipeline, add_watermarker=False),
        _call(prompt=PROMPT, image=picture, mask_image=mask, height=32, width=32, strength=0.6), text_to_image=False,
    ),
    Member("sdxl_controlnet", "Stable Diffusion XL with a ControlNet", _sdxl_control,
           _call(prompt=PROMPT, image=picture), text_to_image=False),
]  # fmt: skip


# --- Stable Diffusion 3 -----------------------------------------------------------------------------------------

_SD3 = {
    "sample_size": 16, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 64,
    "out_channels": 4, "pos_embed_max_size": 32,
}  # fmt: skip


def _sd3(channels=4):
    transformer = diffusers.SD3Transformer2DModel(**{**_SD3, "in_channels": channels, "out_channels": channels})
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=parts.flow_vae(channels, (4, 8)),
        scheduler=_flow(shift=3.0), text_encoder=parts.clip_projected(), tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.clip_projected(), tokenizer_2=parts.clip_tokenizer(), text_encoder_3=parts.t5(),
        tokenizer_3=parts.t5_tokenizer(), image_encoder=None, feature_extractor=None,
    )  # fmt: skip


_STABLE_DIFFUSION_3 = [
    Member("sd3", "Stable Diffusion 3", _sd3, _call(prompt=PROMPT, height=32, width=32, max_sequence_length=77),
           image_sibling="sd3_img2img"),
    Member("sd3_img2img", "Stable Diffusion 3, image to image",
           _with(_sd3, diffusers.StableDiffusion3Img2ImgPipeline),
           _call(prompt=PROMPT, image=picture, strength=0.6, height=32, width=32, max_sequence_length=77),
           text_to_image=False),
    Member("sd3_inpaint", "Stable Diffusion 3, inpainting",
           _with(lambda: _sd3(16), diffusers.StableDiffusion3InpaintPipeline),
           _call(prompt=PROMPT, image=picture, mask_image=mask, strength=0.6, height=32, width=32,
                 max_sequence_length=77), text_to_image=False),
    Member("sd3_controlnet", "Stable Diffusion 3 with a ControlNet",
           _with(_sd3, diffusers.StableDiffusion3ControlNetPipeline,
                 controlnet=lambda: diffusers.SD3ControlNetModel(**_SD3)),
           _call(prompt=PROMPT, control_image=picture, height=32, width=32, max_sequence_length=77),
           text_to_image=False, note="draws from the encoded picture with torch's own generator, not the call's"),
]  # fmt: skip


# --- Flux, Chroma -----------------------------------------------------------------------------------------------

_FLUX = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 32, "axes_dims_rope": [4, 4, 8],
}  # fmt: skip


def _flux(guidance_embeds=True, **options):
    transformer = diffusers.FluxTransformer2DModel(
        **{**_FLUX, "pooled_projection_dim": 32, "guidance_embeds": guidance_embeds, **options}
    )
    return diffusers.FluxPipeline(
        transformer=transformer, vae=parts.flow_vae(4, (4, 8)),
        scheduler=_flow(shift=3.0, use_dynamic_shifting=guidance_embeds), text_encoder=parts.clip(),
        tokenizer=parts.clip_tokenizer(), text_encoder_2=parts.t5(), tokenizer_2=parts.t5_tokenizer(),
        image_encoder=None, feature_extractor=None,
    )  # fmt: skip


def _flux_control(form, **options):
    components = _flux(**options).components
    return form(**{k: v for k, v in components.items() if k not in ("image_encoder", "feature_extractor")})


def _chroma():
    return diffusers.ChromaPipeline(
        transformer=diffusers.ChromaTransformer2DModel(
            **_FLUX, approximator_hidden_dim=32, approximator_layers=1, approximator_num_channels=16
        ),
        vae=parts.flow_vae(4, (4, 8)), scheduler=_flow(), text_encoder=parts.t5(), tokenizer=parts.t5_tokenizer(),
    )  # fmt: skip


_SMALL = {"prompt": PROMPT, "height": 16, "width": 16, "max_sequence_length": 48}

_FLUXES = [
    Member("flux", "FLUX.1 [dev]", _flux, _call(**_SMALL), image_sibling="flux_img2img", quick=True,
           note="the scale of guidance is an input of the network"),
    Member("flux_schnell", "FLUX.1 [schnell]", lambda: _flux(False), _call(**_SMALL), image_sibling="flux_img2img"),
    Member("flux_img2img", "FLUX.1, image to image", _with(_flux, diffusers.FluxImg2ImgPipeline),
           _call(**_SMALL, image=picture, strength=0.6), text_to_image=False),
    Member("flux_inpaint", "FLUX.1, inpainting", _with(_flux, diffusers.FluxInpaintPipeline),
           _call(**_SMALL, image=picture, mask_image=mask, strength=0.6), text_to_image=False),
    Member("flux_fill", "FLUX.1 Fill",
           lambda: _flux_control(diffusers.FluxFillPipeline, in_channels=48, out_channels=16),
           _call(**_SMALL, image=lambda: picture(16), mask_image=lambda: mask(16)), text_to_image=False,
           note="the network reads the latents, the masked picture and the mask"),
    Member("flux_kontext", "FLUX.1 Kontext", _with(_flux, diffusers.FluxKontextPipeline),
           _call(**_SMALL, image=picture, max_area=256, _auto_resize=False), text_to_image=False,
           note="the picture stands beside the latents in the sequence"),
    Member("flux_control", "FLUX.1 Control",
           lambda: _flux_control(diffusers.FluxControlPipeline, in_channels=32, out_channels=16),
           _call(**_SMALL, control_image=picture), text_to_image=False),
    Member("flux_controlnet", "FLUX.1 with a ControlNet",
           _with(_flux, diffusers.FluxControlNetPipeline,
                 controlnet=lambda: diffusers.FluxControlNetModel(
                     **_FLUX, pooled_projection_dim=32, guidance_embeds=True)),
           _call(**_SMALL, control_image=picture), text_to_image=False),
    Member("chroma", "Chroma", _chroma, _call(**_SMALL), image_sibling="chroma_img2img"),
    Member("chroma_img2img", "Chroma, image to image", _with(_chroma, diffusers.ChromaImg2ImgPipeline),
           _call(**_SMALL, image=picture, strength=0.6), text_to_image=False),
]  # fmt: skip


# --- FLUX.2 -----------------------------------------------------------------------------------------------------


def _flux2_transformer(**options):
    return diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=32, axes_dims_rope=[4, 4, 4, 4], **options,
    )  # fmt: skip


def _flux2():
    return diffusers.Flux2Pipeline(
        transformer=_flux2_transformer(), vae=parts.flux2_vae(), scheduler=_flow(use_dynamic_shifting=True),
        text_encoder=parts.mistral3(), tokenizer=parts.mistral_tokenizer(),
    )  # fmt: skip


def _klein(form=diffusers.Flux2KleinPipeline):
    return form(
        transformer=_flux2_transformer(guidance_embeds=False), vae=parts.flux2_vae(),
        scheduler=_flow(use_dynamic_shifting=True), text_encoder=parts.qwen3_causal(),
        tokenizer=parts.qwen_tokenizer(), is_distilled=False,
    )  # fmt: skip


_FLUX2S = [
    Member("flux2", "FLUX.2 [dev]", _flux2, _call(**_SMALL, text_encoder_out_layers=(1,))),
    Member("flux2_image", "FLUX.2 [dev] with a picture", _flux2,
           _call(**_SMALL, image=lambda: picture(64), text_encoder_out_layers=(1,)), text_to_image=False),
    Member("klein", "FLUX.2 [klein]", _klein, _call(**{**_SMALL, "max_sequence_length": 96},
           text_encoder_out_layers=(1,)), quick=True),
    Member("klein_image", "FLUX.2 [klein] with a picture", _klein,
           _call(**{**_SMALL, "max_sequence_length": 96}, image=lambda: picture(64), text_encoder_out_layers=(1,)),
           text_to_image=False),
]  # fmt: skip


# --- Qwen-Image -------------------------------------------------------------------------------------------------

_QWEN = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 32, "axes_dims_rope": (8, 4, 4),
}  # fmt: skip


def _qwen(form=diffusers.QwenImagePipeline, **components):
    return form(**{
        "transformer": diffusers.QwenImageTransformer2DModel(**_QWEN), "vae": parts.qwen_vae(),
        "scheduler": _flow(use_dynamic_shifting=True), "text_encoder": parts.qwen2_5_vl(),
        "tokenizer": parts.qwen_tokenizer(), **components,
    })  # fmt: skip


def _qwen_edit(form):
    """These make every picture as large as a million pixels before they read it: a narrow, deep autoencoder."""
    return _qwen(form, processor=parts.qwen_vl_processor(), vae=parts.qwen_vae(width=2, levels=4))


_QWENS = [
    Member("qwenimage", "Qwen-Image", _qwen, _call(prompt=PROMPT, height=32, width=32),
           image_sibling="qwenimage_img2img", quick=True),
    Member("qwenimage_img2img", "Qwen-Image, image to image", lambda: _qwen(diffusers.QwenImageImg2ImgPipeline),
           _call(prompt=PROMPT, height=32, width=32, image=picture, strength=0.6), text_to_image=False),
    Member("qwenimage_inpaint", "Qwen-Image, inpainting", lambda: _qwen(diffusers.QwenImageInpaintPipeline),
           _call(prompt=PROMPT, height=32, width=32, image=picture, mask_image=mask, strength=0.6),
           text_to_image=False),
    Member("qwenimage_edit", "Qwen-Image-Edit",
           lambda: _qwen_edit(diffusers.QwenImageEditPipeline),
           _call(prompt=PROMPT, height=64, width=64, image=picture), text_to_image=False),
    Member("qwenimage_edit_plus", "Qwen-Image-Edit-2509",
           lambda: _qwen_edit(diffusers.QwenImageEditPlusPipeline),
           _call(prompt=PROMPT, height=64, width=64, image=lambda: [picture(), picture(seed=7)]),
           text_to_image=False),
    Member("qwenimage_controlnet", "Qwen-Image with a ControlNet",
           lambda: _qwen(diffusers.QwenImageControlNetPipeline,
                         controlnet=diffusers.QwenImageControlNetModel(**_QWEN)),
           _call(prompt=PROMPT, height=32, width=32, control_image=picture), text_to_image=False),
]  # fmt: skip


# --- Z-Image ----------------------------------------------------------------------------------------------------


def _z():
    return diffusers.ZImagePipeline(
        transformer=diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1,
            n_heads=2, n_kv_heads=2, cap_feat_dim=32, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
        ),
        vae=parts.flow_vae(4, (4, 8)), scheduler=_flow(shift=3.0), text_encoder=parts.qwen3(),
        tokenizer=parts.qwen_tokenizer(),
    )  # fmt: skip


_Z = {**_SMALL, "max_sequence_length": 96}
_ZS = [
    Member("zimage", "Z-Image", _z, _call(**_Z), image_sibling="zimage_img2img", quick=True),
    Member("zimage_img2img", "Z-Image, image to image", _with(_z, diffusers.ZImageImg2ImgPipeline),
           _call(**_Z, image=lambda: picture(16), strength=0.6), text_to_image=False),
]  # fmt: skip


# --- Sana -------------------------------------------------------------------------------------------------------


def _sana(form=diffusers.SanaPipeline, scheduler=lambda: _flow(shift=3.0), **options):
    return form(
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=4, attention_head_dim=8,
            num_cross_attention_heads=4, cross_attention_head_dim=8, cross_attention_dim=32, caption_channels=32,
            sample_size=16, **options,
        ),
        vae=parts.deep_vae(), scheduler=scheduler(), text_encoder=parts.gemma2(), tokenizer=parts.gemma_tokenizer(),
    )  # fmt: skip


_SANA = {
    "prompt": PROMPT, "clean_caption": False, "height": 32, "width": 32, "max_sequence_length": 48,
    "complex_human_instruction": None, "use_resolution_binning": False,
}  # fmt: skip
_SPRINT = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
_SANAS = [
    Member("sana", "Sana", _sana, _call(**_SANA), quick=True),
    Member("sana_pag", "Sana with perturbed attention",
           lambda: _with(_sana, diffusers.SanaPAGPipeline, pag_applied_layers="transformer_blocks.0")(),
           _call(**_SANA)),
    Member("sana_sprint", "Sana-Sprint", lambda: _sana(
        diffusers.SanaSprintPipeline, diffusers.SCMScheduler, **_SPRINT),
        _call(**_SANA), image_sibling="sana_sprint_img2img"),
    Member("sana_sprint_img2img", "Sana-Sprint, image to image", lambda: _sana(
        diffusers.SanaSprintImg2ImgPipeline, diffusers.SCMScheduler, **_SPRINT),
        _call(**_SANA, image=picture, strength=0.4), text_to_image=False),
]  # fmt: skip


# --- PixArt, DiT, unconditional ---------------------------------------------------------------------------------

_PIXART = {
    "sample_size": 16, "patch_size": 2, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
    "caption_channels": 32, "in_channels": 4, "cross_attention_dim": 32, "out_channels": 8,
}  # fmt: skip


def _pixart(form, **options):
    return form(
        transformer=diffusers.PixArtTransformer2DModel(**_PIXART, **options), vae=parts.vae(),
        scheduler=_ddim(beta_schedule="linear", beta_start=0.0001, beta_end=0.02), text_encoder=parts.t5(),
        tokenizer=parts.t5_tokenizer(),
    )  # fmt: skip


def _dit():
    return diffusers.DiTPipeline(
        transformer=diffusers.DiTTransformer2DModel(
            sample_size=16, patch_size=2, num_layers=2, attention_head_dim=8, num_attention_heads=4, in_channels=4,
            out_channels=8, attention_bias=True, num_embeds_ada_norm=1000,
        ),
        vae=parts.vae(), scheduler=_ddim(), id2label={3: "cat", 7: "ship"},
    )  # fmt: skip


def _pixels():
    return diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=2, attention_head_dim=8,
    )  # fmt: skip


_BINNED = {
    "clean_caption": False, "use_resolution_binning": False, "max_sequence_length": 48, "height": 32, "width": 32,
}  # fmt: skip
_DITS = [
    Member("pixart_sigma", "PixArt-Sigma", lambda: _pixart(diffusers.PixArtSigmaPipeline),
           _call(prompt=PROMPT, **_BINNED), note="the network predicts a variance, too"),
    Member("pixart_alpha", "PixArt-alpha", lambda: _pixart(
        diffusers.PixArtAlphaPipeline, use_additional_conditions=False), _call(prompt=PROMPT, **_BINNED)),
    Member("dit", "DiT", _dit, _call(class_labels=lambda: [3]), text_to_image=False,
           note="class labels instead of a prompt"),
    Member("ddim", "DDIM, unconditional",
           lambda: diffusers.DDIMPipeline(unet=_pixels(), scheduler=DDIMScheduler(clip_sample=False)), _call(),
           text_to_image=False, note="no condition at all; pixels, no autoencoder"),
    Member("ddpm", "DDPM, unconditional",
           lambda: diffusers.DDPMPipeline(unet=_pixels(), scheduler=diffusers.DDPMScheduler(clip_sample=False)),
           _call(), text_to_image=False, note="no condition at all; pixels, no autoencoder"),
]  # fmt: skip


# --- flow models of other makers --------------------------------------------------------------------------------


_EIGHT = (4, 4, 8, 8)  # widths of an autoencoder that makes pictures eight times smaller


def _lumina2():
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_refiner_layers=1,
            num_attention_heads=2, num_kv_heads=1, multiple_of=16, axes_dim_rope=[8, 4, 4], axes_lens=[300, 64, 64],
            cap_feat_dim=32,
        ),
        vae=parts.flow_vae(4, _EIGHT), scheduler=_flow(shift=6.0), text_encoder=parts.gemma2(),
        tokenizer=parts.gemma_tokenizer(),
    )  # fmt: skip


def _lumina():
    return diffusers.LuminaPipeline(
        transformer=diffusers.LuminaNextDiT2DModel(
            sample_size=16, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=2,
            num_kv_heads=1, multiple_of=16, learn_sigma=True, qk_norm=True, cross_attention_dim=32,
        ),
        vae=parts.vae(channels=_EIGHT), scheduler=_flow(), text_encoder=parts.gemma(),
        tokenizer=parts.gemma_tokenizer(),
    )  # fmt: skip


def _cogview4():
    return diffusers.CogView4Pipeline(
        transformer=diffusers.CogView4Transformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            text_embed_dim=32, time_embed_dim=16, condition_dim=8,
        ),
        vae=parts.vae(), text_encoder=parts.glm_causal(), tokenizer=parts.llama_tokenizer(padding_side="left"),
        scheduler=_flow(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    )  # fmt: skip


def _cogview3():
    return diffusers.CogView3PlusPipeline(
        transformer=diffusers.CogView3PlusTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            text_embed_dim=32, time_embed_dim=16, condition_dim=8, pos_embed_max_size=16, sample_size=16,
        ),
        vae=parts.vae(), text_encoder=parts.t5(), tokenizer=parts.t5_tokenizer(),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        ),
    )  # fmt: skip


def _auraflow():
    return diffusers.AuraFlowPipeline(
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32,
            out_channels=4, pos_embed_max_size=64,
        ),
        vae=parts.vae(), scheduler=_flow(shift=1.73), text_encoder=parts.umt5(), tokenizer=parts.t5_tokenizer(),
    )  # fmt: skip


def _hidream():
    pipe = diffusers.HiDreamImagePipeline(
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=4, caption_channels=[32, 32], text_emb_dim=64, num_routed_experts=4,
            num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1),
        ),
        vae=parts.flow_vae(4, (4, 8)), scheduler=_flow(shift=3.0),
        text_encoder=parts.clip_projected(max_position_embeddings=128), tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.clip_projected(max_position_embeddings=128), tokenizer_2=parts.clip_tokenizer(),
        text_encoder_3=parts.t5(), tokenizer_3=parts.t5_tokenizer(), text_encoder_4=parts.llama(),
        tokenizer_4=parts.llama_tokenizer(),
    )  # fmt: skip
    pipe.default_sample_size = 16  # it makes every picture as large as this says
    return pipe


def _hunyuan_image():
    guidance = diffusers.AdaptiveProjectedMixGuidance
    return diffusers.HunyuanImagePipeline(
        transformer=diffusers.HunyuanImageTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=1,
            num_single_layers=1, num_refiner_layers=1, patch_size=(1, 1), text_embed_dim=32, text_embed_2_dim=32,
            rope_axes_dim=(4, 4),
        ),
        vae=diffusers.AutoencoderKLHunyuanImage(
            in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32), layers_per_block=1,
            spatial_compression_ratio=2, sample_size=32, scaling_factor=0.476986,
        ),
        scheduler=_flow(shift=5.0), text_encoder=parts.qwen2_5_vl(), tokenizer=parts.qwen_tokenizer(),
        text_encoder_2=parts.t5(vocab_size=400), tokenizer_2=ByT5Tokenizer(),
        guider=guidance(adaptive_projected_guidance_start_step=1),
        ocr_guider=guidance(adaptive_projected_guidance_start_step=1),
    )  # fmt: skip


def _hunyuandit():
    return diffusers.HunyuanDiTPipeline(
        transformer=diffusers.HunyuanDiT2DModel(
            sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4, in_channels=4,
            cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=32,
            activation_fn="gelu-approximate",
        ),
        vae=parts.vae(channels=_EIGHT),
        scheduler=diffusers.DDPMScheduler(prediction_type="v_prediction", beta_end=0.018),
        text_encoder=parts.bert(), tokenizer=parts.bert_tokenizer(), text_encoder_2=parts.t5(),
        tokenizer_2=parts.t5_tokenizer(256), **_UNSAFE,
    )  # fmt: skip


def _kandinsky5(form=diffusers.Kandinsky5T2IPipeline, channels=4, **options):
    pipe = form(
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=channels, out_visual_dim=channels, in_text_dim=32, in_text_dim2=32, time_dim=16,
            patch_size=(1, 2, 2), model_dim=32, ff_dim=40, num_text_blocks=1, num_visual_blocks=2,
            axes_dims=(4, 2, 2), attention_type="regular", **options,
        ),
        vae=parts.flow_vae(channels, _EIGHT), scheduler=_flow(shift=3.0), text_encoder=parts.qwen2_5_vl(),
        tokenizer=parts.qwen_vl_processor(), text_encoder_2=parts.clip(), tokenizer_2=parts.clip_tokenizer(),
    )  # fmt: skip
    pipe.resolutions = [(64, 64)]  # it makes no others
    return pipe


def _ovis():
    return diffusers.OvisImagePipeline(
        transformer=diffusers.OvisImageTransformer2DModel(**_FLUX, out_channels=16), vae=parts.flow_vae(4, (4, 8)),
        scheduler=_flow(use_dynamic_shifting=True), text_encoder=parts.qwen3(), tokenizer=parts.qwen_tokenizer(),
    )  # fmt: skip


class AsItIs:
    """Cleans nothing: the cleaning of PRX needs ftfy."""

    def clean_text(self, text):
        return text


def _prx():
    pipe = diffusers.PRXPipeline(
        transformer=diffusers.PRXTransformer2DModel(
            patch_size=2, in_channels=4, context_in_dim=32, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=2,
            axes_dim=[8, 8],
        ),
        vae=parts.flow_vae(4, (4, 8)), scheduler=_flow(shift=3.0), text_encoder=parts.t5_gemma(),
        tokenizer=parts.gemma_tokenizer(64),
    )  # fmt: skip
    pipe.text_preprocessor = AsItIs()
    return pipe


def _krea2():
    return diffusers.Krea2Pipeline(
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=40, timestep_embed_dim=16, text_hidden_dim=32, num_text_layers=2,
            text_num_attention_heads=2, text_num_key_value_heads=1, text_intermediate_size=40,
            num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(8, 4, 4),
        ),
        vae=parts.qwen_vae(), scheduler=_flow(use_dynamic_shifting=True), text_encoder=parts.qwen3_vl_body(),
        tokenizer=parts.qwen_tokenizer(), text_encoder_select_layers=(1, 2),
    )  # fmt: skip


def _bria():
    return diffusers.BriaPipeline(
        transformer=diffusers.BriaTransformer2DModel(**{
            **_FLUX, "pooled_projection_dim": None, "axes_dims_rope": [0, 8, 8],
        }),
        vae=parts.vae(), scheduler=_flow(), text_encoder=parts.t5(), tokenizer=parts.t5_tokenizer(),
        image_encoder=None, feature_extractor=None,
    )  # fmt: skip


def _fibo():
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = SmolLM3Config(**sizes, num_key_value_heads=2, vocab_size=120, pad_token_id=3)
    return diffusers.BriaFiboPipeline(
        transformer=diffusers.BriaFiboTransformer2DModel(**{
            **_FLUX, "in_channels": 4, "joint_attention_dim": 64, "text_encoder_dim": 32,
            "pooled_projection_dim": None, "axes_dims_rope": [0, 8, 8],
        }),
        vae=parts.wan_vae(in_channels=12, out_channels=12, patch_size=2),
        scheduler=_flow(use_dynamic_shifting=True), text_encoder=SmolLM3ForCausalLM(text),
        tokenizer=parts.llama_tokenizer(),
    )  # fmt: skip


class _Harmless(torch.nn.Module):
    """Stands in for the guardrail of Cosmos, which is large."""

    dtype, device = torch.float32, torch.device("cpu")

    def check_text_safety(self, prompt):
        return True

    def check_video_safety(self, video):
        return video


def _cosmos2():
    return diffusers.Cosmos2TextToImagePipeline(
        transformer=diffusers.CosmosTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2,
            text_embed_dim=32, adaln_lora_dim=4, max_size=(4, 32, 32), patch_size=(1, 2, 2),
            rope_scale=(2.0, 1.0, 1.0), concat_padding_mask=False, extra_pos_embed_type="learnable",
        ),
        vae=parts.wan_vae(), scheduler=_flow(use_karras_sigmas=True), text_encoder=parts.t5(),
        tokenizer=parts.t5_tokenizer(), safety_checker=_Harmless(),
    )  # fmt: skip


def _longcat():
    return diffusers.LongCatImagePipeline(
        transformer=diffusers.LongCatImageTransformer2DModel(
            **{**_FLUX, "in_channels": 64, "pooled_projection_dim": 32}
        ),
        vae=parts.flow_vae(16, (4, 8)), scheduler=_flow(use_dynamic_shifting=True), text_encoder=parts.qwen2_5_vl(),
        tokenizer=parts.qwen_tokenizer(), text_processor=parts.qwen_vl_processor(),
    )  # fmt: skip


def _ideogram4():
    sizes = {
        "in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "intermediate_size": 40, "adaln_dim": 16, "llm_features_dim": 13 * 32, "mrope_section": (4, 2, 2),
    }  # fmt: skip
    return diffusers.Ideogram4Pipeline(
        transformer=diffusers.Ideogram4Transformer2DModel(**sizes),
        unconditional_transformer=diffusers.Ideogram4Transformer2DModel(**sizes), vae=parts.flux2_vae(),
        scheduler=_flow(), text_encoder=parts.qwen3_vl_body(layers=36), tokenizer=parts.qwen_tokenizer(),
    )  # fmt: skip


def _ernie():
    return diffusers.ErnieImagePipeline(
        transformer=diffusers.ErnieImageTransformer2DModel(
            hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=40, in_channels=16, out_channels=16,
            text_in_dim=32, rope_axes_dim=(8, 4, 4),
        ),
        vae=parts.flux2_vae(), scheduler=_flow(shift=3.0), text_encoder=parts.mistral3().model,
        tokenizer=parts.mistral_tokenizer(),
    )  # fmt: skip


def _nucleus():
    return diffusers.NucleusMoEImagePipeline(
        transformer=diffusers.NucleusMoEImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            num_key_value_heads=1, joint_attention_dim=32, axes_dims_rope=(8, 4, 4), moe_enabled=False,
            capacity_factors=[8.0, 8.0],
        ),
        vae=parts.qwen_vae(), scheduler=_flow(use_dynamic_shifting=True), text_encoder=parts.qwen3_vl(layers=8),
        processor=parts.qwen_vl_processor(),
    )  # fmt: skip


def _dreamlite():
    return diffusers.DreamLitePipeline(
        unet=diffusers.DreamLiteUNetModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), cross_attention_dim=32,
            down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"), attention_head_dim=8,
            layers_per_block=1, norm_num_groups=4, transformer_layers_per_block=1,
        ),
        vae=diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), latent_channels=4,
        ),
        scheduler=_flow(), text_encoder=parts.qwen3_vl(), tokenizer=parts.qwen_tokenizer(),
        processor=parts.qwen_vl_processor(),
    )  # fmt: skip


class AnySize(JoyImageEditImageProcessor):
    """As it is, it makes every picture as large as a million pixels."""

    def get_default_height_width(self, image, height=None, width=None):
        return height, width


def _joyimage():
    processor = parts.qwen_vl_processor()
    pipe = diffusers.JoyImageEditPipeline(
        transformer=diffusers.JoyImageEditTransformer3DModel(
            patch_size=[1, 2, 2], in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=32, num_layers=2,
            rope_dim_list=[4, 6, 6], theta=256,
        ),
        vae=parts.wan_vae(), scheduler=_flow(), text_encoder=parts.qwen3_vl(), tokenizer=processor.tokenizer,
        processor=processor,
    )  # fmt: skip
    pipe.vae_image_processor = AnySize(vae_scale_factor=8)
    return pipe


def _qwen21():
    mean, std = [0.1] * 4, [1.5] * 4
    return diffusers.QwenImage21Pipeline(
        transformer=diffusers.QwenImage21Transformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            context_in_dim=32, axes_dims_rope=(8, 4, 4),
        ),
        vae=diffusers.AutoencoderKLQwenImage21(
            base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1, latents_mean=mean,
            latents_std=std,
        ),
        scheduler=_flow(use_dynamic_shifting=True), text_encoder=parts.qwen3_vl(),
        processor=parts.qwen_vl_processor(),
    )  # fmt: skip


def _glm_image():
    return diffusers.GlmImagePipeline(
        transformer=diffusers.GlmImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            text_embed_dim=32, time_embed_dim=16, condition_dim=8, prior_vq_quantizer_codebook_size=64,
        ),
        vae=parts.vae(channels=_EIGHT, latents_mean=[0.1] * 4, latents_std=[1.5] * 4), scheduler=_flow(),
        text_encoder=parts.t5(), tokenizer=parts.t5_tokenizer(), vision_language_encoder=None, processor=None,
    )  # fmt: skip


_OTHERS = [
    Member("lumina2", "Lumina Image 2.0", _lumina2, _call(prompt=PROMPT, height=64, width=64)),
    Member("lumina", "Lumina-Next", _lumina, _call(prompt=PROMPT, height=64, width=64, clean_caption=False)),
    Member("cogview4", "CogView4", _cogview4,
           _call(prompt=PROMPT, height=32, width=32, max_sequence_length=48)),
    Member("cogview3plus", "CogView3Plus", _cogview3,
           _call(prompt=PROMPT, height=32, width=32, max_sequence_length=48)),
    Member("auraflow", "AuraFlow", _auraflow,
           _call(prompt=PROMPT, height=32, width=32, max_sequence_length=48)),
    Member("hidream", "HiDream-I1", _hidream,
           _call(prompt=PROMPT, height=32, width=32, max_sequence_length=48)),
    Member("hunyuanimage", "HunyuanImage 2.1", _hunyuan_image, _call(prompt="a sign that says 'cat'",
           height=32, width=32), note="guidance is a component; words between quotation marks have an encoder"),
    Member("hunyuandit", "Hunyuan-DiT", _hunyuandit,
           _call(prompt=PROMPT, height=64, width=64, use_resolution_binning=False)),
    Member("kandinsky5_image", "Kandinsky 5, text to image", _kandinsky5,
           _call(prompt=PROMPT, height=64, width=64)),
    Member("ovis", "Ovis-Image", _ovis, _call(**{**_SMALL, "max_sequence_length": 256})),
    Member("prx", "PRX", _prx, _call(prompt=PROMPT, height=32, width=32, use_resolution_binning=False),
           note="without the cleaning of prompts, which needs ftfy",
           loads="transformers reads its text encoder back in another size"),
    Member("krea2", "Krea 2", _krea2, _call(prompt=PROMPT, height=32, width=32)),
    Member("bria", "Bria 3", _bria, _call(**_SMALL)),
    Member("bria_fibo", "Bria FIBO", _fibo, _call(prompt=PROMPT, negative_prompt="grey", height=32, width=32)),
    Member("cosmos2", "Cosmos 2, text to image", _cosmos2,
           _call(prompt=PROMPT, height=32, width=32, max_sequence_length=48),
           note="without the mask of padding, which needs torchvision", loads="its guardrail is not there"),
    Member("longcat", "LongCat-Image", _longcat,
           _call(prompt=PROMPT, height=16, width=16, enable_prompt_rewrite=False)),
    Member("ideogram4", "Ideogram 4", _ideogram4,
           _call(prompt=PROMPT, height=32, width=32, max_sequence_length=96, guidance_scale=5.0,
                 guidance_schedule=None),
           note="guidance has a network of its own"),
    Member("ernie", "ERNIE-Image", _ernie, _call(prompt=PROMPT, height=32, width=32, use_pe=False)),
    Member("nucleus", "Nucleus-Image", _nucleus, _call(prompt=PROMPT, height=32, width=32)),
    Member("dreamlite", "DreamLite", _dreamlite, _call(prompt=PROMPT, height=32, width=32)),
    Member("qwenimage21", "Qwen-Image 2.1", _qwen21, _call(prompt=PROMPT, height=64, width=64)),
    Member("qwenimage21_image", "Qwen-Image 2.1 with a picture", _qwen21,
           _call(prompt=PROMPT, height=64, width=64, image=picture, output_resolution=64), text_to_image=False),
    Member("glm_image", "GLM-Image", _glm_image,
           _call(prompt='a sign that says "cat"', height=64, width=64, max_sequence_length=48,
                 prior_token_ids=lambda: torch.arange(16)[None]),
           note="without the model that writes the picture's tokens: they are given; reads the quoted words only",
           loads="its processor needs torchvision"),
    Member("kandinsky5_i2i", "Kandinsky 5, image to image",
           lambda: _kandinsky5(diffusers.Kandinsky5I2IPipeline, visual_cond=True),
           _call(prompt=PROMPT, image=lambda: picture(64), height=64, width=64), text_to_image=False),
    Member("dreamlite_image", "DreamLite with a picture", _dreamlite,
           _call(prompt=PROMPT, image=picture, height=32, width=32), text_to_image=False),
    Member("joyimage_edit", "JoyImage-Edit", _joyimage,
           _call(prompt=PROMPT, image=picture, height=32, width=32), text_to_image=False),
]  # fmt: skip


# --- Kandinsky, IF, Stable Cascade: families of several stages --------------------------------------------------


def _movq():
    return diffusers.VQModel(
        block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], latent_channels=4, layers_per_block=1,
        norm_num_groups=4, norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4,
    )  # fmt: skip


def _added_kv_unet(**options):
    return diffusers.UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=2,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=32, encoder_hid_dim=32,
        attention_head_dim=4, resnet_time_scale_shift="scale_shift", **options,
    )  # fmt: skip


def _kandinsky22():
    return diffusers.KandinskyV22Pipeline(
        unet=_added_kv_unet(
            in_channels=4, out_channels=8, addition_embed_type="image", encoder_hid_dim_type="image_proj"
        ),
        scheduler=_ddim(beta_schedule="linear"), movq=_movq(),
    )  # fmt: skip


def _kandinsky3():
    return diffusers.Kandinsky3Pipeline(
        unet=diffusers.Kandinsky3UNet(
            in_channels=4, time_embedding_dim=16, groups=2, attention_head_dim=4, layers_per_block=3,
            block_out_channels=(8, 16), cross_attention_dim=16, encoder_hid_dim=32,
        ),
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False), movq=_movq(),
        text_encoder=parts.t5(), tokenizer=parts.t5_tokenizer(128),
    )  # fmt: skip


def _if():
    return diffusers.IFPipeline(
        unet=_added_kv_unet(
            in_channels=3, out_channels=6, addition_embed_type="text", addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm", act_fn="gelu",
        ),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True,
            dynamic_thresholding_ratio=0.95, sample_max_value=1.5, clip_sample=False,
        ),
        text_encoder=parts.t5(), tokenizer=parts.t5_tokenizer(), watermarker=None, **_UNSAFE,
    )  # fmt: skip


def _cascade():
    blocks = ["SDCascadeResBlock", "SDCascadeTimestepBlock"]
    return diffusers.StableCascadeDecoderPipeline(
        decoder=diffusers.StableCascadeUNet(
            in_channels=4, out_channels=4, conditioning_dim=32, block_out_channels=[16, 32],
            num_attention_heads=[-1, 2], down_num_layers_per_block=[1, 1], up_num_layers_per_block=[1, 1],
            down_blocks_repeat_mappers=[1, 1], up_blocks_repeat_mappers=[1, 1], switch_level=None,
            block_types_per_layer=[blocks, [*blocks, "SDCascadeAttnBlock"]], clip_text_pooled_in_channels=32,
            dropout=[0.1, 0.1], effnet_in_channels=4,
        ),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=4, embed_dim=16, levels=2, latent_channels=4),
        scheduler=diffusers.DDPMWuerstchenScheduler(), text_encoder=parts.clip_projected(),
        tokenizer=parts.clip_tokenizer(), latent_dim_scale=4.0,
    )  # fmt: skip


def _embedding(*shape):
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(3))


def _cascade_prior():
    return diffusers.StableCascadePriorPipeline(
        prior=diffusers.StableCascadeUNet(
            in_channels=4, out_channels=4, conditioning_dim=32, block_out_channels=(32, 32),
            num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1),
            switch_level=(False,), clip_image_in_channels=32, clip_text_in_channels=32,
            clip_text_pooled_in_channels=32, dropout=(0.1, 0.1),
        ),
        scheduler=diffusers.DDPMWuerstchenScheduler(), text_encoder=parts.clip_projected(),
        tokenizer=parts.clip_tokenizer(), feature_extractor=None, image_encoder=None, resolution_multiple=8.0,
    )  # fmt: skip


def _consistency():
    return diffusers.ConsistencyModelPipeline(
        unet=_pixels(), scheduler=diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    )


_STAGES = [
    Member("kandinsky22_img2img", "Kandinsky 2.2, decoder, image to image",
           _with(_kandinsky22, diffusers.KandinskyV22Img2ImgPipeline),
           _call(image_embeds=_embedding(1, 32), negative_image_embeds=_embedding(1, 32), height=32, width=32,
                 image=picture, strength=0.6), text_to_image=False),
    Member("kandinsky3_img2img", "Kandinsky 3, image to image",
           _with(_kandinsky3, diffusers.Kandinsky3Img2ImgPipeline),
           _call(prompt=PROMPT, image=picture, strength=0.6), text_to_image=False),
    Member("if_img2img", "DeepFloyd IF, image to image", _with(_if, diffusers.IFImg2ImgPipeline, **_UNSAFE),
           _call(prompt=PROMPT, image=lambda: picture(16), strength=0.6, clean_caption=False), text_to_image=False),
    Member("cascade_prior", "Stable Cascade, prior", _cascade_prior, _call(prompt=PROMPT, height=32, width=32),
           note="makes latents for the decoder, not a picture"),
    Member("consistency", "Consistency models", _consistency, _call(), text_to_image=False,
           note="no condition at all; pixels, no autoencoder"),
    Member("kandinsky22", "Kandinsky 2.2, decoder", _kandinsky22,
           _call(image_embeds=_embedding(1, 32), negative_image_embeds=_embedding(1, 32), height=32, width=32),
           text_to_image=False, image_sibling="kandinsky22_img2img",
           note="reads the embedding of a picture, which the prior makes of a prompt"),
    Member("kandinsky3", "Kandinsky 3", _kandinsky3, _call(prompt=PROMPT, height=32, width=32),
           image_sibling="kandinsky3_img2img"),
    Member("if", "DeepFloyd IF, first stage", _if, _call(prompt=PROMPT, height=16, width=16, clean_caption=False),
           image_sibling="if_img2img", note="pixels, no autoencoder; the network predicts a variance, too"),
    Member("cascade", "Stable Cascade, decoder", _cascade,
           _call(prompt=PROMPT, image_embeddings=_embedding(1, 4, 4, 4)), text_to_image=False,
           note="reads the latents that the prior makes of a prompt", loads="PaellaVQModel is not found by its name"),
]  # fmt: skip


MEMBERS = [
    *_STABLE_DIFFUSION, *_XL, *_STABLE_DIFFUSION_3, *_FLUXES, *_FLUX2S, *_QWENS, *_ZS, *_SANAS, *_DITS, *_OTHERS,
    *_STAGES,
]  # fmt: skip
