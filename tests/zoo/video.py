"""Tiny pipelines of the video families."""

from dataclasses import replace

import diffusers
from diffusers import (
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    AutoencoderKLTemporalDecoder,
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.autoencoders.autoencoder_mmaudio import MMAudioVAE
from diffusers.models.autoencoders.mmaudio_vocoder import MMAudioVocoder
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from transformers import (
    ByT5Tokenizer,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Gemma2Encoder,
    T5Gemma2EncoderConfig,
    T5Gemma2TextConfig,
)

from . import parts
from ._member import Member
from .video_parts import Permissive, film, with_ftfy

PROMPT = parts.PROMPT
SIGLIP = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def _clip_of(side=16, frames=5, **more):
    """Arguments of a call, as most video pipelines take them."""
    return {"prompt": PROMPT, "height": side, "width": side, "num_frames": frames, "max_sequence_length": 32, **more}


def _flow(shift=3.0):
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


# --- Wan, and what was built upon it ----------------------------------------------------------------------------


def _wan_net(kind=diffusers.WanTransformer3DModel, channels=4, out=4, **more):
    options = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": channels,
        "out_channels": out, "text_dim": 32, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
    }  # fmt: skip
    options |= more
    return kind(**{name: value for name, value in options.items() if value is not None})


def _wan_parts(scheduler=None, **more):
    return {
        "vae": parts.wan_vae(), "scheduler": scheduler or _flow(), "text_encoder": parts.umt5(),
        "tokenizer": parts.t5_tokenizer(), **more,
    }  # fmt: skip


def wan():
    return diffusers.WanPipeline(**_wan_parts(transformer=_wan_net()))


def wan_two():
    return diffusers.WanPipeline(
        **_wan_parts(transformer=_wan_net(), transformer_2=_wan_net()), boundary_ratio=0.875
    )  # fmt: skip


def wan_one_clock_a_token():
    vae = parts.wan_vae(8, in_channels=12, out_channels=12, is_residual=True, patch_size=2, scale_factor_spatial=16)
    pieces = _wan_parts(transformer=_wan_net(channels=8, out=8)) | {"vae": vae}
    return diffusers.WanPipeline(**pieces, expand_timesteps=True)


def _eye():
    return {"image_encoder": parts.clip_vision(8), "image_processor": parts.clip_image_processor()}


def wan_of_picture():
    net = _wan_net(channels=12, image_dim=8)  # the latents, as many of the picture, and four of the mask
    return with_ftfy(diffusers.WanImageToVideoPipeline)(**_wan_parts(transformer=net), **_eye())


def wan_of_picture_two():
    nets = {"transformer": _wan_net(channels=12), "transformer_2": _wan_net(channels=12)}
    return with_ftfy(diffusers.WanImageToVideoPipeline)(
        **_wan_parts(**nets), image_encoder=None, image_processor=None, boundary_ratio=0.9
    )  # fmt: skip


def wan_vace():
    # two clips, as latents, and a mask of 8 by 8 pixels for every latent
    net = _wan_net(diffusers.WanVACETransformer3DModel, vace_layers=[0, 1], vace_in_channels=4 + 4 + 64)
    return with_ftfy(diffusers.WanVACEPipeline)(**_wan_parts(transformer=net))


def wan_of_film():
    return with_ftfy(diffusers.WanVideoToVideoPipeline)(**_wan_parts(transformer=_wan_net()))


def skyreels():
    net = _wan_net(diffusers.SkyReelsV2Transformer3DModel)
    return with_ftfy(diffusers.SkyReelsV2Pipeline)(**_wan_parts(_flow(8.0), transformer=net))


def skyreels_of_picture():
    net = _wan_net(diffusers.SkyReelsV2Transformer3DModel, channels=12, image_dim=8)
    return with_ftfy(diffusers.SkyReelsV2ImageToVideoPipeline)(**_wan_parts(_flow(8.0), transformer=net), **_eye())


def skyreels_forcing():
    net = _wan_net(diffusers.SkyReelsV2Transformer3DModel)
    return with_ftfy(diffusers.SkyReelsV2DiffusionForcingPipeline)(**_wan_parts(_flow(8.0), transformer=net))


def wan_animate():
    net = _wan_net(
        diffusers.WanAnimateTransformer3DModel, channels=12, latent_channels=4, image_dim=8,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=16, face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )  # fmt: skip
    return with_ftfy(diffusers.WanAnimatePipeline)(**_wan_parts(transformer=net), **_eye())


