"""The pipeline tests of diffusers, run with our schedulers:  python scripts/pipelines_suite.py CHECKOUT

CHECKOUT is a checkout of huggingface/diffusers, best at the version that is installed; nothing is copied from it. The
core tests of the pipelines of `FAMILIES` are run three times: as they are, and with ours in the place of the pipeline's
scheduler, with the solvers "ddim" and "ees25". The tokenizers and small text encoders that the tests load from the hub
are made from tests/zoo and laid in a cache of the script's own; nothing is downloaded. The tests import the packages
`parameterized` and `requests-mock`, which are not among our dependencies.

`--family NAME` (repeated, a pattern is enough) limits the run, `--timeout` each test. What came out is added to the
file of `--results`, so that the table can be made in pieces. `--table` writes the table into docs/diffusers.md; without
`--run` it takes the results as they are. Below the table stands every test that passes with diffusers' scheduler and
not with ours, with the reason from `EXPLAINED`. The exit status is 1 if a difference is not explained, or if an
explanation fits no difference.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import os
import random
import re
import signal
import sys
import tempfile
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
_cache = tempfile.TemporaryDirectory(prefix="tiny-hub-")
CACHE = Path(_cache.name)
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(CACHE), "DIFFUSERS_VERBOSITY": "error"}

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from diffusers import SchedulerMixin  # noqa: E402

from steadyflow import SteadyFlowScheduler, SteadyScheduler  # noqa: E402
from zoo import parts, video_parts  # noqa: E402

RUNS = ("stock", "ddim", "ees25")
"""Diffusers' own scheduler, and the solvers of ours."""

PAGE = ROOT / "docs" / "diffusers.md"
BEGIN, END = "<!-- suites:begin -->", "<!-- suites:end -->"
FOLDER = "tests/pipelines"

