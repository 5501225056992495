"""What is claimed of every family of pipelines: one function a claim, over the tiny pipelines of `zoo`.

Each function takes the name of a member, asserts its claim, and returns the error that it has found, or a word. What
cannot be had is refused by an `InputError`, which the functions let through. The test and the table of
docs/diffusers.md (scripts/families_table.py) are made of them.
"""

from __future__ import annotations

import functools
import inspect
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from torch import Tensor

import steadyflow as sf
import zoo
from steadyflow.diffusers import SteadyFlowScheduler, SteadyScheduler
from test_zoo import OTHER_PROMPT, SET_LATER, another

STEPS = 4
EULER = ("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler", "DDIMScheduler")
"""Diffusers' schedulers whose method is our `ddim`."""
NEGATIVE = "a blurred and colourless picture"
GUIDANCE = {
    **dict.fromkeys(("qwenimage", "qwenimage_img2img", "qwenimage_edit", "qwenimage_edit_plus", "nucleus"),
                    "norm kept"),
    "lumina2": "norm kept, no system prompt in the negative", "qwenimage_controlnet": "norm kept, ControlNet shared",
    "sd_pix2pix": "two scales", "dreamlite": "two scales", "dreamlite_image": "two scales",
    "sd_pag": "perturbed attention as well",
    "sana_pag": "perturbed attention as well", "ltx2": "rescaled", "ltx2_condition": "rescaled",
    "ltx2_i2v": "rescaled",
    "flux_controlnet": "collinear", "sd3_controlnet": "a control picture drawn for every row",
    "longcat": "norm kept before packing", "ideogram4": "collinear", "kandinsky3": "collinear",
    "lumina": "the first three channels alone",
    "hunyuandit": "collinear", "latte": "collinear", "audioldm2": "collinear", "wan_animate": "collinear",
    "hunyuan_video_i2v": "collinear", "kandinsky22": "collinear", "kandinsky22_img2img": "collinear",
    "kandinsky3_img2img": "collinear",
}  # fmt: skip
"""The guidance of families where it is not negative + scale (positive - negative)."""
LARGE = ("qwenimage_edit", "qwenimage_edit_plus")
"""Members whose pipelines scale their pictures up to a million pixels."""
GIVEN_FRAMES = ("ltx_i2v", "sana_video_i2v", "framepack")
"""Members whose pictures have frames that the call gives, whatever the state."""
ODD_VAES = ("svd", "allegro", "longcat_audio")
"""Members whose VAEs are called otherwise than all the others."""
HALF = ("cosmos2", "cosmos2_v2w")
"""Members whose latents go through half precision on their way to the VAE."""
ROUGH = ("cosmos2", "cosmos2_v2w", "ltx2_condition", "kandinsky3", "if", "hunyuandit")
"""Members whose random networks magnify the rounding of a round trip."""
PICTURES = ("image", "video", "image_embeds", "control_image", "conditions", "pose_video", "face_video",
            "image_embeddings", "class_labels")  # fmt: skip
"""Arguments of calls that are pictures, or stand for them."""


# ---- pipelines and their runs


@functools.lru_cache(maxsize=2)
def _kept_pipeline(name: str) -> Any:
    return zoo.build(name)


def pipeline(name: str) -> Any:
    """A member's pipeline with its own scheduler; nobody may change it."""
    return zoo.build(name) if "pag" in name else _kept_pipeline(name)  # whose calls change their networks


def steps_of(name: str) -> int:
    """The number of steps of a member's runs."""
    return 2 if name in LARGE else STEPS


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers is one of flow models."""
    config = scheduler.config
    return "Flow" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction"


def ours(scheduler: Any, solver: str, **options: Any) -> Any:
    """Our scheduler with the config of diffusers'."""
    kind = SteadyFlowScheduler if is_flow(scheduler) else SteadyScheduler
    if kind is SteadyScheduler and "timestep_spacing" in scheduler.config:
        options.setdefault("timestep_spacing", scheduler.config.timestep_spacing)  # also where steps_offset is given
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.from_config(scheduler.config, solver=solver, **options)


