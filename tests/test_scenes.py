"""Scenes, the pipeline and the judge that were trained on them, and the study of edits whose truth is known."""

import json

import pytest
import torch

pytest.importorskip("diffusers")

import steadyflow as sf
from steadyflow_lab.datasets.mnist import PARTS, mnist
from steadyflow_lab.datasets.scenes import COLOURS, DIGITS, GROUNDS, PLACES, SIZES, caption, draw, scenes
from steadyflow_lab.editing import pareto, ways
from steadyflow_lab.editing.scenes import KINDS, SceneEdits, codec_error, judge, looked_at, scene_model, scene_task
from steadyflow_lab.models import WEIGHTS

N = 24


@pytest.fixture(scope="module")
def task():
    return scene_task(N, 3)


def test_the_digits_are_ten_thousand_in_three_parts_that_share_none():
    parts = [mnist(name)[0].flatten(1) for name in PARTS]
    assert [len(part) for part in parts] == [6000, 3000, 1000]
    assert len(torch.cat(parts).unique(dim=0)) == 10000
    for name in PARTS:
        images, labels = mnist(name)
        assert images.min() >= 0.0
        assert images.max() == 1.0
        assert labels.bincount().min() > 0.07 * len(labels)


def test_a_scene_is_its_ground_where_there_is_no_ink():
    drawn = scenes("test", 64, torch.Generator().manual_seed(0), empty=0.25)
    none = drawn.digit == len(DIGITS)
    assert 4 < none.sum() < 32
    assert torch.equal(drawn.images[none], drawn.grounds[none])
    dry = (drawn.strokes == 0.0).expand_as(drawn.images)
    assert torch.equal(drawn.images[dry], drawn.grounds[dry])
    again = scenes("test", 64, torch.Generator().manual_seed(0), empty=0.25)
    assert torch.equal(again.images, drawn.images)
    assert not torch.equal(scenes("judge", 64, torch.Generator().manual_seed(0)).images, drawn.images)


def test_digits_lie_where_their_caption_says():
    drawn = scenes("train", 200, torch.Generator().manual_seed(1), empty=0.0)
    axis = torch.arange(64) + 0.5
    ink = drawn.strokes.flatten(1).sum(1)
    middle = torch.stack(
        [(drawn.strokes * axis).flatten(1).sum(1), (drawn.strokes * axis[:, None]).flatten(1).sum(1)], 1
    )
    wanted = torch.tensor(list(PLACES.values()))[drawn.place]
    assert ((middle / ink[:, None]) - wanted).abs().max() < 6.0
    spread = [(drawn.strokes[drawn.size == k] > 0.3).any(3).flatten(1).sum(1).float().mean() for k in range(len(SIZES))]
    assert spread[1] - spread[0] == pytest.approx(8.0, abs=1.5)


def test_captions_name_what_they_are_given():
    assert caption(7, 0, 0, 0, 2) == "a small red seven, top left, over pebbles"
    assert caption(7) == "a seven"
    assert caption(10, 0, 0, 0, 2) == "nothing, over pebbles"
    assert len(DIGITS) == 10
    assert len({*COLOURS, *SIZES, *PLACES, *GROUNDS, *DIGITS}) == 10 + len(COLOURS) + len(SIZES) + len(PLACES) + len(
        GROUNDS
    )


def test_ink_covers_by_its_strength():
    one = torch.ones(1, 1, 28, 28)
    images, cover = draw(
        one, torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([20]), torch.tensor([[32, 32]]), torch.zeros(1, 3, 64, 64)
    )
    assert torch.equal(images[:, :1], cover)
    assert cover[0, 0, 32, 32] == 1.0
    assert cover[0, 0, :17].max() == 0.0


def test_the_judge_reads_held_out_scenes():
    drawn = scenes("test", 400, torch.Generator().manual_seed(5))
    seen = judge()(drawn.images)
    there = drawn.digit < 10
    assert (seen.digit.argmax(1) == drawn.digit).float().mean() > 0.9
    for name in ("colour", "size", "place"):
        assert (getattr(seen, name).argmax(1) == getattr(drawn, name))[there].float().mean() > 0.95, name