FAMILIES: dict[str, tuple[str, str]] = {
    "Stable Diffusion": ("stable_diffusion/test_stable_diffusion.py", "TestStableDiffusionPipeline"),
    "Stable Diffusion, image to image": (
        "stable_diffusion/test_stable_diffusion_img2img.py",
        "TestStableDiffusionImg2ImgPipeline",
    ),
    "Stable Diffusion, inpainting": (
        "stable_diffusion/test_stable_diffusion_inpaint.py",
        "TestStableDiffusionInpaintPipeline",
    ),
    "Stable Diffusion, simple inpainting": (
        "stable_diffusion/test_stable_diffusion_inpaint.py",
        "TestStableDiffusionSimpleInpaintPipeline",
    ),
    "SDXL": ("stable_diffusion_xl/test_stable_diffusion_xl.py", "StableDiffusionXLPipelineFastTests"),
    "SDXL, image to image": (
        "stable_diffusion_xl/test_stable_diffusion_xl_img2img.py",
        "StableDiffusionXLImg2ImgPipelineFastTests",
    ),
    "SDXL refiner": (
        "stable_diffusion_xl/test_stable_diffusion_xl_img2img.py",
        "StableDiffusionXLImg2ImgRefinerOnlyPipelineFastTests",
    ),
    "SDXL, inpainting": (
        "stable_diffusion_xl/test_stable_diffusion_xl_inpaint.py",
        "StableDiffusionXLInpaintPipelineFastTests",
    ),
    "Stable Diffusion 3": (
        "stable_diffusion_3/test_pipeline_stable_diffusion_3.py",
        "StableDiffusion3PipelineFastTests",
    ),
    "Stable Diffusion 3, image to image": (
        "stable_diffusion_3/test_pipeline_stable_diffusion_3_img2img.py",
        "StableDiffusion3Img2ImgPipelineFastTests",
    ),
    "Stable Diffusion 3, inpainting": (
        "stable_diffusion_3/test_pipeline_stable_diffusion_3_inpaint.py",
        "StableDiffusion3InpaintPipelineFastTests",
    ),
    "FLUX": ("flux/test_pipeline_flux.py", "TestFluxPipeline"),
    "FLUX, image to image": ("flux/test_pipeline_flux_img2img.py", "FluxImg2ImgPipelineFastTests"),
    "FLUX, inpainting": ("flux/test_pipeline_flux_inpaint.py", "FluxInpaintPipelineFastTests"),
    "FLUX Kontext": ("flux/test_pipeline_flux_kontext.py", "FluxKontextPipelineFastTests"),
    "FLUX Kontext, inpainting": (
        "flux/test_pipeline_flux_kontext_inpaint.py",
        "FluxKontextInpaintPipelineFastTests",
    ),
    "FLUX Fill": ("flux/test_pipeline_flux_fill.py", "FluxFillPipelineFastTests"),
    "FLUX Control": ("flux/test_pipeline_flux_control.py", "FluxControlPipelineFastTests"),
    "FLUX Control, image to image": (
        "flux/test_pipeline_flux_control_img2img.py",
        "FluxControlImg2ImgPipelineFastTests",
    ),
    "FLUX Control, inpainting": (
        "flux/test_pipeline_flux_control_inpaint.py",
        "FluxControlInpaintPipelineFastTests",
    ),
    "ControlNet": ("controlnet/test_controlnet.py", "ControlNetPipelineFastTests"),
    "ControlNet, image to image": ("controlnet/test_controlnet_img2img.py", "ControlNetImg2ImgPipelineFastTests"),
    "ControlNet, inpainting": ("controlnet/test_controlnet_inpaint.py", "ControlNetInpaintPipelineFastTests"),
    "ControlNet of FLUX": ("controlnet_flux/test_controlnet_flux.py", "FluxControlNetPipelineFastTests"),
    "FLUX.2": ("flux2/test_pipeline_flux2.py", "TestFlux2Pipeline"),
    "FLUX.2 klein": ("flux2/test_pipeline_flux2_klein.py", "TestFlux2KleinPipeline"),
    "FLUX.2 klein, inpainting": ("flux2/test_pipeline_flux2_klein_inpaint.py", "TestFlux2KleinInpaintPipeline"),
    "Qwen-Image": ("qwenimage/test_qwenimage.py", "TestQwenImagePipeline"),
    "Qwen-Image, image to image": ("qwenimage/test_qwenimage_img2img.py", "TestQwenImageImg2ImgPipeline"),
    "Qwen-Image, inpainting": ("qwenimage/test_qwenimage_inpaint.py", "TestQwenImageInpaintPipeline"),
    "Qwen-Image Edit": ("qwenimage/test_qwenimage_edit.py", "TestQwenImageEditPipeline"),
    "Z-Image": ("z_image/test_z_image.py", "ZImagePipelineFastTests"),
    "Z-Image, image to image": ("z_image/test_z_image_img2img.py", "ZImageImg2ImgPipelineFastTests"),
    "Z-Image, inpainting": ("z_image/test_z_image_inpaint.py", "ZImageInpaintPipelineFastTests"),
    "Wan 2.1": ("wan/test_wan.py", "TestWanPipeline"),
    "Wan 2.1, image to video": ("wan/test_wan_image_to_video.py", "TestWanImageToVideoPipeline"),
    "Wan 2.1, video to video": ("wan/test_wan_video_to_video.py", "TestWanVideoToVideoPipeline"),
    "Wan 2.1 VACE": ("wan/test_wan_vace.py", "TestWanVACEPipeline"),
    "Wan 2.2": ("wan/test_wan_22.py", "TestWan22Pipeline"),
    "Wan 2.2 5B": ("wan/test_wan_22.py", "TestWan225BPipeline"),
    "Wan 2.2, image to video": ("wan/test_wan_22_image_to_video.py", "TestWan22ImageToVideoPipeline"),
    "LTX": ("ltx/test_ltx.py", "LTXPipelineFastTests"),
    "LTX, image to video": ("ltx/test_ltx_image2video.py", "LTXImageToVideoPipelineFastTests"),
    "LTX-2": ("ltx2/test_ltx2.py", "LTX2PipelineFastTests"),
    "LTX-2, image to video": ("ltx2/test_ltx2_image2video.py", "LTX2ImageToVideoPipelineFastTests"),
    "Sana": ("sana/test_sana.py", "SanaPipelineFastTests"),
    "Chroma": ("chroma/test_pipeline_chroma.py", "ChromaPipelineFastTests"),
    "Chroma, image to image": ("chroma/test_pipeline_chroma_img2img.py", "ChromaImg2ImgPipelineFastTests"),
    "PixArt Sigma": ("pixart_sigma/test_pixart.py", "PixArtSigmaPipelineFastTests"),
    "HunyuanVideo": ("hunyuan_video/test_hunyuan_video.py", "HunyuanVideoPipelineFastTests"),
    "Lumina 2": ("lumina2/test_pipeline_lumina2.py", "Lumina2PipelineFastTests"),
    "CogView4": ("cogview4/test_cogview4.py", "CogView4PipelineFastTests"),
    "AuraFlow": ("aura_flow/test_pipeline_aura_flow.py", "AuraFlowPipelineFastTests"),
    "CogVideoX": ("cogvideo/test_cogvideox.py", "TestCogVideoXPipeline"),
    "HiDream": ("hidream_image/test_pipeline_hidream.py", "HiDreamImagePipelineFastTests"),
    "AnimateDiff": ("animatediff/test_animatediff.py", "AnimateDiffPipelineFastTests"),
    "Latte": ("latte/test_latte.py", "LattePipelineFastTests"),
    "Mochi": ("mochi/test_mochi.py", "MochiPipelineFastTests"),
    "Cosmos 2, text to image": ("cosmos/test_cosmos2_text2image.py", "Cosmos2TextToImagePipelineFastTests"),
    "Kandinsky 5, text to image": ("kandinsky5/test_kandinsky5_t2i.py", "Kandinsky5T2IPipelineFastTests"),
    "Bria": ("bria/test_pipeline_bria.py", "TestBriaPipeline"),
    "PRX": ("prx/test_pipeline_prx.py", "PRXPipelineFastTests"),
    "Krea 2": ("krea2/test_krea2.py", "Krea2PipelineFastTests"),
    "Stable Audio": ("stable_audio/test_stable_audio.py", "StableAudioPipelineFastTests"),
    "Stable Video Diffusion": (
        "stable_video_diffusion/test_stable_video_diffusion.py",
        "StableVideoDiffusionPipelineFastTests",
    ),
}
"""The pipelines, with the files and the classes of their tests."""