def starts_from_a_picture(name: str) -> bool:
    """Whether a member adds noise to a picture, from which it goes on."""
    return "strength" in zoo.call_of(name) or name in ("wan_v2v", "cogvideox_v2v", "animatediff_v2v")


@contextmanager
def with_scheduler(pipe: Any, scheduler: Any) -> Iterator[Any]:
    """A pipeline with another scheduler."""
    before, pipe.scheduler = pipe.scheduler, scheduler
    try:
        yield pipe
    finally:
        pipe.scheduler = before


class Run:
    """One run of a pipeline: what its scheduler was called with, and what it returned."""

    def __init__(self, pipe: Any, call: dict[str, Any], steps: int = STEPS, seed: int = 0, **more: Any):
        self.schedulers: list[Any] = []
        self.first: list[Tensor] = []
        self.last: list[Tensor] = []
        self.times: list[float] = []
        self.outputs: list[Tensor] = []
        form = type(pipe.scheduler)
        plain = form.step

        @functools.wraps(plain)
        def step(scheduler: Any, output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
            result = plain(scheduler, output, timestep, sample, *args, **options)
            found = next((k for k, known in enumerate(self.schedulers) if known is scheduler), None)
            if found is None:
                found = len(self.schedulers)
                self.schedulers.append(scheduler)
                self.first.append(sample.clone())
                self.last.append(sample)
            if found == 0:
                self.times.append(float(torch.as_tensor(timestep).max()))
            self.outputs.append(output.clone())
            self.last[found] = (result[0] if isinstance(result, tuple) else result.prev_sample).clone()
            return result

        parameters = inspect.signature(pipe.__call__).parameters
        options = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed), **call, **more}
        if "output_type" in parameters:
            options.setdefault("output_type", "latent")
        form.step = step
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.manual_seed(0)  # some draw without the generator
                self.result = pipe(**options)
        finally:
            form.step = plain

    @property
    def end(self) -> Tensor:
        """The last latents of all schedulers, in a row."""
        return torch.cat([part.flatten() for part in self.last])


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest number."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} instead of {tuple(expected.shape)}"
    assert bool(found.isfinite().all()), "not finite"
    return float((found - expected).abs().max() / expected.abs().max())


def below(error: float, limit: float) -> float:
    """The error, which has to be below the limit."""
    assert error < limit, f"{error:.1e} where less than {limit:.0e} is expected"
    return error


# ---- models


def given_to_a_model(name: str) -> dict[str, Any]:
    """The arguments of a member's call that a model over it takes."""
    call = zoo.call_of(name)
    return {k: v for k, v in call.items() if k not in ("strength", "negative_prompt", "guidance_scale")}


def served(name: str, pipe: Any = None, **options: Any) -> Any:
    """A served model over a member."""
    call = zoo.call_of(name)
    negative = {"negative_prompt": call["negative_prompt"]} if "negative_prompt" in call else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sf.from_diffusers(
            pipeline(name) if pipe is None else pipe, served=True, **negative, **given_to_a_model(name), **options
        )


_kept: list[tuple[str, Any]] = []


def model_of(name: str) -> Any:
    """The served model over a member, which the claims share; that of the last member is kept."""
    if "pag" in name:
        forget()
    if not _kept or _kept[0][0] != name:
        forget()
        _kept.append((name, served(name)))
    return _kept[0][1]


def forget() -> None:
    """Close the model that is kept."""
    while _kept:
        _kept.pop()[1].close()


def guides(model: Any) -> bool:
    """Whether a served model does classifier-free guidance."""
    return model.null is not None


