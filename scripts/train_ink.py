"""Train the bundled text-to-image pipeline:  python scripts/train_ink.py [--out FOLDER] [--steps N] [--seed S]

Latent diffusion over the ink pictures (`steadyflow.datasets.ink`) in the form of Stable Diffusion 1: a VAE, a text
encoder with its tokenizer and a U-Net with cross attention, saved in diffusers' own format; and the judge, a network
that reads digit and ink off a picture, into the lab (--judge FILE). Half an hour on two cores. What is finished lies in
WORK, and is not done again.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from learning import for_transformers_4
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import steadyflow as sf
from steadyflow.datasets.ink import INKS, caption, ink
from steadyflow_lab.judge import Judge

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="src/steadyflow/models/weights/ink")
parser.add_argument("--judge", default="lab/src/steadyflow_lab/weights/judge.safetensors")
parser.add_argument("--work", default="build/ink")
parser.add_argument("--steps", type=int, default=7000)
parser.add_argument("--vae-steps", type=int, default=2000)
parser.add_argument("--judge-steps", type=int, default=2500)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--pool", type=int, default=16000)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
work, out = Path(options.work), Path(options.out)
work.mkdir(parents=True, exist_ok=True)
generator = torch.Generator().manual_seed(options.seed)
torch.manual_seed(options.seed)


def learn(name, parts, loss, steps, lr):
    """Adam with a cosine decay; the averaged parts, kept in the work folder once they are there."""
    done = work / f"{name}.safetensors"
    averaged = copy.deepcopy(parts).eval().requires_grad_(False)
    if done.is_file():
        averaged.load_state_dict(load_file(done))
        return averaged
    optimizer = torch.optim.AdamW(parts.parameters(), lr=lr, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    total = 0.0
    for step in range(1, steps + 1):
        value = loss(parts)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        decay.step()
        with torch.no_grad():
            for mean, new in zip(averaged.parameters(), parts.parameters(), strict=True):
                mean.lerp_(new, 1.0 - min(0.999, step / (step + 10.0)))
            for mean, new in zip(averaged.buffers(), parts.buffers(), strict=True):
                mean.copy_(new)
        total += value.item()
        if step % 250 == 0:
            print(f"{name} step {step:6d}  loss {total / 250:.5f}", flush=True)
            total = 0.0
    save_file({name: value.contiguous() for name, value in averaged.state_dict().items()}, done)
    return averaged


def tokenizer():
    """Every word of the captions is one token, as are single characters of other words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    merges = []
    for word in sorted({word for digit in range(10) for word in caption(digit).split()} | {"in", "ink", *INKS}):
        piece = word[0]
        for letter in [*word[1:-1], word[-1] + "</w>"] if len(word) > 1 else []:
            if (piece, letter) not in merges:
                merges.append((piece, letter))
                tokens.append(piece + letter)
            piece += letter
    vocabulary = {token: k for k, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=12)


def captions(rows):
    """Of pictures of the pool: half with the ink, half without, one in ten empty."""
    which = torch.rand(len(rows), generator=generator).tolist()
    return ["" if u < 0.1 else pool.caption(k, ink=u < 0.55) for k, u in zip(rows, which, strict=True)]


def judge_loss(parts):
    pictures = ink("train", 2 * options.batch, generator)
    images = pictures.images + 0.05 * torch.randn(pictures.images.shape, generator=generator)
    digit, colour = parts[0](images)
    return functional.cross_entropy(digit, pictures.digits) + functional.cross_entropy(colour, pictures.inks)


judge = learn("judge", torch.nn.ModuleList([Judge()]), judge_loss, options.judge_steps, 2e-3)[0]

vae = AutoencoderKL(
    sample_size=32, block_out_channels=(12, 24, 40), down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3, layers_per_block=1, latent_channels=4, norm_num_groups=4,
)  # fmt: skip
vae = vae.to(memory_format=torch.channels_last)


def vae_loss(parts):
    images = ink("train", options.batch, generator).images
    posterior = parts[0].encode(images).latent_dist
    back = parts[0].decode(posterior.sample(generator)).sample
    return (
        functional.l1_loss(back, images)
        + functional.mse_loss(back, images)
        + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()
    )


