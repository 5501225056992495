"""Editing over whole pipelines: the command line, smoothing and LoRA, masks, saved inversions, PIE-Bench."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import pipelines  # needs diffusers
import steadyflow as sf
from steadyflow.denoisers import Smoothing
from steadyflow.diffusers import load_pipeline
from steadyflow_lab.editing import piebench, piebench_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion on disk, smooth in time."""
    where = tmp_path_factory.mktemp("tiny") / "sd"
    pipelines.smooth_in_time(pipelines.build("sd")).save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def model(folder):
    return load_pipeline(folder)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cat.png"
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_a_picture_is_edited_from_the_command_line(call, folder, picture, tmp_path):
    out, saved = tmp_path / "dog.png", tmp_path / "cat.safetensors"
    goal, way_up = ["--target", "a dog", "--guidance", "2"], ["--source", "a cat", "--nfe", "12"]
    status, text, problem = call(
        "edit", "--model", folder, "--image", picture, *way_up, *goal, "--out", out, "--save", saved, "--json"
    )
    assert status == 0, problem
    figures = json.loads(text)
    assert figures["nfe"] == 24
    with Image.open(out) as drawn:
        assert drawn.size == (32, 32)
    again = tmp_path / "again.png"
    status, text, problem = call("edit", "--model", folder, "--from", saved, *goal, "--out", again, "--json")
    assert status == 0, problem
    assert json.loads(text)["nfe"] == 12  # nothing is inverted anew
    assert np.abs(np.asarray(Image.open(out), int) - np.asarray(Image.open(again), int)).max() <= 1
    for method in sf.editing.names():
        options = ["--method", method, "--steps", "3"]
        status, _, problem = call(
            "edit", "--model", folder, "--image", picture, "--target", "a dog", *options, "--json"
        )
        assert status == 0, (method, problem)


def test_a_mask_keeps_the_rest(call, folder, picture, model, tmp_path):
    white = np.zeros((32, 32), np.uint8)
    white[:, 16:] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    out = tmp_path / "dog.npy"
    x = model.codec.encode(sf.datasets.arrays.read(picture, (3, 32, 32)))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    options = {"source": "a cat", "guidance": 3.0, "steps": 4}
    edited = sf.edit(model, x, "a dog", mask=mask, **options)
    assert torch.equal(edited.x[..., :8], x[..., :8])
    assert (edited.x[..., 8:] - x[..., 8:]).abs().max() > 1e-3
    words = ["--source", "a cat", "--target", "a dog", "--guidance", "3", "--steps", "4"]
    status, text, _ = call(
        "edit", "--model", folder, "--image", picture, "--mask", tmp_path / "mask.png", *words, "--out", out
    )
    assert status == 0, text
    assert np.allclose(np.load(out), model.codec.decode(edited.x).numpy(), atol=1e-4)
    with pytest.raises(sf.InputError, match="fits no samples"):
        sf.edit(model, x, "a dog", mask=torch.zeros(1, 1, 5, 5), steps=2)


def test_smoothing_averages_the_field_over_neighbours():
    """On a quadratic field the mean over +-z is the field plus its second difference, by hand."""
    model = sf.Denoiser(lambda x, t: x.square(), sf.VE(), prediction="epsilon", shape=(3,))
    x = torch.linspace(-1, 1, 6).view(2, 3)
    sigma, smooth = 0.5, Smoothing(0.2, pairs=2, seed=3)
    draws = [sf.noise.normal(3, sf.noise.SMOOTHING, (k, 0, 0), (0,), (3,)) for k in range(2)]
    expected = x.square() + (0.2 * sigma) ** 2 * sum(z.square() for z in draws) / 2
    assert torch.allclose(model.with_smoothing(smooth)(x, sigma).eps, expected, atol=1e-6)
    assert model.with_smoothing(smooth).cost == 4
    options = {"n": 2, "steps": 3, "grid": "karras", "solver": "ddim"}
    plain, smoothed = (sf.sample(m, **options).nfe for m in (model, model.with_smoothing(smooth)))
    assert smoothed == 4 * plain
    with pytest.raises(sf.InputError, match="radius"):
        Smoothing(0.0)


def test_smoothing_there_back_or_both(model):
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    options = {"source": "a cat", "guidance": 2.0, "steps": 4}
    plain = sf.edit(model, x, "a dog", **options)
    costs = {
        when: sf.edit(model, x, "a dog", smoothing=0.3, smooth=when, **options).nfe
        for when in ("inversion", "generation", "both")
    }
    assert costs == {"inversion": 36, "generation": 36, "both": 48}
    assert plain.nfe == 24
    with pytest.raises(sf.InputError, match="inversion, generation"):
        sf.edit(model, x, "a dog", smoothing=0.3, smooth="up", **options)