def chronoedit():
    net = _wan_net(diffusers.ChronoEditTransformer3DModel, channels=12, image_dim=8)
    return with_ftfy(diffusers.ChronoEditPipeline)(**_wan_parts(_flow(5.0), transformer=net), **_eye())


def anyflow():
    net = _wan_net(diffusers.AnyFlowTransformer3DModel, gate_value=0.25, deltatime_type="r", qk_norm=None)
    scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=5.0)
    return with_ftfy(diffusers.AnyFlowPipeline)(**_wan_parts(scheduler, transformer=net))


def anyflow_in_chunks():
    net = _wan_net(
        diffusers.AnyFlowFARTransformer3DModel, gate_value=0.25, deltatime_type="r", qk_norm=None,
        compressed_patch_size=(1, 4, 4), full_chunk_limit=3, chunk_partition=(1, 1),
    )  # fmt: skip
    scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=5.0)
    return with_ftfy(diffusers.AnyFlowFARPipeline)(**_wan_parts(scheduler, transformer=net))


def lucy():
    return with_ftfy(diffusers.LucyEditPipeline)(**_wan_parts(transformer=_wan_net(channels=8)))


def helios():
    net = _wan_net(
        diffusers.HeliosTransformer3DModel, rope_dim=(4, 4, 4), has_multi_term_memory_patch=True,
        guidance_cross_attn=True, zero_history_timestep=True, is_amplify_history=False, rope_max_seq_len=None,
    )  # fmt: skip
    scheduler = diffusers.HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True)
    return with_ftfy(diffusers.HeliosPipeline)(**_wan_parts(scheduler, transformer=net))


def _sana(kind, scheduler):
    net = diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
        mlp_ratio=2.0, sample_size=8, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    text = {"tokenizer": parts.gemma_tokenizer(), "text_encoder": parts.gemma2()}
    return kind(**_wan_parts(scheduler, transformer=net) | text)


def sana_video():
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    return _sana(diffusers.SanaVideoPipeline, scheduler)


def sana_video_of_picture():
    return _sana(diffusers.SanaImageToVideoPipeline, FlowMatchEulerDiscreteScheduler(shift=8.0))


def _motif(kind, **more):
    text = T5Gemma2TextConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40, vocab_size=120,
        max_position_embeddings=128, head_dim=16, num_key_value_heads=2, dropout_rate=0.0,
    )  # fmt: skip
    config = T5Gemma2EncoderConfig(text_config=text, vision_config=SIGLIP, mm_tokens_per_image=4)
    net = diffusers.MotifVideoTransformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_single_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, qk_norm="rms_norm", text_embed_dim=32,
        rope_axes_dim=(4, 4, 4), **more,
    )  # fmt: skip
    pieces = _wan_parts(FlowMatchEulerDiscreteScheduler(shift=7.0), transformer=net)
    pieces["text_encoder"] = T5Gemma2Encoder(config)
    return kind(
        **pieces, guider=diffusers.AdaptiveProjectedGuidance(),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
    )  # fmt: skip


def motif():
    return _motif(diffusers.MotifVideoPipeline)


def motif_of_picture():
    return _motif(diffusers.MotifVideoImage2VideoPipeline, image_embed_dim=16)


# --- LTX --------------------------------------------------------------------------------------------------------


def _ltx_vae():
    return AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True), decoder_inject_noise=(False, False, False),
        upsample_residual=(False, False), upsample_factor=(1, 1), timestep_conditioning=False, patch_size=1,
        patch_size_t=1,
    )  # fmt: skip


def _ltx_scheduler():
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip


def _ltx(kind, scheduler=None):
    net = diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=2, caption_channels=32,
    )  # fmt: skip
    return kind(
        transformer=net,
        vae=_ltx_vae(),
        scheduler=scheduler or _ltx_scheduler(),
        text_encoder=parts.t5(),
        tokenizer=parts.t5_tokenizer(),
    )


def ltx():
    return _ltx(diffusers.LTXPipeline)


def ltx_of_picture():
    return _ltx(diffusers.LTXImageToVideoPipeline)


def ltx_condition():
    return _ltx(diffusers.LTXConditionPipeline, FlowMatchEulerDiscreteScheduler())


