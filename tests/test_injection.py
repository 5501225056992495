"""Editing by injection: against attention written out, against what is stored, and what is refused."""

import itertools
import json

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import diffusers
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

import injection_oracles as oracles
import pipelines
import steadyflow as sf
from steadyflow import editing, runs, solvers
from steadyflow.datasets.ink import ink
from steadyflow.editing.injection.pair import Pair, make_ready, network_of
from steadyflow.editing.injection.sharing import Rule, Sharing
from steadyflow.editing.injection.tap import sites_of, tapped
from steadyflow.editing.injection.words import differing, word_map
from steadyflow.loading import load_model
from steadyflow.models import pipeline_folder
from steadyflow.runs.jobs import from_spec

STEPS = 5
METHODS = ("prompt-to-prompt", "plug-and-play", "masactrl", "value-injection")
EXACT = ["edict", "bdia", *(name for name in solvers.names() if name.startswith("rex-"))]
SELF = [  # of the UNet below, in the order in which they run
    "down_blocks.0.attentions.0", "down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.0",
    "up_blocks.0.attentions.1", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1",
]  # fmt: skip


def built(kind, network, dtype):
    """A tiny pipeline with another network, whose attention is far from even."""
    pipe = pipelines.build(kind)
    torch.manual_seed(3)
    network = oracles.sharpened(network().eval().requires_grad_(False)).to(dtype)
    if hasattr(pipe, "unet"):
        pipe.unet = network
        pipelines.smooth_in_time(pipe)
    else:
        pipe.transformer = network
    return pipe


def unet():
    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2, norm_num_groups=2,
        cross_attention_dim=32, attention_head_dim=4,
    )  # fmt: skip


def sd3():
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip


def flux():
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    """Over a UNet with attention at two resolutions, in float64."""
    return sf.from_diffusers(built("sd", unet, torch.float64))


@pytest.fixture(scope="module")
def x(model):
    return torch.randn(2, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max())


def by_hand(model, x, source, target, guidance, source_guidance, set_up, at_step):
    """An edit by DDIM over one batch of blocks (the source's, then the target's), with a network that `set_up` alters.

    `set_up(network, source's block, target's, edits)`: `edits` maps each block of the target to that of the source.
    """
    here, there = (
        model.with_condition(source, guidance=source_guidance),
        model.with_condition(target, guidance=guidance),
    )
    inversion = sf.invert(here, x, solver="ddim", steps=STEPS)
    n, first, second = len(x), 2 if here.guides else 1, 2 if there.guides else 1
    own, last = first - 1, first + second - 1
    edits = {last: own} | ({first: 0} if second == 2 else {})
    network = network_of(model)
    before = dict(network.attn_processors)
    handles = set_up(network, own, last, edits) or []
    parts = [here.null, here.condition][2 - first :] + [there.null, there.condition][2 - second :]
    rows = {name: torch.cat([part[name].expand(n, *part[name].shape[1:]) for part in parts]) for name in parts[0]}
    times = inversion.grid.reversed().times
    states = torch.cat([inversion.latent] * 2)
    try:
        for k, (t0, t1) in enumerate(itertools.pairwise(times)):
            at_step(k)
            up, down = states.chunk(2)
            out = model.evaluate(torch.cat([up] * first + [down] * second), t0, rows).split(n)
            ours = out[0] if first == 1 else torch.lerp(out[0], out[1], source_guidance)
            theirs = out[first] if second == 1 else torch.lerp(out[first], out[first + 1], guidance)
            prediction = sf.prediction.Prediction(
                states, torch.cat([ours, theirs]), model.prediction, *model.schedule.at(t0)[1:3]
            )
            end = model.schedule.at(t1)
            states = end.alpha * prediction.x0 + end.sigma * prediction.eps
    finally:
        network.set_attn_processor(before)
        for handle in handles:
            handle.remove()
    return states[n:]


# ---- against attention written out


def controller(model, source, target, emphasis, n, own, last):
    """The published controller for two prompts: "replace" where they have as many tokens, else "refine"."""
    here, there = model.tokens(source)[0], model.tokens(target)[0]
    mapper, alphas, equalizer = torch.eye(77), torch.ones(77), torch.ones(77)
    ends = [tokens.index(1) + 1 for tokens in (here, there)]  # with the end of the prompt
    if ends[0] != ends[1]:
        for j, i in enumerate(oracles.aligned(here[: ends[0]], there[: ends[1]])):
            mapper[:, j] = 0.0
            mapper[-1 if i is None else i, j] = 1.0
            alphas[j] = float(i is not None)
    for word, weight in emphasis.items():
        for token in model.tokens(word)[0][1 : 1 + len(word)]:
            equalizer[there.index(token)] = weight
    return oracles.Controller(n, own, last, mapper, alphas, equalizer, int(0.8 * (STEPS + 1)), int(0.4 * STEPS), 16)