LEFT_OUT = re.compile(
    "slicing|tiling|offload|xformers|float16|fp16|half_precision|layerwise|variants|device_map|to_device|dtype|"
    "encode_prompt|freeu|fused_qkv|lora|ip_adapter|signature|components_function|cache|pyramid_attention|quant|compile|"
    "multi_vae|unet_sample_size|karras_schedulers_shape|StableDiffusionMixin|from_pipe|optional_components|accelerator|textual_inversion|long_prompt_weight"
)
"""Tests that do not reach the scheduler: of memory, number types, loading, text and parts of networks."""


# --- a hub of our own -------------------------------------------------------------------------------------------


def stored(name: str, *things: Any, folder: str = "", **config: Any) -> Path:
    """A repository of the cache, with some tokenizers and models in it and a config.json of our own if one is given."""
    base, revision = CACHE / f"models--{name.replace('/', '--')}", "0" * 40
    path = base / "snapshots" / revision / folder
    path.mkdir(parents=True, exist_ok=True)
    (base / "refs").mkdir(exist_ok=True)
    (base / "refs" / "main").write_text(revision)
    for thing in things:
        thing.save_pretrained(path)
    if config:
        (path / "config.json").write_text(json.dumps(config))
    return path


def renumber_qwen(path: Path) -> None:
    """Give the special tokens of a stored Qwen tokenizer the numbers that models take for granted."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    real = {name: 151643 + number for number, name in enumerate(names)}
    vision = ("start", "end", "pad")
    real |= {f"<|vision_{name}|>": 151652 + number for number, name in enumerate(vision)}
    real |= {"<|image_pad|>": 151655, "<|video_pad|>": 151656, "<think>": 151667, "</think>": 151668}
    content = json.loads((path / "tokenizer.json").read_text())
    content["model"]["vocab"] |= real
    for token in content["added_tokens"]:
        token["id"] = real[token["content"]]
    (path / "tokenizer.json").write_text(json.dumps(content))
    described = json.loads((path / "tokenizer_config.json").read_text())
    if "added_tokens_decoder" in described:
        of_old = described["added_tokens_decoder"].values()
        described["added_tokens_decoder"] = {str(real[token["content"]]): token for token in of_old}
        (path / "tokenizer_config.json").write_text(json.dumps(described))


QWEN = "hf-internal-testing/tiny-random-Qwen2VLForConditionalGeneration"


def fill_cache() -> Path:
    """Lay everything that the tests load into the cache.

    Returns:
        Where the Qwen tokenizer lies.
    """
    torch.manual_seed(0)
    own = "hf-internal-testing/"
    clip = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    stored(own + "tiny-random-clip", parts.clip_tokenizer(), model_type="clip_text_model", vocab_size=1000, **clip)
    t5 = {"vocab_size": 1103, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    t5_model = transformers.T5ForConditionalGeneration(transformers.T5Config(**t5, decoder_start_token_id=0))
    for name in ("tiny-random-t5", "tiny-random-T5ForConditionalGeneration"):
        stored(own + name, parts.t5_tokenizer(512), t5_model)
    umt5 = transformers.UMT5Config(**t5, decoder_start_token_id=0)
    stored(own + "tiny-random-umt5", parts.t5_tokenizer(512), transformers.UMT5ForConditionalGeneration(umt5))
    qwen = stored(QWEN, parts.qwen_tokenizer(), model_type="qwen2_vl")
    renumber_qwen(qwen)
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", "a", "b", "c"])}
    gemma = transformers.GemmaTokenizer(vocab=words, merges=[])
    gemma.padding_side = "right"
    stored(own + "dummy-gemma", gemma, model_type="gemma2")
    tokens = parts.gemma_tokenizer()
    ids = tokens.convert_tokens_to_ids
    text = {
        "vocab_size": 256, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=ids("<image_soft_token>"),
        boi_token_index=ids("<start_of_image>"), eoi_token_index=ids("<end_of_image>"),
    )  # fmt: skip
    stored(own + "tiny-gemma3", tokens, transformers.Gemma3ForConditionalGeneration(config))
    llama = parts.llama_tokenizer()
    stored("finetrainers/dummy-hunyaunvideo", llama, folder="tokenizer", model_type="llama")
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    llama_config = transformers.LlamaConfig(vocab_size=1000, hidden_size=16, intermediate_size=37, **layers)
    stored(own + "tiny-random-LlamaForCausalLM", llama, transformers.LlamaForCausalLM(llama_config))
    stored("THUDM/glm-4-9b-chat", llama, model_type="llama")
    only = "Mistral-Small-3.1-24B-Instruct-2503-only-processor"
    stored(own + only, parts.mistral_tokenizer(), model_type="llama")
    return qwen


@contextmanager
def qwen_processors(qwen: Path) -> Iterator[None]:
    """Qwen's processor without its part for videos, wherever a test loads one."""
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(qwen)
    with ExitStack() as stack:
        for form in (transformers.AutoProcessor, transformers.Qwen2VLProcessor):
            real = form.from_pretrained

            def load(name: Any, *args: Any, real: Any = real, **options: Any) -> Any:
                if str(name) != QWEN:
                    return real(name, *args, **options)
                pictures = parts.qwen_vl_processor().image_processor
                return parts.WordsAndPictures(pictures, tokenizer, chat_template=parts.QWEN_CHAT)

            stack.enter_context(mock.patch.object(form, "from_pretrained", load))
        yield