def _ltx2(kind):
    tokenizer = parts.gemma_tokenizer()
    tokenizer.padding_side = "left"
    start, end, soft = tokenizer.convert_tokens_to_ids(["<start_of_image>", "<end_of_image>", "<image_soft_token>"])
    text = {
        "vocab_size": 120, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64,
    }  # fmt: skip
    encoder = Gemma3ForConditionalGeneration(Gemma3Config(
        text_config=text, vision_config=SIGLIP, mm_tokens_per_image=4, image_token_index=soft, boi_token_index=start,
        eoi_token_index=end,
    ))  # fmt: skip
    net = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=2, qk_norm="rms_norm_across_heads",
        caption_channels=32, rope_double_precision=False, rope_type="split", perturbed_attn=True,
    )  # fmt: skip
    bridge = {
        "connector_num_attention_heads": 4, "connector_attention_head_dim": 8, "connector_num_layers": 1,
        "connector_num_learnable_registers": None,
    }  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=32, text_proj_in_factor=3, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split",
        **{f"{stream}_{option}": value for stream in ("video", "audio") for option, value in bridge.items()},
    )  # fmt: skip
    vae = AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(4,), decoder_block_out_channels=(4,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True,
        decoder_causal=False,
    )  # fmt: skip
    ear = AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, in_channels=2, resolution=32,
        latent_channels=2, norm_type="pixel", causality_axis="height", mid_block_add_attention=False,
        sample_rate=16000, mel_hop_length=160, is_causal=True, mel_bins=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=8, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3]], output_sampling_rate=16000,
    )  # fmt: skip
    return kind(
        transformer=net, vae=vae, audio_vae=ear, scheduler=_ltx_scheduler(), text_encoder=encoder, tokenizer=tokenizer,
        connectors=connectors, vocoder=vocoder,
    )  # fmt: skip


def ltx2():
    return _ltx2(diffusers.LTX2Pipeline)


def ltx2_of_picture():
    return _ltx2(diffusers.LTX2ImageToVideoPipeline)


def ltx2_condition():
    return _ltx2(diffusers.LTX2ConditionPipeline)


# --- HunyuanVideo and Kandinsky ---------------------------------------------------------------------------------


def _hunyuan_vae(channels=(4, 4, 4, 4), **more):
    return AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=channels, layers_per_block=1, norm_num_groups=2,
        down_block_types=("HunyuanVideoDownBlock3D",) * len(channels),
        up_block_types=("HunyuanVideoUpBlock3D",) * len(channels), spatial_compression_ratio=8,
        temporal_compression_ratio=4, scaling_factor=0.476986, **more,
    )  # fmt: skip


def _hunyuan_net(**more):
    return diffusers.HunyuanVideoTransformer3DModel(**{
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
        "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "guidance_embeds": True,
        "text_embed_dim": 32, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4), "mlp_ratio": 2.0, **more,
    })  # fmt: skip


def hunyuan_video():
    return diffusers.HunyuanVideoPipeline(
        transformer=_hunyuan_net(), vae=_hunyuan_vae(), scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=LlamaModel(parts.llama_config(layers=4)), tokenizer=parts.llama_tokenizer(),
        text_encoder_2=parts.clip(8), tokenizer_2=parts.clip_tokenizer(),
    )  # fmt: skip


def hunyuan_video_of_picture():
    eye = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, projection_dim=8, num_attention_heads=2, num_hidden_layers=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    encoder = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=eye, text_config=parts.llama_config(layers=4), image_token_index=110, pad_token_id=3,
    ))  # fmt: skip
    net = _hunyuan_net(in_channels=9, guidance_embeds=False, image_condition_type="latent_concat")
    return diffusers.HunyuanVideoImageToVideoPipeline(
        transformer=net, vae=_hunyuan_vae(), scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=encoder, tokenizer=parts.llama_tokenizer(), text_encoder_2=parts.clip(8),
        tokenizer_2=parts.clip_tokenizer(), image_processor=parts.clip_image_processor(),
    )  # fmt: skip


def hunyuan_skyreels():
    base = hunyuan_video()
    net = _hunyuan_net(in_channels=8)  # the latents, and as many of the picture
    return diffusers.HunyuanSkyreelsImageToVideoPipeline(**base.components | {"transformer": net})


def hunyuan_framepack():
    net = diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=32, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4), mlp_ratio=2.0, has_image_proj=True,
        image_proj_dim=16, has_clean_x_embedder=True,
    )  # fmt: skip
    return diffusers.HunyuanVideoFramepackPipeline(
        transformer=net, vae=_hunyuan_vae(), scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=LlamaModel(parts.llama_config(layers=4)), tokenizer=parts.llama_tokenizer(),
        text_encoder_2=parts.clip(8), tokenizer_2=parts.clip_tokenizer(),
        image_encoder=SiglipVisionModel(SiglipVisionConfig(**SIGLIP)),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
    )  # fmt: skip