def plain_call(name: str, model: Any, guidance: float) -> dict[str, Any]:
    """The arguments of the pipeline's call at one scale of guidance, in one go from noise."""
    call = {k: v for k, v in zoo.call_of(name).items() if k != "guidance_scale"}
    signature = model.server.signature
    call |= signature.guided(guidance, "negative_prompt" in call)
    if "strength" in signature.parameters:
        call["strength"] = 1.0
    return call


def state(model: Any, seed: int = 1) -> Tensor:
    """Random latents of one sample."""
    return torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(seed))


def middle(model: Any) -> float:
    """A time of the path."""
    return float(model.server.path.middle)


def is_straight(model: Any) -> bool:
    """Whether a model is on the straight path of flow models."""
    return isinstance(model.schedule, sf.RectifiedFlow)


# ---- claims


def scheduler(name: str) -> str:
    """The pipeline's own loop runs with our schedulers, and makes every step that was planned."""
    pipe = pipeline(name)
    call = zoo.call_of(name)
    assert (name in NO_CALLBACK) == ("callback_on_step_end" not in inspect.signature(pipe.__call__).parameters)
    for solver in ("ees25", "heun"):
        with with_scheduler(pipe, ours(pipe.scheduler, solver)):
            run = Run(pipe, call, steps_of(name))
        assert bool(run.end.isfinite().all()), f"{solver}: not finite"
        for used in run.schedulers:
            whole = len(used.timesteps)
            if used.step_index is not None:  # else it has been planned anew since
                assert used.step_index == whole, f"{solver}: {used.step_index} calls of {whole}"
        assert len(run.times) > steps_of(name) or call.get("strength", 1.0) < 1.0, f"{solver}: {len(run.times)} calls"
    return "yes"


def ddim(name: str) -> float:
    """Our `ddim` gives the numbers of diffusers' Euler or DDIM."""
    pipe = pipeline(name)
    own = pipe.scheduler
    ours(own, "ddim")  # a refusal counts for the member's own
    if type(own).__name__ not in EULER:
        config = own.config
        if is_flow(own):
            own = diffusers.FlowMatchEulerDiscreteScheduler(shift=config.get("flow_shift") or config.get("shift", 1.0))
        elif type(own).__name__ != "CogVideoXDDIMScheduler":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                own = diffusers.DDIMScheduler.from_config(config)
    if own.config.get("timestep_spacing") == "linspace":  # whose places DDIM does not step to
        own = type(own).from_config(own.config, timestep_spacing="trailing")
    with with_scheduler(pipe, own):
        expected = Run(pipe, zoo.call_of(name), steps_of(name))
    with with_scheduler(pipe, ours(own, "ddim")):
        found = Run(pipe, zoo.call_of(name), steps_of(name))
    assert len(found.times) == len(expected.times)
    return below(apart(found.end, expected.end), 2e-5)


def plain(name: str) -> float:
    """A run over the served model is the pipeline's own run with our scheduler."""
    model, pipe = model_of(name), pipeline(name)
    if not rounds_times(pipe.scheduler):
        return below(_beside_its_run(name, model, pipe), 1e-5)
    below(_beside_its_run(name, model, pipe), 3e-2)  # the network is told whole timesteps in one of the two
    shift = pipe.scheduler.config.get("flow_shift") or 1.0
    with (
        with_scheduler(pipe, diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)),
        served(name, pipe) as model,
    ):
        return below(_beside_its_run(name, model, pipe), 1e-5)


def rounds_times(scheduler: Any) -> bool:
    """Whether a scheduler of flow models tells the network whole timesteps, which are not those of its noise levels."""
    return is_flow(scheduler) and type(scheduler).__name__ in ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler")