def test_inversions_under_prompts_are_saved_with_them(model, tmp_path):
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    found = sf.invert(model.with_condition(["a cat", "a dog"], guidance=1.5), x, steps=3)
    found.save(tmp_path / "latents.safetensors")
    loaded = sf.Inversion.load(tmp_path / "latents.safetensors", model)
    assert torch.equal(loaded.decode().x, found.decode().x)


def test_a_lora_is_on_only_where_it_is_asked_for(call, folder, tmp_path):
    peft = pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    donor = StableDiffusionPipeline.from_pretrained(folder)
    donor.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in peft.get_peft_model_state_dict(donor.unet).items()
    }
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=weights)
    model = load_pipeline(folder)
    x = torch.randn(1, *model.shape, generator=generator)
    before = model(x, 300.0).x0
    smooth = model.with_lora(tmp_path)
    changed = smooth(x, 300.0).x0
    assert (changed - before).abs().max() > 1e-4
    assert torch.equal(model(x, 300.0).x0, before)
    assert torch.equal(smooth(x, 300.0).x0, changed)
    words = ["--target", "a dog", "--nfe", "6", "--smooth-lora", tmp_path, "--smooth-when", "inversion", "--json"]
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "cat.png")
    status, text, _ = call("edit", "--model", folder, "--image", tmp_path / "cat.png", *words)
    assert status == 0, text
    other = {name: torch.zeros(*[s + 1 for s in value.shape]) for name, value in weights.items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path / "other", unet_lora_layers=other)
    with pytest.raises(sf.InputError, match="does not fit"):
        model.with_lora(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        model.with_lora(tmp_path / "nowhere")


def piebench_folder(tmp_path):
    """Three pictures in the benchmark's own form: an edit, one whose mask covers all, one without brackets."""
    pictures = tmp_path / "annotation_images" / "1_change_object_80"
    pictures.mkdir(parents=True)
    entries = {}
    for k, mask in enumerate(([100000, 5000], [0, 512 * 512], [0, 10])):
        values = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).resize((512, 512)).save(pictures / f"{k}.jpg")
        entries[f"{k:012d}"] = {
            "image_path": f"1_change_object_80/{k}.jpg",
            "original_prompt": "a [cat] on a mat",
            "editing_prompt": "a [dog] on a mat",
            "editing_type_id": "1",
            "mask": mask,
        }
    (tmp_path / "mapping_file.json").write_text(json.dumps(entries))
    return tmp_path


def test_piebench_is_run_with_its_protocol(call, folder, tmp_path):
    data = piebench_folder(tmp_path / "data")
    first = piebench.items(data)[0]
    assert (first.source, first.target) == ("a cat on a mat", "a dog on a mat")
    assert first.mask[0].min() == 1  # the border counts as edited
    assert first.mask.sum() == 5000 + 4 * 512 - 4 - sum(
        1 for p in range(100000, 105000) if p % 512 in (0, 511) or p // 512 in (0, 511)
    )
    out = tmp_path / "out"
    options = ["--model", folder, "--nfe", "6", "--guidance", "2", "--out", out]
    status, _, problem = call("lab", "run", "piebench", "--data", data, *options)
    assert status == 0, problem
    (kept,) = json.loads((out / "piebench.json").read_text())
    assert len(kept["scores"]) == 3
    assert kept["scores"][1]["values"]["psnr"] is None  # nothing is unedited
    known = [kept["scores"][k]["values"]["psnr"] for k in (0, 2)]
    assert kept["means"]["psnr"] == pytest.approx(np.mean(known))
    assert kept["means"]["clip whole"] is None


def test_piebench_runs_many_settings_and_goes_on_batch_by_batch(call, folder, model, tmp_path, monkeypatch):
    data, out = piebench_folder(tmp_path / "data"), tmp_path / "out"
    words = ["--model", folder, "--nfe", "3", "--guidance", "1", "--guidance", "2", "--smooth", "0", "--smooth", "0.3"]
    words += ["--solver", "ees25", "--solver", "ddim", "--batch-size", "2", "--data", data, "--out", out]
    done, real = [], piebench_runs._batch

    def stops(*given):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(given[-1])
        return real(*given)

    monkeypatch.setattr(piebench_runs, "_batch", stops)
    call("lab", "run", "piebench", *words)  # is interrupted within the third of eight settings
    assert len(list((out / "cells").iterdir())) == 5
    monkeypatch.setattr(piebench_runs, "_batch", lambda *given: done.append(given[-1]) or real(*given))
    status, text, problem = call("lab", "run", "piebench", *words)
    assert status == 0, problem
    assert len(done) == 8 * 2  # none of the five twice
    found = json.loads((out / "piebench.json").read_text())
    assert len({one["fingerprint"] for one in found}) == 8
    assert [len(one["scores"]) for one in found] == [3] * 8
    assert "ddim, guidance 2, smoothed 0.3 (inversion)" in text
    # the numbers are those of the verb
    item = piebench.items(data)[0]
    x = model.encode(sf.datasets.arrays.read(item.path, model.image_shape, resize=True))
    edited = sf.edit(model, x, item.target, source=item.source, guidance=2.0, solver="ddim", nfe=3, smoothing=0.3,
                     smooth="inversion").x  # fmt: skip
    original = sf.datasets.arrays.read(item.path, (3, 512, 512), resize=True)
    mine = piebench.score(original, piebench.sized(model.decode(edited)), item, {})
    (theirs,) = (one["scores"][0]["values"] for one in found if one["setting"].startswith("ddim, guidance 2, smoothed"))
    assert theirs["psnr"] == pytest.approx(mine["psnr"], abs=0.05)