@pytest.mark.parametrize(
    ("source", "target", "emphasis", "source_guidance"),
    [
        ("a cat", "a dog", {}, 1.0),
        ("a cat", "a cat wig", {}, 1.0),
        ("a cat", "a cat wig", {}, 2.0),
        ("a cat", "wig a cat", {}, 1.0),
        ("a cat", "a cat wig", {"wig": 3.0}, 1.0),
        ("a cat", "a dog", {"dog": -1.0}, 1.0),
    ],
)
def test_prompt_to_prompt_is_the_published_edit_of_maps(model, x, source, target, emphasis, source_guidance):
    held = []

    def set_up(network, own, last, edits):
        held.append(controller(model, source, target, emphasis, len(x), own, last))
        oracles.write_out(network, change_map=held[0])

    expected = by_hand(model, x, source, target, 3.0, source_guidance, set_up, lambda k: setattr(held[0], "step", k))
    options = {"source": source, "guidance": 3.0, "source_guidance": source_guidance, "solver": "ddim", "steps": STEPS}
    edit = sf.edit(model, x, target, method=editing.PromptToPrompt(emphasis=emphasis or None), **options)
    assert apart(edit.x, expected) < 1e-10
    assert edit.nfe == 3 * STEPS
    assert apart(edit.x, sf.edit(model, x, target, **options).x) > 1e-3


def blockwise(n, edits, parts, layers, on):
    """A change that takes some of q, k and v of chosen layers from the source's blocks."""

    def change(name, q, k, v):
        found = {"q": q, "k": k, "v": v}
        if on[0] and any(name.startswith(layer) for layer in layers):
            for part in parts:
                blocks = oracles.blocks_of(found[part], n)
                for block, source in edits.items():
                    blocks[block] = blocks[source].clone()
        return found["q"], found["k"], found["v"]

    return change


WAYS = {  # what is taken, from which of seven layers on, and at which of five steps
    "plug-and-play": ("qk", 3, range(3)),
    "masactrl": ("kv", 4, range(1, 5)),
    "value-injection": ("v", 4, range(1)),
}


@pytest.mark.parametrize("source_guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", list(WAYS))
def test_rows_of_self_attention_are_the_sources(name, source_guidance, model, x):
    parts, first, steps = WAYS[name]
    on, features = [True], [True]

    def set_up(network, own, last, edits):
        oracles.write_out(network, blockwise(len(x), edits, parts, SELF[first:], on))

        def convolved(module, given, output):
            blocks = oracles.blocks_of(output.clone(), len(x))
            for block, source in edits.items() if features[0] else ():
                blocks[block] = blocks[source].clone()
            return blocks.flatten(0, 1)

        if name != "plug-and-play":
            return []
        return [network.up_blocks[1].resnets[1].conv2.register_forward_hook(convolved)]

    def at_step(k):
        on[0], features[0] = k in steps, k < 4

    expected = by_hand(model, x, "a cat", "a dog", 3.0, source_guidance, set_up, at_step)
    options = {"guidance": 3.0, "source_guidance": source_guidance, "solver": "ddim", "steps": STEPS}
    edit = sf.edit(model, x, "a dog", source="a cat", method=name, **options)
    assert apart(edit.x, expected) < 1e-10
    assert apart(edit.x, sf.edit(model, x, "a dog", source="a cat", **options).x) > 1e-3


@pytest.mark.parametrize("name", list(WAYS))
@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_the_pictures_tokens_of_joint_attention_are_the_sources(kind, name):
    network = {"sd3": sd3, "flux": flux}[kind]
    model = sf.from_diffusers(built(kind, network, torch.float32), height=16, width=16)
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1))
    places = x[0, 0].numel() // 4
    parts, _, steps = WAYS[name]
    first = {"plug-and-play": 1, "masactrl": 1, "value-injection": 2}[name]  # of three layers
    layers = {
        "sd3": ["transformer_blocks.0", "transformer_blocks.1", "transformer_blocks.2"],
        "flux": ["transformer_blocks.0", "single_transformer_blocks.0", "single_transformer_blocks.1"],
    }[kind][first:]
    on = [True]

    def set_up(network, own, last, edits):
        change = blockwise(len(x), edits, parts, layers, on)

        def processor(name):
            def changed(q, k, v):
                return change(name, q, k, v)

            return oracles.WrittenSD3(changed) if kind == "sd3" else oracles.WrittenFlux(changed, places)

        network.set_attn_processor({name: processor(name) for name in network.attn_processors})

    expected = by_hand(model, x, "a cat", "a dog", 3.0, 1.0, set_up, lambda k: on.__setitem__(0, k in steps))
    options = {"guidance": 3.0, "solver": "ddim", "steps": STEPS}
    edit = sf.edit(model, x, "a dog", source="a cat", method=name, **options)
    assert apart(edit.x, expected) < 1e-5
    assert apart(edit.x, sf.edit(model, x, "a dog", source="a cat", **options).x) > 1e-4


# ---- the source, the network afterwards, and what is kept


def no_hooks(network):
    return not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


