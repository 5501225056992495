"""The ink pictures, the pipeline that was trained on them, and the editing study over it."""

import json

import pytest
import torch

pytest.importorskip("diffusers")

import steadyflow as sf
from steadyflow.datasets.ink import INKS, caption, ink
from steadyflow_lab.editing import ink as study


def draw(n, seed=0):
    return ink("held-out", n, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return study.bundled()


def test_the_pictures_are_what_their_captions_say():
    pictures = draw(200)
    assert pictures.images.shape == (200, 3, 32, 32)
    assert pictures.images.abs().max() <= 1.0
    assert pictures.caption(0).startswith("a handwritten ")
    assert caption(7) == "a handwritten seven"
    core = torch.nn.functional.avg_pool2d(pictures.strokes.float(), 5, stride=1, padding=2) > 0.99
    colours = torch.tensor(list(INKS.values())) * 2 - 1
    for k in range(200):
        inked = pictures.images[k][:, core[k, 0]]
        if inked.numel() == 0:
            continue
        darkest = inked[:, inked.sum(0).argmin()]
        assert (colours - darkest).norm(dim=1).argmin() == pictures.inks[k]
        paper = pictures.images[k][:, ~pictures.strokes[k, 0]]
        assert paper.min() > 0.0  # light, and free of ink
    assert torch.equal(draw(5).images, draw(5).images)
    known = {tuple(x.flatten().tolist()) for x in sf.datasets.digits("train")[0]}
    assert not known & {tuple(x.flatten().tolist()) for x in sf.datasets.digits("held-out")[0]}


def test_the_judge_reads_pictures_that_it_has_not_seen():
    pictures, judge = draw(400), study.InkExtractor()
    aligned = judge.alignment(pictures.images, [pictures.caption(k) for k in range(400)])
    assert (aligned > 0.5).float().mean() > 0.97
    wrong = judge.alignment(pictures.images, [caption((int(d) + 1) % 10) for d in pictures.digits])
    assert (wrong < 0.1).float().mean() > 0.97
    assert judge.hash == study.InkExtractor().hash


def test_the_pipeline_draws_what_its_prompts_say(model):
    digits = torch.arange(40) % 10
    prompts = [caption(int(d)) for d in digits]
    drawn = sf.sample(model.with_condition(prompts, guidance=2.0), n=40, solver="dpmpp-2m", steps=12).x
    assert (study.InkExtractor().alignment(model.codec.decode(drawn), prompts) > 0.5).float().mean() > 0.85


def test_an_edit_changes_the_digit_and_keeps_the_paper(model):
    task = study.task(24)
    pictures = task.pictures
    latents = model.codec.encode(pictures.images)
    edited = sf.edit(model, latents, task.targets, source=task.sources, guidance=3.0, solver="ees25", steps=8)
    images = model.codec.decode(edited.x).clamp(-1, 1)
    judge = study.InkExtractor()
    digits = [prompt.split(" in ")[0] for prompt in task.targets]
    assert (judge.alignment(images, digits) > 0.5).float().mean() > 0.75
    paper = (~pictures.strokes).float()
    kept = sf.metrics.psnr(images, pictures.images, span=2.0, region=paper)
    others = sf.metrics.psnr(images, pictures.images.roll(1, 0), span=2.0, region=paper)
    assert kept.median() > others.median() + 3.0


def test_the_study_gives_a_verdict_on_every_claim(call, tmp_path):
    status, text, problem = call("lab", "run", "editing", "--figure", "equations", "--quick", "--out", tmp_path)
    assert status == 0, problem
    assert "verdict: holds" in text
    kept = json.loads((tmp_path / "editing-equations-quick.json").read_text())["result"]
    assert kept["figure"] == "equations"
    assert kept["claims"][0]["label"] == "near-reversibility"
    assert call("lab", "run", "editing", "--figure", "coupling", "--out", tmp_path)[0] == 1  # of two problems: which
