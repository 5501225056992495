"""One contract for the verbs: the same words with the same meaning, each of which acts or is refused by its name."""

import functools
import inspect
import math
import typing

import pytest
import torch
from tqdm import tqdm

import steadyflow as sf
from steadyflow import editing, solvers
from steadyflow._internal import named
from steadyflow.editing.injection import Injected
from steadyflow.tasks._options import DEFAULT_NFE, Resolved

PATH = sf.VPLinear()


def mixture(path=PATH):
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], dtype=torch.float64)
    return sf.GaussianMixture(means, 0.25, labels=[0, 1, 1, 0]).denoiser(path)


class Attention(torch.nn.Module):
    """Attention over the numbers of a sample, for the ways of editing that inject."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in ("to_q", "to_k", "to_v"):
            layer = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
            layer.weight.data = torch.randn(4, 4, generator=generator, dtype=torch.float64)
            setattr(self, name, layer)
        self.basis = torch.randn(2, 4, generator=generator, dtype=torch.float64)
        self.words = torch.randn(3, 4, generator=generator, dtype=torch.float64)

    def forward(self, hidden_states):
        heads = [layer(hidden_states)[:, None] for layer in (self.to_q, self.to_k, self.to_v)]
        return torch.nn.functional.scaled_dot_product_attention(*heads)[:, 0]


class Attentive(torch.nn.Module):
    """A bounded field of two numbers over that attention."""

    classes = 3

    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.asked = 0

    def forward(self, x, time, label=None):
        self.asked += 1
        words = self.attention.words[torch.full((len(x),), 2) if label is None else label][:, None]
        tokens = x[:, :, None] * self.attention.basis + words + torch.cos(time)[:, None, None]
        return 0.5 * x + 0.5 * torch.tanh(self.attention(tokens)).mean(2)


def attentive(kind=sf.Denoiser):
    return kind(Attentive().requires_grad_(False), PATH, prediction="v_prediction", shape=(2,), null=2)


MODEL = mixture()
ATTENTIVE = attentive()
INJECTED = [f"edit {name}" for name in editing.names() if isinstance(editing.get(name), Injected)]
X = MODEL.mixture.sample(6, seed=2, label=0)
VERBS = {
    "sample": lambda m=MODEL, **o: sf.sample(m.with_condition(0), n=6, dtype=torch.float64, **o),
    "invert": lambda m=MODEL, **o: sf.invert(m.with_condition(0), X, **o),
    "reconstruct": lambda m=MODEL, **o: sf.reconstruct(m.with_condition(0), X, **o),
    "choose_solver": lambda m=MODEL, **o: sf.choose_solver(m.with_condition(0), X, **o),
    "diagnose": lambda m=MODEL, **o: sf.diagnose(m.with_condition(0), X, tolerance=1e-2, **o),
    **{
        f"edit {name}": lambda m=ATTENTIVE if f"edit {name}" in INJECTED else MODEL, name=name, **o: sf.edit(
            m, X, 1, source=0, method=name, **o
        )
        for name in editing.names()
    },
}
ALONG_FIELDS = [
    name
    for name in editing.names()
    if f"edit {name}" not in ("edit inversion", "edit direct", "edit noise-maps", *INJECTED)
]
RUNS = [name for name in VERBS if name not in ("choose_solver", "diagnose")]
OTHERS = {
    "solver": "midpoint",
    "steps": 5,
    "nfe": 30,
    "grid": "log-snr",
    "strength": 0.5,
    "t_min": 0.02,
    "t_max": 0.8,
    "seed": 5,
    "index": 3,
    "noise": "white",
    "batch_size": 2,
    "corrections": [lambda info: 0.9 * info.x],
    "callback": lambda info: None,
    "record": "all",
    "progress": None,
    "adjoint": "checkpoint",
}
NOISY = {
    "sample": "ddpm",
    "edit noise-maps": "dpmpp-sde",
    **dict.fromkeys(("invert", "reconstruct", "edit inversion", "edit direct", *INJECTED), "rex-sde"),
}
"""Solvers with which a verb draws noise, where it would not by default."""


def seen(verb, **options):
    """All that a user can see of a call: numbers, steps, trajectories, and for how many rows the model was asked."""
    batches, told = set(), []
    weight = torch.ones((), dtype=X.dtype, requires_grad=True)  # a parameter, to see how far gradients reach

    class Attended(sf.Denoiser):  # whose network is asked for a source and its edit at once
        def evaluate(self, x, t, given):
            batches.add(len(x))
            return super().evaluate(x, t, given) + 0.0 * weight

    class Watched(type(MODEL)):
        def __call__(self, x, t):
            batches.add(len(x))
            found = super().__call__(x, t)
            return sf.Prediction(found.x, found.output + 0.0 * weight, found.kind, found.alpha, found.sigma)

    model = attentive(Attended) if verb in INJECTED else Watched(MODEL.mixture, PATH)
    if "callback" in options:
        options["callback"] = lambda info: told.append(info.done)
    bar = None
    if "progress" in options:
        bar = options["progress"] = tqdm(disable=True)
        bar.update = lambda n=1: told.append("bar")
    found = VERBS[verb](model, **options)
    if isinstance(found, sf.Solution):
        trail = None if found.trajectory is None else found.trajectory.x.shape
        inner = getattr(found, "inversion", None)
        up = None if inner is None or inner.trajectory is None else inner.trajectory.x.shape
        numbers = found.x.flatten().tolist(), found.grid, found.solver, found.nfe, trail, up
        told_of = found.seed, found.index, found.noise, found.x.requires_grad
        return numbers, told_of, max(batches), len(told) > 0
    if isinstance(found, sf.Choice):
        return sorted(found.errors.items()), found.nfe, max(batches), len(told) > 0
    return found.measured.tolist(), found.setting.call(), max(batches), len(told) > 0


@functools.cache
def seen_without(verb, *options):
    """The same of the call that the words are compared with, which many of them share."""
    return seen(verb, **dict(options))


def test_the_words_are_typed_and_given_their_defaults_once():
    typed = list(typing.get_type_hints(sf.Options))
    assert typed == [name for name in Resolved.__dataclass_fields__ if name != "given"]
    assert set(OTHERS) == set(typed)
    for verb in (sf.sample, sf.invert, sf.reconstruct, sf.edit, sf.diagnose, sf.choose_solver):
        *named, options = inspect.signature(verb).parameters.values()
        assert options.kind is inspect.Parameter.VAR_KEYWORD
        assert "Unpack[Options]" in str(options.annotation)
        assert not {parameter.name for parameter in named} & set(typed)
        assert all(parameter.annotation is not inspect.Parameter.empty for parameter in named)
        assert not any(str(parameter.annotation) == "Any" for parameter in named)


@pytest.mark.parametrize("word", OTHERS)
@pytest.mark.parametrize("verb", VERBS)
def test_every_word_acts_or_is_refused_by_its_name(verb, word):
    base = {}
    if verb not in ("sample", "diagnose", "choose_solver") and word == "nfe":
        base = {"nfe": 24}
    if word in ("seed", "index", "noise") and verb in NOISY:
        base = {"solver": NOISY[verb], "nfe": 24}
    value = OTHERS[word]
    if word == "solver" and verb == "edit noise-maps":
        value = "dpmpp-2m-sde"
    said = ""
    try:
        changed = seen(verb, **{**base, word: value})
    except sf.InputError as error:
        said = str(error)
    assert said.startswith((f"{word}:", f"solver {value!r}")) if said else changed != seen_without(verb, *base.items())


@pytest.mark.parametrize("verb", VERBS)
def test_steps_and_evaluations_together_are_an_error_everywhere(verb):
    with pytest.raises(sf.InputError, match=r"steps.*(not both|has no meaning)"):
        VERBS[verb](steps=4, nfe=12)


@pytest.mark.parametrize("verb", VERBS)
def test_a_word_that_does_not_exist_is_refused_with_the_nearest(verb):
    with pytest.raises(sf.UnknownNameError, match="did you mean 'strength'"):
        VERBS[verb](strenght=0.5)


def test_a_guidance_in_the_wrong_verb_is_led_to_the_right_one():
    with pytest.raises(sf.UnknownNameError, match="source_guidance"):
        sf.invert(MODEL, X, guidance=2.0)


@pytest.mark.parametrize("verb", RUNS)
def test_without_steps_or_evaluations_a_way_costs_the_same_in_every_verb(verb):
    found = VERBS[verb]()
    ways = 1 if verb in ("sample", "invert", "edit flow-edit") else 3 if verb in INJECTED else 2
    pairs = 2 if verb == "edit flow-edit" else 1  # two fields per evaluation
    assert ways * DEFAULT_NFE * pairs * 0.9 < found.nfe <= ways * DEFAULT_NFE * pairs


@pytest.mark.parametrize("smoothing", [None, sf.denoisers.Smoothing(0.1, pairs=2)])
@pytest.mark.parametrize("verb", RUNS)
def test_evaluations_count_what_the_network_is_asked(verb, smoothing):
    asked = [0]
    plain = mixture()

    def net(x, t, label=None):
        asked[0] += 1
        model = plain if label is None else plain.with_condition(label)
        return model(x, float(t[0])).output

    model = sf.Denoiser(net, PATH, prediction="v_prediction", shape=(2,), null=0)
    if verb not in INJECTED:
        found = VERBS[verb](model.with_smoothing(smoothing), nfe=24)
        assert found.nfe == asked[0]
    elif smoothing is None:  # beside its source, an edit is asked in the same call
        model = attentive()
        found = VERBS[verb](model, nfe=24)
        assert found.nfe == model.net.asked + found.inversion.nfe


@pytest.mark.parametrize("verb", RUNS)
def test_a_seed_is_told_only_where_noise_was_drawn_from_it(verb):
    method = editing.get(verb.removeprefix("edit ")) if verb.startswith("edit") else None
    if method is not None and "seed" in method.refuses:
        assert not method.draws_noise
        assert VERBS[verb]().seed is None
        return
    found = VERBS[verb](seed=4)
    draws = verb == "sample" or (method is not None and method.draws_noise)
    if verb != "invert":  # an inversion keeps the seed for the corrections of the way back
        assert found.seed == (4 if draws else None)
    if verb == "sample":
        assert sf.sample(MODEL, x=X, solver="ddim").seed is None


def test_both_guidances_are_named_and_mean_the_same_everywhere():
    """guidance: on the way to data; source_guidance: on the way up."""
    model = MODEL.with_condition(0)
    inversion = sf.invert(model, X, source_guidance=1.5, steps=8)
    assert inversion.guidance == 1.5
    decoded = inversion.decode(guidance=3.0)
    there_and_back = sf.reconstruct(model, X, source_guidance=1.5, guidance=3.0, steps=8)
    assert torch.equal(there_and_back.x, decoded.x)
    edited = sf.edit(MODEL, X, 0, source=0, source_guidance=1.5, guidance=3.0, steps=8)
    assert torch.equal(edited.x, decoded.x)
    diagnosed = sf.diagnose(model, X, source_guidance=1.5, guidance=3.0, steps=8)
    assert torch.equal(diagnosed.reconstruction, decoded.x)
    drawn = sf.sample(model, x=inversion.latent, guidance=3.0, solver="ees25", steps=8, end="path")
    assert torch.equal(drawn.x, decoded.x)
    strong = MODEL.with_guidance(2.0)
    named = sf.edit(MODEL, X, 1, source=0, guidance=2.0, source_guidance=2.0)
    assert torch.equal(sf.edit(strong, X, 1, source=0).x, named.x)


PATHS = [sf.VPLinear(), sf.VPCosine(), sf.VE(), sf.RectifiedFlow(), sf.Tabulated.scaled_linear()]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "ees25", "ddpm"])
def test_what_sample_returns_is_data(path, solver):
    """Of modes much finer than the path's last noise: no noise is left, and the evaluations are those asked for."""
    std = 0.1 * path.sigma(path.t_min) / path.alpha(path.t_min) or 0.01
    model = sf.GaussianMixture.grid(3, std=std).denoiser(path)
    grid = "karras" if isinstance(path, sf.VE) else "quadratic"
    options = {"n": 400, "solver": solver, "nfe": 40, "grid": grid, "dtype": torch.float64}
    found, state = sf.sample(model, **options), sf.sample(model, end="path", **options)
    cost = solvers.get(solver).properties.evaluations
    assert all(40 - cost < one.nfe <= 40 for one in (found, state))

    def off(x):
        return (torch.cdist(x, model.mixture.means).amin(1).median() / std).item()

    assert off(found.x) < 1.3  # 1.18 spreads are the median of exact samples
    if path.sigma(path.t_min) > 0.0:
        assert found.grid.clean
        assert off(state.x) > 5.0
        seen = sf.sample(model, record="all", **options).trajectory.x  # the last but one is the state at the path's end
        torch.testing.assert_close(model(seen[-2], found.grid.times[-1]).x0, found.x)