RULES = {
    "q": [Rule({"self": "q"})],
    "kv": [Rule({"self": "kv"})],
    "words": [Rule({"self": "qk"}, both=False), Rule({}, words=word_map([[0, 5, 1, 1]], [[0, 6, 1, 1]]))],
}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("rules", list(RULES))
def test_the_sources_half_is_not_touched(rules, guidance, model, x):
    tokens = [model.tokens(prompt) for prompt in ("a cat", "a dog")]
    acts = [*RULES[rules][:-1], Rule({}, words=word_map(*tokens))] if rules == "words" else RULES[rules]
    here, there = model.with_condition("a cat"), model.with_condition("a dog", guidance=guidance)
    network, t = network_of(model), 500.0
    before = here(x, t).output
    found = []
    for chosen in ((), acts):
        sharing = Sharing(sites_of(network), chosen, (900.0, 0.0), 64)
        found.append(Pair.of(here, there, sharing)(torch.cat([x, x]), t).output.chunk(2))
    assert torch.equal(found[0][0], found[1][0])
    assert apart(found[1][1], found[0][1]) > 1e-4
    assert apart(found[0][0], before) < 1e-12  # another size of the batch
    assert apart(found[0][1], there(x, t).output) < 1e-12
    assert no_hooks(network)
    assert torch.equal(here(x, t).output, before)


def test_nothing_is_left_after_an_exception(model, x):
    network = network_of(model)
    before = model(x, 500.0).output

    def stop(info):
        if info.step.t1 < info.step.t0:  # on the way down
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sf.edit(model, x, "a dog", source="a cat", method="masactrl", steps=2, solver="ddim", callback=stop)
    assert no_hooks(network)
    sites = sites_of(network)

    def answer(site, call, places):
        if site.number == 3:
            raise ValueError("in the middle")
        return call.answer()

    with pytest.raises(ValueError, match="in the middle"), tapped(sites, range(len(sites)), answer):
        model(x, 500.0)
    assert no_hooks(network)
    assert torch.overrides._get_current_function_mode_stack() == []
    assert torch.equal(model(x, 500.0).output, before)


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_to_the_same_prompt_is_the_reconstruction(name, model, x):
    options = {"solver": "edict", "steps": 3}
    edit = sf.edit(model, x, "a cat", source="a cat", method=name, guidance=1.0, **options)
    back = sf.reconstruct(model.with_condition("a cat"), x, **options)
    assert apart(edit.x, back.x) < 1e-10
    assert edit.distance.max() < 1e-9


LONG = ("rex-dopri5", "rex-tsit5", "rex-bogacki-shampine", "rex-ssprk3", "rex-rk4")


@pytest.mark.parametrize("solver", [pytest.param(s, marks=pytest.mark.slow if s in LONG else ()) for s in EXACT])
def test_what_is_made_anew_is_what_is_stored(solver, model, x):
    """Of every exactly reversible solver; the second copy of the latent retraces its way up."""
    options = {"source": "a cat", "guidance": 2.0, "solver": solver, "steps": 3, "seed": 5}
    names = METHODS if solver == "edict" else ("prompt-to-prompt",)
    for name in names:
        anew, stored = (
            sf.edit(model, x, "a dog", method=editing.get(name, store=store), **options) for store in (False, True)
        )
        assert apart(anew.x, stored.x) < 1e-9, name
        assert anew.nfe == 3 * stored.nfe // 2


def test_what_is_kept(model, x, monkeypatch):
    """Nothing beside the source; with `store`, in proportion to the evaluations."""
    made = []
    begin = Sharing.__post_init__
    monkeypatch.setattr(Sharing, "__post_init__", lambda self: (made.append(self), begin(self))[1])

    def held(steps, **options):
        made.clear()
        method = editing.MasaCtrl(steps=(0.0, 1.0), **options)
        sf.edit(model, x, "a dog", source="a cat", method=method, solver="edict", steps=steps)
        calls = [taken for _, found in made[0].kept for taken in found.values()]
        return sum(part.numel() for taken in calls for part in taken if part is not None)

    assert held(2) == 0
    assert held(4, store=True) == 2 * held(2, store=True) > 0


# ---- the options of `edit`


@pytest.mark.parametrize("name", ["prompt-to-prompt", "masactrl"])
def test_batches_samples_and_prompts_of_their_own(name, model, x):
    """A batch in parts, and each sample alone under its own index and prompts, give the same."""
    sources, targets = ["a cat", "a cow"], ["a dog", "a cow bid"]
    options = {"method": name, "guidance": 2.0, "solver": "rex-sde", "steps": 2, "seed": 3}
    whole = sf.edit(model, x, targets, source=sources, index=4, **options)
    parts = sf.edit(model, x, targets, source=sources, index=4, batch_size=1, **options)
    assert apart(parts.x, whole.x) < 1e-7
    assert parts.nfe == whole.nfe
    assert torch.equal(parts.distance, sf.metrics.rmse(parts.x, x))
    for k in range(2):
        alone = sf.edit(model, x[k : k + 1], targets[k], source=sources[k], index=4 + k, **options)
        assert apart(alone.x, whole.x[k : k + 1]) < 1e-7
    other = sf.edit(model, x, targets, source=sources, index=5, **options)
    assert apart(other.x, whole.x) > 1e-3
    again = parts.inversion.decode()
    assert apart(again.x, x) < 1e-7  # conditions per sample are joined again
    scales = torch.tensor([2.0, 1.0], dtype=torch.float64)
    mixed = sf.edit(model, x, targets, source=sources, index=4, **{**options, "guidance": scales})
    assert apart(mixed.x[:1], whole.x[:1]) < 1e-7