def _hunyuan_15(kind, task, **more):
    net = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=32,
        image_embed_dim=16, rope_axes_dim=(2, 2, 4), target_size=16, task_type=task,
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False,
    )  # fmt: skip
    text = Qwen2_5_VLTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=parts.QWEN_VOCABULARY,
        rope_parameters={"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    return kind(
        transformer=net, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=Qwen2_5_VLTextModel(text), tokenizer=parts.qwen_tokenizer(),
        text_encoder_2=parts.t5(vocab_size=400), tokenizer_2=ByT5Tokenizer(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=6.0), **more,
    )  # fmt: skip


def hunyuan_video_15():
    return _hunyuan_15(diffusers.HunyuanVideo15Pipeline, "t2v")


def hunyuan_video_15_of_picture():
    # the pipeline counts on 729 pieces of a picture
    eye = SiglipVisionConfig(**SIGLIP | {"image_size": 216})
    return _hunyuan_15(
        diffusers.HunyuanVideo15ImageToVideoPipeline, "i2v", image_encoder=SiglipVisionModel(eye),
        feature_extractor=SiglipImageProcessor(size={"height": 216, "width": 216}),
    )  # fmt: skip


def _kandinsky5(kind, **more):
    net = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=32, in_text_dim2=16, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(1, 1, 2),
        attention_type="regular", **more,
    )  # fmt: skip
    return kind(
        transformer=net, vae=_hunyuan_vae(), scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder=parts.qwen2_5_vl(32), tokenizer=parts.qwen_tokenizer(), text_encoder_2=parts.clip(16),
        tokenizer_2=parts.clip_tokenizer(),
    )  # fmt: skip


def kandinsky5():
    return _kandinsky5(diffusers.Kandinsky5T2VPipeline, visual_cond=False)


def kandinsky5_of_picture():
    return _kandinsky5(diffusers.Kandinsky5I2VPipeline, visual_cond=True)


def kandinsky6():
    net = diffusers.Kandinsky6Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=32, in_text_dim2=16, time_dim=16, patch_size=(1, 2, 2),
        model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(2, 2, 4), visual_cond=True,
        in_audio_dim=4, out_audio_dim=4, model_dim_a=16, time_dim_a=16, ff_dim_a=32, axes_dims_a=(8,),
        visual_token_type_num_embeddings=2,
    )  # fmt: skip
    ear = MMAudioVAE(
        mel_bins=8, latent_channels=4, hidden_channels=16, channel_multipliers=(1, 2), layers_per_block=1,
        sample_rate=1600, n_fft=64, hop_length=16,
    )  # fmt: skip
    voice = MMAudioVocoder(
        num_mels=8, upsample_initial_channel=8, upsample_rates=(4, 4), upsample_kernel_sizes=(8, 8),
        resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3, 5),),
    )  # fmt: skip
    return diffusers.Kandinsky6TI2VAPipeline(
        transformer=net, vae=_hunyuan_vae(), scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder=parts.qwen2_5_vl(32), tokenizer=parts.qwen_tokenizer(), text_encoder_2=parts.clip(16),
        tokenizer_2=parts.clip_tokenizer(), audio_vae=ear, vocoder=voice,
    )  # fmt: skip


# --- CogVideoX, Mochi, Allegro, Latte, EasyAnimate --------------------------------------------------------------


def _cogvideox_vae():
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip


def _cogvideox(kind, **more):
    net = diffusers.CogVideoXTransformer3DModel(**{
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
        "text_embed_dim": 32, "num_layers": 1, "sample_width": 2, "sample_height": 2, "sample_frames": 9,
        "patch_size": 2, "temporal_compression_ratio": 4, "max_text_seq_length": 32, **more,
    })  # fmt: skip
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        set_alpha_to_one=True, clip_sample=False,
    )  # fmt: skip
    return kind(
        transformer=net, vae=_cogvideox_vae(), scheduler=scheduler, text_encoder=parts.t5(),
        tokenizer=parts.t5_tokenizer(),
    )  # fmt: skip


def cogvideox():
    return _cogvideox(diffusers.CogVideoXPipeline)


def cogvideox_of_picture():
    return _cogvideox(
        diffusers.CogVideoXImageToVideoPipeline, in_channels=8, use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )  # fmt: skip