def test_one_step_is_one_evaluation_read_as_data():
    found = sf.sample(MODEL, n=3, steps=1, solver="ddim", dtype=torch.float64, record="all")
    assert found.nfe == found.grid.steps == 1
    torch.testing.assert_close(found.x, MODEL(found.trajectory.x[0], PATH.t_max).x0)


def test_a_grid_of_the_callers_is_followed_and_the_reading_comes_on_top():
    times = sf.Grid((1.0, 0.5, 0.1))
    assert sf.sample(MODEL, n=2, solver="ddim", grid=times).nfe == 3
    assert sf.sample(MODEL, n=2, solver="ddim", grid=times, end="path").nfe == 2
    with pytest.raises(sf.InputError, match="end: got 'noise'"):
        sf.sample(MODEL, n=2, end="noise")
    for word, value in (("steps", 4), ("nfe", 12), ("strength", 0.5), ("t_min", 0.2), ("t_max", 0.8)):
        with pytest.raises(sf.InputError, match=f"{word}: only valid with a named grid"):
            sf.sample(MODEL, n=2, grid=times, **{word: value})


def test_a_solution_of_any_verb_is_saved_and_read_again(tmp_path):
    for verb in RUNS:
        found = VERBS[verb](nfe=24)
        if verb in ("invert",):
            continue  # saved with more: see test_tasks
        found.save(tmp_path / "solution.safetensors")
        again = sf.Solution.load(tmp_path / "solution.safetensors")
        assert torch.equal(again.x, found.x)
        for name in ("solver", "grid", "step", "nfe", "seed", "index", "noise", "rejected", "reason"):
            assert getattr(again, name) == getattr(found, name), name
    assert math.isfinite(found.nfe)


