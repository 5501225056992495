"""Train the bundled pipeline of videos:  python scripts/train_moving.py [--steps N] [--seed S]

A flow model of moving digits (`steadyflow_lab.datasets.moving`) in the form of Wan: a causal VAE of videos, a UMT5 text
encoder with its tokenizer, and a transformer, saved in diffusers' own format; and the judge of frames, which is trained
on digits that the pipeline has not seen. Some fifty minutes on one core. What is finished lies in WORK, and is not
done again; training that was stopped goes on.
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from learning import captions, learn, whole_words
from safetensors.torch import save_file
from torch.nn import functional
from transformers import UMT5Config, UMT5EncoderModel

import steadyflow as sf
from steadyflow import metrics
from steadyflow.diffusers import load_pipeline
from steadyflow_lab.datasets.moving import COLOURS, DIGITS, DIRECTIONS, FRAMES, SIDE, caption, moving
from steadyflow_lab.models import CALLS
from steadyflow_lab.moving_judge import MovingJudge

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="lab/src/steadyflow_lab/weights/moving")
parser.add_argument("--judge", default="lab/src/steadyflow_lab/weights/moving-judge.safetensors")
parser.add_argument("--work", default="build/moving")
parser.add_argument("--steps", type=int, default=5000)
parser.add_argument("--stills-steps", type=int, default=500)
parser.add_argument("--vae-steps", type=int, default=1500)
parser.add_argument("--judge-steps", type=int, default=1200)
parser.add_argument("--text-steps", type=int, default=1000)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--vae-batch", type=int, default=8)
parser.add_argument("--pool", type=int, default=10000)
parser.add_argument("--samples", type=int, default=80)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--part", choices=["vae", "judge", "text", "transformer", "all"], default="all")
options = parser.parse_args()
work, out = Path(options.work), Path(options.out)
work.mkdir(parents=True, exist_ok=True)
torch.manual_seed(options.seed)
LENGTH = 8  # the longest caption has five words and its end
PADDED = 512  # tokens that the pipeline's own call has by default
CHANNELS = 16

vae = AutoencoderKLWan(
    base_dim=16, decoder_base_dim=16, z_dim=CHANNELS, dim_mult=[1, 2, 2], num_res_blocks=1, attn_scales=[],
    temperal_downsample=[True, True], is_residual=True, scale_factor_temporal=4, scale_factor_spatial=8,
    in_channels=12, out_channels=12, patch_size=2,
    latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS,
)  # fmt: skip
with torch.no_grad():  # videos centred, and little noise in latents; else it learns for long to ignore both
    some = moving("train", 64, torch.Generator().manual_seed(options.seed)).videos
    first, last = vae.encoder.conv_in, vae.decoder.conv_out
    first.weight /= some.std()
    first.bias.copy_(-some.mean() * first.weight.sum((1, 2, 3, 4)))
    last.weight *= some.std()
    last.bias.fill_(some.mean().item())
    vae.quant_conv.bias[CHANNELS:] = -6.0
for weight in vae.parameters():  # its convolutions are faster so
    if weight.ndim == 5:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)


def vae_loss(parts, generator, batch, frames):
    """The loss over so many successive frames of videos."""
    videos = moving("train", batch, generator, empty=0.02).videos
    at = torch.randint(FRAMES - frames + 1, (), generator=generator).item()
    videos = videos[:, :, at : at + frames].contiguous(memory_format=torch.channels_last_3d)
    posterior = parts[0].encode(videos).latent_dist
    back = parts[0].decode(posterior.sample(generator)).sample.float()
    edges = sum(functional.l1_loss(back.diff(dim=k), videos.diff(dim=k)) for k in (-1, -2))
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return functional.l1_loss(back, videos) + 4.0 * functional.mse_loss(back, videos) + 0.5 * edges + 1e-4 * kl


if options.part in ("vae", "transformer", "all"):
    parts = torch.nn.ModuleList([vae])
    stills = partial(vae_loss, batch=4 * options.vae_batch, frames=1)  # cheap, and what to begin with
    parts = learn(work, "vae-stills", parts, stills, options.stills_steps, 1.5e-3, seed=options.seed, every=50)
    whole = partial(vae_loss, batch=options.vae_batch, frames=FRAMES)
    vae = learn(work, "vae", parts.requires_grad_(True), whole, options.vae_steps, 1.5e-3, seed=options.seed, every=50)[
        0
    ]
    with torch.no_grad():
        held = moving("test", 256, torch.Generator().manual_seed(options.seed))
        posterior = vae.encode(held.videos).latent_dist
        middle, spread = posterior.mean.mean((0, 2, 3, 4)), posterior.mean.std((0, 2, 3, 4))
        codec = (vae.decode(posterior.mean).sample - held.videos).square().mean().item()
    vae.register_to_config(latents_mean=middle.tolist(), latents_std=spread.tolist())
    print(f"codec rmse {codec**0.5:.4f}, means {middle.tolist()}, spreads {spread.tolist()}", flush=True)
    if options.part == "vae":
        raise SystemExit


def judge_loss(parts, generator):
    drawn = moving("judge", 40, generator, empty=0.1)
    frames = metrics.as_frames(drawn.videos[:, :, torch.randperm(FRAMES, generator=generator)[:2]])
    seen = parts[0](frames + 0.05 * torch.randn(frames.shape, generator=generator))
    digit, colour = (value.repeat_interleave(2) for value in (drawn.digit, drawn.colour))
    there = digit < len(DIGITS)
    return functional.cross_entropy(seen.digit, digit) + functional.cross_entropy(seen.colour[there], colour[there])


judge = learn(
    work, "judge", torch.nn.ModuleList([MovingJudge()]), judge_loss, options.judge_steps, 2e-3, seed=options.seed
)[0]
if options.part == "judge":
    raise SystemExit

words = whole_words({"a", "moving", "nothing", *DIGITS, *COLOURS, *DIRECTIONS}, PADDED)
text = UMT5EncoderModel(
    UMT5Config(
        vocab_size=len(words), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
        relative_attention_num_buckets=16, relative_attention_max_distance=16, feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )
)  # fmt: skip
NAMES = ([*DIGITS, "nothing"], COLOURS, DIRECTIONS)
MUCH = [len(names) for names in NAMES]
told_of = partial(captions, caption=caption, much=MUCH, digit=3, left_out=0.6)


def read(encoder, told):
    """What the pipeline's transformer is given of texts, but for the number of zeros at the end, which is one here."""
    found = words(told, padding="max_length", max_length=LENGTH, return_tensors="pt")
    states = encoder(found.input_ids, found.attention_mask).last_hidden_state
    states = states * found.attention_mask[:, :, None]
    return torch.cat([states, states.new_zeros(len(states), 1, states.shape[-1])], 1)