# --- one run ----------------------------------------------------------------------------------------------------


def ours(scheduler: Any, solver: str) -> Any:
    """Our scheduler with the config of diffusers'."""
    if isinstance(scheduler, (SteadyScheduler, SteadyFlowScheduler)):
        return scheduler
    config = scheduler.config
    flow = type(scheduler).__name__.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"
    kind = SteadyFlowScheduler if flow or config.get("use_flow_sigmas") else SteadyScheduler
    return kind.from_config(config, solver=solver)


@dataclass
class Suite:
    """A plugin of pytest that puts a scheduler into the pipelines of one test class and keeps what came out."""

    run: str
    folder: Path
    limit: int
    scheduler: str = ""
    """The name of the class of the pipeline's own scheduler."""
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def components(self, real: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """A test class's components, with ours among them."""

        def get_dummy_components(*args: Any, **options: Any) -> dict[str, Any]:
            made = real(*args, **options)
            for name, thing in made.items():
                if isinstance(thing, SchedulerMixin):
                    self.scheduler = type(thing).__name__
                    made[name] = thing if self.run == "stock" else ours(thing, self.run)
            return made

        return get_dummy_components

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        items[:] = [item for item in items if not LEFT_OUT.search(item.name)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        def slow(*_: Any) -> None:
            raise TimeoutError(f"took longer than {self.limit} s")

        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        video_parts.with_ftfy(item.cls.pipeline_class)
        real = item.cls.get_dummy_components
        before = signal.signal(signal.SIGALRM, slow)
        signal.alarm(self.limit)
        try:
            with mock.patch.object(item.cls, "get_dummy_components", self.components(real)):
                return (yield)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        report = yield
        known = self.found.setdefault(item.name, {"ended": "passed", "seconds": 0.0})
        known["seconds"] = round(known["seconds"] + call.duration, 2)
        if report.skipped:
            known["ended"] = "skipped"
        elif report.failed and known["ended"] == "passed":
            known |= {"ended": "failed", **self.told(item, call.excinfo)}
        return report

    def told(self, item: Any, error: Any) -> dict[str, Any]:
        """The first line of an error, where in the test it was, and whether the test has numbers stored."""
        lines = str(error.value).strip().splitlines() or [""]
        there = [entry for entry in error.traceback if str(entry.path).startswith(str(self.folder))]
        statement = " ".join(str(there[-1].statement).split()) if there else ""
        numbers = re.search(r"expected\w* = \(?\s*(np\.array|torch\.tensor)\(", inspect.getsource(item.function))
        words = lines[0].replace(str(self.folder), "")
        return {"error": f"{error.type.__name__}: {words[:300]} at: {statement[:200]}", "numbers": bool(numbers)}


def run(folder: Path, name: str, solver: str, limit: int) -> dict[str, Any]:
    """Run the tests of one family with one scheduler."""
    file, case = FAMILIES[name]
    suite = Suite(solver, folder, limit)
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "--tb=no", "-rN"]
    arguments = [*options, f"--rootdir={folder}", f"{folder / FOLDER / file}::{case}"]
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(mock.patch.object(sys, "stdout", stack.enter_context(open(os.devnull, "w"))))
        # the tests tidy up before and after each of them, for the sake of an accelerator; it takes longer than they do
        stack.enter_context(mock.patch.object(gc, "collect", return_value=0))
        stack.enter_context(mock.patch.object(torch.compiler, "reset", return_value=None))
        status = pytest.main(arguments, plugins=[suite])
    gc.collect()
    if status not in (0, 1):
        raise SystemExit(f"{FOLDER}/{file}::{case} cannot be run (pytest: {status!r})")
    return {"scheduler": suite.scheduler, "tests": suite.found}


# --- what came out ----------------------------------------------------------------------------------------------

OTHER_METHODS = ("PNDM", "UniPC", "DPMSolver", "CogVideoXDPM", "LCM", "Heun")
"""Schedulers whose stored numbers are those of a method that is not Euler's or DDIM's."""

NUMBERS = (
    "The test compares with stored numbers, which are those of another method. Where diffusers' own is Euler or DDIM, "
    "our `ddim` gives the stored numbers."
)

OTHER_DEFAULTS = (
    "The test makes a scheduler of another class out of the pipeline's. Ours keeps the betas by which the config's "
    "class went; diffusers' forgets those that were defaults, and the other class's take their place. The stored "
    "numbers go by that."
)
MASKS = (
    "The pipeline puts the known part of the picture back into the latents at every call, in the middle of the steps "
    "of a solver of several calls; one that the user has named refuses it."
)
REFUSED = "The path of its scheduler is none of ours, which is said when the config is given; see the table above."
BYTES = (
    "The same picture given as a tensor and in bytes may differ by 0.05 in the result, which depends on the network "
    "and the method: with diffusers' own DDIM it is 0.1."
)

EXPLAINED: dict[tuple[str, str, str], str] = {
    (".", "^Stable Diffusion, .*_lcm", "Tensors not close"): OTHER_DEFAULTS,
    (".", "^Stable Audio: ", "InputError: scheduler: CosineDPMSolverMultistepScheduler cannot be followed"): REFUSED,
    (".", "^Stable Video Diffusion: ", "InputError: timestep_type: 'continuous' gives the network"): REFUSED,
    ("ees25", "inpainting: ", "InputError: step: the latents were changed within a step of 'ees25'"): MASKS,
    ("ddim", "^Stable Diffusion, .*_image_tensor", r"assert tensor\(0\.05\d*\) < 0\.05"): BYTES,
}
"""Why a test that passes with diffusers' scheduler does not with ours, by patterns of the run, "family: test" and the
error. The stored numbers of `NUMBERS` are found without an entry."""


@dataclass(frozen=True)
class Difference:
    """A test that passes with diffusers' scheduler and not with ours."""

    family: str
    test: str
    run: str
    error: str
    reason: str
    entry: tuple[str, str, str] | None = None


def other_numbers(family: dict[str, Any], solver: str, test: str) -> bool:
    """Whether a test fails for nothing but the numbers that are stored in it."""
    outcome = family["runs"][solver][test]
    if not outcome.get("numbers") or not outcome["error"].startswith("AssertionError"):
        return False
    if any(method in family["scheduler"] for method in OTHER_METHODS):
        return True
    return solver != "ddim" and family["runs"]["ddim"].get(test, {}).get("ended") == "passed"


def differences(results: dict[str, Any]) -> list[Difference]:
    """All of them, with the reason of each; it is empty where none is known."""
    found = []
    for name, family in results.items():
        for solver in RUNS[1:]:
            for test, outcome in family["runs"][solver].items():
                if outcome["ended"] != "failed" or family["runs"]["stock"].get(test, {}).get("ended") != "passed":
                    continue
                error = outcome["error"]
                place = (name, test, solver, error)
                entries = [
                    entry
                    for entry in EXPLAINED
                    if re.search(entry[0], solver)
                    and re.search(entry[1], f"{name}: {test}")
                    and re.search(entry[2], error)
                ]
                if entries:
                    found.append(Difference(*place, EXPLAINED[entries[0]], entries[0]))
                else:
                    found.append(Difference(*place, NUMBERS if other_numbers(family, solver, test) else ""))
    return found


def table(results: dict[str, Any]) -> str:
    """How many tests pass, as a Markdown table."""
    lines = [
        "| pipeline | its scheduler | tests | stock | `ddim` | `ees25` | stock fails too |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    totals: Counter[str] = Counter()
    for name in [name for name in FAMILIES if name in results]:
        family = results[name]
        stock = family["runs"]["stock"]
        tests = [test for test in stock if stock[test]["ended"] != "skipped"]
        passed = {
            solver: sum(family["runs"][solver].get(test, {}).get("ended") == "passed" for test in tests)
            for solver in RUNS
        }
        failed = len(tests) - passed["stock"]
        totals.update({"tests": len(tests), "failed": failed, **passed})
        cells = [name, family["scheduler"].removesuffix("Scheduler"), len(tests), *passed.values(), failed or ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    sums = [totals["tests"], *(totals[solver] for solver in RUNS), totals["failed"]]
    lines.append(f"| all | | {' | '.join(map(str, sums))} |")
    return "\n".join(line.replace("  ", " ") for line in lines)


def reasons(found: list[Difference]) -> str:
    """The reasons of all differences, as a Markdown list."""
    lines = []
    for reason in sorted(dict.fromkeys(d.reason for d in found), key=lambda reason: reason == ""):
        own = [d for d in found if d.reason == reason]
        per = Counter(d.run for d in own)
        places = "; ".join(dict.fromkeys(d.family for d in own))
        counts = ", ".join(f"{per[solver]} with `{solver}`" for solver in RUNS[1:] if per[solver])
        words = f"{reason or 'NOT EXPLAINED'} ({counts}: {places}.)"
        lines.append(textwrap.fill(words, 140, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(lines)


def report(results: dict[str, Any]) -> tuple[str, bool]:
    """Every difference, by reason, and every test that fails with diffusers' scheduler too; and whether all is well."""
    found = differences(results)
    lines = []
    for reason in sorted(dict.fromkeys(d.reason for d in found), key=lambda reason: reason == ""):
        lines.append(f"{reason or 'NOT EXPLAINED'}\n")
        lines += [f"- {d.family}, {d.test} ({d.run}): `{d.error}`" for d in found if d.reason == reason]
        lines.append("")
    lines.append("FAILS WITH DIFFUSERS' SCHEDULER TOO\n")
    for name, family in results.items():
        for test, outcome in family["runs"]["stock"].items():
            if outcome["ended"] == "failed":
                lines.append(f"- {name}, {test}: `{outcome['error']}`")
    idle = [entry for entry in EXPLAINED if entry not in {d.entry for d in found}]
    lines += [f"EXPLAINS NOTHING: {entry}" for entry in idle]
    return "\n".join(lines), not idle and all(d.reason for d in found)


def write_table(results: dict[str, Any]) -> None:
    """Put the table and the reasons into the page."""
    page = PAGE.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{PAGE} has no {BEGIN} and {END}")
    head, rest = page.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    body = f"{table(results)}\n\n{reasons(differences(results))}"
    PAGE.write_text(f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")


def main() -> int:
    """Run what is asked for and print the report.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description="The pipeline tests of diffusers, run with our schedulers.")
    parser.add_argument(
        "checkout", type=Path, nargs="?", help="a checkout of huggingface/diffusers; runs nothing if not given"
    )
    parser.add_argument("--family", action="append", default=[], help="a pattern of the families to run")
    parser.add_argument("--missing", action="store_true", help="only the families of which there are no results")
    parser.add_argument("--timeout", type=int, default=120, help="seconds that a test may take")
    parser.add_argument("--results", type=Path, default=Path("pipelines_suite.json"), help="where results are added")
    parser.add_argument("--table", action="store_true", help="write the table into docs/diffusers.md")
    given = parser.parse_args()
    results = json.loads(given.results.read_text()) if given.results.exists() else {}
    if given.checkout:
        folder = given.checkout.resolve()
        sys.path.insert(0, str(folder))
        names = [name for name in FAMILIES if not given.family or any(re.search(f, name) for f in given.family)]
        with qwen_processors(fill_cache()):
            for name in names:
                if given.missing and name in results:
                    continue
                begun, runs = time.monotonic(), {}
                for solver in RUNS:
                    outcome = run(folder, name, solver, given.timeout)
                    runs[solver] = outcome["tests"]
                results[name] = {"scheduler": outcome["scheduler"], "runs": runs}
                given.results.write_text(json.dumps(results, indent=1))
                ends = [Counter(o["ended"] for o in runs[solver].values()) for solver in RUNS]
                words = ", ".join(f"{solver} {dict(end)}" for solver, end in zip(RUNS, ends, strict=True))
                print(f"{name}: {words}; {time.monotonic() - begun:.0f} s", flush=True)
    words, good = report(results)
    print(f"{table(results)}\n\n{words}")
    if given.table:
        write_table(results)
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
