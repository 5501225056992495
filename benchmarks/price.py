"""The price of an acceleration:  python benchmarks/price.py [variant ...]

The bundled text-to-image pipeline (Stable Diffusion in miniature: a UNet of four channels of 8 x 8 latents, pictures of
32 x 32), guidance 3, four prompts, six calls of DPM-Solver++(2M). Each variant is compared with the exact journey of
the plain pipeline in float64, from the same noise; distances are root mean squares over the pictures, in [-1, 1], as
means over the four. "arises" is the step in which most of the change of the model arises, or of the discretisation
where the model is the plain one.

    int8         linear layers of the UNet under torch's dynamic quantisation
    bfloat16     the UNet in half precision; float32 latents
    float16      the same
    cache        diffusers' pyramid attention broadcast: attentions are computed in every second call alone
    half calls   three calls in the place of six
    tiles        the VAE decodes in tiles of 4 x 4 latents, blended
"""

import sys
import warnings

import torch
from torch import nn

import steadyflow as sf
from steadyflow.diffusers import load_pipeline
from steadyflow.models import pipeline_folder

torch.set_num_threads(1)
PROMPTS = [f"a handwritten {words}" for words in ("seven in red ink", "two in blue ink", "three", "nine")]
RUN = {"n": len(PROMPTS), "guidance": 3.0, "solver": "dpmpp-2m", "nfe": 6, "tolerance": 1e-4, "progress": False}


def pipeline(dtype=torch.float32):
    """A pipeline of its own, whose parts may be changed."""
    return load_pipeline(pipeline_folder("ink"), dtype=dtype).pipe


def model_of(pipe):
    """The model over a pipeline, under the prompts."""
    return sf.from_diffusers(pipe).with_condition(PROMPTS)


def quantised(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch names its successor
        pipe.unet = torch.ao.quantization.quantize_dynamic(pipe.unet, {nn.Linear}, dtype=torch.qint8)
    return pipe


def lower(pipe, dtype):
    pipe.unet.to(dtype)
    return pipe


def cached(pipe):
    """Attentions of both kinds are computed in every second call; diffusers has no step cache that is made for UNets,
    but this one takes any network with its attentions."""
    from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    every = {f"{kind}_attention_block_skip_range": 2 for kind in ("spatial", "cross")}
    always = {f"{kind}_attention_timestep_skip_range": (-1, 1001) for kind in ("spatial", "cross")}
    config = PyramidAttentionBroadcastConfig(**every, **always, current_timestep_callback=lambda: 500)
    apply_pyramid_attention_broadcast(pipe.unet, config)
    return pipe


def tiled(pipe):
    pipe.vae.enable_tiling()
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 4, 16
    return pipe


VARIANTS = {
    "int8": lambda: {"other": model_of(quantised(pipeline()))},
    "bfloat16": lambda: {"other": model_of(lower(pipeline(), torch.bfloat16))},
    "float16": lambda: {"other": model_of(lower(pipeline(), torch.float16))},
    "cache": lambda: {"other": model_of(cached(pipeline()))},
    "half calls": lambda: {"changed": {"nfe": RUN["nfe"] // 2}},
    "tiles": lambda: {"other_codec": model_of(tiled(pipeline())).codec},
}
"""What `compare` is given of every variant."""


def main():
    plain, precise = model_of(pipeline()), model_of(pipeline(torch.float64))
    names = ("distance", "plain", "change", *sf.diagnostics.COMPARED, "+-")
    print(f"{'variant':<11}" + "".join(f"{name:>15}" for name in names) + "   arises")
    for variant in sys.argv[1:] or VARIANTS:
        found = sf.compare(plain, **{"precise": precise, "codec": plain.codec, **RUN, **VARIANTS[variant]()})
        terms = [found.terms[term] for term in sf.diagnostics.COMPARED]
        sizes = [one.mean().item() for one in (found.error, found.plain, found.change, *terms, found.uncertainty)]
        where = f"   {found.share():.0%} in step {found.step()} of {len(found.times)}"
        print(f"{variant:<11}" + "".join(f"{size:>15.2e}" for size in sizes) + where, flush=True)


if __name__ == "__main__":
    main()
