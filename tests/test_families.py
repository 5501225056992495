"""Every family of pipelines keeps what is claimed of it, or is refused with the reason.

The members are those of `zoo`, the claims and the tables of refusals those of `families`.
"""

import importlib.util
import re
import threading
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import families  # noqa: E402
import steadyflow as sf  # noqa: E402
import zoo  # noqa: E402
from families import CLAIMS, FAULTS, LATER, LIMITS, REFUSED  # noqa: E402


def _cases():
    for name, member in zoo.MEMBERS.items():
        for claim in CLAIMS:
            if not families.applies(claim, name):
                continue
            marks = [] if member.quick and claim not in LATER and name != "ltx2" else [pytest.mark.families]
            if (name, claim) in FAULTS:
                marks.append(pytest.mark.xfail(reason=FAULTS[name, claim], strict=True))
            yield pytest.param(name, claim, marks=marks, id=f"{name}-{claim}")


@pytest.fixture(autouse=True, scope="module")
def _closed_at_the_end():
    yield
    families.forget()


@pytest.mark.parametrize(("name", "claim"), list(_cases()))
def test_a_family_keeps_what_is_claimed_of_it(name, claim):
    if (name, claim) in LIMITS:
        error, reason = LIMITS[name, claim]
        with pytest.raises(error, match=reason):
            CLAIMS[claim](name)
    elif (name, claim) in REFUSED:
        with pytest.raises(sf.InputError, match=REFUSED[name, claim]):
            CLAIMS[claim](name)
    else:
        CLAIMS[claim](name)


def test_the_tables_name_members_and_claims():
    for name, claim in (*REFUSED, *LIMITS, *FAULTS):
        assert name in zoo.MEMBERS, name
        assert claim in CLAIMS, claim
        assert families.applies(claim, name), (name, claim)


def test_how_many_families_work():
    """The numbers that docs/diffusers.md gives."""
    assert len(families.working("scheduler")) >= 40
    assert len(families.working("decode")) >= 35


@pytest.mark.families
def test_the_committed_table_is_what_the_script_makes():
    path = Path(__file__).parent.parent / "scripts" / "families_table.py"
    spec = importlib.util.spec_from_file_location("families_table", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def without_digits(row):
        return tuple("yes" if re.fullmatch(r"0|\d+e[+-]\d+", cell) else cell for cell in row)

    made = [script.row(name, measured=False) for name in zoo.MEMBERS]
    assert [without_digits(row) for row in script.committed()] == made
    assert script.summary() in script.PAGE.read_text(encoding="utf-8")


def _open(name, pipe=None, **options):
    """A served model of a quick member, changed."""
    return families.served(name, zoo.build(name) if pipe is None else pipe, **options)


def _no_threads():
    assert not [t for t in threading.enumerate() if t.name.startswith("steadyflow")]


# ---- what is no field


def _control_window():
    pipe = zoo.build("sd_controlnet")
    return lambda: sf.from_diffusers(
        pipe, "a cat", served=True, image=zoo.call_of("sd_controlnet")["image"], control_guidance_end=0.5
    )


def _truncated_ratio():
    pipe = zoo.build("lumina2")
    return lambda: _open("lumina2", pipe, guidance=3.0, cfg_trunc_ratio=0.5)


def _first_block_cache():
    pipe = zoo.build("flux")
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.2))
    return lambda: _open("flux", pipe)


def _pyramid_attention():
    pipe = zoo.build("flux")
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    pipe.transformer.enable_cache(config)
    return lambda: _open("flux", pipe)


def _faster_cache():
    pipe = zoo.build("wan")
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.2))
    return lambda: _open("wan", pipe)


def _member(name):
    return lambda: lambda: families.served(name, zoo.build(name))


def _argument(name, **given):
    return lambda: lambda: _open(name, **given)


def _dropout():
    pipe = zoo.build("sd")
    hook = lambda module, args, output: output + 0.1 * torch.randn(output.shape)  # noqa: E731
    pipe.unet.conv_in.register_forward_hook(hook)
    return lambda: _open("sd", pipe)


def _no_scheduler():
    pipe = zoo.build("sd")
    pipe.scheduler = None
    return lambda: _open("sd", pipe)


NO_FIELD = {
    "a window of steps of a ControlNet": (_control_window, r"control_guidance_end"),
    "guidance that ends at a share of the steps": (_truncated_ratio, r"a window of steps"),
    "a cache of the first block": (_first_block_cache, r"a cache is on for its transformer.*disable_cache"),
    "a cache of attention": (_pyramid_attention, r"a cache is on for its transformer"),
    "a cache on a video network": (_faster_cache, r"a cache is on for its transformer"),
    "a guider with a memory": (_member("hunyuanimage"), r"a guider with a memory"),
    "a mask that is blended in": (_member("sd_inpaint"), r"to blend in a mask.*sf\.edit\(mask"),
    "a mask of a flow model": (_member("qwenimage_inpaint"), r"to blend in a mask"),
    "a picture that is put back": (_member("joyimage_edit"), r"changes the latents between its steps"),
    "times of tokens": (_member("ltx_condition"), r"gives every token a time of its own"),
    "noise that is drawn inside": (_dropout, r"noise that is drawn inside"),
    "a table that depends on the steps": (_member("cascade"), r"a function of the number of steps"),
    "no scheduler": (_no_scheduler, r"pipeline: .*scheduler"),
    "an argument of the verb": (_argument("sd", num_inference_steps=5), r"the verb takes steps="),
    "latents": (_argument("flux", latents=torch.zeros(1)), r"they are the state"),
    "an argument that the call has not": (_argument("sd", frames=3), r"frames: the call of .* takes none"),
    "guidance without a negative": (_argument("flux2", guidance=3.0), r"does no classifier-free guidance"),
}
QUICK = ("a cache of the first block", "an argument of the verb", "no scheduler", "noise that is drawn inside",
         "a mask that is blended in")  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.families) for c in NO_FIELD])
def test_what_is_no_field_is_refused_with_its_cause(case):
    families.forget()
    prepare, message = NO_FIELD[case]
    opened = prepare()
    with pytest.raises(sf.InputError, match=message):
        opened()
    _no_threads()