def test_what_a_given_inversion_has_fixed_is_refused():
    inversion = sf.invert(MODEL.with_condition(0), X, steps=6)
    again = sf.edit(MODEL, None, 1, inversion=inversion, guidance=2.0)
    assert torch.equal(again.x, inversion.decode(MODEL.with_condition(1), guidance=2.0).x)
    assert again.distance.isnan().all()
    for options in ({"steps": 4}, {"source": 0}, {"source_guidance": 2.0}, {"seed": 1}, {"grid": "uniform"}):
        with pytest.raises(sf.InputError, match=f"{next(iter(options))}: the inversion that is given has fixed it"):
            sf.edit(MODEL, None, 1, inversion=inversion, **options)
    with pytest.raises(sf.InputError, match="smooth"):
        sf.edit(MODEL, None, 1, inversion=inversion, smoothing=0.1)
    with pytest.raises(sf.InputError, match="inversion: method 'flow-edit' cannot honour it"):
        sf.edit(MODEL, X, 1, inversion=inversion, method="flow-edit")
    with pytest.raises(sf.InputError, match="smooth: only valid with smoothing"):
        sf.edit(MODEL, X, 1, source=0, smooth="generation")


def test_methods_of_editing_are_objects_with_options_of_their_own():
    for name in editing.names():
        method = editing.get(name)
        assert editing.get(method) is method
        assert method.spec()["name"] == name
    with pytest.raises(sf.UnknownNameError, match="did you mean 'flow-edit'"):
        sf.edit(MODEL, X, 1, source=0, method="flowedit")
    with pytest.raises(sf.InputError, match=r"no option 'share'; it takes average$"):
        editing.get("flow-edit", share=0.5)
    for wrong in ((0.5,), (0.7, 0.2), "ab", 3):
        with pytest.raises(sf.InputError, match="window"):
            editing.RFInversion(window=wrong)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