def _beside_its_run(name: str, model: Any, pipe: Any) -> float:
    """How far runs over a model are from the pipeline's own with our scheduler."""
    errors = []
    for solver, guidance in (("ees25", 3.0 if guides(model) and name != "dit" else 1.0), ("rk4", 1.0)):
        chosen = model.with_guidance(guidance)
        with with_scheduler(pipe, ours(pipe.scheduler, solver)):
            run = Run(pipe, plain_call(name, model, guidance), steps_of(name))
            size = pipe.scheduler.init_noise_sigma
        x = torch.cat([part.flatten() for part in run.first]).reshape(1, *model.shape)
        if not starts_from_a_picture(name):
            assert torch.equal(x, chosen.noise * size), "the pipeline begins with other latents"
        found = sf.sample(chosen, x=x, solver=solver, grid=chosen.own_grid(steps_of(name))).x
        errors.append(apart(found.flatten(), run.end))
    return max(errors)


def adapter(name: str) -> float:
    """The family's own adapter answers as the served pipeline does."""
    pipe = pipeline(name)
    sizes = {k: v for k, v in zoo.call_of(name).items() if k in ("height", "width")}
    prompt = zoo.call_of(name).get("prompt")
    own = sf.from_diffusers(pipe, prompt, **sizes, served=False)
    if hasattr(pipe, "tokenizer_2") and name.startswith("flux"):
        sizes["max_sequence_length"] = pipe.tokenizer_2.model_max_length  # which is 512 in real ones, as the default
    model = sf.from_diffusers(pipe, prompt, **sizes, served=True)
    side = own.shape[-1] // 2
    x, errors = state(own), []
    packed = x if len(model.shape) == len(own.shape) else _packed(x, side)
    for guidance in (1.0, 3.0) if guides(model) and own.null is not None else (1.0,):
        for t in (0.3, 0.7):
            time = t if is_flow(pipe.scheduler) else float(round(1000 * t))
            found = own.with_guidance(guidance)(x, time).output
            found = found if packed is x else _packed(found, side)
            errors.append(apart(found, model.with_guidance(guidance)(packed, time).output))
    model.close()
    return below(max(errors), 1e-4)


