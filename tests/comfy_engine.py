"""ComfyUI for the tests of its nodes: the program in the folder that STEADYFLOW_COMFYUI names, or the stand-in.

`tiny(kind)` makes a small random MODEL of either, and `words(seed)` a CONDITIONING. In the program it is ComfyUI's own
U-Net of Stable Diffusion 1.5 with few channels, in a ModelPatcher.
"""

import importlib.util
import math
import os
import sys
import types
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FOLDER = os.environ.get("STEADYFLOW_COMFYUI", "")
REAL = bool(FOLDER)
"""Whether the tests run inside ComfyUI itself."""
CONTEXT = 16


def _absent(name):
    """A package that ComfyUI imports for models that are not used here; it needs no more than to be there."""
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []

    def missing(attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {})

    module.__getattr__ = missing
    sys.modules[name] = module


def stand_in_for_what_is_absent():
    """ComfyUI imports torchvision and torchaudio for models that are not used here."""
    for name in ("torchvision", "torchvision.transforms", "torchaudio", "torchaudio.transforms"):
        try:
            import_module(name)
        except ImportError:
            _absent(name)


def k_diffusion():
    """k-diffusion's samplers and schedules, without its package, which needs torchvision for other things."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed: pip install --no-deps k-diffusion")
    source = Path(spec.submodule_search_locations[0], "sampling.py")
    package, utils = types.ModuleType("kd"), types.ModuleType("kd.utils")
    package.__path__, package.utils = [], utils
    utils.append_dims = lambda x, ndim: x[(..., *(None,) * (ndim - x.ndim))]
    given = importlib.util.spec_from_file_location("kd.sampling", source)
    module = importlib.util.module_from_spec(given)
    sys.modules.update({"kd": package, "kd.utils": utils})
    try:
        given.loader.exec_module(module)
    finally:
        del sys.modules["kd"], sys.modules["kd.utils"]
    return module


def load():
    """Make `comfy` and `steadyflow_comfy` importable, and import the latter."""
    sys.path.insert(0, str(HERE.parent / "comfy" / "src"))
    sys.path.insert(0, FOLDER if REAL else str(HERE / "comfy_standin"))
    if REAL:
        stand_in_for_what_is_absent()
        given, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
        import_module("comfy.options").enable_args_parsing()
        import_module("comfy.cli_args")
        sys.argv = given
    return import_module("steadyflow_comfy")


def words(seed, rows=1):
    """A CONDITIONING of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(rows, 5, CONTEXT, generator=generator), {}]]


def tiny(kind):
    """A MODEL with random weights: "eps", "v" or "flow"."""
    return _unet(kind) if REAL else _stand_in(kind)


def randomise(network):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 0
        with torch.no_grad():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn / math.sqrt(fan) if fan else 1.0 + 0.1 * drawn)


def _unet(kind):
    base, supported, patcher = (
        import_module(f"comfy.{name}") for name in ("model_base", "supported_models", "model_patcher")
    )
    layers = {"num_res_blocks": [1, 1], "channel_mult": (1, 2), "transformer_depth": [1, 1]}
    layers |= {"transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1, "use_spatial_transformer": True}
    sizes = {"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "context_dim": CONTEXT}
    config = supported.SD15({**layers, **sizes, "legacy": False, "adm_in_channels": None, "dtype": torch.float32})
    config.unet_config["num_heads"] = 4
    if kind == "flow":
        config.sampling_settings = {"shift": 3.0}
    types_of = {"eps": base.ModelType.EPS, "v": base.ModelType.V_PREDICTION, "flow": base.ModelType.FLOW}
    model = base.BaseModel(config, model_type=types_of[kind]).eval()
    randomise(model.diffusion_model)
    model.diffusion_model.out[2].weight.data *= 0.3  # a field as gentle as those of trained models
    cpu = torch.device("cpu")
    return patcher.ModelPatcher(model, cpu, cpu)


class _Sampling:
    """A model_sampling; the levels are those of Stable Diffusion, or of a flow with shift 3."""

    def __init__(self, kind):
        if kind == "flow":
            share = torch.arange(1, 1001) / 1000
            self.sigmas = 3.0 * share / (1.0 + 2.0 * share)
        else:
            betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
            kept = (1.0 - betas).cumprod(0)
            self.sigmas = ((1.0 - kept) / kept).sqrt().float()
        self.kind, self.sigma_min, self.sigma_max = kind, self.sigmas[0], self.sigmas[-1]

    def percent_to_sigma(self, percent):
        share = 1.0 - percent
        return 3.0 * share / (1.0 + 2.0 * share) if self.kind == "flow" else float(self.sigmas[round(999 * share)])

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        if self.kind == "flow":
            return sigma * noise + (1.0 - sigma) * latent_image
        return noise * ((1.0 + sigma**2) ** 0.5 if max_denoise else sigma) + latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1.0 - sigma) if self.kind == "flow" else latent


class CONST:
    """What ComfyUI calls the kind of flow models."""


class _Flow(_Sampling, CONST):
    pass


class _Model(torch.nn.Module):
    """A network of one hidden layer over pictures of four channels, which reads the mean of its conditioning."""

    def __init__(self, kind):
        super().__init__()
        self.model_sampling = _Flow(kind) if kind == "flow" else _Sampling(kind)
        self.latent_format = types.SimpleNamespace(latent_channels=4, latent_dimensions=2)
        self.into, self.out = (torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((4, 16), (16, 4)))
        self.reads = torch.nn.Linear(CONTEXT, 16)
        self.kind = kind
        randomise(self)
        self.requires_grad_(False)

    def process_latent_in(self, latent):
        return latent * 0.18215

    def process_latent_out(self, latent):
        return latent / 0.18215

    def apply_model(self, x, sigma, cross_attn):
        s = sigma.view(-1, 1, 1, 1).to(x.dtype)
        scaled = x if self.kind == "flow" else x / (1.0 + s * s).sqrt()
        read = self.reads(cross_attn.mean(1))[:, :, None, None] + torch.log1p(s).float()
        output = self.out(torch.tanh(self.into(scaled.float()) + read)).to(x.dtype)
        if self.kind == "v":
            return x / (s * s + 1.0) - output * s / (s * s + 1.0).sqrt()
        return x - output * s


class _Patcher:
    def __init__(self, model):
        self.model, self.model_options = model, {"transformer_options": {}}
        self.load_device = torch.device("cpu")

    def get_model_object(self, name):
        return getattr(self.model, name)

    def clone_has_same_weights(self, other):
        return self.model is other.model


def _stand_in(kind):
    return _Patcher(_Model(kind))


def guider(model, positive, negative=None, cfg=1.0):
    """A GUIDER, as the node CFGGuider makes one."""
    found = import_module("comfy.samplers").CFGGuider(model)
    found.set_conds(positive, words(99) if negative is None else negative)
    found.set_cfg(cfg)
    return found
