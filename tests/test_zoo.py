"""The zoo of tiny pipelines: every member runs, and listens to all that it is given."""

import dataclasses
import functools
import inspect

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo import parts

ALL = [pytest.param(name, marks=() if m.quick else pytest.mark.families) for name, m in zoo.MEMBERS.items()]
PICTURES = [param for param in ALL if not zoo.MEMBERS[param.values[0]].text_to_image]
OTHER_PROMPT = 'seven red ships, and "anchor" written on one of them'
# what a pipeline is given after it is made, and so no saved copy knows
SET_LATER = ("default_sample_size", "resolutions", "text_preprocessor", "vae_image_processor")


@pytest.fixture
def run(monkeypatch):
    """A run of a pipeline: what it returns, and what the scheduler was handed, call by call."""

    def run(pipe, call, seed=0):
        seen = []
        form = type(pipe.scheduler)
        plain = form.step

        @functools.wraps(plain)
        def step(self, model_output, *args, **options):
            seen.append(model_output.clone())
            return plain(self, model_output, *args, **options)

        steps = 4 if call.get("strength", 1.0) > 0.5 and "strength" in call else 2
        options = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed)}
        if "output_type" in inspect.signature(pipe.__call__).parameters:
            options["output_type"] = "pt"
        with monkeypatch.context() as patched, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # some draw without the generator
            patched.setattr(form, "step", step)
            output = pipe(**{**options, **call})
        assert seen, "the scheduler was not used"
        return output, seen

    return run


def change(first, second):
    """How far two runs differ in what their schedulers were handed, relative to its size."""
    assert len(first) == len(second)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(first, second, strict=True))


def finite(value):
    if isinstance(value, (list, tuple)):
        return all(finite(item) for item in value)
    return not isinstance(value, (torch.Tensor, np.ndarray)) or bool(torch.as_tensor(value).isfinite().all())


def another(value):
    """Another picture, video, sound or embedding in the place of one; the rest as it is."""
    if isinstance(value, Image.Image):
        return value if value.mode == "L" else parts.picture(*value.size, seed=11)
    if isinstance(value, (list, tuple)):
        changed = [another(item) for item in value]
        return value if all(a is b for a, b in zip(changed, value, strict=True)) else type(value)(changed)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.flip(-1) + 0.5 * torch.rand(value.shape, generator=torch.Generator().manual_seed(11))
    if isinstance(value, np.ndarray):
        return value[..., ::-1].copy()
    if dataclasses.is_dataclass(value):
        fields = {field.name: another(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def places_of(pipe):
    """Where in memory the weights of a pipeline lie."""
    weights = (weight for part in zoo.modules(pipe).values() for weight in part.parameters())
    return {weight.data_ptr() for weight in weights if weight.numel()}


@pytest.mark.parametrize("name", ALL)
def test_a_member_runs_and_two_builds_are_the_same_and_apart(name, run):
    first, second = zoo.build(name), zoo.build(name)
    output, seen = run(first, zoo.call_of(name))
    assert finite(tuple(output.values()) if hasattr(output, "values") else output)
    assert all(torch.isfinite(step).all() and step.any() for step in seen)
    assert change(seen, run(second, zoo.call_of(name))[1]) == 0.0
    assert change(seen, run(first, zoo.call_of(name), seed=1)[1]) > 1e-4, "the noise is ignored"

    assert places_of(first).isdisjoint(places_of(second))


@pytest.mark.parametrize("name", ALL)
def test_a_member_listens_to_its_prompt(name, run):
    pipe, call = zoo.build(name), zoo.call_of(name)
    if "prompt" not in call:
        pytest.skip("no prompt")
    guided = [call]
    if "guidance_scale" in inspect.signature(pipe.__call__).parameters:
        guided.append({**call, "guidance_scale": 1.0})
    for options in guided:
        other = {**options, "prompt": OTHER_PROMPT}
        assert change(run(pipe, options)[1], run(pipe, other)[1]) > 2e-5


@pytest.mark.parametrize("name", PICTURES)
def test_a_member_listens_to_its_picture(name, run):
    pipe, call = zoo.build(name), zoo.call_of(name)
    for key, value in call.items():
        other = another(value)
        if other is not value and key != "prompt" and "negative" not in key and "mask" not in key:
            assert change(run(pipe, call)[1], run(pipe, {**call, key: other})[1]) > 2e-5, key


@pytest.mark.families
@pytest.mark.parametrize("name", zoo.MEMBERS)
def test_a_member_is_saved_and_loaded(name, run, tmp_path):
    if zoo.MEMBERS[name].loads:
        pytest.skip(zoo.MEMBERS[name].loads)
    pipe = zoo.build(name)
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for attribute in SET_LATER:
        if hasattr(pipe, attribute):
            setattr(loaded, attribute, getattr(pipe, attribute))
    assert type(loaded) is type(pipe)
    assert change(run(pipe, zoo.call_of(name))[1], run(loaded, zoo.call_of(name))[1]) < 1e-4


def test_the_registry():
    assert all(name == member.name for name, member in zoo.MEMBERS.items())
    for member in zoo.MEMBERS.values():
        assert member.image_sibling is None or member.image_sibling in zoo.MEMBERS
        assert member.kind in ("image", "video", "audio", "video+audio")
        assert not {"generator", "num_inference_steps", "output_type", "latents"} & zoo.call_of(member.name).keys()
    for form in zoo.NOT_BUILT:
        assert hasattr(diffusers, form), form
