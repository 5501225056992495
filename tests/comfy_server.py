"""ComfyUI's server with this repository's nodes, for the tests:  python comfy_server.py FOLDER PORT BASE

FOLDER is ComfyUI's, BASE a folder with its `models`, `input`, `output` and `custom_nodes`, and a checkpoint is written
there first: a Stable Diffusion 1.5 with random weights, in the layout in which ComfyUI's loaders read one. Its U-Net
has one level only, its decoder is a tiny one; its text encoder has the size that ComfyUI expects.
"""

import json
import runpy
import sys
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import save_file

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
"""The name that the example workflows have."""
SIZES = {"num_res_blocks": [1], "channel_mult": (1,), "transformer_depth": [1], "transformer_depth_output": [1, 1]}
SIZES |= {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "context_dim": 768}
SIZES |= {"num_heads": 8, "transformer_depth_middle": 1, "use_spatial_transformer": True, "legacy": False}


def network():
    """ComfyUI's own U-Net, with a single level."""
    unet = import_module("comfy.ldm.modules.diffusionmodules.openaimodel").UNetModel
    return unet(**SIZES, dtype=torch.float32, operations=import_module("comfy.ops").disable_weight_init).state_dict()


def text_encoder():
    clip = import_module("comfy.clip_model")
    config = json.loads(Path(str(clip.__file__)).with_name("sd1_clip_config.json").read_text())
    operations = import_module("comfy.ops").disable_weight_init
    return clip.CLIPTextModel(config, dtype=torch.float32, device="cpu", operations=operations).state_dict()


def drawn(key, shape, generator):
    """A weight, of a size at which a network neither fades nor grows; those of normalisations are 1, and biases 0."""
    if len(shape) >= 2:
        fan = shape[1:].numel()
        return torch.randn(shape, generator=generator) * (0.02 if "embedding" in key else fan**-0.5)
    return torch.zeros(shape) if key.endswith(("bias", "vae_shift")) else torch.ones(shape)


def checkpoint(file):
    """Write the checkpoint."""
    parts = {
        "model.diffusion_model.": network(),
        "cond_stage_model.transformer.": text_encoder(),
        "first_stage_model.": import_module("comfy.taesd.taesd").TAESD(latent_channels=4).state_dict(),
    }
    generator, found = torch.Generator().manual_seed(0), {}
    for prefix, tensors in parts.items():
        for key, given in tensors.items():
            if given.dtype.is_floating_point:
                found[prefix + key] = drawn(key, given.shape, generator)
    save_file(found, file)


def main(folder, port, base):
    sys.path.insert(0, folder)
    sys.path.insert(0, str(Path(__file__).parent))
    engine = import_module("comfy_engine")
    engine.stand_in_for_what_is_absent()
    sys.argv = ["main.py", "--cpu", "--port", port, "--base-directory", base, "--disable-auto-launch"]
    import_module("comfy.options").enable_args_parsing()
    checkpoint(Path(base, "models", "checkpoints", CHECKPOINT))
    runpy.run_path(str(Path(folder, "main.py")), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
