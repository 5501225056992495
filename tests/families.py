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
NOT_LINEAR = {
    "qwenimage": "norm kept", "qwenimage_inpaint": "norm kept", "qwenimage_img2img": "norm kept",
    "qwenimage_edit": "norm kept", "qwenimage_edit_plus": "norm kept", "qwenimage_controlnet": "norm kept",
    "lumina2": "norm kept",
}  # fmt: skip
"""Families whose guidance is more than negative + scale (positive - negative)."""
PICTURES = ("image", "video", "image_embeds", "control_image", "conditions", "pose_video", "face_video",
            "image_embeddings", "class_labels")  # fmt: skip
"""Arguments of calls that are pictures, or stand for them."""


# ---- pipelines and their runs


@functools.lru_cache(maxsize=2)
def pipeline(name: str) -> Any:
    """A member's pipeline with its own scheduler; nobody may change it."""
    return zoo.build(name)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers is one of flow models."""
    config = scheduler.config
    return "Flow" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction"


def ours(scheduler: Any, solver: str, **options: Any) -> Any:
    """Our scheduler with the config of diffusers'."""
    kind = SteadyFlowScheduler if is_flow(scheduler) else SteadyScheduler
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
                self.times.append(float(timestep))
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
    for solver in ("ees25", "heun"):
        with with_scheduler(pipe, ours(pipe.scheduler, solver)):
            run = Run(pipe, call)
        assert bool(run.end.isfinite().all()), f"{solver}: not finite"
        for used in run.schedulers:
            whole = len(used.timesteps)
            assert used.step_index == whole, f"{solver}: {used.step_index} calls of {whole}"
        assert len(run.times) > STEPS or call.get("strength", 1.0) < 1.0, f"{solver}: {len(run.times)} calls"
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
    with with_scheduler(pipe, own):
        expected = Run(pipe, zoo.call_of(name))
    with with_scheduler(pipe, ours(own, "ddim")):
        found = Run(pipe, zoo.call_of(name))
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
    for solver, guidance in (("ees25", 3.0 if guides(model) else 1.0), ("rk4", 1.0)):
        chosen = model.with_guidance(guidance)
        with with_scheduler(pipe, ours(pipe.scheduler, solver)):
            run = Run(pipe, plain_call(name, model, guidance))
        x = torch.cat([part.flatten() for part in run.first]).reshape(1, *model.shape)
        if not starts_from_a_picture(name):
            assert torch.equal(x, chosen.noise), "the pipeline begins with other latents"
        found = sf.sample(chosen, x=x, solver=solver, grid=chosen.own_grid(STEPS)).x
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
    solver = sf.solvers.get("rex-midpoint", **({"coordinates": "flow"} if is_straight(model) else {}))
    result = sf.reconstruct(model, state(model), solver=solver, steps=STEPS)
    return below(apart(result.x, state(model)), 1e-4)


def guidance(name: str) -> str:
    """Guidance is what it is said to be, from the plain output away from that of the negative prompt."""
    model = model_of(name)
    x, t = state(model), middle(model)
    asked = model.with_guidance(3.0)
    if "negative_prompt" not in model.server.signature.parameters:
        plain, two, three = (model.with_guidance(g)(x, t).output for g in (1.0, 2.5, 4.0))
        assert apart(three, plain) > 1e-5
        below(apart(three - two, two - plain), 1e-3)
        return "linear"
    prompt = zoo.call_of(name).get("prompt")
    positive, negative = model(x, t).output, model.with_condition(NEGATIVE)(x, t).output
    found = asked.with_condition(prompt).with_negative(NEGATIVE)(x, t).output
    expected = negative + 3.0 * (positive - negative)
    if name in NOT_LINEAR:
        if NOT_LINEAR[name] == "norm kept":
            kept = positive.norm(dim=-1, keepdim=True) / expected.norm(dim=-1, keepdim=True)
            below(apart(found, expected * kept), 1e-4)
        return NOT_LINEAR[name]
    below(apart(found, expected), 1e-3)
    return "linear"


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
    expected = _through(vae, images)
    return below(float((again - expected).abs().max()), 1e-3)


def _through(vae: Any, images: Tensor) -> Tensor:
    """Pictures encoded and decoded by a VAE itself."""
    folded = images.ndim == 5 and isinstance(vae, diffusers.AutoencoderKL)
    lifted = images.ndim == 4 and "3" in str([m for m in vae.modules() if isinstance(m, torch.nn.Conv3d)][:1])
    y = images[0].transpose(0, 1) if folded else images.unsqueeze(2) if lifted else images
    with torch.no_grad():
        found = vae.encode(y)
        z = found.latent_dist.mode() if hasattr(found, "latent_dist") else getattr(found, "latent", None)
        made = vae.decode(found.latents if z is None else z).sample
    made = made.transpose(0, 1)[None] if folded else made.squeeze(2) if lifted else made
    return made if made.ndim == 3 else made.clamp(-1.0, 1.0)


def decode(name: str) -> float:
    """Latents decode to what the pipeline itself makes of them, in [-1, 1]."""
    model, pipe = model_of(name), pipeline(name)
    more = {"output_type": "pt"} if "output_type" in model.server.signature.parameters else {}
    with with_scheduler(pipe, ours(pipe.scheduler, "ees25")):
        run = Run(pipe, plain_call(name, model, 1.0), **more)
    found = model.decode(run.end.reshape(1, *model.shape))
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
        errors.append(min(float((mine - v).abs().max()) for v in (value, 2.0 * value - 1.0)))
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
    return below(apart(Run(loaded, call).end, Run(pipe, call).end), 1e-4)


def callback(name: str) -> str:
    """The pipeline's callback is called at every network call."""
    pipe, seen = pipeline(name), []

    def note(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(float(time))
        return given

    with with_scheduler(pipe, ours(pipe.scheduler, "ees25")):
        run = Run(pipe, zoo.call_of(name), callback_on_step_end=note)
    assert seen == run.times
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
              close)
}  # fmt: skip


def applies(claim: str, name: str) -> bool:
    """Whether a claim has a meaning for a member."""
    pipe_class = None
    if claim == "strength":
        return "strength" in zoo.call_of(name)
    if claim == "saved":
        return not zoo.MEMBERS[name].loads
    if claim == "adapter":
        return name in ADAPTED
    if claim == "callback":
        pipe_class = type(pipeline(name))
        return "callback_on_step_end" in inspect.signature(pipe_class.__call__).parameters
    if claim == "inputs":
        return bool({"prompt", *PICTURES} & zoo.call_of(name).keys())
    return True


ADAPTED = (
    "sd",
    "sd_img2img",
    "lcm",
    "sdxl",
    "sdxl_img2img",
    "sd3",
    "sd3_img2img",
    "flux",
    "flux_schnell",
    "ddim",
    "ddpm",
)
"""Members whose families have an adapter of their own."""
