"""The nodes for ComfyUI: in ComfyUI itself where STEADYFLOW_COMFYUI names its folder, else in a stand-in for it.

What a node returns is compared with samplers and schedules that others wrote (ComfyUI's own, or those of k-diffusion,
from which they come), and with the library's verbs over the same network.
"""

import importlib.util
import inspect
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import comfy_engine
import steadyflow as sf
import tuned_solvers

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import comfy_workflows

pack = comfy_engine.load()
KINDS = ("eps", "v", "flow")
NODES = pack.NODE_CLASS_MAPPINGS
in_comfyui = pytest.mark.skipif(
    not comfy_engine.REAL, reason="ComfyUI: STEADYFLOW_COMFYUI does not name the folder of the program"
)


@pytest.fixture(autouse=True)
def as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


def node(name, *arguments, **inputs):
    made = NODES[f"SteadyFlow{name}"]()
    return getattr(made, made.FUNCTION)(*arguments, **inputs)


def sampler(name="ddim", options=""):
    return node("Sampler", name, options)[0]


def sigmas(model, steps=6, strength=0.9, end="smallest level", grid="sgm-uniform", options=""):
    return node("Sigmas", model, grid, options, steps, strength, end)[0]


def picture(rows=2, seed=3):
    return {"samples": torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))}


def guided(model, seed=1, cfg=1.0, negative=None):
    return comfy_engine.guider(model, comfy_engine.words(seed), negative, cfg)


def sampled(guider, method, levels, noise, latent):
    """What SamplerCustomAdvanced does with its inputs."""
    return guider.sample(noise, latent, method, levels, seed=5)


class Oracle:
    """A sampler of k-diffusion, or of ComfyUI where there is one, over a SAMPLER."""

    def __new__(cls, name):
        if comfy_engine.REAL:
            return import_module("comfy.samplers").sampler_object(name)
        function = getattr(comfy_engine.k_diffusion(), f"sample_{name}")
        return import_module("comfy.samplers").KSAMPLER(function)


def by_hand(model, kind, *, cfg=(1.0, 1.0)):
    """The network as a model of the library, under the words 1 (label 0), the words 2 (label 1), or none."""
    low = float(model.get_model_object("model_sampling").sigma_min)
    high = float(model.get_model_object("model_sampling").sigma_max)
    path = sf.RectifiedFlow(t_min=low) if kind == "flow" else sf.VE(t_min=low, t_max=high)

    def ask(x, sigma, seed):
        words = comfy_engine.words(seed)[0][0].expand(len(x), -1, -1)
        return model.model.apply_model(x, sigma, **{"c_crossattn" if comfy_engine.REAL else "cross_attn": words})

    def net(x, sigma, label):
        k = int(label[0])
        there = ask(x, sigma, k + 1)
        if cfg[k] == 1.0:
            return there
        away = ask(x, sigma, 99)
        return away + (there - away) * cfg[k]

    model.model.current_patcher = model
    return sf.Denoiser(net, path, prediction="sample", shape=(4, 8, 8))


def grid_of(model, levels):
    return sf.Grid(tuple(levels.double().tolist()))


# What ComfyUI asks of a pack


def test_every_node_says_what_comfyui_asks_for():
    assert NODES.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for kind in NODES.values():
        given = kind.INPUT_TYPES()
        required, optional = given["required"], given.get("optional", {})
        parameters = dict(list(inspect.signature(getattr(kind, kind.FUNCTION)).parameters.items())[1:])
        assert list(parameters) == [*required, *optional]
        assert {name for name, one in parameters.items() if one.default is not one.empty} == set(optional)
        assert len(getattr(kind, "RETURN_NAMES", kind.RETURN_TYPES)) == len(kind.RETURN_TYPES)
        assert kind.CATEGORY == "steadyflow"
        assert kind.DESCRIPTION