def cogvideox_of_film():
    return _cogvideox(diffusers.CogVideoXVideoToVideoPipeline)


def mochi():
    net = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4, activation_fn="swiglu",
        max_sequence_length=32,
    )  # fmt: skip
    vae = AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
    )  # fmt: skip
    return diffusers.MochiPipeline(
        transformer=net, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        text_encoder=parts.t5(), tokenizer=parts.t5_tokenizer(),
    )  # fmt: skip


def allegro():
    net = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8, caption_channels=24,
    )  # fmt: skip
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4, up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    pipe = diffusers.AllegroPipeline(
        transformer=net, vae=vae, scheduler=scheduler, text_encoder=parts.t5(24), tokenizer=parts.t5_tokenizer()
    )
    pipe.vae.enable_tiling()  # the only way in which this autoencoder decodes
    return pipe


def latte():
    net = diffusers.LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6, video_length=2,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    return diffusers.LattePipeline(
        transformer=net, vae=parts.vae(), scheduler=scheduler, text_encoder=parts.t5(),
        tokenizer=parts.t5_tokenizer(),
    )  # fmt: skip


def easyanimate():
    net = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, num_layers=1, sample_width=16, sample_height=16, patch_size=2,
    )  # fmt: skip
    vae = AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3),
        up_block_types=("SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3), block_out_channels=(4, 4, 4, 4),
        latent_channels=4, layers_per_block=1, norm_num_groups=2, spatial_group_norm=False,
    )  # fmt: skip
    tokenizer = parts.qwen_tokenizer()
    text = {
        "vocab_size": parts.QWEN_VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip
    eye = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1}
    ids = dict(zip(
        ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
        tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]),
        strict=True,
    ))  # fmt: skip
    encoder = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=eye, **ids))
    return diffusers.EasyAnimatePipeline(
        transformer=net, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0), text_encoder=encoder,
        tokenizer=tokenizer,
    )  # fmt: skip


# --- Cosmos -----------------------------------------------------------------------------------------------------


def _cosmos_net(channels=4, out=4, **more):
    return diffusers.CosmosTransformer3DModel(
        in_channels=channels, out_channels=out, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        mlp_ratio=2, text_embed_dim=32, adaln_lora_dim=4, max_size=(4, 32, 32), patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0), concat_padding_mask=False, **{"extra_pos_embed_type": "learnable", **more},
    )  # fmt: skip


def _cosmos(kind, channels):
    vae = AutoencoderKLCosmos(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,), resolution=64, num_layers=1, patch_size=4, spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")
    return kind(
        transformer=_cosmos_net(channels), vae=vae, scheduler=scheduler, text_encoder=parts.t5(),
        tokenizer=parts.t5_tokenizer(), safety_checker=Permissive(),
    )  # fmt: skip


def cosmos():
    return _cosmos(diffusers.CosmosTextToWorldPipeline, 4)


def cosmos_of_picture():
    return _cosmos(diffusers.CosmosVideoToWorldPipeline, 5)


def cosmos2_of_picture():
    return diffusers.Cosmos2VideoToWorldPipeline(
        transformer=_cosmos_net(5), vae=parts.wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True), text_encoder=parts.t5(),
        tokenizer=parts.t5_tokenizer(), safety_checker=Permissive(),
    )  # fmt: skip


def cosmos25():
    # the text is the hidden states of all layers, side by side
    return diffusers.Cosmos2_5_PredictBasePipeline(
        transformer=_cosmos_net(5), vae=parts.wan_vae(), scheduler=_flow(5.0), text_encoder=parts.qwen2_5_vl(16),
        tokenizer=parts.qwen_tokenizer(), safety_checker=Permissive(),
    )  # fmt: skip


# --- what grew out of Stable Diffusion --------------------------------------------------------------------------


def _animatediff(kind):
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, sample_size=8, cross_attention_dim=8, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, timestep_spacing="linspace",
        steps_offset=1,
    )  # fmt: skip
    return kind(
        unet=unet, motion_adapter=motion, vae=parts.vae(), scheduler=scheduler, text_encoder=parts.clip(8),
        tokenizer=parts.clip_tokenizer(), feature_extractor=None, image_encoder=None,
    )  # fmt: skip


def animatediff():
    return _animatediff(diffusers.AnimateDiffPipeline)


def animatediff_of_film():
    return _animatediff(diffusers.AnimateDiffVideoToVideoPipeline)


