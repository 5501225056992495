"""Videos of moving digits: their exact facts, the measures of edits of them, and the model that is edited."""

import json

import pytest
import torch

pytest.importorskip("steadyflow_lab")

from steadyflow import metrics
from steadyflow_lab.datasets.moving import COLOURS, DIGITS, DIRECTIONS, FRAMES, SIDE, SPEEDS, caption, moving
from steadyflow_lab.editing import moving as study
from steadyflow_lab.models import WEIGHTS


def drawn(n=64, part="test", **more):
    return moving(part, n, torch.Generator().manual_seed(3), **more)


# --- the data


def test_videos_are_ink_over_what_lies_behind():
    x = drawn(empty=0.2)
    assert x.videos.shape == (64, 3, FRAMES, SIDE, SIDE)
    assert x.videos.abs().max() <= 1.0
    inks = 2.0 * torch.tensor(list(COLOURS.values()))[x.colour] - 1.0
    told = x.grounds[:, :, None] * (1.0 - x.strokes) + inks[:, :, None, None, None] * x.strokes
    torch.testing.assert_close(x.videos, told)
    none = x.digit == len(DIGITS)
    assert 0 < none.sum() < 32
    assert not x.strokes[none].any()
    assert (x.strokes[~none].flatten(1).amax(1) > 0.9).all()
    assert x.grounds.max() < 0.0  # dim, so that every ink stands out
    whole, again = drawn(), drawn()
    assert torch.equal(whole.videos, again.videos)


def test_digits_move_straight_at_one_speed_as_their_captions_say_and_stay_in_the_frame():
    x = drawn()
    steps = x.centres.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0.0, atol=1e-4)
    ways = torch.tensor(list(DIRECTIONS.values())).float()[x.direction]
    speed = (steps[:, 0] * ways).sum(1)
    torch.testing.assert_close(steps[:, 0], ways * speed[:, None], rtol=0.0, atol=1e-4)
    assert speed.min() > SPEEDS[0] - 1e-3
    assert speed.max() < SPEEDS[1] + 1e-3
    axis = torch.arange(SIDE) + 0.5
    mass = x.strokes[:, 0].sum((-1, -2))
    middles = torch.stack([(x.strokes[:, 0].sum(k) * axis).sum(-1) / mass for k in (-2, -1)], -1)
    assert (middles - x.centres).norm(dim=-1).max() < 1.5  # MNIST centres digits by their mass
    border = torch.cat([x.strokes[..., 0, :], x.strokes[..., -1, :], x.strokes[..., 0], x.strokes[..., -1]], -1)
    assert (mass - mass[:, :1]).abs().max() < 0.1 * mass.max()
    assert border.mean() < 0.01


def test_captions_say_what_there_is():
    assert caption(7, 0, 0) == "a red seven moving right"
    assert caption(2, direction=3) == "a two moving down"
    assert caption(10, 1, 1) == "nothing"
    x = drawn(4)
    assert all(DIGITS[int(x.digit[k])] in x.caption(k) for k in range(4))


# --- the measures


def test_the_measures_are_those_of_edits_whose_truth_is_known():
    job = study.task(24)
    assert {len(job.sources), len(job.targets)} == {24}
    truth, source = study.look(job, job.truth), study.look(job, job.given.videos)
    assert truth.success.mean() > 0.9
    assert source.success.mean() < 0.1  # as nothing was edited
    assert truth.steady.mean() > 0.95
    odd = slice(1, None, 2)  # the same writing in another ink
    assert truth.background[odd].max() < 0.02
    assert source.background.max() == source.flicker.max() == 0.0
    assert max(truth.strays.max(), source.strays.max()) < 1.5
    assert max(truth.wobble.max(), source.wobble.max()) < 0.3
    torch.testing.assert_close(truth.wobble[odd], source.wobble[odd], atol=0.05, rtol=0.0)


