"""Parts that several families share: tokenizers, processors, text encoders and autoencoders, made in memory.

Every tokenizer knows single characters only; none needs a file.
"""

import numpy as np
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLWan
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaConfig,
    GemmaForCausalLM,
    GemmaTokenizer,
    GlmConfig,
    GlmForCausalLM,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    T5GemmaConfig,
    T5GemmaEncoderModel,
    T5GemmaModuleConfig,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

PROMPT = "a cat on a mat"

_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_PRINTABLE = [chr(code) for code in range(33, 127)]
_SPACE = "\u2581"


# --- pictures ---------------------------------------------------------------------------------------------------


def picture(width: int = 32, height: int | None = None, seed: int = 0) -> Image.Image:
    """A picture of smooth coloured noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height or width), Image.Resampling.BICUBIC)


def mask(width: int = 32, height: int | None = None) -> Image.Image:
    """White where a picture is to be painted anew: its left half."""
    values = np.zeros((height or width, width), dtype=np.uint8)
    values[:, : width // 2] = 255
    return Image.fromarray(values)


# --- CLIP -------------------------------------------------------------------------------------------------------


def clip_tokenizer(length: int = 77):
    tokens = ["<|startoftext|>", "<|endoftext|>", *_BYTES, *(byte + "</w>" for byte in _BYTES)]
    return CLIPTokenizer(vocab=_numbered(tokens), merges=[], model_max_length=length)


def clip_config(width: int = 32, projection: int = 32, **options):
    return CLIPTextConfig(**{
        "vocab_size": 520, "hidden_size": width, "intermediate_size": 40, "num_attention_heads": 4,
        "num_hidden_layers": 2, "projection_dim": projection, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 1, **options,
    })  # fmt: skip


def clip(width: int = 32, **options):
    return CLIPTextModel(clip_config(width, **options))


def clip_projected(width: int = 32, projection: int = 32, **options):
    return CLIPTextModelWithProjection(clip_config(width, projection, **options))


def clip_vision(width: int = 32, projection: int = 32, size: int = 32, patch: int = 16, **options):
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=width, intermediate_size=40, num_attention_heads=4, num_hidden_layers=2, image_size=size,
        patch_size=patch, projection_dim=projection, **options,
    ))  # fmt: skip


def clip_image_processor(size: int = 32):
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


# --- T5 ---------------------------------------------------------------------------------------------------------


def t5_tokenizer(length: int = 77):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), (_SPACE, -2.0)]
    return T5Tokenizer(vocab=[*pieces, *((c, -3.0) for c in _PRINTABLE)], extra_ids=0, model_max_length=length)


def t5(width: int = 32, **options):
    return T5EncoderModel(T5Config(**{**_t5_sizes(width), **options}))


def umt5(width: int = 32, **options):
    return UMT5EncoderModel(UMT5Config(**{**_t5_sizes(width), **options}))


def _t5_sizes(width):
    return {
        "vocab_size": 104, "d_model": width, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4,
        "is_encoder_decoder": False,
    }  # fmt: skip


# --- Qwen -------------------------------------------------------------------------------------------------------

# one message after another, as Qwen writes them; a picture is a single placeholder, which the processor multiplies
QWEN_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
QWEN_VOCABULARY = 280  # 256 bytes, the special tokens, and some room


def qwen_tokenizer(length: int = 4096):
    tokenizer = Qwen2Tokenizer(
        vocab=_numbered([*_BYTES, "<|endoftext|>"]), merges=[], model_max_length=length,
        unk_token="<|endoftext|>", pad_token="<|endoftext|>", eos_token="<|endoftext|>",
        additional_special_tokens=QWEN_SPECIAL,
    )  # fmt: skip
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = QWEN_CHAT
    return tokenizer


class WordsAndPictures(Qwen2VLProcessor):
    """The processor without its part for videos, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **options):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def qwen_vl_processor(**options):
    pictures = Qwen2VLImageProcessorPil(**{"min_pixels": 28 * 28, "max_pixels": 56 * 56, **options})
    return WordsAndPictures(pictures, qwen_tokenizer(), chat_template=QWEN_CHAT)