def test_the_folder_of_the_pack_is_one_of_custom_nodes():
    """ComfyUI loads a folder by its path, under a name that no import could have."""
    folder, name = Path(pack.__file__).parent, "/x/custom_nodes/steadyflow_comfy"
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        assert module.NODE_CLASS_MAPPINGS.keys() == NODES.keys()
    finally:
        for one in [one for one in sys.modules if one.startswith(name)]:
            del sys.modules[one]


def test_outside_comfyui_the_pack_says_whose_nodes_these_are(monkeypatch):
    host = import_module("steadyflow_comfy.host")
    with pytest.raises(ModuleNotFoundError, match=r"nodes of ComfyUI.*'comfy_of_nobody.samplers' is not there"):
        host._module("comfy_of_nobody.samplers")


# Samplers and sigmas


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["ddim", "euler"])
def test_euler_is_that_of_others_on_the_same_sigmas(kind, solver):
    """In k-diffusion's sigmas, and along flows, Euler's method is DDIM."""
    model = comfy_engine.tiny(kind)
    levels, guider = sigmas(model, strength=1.0, end="zero"), guided(model, cfg=3.0)
    noise, empty = picture(seed=4)["samples"], torch.zeros(2, 4, 8, 8)
    ours = sampled(guider, sampler(solver), levels, noise, empty)
    theirs = sampled(guider, Oracle("euler"), levels, noise, empty)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert not torch.allclose(sampled(guider, sampler("heun"), levels, noise, empty), theirs, rtol=1e-2)


def test_a_second_order_sampler_is_that_of_others_too():
    model = comfy_engine.tiny("eps")
    levels, guider = sigmas(model, strength=1.0, end="zero", grid="karras"), guided(model, cfg=3.0)
    noise, empty = picture(seed=4)["samples"], torch.zeros(2, 4, 8, 8)
    ours = sampled(guider, sampler("dpmpp-2m"), levels, noise, empty)
    theirs = sampled(guider, Oracle("dpmpp_2m"), levels, noise, empty)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_the_seed_of_the_workflow_is_that_of_a_stochastic_sampler():
    model = comfy_engine.tiny("eps")
    levels, guider = sigmas(model), guided(model)
    x = picture()["samples"]

    def run(seed):
        return guider.sample(x, torch.zeros_like(x), sampler("ddpm"), levels, seed=seed)

    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2))


def theirs_on(model, name, steps):
    """A schedule of ComfyUI, or of k-diffusion where it has one of this name."""
    sampling = model.get_model_object("model_sampling")
    if comfy_engine.REAL:
        return import_module("comfy.samplers").calculate_sigmas(sampling, name, steps)
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    return getattr(comfy_engine.k_diffusion(), f"get_sigmas_{name}")(steps, low, high)


@pytest.mark.parametrize(("grid", "name"), [("karras", "karras"), ("log-snr", "exponential")])
def test_sigmas_are_those_of_the_schedulers_of_others(grid, name):
    model = comfy_engine.tiny("eps")
    torch.testing.assert_close(sigmas(model, 11, 1.0, "zero", grid), theirs_on(model, name, 11), rtol=1e-5, atol=1e-6)


@in_comfyui
@pytest.mark.parametrize(
    ("kind", "grid", "name", "within"),
    [
        ("eps", "uniform", "normal", 1e-5), ("eps", "sgm-uniform", "sgm_uniform", 1e-5),
        ("eps", "kl-optimal", "kl_optimal", 1e-5), ("eps", "beta", "beta", 5e-2),
        ("flow", "sgm-uniform", "sgm_uniform", 2e-2), ("flow", "linear-quadratic", "linear_quadratic", 4e-3),
    ],
)  # fmt: skip
def test_sigmas_are_those_of_comfyuis_schedulers(kind, grid, name, within):
    """Those of "beta" are rounded to the table there, and flows begin their times at another smallest one.

    N steps of "beta" are there the first N of N + 1 levels down to the smallest, and then 0.
    """
    model = comfy_engine.tiny(kind)
    end = "smallest level" if grid == "beta" else "zero"
    ours, theirs = sigmas(model, 10, 1.0, end, grid), theirs_on(model, name, 10)
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=within, atol=within)
    assert theirs[-1] == 0.0
    assert ours[-1] == 0.0 or grid == "beta"


