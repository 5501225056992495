"""Tiny random-weight diffusers pipelines, built in memory; real code paths, no downloads."""

import json
import tempfile
from pathlib import Path

import diffusers
import tokenizers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

IN_MEMORY = int(transformers.__version__.partition(".")[0]) >= 5
"""Whether transformers makes tokenizers of words in memory; before, they are read from files."""


def clip_tokenizer(vocabulary, length):
    """A tokenizer of single characters."""
    if IN_MEMORY:
        return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)
    with tempfile.TemporaryDirectory() as folder:
        words, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        words.write_text(json.dumps(vocabulary), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer(str(words), str(merges), model_max_length=length)


def t5_tokenizer(pieces, length):
    """A tokenizer of pieces with their scores, the first three of which pad, end and stand for others."""
    if IN_MEMORY:
        return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.T5TokenizerFast(tokenizer_object=made, extra_ids=0, model_max_length=length)


def _clip_tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return clip_tokenizer({token: k for k, token in enumerate(tokens)}, 77)


def _t5_tokenizer():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("\u2581", -2.0)]
    return t5_tokenizer([*pieces, *((chr(c), -3.0) for c in range(33, 127))], 77)


def _clip():
    return CLIPTextConfig(
        bos_token_id=0, eos_token_id=1, pad_token_id=1, hidden_size=32, intermediate_size=37, num_attention_heads=4,
        num_hidden_layers=2, vocab_size=1000, projection_dim=32,
    )  # fmt: skip


def _t5():
    return T5EncoderModel(
        T5Config(vocab_size=200, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, is_encoder_decoder=False)
    )


def _unet(**options):
    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=2, **options,
    )  # fmt: skip


def _vae():
    return AutoencoderKL(
        block_out_channels=[8, 16], down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, norm_num_groups=2,
    )  # fmt: skip


def _flow_vae(channels):
    return AutoencoderKL(
        sample_size=32, block_out_channels=(4,), latent_channels=channels, norm_num_groups=1, use_quant_conv=False,
        use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035,
    )  # fmt: skip


def _ddim():
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def stable_diffusion(text=True):
    unet = _unet(cross_attention_dim=32, attention_head_dim=4)
    return StableDiffusionPipeline(
        unet=unet, vae=_vae(), scheduler=_ddim(), text_encoder=CLIPTextModel(_clip()) if text else None,
        tokenizer=_clip_tokenizer() if text else None, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl():
    unet = _unet(
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        unet=unet, vae=_vae(), scheduler=_ddim(), text_encoder=CLIPTextModel(_clip()),
        text_encoder_2=CLIPTextModelWithProjection(_clip()), tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(), add_watermarker=False,
    )  # fmt: skip


def sd3():
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, vae=_flow_vae(4), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=CLIPTextModelWithProjection(_clip()), tokenizer=_clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip()), tokenizer_2=_clip_tokenizer(), text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(), image_encoder=None, feature_extractor=None,
    )  # fmt: skip


def flux(guidance_embeds=False):
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=guidance_embeds,
    )  # fmt: skip
    return FluxPipeline(
        transformer=transformer, vae=_flow_vae(1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder=CLIPTextModel(_clip()), tokenizer=_clip_tokenizer(), text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(), image_encoder=None, feature_extractor=None,
    )  # fmt: skip


def unconditional():
    unet = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=2,
    )  # fmt: skip
    return DDIMPipeline(unet=unet, scheduler=DDIMScheduler(clip_sample=False))


def controlled():
    """Stable Diffusion with a ControlNet whose weights are not the zeros that it is born with."""
    pipe = stable_diffusion()
    control = ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, cross_attention_dim=32, norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        conditioning_embedding_out_channels=(8, 16),
    )  # fmt: skip
    for weight in control.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    return diffusers.StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=control, requires_safety_checker=False
    )


def lcm():
    """Stable Diffusion distilled for few steps: the network takes the scale of guidance."""
    pipe = stable_diffusion()
    unet = _unet(cross_attention_dim=32, attention_head_dim=4, time_cond_proj_dim=16)
    scheduler = diffusers.LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    components = {**pipe.components, "unet": unet, "scheduler": scheduler}
    return diffusers.LatentConsistencyModelPipeline(**components, requires_safety_checker=False)


def refiner():
    """The refiner of SDXL: its second text encoder only, and a score of beauty."""
    base = sdxl()
    unet = UNet2DConditionModel.from_config(
        base.unet.config, projection_class_embeddings_input_dim=72, cross_attention_dim=32
    )
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=base.vae, unet=unet, scheduler=base.scheduler, text_encoder=None, tokenizer=None,
        text_encoder_2=base.text_encoder_2, tokenizer_2=base.tokenizer_2, requires_aesthetics_score=True,
        add_watermarker=False,
    )  # fmt: skip