def qwen2_5_vl(width: int = 32, **options):
    """The text encoder of Qwen-Image and of others: it reads words and pictures."""
    ids = qwen_tokenizer().convert_tokens_to_ids
    text = {
        "vocab_size": QWEN_VOCABULARY, "hidden_size": width, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [width // 8, width // 16, width // 16],
        },
        "bos_token_id": None, "eos_token_id": ids("<|endoftext|>"), "pad_token_id": ids("<|endoftext|>"), **options,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": width, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": width,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"), vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    ))  # fmt: skip


def qwen3_vl(width: int = 32, layers: int = 2, form=Qwen3VLForConditionalGeneration):
    """As `qwen2_5_vl`, the next generation; its patches are as large as those of `qwen_vl_processor`."""
    ids = qwen_tokenizer().convert_tokens_to_ids
    text = {
        "vocab_size": QWEN_VOCABULARY, "hidden_size": width, "intermediate_size": 40, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]},
        "pad_token_id": ids("<|endoftext|>"),
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": width, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": width,
        "patch_size": 14, "deepstack_visual_indexes": [1], "num_position_embeddings": 64,
    }  # fmt: skip
    return form(Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"), vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    ))  # fmt: skip


def qwen3_vl_body(width: int = 32, layers: int = 2):
    return qwen3_vl(width, layers, Qwen3VLModel)


def qwen3_config(width: int = 32, layers: int = 2, **options):
    return Qwen3Config(**{
        "vocab_size": QWEN_VOCABULARY, "hidden_size": width, "intermediate_size": 40, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096, **options,
    })  # fmt: skip


def qwen3(width: int = 32, layers: int = 2, **options):
    return Qwen3Model(qwen3_config(width, layers, **options))


def qwen3_causal(width: int = 32, layers: int = 2, **options):
    return Qwen3ForCausalLM(qwen3_config(width, layers, **options))


# --- Gemma, Llama, GLM, Mistral ---------------------------------------------------------------------------------


def gemma_tokenizer(length: int = 1024):
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", _SPACE, *_PRINTABLE, "\n"]
    tokens += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokenizer = GemmaTokenizer(vocab=_numbered(tokens), merges=[], model_max_length=length, add_bos_token=True)
    tokenizer.padding_side = "right"
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def gemma2(width: int = 32, **options):
    return Gemma2Model(Gemma2Config(**{
        "vocab_size": 120, "hidden_size": width, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": 2, **options,
    }))  # fmt: skip


def gemma(width: int = 32, **options):
    return GemmaForCausalLM(GemmaConfig(**{
        "vocab_size": 120, "hidden_size": width, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": 2, **options,
    }))  # fmt: skip


def t5_gemma(width: int = 32):
    sizes = {
        "vocab_size": 120, "hidden_size": width, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    }  # fmt: skip
    config = T5GemmaConfig(encoder=T5GemmaModuleConfig(**sizes), is_encoder_decoder=False, vocab_size=120)
    return T5GemmaEncoderModel(config).encoder


def glm_causal(width: int = 32, **options):
    return glm(width, GlmForCausalLM, **options)


def bert_tokenizer(length: int = 77):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_PRINTABLE, *("##" + c for c in _PRINTABLE)]
    return BertTokenizer(vocab=_numbered(tokens), model_max_length=length)


def bert(width: int = 32):
    return BertModel(BertConfig(
        vocab_size=200, hidden_size=width, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128,
    ))  # fmt: skip