def test_record_callback_and_progress_show_the_edit_alone(model, x, capsys):
    seen = []
    options = {"source": "a cat", "method": "masactrl", "solver": "edict", "steps": 3, "guidance": 2.0}
    edit = sf.edit(model, x, "a dog", record="all", callback=seen.append, progress=True, **options)
    assert edit.trajectory.x.shape == (4, *x.shape)
    assert torch.equal(edit.trajectory.x[-1], edit.x)
    assert len(seen) == 6
    assert all(info.x.shape == x.shape for info in seen)
    assert all(torch.equal(info.solver.output(info.state), info.x) for info in seen)
    assert all(info.denoised.shape == x.shape for info in seen)
    assert torch.equal(seen[-1].x, edit.x)
    assert "0/3" in capsys.readouterr().err
    parts = sf.edit(model, x, "a dog", record="all", batch_size=1, **options)
    assert apart(parts.trajectory.x, edit.trajectory.x) < 1e-9


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_from_an_inversion(guidance, model, x, tmp_path):
    """The source is led back as the inversion was made, also where it was read from a file."""
    options = {"solver": "edict", "steps": 3}
    made = sf.edit(
        model, x, "a dog", source="a cat", source_guidance=guidance, guidance=2.0, method="masactrl", **options
    )
    inversion = sf.invert(model.with_condition("a cat", guidance=guidance), x, **options)
    inversion.save(tmp_path / "cat.safetensors")
    for given in (
        inversion,
        sf.Inversion.load(tmp_path / "cat.safetensors"),
        sf.Inversion.load(tmp_path / "cat.safetensors", model),
    ):
        edit = sf.edit(model, None, "a dog", inversion=given, guidance=2.0, method="masactrl")
        assert apart(edit.x, made.x) < 1e-9
        assert edit.nfe == made.nfe - inversion.nfe
        assert edit.distance.isnan().all()
    cut = sf.edit(model, x, "a dog", inversion=inversion, guidance=2.0, method="masactrl", batch_size=1)
    assert apart(cut.x, made.x) < 1e-9
    assert apart(cut.inversion.decode().x, x) < 1e-9
    with pytest.raises(sf.InputError, match=r"cross_share.*no words"):
        sf.edit(model, x, "a dog", inversion=inversion, method="prompt-to-prompt")
    with pytest.raises(sf.InputError, match=r"inversion: .*store"):
        sf.edit(model, x, "a dog", inversion=inversion, method=editing.MasaCtrl(store=True))
    other = sf.Denoiser(network_of(model), sf.VPLinear(), shape=model.shape)
    with pytest.raises(sf.InputError, match="path"):
        sf.edit(other, x, 1, inversion=inversion, method="masactrl")


@pytest.mark.parametrize("solver", ["ddim", "heun", "edict", "bdia", "rex-euler"])
def test_outside_a_mask_is_the_sources_reconstruction(solver, model, x):
    options = {"source": "a cat", "solver": solver, "steps": 2}
    back = sf.edit(model, x, "a cat", method="masactrl", mask=torch.zeros(1, 1, 8, 8), **options)
    for mask in (torch.ones(8, 8, dtype=torch.float64), torch.ones(2, 1, 8, 8)):
        mask[..., :4] = 0.0
        edit = sf.edit(model, x, "a dog", method="masactrl", guidance=3.0, mask=mask, **options)
        assert torch.equal(edit.x[..., :4], back.x[..., :4])
        assert apart(edit.x[..., 4:], back.x[..., 4:]) > 1e-3
        parts = sf.edit(model, x, "a dog", method="masactrl", guidance=3.0, mask=mask, batch_size=1, **options)
        assert apart(parts.x, edit.x) < 1e-9
    nothing = sf.edit(model, x, "a dog", method="masactrl", guidance=3.0, mask=torch.zeros(1, 1, 8, 8), **options)
    assert torch.equal(nothing.x, back.x)
    # and that is the way back of the source alone
    plain = sf.reconstruct(model.with_condition("a cat"), x, solver=solver, steps=2)
    assert apart(back.x, plain.x) < 1e-10


def test_words_that_fill_up_a_prompt_are_no_words(model):
    """Prompts of unlike lengths end in unlike numbers of fillers, none of which is a difference."""
    one, other = differing(model.tokens("a cat"), model.tokens("a cat bid"))
    assert one.sum() == 0
    assert other[0].nonzero().flatten().tolist() == [5, 6, 7]  # after the start, "a", and three of "cat"
    one, other = differing(model.tokens("a cat"), model.tokens(["a dog", "a cat"]))
    assert [row.sum().item() for row in one] == [3.0, 0.0]
    assert [row.sum().item() for row in other] == [3.0, 0.0]