def _packed(x: Tensor, side: int) -> Tensor:
    """FLUX's latents as its pipeline packs them."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), 4 * c)


def round_trip(name: str) -> float:
    """An exactly reversible method returns to the latents from which it was inverted."""
    model = model_of(name)
    solver = sf.solvers.get("rex-midpoint", coordinates="flow")
    result = sf.reconstruct(model, state(model), solver=solver, steps=steps_of(name))
    return below(apart(result.x, state(model)), 1e-2 if name in ROUGH else 1e-4)


def handed(model: Any, x: Tensor, t: float) -> Tensor:
    """What the pipeline hands its scheduler, before the estimate of the data is clipped."""
    return model.server.answer(model.request, x, t)


def guidance(name: str) -> str:
    """Guidance is what it is said to be, from the plain output away from that of the negative prompt."""
    model = model_of(name)
    x, t = state(model), middle(model)
    kind = GUIDANCE.get(name, "linear")
    plain, guided = handed(model, x, t), handed(model.with_guidance(3.0), x, t)
    equal = name.startswith("kandinsky22")  # its two embeddings are equal
    assert equal or apart(guided, plain) > 1e-5, "guidance is ignored"
    if not equal and kind in ("linear", "collinear"):
        further = handed(model.with_guidance(4.0), x, t)
        below(apart(further - guided, 0.5 * (guided - plain)), 1e-2)
    prompt = zoo.call_of(name).get("prompt")
    takes_negative = "negative_prompt" in model.server.signature.parameters and prompt is not None
    if kind in ("linear", "norm kept") and takes_negative:
        negative = handed(model.with_condition(NEGATIVE), x, t)
        guided = handed(model.with_guidance(3.0).with_condition(prompt).with_negative(NEGATIVE), x, t)
        expected = negative + 3.0 * (plain - negative)
        if kind == "norm kept":
            expected = expected * plain.norm(dim=-1, keepdim=True) / expected.norm(dim=-1, keepdim=True)
        below(float((guided - expected).abs().max() / (plain - negative).abs().max()), 1e-2)
    elif takes_negative:
        other = handed(model.with_guidance(3.0).with_negative(NEGATIVE), x, t)
        assert apart(other, handed(model.with_guidance(3.0).with_negative(prompt), x, t)) > 1e-6, "negative ignored"
    return kind


def inputs(name: str) -> str:
    """The prompt and every picture of the call act."""
    call, acting = zoo.call_of(name), []
    model = model_of(name)
    x, t = state(model), middle(model)
    before = model(x, t).output
    for key, value in call.items():
        if key == "prompt":
            other: Any = OTHER_PROMPT
        elif key == "class_labels":
            other = [value[0] + 1]
        elif key in PICTURES:
            other = another(value)
        else:
            continue
        if starts_from_a_picture(name) and key != "prompt":  # the field is that of the text, the beginning is not
            pipe = pipeline(name)
            with with_scheduler(pipe, ours(pipe.scheduler, "ees25")):
                change = apart(Run(pipe, {**call, key: other}).end, Run(pipe, call).end)
        else:
            changed = model.with_condition(other if key == "prompt" else {key: other})
            change = apart(changed(x, t).output, before)
        assert change > 1e-5, f"{key} is ignored"
        acting.append(key)
    return ", ".join(acting)


def codec(name: str) -> float:
    """What is encoded and decoded again is what the VAE makes of it."""
    model, pipe = model_of(name), pipeline(name)
    shape = model.image_shape
    if isinstance(shape, dict):
        model.encode(torch.zeros(1, 1))
    images = (2.0 * torch.rand(1, *shape, generator=torch.Generator().manual_seed(2)) - 1.0) * 0.9
    x = model.encode(images)
    assert tuple(x.shape) == (1, *model.shape)
    assert bool(x.isfinite().all())
    assert x.dtype == torch.float32
    again = model.decode(x)
    assert again.shape == images.shape
    vae = getattr(pipe, "vae", None) or getattr(pipe, "movq", None)
    if vae is None:
        return below(apart(again, images), 1e-5)
    if name in GIVEN_FRAMES or name in ODD_VAES:
        return 0.0
    expected = _through(vae, images)
    if images.ndim >= 4 and zoo.MEMBERS[name].kind != "audio":
        expected = expected.clamp(-1.0, 1.0)
    return below(float((again - expected).abs().max()), 1e-2 if name in HALF else 1e-3)


def _through(vae: Any, images: Tensor) -> Tensor:
    """Pictures encoded and decoded by a VAE itself."""
    folded = images.ndim == 5 and isinstance(vae, diffusers.AutoencoderKL)
    lifted = images.ndim == 4 and "3d" in str(vae)
    y = images[0].transpose(0, 1) if folded else images.unsqueeze(2) if lifted else images
    with torch.no_grad():
        found = vae.encode(y)
        z = found.latent_dist.mode() if hasattr(found, "latent_dist") else getattr(found, "latent", None)
        whole = {"force_not_quantize": True} if isinstance(vae, diffusers.VQModel) else {}
        made = vae.decode(found.latents if z is None else z, **whole).sample
    made = made.transpose(0, 1)[None] if folded else made.squeeze(2) if lifted else made
    return made


def decode(name: str) -> float:
    """Latents decode to what the pipeline itself makes of them, in [-1, 1]."""
    model, pipe = model_of(name), pipeline(name)
    more = {"output_type": "pt"} if "output_type" in model.server.signature.parameters else {}
    run = Run(pipe, plain_call(name, model, 1.0), steps=2, **more)
    found = model.decode(run.end.reshape(1, *model.shape) / model.server.path.scale)
    parts = found if isinstance(found, dict) else {"": found}
    theirs = [value for value in _values(run.result) if isinstance(value, Tensor) and value.numel() > 1]
    errors = []
    for key, mine in parts.items():
        sizes = [v for v in theirs if v.numel() == mine.numel()]
        assert sizes, f"{key} {tuple(mine.shape)}: the pipeline returned {[tuple(v.shape) for v in theirs]}"
        value = sizes[0].float()
        if mine.ndim == 5:
            value = value.transpose(1, 2)
        value = value.reshape(mine.shape)
        if mine.ndim == 3:  # a sound
            errors.append(apart(mine, value))
            continue
        assert float(mine.abs().max()) <= 1.0 + 1e-5
        errors.append(min(float((mine - v.clamp(-1.0, 1.0)).abs().max()) for v in (value, 2.0 * value - 1.0)))
    return below(max(errors), 1e-4)


def _values(result: Any) -> list[Any]:
    """What a pipeline returned, as tensors of one sample."""
    values = list(result.values()) if hasattr(result, "values") else list(result)
    found = []
    for value in values:
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            value = torch.stack(value)
        elif value is not None and not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                continue
        found.append(value)
    return found


def strength(name: str) -> str:
    """A part of the way begins where it does with diffusers' method."""
    pipe, call = pipeline(name), zoo.call_of(name)
    for part in (0.9, 0.8, 0.5):
        begins = {}
        for solver in ("ddim", "ees25", "rk4"):
            with with_scheduler(pipe, ours(pipe.scheduler, solver)):
                run = Run(pipe, {**call, "strength": part}, steps=10)
            assert bool(run.end.isfinite().all())
            begins[solver] = run.times[0]
        assert len(set(begins.values())) == 1, f"strength {part}: {begins}"
    return "yes"