def llama_tokenizer(length: int = 512, special: tuple[str, ...] = (), form=LlamaTokenizer, **options):
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *special, _SPACE, *_PRINTABLE, "\n"]
    tokenizer = form(
        vocab=_numbered(tokens), merges=[], model_max_length=length, pad_token="<pad>", add_bos_token=True,
        additional_special_tokens=list(special), **options,
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for message in messages if message['role'] != 'system' %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
        "{% elif part['type'] == 'image' %}{{ '[IMG]' }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    )
    return tokenizer


def llama_config(width: int = 32, layers: int = 2, **options):
    return LlamaConfig(**{
        "vocab_size": 120, "hidden_size": width, "intermediate_size": 40, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 3, **options,
    })  # fmt: skip


def llama(width: int = 32, layers: int = 2, **options):
    return LlamaForCausalLM(llama_config(width, layers, **options))


def glm(width: int = 32, form=GlmModel, **options):
    return form(GlmConfig(**{
        "vocab_size": 120, "hidden_size": width, "intermediate_size": 40, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 3, **options,
    }))  # fmt: skip


def mistral_tokenizer(length: int = 512):
    """Stands in for Mistral's processor, which needs torchvision; of that one the pipelines use the chats only."""
    return llama_tokenizer(length, special=("[IMG]", "[IMG_BREAK]", "[IMG_END]"))


def mistral3(width: int = 32, layers: int = 2):
    text = {
        "model_type": "mistral", "vocab_size": 120, "hidden_size": width, "intermediate_size": 40,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 1024, "pad_token_id": 3,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_id=4, image_token_index=4)
    )


# --- autoencoders -----------------------------------------------------------------------------------------------


def vae(latent_channels: int = 4, channels: tuple[int, ...] = (8, 16), **options):
    """The autoencoder of Stable Diffusion; a picture is `2 ** (len(channels) - 1)` times as wide as its latents."""
    return AutoencoderKL(**{
        "block_out_channels": channels, "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels), "latent_channels": latent_channels,
        "norm_num_groups": 2, "layers_per_block": 1, **options,
    })  # fmt: skip


def flow_vae(latent_channels: int = 4, channels: tuple[int, ...] = (4,), **options):
    """The same, as the flow models have it: a shift, and no convolution next to the latents."""
    options = {
        "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.0609, "scaling_factor": 1.5035,
        "sample_size": 32, "norm_num_groups": 1, **options,
    }  # fmt: skip
    return vae(latent_channels, channels, **options)


def flux2_vae(latent_channels: int = 4, channels: tuple[int, ...] = (4, 8)):
    return AutoencoderKLFlux2(
        block_out_channels=channels, down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels), latent_channels=latent_channels, norm_num_groups=1,
        layers_per_block=1, use_quant_conv=False, use_post_quant_conv=False, sample_size=32,
    )  # fmt: skip


def qwen_vae(latent_channels: int = 4, width: int = 4, levels: int = 3):
    """`2 ** levels` times smaller in either direction; reads a video, or a picture as a video of one frame."""
    return AutoencoderKLQwenImage(
        base_dim=width, z_dim=latent_channels, dim_mult=[1] * (levels + 1), num_res_blocks=1,
        temperal_downsample=[False] * (levels - 2) + [True, True], latents_mean=[0.1] * latent_channels,
        latents_std=[1.5] * latent_channels,
    )  # fmt: skip


def wan_vae(latent_channels: int = 4, width: int = 4, **options):
    return AutoencoderKLWan(
        base_dim=width, z_dim=latent_channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.1] * latent_channels,
        latents_std=[1.5] * latent_channels, **options,
    )  # fmt: skip


def deep_vae(latent_channels: int = 4, channels: tuple[int, ...] = (8, 16)):
    """The deep-compression autoencoder of Sana."""
    blocks = tuple(["ResBlock"] * (len(channels) - 1) + ["EfficientViTBlock"])
    return AutoencoderDC(
        in_channels=3, latent_channels=latent_channels, attention_head_dim=4, encoder_block_types=blocks,
        decoder_block_types=blocks, encoder_block_out_channels=channels, decoder_block_out_channels=channels,
        encoder_qkv_multiscales=((),) * (len(channels) - 1) + ((5,),),
        decoder_qkv_multiscales=((),) * (len(channels) - 1) + ((5,),),
        encoder_layers_per_block=(1,) * len(channels), decoder_layers_per_block=(1,) * len(channels),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip


def _numbered(tokens):
    return {token: number for number, token in enumerate(tokens)}


def parameters(module: torch.nn.Module) -> int:
    """How many numbers a network has learnt, or would."""
    return sum(weight.numel() for weight in module.parameters())