def animatediff_xl():
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, sample_size=8, cross_attention_dim=16, norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=56,
        transformer_layers_per_block=1,
    )  # fmt: skip
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2,
        motion_num_attention_heads=2, use_motion_mid_block=False,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False)
    return diffusers.AnimateDiffSDXLPipeline(
        unet=unet, motion_adapter=motion, vae=parts.vae(), scheduler=scheduler, text_encoder=parts.clip(8),
        tokenizer=parts.clip_tokenizer(), text_encoder_2=parts.clip_projected(8, 8),
        tokenizer_2=parts.clip_tokenizer(),
    )  # fmt: skip


def stable_video():
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32), layers_per_block=1, sample_size=16, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=16,
        num_attention_heads=2, projection_class_embeddings_input_dim=24, addition_time_embed_dim=8,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D"] * 2, latent_channels=4
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        sigma_max=700.0, sigma_min=0.002, steps_offset=1, timestep_spacing="leading", timestep_type="continuous",
        use_karras_sigmas=True,
    )  # fmt: skip
    return diffusers.StableVideoDiffusionPipeline(
        unet=unet, vae=vae, scheduler=scheduler, image_encoder=parts.clip_vision(16, 16, 224, 56),
        feature_extractor=parts.clip_image_processor(224),
    )  # fmt: skip


# --- the list ---------------------------------------------------------------------------------------------------


def _of_picture(side=16, frames=5, **more):
    return _clip_of(side, frames, image=parts.picture(side), **more)


PLAIN = {"template": "{}", "crop_start": 0}
"""A template of prompts that adds nothing: the usual ones are hundreds of letters long."""

