"""Tiny pipelines of the audio families."""

import diffusers
from diffusers import (
    AutoencoderOobleck,
    CosineDPMSolverMultistepScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.autoencoders import autoencoder_same
from diffusers.pipelines import ace_step as ace
from diffusers.pipelines import audioldm2, stable_audio, stable_audio_3
from tokenizers import pre_tokenizers
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5GemmaConfig,
    T5GemmaEncoderModel,
    T5GemmaModuleConfig,
)

from . import parts
from ._member import Member

PROMPT = parts.PROMPT


def _oobleck(latent_channels, rate):
    return AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[1, 2], decoder_channels=4,
        decoder_input_channels=latent_channels, audio_channels=2, channel_multiples=[2, 4], sampling_rate=rate,
    )  # fmt: skip


def stable_audio_1():
    net = diffusers.StableAudioDiTModel(
        sample_size=16, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4,
        num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=4, time_proj_dim=8,
        global_states_input_dim=8, cross_attention_input_dim=4,
    )  # fmt: skip
    projection = stable_audio.StableAudioProjectionModel(
        text_encoder_dim=32, conditioning_dim=4, min_value=0, max_value=32
    )
    scheduler = CosineDPMSolverMultistepScheduler(
        solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
    )
    return diffusers.StableAudioPipeline(
        transformer=net, scheduler=scheduler, vae=_oobleck(4, 4), text_encoder=parts.t5(),
        tokenizer=parts.t5_tokenizer(32), projection_model=projection,
    )  # fmt: skip


def stable_audio_new():
    net = diffusers.StableAudio3DiTModel(
        io_channels=8, patch_size=1, embed_dim=32, depth=2, num_heads=4, cond_token_dim=16, global_cond_dim=16,
        local_add_cond_dim=9, timestep_features_dim=16, ff_mult=2, num_memory_tokens=2,
        use_differential_attention=False,
    )  # fmt: skip
    vae = autoencoder_same.AutoencoderSAME(
        audio_channels=2, patch_size=2, encoder_channels=8, encoder_c_mults=(2,), encoder_strides=(2,),
        encoder_transformer_depths=(1,), latent_dim=8, use_differential_attention=False, dim_heads=4, ff_mult=2,
        sampling_rate=16,
    )  # fmt: skip
    half = T5GemmaModuleConfig(
        vocab_size=120, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=256, sliding_window=64,
        layer_types=["full_attention", "full_attention"],
    ).to_dict()  # fmt: skip
    return diffusers.StableAudio3Pipeline(
        transformer=net, vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=False),
        text_encoder=T5GemmaEncoderModel(T5GemmaConfig(encoder=half, decoder=half, is_encoder_decoder=False)),
        tokenizer=parts.gemma_tokenizer(),
        duration_embedder=stable_audio_3.StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16),
    )  # fmt: skip


def ace_step():
    heads = {
        "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "sliding_window": 16,
    }  # fmt: skip
    net = diffusers.AceStepTransformer1DModel(
        num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2, **heads
    )
    encoder = ace.AceStepConditionEncoder(
        text_hidden_dim=32, timbre_hidden_dim=8, num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1, **heads,
    )  # fmt: skip
    return diffusers.AceStepPipeline(
        transformer=net, condition_encoder=encoder, vae=_oobleck(8, 50), text_encoder=parts.qwen3(),
        tokenizer=parts.qwen_tokenizer(), scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
    )  # fmt: skip


def longcat_audio():
    net = diffusers.LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=2, dit_heads=4, dit_text_dim=32, latent_dim=8, text_conv=False
    )
    vae = diffusers.LongCatAudioDiTVae(
        in_channels=1, channels=8, c_mults=[1, 2], strides=[2], latent_dim=8, encoder_latent_dim=16,
        downsampling_ratio=2, sample_rate=240,
    )  # fmt: skip
    return diffusers.LongCatAudioDiTPipeline(
        vae=vae, text_encoder=parts.umt5(), tokenizer=parts.t5_tokenizer(), transformer=net
    )


def audio_ldm_2():
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = RobertaTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77
    )
    words = {
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "hidden_size": 8, "intermediate_size": 16,
        "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 300, "projection_dim": 8,
        "max_position_embeddings": 100,
    }  # fmt: skip
    sounds = {
        "spec_size": 8, "window_size": 4, "num_mel_bins": 8, "intermediate_size": 16, "depths": [1, 1],
        "num_attention_heads": [1, 1], "num_hidden_layers": 1, "hidden_size": 192, "projection_dim": 8,
        "patch_size": 2, "patch_stride": 2, "patch_embed_input_channels": 4,
    }  # fmt: skip
    unet = diffusers.AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=(8, 16),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    writer = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=100, n_positions=199))
    writer.config.max_new_tokens = 2
    voice = SpeechT5HifiGanConfig(
        model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    return diffusers.AudioLDM2Pipeline(
        unet=unet, scheduler=scheduler, vae=parts.vae(in_channels=1, out_channels=1),
        text_encoder=ClapModel(ClapConfig(text_config=words, audio_config=sounds, projection_dim=16)),
        text_encoder_2=parts.t5(), tokenizer=tokenizer, tokenizer_2=parts.t5_tokenizer(),
        feature_extractor=ClapFeatureExtractor(feature_size=8, hop_length=7900), language_model=writer,
        projection_model=audioldm2.AudioLDM2ProjectionModel(
            text_encoder_dim=16, text_encoder_1_dim=32, langauge_model_dim=16
        ),
        vocoder=SpeechT5HifiGan(voice),
    )  # fmt: skip


MEMBERS: list[Member] = [
    Member(
        "stable_audio", "Stable Audio", stable_audio_1, lambda: {"prompt": PROMPT, "audio_end_in_s": 4.0}, "audio",
        note="its scheduler draws noise; no callback with latents",
    ),
    Member("stable_audio_3", "Stable Audio 3", stable_audio_new, lambda: {"prompt": PROMPT, "duration": 1.0}, "audio"),
    Member(
        "ace_step", "ACE-Step", ace_step,
        lambda: {"prompt": PROMPT, "lyrics": "la la", "audio_duration": 0.4, "max_text_length": 256}, "audio",
        note="its own times in [0, 1]; guidance with momentum",
    ),
    Member(
        "longcat_audio", "LongCat AudioDiT", longcat_audio, lambda: {"prompt": PROMPT, "audio_duration_s": 0.2},
        "audio", note="puts its own scheduler in the place of any but FlowMatchEulerDiscreteScheduler when it is made",
    ),
    Member("audioldm2", "AudioLDM 2", audio_ldm_2, lambda: {"prompt": PROMPT, "audio_length_in_s": 0.01}, "audio"),
]  # fmt: skip

NOT_BUILT: dict[str, str] = {}