def test_the_pipeline_draws_what_it_is_told():
    known = json.loads((WEIGHTS / "scenes" / "training.json").read_text())["quality"]
    drawn = scenes("test", 40, torch.Generator().manual_seed(9), empty=0.0)
    model = scene_model().with_condition([drawn.caption(k) for k in range(40)], guidance=2.5)
    found = model.decode(sf.sample(model, n=40, steps=12, solver="heun", seed=3).x)
    seen = judge()(found)
    told = known["judge on samples, guidance 2.5, 1 zeros"]
    for name in ("digit", "colour", "place", "ground"):
        rate = (getattr(seen, name).argmax(1) == getattr(drawn, name)).float().mean().item()
        assert rate > told[name] - 0.25, name  # three standard errors of 40 at one half


def test_the_pipeline_takes_its_own_length_of_prompts():
    """256 zeros in place of one: the pipeline's own default, which costs more and draws much the same."""
    from steadyflow.diffusers import load_pipeline

    few, many = scene_model(), load_pipeline(WEIGHTS / "scenes")
    words = ["a large red three, centre, over bricks"] * 8
    assert many.with_condition(words).condition["prompt_embeds"].shape[1] == 12 + 256
    x = torch.randn(8, *few.shape, generator=torch.Generator().manual_seed(0))
    apart = [few.with_condition(words)(x, t).x0 - many.with_condition(words)(x, t).x0 for t in (0.9, 0.5)]
    size = few.with_condition(words)(x, 0.9).x0.std()
    assert max(d.square().mean().sqrt() for d in apart) < 0.5 * size


def test_masks_hold_all_that_an_edit_may_change(task):
    ink = task.pictures.strokes > 0.05
    assert bool((task.masks | ~ink).all())
    area = {kind: task.masks[[k for k in range(N) if task.kinds[k] == kind]].float().mean().item() for kind in KINDS}
    assert area["place"] > area["digit"] > area["colour"] > 0.0
    assert max(area.values()) < 0.65


def test_edits_change_one_thing(task):
    facts = torch.stack([getattr(task.pictures, name) for name in ("digit", "colour", "size", "place")], 1)
    assert ((task.wanted != facts).sum(1) == 1).all()
    assert task.kinds == [KINDS[k % 4] for k in range(N)]
    assert all(a != b for a, b in zip(task.sources, task.targets, strict=True))


def test_what_is_seen_of_an_edit_is_exact(task):
    same = looked_at(task, task.latents)
    assert max(same.background) < 1e-6  # the source itself
    assert sum(same.done) <= 2  # the judge misreads one picture in twenty
    gone = looked_at(task, torch.full_like(task.latents, torch.inf))
    assert all(gone.blown)
    assert not any(gone.done)
    noisy = looked_at(
        task, task.latents + 0.3 * torch.randn(task.latents.shape, generator=torch.Generator().manual_seed(0))
    )
    assert min(noisy.background) > 1e-3
    assert (codec_error(task) > 0.0).all()


def test_every_way_of_the_study_spends_no_more_than_its_budget():
    for way in ways.WAYS:  # all of the few calls are among them, but for the tuned one, whose calls are its own
        edited, nfe = ways.edit_scenes(way, 2.0, 2, 3, 0, 1, budget=24)
        assert edited.shape == (1, 8, 16, 16)
        assert 12 <= nfe <= 24, way.label


def test_the_front_is_what_no_other_beats():
    def row(label, hits, error):
        return pareto.Row(label, 1.0, SceneEdits([k < hits for k in range(10)], [], [error] * 10, [False] * 10), 96)

    rows = [row("a", 9, 0.3), row("b", 7, 0.1), row("c", 6, 0.2), row("d", 2, 0.01)]
    assert [found.way for found in pareto.front(rows)] == ["a", "b", "d"]