def ddpm():
    unet = unconditional().unet
    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler())


BUILDERS = {
    "sd": stable_diffusion, "sdxl": sdxl, "sd3": sd3, "flux": flux, "unconditional": unconditional, "ddpm": ddpm,
    "controlnet": controlled, "lcm": lcm, "refiner": refiner,
}  # fmt: skip
CALLS = {
    "sd": {"guidance_scale": 1.0},
    "sdxl": {"guidance_scale": 1.0},
    "sd3": {"guidance_scale": 1.0},
    "flux": {"height": 8, "width": 8, "max_sequence_length": 77},
}


def build(name, **options):
    """A pipeline, its modules in evaluation mode (T5 has dropout), always with the same weights."""
    torch.manual_seed(0)
    pipe = BUILDERS[name](**options)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


MODES = {
    "StableDiffusionPipeline": ("sd", None),
    "StableDiffusionImg2ImgPipeline": ("sd", "image"),
    "StableDiffusionInpaintPipeline": ("sd", "mask"),
    "StableDiffusionControlNetPipeline": ("controlnet", "control"),
    "LatentConsistencyModelPipeline": ("lcm", None),
    "LatentConsistencyModelImg2ImgPipeline": ("lcm", "image"),
    "StableDiffusionXLPipeline": ("sdxl", None),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", "image"),
    "StableDiffusionXLImg2ImgPipeline (refiner)": ("refiner", "image"),
    "StableDiffusionXLInpaintPipeline": ("sdxl", "mask"),
    "StableDiffusion3Pipeline": ("sd3", None),
    "StableDiffusion3Img2ImgPipeline": ("sd3", "image"),
    "FluxPipeline": ("flux", None),
    "FluxImg2ImgPipeline": ("flux", "image"),
    "FluxInpaintPipeline": ("flux", "mask"),
    "DDIMPipeline": ("unconditional", None),
    "DDPMPipeline": ("ddpm", None),
}
"""Pipelines, by which builder makes them and what they take beside a prompt."""


def in_mode(title):
    """A pipeline of `MODES`, the options of its call, and the side of its pictures."""
    name, mode = MODES[title]
    pipe = build(name)
    kind = getattr(diffusers, title.split(" ")[0])
    if type(pipe) is not kind:
        pipe = kind.from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)
    side = 8 if name == "flux" else 32
    if name in ("unconditional", "ddpm"):
        return pipe, {"batch_size": 1, "output_type": "np"}, 16
    call = {"prompt": "a cat", "output_type": "latent"}
    if mode != "image" and name != "refiner":
        call |= {"height": side, "width": side}
    if name in ("sd3", "flux"):
        call |= {"height": side, "width": side}
    if name == "flux":
        call |= {"max_sequence_length": 77}
    picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(6))
    if mode in ("image", "mask", "control"):
        call["image"] = picture
    if mode in ("image", "mask"):
        call["strength"] = 0.6
    if mode == "mask":
        mask = torch.zeros(1, 1, side, side)
        mask[..., side // 2 :] = 1
        call["mask_image"] = mask
    return pipe, call, side


def run(pipe, call, steps, seed=0, **more):
    """The result of a pipeline: latents, or the picture of pipelines without any."""
    generator = torch.Generator().manual_seed(seed)
    return torch.as_tensor(pipe(num_inference_steps=steps, generator=generator, **{**call, **more}).images)


def smooth_in_time(pipe):
    """The pipeline with a network that responds only to the slow frequencies of the time embedding.

    Random weights respond to all frequencies alike. The fastest has a period of six timesteps, which no method of a few
    steps can follow. A network that was trained over neighbouring times is smooth in them.
    """
    net = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    embedding = net.time_embedding if hasattr(pipe, "unet") else net.time_text_embed.timestep_embedder
    weight = embedding.linear_1.weight
    half = weight.shape[1] // 2
    slow = 10000.0 ** (-torch.arange(half) / half) < 0.01
    weight.mul_(torch.cat([slow, slow]))
    return pipe


def unpacked(name, x):
    """FLUX's packed latents as (B, 1, 8, 8); others as they are."""
    return x.view(-1, 4, 4, 1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, 1, 8, 8) if name == "flux" else x


def packed(name, x):
    """FLUX's latents of shape (B, 1, 8, 8) as its pipeline packs them; others as they are."""
    return x.view(-1, 1, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, 4) if name == "flux" else x