def test_local_blending(model, x):
    """Each state is the source's outside the mask of the maps so far, made explicitly."""
    sources, targets, threshold = ["a cat", "a cat"], ["a dog", "a cat bid"], 0.6
    kept, masks = [], []

    def record(name, maps, is_cross):
        if is_cross and maps.shape[2] == 16:
            kept[-1].append(maps.clone())
        return maps

    here, there = (model.with_condition(prompts) for prompts in (sources, targets))
    inversion = sf.invert(here, x, solver="ddim", steps=3)
    times = inversion.grid.reversed().times
    words = [torch.zeros(2, 77), torch.zeros(2, 77)]
    words[0][0, 2:5] = 1.0  # the letters of "cat"
    words[1][0, 2:5] = 1.0
    words[1][1, 5:8] = 1.0
    network = network_of(model)
    before = dict(network.attn_processors)
    oracles.write_out(network, change_map=record)
    states, sums = torch.cat([inversion.latent] * 2), 0.0
    rows = {"prompt_embeds": torch.cat([here.condition["prompt_embeds"], there.condition["prompt_embeds"]])}
    for t0, t1 in itertools.pairwise(times):
        kept.append([])
        out = model.evaluate(states, t0, rows)
        level, end = model.schedule.at(t0), model.schedule.at(t1)
        found = sf.prediction.Prediction(states, out, model.prediction, level.alpha, level.sigma)
        states = end.alpha * found.x0 + end.sigma * found.eps
        for maps in kept[-1]:
            sums = sums + torch.einsum("bhpw,bw->bp", maps, torch.cat(words).to(maps)) / maps.shape[1]
        wide = torch.nn.functional.max_pool2d(sums.view(4, 1, 4, 4), 3, 1, 1)
        wide = torch.nn.functional.interpolate(wide, (8, 8), mode="nearest")
        wide = wide / wide.flatten(1).amax(1).clamp_min(1e-12)[:, None, None, None]
        mask = ((wide[:2] > threshold) | (wide[2:] > threshold)).to(states)
        masks.append(mask)
        states[2:] = states[:2] + mask * (states[2:] - states[:2])
    network.set_attn_processor(before)
    method = editing.PromptToPrompt(blend=threshold, cross_share=0.0, self_share=0.0)
    options = {"source": sources, "solver": "ddim", "steps": 3}
    edit = sf.edit(model, x, targets, method=method, **options)
    assert 0.0 < masks[-1].mean() < 1.0
    assert apart(edit.x, states[2:]) < 1e-10
    parts = sf.edit(model, x, targets, method=method, batch_size=1, **options)
    assert apart(parts.x, edit.x) < 1e-10
    same = sf.edit(model, x, sources, method=editing.MasaCtrl(blend=0.3), guidance=3.0, **options)
    assert apart(same.x, states[:2]) < 1e-10  # no words differ, so that nothing may


@pytest.mark.parametrize("name", METHODS)
def test_half_precision(name, x):
    model = sf.from_diffusers(built("sd", unet, torch.bfloat16))
    options = {"source": "a cat", "guidance": 2.0, "solver": "edict", "steps": 2, "method": name}
    edit = sf.edit(model, x.float(), "a dog", **options)
    assert edit.x.dtype == torch.float32
    exact = sf.from_diffusers(built("sd", unet, torch.float32))
    assert apart(edit.x, sf.edit(exact, x.float(), "a dog", **options).x) < 0.3