def test_each_measure_sees_its_own_fault():
    job = study.task(24)
    plain = study.look(job, job.truth)
    moved = study.look(job, job.truth.roll(3, dims=-1))
    assert (moved.strays - plain.strays).mean() > 1.0
    assert (moved.wobble - plain.wobble).abs().mean() < 0.6
    still = study.look(job, job.truth[:, :, :1].expand_as(job.truth).contiguous())
    assert (still.wobble - plain.wobble).mean() > 1.0
    assert (still.shimmer - plain.shimmer).mean() > 0.03
    swapped = job.truth.clone()
    swapped[:, :, ::2] = job.given.videos[:, :, ::2]  # every other frame is not edited
    found = study.look(job, swapped)
    assert 0.2 < found.success.mean() < 0.6
    assert found.steady.mean() < 0.7
    assert (found.shimmer - plain.shimmer).mean() > 0.03
    assert (found.flicker - plain.flicker).mean() > 0.01
    brighter = study.look(job, (job.truth + 0.1 * (job.given.strokes < 0.01)).clamp(-1.0, 1.0))
    assert (brighter.background - plain.background).min() > 0.03
    empty = study.look(job, job.given.grounds[:, :, None].expand_as(job.truth).contiguous())
    assert empty.strays.isnan().all()
    lost = study.look(job, torch.full_like(job.truth, torch.nan))  # as after a run that diverged
    assert lost.success.mean() < 0.1


def test_what_moves_along_a_path_stands_still_in_the_squares_around_it():
    x = drawn(8)
    taken = study.along(x.videos, x.centres)
    assert taken.shape == (8, 3, FRAMES, SIDE // 2, SIDE // 2)
    assert (
        metrics.flicker(taken).mean()
        < 0.4 * metrics.flicker(study.along(x.videos, x.centres[:, :1].expand_as(x.centres))).mean()
    )


def test_a_table_has_a_line_for_each_kind_of_edit_with_intervals():
    job = study.task(24)
    rows = study.summary("truth", study.look(job, job.truth))
    assert [(row.edits, row.videos) for row in rows] == [("digit", 12), ("colour", 12), ("all", 24)]
    for row in rows:
        assert row.means["success"].low <= row.means["success"].value <= row.means["success"].high
    assert study.text(rows).count("\n") == 2
    empty = study.look(job, job.given.grounds[:, :, None].expand_as(job.truth).contiguous())
    row = study.summary("nothing", empty)[-1]
    assert (row.lost, row.means["strays"]) == (24, None)
    assert study.label(("inversion", {"solver": "ees25"})) == "inversion, ees25"


# --- the model


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from steadyflow_lab.models import load

    with load("moving") as found:
        yield found


def test_the_bundled_files_are_small_and_say_how_they_were_made():
    files = [p for p in (WEIGHTS / "moving").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 6_000_000
    told = json.loads((WEIGHTS / "moving" / "training.json").read_text(encoding="utf-8"))
    assert told["quality"]["judge on held-out digits"] > 0.9


def test_the_codec_keeps_held_out_videos(model):
    x = drawn(4).videos
    back = model.decode(model.encode(x))
    assert model.image_shape == (3, FRAMES, SIDE, SIDE)
    assert metrics.rmse(back, x).mean() < 0.12


def test_zeros_after_a_prompt_are_what_the_model_was_trained_with(model):
    """One token of zeros with the logarithm of their number on its logit is all those that the pipeline appends."""
    import math

    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    class Counted(WanAttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
            bias = torch.zeros(1, 1, 1, encoder_hidden_states.shape[1])
            bias[..., -1] = math.log(512 - 8)
            return super().__call__(attn, hidden_states, encoder_hidden_states, bias, rotary_emb)

    pipe = model.pipe
    states, _ = pipe.encode_prompt(
        "a red seven moving right", do_classifier_free_guidance=False, max_sequence_length=512
    )
    assert not states[:, 6:].any()
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([500.0])
    with torch.no_grad():
        expected = pipe.transformer(x, time, states).sample
        own = [block.attn2.processor for block in pipe.transformer.blocks]
        try:
            for block in pipe.transformer.blocks:
                block.attn2.set_processor(Counted())
            found = pipe.transformer(x, time, states[:, :9]).sample
        finally:
            for block, processor in zip(pipe.transformer.blocks, own, strict=True):
                block.attn2.set_processor(processor)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_study_edits_by_every_method(model):
    rows = study.study(n=4, nfe=8, model=model)
    assert [row.method for row in rows[2::3]] == [*study.REFERENCES, *map(study.label, study.METHODS)]