def test_edits_along_a_field_run_on_every_solver_of_flow_coordinates(solver):
    same = sf.edit(MODEL, X, 0, source=0, method="flow-edit", solver=solver, steps=6)
    torch.testing.assert_close(same.x, X)
    seen = []
    moved = sf.edit(
        MODEL, X, 1, source=0, method="rf-inversion", solver=solver, steps=6, callback=seen.append, record=2
    )
    assert len(seen) == 12
    assert moved.trajectory is not None
    with pytest.raises(sf.InputError, match="follows a field of flow coordinates"):
        sf.edit(MODEL, X, 1, source=0, method="flow-edit", solver="dpmpp-2m")
    whole = sf.edit(MODEL, X, 1, source=0, method="flow-edit", solver=solver, steps=6)
    parts = sf.edit(MODEL, X, 1, source=0, method="flow-edit", solver=solver, steps=6, batch_size=4)
    torch.testing.assert_close(whole.x, parts.x)


GIVEN = sf.Grid((0.9, 0.6, 0.3, 0.1, 0.02))
CLEAN = sf.Grid(GIVEN.times, clean=True)


def along(function, x, seed=0):
    """The directional derivative of a sum of squares, by autograd and by a central difference."""
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf).square().sum(), leaf)
    h = 1e-5
    difference = function(x + h * u).square().sum() - function(x - h * u).square().sum()
    return (gradient * u).sum().item(), difference.item() / (2 * h)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("method", editing.names())