vae = learn("vae", torch.nn.ModuleList([vae]), vae_loss, options.vae_steps, 2e-3)[0]
with torch.no_grad():
    pictures = ink("held-out", 512, generator)
    posterior = vae.encode(pictures.images).latent_dist
    spread = posterior.mean.std().item()
    codec = (vae.decode(posterior.mean).sample - pictures.images).square().mean().item()
vae.register_to_config(scaling_factor=1.0 / spread)

words = tokenizer()
text = CLIPTextModel(
    CLIPTextConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=12, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=64,
    )
)  # fmt: skip
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(48, 80), layers_per_block=1, cross_attention_dim=64, attention_head_dim=16,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=16,
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip
scheduler = DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
    steps_offset=1,
)  # fmt: skip


with torch.no_grad():  # latents of a pool of pictures, encoded once
    pool = ink("train", options.pool, generator)
    posteriors = [vae.encode(part).latent_dist for part in pool.images.split(256)]
    middles = torch.cat([p.mean for p in posteriors]) / spread
    widths = torch.cat([p.std for p in posteriors]) / spread
    read = {
        text: words(text, padding="max_length", truncation=True, return_tensors="pt").input_ids[0]
        for text in {"", *(caption(d, c) for d in range(10) for c in (None, *INKS))}
    }


def noise_loss(parts):
    network, encoder = parts
    n = options.batch
    rows = torch.randint(len(middles), (n,), generator=generator)
    latents = middles[rows] + widths[rows] * torch.randn(n, *middles.shape[1:], generator=generator)
    ids = torch.stack([read[text] for text in captions(rows.tolist())])
    times = (1000.0 * (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n).long()
    noise = torch.randn(latents.shape, generator=generator)
    noisy = scheduler.add_noise(latents, noise, times)
    return functional.mse_loss(network(noisy, times, encoder(ids)[0]).sample, noise)


unet, text = learn("unet", torch.nn.ModuleList([unet, text]), noise_loss, options.steps, 1e-3)

pipe = StableDiffusionPipeline(
    vae=vae, text_encoder=text, tokenizer=words, unet=unet, scheduler=scheduler, safety_checker=None,
    feature_extractor=None, requires_safety_checker=False,
)  # fmt: skip
model = sf.from_diffusers(pipe)
n = 200
with torch.no_grad():
    truth = [k % 10 for k in range(n)]
    inks = [(k // 10) % 4 for k in range(n)]
    prompts = [caption(d, list(INKS)[c]) for d, c in zip(truth, inks, strict=True)]
    drawn = sf.sample(model.with_condition(prompts, guidance=2.0), n=n, solver="dpmpp-2m", steps=20, seed=1).x
    seen = [head.argmax(1) for head in judge(model.codec.decode(drawn))]
    known = [head.argmax(1) for head in judge(pictures.images)]
quality = {
    "judge on held-out digits": (known[0] == pictures.digits).float().mean().item(),
    "judge on held-out inks": (known[1] == pictures.inks).float().mean().item(),
    "codec rmse on held-out pictures": codec**0.5,
    "samples seen as their digit": (seen[0] == torch.tensor(truth)).float().mean().item(),
    "samples seen in their ink": (seen[1] == torch.tensor(inks)).float().mean().item(),
    "parameters": {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("vae", vae), ("text", text), ("unet", unet), ("judge", judge))
    },
}
print(json.dumps(quality, indent=2))
unet.half(), vae.half()  # the text encoder stays float32, as transformers loads weights in the type they have
pipe.save_pretrained(out)
for_transformers_4(Path(out))
save_file(judge.half().state_dict(), options.judge, {"format": "pt"})
told = {name: value for name, value in vars(options).items() if name not in ("out", "judge", "work")}
weights = {"vae": "float16", "unet": "float16", "text_encoder": "float32", "judge": "float16"}
facts = {"options": told, "quality": quality, "weights": weights}
(out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