@pytest.mark.parametrize("kind", KINDS)
def test_sigmas_end_where_it_was_said_and_strength_lowers_the_start(kind):
    model = comfy_engine.tiny(kind)
    low, high = (float(getattr(model.get_model_object("model_sampling"), name)) for name in ("sigma_min", "sigma_max"))
    whole, part = sigmas(model, 7, 1.0, "smallest level"), sigmas(model, 7, 0.5, "zero")
    assert len(whole) == len(part) == 8
    assert float(whole[0]) == pytest.approx(high, rel=1e-5)
    assert float(whole[-1]) == pytest.approx(low, rel=1e-3)
    assert part[0] < whole[0]
    assert part[-1] == 0.0


def test_a_tuned_sampler_comes_with_its_sigmas_and_gives_the_numbers_of_the_solver_it_was_made_of():
    model = comfy_engine.tiny("eps")
    levels = import_module("steadyflow_comfy.paths").levels_of(model)
    folder = Path(import_module("folder_paths").folder_names_and_paths["steadyflow"][0][0])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "fast.json"
    tuned_solvers.sampler(levels.path, (6, 8)).save(file)
    try:
        import_module("folder_paths").__dict__.get("filename_list_cache", {}).clear()
        assert NODES["SteadyFlowTunedSampler"].INPUT_TYPES()["required"]["file"][0] == ["fast.json"]
        made, own = node("TunedSampler", model, "fast.json", 8)
        with pytest.raises(sf.InputError, match="got 7, but this tuned solver was fitted for 6, 8 evaluations"):
            node("TunedSampler", model, "fast.json", 7)
    finally:
        file.unlink()
    noise, empty, guider = picture(seed=4)["samples"], torch.zeros(2, 4, 8, 8), guided(model)
    plain = sampled(guider, sampler("dpmpp-2m"), own, noise, empty)
    torch.testing.assert_close(sampled(guider, made, own, noise, empty), plain, rtol=1e-3, atol=1e-3)
    with pytest.raises(sf.InputError, match="runs over its own alone"):
        sampled(guider, made, sigmas(model), noise, empty)


# Inversion


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["zero", "smallest level"])
def test_an_exact_solver_brings_the_latent_back(kind, end):
    model, latent = comfy_engine.tiny(kind), picture()
    levels, guider = sigmas(model, 4, end=end), guided(model, cfg=2.0)
    inversion, *_ = node("Invert", guider, sampler("rex-rk4"), levels, latent)
    (back,) = node("Decode", guider, inversion)
    torch.testing.assert_close(back["samples"], latent["samples"], rtol=0, atol=5e-3)
    same, error, report = node("Reconstruct", guider, sampler("rex-rk4"), levels, latent)
    torch.testing.assert_close(same["samples"], back["samples"], rtol=0, atol=1e-5)
    assert error < 1e-3
    assert report.startswith("rex-rk4, 4 steps")
    _, worse, _ = node("Reconstruct", guider, sampler("ddim"), levels, latent)
    assert worse > 20 * error


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_of_an_inversion_gives_the_latent_back_to_comfyuis_own_sampler(kind):
    """Also from sigma = 1 of a flow model, where ComfyUI scales a latent to nothing."""
    model, latent = comfy_engine.tiny(kind), picture()
    levels, guider = sigmas(model, 6, strength=1.0), guided(model, cfg=2.0)
    inversion, noise, as_latent = node("Invert", guider, sampler("ddim"), levels, latent)
    (back,) = node("Decode", guider, inversion)
    empty = {"samples": torch.zeros_like(latent["samples"])}
    assert torch.equal(noise.generate_noise(empty), as_latent["samples"])
    theirs = sampled(guider, Oracle("euler"), levels, noise.generate_noise(empty), empty["samples"])
    if kind == "flow":  # ComfyUI takes what has noise left in it for a latent of that level
        theirs = theirs * (1.0 - float(levels[-1]))
    torch.testing.assert_close(theirs, back["samples"], rtol=1e-3, atol=1e-3 * float(back["samples"].abs().max()))