MEMBERS: list[Member] = [
    Member("wan", "Wan 2.1", wan, _clip_of, "video", image_sibling="wan_i2v", quick=True),
    Member("wan22", "Wan 2.2 (two networks)", wan_two, _clip_of, "video", image_sibling="wan22_i2v"),
    Member("wan22_5b", "Wan 2.2 5B (a time for every token)", wan_one_clock_a_token, lambda: _clip_of(32), "video"),
    Member("wan_i2v", "Wan 2.1 image to video", wan_of_picture, _of_picture, "video", False),
    Member("wan22_i2v", "Wan 2.2 image to video", wan_of_picture_two, _of_picture, "video", False),
    Member("wan_vace", "Wan VACE", wan_vace, lambda: _clip_of(video=film(5)), "video", False),
    Member(
        "wan_v2v", "Wan video to video", wan_of_film,
        lambda: {"prompt": PROMPT, "video": film(5), "height": 16, "width": 16, "max_sequence_length": 32},
        "video", False,
    ),
    Member("ltx", "LTX-Video", ltx, lambda: _clip_of(32, 9), "video", image_sibling="ltx_i2v"),
    Member("ltx_i2v", "LTX-Video image to video", ltx_of_picture, lambda: _of_picture(32, 9), "video", False),
    Member("ltx_condition", "LTX-Video with conditions", ltx_condition, lambda: _of_picture(32, 9), "video", False),
    Member(
        "ltx2", "LTX-2", ltx2, lambda: _clip_of(32, spatio_temporal_guidance_blocks=range(1, 2)), "video+audio",
        image_sibling="ltx2_i2v", quick=True,
    ),
    Member(
        "ltx2_i2v", "LTX-2 image to video", ltx2_of_picture,
        lambda: _of_picture(32, spatio_temporal_guidance_blocks=range(1, 2)), "video+audio", False,
    ),
    Member(
        "ltx2_condition", "LTX-2 with conditions", ltx2_condition,
        lambda: _clip_of(
            32, spatio_temporal_guidance_blocks=range(1, 2), conditions=LTX2VideoCondition(parts.picture(32), 0, 1.0)
        ),
        "video+audio", False,
    ),
    Member(
        "hunyuan_video", "HunyuanVideo", hunyuan_video, lambda: _clip_of(prompt_template=PLAIN), "video",
        image_sibling="hunyuan_video_i2v",
    ),
    Member(
        "hunyuan_video_i2v", "HunyuanVideo image to video", hunyuan_video_of_picture,
        lambda: _of_picture(
            frames=9, prompt_template={**PLAIN, "image_emb_len": 16, "image_emb_start": 5, "image_emb_end": 21}
        ),
        "video", False,
    ),
    Member(
        "hunyuan_video_15", "HunyuanVideo 1.5", hunyuan_video_15,
        lambda: {"prompt": PROMPT, "height": 16, "width": 16, "num_frames": 5}, "video",
        image_sibling="hunyuan_video_15_i2v",
    ),
    Member(
        "kandinsky5_t2v", "Kandinsky 5 video", kandinsky5, lambda: _clip_of(32, max_sequence_length=1000), "video",
        image_sibling="kandinsky5_i2v",
    ),
    Member("cogvideox", "CogVideoX", cogvideox, lambda: _clip_of(frames=8), "video", image_sibling="cogvideox_i2v"),
    Member(
        "cogvideox_i2v", "CogVideoX image to video", cogvideox_of_picture, lambda: _of_picture(frames=8), "video",
        False,
    ),
    Member(
        "cogvideox_v2v", "CogVideoX video to video", cogvideox_of_film,
        lambda: {"prompt": PROMPT, "video": film(8), "height": 16, "width": 16, "max_sequence_length": 32},
        "video", False,
    ),
    Member("mochi", "Mochi", mochi, lambda: _clip_of(frames=7), "video"),
    Member(
        "sana_video", "Sana Video", sana_video,
        lambda: {
            "prompt": PROMPT, "height": 32, "width": 32, "frames": 5, "max_sequence_length": 32,
            "complex_human_instruction": None, "use_resolution_binning": False,
        },
        "video", image_sibling="sana_video_i2v",
    ),
    Member("skyreels", "SkyReels V2", skyreels, _clip_of, "video", image_sibling="skyreels_i2v"),
    Member("skyreels_df", "SkyReels V2 diffusion forcing", skyreels_forcing, _clip_of, "video"),
    Member("anyflow", "AnyFlow", anyflow, _clip_of, "video"),
    Member("chronoedit", "ChronoEdit", chronoedit, _of_picture, "video", False),
    Member("motif", "Motif Video", motif, _clip_of, "video", image_sibling="motif_i2v"),
    Member(
        "helios", "Helios, chunk after chunk", helios,
        lambda: _clip_of(frames=9, num_latent_frames_per_chunk=2, history_sizes=[4, 2, 1]), "video",
    ),
    Member("lucy", "Lucy Edit", lucy, lambda: _clip_of(video=film(5)), "video", False),
    Member(
        "animatediff", "AnimateDiff", animatediff,
        lambda: {"prompt": PROMPT, "height": 16, "width": 16, "num_frames": 2}, "video",
    ),
    Member(
        "animatediff_v2v", "AnimateDiff video to video", animatediff_of_film,
        lambda: {"prompt": PROMPT, "video": film(2), "height": 16, "width": 16}, "video", False,
    ),
    Member(
        "svd", "Stable Video Diffusion", stable_video,
        lambda: {"image": parts.picture(32), "height": 32, "width": 32, "num_frames": 2}, "video", False,
    ),
    Member(
        "latte", "Latte", latte,
        lambda: {"prompt": PROMPT, "height": 16, "width": 16, "video_length": 2, "clean_caption": False}, "video",
    ),
    Member(
        "allegro", "Allegro", allegro, lambda: _clip_of(frames=8, clean_caption=False), "video",
        loads="its autoencoder decodes only with tiling, which is not saved",
    ),
    Member(
        "easyanimate", "EasyAnimate", easyanimate,
        lambda: {"prompt": PROMPT, "negative_prompt": "", "height": 16, "width": 16, "num_frames": 5}, "video",
    ),
    Member("cosmos", "Cosmos Predict 1", cosmos, lambda: _clip_of(32), "video", image_sibling="cosmos_v2w"),
    Member("cosmos_v2w", "Cosmos Predict 1 video to world", cosmos_of_picture, lambda: _of_picture(32), "video", False),
    Member(
        "cosmos2_v2w", "Cosmos Predict 2 video to world", cosmos2_of_picture, lambda: _of_picture(32), "video", False,
    ),
    Member("cosmos25", "Cosmos Predict 2.5", cosmos25, lambda: _clip_of(32, max_sequence_length=256), "video"),
    Member("skyreels_i2v", "SkyReels V2 image to video", skyreels_of_picture, _of_picture, "video", False),
    Member(
        "wan_animate", "Wan Animate", wan_animate,
        lambda: {
            "prompt": PROMPT, "image": parts.picture(16), "pose_video": film(5, seed=10),
            "face_video": film(5, seed=20), "height": 16, "width": 16, "segment_frame_length": 5,
            "max_sequence_length": 32,
        },
        "video", False,
    ),
    Member("anyflow_far", "AnyFlow, chunk after chunk", anyflow_in_chunks, _clip_of, "video"),
    Member(
        "sana_video_i2v", "Sana Video of a picture", sana_video_of_picture,
        lambda: {
            "prompt": PROMPT, "image": parts.picture(32), "height": 32, "width": 32, "frames": 5,
            "max_sequence_length": 32, "complex_human_instruction": None, "use_resolution_binning": False,
        },
        "video", False,
    ),
    Member("motif_i2v", "Motif Video of a picture", motif_of_picture, _of_picture, "video", False),
    Member(
        "framepack", "HunyuanVideo FramePack", hunyuan_framepack,
        lambda: _of_picture(32, 9, prompt_template=PLAIN, latent_window_size=3, max_sequence_length=256), "video",
        False,
    ),
    Member(
        "hunyuan_video_15_i2v", "HunyuanVideo 1.5 image to video", hunyuan_video_15_of_picture,
        lambda: {"prompt": PROMPT, "image": parts.picture(16), "num_frames": 5}, "video", False,
    ),
    Member(
        "kandinsky5_i2v", "Kandinsky 5 image to video", kandinsky5_of_picture,
        lambda: _of_picture(32, 17, max_sequence_length=1000), "video", False,
    ),
    Member(
        "hunyuan_skyreels", "HunyuanVideo SkyReels image to video", hunyuan_skyreels,
        lambda: _of_picture(prompt_template=PLAIN, negative_prompt="dull"), "video", False,
    ),
    Member(
        "kandinsky6", "Kandinsky 6, video with sound", kandinsky6,
        lambda: _clip_of(32, max_sequence_length=1000), "video+audio",
    ),
    Member(
        "animatediff_xl", "AnimateDiff SDXL", animatediff_xl,
        lambda: {"prompt": PROMPT, "height": 16, "width": 16, "num_frames": 2}, "video",
    ),
]  # fmt: skip