def test_piebench_computes_in_half_precision_and_refuses_what_it_does_not_know(folder, tmp_path):
    half = piebench_runs.load(str(folder), dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    (found,) = piebench_runs.run(
        half, piebench_folder(tmp_path), [piebench_runs.Setting("ddim", 1.0, 2)], name="tiny", dtype="bfloat16", limit=1
    )
    assert np.isfinite(found["means"]["mse"])
    with pytest.raises(sf.UnknownNameError, match="dtype 'float8'"):
        piebench_runs.load(str(folder), dtype="float8")
    with pytest.raises(sf.InputError, match="inversion, generation"):
        piebench_runs.Setting("ddim", 1.0, smooth=0.2, when="up")
    with pytest.raises(sf.InputError, match="batch_size"):
        piebench_runs.run(half, tmp_path, [], name="tiny", batch_size=0)


def test_the_unedited_part_is_measured_over_the_whole_frame():
    """As published: both images are blackened where the mask is, and the black counts."""
    item = piebench.Item("0", None, "a", "b", "1", piebench.decode_mask([0, 512 * 256]))
    source, edited = torch.zeros(1, 3, 512, 512), torch.full((1, 3, 512, 512), 0.2)
    values = piebench.score(source, edited, item, {})
    share = 1.0 - item.mask.mean().item()
    assert values["mse"] == pytest.approx(0.01 * share, rel=1e-5)
    assert values["psnr"] == pytest.approx(-10 * np.log10(0.01 * share), rel=1e-5)


def test_damaged_benchmark_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="mapping_file"):
        piebench.items(tmp_path)
    data = piebench_folder(tmp_path / "data")
    entries = json.loads((data / "mapping_file.json").read_text())
    entries["000000000000"]["image_path"] = "../../secret.png"
    (data / "mapping_file.json").write_text(json.dumps(entries))
    with pytest.raises(sf.CorruptFileError, match="leads out"):
        piebench.items(data)
    (data / "mapping_file.json").write_text('{"0": {"mask": 3}}')
    with pytest.raises(sf.CorruptFileError, match="not PIE-Bench"):
        piebench.items(data)
    with pytest.raises(sf.InputError, match="pairs"):
        piebench.decode_mask([1, 2, 3])


def test_the_reconstruction_experiment_takes_pipelines(call, folder, tmp_path):
    for k in range(4):
        values = np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{k}.png")
    options = ["--model", folder, "--images", tmp_path, "--prompt", "a cat", "--steps", "4", "--n", "4"]
    status, text, _ = call("lab", "run", "reconstruction", *options, "--out", tmp_path / "lab", "--json")
    assert status == 0, text
    assert json.loads(text)


def test_a_diagnosis_takes_a_pipeline_and_its_prompt(call, folder, picture):
    options = ["--image", picture, "--prompt", "a cat", "--solver", "ddim", "--steps", "3"]
    options += ["--tolerance", "1e-2"]  # a coarse reference, as only the way to the diagnosis is looked at
    status, text, _ = call("diagnose", "--model", folder, *options, "--json")
    assert status == 0, text
    assert json.loads(text)["cause"]


def test_wrong_use_is_explained_in_one_line(call, folder, picture, tmp_path):
    for arguments, message in (
        (("edit", "--target", "a dog"), "takes classes"),
        (("edit", "--model", folder, "--image", picture, "--target", "a", "--method", "magic"), "editing method"),
        (("edit", "--model", tmp_path, "--target", "a"), "no pipeline that diffusers can load"),
        (("edit", "--model", folder, "--target", "a"), "give --input"),
        (("sample", "--prompt", "a cat"), "takes none"),
        (("sample", "--model", folder, "--label", "3"), "give --prompt"),
        (("lab", "run", "piebench", "--data", tmp_path, "--model", "digits"), "no diffusers pipeline"),
    ):
        status, _, text = call(*arguments)
        assert status == 1, (arguments, text)
        assert message in text, (arguments, text)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "small.png")
    status, _, text = call("edit", "--model", folder, "--image", tmp_path / "small.png", "--target", "a")
    assert "pass --resize" in text
    assert status == 1