def test_rising_sigmas_turn_the_sampler_round():
    """As by FlipSigmas: what others do with an inversion of their own is the same here."""
    model, latent = comfy_engine.tiny("eps"), picture()
    levels, guider = sigmas(model), guided(model)
    inversion, *_ = node("Invert", guider, sampler(), levels, latent)
    x = latent["samples"]
    up = sampled(guider, sampler(), levels.flip(0), torch.zeros_like(x), x)
    found = inversion.inversion.latent / 0.18215  # Stable Diffusion's factor of latents
    torch.testing.assert_close(up, found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_under_another_guider_is_the_librarys_edit_by_inversion(kind):
    model, latent = comfy_engine.tiny(kind), picture()
    levels = sigmas(model)
    inversion, *_ = node("Invert", guided(model, 1), sampler("midpoint"), levels, latent)
    (edited,) = node("Decode", guided(model, 2, cfg=2.5), inversion)
    by_node, _ = node(
        "Edit", guided(model, 1), guided(model, 2, cfg=2.5), sampler("midpoint"), levels, latent, "inversion", ""
    )
    torch.testing.assert_close(by_node["samples"], edited["samples"], rtol=0, atol=1e-5)
    hand = by_hand(model, kind, cfg=(1.0, 2.5))
    x = model.model.process_latent_in(latent["samples"])
    wanted = sf.edit(hand, x, 1, source=0, solver="midpoint", grid=grid_of(model, levels)).x
    wanted = model.model.process_latent_out(wanted)
    torch.testing.assert_close(edited["samples"], wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


# Editing


METHODS = [
    ("direct", "share=0.3", "ees25"), ("rf-inversion", "", "euler"), ("flow-edit", "average=2", "euler"),
    ("flow-align", "", "euler"), ("dvrf", "", "euler"), ("noise-maps", "", "ddpm"),
    ("uni-edit", "empty=false", "euler"), ("pmi", "", "euler"), ("dna-edit", "eta=1.0", "euler"),
    ("flow-opt", "iterations=2", "euler"),
]  # fmt: skip


def drawing(method, solver):
    found = sf.editing.get(method)
    return {"seed": 7} if found.draws_noise or sf.solvers.get(solver).properties.stochastic else {}


@pytest.mark.parametrize(("method", "options", "solver"), METHODS, ids=[row[0] for row in METHODS])
def test_ways_of_editing_are_the_librarys_over_the_same_network(method, options, solver):
    kind = "flow" if method in ("flow-edit", "pmi") else "eps"
    model, latent = comfy_engine.tiny(kind), picture()
    levels, more = sigmas(model, 5, 0.7), drawing(method, solver)
    found, report = node(
        "Edit", guided(model, 1), guided(model, 2), sampler(solver), levels, latent, method, options, **more
    )
    way = sf.editing.get(f"{method}:{options}" if options else method)
    x = model.model.process_latent_in(latent["samples"])
    grid = grid_of(model, levels)
    wanted = sf.edit(by_hand(model, kind), x, 1, source=0, method=way, solver=solver, grid=grid, **more)
    wanted = model.model.process_latent_out(wanted.x)
    torch.testing.assert_close(found["samples"], wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))
    assert report.startswith(method)
    assert not torch.allclose(found["samples"], latent["samples"], atol=1e-2)


def test_every_way_of_editing_that_asks_the_model_alone_is_offered():
    offered = NODES["SteadyFlowEdit"].INPUT_TYPES()["required"]["method"][0]
    assert set(offered) == {"inversion", *(row[0] for row in METHODS)}


def test_equal_guiders_leave_the_latent_as_it_is():
    """By FlowEdit: the difference of two guiders that say the same is nothing, guidance included."""
    model, latent = comfy_engine.tiny("flow"), picture()
    same = [guided(model, 1, cfg=3.0) for _ in range(2)]
    found, _ = node("Edit", *same, sampler("euler"), sigmas(model), latent, "flow-edit", "", seed=1)
    torch.testing.assert_close(found["samples"], latent["samples"], rtol=0, atol=1e-5)


def test_the_empty_guider_is_the_model_without_a_condition():
    model, latent = comfy_engine.tiny("eps"), picture()
    ways = guided(model, 1), guided(model, 2), sampler("euler"), sigmas(model, 5, 0.6), latent, "uni-edit"
    by_source, _ = node("Edit", *ways, "empty=false")
    like_source, _ = node("Edit", *ways, "", empty=guided(model, 1))
    by_empty, _ = node("Edit", *ways, "", empty=guided(model, 98))
    torch.testing.assert_close(like_source["samples"], by_source["samples"], rtol=1e-4, atol=1e-3)
    assert not torch.allclose(by_empty["samples"], by_source["samples"], atol=1e-2)


@pytest.mark.parametrize(("method", "solver"), [("flow-edit", "euler"), ("inversion", "midpoint")])
def test_a_noise_mask_says_where_the_latent_may_change(method, solver):
    model, latent = comfy_engine.tiny("flow"), picture()
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1.0
    found, _ = node(
        "Edit", guided(model, 1), guided(model, 2), sampler(solver), sigmas(model), {**latent, "noise_mask": mask},
        method, "", **drawing(method, solver),
    )  # fmt: skip
    change = (found["samples"] - latent["samples"]).abs().amax((0, 1, 2))
    assert float(change[:3].max()) < 1e-4
    assert float(change[5:].min()) > 1e-2


def test_noise_goes_by_the_numbers_of_the_samples():
    model, whole = comfy_engine.tiny("flow"), picture(3)
    ways = guided(model, 1), guided(model, 2), sampler("euler"), sigmas(model)
    both, _ = node("Edit", *ways, whole, "flow-edit", "", seed=1)
    last = {"samples": whole["samples"][1:], "batch_index": [1, 2]}
    alone, _ = node("Edit", *ways, last, "flow-edit", "", seed=1)
    torch.testing.assert_close(alone["samples"], both["samples"][1:], rtol=1e-4, atol=1e-4)
    other, _ = node("Edit", *ways, last, "flow-edit", "", seed=2)
    assert not torch.allclose(other["samples"], alone["samples"], atol=1e-3)


# Diagnosis


def test_a_diagnosis_explains_the_error_that_reconstruct_measures():
    model, latent = comfy_engine.tiny("eps"), picture(1)
    levels, guider = sigmas(model, 8, 0.6), guided(model)
    shown, report = node("Diagnose", guider, sampler("ddim"), levels, latent, 1e-3)
    _, error, _ = node("Reconstruct", guider, sampler("ddim"), levels, latent)
    assert f"reconstruction error (rms): median {error:.3g}," in report
    assert "cause:" in report
    assert shown.shape == (1, 1024, 1024, 3)
    assert 0.0 <= float(shown.min()) < float(shown.max()) <= 1.0
    assert float((shown < 0.9).float().mean()) > 0.01  # something is drawn


def test_a_diagnosis_towards_a_target_is_that_of_the_edit():
    model, latent = comfy_engine.tiny("flow"), picture(1)
    levels = sigmas(model, 4, 0.6)
    _, report = node("Diagnose", guided(model), sampler("ddim"), levels, latent, 1e-2, target=guided(model, 2))
    assert report.startswith("distance to the exact edit (rms)")


# What is refused, by name


def test_samplers_options_and_ends_that_are_not_there_are_refused():
    model = comfy_engine.tiny("eps")
    with pytest.raises(sf.InputError, match="solver 'ddim': no option 'et'; it takes eta"):
        sampler("ddim", "et=1")
    with pytest.raises(sf.InputError, match="eta: got 'much', expected a number"):
        sampler("ddim", "eta=much")
    with pytest.raises(sf.InputError, match=r"grid 'karras:roh=5': no option 'roh'|grid 'karras': no option 'roh'"):
        sigmas(model, grid="karras", options="roh=5")
    with pytest.raises(sf.InputError, match="end: got 'one', expected 'zero' or 'smallest level'"):
        sigmas(model, end="one")


def refusals():
    model, latent = comfy_engine.tiny("eps"), picture()
    other, way = comfy_engine.tiny("eps"), (sampler(), sigmas(model), latent)
    one, two = guided(model, 1), guided(model, 2)
    euler = sampler("euler"), sigmas(model), latent
    masked = {**latent, "noise_mask": torch.ones(1, 8, 8)}
    hooked = guided(model, 2)
    hooked.original_conds["positive"][0]["hooks"] = object()
    guidance = guided(model, 2, cfg=2.0)
    return {
        "foreign": ("sampler: got a KSAMPLER, expected", "Invert", (one, Oracle("euler"), sigmas(model), latent), {}),
        "no inverse": ("ddpm", "Invert", (one, sampler("ddpm"), sigmas(model), latent), {}),
        "rising": (
            "sigmas: got .* expected at least two levels that fall",
            "Invert",
            (one, sampler(), sigmas(model).flip(0), latent),
            {},
        ),
        "too high": ("sigmas: begin at 99", "Invert", (one, sampler(), torch.tensor([99.0, 1.0]), latent), {}),
        "too low": (
            "below the model's smallest level",
            "Invert",
            (one, sampler(), torch.tensor([1e-3, 0.0]), latent),
            {},
        ),
        "empty": (r"latent: is empty", "Invert", (one, *way[:2], {"samples": torch.zeros(1, 4, 8, 8)}), {}),
        "channels": ("latent: has 3 channels", "Invert", (one, *way[:2], {"samples": torch.ones(1, 3, 8, 8)}), {}),
        "masked inversion": ("latent: has a noise mask", "Invert", (one, *way[:2], masked), {}),
        "masked way": (
            "method 'uni-edit' cannot honour: ",
            "Edit",
            (one, two, *euler[:2], masked, "uni-edit", "empty=false"),
            {},
        ),
        "other model": ("target: is of another model", "Edit", (one, guided(other), *way, "inversion", ""), {}),
        "one guider": ("target: is the same guider", "Edit", (one, one, *way, "inversion", ""), {}),
        "hooks": ("target: has a conditioning with hooks", "Edit", (one, hooked, *way, "inversion", ""), {}),
        "no seed": (
            "seed: method 'flow-edit' with solver 'euler' draws noise",
            "Edit",
            (one, two, *euler, "flow-edit", ""),
            {},
        ),
        "vain seed": (
            "seed: method 'inversion' .* draws no noise",
            "Edit",
            (one, two, *way, "inversion", ""),
            {"seed": 1},
        ),
        "no empty": ("empty: method 'uni-edit' asks for", "Edit", (one, two, *euler, "uni-edit", ""), {}),
        "vain empty": (
            "empty: method 'inversion' never asks",
            "Edit",
            (one, two, *way, "inversion", ""),
            {"empty": guided(model, 3)},
        ),
        "align": (
            "connect the source's conditioning as the negative",
            "Edit",
            (one, guidance, *euler, "flow-align", ""),
            {"seed": 1},
        ),
        "option": ("no option 'omega'", "Edit", (one, two, *euler, "flow-edit", "omega=1"), {"seed": 1}),
        "rows": (
            "batch_index is",
            "Edit",
            (one, two, *euler[:2], {**latent, "batch_index": [0, 5]}, "flow-edit", ""),
            {"seed": 1},
        ),
        "tolerance": ("tolerance: got 0", "Diagnose", (one, *way, 0.0), {}),
    }


REFUSED = [
    "foreign",
    "no inverse",
    "rising",
    "too high",
    "too low",
    "empty",
    "channels",
    "masked inversion",
    "masked way",
    "other model",
    "one guider",
    "hooks",
    "no seed",
    "vain seed",
    "no empty",
    "vain empty",
    "align",
    "option",
    "rows",
    "tolerance",
]


@pytest.fixture(scope="module")
def given():
    with torch.inference_mode():
        return refusals()


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(given, case):
    assert set(REFUSED) == set(given)
    words, name, arguments, more = given[case]
    with pytest.raises(sf.SteadyflowError, match=words):
        node(name, *arguments, **more)


def test_the_noise_of_an_inversion_is_added_to_nothing_else():
    model, latent = comfy_engine.tiny("eps"), picture()
    _, noise, _ = node("Invert", guided(model), sampler(), sigmas(model), latent)
    for other in (latent, {"samples": torch.zeros(1, 4, 8, 8)}):
        with pytest.raises(sf.InputError, match=r"latent_image: got shape .* give an empty latent of shape"):
            noise.generate_noise(other)


def test_latents_that_are_noised_in_a_third_way_are_refused():
    model = comfy_engine.tiny("eps")
    sampling = model.get_model_object("model_sampling")
    odd = type(
        "Odd", (type(sampling),), {"noise_scaling": lambda self, s, noise, latent, max_denoise=False: noise + latent}
    )
    foreign = type("Model", (), {"get_model_object": lambda self, name: object.__new__(odd)})
    with pytest.raises(sf.InputError, match="model_sampling is a Odd"):
        import_module("steadyflow_comfy.paths")._is_flow(foreign().get_model_object("model_sampling"))


def test_a_run_shows_its_steps_and_stops_when_it_is_told_to():
    model, latent = comfy_engine.tiny("eps"), picture()
    management, previews = import_module("comfy.model_management"), import_module("latent_preview")
    if not comfy_engine.REAL:
        previews.shown.clear()
    node("Reconstruct", guided(model), sampler(), sigmas(model, 5), latent)
    if not comfy_engine.REAL:
        assert previews.shown == [(k, 10, (2, 4, 8, 8)) for k in range(10)]
    if comfy_engine.REAL:
        management.interrupt_current_processing(True)
    else:
        management.stopped = True
    with pytest.raises(management.InterruptProcessingException):
        node("Reconstruct", guided(model), sampler(), sigmas(model, 5), latent)


# The example workflows


def test_the_workflows_are_those_of_the_script():
    for path, text in comfy_workflows.files().items():
        assert path.read_text() == text, path.name
    there = {*comfy_workflows.API.glob("*.json"), *comfy_workflows.EDITOR.glob("*.json")}
    assert there == set(comfy_workflows.files())


@pytest.mark.parametrize("name", comfy_workflows.workflows())
def test_a_workflow_fits_its_nodes(name):
    """Each input is there and of the right type, none is unknown, and each value is one that the node offers."""
    known = comfy_workflows.signatures()
    prompt = json.loads((comfy_workflows.API / f"{name}.json").read_text())
    for one in prompt.values():
        inputs, _ = known[one["class_type"]]
        own = NODES.get(one["class_type"])
        given = own.INPUT_TYPES() if own else {"required": inputs}
        assert set(given["required"]) <= set(one["inputs"]) <= set(inputs)
        for key, value in one["inputs"].items():
            if isinstance(value, list):
                assert comfy_workflows.known_type(prompt, known, value) == inputs[key] or inputs[key] == "*"
            elif own:
                kind, *facts = {**given["required"], **given.get("optional", {})}[key]
                if isinstance(kind, list):
                    assert value in kind
                elif kind in ("INT", "FLOAT"):
                    assert facts[0]["min"] <= value <= facts[0]["max"]
    used = {one["class_type"] for one in prompt.values()}
    assert used & set(NODES)


def test_the_editors_form_of_a_workflow_has_the_same_links_and_values():
    for path in comfy_workflows.EDITOR.glob("*.json"):
        drawn, prompt = json.loads(path.read_text()), json.loads((comfy_workflows.API / path.name).read_text())
        nodes = {str(one["id"]): one for one in drawn["nodes"]}
        links = {link[0]: link for link in drawn["links"]}
        assert nodes.keys() == prompt.keys()
        for number, one in prompt.items():
            sockets = {socket["name"]: socket["link"] for socket in nodes[number]["inputs"]}
            values = [value for value in nodes[number]["widgets_values"] if value != "fixed"]
            assert values == [value for value in one["inputs"].values() if not isinstance(value, list)]
            for key, value in one["inputs"].items():
                if isinstance(value, list):
                    _, source, slot, target, place, _ = links[sockets[key]]
                    assert [str(source), slot] == value
                    assert str(target) == number
                    assert nodes[number]["inputs"][place]["name"] == key


@pytest.mark.parametrize("name", comfy_workflows.workflows())
def test_a_workflow_runs(name):
    """With tiny models in place of the checkpoint, from its API form, node by node as ComfyUI does."""
    model = comfy_engine.tiny("eps")
    seen = []

    def encoded(text, clip):
        return (comfy_engine.words(len(text)),)

    def advanced(noise, guider, sampler, sigmas, latent_image):
        x = guider.sample(noise.generate_noise(latent_image), latent_image["samples"], sampler, sigmas, seed=noise.seed)
        return {"samples": x}, {"samples": x}

    class Random:
        def __init__(self, noise_seed):
            self.seed = noise_seed

        def generate_noise(self, latent):
            return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(self.seed))

    core = {
        "CheckpointLoaderSimple": lambda ckpt_name: (model, None, None),
        "CLIPTextEncode": encoded,
        "CFGGuider": lambda model, positive, negative, cfg: (comfy_engine.guider(model, positive, negative, cfg),),
        "RandomNoise": lambda noise_seed: (Random(noise_seed),),
        "EmptyLatentImage": lambda width, height, batch_size: ({"samples": torch.zeros(batch_size, 4, 8, 8)},),
        "SamplerCustomAdvanced": advanced,
        "LoadImage": lambda image: (torch.rand(1, 64, 64, 3), torch.zeros(1, 64, 64)),
        "VAEEncode": lambda pixels, vae: (picture(1),),
        "VAEDecode": lambda samples, vae: (samples["samples"][:, :3].movedim(1, -1),),
        "SaveImage": lambda images, filename_prefix: seen.append(images) or (),
        "PreviewImage": lambda images: seen.append(images) or (),
        "PreviewAny": lambda source: seen.append(source) or (),
        "PrimitiveInt": lambda value: (value,),
    }
    assert core.keys() == comfy_workflows.CORE.keys()
    prompt = json.loads((comfy_workflows.API / f"{name}.json").read_text())
    done = {}
    for number, one in prompt.items():
        inputs = {
            key: done[value[0]][value[1]] if isinstance(value, list) else value for key, value in one["inputs"].items()
        }
        kind = one["class_type"]
        done[number] = node(kind.removeprefix("SteadyFlow"), **inputs) if kind in NODES else core[kind](**inputs)
    assert seen
    for found in seen:
        assert found if isinstance(found, str) else bool(found.isfinite().all())


@in_comfyui
def test_comfyuis_own_nodes_are_as_the_workflows_take_them():
    mine = import_module("comfy_extras.nodes_custom_sampler").NODE_CLASS_MAPPINGS
    checked = set()
    for name, (inputs, outputs) in comfy_workflows.CORE.items():
        if name in mine:
            given = mine[name].INPUT_TYPES()["required"]
            assert {key: str(one[0]) for key, one in given.items()} == inputs
            assert tuple(map(str, mine[name].RETURN_TYPES)) == outputs
            checked.add(name)
    assert checked == {"CFGGuider", "RandomNoise", "SamplerCustomAdvanced"}