def test_adaptive_steps_and_a_choice_by_trial(model, x):
    options = {"source": "a cat", "guidance": 2.0, "method": "masactrl"}
    controller = sf.PIDController(rtol=0.1, atol=0.1)
    edit = sf.edit(model, x, "a dog", solver="dopri5", steps=controller, **options)
    grid = edit.inversion.grid
    again = sf.edit(model, x, "a dog", solver="dopri5", grid=grid.reversed(), **options)
    assert apart(edit.x, again.x) < 1e-9
    chosen = sf.edit(model, x, "a dog", solver=sf.Auto(exact=True, samples=1), nfe=4, **options)
    assert chosen.solver.properties.inverse == "exact"
    assert chosen.reason


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("prompt-to-prompt", {"cross_share": 1.5}, "cross_share: got 1.5"),
        ("prompt-to-prompt", {"self_share": "all"}, "self_share: got 'all'"),
        ("prompt-to-prompt", {"coarse": -1.0}, "coarse: got -1.0"),
        ("prompt-to-prompt", {"layers": (0.5, 0.5)}, "layers: got"),
        ("prompt-to-prompt", {"emphasis": "fluffy"}, "emphasis: got 'fluffy'"),
        ("prompt-to-prompt", {"emphasis": {3: 1.0}}, "emphasis: got 3"),
        ("prompt-to-prompt", {"emphasis": {"cat": "much"}}, "emphasis: got 'much'"),
        ("prompt-to-prompt", {"emphasis": {"cat": float("nan")}}, "emphasis: got nan"),
        ("plug-and-play", {"attention_share": -0.1}, "attention_share: got -0.1"),
        ("plug-and-play", {"feature_share": 2.0}, "feature_share: got 2.0"),
        ("plug-and-play", {"feature_share": float("nan")}, "feature_share: got nan"),
        ("masactrl", {"steps": (0.9, 0.1)}, "steps: got"),
        ("masactrl", {"steps": 3}, "steps: got 3"),
        ("masactrl", {"layers": (0.0, True)}, "layers: got"),
        ("value-injection", {"share": float("nan")}, "share: got nan"),
        ("masactrl", {"blend": 1.0}, "blend: got 1.0"),
        ("masactrl", {"store": 1}, "store: got 1"),
        ("masactrl", {"store": True, "blend": 0.3}, "blend: the source's own states"),
        ("masactrl", {"share": 0.5}, "no option 'share'"),
    ],
)
def test_options_out_of_range_are_refused_by_name(name, options, message):
    with pytest.raises(sf.InputError, match=message):
        editing.get(name, **options)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("masactrl", {"adjoint": "reversible"}, "adjoint: method 'masactrl' cannot"),
        ("masactrl", {"corrections": [lambda info: None]}, "corrections: method 'masactrl' cannot"),
        ("masactrl", {"smoothing": 0.1}, "smoothing: method 'masactrl' cannot"),
        (editing.MasaCtrl(store=True), {"source_guidance": 2.0}, "source_guidance: got 2.0"),
        (editing.MasaCtrl(store=True), {"mask": torch.ones(1, 1, 8, 8)}, "mask: the source's own states"),
        (editing.MasaCtrl(store=True), {"solver": "auto"}, "store: is for steps"),
        (editing.PromptToPrompt(emphasis={"bird": 2.0}), {}, "emphasis: .* not in the target's prompt"),
        (editing.PromptToPrompt(emphasis={"": 2.0}), {}, "emphasis: got '', which has no tokens"),
        (editing.PromptToPrompt(emphasis={"dog": 2.0}, cross_share=0.0), {}, "emphasis: is for cross attention"),
    ],
)
def test_edits_that_cannot_be_are_refused_by_name(method, options, message, model, x):
    options = {"solver": "dopri5" if "steps" in options else "ddim", "steps": 2} | options
    if options["solver"] == "auto":
        options.pop("steps")
    with pytest.raises(sf.InputError, match=message):
        sf.edit(model, x, "a dog", source="a cat", method=method, **options)
    assert no_hooks(network_of(model))


def test_a_weight_without_a_source_is_no_guidance_of_it():
    """A scale of guidance that the model has by itself does nothing where the way up has no condition."""
    torch.manual_seed(0)
    net = Labelled()
    model = sf.Denoiser(net, sf.VPLinear(), shape=(2, 4, 4), null=3, guidance=2.0)
    x = torch.randn(2, 2, 4, 4)
    anew, stored = (
        sf.edit(model, x, 1, method=editing.MasaCtrl(layers=(0.0, 1.0), store=store), solver="edict", steps=2)
        for store in (False, True)
    )
    assert apart(anew.x, stored.x) < 1e-4
    assert apart(anew.x, sf.edit(model, x, 1, solver="edict", steps=2).x) > 1e-4


class Labelled(torch.nn.Module):
    """A network of a user's own: places are tokens, and a label is added to them."""

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q, self.to_k, self.to_v = (torch.nn.Linear(8, 8) for _ in range(3))

        def forward(self, h):
            q, k, v = (to(h)[:, None] for to in (self.to_q, self.to_k, self.to_v))
            return torch.nn.functional.scaled_dot_product_attention(4.0 * q, k, v)[:, 0]

    def __init__(self):
        super().__init__()
        self.into, self.out = torch.nn.Linear(2, 8), torch.nn.Linear(8, 2)
        self.labels, self.attention = torch.nn.Embedding(4, 8), self.Attention()
        self.requires_grad_(False)

    def forward(self, x, time, label=None):
        h = self.into(x.flatten(2).transpose(1, 2))
        h = h if label is None else h + self.labels(label)[:, None]
        return self.out(h + self.attention(h)).transpose(1, 2).reshape(x.shape)


def test_networks_that_cannot_be_looked_into_are_refused(x):
    options = {"solver": "ddim", "steps": 2}
    digits = sf.load("digits")
    with pytest.raises(sf.InputError, match="no attention to inject into"):
        sf.edit(digits, torch.zeros(1, *digits.shape), 8, source=3, method="masactrl", **options)
    black = sf.Denoiser(lambda x, t, c: 0.1 * x, sf.VPLinear(), shape=(2, 4, 4))
    with pytest.raises(sf.InputError, match="no torch module and no pipeline"):
        sf.edit(black, torch.zeros(1, 2, 4, 4), 1, method="masactrl", **options)
    labels = sf.Denoiser(Labelled(), sf.VPLinear(), shape=(2, 4, 4))
    with pytest.raises(sf.InputError, match="blend: needs the words"):
        sf.edit(labels, torch.zeros(1, 2, 4, 4), 1, source=2, method=editing.MasaCtrl(blend=0.3), **options)
    with pytest.raises(sf.InputError, match="feature_share: Labelled has no up_blocks"):
        sf.edit(labels, torch.zeros(1, 2, 4, 4), 1, method=editing.PlugAndPlay(feature_share=0.5), **options)
    for compiled in (torch.compile(Labelled()), Labelled()):
        if compiled.__class__ is Labelled:
            compiled.attention.compile()
        model = sf.Denoiser(compiled, sf.VPLinear(), shape=(2, 4, 4))
        with pytest.raises(sf.InputError, match="is compiled"):
            sf.edit(model, torch.zeros(1, 2, 4, 4), 1, source=2, method="masactrl", **options)