NOTES = {
    "allegro": "its scheduler draws noise",
    "anyflow": "reads scheduler.sigmas[i + 1], and tells the network where the step goes",
    "anyflow_far": "sets timesteps anew for every chunk; a cache of keys and values",
    "chronoedit": "cuts the scheduler's model_outputs and last_sample if enable_temporal_reasoning",
    "cogvideox": "other arguments of step() for a CogVideoXDPMScheduler",
    "cosmos": "steps twice, sets back _step_index, and hands over pred_original_sample",
    "cosmos_v2w": "steps twice, sets back _step_index, and hands over pred_original_sample; reads sigmas[i]",
    "cosmos2_v2w": "writes into the config and the last sigma of its scheduler; divides by sigmas[i]",
    "cosmos25": "reads sigmas[i] in place of the timestep",
    "helios": "sets timesteps anew for every chunk; step() takes a generator",
    "hunyuan_video_15": "a guider; no callback",
    "hunyuan_video_15_i2v": "a guider; no callback",
    "kandinsky5_i2v": "steps all frames but the first",
    "kandinsky6": "a deep copy of the scheduler for the sound",
    "ltx_condition": "negates the velocity and passes per_token_timesteps to step()",
    "ltx_i2v": "steps all frames but the first",
    "ltx2": "a deep copy of the scheduler for the sound; divides by sigmas[i]",
    "ltx2_condition": "a deep copy of the scheduler for the sound; divides by sigmas[i]",
    "ltx2_i2v": "a deep copy of the scheduler for the sound; divides by sigmas[i]; steps all frames but the first",
    "mochi": "sigmas that rise from 0 to 1",
    "motif": "a guider, whose momentum starts anew at step 0",
    "motif_i2v": "a guider, whose momentum starts anew at step 0",
    "sana_video_i2v": "steps all frames but the first",
    "skyreels_df": "a deep copy of the scheduler for every latent frame",
    "wan": "reads scheduler.sigmas[i]",
    "wan_animate": "sets timesteps anew for every segment",
}
MEMBERS = [replace(member, note=NOTES.get(member.name, "")) for member in MEMBERS]

# pipelines that are not among them, and why
NOT_BUILT: dict[str, str] = {
    "ConsisIDPipeline": "wants OpenCV",
    "HeliosPyramidPipeline": "takes a list of numbers of steps, one for every size of the picture",
    "Cosmos3OmniPipeline": "a language model and a generator in one, with states of video, sound and action",
    "SanaWMPipeline": "wants cameras, and a second pipeline that refines what the first one made",
}