def test_gradients_of_an_edit_are_those_of_the_edit(method, mask):
    options = {"mask": torch.tensor([[1.0, 0.3]])} if mask else {}
    if mask and "mask" in sf.editing.get(method).refuses:
        return
    options |= {"solver": "dpmpp-2m-sde"} if method == "noise-maps" else {}
    model = ATTENTIVE if f"edit {method}" in INJECTED else MODEL
    by_autograd, by_difference = along(lambda x: sf.edit(model, x, 1, source=0, steps=4, method=method, **options).x, X)
    assert by_autograd == pytest.approx(by_difference, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in ("choose_solver", "diagnose")])
def test_whether_a_grid_given_is_clean_does_not_count_as_the_verbs_say_how_they_end(verb):
    if "grid" in (editing.get(verb[5:]).refuses if verb.startswith("edit") else ()):
        return
    plain, clean = VERBS[verb](grid=GIVEN), VERBS[verb](grid=CLEAN)
    assert torch.equal(plain.x, clean.x)
    assert plain.grid == clean.grid
    assert plain.finished
    assert clean.finished


def test_the_end_that_was_asked_for_is_the_end_whatever_the_grid():
    model = MODEL.with_condition(0)
    at_path = sf.sample(model, n=3, grid=CLEAN, end="path")
    assert not at_path.grid.clean
    assert torch.equal(at_path.x, sf.sample(model, n=3, grid=GIVEN, end="path").x)
    assert sf.choose_solver(model, X, grid=CLEAN).errors == sf.choose_solver(model, X, grid=GIVEN).errors
    x = torch.randn(3, 2, dtype=torch.float64)
    carried = sf.FlowMap(model, CLEAN, "ddim").carry(x, torch.ones_like(x))
    assert len(carried.times) == len(carried.norms) == CLEAN.steps + 1