def test_another_backend_of_attention_is_refused(x):
    pipe = built("sd", unet, torch.float32)
    before = dict(pipe.unet.attn_processors)
    name = SELF[5] + ".transformer_blocks.0.attn1.processor"
    pipe.unet.set_attn_processor({**before, name: diffusers.models.attention_processor.AttnProcessor()})
    model = sf.from_diffusers(pipe)
    options = {"source": "a cat", "solver": "ddim", "steps": 2}
    with pytest.raises(sf.InputError, match=r"up_blocks.1.attentions.0.*another attention backend"):
        sf.edit(model, x.float(), "a dog", method="masactrl", **options)
    assert no_hooks(pipe.unet)
    sf.edit(model, x.float(), "a dog", method=editing.MasaCtrl(layers=(0.0, 0.5)), **options)  # is not looked at


def test_a_network_of_diffusers_inside_ones_own_is_found():
    """Its attentions are counted in the order in which they run, up to the last of a UNet."""
    inside = torch.nn.Module()
    inside.wrapped = unet()
    names = [site.name for site in sites_of(inside) if site.kind == "self"]
    assert [name.removeprefix("wrapped.").split(".transformer")[0] for name in names] == SELF
    inside.wrapped = sd3()
    assert {(site.kind, site.prompt_first) for site in sites_of(inside)} == {("joint", False)}


# ---- the command line, and jobs


def test_from_the_command_line_and_as_jobs(call, tmp_path):
    folder = str(pipeline_folder("ink"))
    out = tmp_path / "out"
    held_out = ink("held-out", 2, torch.Generator().manual_seed(1))
    pictures = tmp_path / "in"
    pictures.mkdir()
    for k, picture in enumerate(held_out.images):
        values = ((picture + 1.0) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(values).save(pictures / f"{k}.png")
    words = ["--source", "a red 3", "--target", "a blue 5", "--guidance", "2", "--steps", "2"]
    for name in METHODS:
        status, text, problem = call(
            "edit", "--model", folder, "--image", pictures, "--method", name, *words, "--out", f"{out}.npy", "--json"
        )
        assert status == 0, (name, problem)
        assert json.loads(text)["nfe"] == 18
        job = runs.Editing(
            folder, input=str(pictures), n=2, source="a red 3", target="a blue 5", method=name, guidance=2.0, steps=2
        )
        assert from_spec(json.loads(json.dumps(job.spec()))) == job
        assert job.way == editing.get(name)
    (part,) = runs.run_job(job).parts()
    model = load_model(folder, "cpu", {})
    read = [sf.datasets.arrays.read(pictures / f"{k}.png", model.image_shape) for k in range(2)]
    x = model.codec.encode(torch.cat(read))
    edited = sf.edit(model, x, "a blue 5", source="a red 3", method=name, guidance=2.0, steps=2)
    assert apart(job.samples(part), edited.x) < 1e-5


@pytest.mark.parametrize(
    "method",
    [
        editing.PromptToPrompt(emphasis={"dog": 2.0}, blend=0.3, layers=(0.1, 0.9)),
        editing.PlugAndPlay(feature_share=0.2),
        editing.MasaCtrl(store=True),
        editing.ValueInjection(share=0.5),
    ],
)
def test_a_description_makes_the_method_again(method):
    spec = json.loads(json.dumps(method.spec()))
    name = spec.pop("name")
    assert editing.get(name, **spec) == method


# ---- served pipelines

WHOLE = {
    "masactrl": {"layers": (0.0, 1.0), "steps": (0.0, 1.0)},
    "plug-and-play": {"layers": (0.0, 1.0)},
    "value-injection": {"layers": (0.0, 1.0), "share": 1.0},
}
SERVED = (
    "wan", "qwenimage", "hunyuan_video", "ltx", "cogvideox", "skyreels", "hunyuandit", "glm_image", "cogview4",
    "auraflow", "hidream", "mochi", "flux", "klein", "flux2", "chroma", "bria", "bria_fibo", "longcat", "ovis",
    "easyanimate", "flux_kontext", "wan_i2v", "pixart_sigma", "latte", "framepack",
    "stable_audio_3", "longcat_audio", "allegro", "sd3_controlnet", "sdxl_controlnet",
)  # fmt: skip
NOT_SERVED = {
    "zimage": "in which order",
    "lumina2": "in which order",
    "ideogram4": "in which order",
    "nucleus": "in which order",
    "sana": "ran without torch's scaled_dot_product_attention",
    "wan22": "transformer_2 beside its first network",
    "ernie": "belong to the picture is not known",
    "krea2": "belong to the picture is not known",
    "motif": "asked twice",
    "ltx2": "asked twice",
    "hunyuan_video_15": "asked twice",
    "kandinsky3": "takes nothing .* cross attention",
}
FEW = ("cogvideox", "allegro", "easyanimate")
"""Members of one layer and of two tokens or so, whose queries and keys hardly matter."""
QUICK = ("wan", "qwenimage", "zimage", "sana")


def members(names):
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.families]) for name in names]


