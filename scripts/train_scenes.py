"""Train the bundled pipeline over photographs:  python scripts/train_scenes.py [--steps N] [--seed S]

A flow model of the scenes (`steadyflow_lab.datasets.scenes`) in the form of Stable Diffusion 3: a VAE, two CLIP text
encoders with their tokenizer, and a transformer with joint attention, saved in diffusers' own format; and the judge,
which is trained on digits and parts of photographs that the pipeline has not seen. Some two hours on one core. What is
finished lies in WORK, and is not done again; training that was stopped goes on. With --begin FOLDER the codec, the text
encoders and the judge stay as they are, and the transformer is trained for so many steps more. The bundled pipeline was
made without options, and then with --begin lab/src/steadyflow_lab/weights/scenes --seed 1 --steps 7500.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from learning import captions, for_transformers_4, learn, tokenizer
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import steadyflow as sf
from steadyflow_lab.datasets.scenes import COLOURS, DIGITS, GROUNDS, PLACES, SIDE, SIZES, caption, scenes
from steadyflow_lab.scenes_judge import SceneJudge

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="lab/src/steadyflow_lab/weights/scenes")
parser.add_argument("--judge", default="lab/src/steadyflow_lab/weights/scenes-judge.safetensors")
parser.add_argument("--work", default="build/scenes")
parser.add_argument("--steps", type=int, default=9000)
parser.add_argument("--crops-steps", type=int, default=7000)
parser.add_argument("--vae-steps", type=int, default=500)
parser.add_argument("--vae-batch", type=int, default=8)
parser.add_argument("--judge-steps", type=int, default=2500)
parser.add_argument("--text-steps", type=int, default=1000)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--pool", type=int, default=40000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument(
    "--begin", help="the folder of a pipeline made by this script, whose transformer is trained further"
)
parser.add_argument("--part", choices=["judge", "text", "vae", "transformer", "all"], default="all")
options = parser.parse_args()
work, out = Path(options.work), Path(options.out)
work.mkdir(parents=True, exist_ok=True)
torch.manual_seed(options.seed)
begun = None
if options.begin is not None:
    begun = StableDiffusion3Pipeline.from_pretrained(options.begin, text_encoder_3=None, tokenizer_3=None)
NAMES = ([*DIGITS, "nothing"], COLOURS, SIZES, PLACES, GROUNDS)
MUCH = [len(names) for names in NAMES]
told_of = partial(captions, caption=caption, much=MUCH, digit=4, left_out=0.4)
LENGTH = 12  # the longest caption has eight words and two commas, between the two ends


def judge_loss(parts, generator):
    pictures = scenes("judge", options.batch, generator)
    noisy = pictures.images + 0.05 * torch.randn(pictures.images.shape, generator=generator)
    there = pictures.digit < len(DIGITS)
    seen = parts[0](noisy.contiguous(memory_format=torch.channels_last))
    loss = functional.cross_entropy(seen.digit.float(), pictures.digit)
    for name in ("colour", "size", "place"):
        loss = loss + functional.cross_entropy(getattr(seen, name).float()[there], getattr(pictures, name)[there])
    return loss + 0.2 * functional.cross_entropy(seen.ground.float(), pictures.ground)


if options.part in ("judge", "all"):
    judge = torch.nn.ModuleList([SceneJudge()]).to(memory_format=torch.channels_last)
    if begun is None:
        judge = learn(work, "judge", judge, judge_loss, options.judge_steps, 2e-3, seed=options.seed)
    else:
        judge[0].load_state_dict({name: value.float() for name, value in load_file(options.judge).items()})
    judge = judge[0]
    if options.part == "judge":
        raise SystemExit

words = tokenizer(
    {word for names in (DIGITS, COLOURS, SIZES, PLACES, GROUNDS) for name in names for word in name.split()}
    | {"a", "over", "nothing", ","},
    LENGTH,
)


def encoder():
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2,
            max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=64,
        )
    )  # fmt: skip


def read(encoders, told, zeros=0):
    """What the pipeline gives to its transformer of texts: the states of their tokens, and one embedding of each.

    The pipeline appends as many zeros to the states as its max_sequence_length says.
    """
    ids = words(told, padding="max_length", return_tensors="pt").input_ids
    found = [text(ids, output_hidden_states=True) for text in encoders]
    states = torch.cat([out.hidden_states[-2] for out in found], -1)
    return functional.pad(states, (0, 0, 0, zeros)), torch.cat([out.text_embeds for out in found], -1)


def reading_loss(parts, generator):
    """How well linear maps of its embedding tell what a caption says."""
    facts = torch.stack([torch.randint(len(names), (128,), generator=generator) for names in NAMES], 1)
    told, said = told_of(facts, generator=generator)
    pooled = functional.layer_norm(read(parts[:2], told)[1], (128,))
    return sum(functional.cross_entropy(head(pooled), truth) for head, truth in zip(parts[2:], said.T, strict=True))


# the text encoders learn to read before the transformer learns to draw: together, digits are not told apart for long
if begun is None:
    heads = [torch.nn.Linear(128, much + 1) for much in MUCH]
    reading = torch.nn.ModuleList([encoder(), encoder(), *heads])
    reading = learn(work, "text", reading, reading_loss, options.text_steps, 2e-3, seed=options.seed)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(options.seed)
        facts = torch.stack([torch.randint(len(names), (4000,), generator=generator) for names in NAMES], 1)
        told, said = told_of(facts, generator=generator)
        pooled = read(reading[:2], told)[1]
        found = [head(functional.layer_norm(pooled, (128,))).argmax(1) for head in reading[2:]]
        legible = [(seen == truth).float().mean().item() for seen, truth in zip(found, said.T, strict=True)]
        for text in reading[:2]:
            text.text_projection.weight /= pooled.std()
    first, second = reading[:2]
    print(f"read off captions: {legible}", flush=True)
else:
    first, second = begun.text_encoder, begun.text_encoder_2
if options.part == "text":
    raise SystemExit

vae = AutoencoderKL(
    sample_size=64, block_out_channels=(16, 32, 64), down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3, layers_per_block=1, latent_channels=8, norm_num_groups=8,
    use_quant_conv=False, use_post_quant_conv=False,
)  # fmt: skip


LOOSE = [(18, 18), (46, 18), (32, 32), (18, 46), (46, 46)]  # the codec is to know no places


def vae_loss(parts, generator, side):
    """The loss over squares of so many pixels, which hold part of a digit more often than not."""
    drawn = scenes("train", options.vae_batch, generator, middles=LOOSE, jitter=2)
    x, y = torch.randint((SIDE - side) // 4 + 1, (2,), generator=generator).mul(4).tolist()
    images = drawn.images[:, :, y : y + side, x : x + side].contiguous(memory_format=torch.channels_last)
    posterior = parts[0].encode(images).latent_dist
    back = parts[0].decode(posterior.sample(generator)).sample
    edges = functional.l1_loss(back.diff(dim=-1), images.diff(dim=-1)) + functional.l1_loss(
        back.diff(dim=-2), images.diff(dim=-2)
    )
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return functional.l1_loss(back, images) + functional.mse_loss(back, images) + 0.5 * edges + 1e-4 * kl


if begun is not None:
    vae.load_state_dict(begun.vae.state_dict())
vae = torch.nn.ModuleList([vae]).to(memory_format=torch.channels_last)
small, whole = partial(vae_loss, side=SIDE // 2), partial(vae_loss, side=SIDE)
if begun is None:
    vae = learn(work, "vae-crops", vae, small, options.crops_steps, 2e-3, seed=options.seed).requires_grad_(True)
    vae = learn(work, "vae", vae, whole, options.vae_steps, 5e-4, seed=options.seed)
vae = vae[0].eval().requires_grad_(False)
with torch.no_grad():
    held = scenes("test", 512, torch.Generator().manual_seed(options.seed))
    posterior = vae.encode(held.images).latent_dist
    middle, spread = posterior.mean.mean().item(), posterior.mean.std().item()
    if begun is not None:
        middle, spread = begun.vae.config.shift_factor, 1.0 / begun.vae.config.scaling_factor
    codec = (vae.decode(posterior.mean).sample - held.images).square().mean().item()
vae.register_to_config(scaling_factor=1.0 / spread, shift_factor=middle)
print(f"codec rmse {codec**0.5:.4f}, mean {middle:.3f}, std {spread:.3f}", flush=True)
if options.part == "vae":
    raise SystemExit

transformer = SD3Transformer2DModel(
    sample_size=16, patch_size=2, in_channels=8, out_channels=8, num_layers=6, attention_head_dim=32,
    num_attention_heads=4, joint_attention_dim=128, caption_projection_dim=128, pooled_projection_dim=128,
    pos_embed_max_size=16, qk_norm="rms_norm",
)  # fmt: skip
for block in transformer.transformer_blocks:  # every block begins as the identity, and the network as zero
    for part in (block.norm1.linear, block.norm1_context.linear):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
for part in (transformer.norm_out.linear, transformer.proj_out):
    torch.nn.init.zeros_(part.weight)
if begun is not None:
    transformer.load_state_dict(begun.transformer.state_dict())


def pool():
    """Latents of pictures with every caption they may have, encoded once."""
    file = work / "pool.pt"
    if file.is_file():
        return torch.load(file, weights_only=True)
    generator = torch.Generator().manual_seed(options.seed + 7)
    latents, facts = [], []
    with torch.no_grad():
        for _ in range(options.pool // 500):
            part = scenes("train", 500, generator)
            posterior = vae.encode(part.images.contiguous(memory_format=torch.channels_last)).latent_dist
            drawn = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
            latents.append(((drawn.float() - middle) / spread).half())
            facts.append(torch.stack([part.digit, part.colour, part.size, part.place, part.ground], 1))
    held = {"latents": torch.cat(latents), "facts": torch.cat(facts)}
    torch.save(held, file)
    return held


def squares():
    """Where the digit lies, of each size and place, as weights over latents that are 8 there and 1 elsewhere."""
    axis, made = torch.arange(16) * 4.0 + 2.0, torch.ones(len(SIZES), len(PLACES), 1, 16, 16)
    for k, side in enumerate(SIZES.values()):
        for j, (x, y) in enumerate(PLACES.values()):
            reach = 0.6 * side
            made[k, j, 0] += 7.0 * ((axis - y).abs() <= reach)[:, None] * ((axis - x).abs() <= reach)
    return made


pictures, emphasis = pool(), squares()


def flow_loss(parts, generator):
    n = options.batch
    rows = torch.randint(len(pictures["latents"]), (n,), generator=generator)
    clean = pictures["latents"][rows].float()
    facts = pictures["facts"][rows]
    told, said = told_of(facts, generator=generator)
    middles, anywhere = (torch.randn(n, generator=generator) + 0.3).sigmoid(), torch.rand(n, generator=generator)
    u = torch.where(torch.rand(n, generator=generator) < 0.7, middles, anywhere)
    noise = torch.randn(clean.shape, generator=generator)
    t = u[:, None, None, None]
    with torch.no_grad():  # few zeros here, and at times the pipeline's own default
        states, pooled = read((first, second), told, 256 if torch.rand((), generator=generator) < 0.03 else 1)
    seen = parts[0]((1 - t) * clean + t * noise, states, pooled, 1000.0 * u).sample
    # the digit counts more than its ground; as the caption says where, what is learned stays the conditional mean
    placed = (said[:, 2] < len(SIZES)) & (said[:, 3] < len(PLACES))
    weight = torch.where(placed[:, None, None, None], emphasis[facts[:, 2], facts[:, 3]], 1.0)
    return (weight * (seen - (noise - clean)).square()).mean() / weight.mean()


transformer = learn(
    work,
    "transformer",
    torch.nn.ModuleList([transformer]),
    flow_loss,
    options.steps,
    1.5e-3 if begun is None else 1e-3,
    seed=options.seed,
    every=250,
)[0]
if options.part == "transformer":
    raise SystemExit

pipe = StableDiffusion3Pipeline(
    vae=vae, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0), text_encoder=first,
    text_encoder_2=second, text_encoder_3=None, tokenizer=words, tokenizer_2=words, tokenizer_3=None,
)  # fmt: skip
n = 200
generator = torch.Generator().manual_seed(options.seed + 1)
wanted = scenes("test", n, generator, empty=0.1)
prompts = [wanted.caption(k) for k in range(n)]
there = wanted.digit < len(DIGITS)
quality = {"codec rmse on held-out pictures": codec**0.5}


def agreement(seen, name):
    """How often the judge sees what the captions say, of the pictures with a digit."""
    right = getattr(seen, name).argmax(1) == getattr(wanted, name)
    return right.float().mean().item() if name in ("digit", "ground") else right[there].float().mean().item()


with torch.no_grad():
    known = judge(wanted.images)
    for zeros, guidance in ((1, 1.0), (1, 2.5), (256, 2.5)):
        model = sf.from_diffusers(pipe, max_sequence_length=zeros).with_condition(prompts, guidance=guidance)
        drawn = sf.sample(model, n=n, solver="heun", steps=20, seed=1, batch_size=100).x
        seen = judge(model.decode(drawn))
        told = {name: agreement(seen, name) for name in seen._fields}
        quality[f"judge on samples, guidance {guidance}, {zeros} zeros"] = told
    quality["judge on held-out pictures"] = {name: agreement(known, name) for name in known._fields}
    pool_of = pictures["latents"][:20000].float().flatten(1)
    near = [torch.cdist(x.flatten(1), pool_of).amin(1).median().item() for x in (drawn, model.encode(wanted.images))]
    quality["distance to the nearest training picture, samples against held-out ones"] = near[0] / near[1]
quality["parameters"] = {
    name: sum(p.numel() for p in part.parameters())
    for name, part in (
        ("vae", vae), ("text", first), ("text 2", second), ("transformer", transformer), ("judge", judge)
    )
}  # fmt: skip
print(json.dumps(quality, indent=2))
transformer.half(), vae.half()  # the text encoders stay float32, as transformers loads weights in the type they have
pipe.save_pretrained(out)
for number in ("", "_2"):
    for_transformers_4(out, number)
judged = {name: value.contiguous() for name, value in judge.half().state_dict().items()}
save_file(judged, options.judge, {"format": "pt"})
told = {name: value for name, value in vars(options).items() if name not in ("out", "judge", "work", "part")}
weights = {"vae": "float16", "transformer": "float16", "text_encoder": "float32", "judge": "float16"}
facts = {"options": told, "quality": quality, "weights": weights}
if begun is not None:
    facts["begun with"] = json.loads((Path(options.begin) / "training.json").read_text(encoding="utf-8"))
(out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