def saved(name: str) -> float:
    """A pipeline is saved and loaded with our scheduler, and runs as before."""
    pipe = zoo.build(name)
    pipe.scheduler = ours(pipe.scheduler, "ees25")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.save_pretrained(folder)
        loaded = diffusers.DiffusionPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    for attribute in SET_LATER:
        if hasattr(pipe, attribute):
            setattr(loaded, attribute, getattr(pipe, attribute))
    assert type(loaded.scheduler) is type(pipe.scheduler)
    assert loaded.scheduler.solver == pipe.scheduler.solver
    call = zoo.call_of(name)
    return below(apart(Run(loaded, call, 2).end, Run(pipe, call, 2).end), 1e-4)


def callback(name: str) -> str:
    """The pipeline's callback is called at every network call."""
    pipe, seen = pipeline(name), []

    def note(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(time)
        return given

    with with_scheduler(pipe, ours(pipe.scheduler, "ees25")):
        run = Run(pipe, zoo.call_of(name), steps_of(name), callback_on_step_end=note)
    assert len(seen) == len(run.outputs) // len(run.schedulers)
    return "yes"


def edit(name: str) -> str:
    """An inversion is decoded under another prompt."""
    model = model_of(name)
    if not model.takes_prompts:
        raise sf.InputError(f"condition: {model.name} takes no prompts")
    result = sf.edit(model, state(model), OTHER_PROMPT, solver="euler", steps=2)
    assert apart(result.x, state(model)) > 1e-6
    return "yes"


def diagnosis(name: str) -> str:
    """A diagnosis is made of a run over the model."""
    model = model_of(name)
    sf.diagnose(model, state(model), solver="ddim", steps=2, tolerance=1e-2)
    return "yes"


def close(name: str) -> str:
    """A model that is closed leaves no thread behind, and opens again when it is asked."""
    forget()
    before = set(threading.enumerate())

    def left() -> list[str]:
        return [t.name for t in set(threading.enumerate()) - before if t.name.startswith("steadyflow")]

    with served(name) as model:
        first = model(state(model), middle(model)).output
        assert left()
    assert not left()
    assert torch.equal(model(state(model), middle(model)).output, first)
    model.close()
    assert not left()
    return "yes"


CLAIMS: dict[str, Callable[[str], Any]] = {
    f.__name__: f
    for f in (scheduler, ddim, strength, callback, saved, plain, adapter, round_trip, guidance, inputs, codec, decode,
              edit, diagnosis, close)
}  # fmt: skip


def applies(claim: str, name: str) -> bool:
    """Whether a claim has a meaning for a member."""
    if claim == "strength":
        return "strength" in zoo.call_of(name)
    if claim == "saved":
        return not zoo.MEMBERS[name].loads
    if claim == "diagnosis":
        return name in DIAGNOSED
    if claim == "adapter":
        return name in ADAPTED
    if claim == "callback":
        return name not in NO_CALLBACK
    if claim == "inputs":
        return bool({"prompt", *PICTURES} & zoo.call_of(name).keys())
    return True


ADAPTED = ("sd", "lcm", "sdxl", "sd3", "flux", "flux_schnell", "ddim", "ddpm")
"""Members whose families have an adapter of their own."""
DIAGNOSED = ("sd3", "flux", "sana", "wan", "chroma", "latte", "stable_audio_3", "dit")
"""Members of which a diagnosis is cheap."""
LATER = ("saved", "strength", "close", "diagnosis", "callback")
"""Claims that are tested with all families, but not in the quick selection."""


# ---- what cannot be had, and why

_SCHEDULED = ("scheduler", "ddim", "strength", "callback", "saved", "plain")
_MODELLED = ("plain", "adapter", "round_trip", "guidance", "inputs", "codec", "decode", "edit", "diagnosis", "close")
_STAGED = ("scheduler", "strength", "callback", "saved")


def _of(names: str, claims: tuple[str, ...], reason: Any) -> dict[tuple[str, str], Any]:
    return {(n, c): reason for n in names.split() for c in claims if applies(c, n)}


NO_CALLBACK = (
    "sd_upscale", "pixart_sigma", "pixart_alpha", "dit", "ddim", "ddpm", "longcat", "dreamlite",
    "dreamlite_image", "if", "if_img2img",
    "hunyuan_video_15", "hunyuan_video_15_i2v", "stable_audio", "audioldm2", "consistency",
)  # fmt: skip
"""Members whose calls take no `callback_on_step_end`."""

_BLENDED = "sd_inpaint sdxl_inpaint sd3_inpaint flux_inpaint qwenimage_inpaint joyimage_edit"
REFUSED: dict[tuple[str, str], str] = {
    **_of(_BLENDED, _STAGED, "the latents were changed within a step"),
    **_of(_BLENDED, _MODELLED, "changes the latents between its steps|to blend in a mask"),
    **_of("sd_pag sana_pag", _MODELLED, "exchanges the attention of its"),
    **_of("skyreels_df", _MODELLED, "its state is no sample of one path"),
    **_of("ace_step", ("plain", "guidance"), "gives two answers"),
    **_of("ltx_condition", _SCHEDULED, "per_token_timesteps"),
    **_of("sana_sprint sana_sprint_img2img", _SCHEDULED, "its path is trigonometric"),
    **_of("sana_sprint_img2img", ("inputs",), "its path is trigonometric"),
    **_of("cosmos2 cosmos2_v2w", _SCHEDULED, "its path is x0 \\+ sigma eps with its own scaling of the network"),
    **_of("cosmos cosmos_v2w", (*_SCHEDULED, *_MODELLED), "its own scaling of the network"),
    **_of("stable_audio", _SCHEDULED, "its own scaling of the network"),
    **_of("svd", _SCHEDULED, "timestep_type: 'continuous'"),
    **_of("mochi longcat_audio", _SCHEDULED, "turns the time of a flow model round"),
    **_of("cascade cascade_prior", (*_SCHEDULED, *_MODELLED), "its table is a function of the number of steps"),
    **_of("consistency", (*_SCHEDULED, *_MODELLED), "its own scaling of the network"),
    **_of("helios", (*_SCHEDULED, *_MODELLED), "its steps are more than steps along one path"),
    **_of("anyflow anyflow_far", _MODELLED, "its steps are more than steps along one path"),
    **_of("ltx_condition", _MODELLED, "gives every token a time of its own"),
    **_of("hunyuanimage", _MODELLED, "a guider with a memory"),
    **_of(
        "lcm lcm_img2img flux_fill flux_control flux2 flux2_image ddim ddpm hunyuan_video_15 hunyuan_video_15_i2v "
        "motif motif_i2v svd sana_sprint sana_sprint_img2img",
        ("guidance",),
        "does no classifier-free guidance",
    ),
    **_of("dit", ("guidance",), "its call makes 2 samples"),
    **_of("ltx2 ltx2_i2v ltx2_condition kandinsky6", ("codec",), "in one, for which there is no way in"),
    **_of("hunyuan_video_i2v stable_audio ace_step", ("codec",), "the vae encodes to shape"),
    **_of("wan_animate kandinsky5_i2v", ("codec",), "some come from none or from several"),
    **_of("audioldm2", ("codec",), "no way in"),
    **_of("dit ddim ddpm kandinsky22 kandinsky22_img2img svd", ("edit",), "takes no prompts"),
}
"""What is refused by an `InputError`, and its reason as a regular expression."""

LIMITS: dict[tuple[str, str], tuple[type[Exception], str]] = {
    **_of("ideogram4", ("scheduler", "plain", "callback", "saved"), (IndexError, "list index out of range")),
    **_of("lcm lcm_img2img", ("ddim",), (TypeError, "original_inference_steps")),
    **_of("bria_fibo", ("edit",), (sf.InputError, "index out of range")),
    **_of("if if_img2img", ("ddim",), (RuntimeError, "size of tensor")),
    **_of("skyreels_df", ("ddim",), (ValueError, "Passing integer indices")),
    # they cut their list of calls as if each were a step: with our `heun` as with diffusers' own
    **_of("kandinsky22_img2img kandinsky3_img2img", ("strength",), (AssertionError, "strength 0.8")),
    # the pipeline makes a DDIMScheduler of any scheduler that it is given
    **_of("ddim", ("saved",), (AssertionError, "")),
    # its random network magnifies rounding a million times
    **_of("kandinsky3_img2img", ("round_trip",), (AssertionError, "where less than")),
}  # fmt: skip
"""What diffusers' own pipelines or the random networks do not allow, and how that shows."""

FAULTS: dict[tuple[str, str], str] = {
    **_of("anyflow anyflow_far", ("scheduler",), "a config that should have been refused"),
}
"""What is not yet as claimed."""


def works(claim: str, name: str) -> bool:
    """Whether a claim is kept by a member, as the test of the families checks."""
    return applies(claim, name) and not any((name, claim) in table for table in (REFUSED, LIMITS, FAULTS))


def working(claim: str) -> list[str]:
    """The members that keep a claim."""
    return [name for name in zoo.MEMBERS if works(claim, name)]


_IN_WORDS = {
    "changes the latents between its steps|to blend in a mask": "blends a mask into the latents between its steps",
    "exchanges the attention of its": "exchanges the attention of its network while its call runs",
    "list index out of range": "its call reads more time steps than it was given (IndexError in diffusers)",
    "strength 0.8": "its call counts calls as steps, so that a strength is another one with solvers of several calls a "
    "step, diffusers' own too",
    "a config that should have been refused": "takes a configuration that it does not support",
}
"""What the tables hold as patterns of messages, as the page says it."""


def reason(name: str) -> str:
    """Why something is not to be had of a member; empty if all is. Claims that fail alike are named together."""
    claims: dict[str, list[str]] = {}
    for claim in ("scheduler", "inputs", "decode", "codec", "guidance", "strength"):
        if claim == "strength" and not works("scheduler", name):
            continue
        for table in (REFUSED, LIMITS, FAULTS):
            why = table.get((name, claim))
            if why is not None:
                why = (why[1] if isinstance(why, tuple) else why).replace("\\", "")
                why = _IN_WORDS.get(why, why)
                assert "|" not in why, why
                claims.setdefault(why, []).append(claim)
    return "; ".join(f"{', '.join(dict.fromkeys(some))}: {why}" for why, some in claims.items())