@pytest.fixture
def served():
    families = pytest.importorskip("families")
    import zoo
    from test_zoo import OTHER_PROMPT

    def opened(name):
        return (
            families.model_of(name),
            families.state(families.model_of(name)),
            zoo.call_of(name)["prompt"],
            OTHER_PROMPT,
        )

    yield opened
    families.forget()


@pytest.mark.parametrize("name", members(SERVED))
def test_served_pipelines(name, served):
    """The edit takes from its source, whose own answer is what it is alone; in joint attention the picture's tokens.

    Only these are others in the first joint attention where the picture is another.
    """
    import families

    model, x, source, target = served(name)
    options = {"source": source, "solver": "ddim", "steps": 2}
    network, t = network_of(model), families.middle(model)
    sites = sites_of(network)
    for guidance in (1.0, 3.0) if families.guides(model) else (1.0,):
        plain = sf.edit(model, x, target, guidance=guidance, **options)
        for method, given in WHOLE.items():
            edit = sf.edit(model, x, target, guidance=guidance, method=editing.get(method, **given), **options)
            if name not in FEW or method != "plug-and-play":
                assert not torch.equal(edit.x, plain.x), (method, guidance)
            assert edit.nfe == 6
        here, there = model.with_condition(source), model.with_condition(target, guidance=guidance)
        sharing = Sharing(sites, [Rule({"self": "qkv", "joint": "qkv"})], (1e9, -1e9), 1)
        y = families.state(model, 2)
        before, after = here(x, t).output, there(y, t).output
        first, second = Pair.of(here, there, sharing)(torch.cat([x, y]), t).output.chunk(2)
        assert torch.equal(first, before)
        assert not torch.equal(second, after)
        assert torch.equal(there(y, t).output, after)
        assert no_hooks(network)
    options["solver"] = solvers.get("rex-euler", coordinates="flow")
    stored, anew = (
        sf.edit(model, x, target, method=editing.MasaCtrl(store=store, **WHOLE["masactrl"]), **options)
        for store in (True, False)
    )
    assert apart(stored.x, anew.x) < 1e-3
    joint = [site.number for site in sites if site.kind == "joint"][:1]
    seen = []

    def answer(site, call, places):
        seen.append((call.q.clone(), site.picture(call.q.shape[2], places)))
        return call.answer()

    for seed in (1, 2) if joint else ():
        make_ready(model, x)
        with tapped(sites, joint, answer):
            model(families.state(model, seed), t)
    if joint:
        (one, span), (other, _) = seen[0], seen[len(seen) // 2]
        moved = (one - other).abs().amax((0, 1, 3)) > 0
        inside = torch.zeros_like(moved)
        inside[span] = True
        assert moved.any()
        assert not (moved & ~inside).any()
        if name not in ("flux_kontext", "framepack"):  # which have tokens of another picture as well
            assert torch.equal(moved, inside)


@pytest.mark.parametrize("name", members(NOT_SERVED))
def test_served_pipelines_that_are_refused(name, served):
    model, x, source, target = served(name)
    options = {"source": source, "solver": "ddim", "steps": 2}
    for method, given in WHOLE.items():
        with pytest.raises(sf.InputError, match=NOT_SERVED[name]):
            sf.edit(model, x, target, method=editing.get(method, **given), **options)


def test_words_are_not_known_inside_a_served_pipeline(served):
    model, x, source, target = served("wan")
    options = {"source": source, "solver": "ddim", "steps": 2}
    with pytest.raises(sf.InputError, match=r"guidance: prompt-to-prompt"):
        sf.edit(model, x, target, guidance=3.0, method="prompt-to-prompt", **options)
    with pytest.raises(sf.InputError, match=r"cross_share: needs the words"):
        sf.edit(model, x, target, method="prompt-to-prompt", **options)
    edit = sf.edit(model, x, target, method=editing.PromptToPrompt(cross_share=0.0, self_share=1.0), **options)
    assert not torch.equal(edit.x, sf.edit(model, x, target, **options).x)
    with pytest.raises(sf.InputError, match=r"source_guidance: got 2.0"):
        sf.edit(model, x, target, source_guidance=2.0, method="masactrl", **options)


def test_a_call_that_is_used_up_is_opened_again_in_the_middle(served, monkeypatch):
    """Its networks run while it is opened, which nobody takes for an answer."""
    from steadyflow.diffusers import _server

    model, x, source, target = served("wan")
    options = {"source": source, "solver": "ddim", "steps": 3, "method": editing.MasaCtrl(**WHOLE["masactrl"])}
    expected = sf.edit(model, x, target, **options)
    model.close()
    monkeypatch.setattr(_server, "_STEPS", 3)
    model.server._kinds.clear()
    try:
        assert torch.equal(sf.edit(model, x, target, **options).x, expected.x)
    finally:
        model.close()