@pytest.mark.parametrize("derivative", [
    lambda m, x: sf.FlowMap(m, GIVEN, "ddim").jvp(x, torch.ones_like(x)),
    lambda m, x: sf.FlowMap(m, GIVEN, "ddim").vjp(x, torch.ones_like(x)),
    lambda m, x: sf.jacobians.singular_values(sf.FlowMap(m, GIVEN, "ddim"), x),
    lambda m, x: sf.log_likelihood(m, x),
    lambda m, x: sf.sample(m, x=x, steps=12, corrections=[sf.corrections.Escape(remaining=2, back=3)]),
    lambda m, x: sf.sample(m, x=x, steps=12, corrections=[sf.corrections.Stein()]),
    lambda m, x: sf.diagnose(m, x, steps=6),
])  # fmt: skip
@pytest.mark.parametrize("size", [2, 9000])
def test_derivatives_are_refused_where_they_would_be_zero(derivative, size):
    x = torch.randn(size // 2, 2, dtype=torch.float64)
    with torch.inference_mode(), pytest.raises(sf.InputError, match="inference_mode"):
        derivative(MODEL.with_condition(0), x)


@pytest.mark.parametrize("size", [2, 20000])
def test_weights_that_were_made_for_inference_have_derivatives_too(size):
    """As programs load them that only generate: nothing can be kept of them for a way back."""
    with torch.inference_mode():
        kept = torch.tensor([[0.5, -0.3], [0.2, 0.9]], dtype=torch.float64)
    x = torch.randn(size // 2, 2, dtype=torch.float64)
    found = [
        sf.FlowMap(sf.Denoiser(lambda x, t, w=w: torch.tanh(x @ w), sf.VPCosine(), prediction="sample"), GIVEN, "ddim")
        .jvp(x, torch.ones_like(x))
        for w in (kept, kept.clone())
    ]  # fmt: skip
    torch.testing.assert_close(*found)
    assert float(found[0].abs().max()) > 0.0


@pytest.mark.parametrize("path", [sf.VPLinear(), sf.RectifiedFlow()], ids=["vp", "flow"])
@pytest.mark.parametrize("method", ALONG_FIELDS)
def test_whoever_looks_at_an_edit_along_a_field_sees_the_datas_path(method, path):
    model, told = mixture(path), []
    options = {"grid": sf.Grid((0.9, 0.6, 0.3, 0.1, 0.02)), "record": "all"}
    found = sf.edit(model, X, 1, source=0, method=method, callback=told.append, **options)
    assert found.trajectory.times == found.grid.times
    assert torch.equal(found.trajectory.x[-1], found.x)
    down = told[-found.grid.steps :]
    assert [info.t for info in down] == list(found.grid.times[1:])
    assert torch.equal(down[-1].x, found.x)
    assert down[-1].grid == found.grid


def test_an_adaptive_edit_along_a_field_tells_the_times_it_took():
    found = sf.edit(MODEL, X, 1, source=0, method="flow-edit", solver="dopri5", steps=sf.PIDController(rtol=1e-3))
    assert found.finished
    assert found.grid.steps > 2
    assert found.grid.times[-1] == PATH.t_min
    with pytest.raises(sf.InputError, match="steps: this method counts its steps"):
        sf.edit(MODEL, X, 1, source=0, method="rf-inversion", solver="dopri5", steps=sf.PIDController())


def test_options_of_a_method_are_written_behind_its_name():
    for text, method in (
        ("uni-edit:omega=3,measure=signed", editing.UniEdit(omega=3.0, measure="signed")),
        ("uni-edit: empty = false , first=True", editing.UniEdit(empty=False, first=True)),
        ("rf-inversion:window=0/0.4,eta=.5", editing.RFInversion(eta=0.5, window=(0.0, 0.4))),
        ("dvrf:rate=published,progressive=false", editing.DVRF(rate="published", progressive=False)),
        ("dvrf:rate=0.1,average=2", editing.DVRF(rate=0.1, average=2)),
        ("flow-opt:iterations=3,rate=1e-2", editing.ByFlowOpt(3, 0.01)),
        ("inversion", editing.ByInversion()),
    ):
        assert editing.get(text) == method
        assert type(editing.get(text).spec()) is dict
    assert editing.get("uni-edit:omega=3", measure="signed") == editing.UniEdit(3.0, "signed")
    written = sf.edit(MODEL, X, 1, source=0, method="uni-edit:omega=3", steps=4)
    assert torch.equal(written.x, sf.edit(MODEL, X, 1, source=0, method=editing.UniEdit(3.0), steps=4).x)
    assert written.method == "uni-edit"


@pytest.mark.parametrize(("text", "message"), [
    ("uni-edit:omega=x", "method 'uni-edit': omega: got 'x', expected a number"),
    ("uni-edit:omga=3", "method 'uni-edit': no option 'omga'; it takes omega, measure, empty, first$"),
    ("uni-edit:name=a", "method 'uni-edit': no option 'name'"),
    ("uni-edit:measure=size", "measure: got 'size', expected 'absolute' or 'signed'"),
    ("uni-edit:first=1", "method 'uni-edit': first: got '1', expected true or false"),
    ("uni-edit:omega", "NAME:OPTION=VALUE"), ("uni-edit:", "NAME:OPTION=VALUE"), ("uni-edit:omega=1,", "NAME:OPTION"),
    ("uni-edit:omega=1,omega=2", "method 'uni-edit:omega=1,omega=2': omega is given twice"),
    ("flow-opt:iterations=1.5", "method 'flow-opt': iterations: got '1.5', expected a whole number"),
    ("rf-inversion:window=0", "method 'rf-inversion': window: got '0', expected 2 values with a slash"),
    ("rf-inversion:window=0/b", "method 'rf-inversion': window: got '0/b', expected a number"),
    ("rf-inversion:eta=nan", "gamma and eta lie in"),
    ("dvrf:rate=fast", "rate: got 'fast', expected 'published', 'grid' or a positive number"),
    ("inversion:share=1", "method 'inversion': no option 'share'; it takes none"),
    ("unedit:omega=3", "unknown editing method 'unedit': did you mean 'uni-edit'"),
    (None, "unknown editing method None"), (["inversion"], "unknown editing method"),
])  # fmt: skip
def test_options_behind_a_name_that_do_not_fit_are_refused_by_name(text, message):
    with pytest.raises(sf.InputError, match=message):
        editing.get(text)


def test_an_option_is_written_once_and_of_any_type_that_has_a_text():
    with pytest.raises(sf.InputError, match="method 'uni-edit:omega=3': omega is given twice"):
        editing.get("uni-edit:omega=3", omega=2.0)
    for text, kind, value in (
        ("none", float | None, None), ("0.5", float | None, 0.5), ("3", int | float, 3), ("a", str | int, "a"),
        ("4", str | int, 4), ("1/2/3", tuple[int, ...], (1, 2, 3)), ("2", typing.Literal[1, 2], 2),
        ("true", bool | str, True),
    ):  # fmt: skip
        found = named.value_of(text, kind)
        assert found == value
        assert type(found) is type(value)
    with pytest.raises(ValueError, match="expected a whole number or none"):
        named.value_of("a", int | None)
    with pytest.raises(ValueError, match="which has no text; give it in Python"):
        named.value_of("a", dict)


def test_a_choice_leaves_no_trace_in_the_records_of_corrections():
    model, stein = MODEL.with_condition(0), sf.corrections.Stein()
    found = sf.sample(model, n=4, nfe=24, solver="auto", corrections=[stein], dtype=torch.float64)
    alone = sf.corrections.Stein()
    sf.sample(model, n=4, solver=found.solver, grid=found.grid, corrections=[alone], dtype=torch.float64)
    assert len(stein.record.coefficients) == len(alone.record.coefficients)


def test_a_choice_is_made_for_the_guidance_of_the_way_back():
    guided = MODEL.with_condition(0)
    chosen = sf.reconstruct(guided, X, solver="auto", nfe=24, guidance=3.0, source_guidance=1.0)
    assert "edit error" in chosen.reason
    expected = sf.choose_solver(guided, X, nfe=24, target=guided.with_guidance(3.0))
    assert chosen.reason == expected.reason


def test_a_choice_over_times_that_are_given_counts_no_evaluations():
    for found in (sf.sample(MODEL.with_condition(0), n=4, solver=sf.Auto(), grid=GIVEN, dtype=torch.float64),
                  sf.invert(MODEL.with_condition(0), X, solver="auto", grid=GIVEN)):  # fmt: skip
        assert "over the same times" in found.reason
    assert "each way" not in sf.sample(MODEL.with_condition(0), n=4, solver=sf.Auto(), nfe=16).reason


@pytest.mark.parametrize(("stages", "solver"), [(1, "ddim"), (4, "rk4")])
def test_the_evaluations_of_an_escape_are_those_of_the_network(stages, solver):
    calls = 0

    class Counted(type(MODEL)):
        def __call__(self, x, t):
            nonlocal calls
            calls += len(x)
            return super().__call__(x, t)

    escape = sf.corrections.Escape(remaining=3, back=5, rounds=1, threshold=1e-6, solver=solver)
    run = sf.sample(Counted(MODEL.mixture, PATH).with_condition(0), n=4, steps=10, solver="ddim", corrections=[escape])
    products = 4 * 2 * escape.products  # each transposed product counts as two, and calls the network no more
    assert calls - 4 * run.nfe == escape.record.evaluations - products == 4 * (1 + 5 * stages)


def test_what_is_no_number_of_evaluations_and_no_seed_is_refused_by_its_name():
    model = MODEL.with_condition(0)
    for options, message in (
        ({"nfe": 0}, "nfe: got 0"),
        ({"nfe": 0, "solver": "auto"}, "nfe: got 0"),
        ({"nfe": 10.5}, "nfe: got 10.5"),
        ({"seed": None}, "seed: got None"),
        ({"seed": 1.7}, "seed: got 1.7"),
        ({"corrections": sf.corrections.Relaxed()}, "corrections: got Relaxed"),
        ({"t_min": 0.9, "t_max": 0.1, "steps": sf.PIDController(), "solver": "dopri5"}, "expected t_min < t_max"),
        ({"t_min": 0.5, "t_max": 0.5, "steps": sf.PIDController(), "solver": "dopri5"}, "expected t_min < t_max"),
    ):
        with pytest.raises(sf.InputError, match=message):
            sf.invert(model, X, **options)


@pytest.mark.parametrize("solver", [n for n in solvers.names() if not n.startswith("rex-s")])
def test_a_run_of_any_solver_is_saved(solver, tmp_path):
    found = sf.sample(MODEL.with_condition(0), n=2, steps=5, solver=solver, dtype=torch.float64)
    found.save(tmp_path / "run.safetensors")
    assert torch.equal(sf.Solution.load(tmp_path / "run.safetensors").x, found.x)