def reading_loss(parts, generator):
    """How well linear maps of the mean of its tokens tell what a caption says."""
    facts = torch.stack([torch.randint(much, (128,), generator=generator) for much in MUCH], 1)
    told, said = told_of(facts, generator=generator)
    states = read(parts[0], told)[:, :-1]
    mean = states.sum(1) / (states.abs().sum(-1, keepdim=True) > 0).sum(1)
    return sum(functional.cross_entropy(head(mean), truth) for head, truth in zip(parts[1:], said.T, strict=True))


# the text encoder learns to read before the transformer learns to draw
heads = [torch.nn.Linear(64, much + 1) for much in MUCH]
text = learn(
    work, "text", torch.nn.ModuleList([text, *heads]), reading_loss, options.text_steps, 2e-3, seed=options.seed
)[0]
if options.part == "text":
    raise SystemExit

transformer = WanTransformer3DModel(
    patch_size=(1, 1, 1), num_attention_heads=3, attention_head_dim=32, in_channels=CHANNELS, out_channels=CHANNELS,
    text_dim=64, freq_dim=64, ffn_dim=288, num_layers=7, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
    rope_max_seq_len=32,
)  # fmt: skip


class LastKeyForMany(WanAttnProcessor):
    """Attention to a text whose last token stands for all those that the pipeline fills up with zeros.

    Keys have no places there, so that n equal ones weigh as much as one of them with log n added to its logit.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        bias = torch.zeros(encoder_hidden_states.shape[1], dtype=hidden_states.dtype)
        bias[-1] = math.log(PADDED - LENGTH)
        return super().__call__(attn, hidden_states, encoder_hidden_states, bias[None, None, None], rotary_emb)


def pool():
    """Latents of videos with their captions, encoded once."""
    file = work / "pool.pt"
    if file.is_file():
        return torch.load(file, weights_only=True)
    generator = torch.Generator().manual_seed(options.seed + 7)
    means, spreads, facts = [], [], []
    with torch.no_grad():
        for _ in range(options.pool // 100):
            part = moving("train", 100, generator, empty=0.04)
            videos = part.videos.contiguous(memory_format=torch.channels_last_3d)
            posterior = vae.encode(videos).latent_dist
            means.append(((posterior.mean - middle.view(-1, 1, 1, 1)) / spread.view(-1, 1, 1, 1)).half())
            spreads.append((posterior.std / spread.view(-1, 1, 1, 1)).half())
            facts.append(torch.stack([part.digit, part.colour, part.direction], 1))
    held = {"means": torch.cat(means), "spreads": torch.cat(spreads), "facts": torch.cat(facts)}
    torch.save(held, file)
    return held


videos = pool()
own = [block.attn2.processor for block in transformer.blocks]
for block in transformer.blocks:
    block.attn2.set_processor(LastKeyForMany())


def flow_loss(parts, generator):
    n = options.batch
    rows = torch.randint(len(videos["means"]), (n,), generator=generator)
    means, spreads = videos["means"][rows].float(), videos["spreads"][rows].float()
    clean = means + spreads * torch.randn(means.shape, generator=generator)
    u = torch.randn(n, generator=generator).sigmoid() * 0.9 + 0.1 * torch.rand(n, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    t = u[:, None, None, None, None]
    with torch.no_grad():
        states = read(text, told_of(videos["facts"][rows], generator=generator)[0])
    seen = parts[0]((1 - t) * clean + t * noise, 1000.0 * u, states).sample
    return functional.mse_loss(seen, noise - clean)


transformer = learn(
    work,
    "transformer",
    torch.nn.ModuleList([transformer]),
    flow_loss,
    options.steps,
    2e-3,
    seed=options.seed,
    every=200,
)[0]
for block, processor in zip(transformer.blocks, own, strict=True):
    block.attn2.set_processor(processor)

pipe = WanPipeline(
    tokenizer=words, text_encoder=text, vae=vae, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler()
)
transformer.half(), vae.half()  # the text encoder stays float32, as transformers loads weights in the type they have
pipe.save_pretrained(out)
for file in (out / "model_index.json", out / "tokenizer" / "tokenizer_config.json"):  # the name that 4 and 5 know
    file.write_text(file.read_text(encoding="utf-8").replace('"T5Tokenizer"', '"T5TokenizerFast"'), encoding="utf-8")
save_file(judge.half().state_dict(), options.judge, {"format": "pt"})
judge.float()


def share(seen, truth):
    return (seen == truth).float().mean().item()


n, guidance = options.samples, 2.0
model = load_pipeline(out, **CALLS["moving"])
with torch.no_grad():
    asked = [(k % 10, (k // 10) % len(COLOURS), (k // 3) % len(DIRECTIONS)) for k in range(n)]
    truth = torch.tensor(asked)
    prompts = model.with_condition([caption(*facts) for facts in asked], guidance=guidance)
    drawn = model.decode(sf.sample(prompts, n=n, nfe=24, seed=1).x)
    read_off = [head.argmax(1).view(n, FRAMES) for head in judge(metrics.as_frames(drawn))]
    ink = (drawn - drawn.median(2, keepdim=True).values).abs().sum(1) + 1e-6
    axis = torch.arange(SIDE) + 0.5
    places = (
        torch.stack([(ink.sum(-2) * axis).sum(-1), (ink.sum(-1) * axis).sum(-1)], -1) / ink.sum((-1, -2))[..., None]
    )
    way = torch.nn.functional.normalize(places[:, -1] - places[:, 0], dim=-1)
    way = (way @ torch.tensor(list(DIRECTIONS.values())).float().T).argmax(1)
    known = judge(metrics.as_frames(held.videos))
    frames = [value.repeat_interleave(FRAMES) for value in (held.digit, held.colour)]
quality = {
    "judge on held-out digits": share(known.digit.argmax(1), frames[0]),
    "judge on held-out inks": share(known.colour.argmax(1), frames[1]),
    "codec rmse on held-out videos": codec**0.5,
    "frames of samples seen as their digit": share(read_off[0], truth[:, :1]),
    "frames of samples seen in their ink": share(read_off[1], truth[:, 1:2]),
    "samples seen as one digit in all frames": (read_off[0] == read_off[0][:, :1]).all(1).float().mean().item(),
    "samples that move as told": share(way, truth[:, 2]),
    "guidance of the samples": guidance,
    "samples": n,
    "parameters": {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("vae", vae), ("text", text), ("transformer", transformer), ("judge", judge))
    },
}
print(json.dumps(quality, indent=2))
told = {name: value for name, value in vars(options).items() if name not in ("out", "judge", "work", "part")}
weights = {"vae": "float16", "transformer": "float16", "text_encoder": "float32", "judge": "float16"}
facts = {"options": told, "quality": quality, "weights": weights}
(out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
