"""Gradients through runs: against plain back-propagation, against differences, and what is refused."""

import gc
import itertools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import steadyflow as sf
import tuned_solvers
from combinations import every_second
from steadyflow import corrections, editing, solvers
from steadyflow.solvers import registry

DIM, WIDTH = 4, 3
PATHS = {"vp": (sf.VPLinear(), "epsilon"), "flow": (sf.RectifiedFlow(), "flow"), "ve": (sf.VE(), "sample")}
ADJOINTS = {
    "checkpoint": "checkpoint",
    "sqrt": sf.Adjoint("checkpoint", every="sqrt"),
    "reversible": "reversible",
    "second": sf.Adjoint("checkpoint", order=2),
    "reversible second": sf.Adjoint("reversible", order=2),
}
KEPT = [ADJOINTS[kind] for kind in ("checkpoint", "sqrt", "second")]
RECOVERED = [ADJOINTS[kind] for kind in ("reversible", "reversible second")]
AUTO = solvers.get("rex-midpoint", coordinates="flow", coupling="auto")


class Net(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.enter, self.leave = nn.Linear(DIM + 1 + WIDTH, 16, dtype=dtype), nn.Linear(16, DIM, dtype=dtype)

    def forward(self, x, t, c=None):
        c = torch.zeros(len(x), WIDTH, dtype=x.dtype) if c is None else c
        t = torch.log1p(t)[:, None].expand(len(x), 1).to(x)
        return self.leave(torch.tanh(self.enter(torch.cat([x, t, c.to(x)], 1))))


@pytest.fixture(autouse=True)
def _same_numbers_everywhere():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of solvers that are not exactly reversible
        yield


def leaves(dtype=torch.float64):
    """What a run depends on: the start, what a condition is computed from, the null condition, and a scale."""
    make = torch.Generator().manual_seed(1)
    shapes = (3, DIM), (3, WIDTH), (1, WIDTH)
    found = [torch.randn(shape, generator=make, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    return [*found, torch.tensor([1.5, 2.0, 0.5], dtype=dtype, requires_grad=True)]


def gradient(net, path, adjoint, run, dtype=torch.float64):
    """The gradient of a loss of a run's end, and of what it has recorded, with respect to everything."""
    x, base, null, scale = given = leaves(dtype)
    schedule, kind = PATHS[path]
    model = sf.Denoiser(net, schedule, prediction=kind, shape=(DIM,), condition=torch.tanh(base), null=null)
    found = run(model.with_guidance(scale), x * (80.0 if path == "ve" else 1.0), adjoint)
    loss = found.x.pow(3).sum() / found.x.detach().abs().max() ** 3
    if found.trajectory is not None:
        loss = loss + found.trajectory.x.sin().sum()
    parts = torch.autograd.grad(loss, [*given, *net.parameters()])
    return found.x.detach(), torch.cat([part.flatten() for part in parts])


def sampling(solver, **options):
    return lambda model, x, adjoint: sf.sample(model, x=x, solver=solver, adjoint=adjoint, **options)


def errors(net, path, adjoints, run, plain=None):
    """The errors of adjoints' gradients against plain back-propagation, which is done once for all."""
    x, expected = plain or gradient(net, path, "none", run)
    found = []
    for adjoint in adjoints:
        y, grad = gradient(net, path, adjoint, run)
        assert torch.equal(x, y), "an adjoint changes no result"
        found.append(((grad - expected).norm() / expected.norm()).item())
    return found


def error(net, path, adjoint, run):
    return errors(net, path, [adjoint], run)[0]


@pytest.mark.parametrize(("name", "path"), every_second(registry.built_in(), ["vp", "flow"]))
def test_states_that_are_kept_give_the_gradient_of_every_solver(name, path):
    net, run = Net(), sampling(name, steps=5)
    try:
        plain = gradient(net, path, "none", run)
    except (sf.SingularTimeError, sf.ConvergenceError):
        run = sampling(name, steps=5, t_max=0.4, t_min=0.05)  # smaller steps, where the solver is regular
        plain = gradient(net, path, "none", run)
    assert max(errors(net, path, KEPT, run, plain)) < 1e-14


@pytest.mark.parametrize("name", ["ddim", "ees25", "dpmpp-2m", "ddpm", "rex-midpoint", "belm"])
def test_states_that_are_kept_give_the_gradient_on_a_path_without_a_bound(name):
    assert max(errors(Net(), "ve", KEPT, sampling(name, steps=5))) < 1e-13


EXACT = {
    "reversible-heun": {},
    "alf": {},
    "belm": {},
    "edict": {"coupling": "auto"},
    "bdia": {"coupling": "auto"},
    **{
        name: {"coordinates": "flow", "coupling": "auto"}
        for name in registry.built_in()
        if name.startswith("rex-") and name not in ("rex-sde", "rex-shark")
    },
}


@pytest.mark.parametrize("path", ["vp", "flow"])
@pytest.mark.parametrize("name", EXACT)
def test_states_that_are_recovered_give_the_gradient_of_exactly_reversible_solvers(name, path):
    run = sampling(solvers.get(name, **EXACT[name]), steps=12, t_max=0.9, end="path")
    assert max(errors(Net(), path, RECOVERED, run)) < 1e-10


def test_every_exact_inverse_is_among_them_or_has_a_reason():
    exact = {name for name in registry.built_in() if registry.get(name).properties.inverse == "exact"}
    assert exact - set(EXACT) == {"rex-sde", "rex-shark", "implicit-midpoint"}  # which grow, or iterate
    for name in ("rex-sde", "rex-shark"):
        assert error(Net(), "vp", "reversible", sampling(name, steps=5, end="path", t_max=0.8)) < 1e-4


@pytest.mark.parametrize("name", registry.built_in())
def test_states_are_recovered_or_it_is_said_why_not(name):
    found = registry.get(name).properties
    able = (found.inverse == "exact" and found.evaluations is not None) or (
        found.inverse == "approximate" and found.states == 1
    )
    run = sampling(name, steps=4, t_max=0.4, end="path")
    if able:
        gradient(Net(), "vp", "reversible", run)
        return
    with pytest.raises(sf.InputError, match=f"cannot recover the states of solver '{name}'.*use adjoint='checkpoint'"):
        gradient(Net(), "vp", "reversible", run)


def test_an_inexact_inverse_tells_its_error_which_falls_with_the_steps():
    errors = []
    for steps in (10, 40):
        adjoint = sf.Adjoint("reversible")
        run = sampling("ees25", steps=steps, t_max=0.9, end="path")
        errors.append((error(Net(), "flow", adjoint, run), adjoint.record.drift[-1]))
    (coarse, drift), (fine, fine_drift) = errors
    assert fine < coarse / 50
    assert fine_drift < drift / 50
    assert all(found < 10.0 * told for found, told in errors)
    warnings.simplefilter("always")
    with pytest.warns(UserWarning, match="states recovered by solver 'ddim' are off by up to"):
        gradient(Net(), "vp", sf.Adjoint("reversible", tolerance=1e-4), sampling("ddim", steps=4))


VERBS = {
    "decode": lambda m, x, adjoint: sf.invert(m, x, solver=AUTO, steps=4, adjoint=adjoint).decode(adjoint=adjoint),
    "reconstruct": lambda m, x, adjoint: sf.reconstruct(m, x, solver=AUTO, steps=4, adjoint=adjoint),
    "adaptive": sampling("heun", steps=sf.PIDController(rtol=1e-2, atol=1e-2)),
    "batches": sampling(AUTO, steps=4, batch_size=2),
    "recorded": sampling("belm", steps=7, record=3, end="path", t_max=0.9),
    "relaxed": sampling(AUTO, steps=5, corrections=[corrections.Relaxed(1.05)]),
    "moments": sampling(AUTO, steps=5, corrections=[corrections.MomentMatching(0.7)]),
    "restart": sampling(AUTO, steps=5, corrections=[corrections.Restart(remaining=1, back=2)]),
    "escape": sampling(AUTO, steps=5, corrections=[corrections.Escape(remaining=1, back=2, threshold=0.01)]),
    **{
        f"edit {name}": lambda m, x, adjoint, name=name: sf.edit(
            m, x, m.condition * 2.0, method=name, steps=4, adjoint=adjoint
        )
        for name in editing.names()
        if "adjoint" not in editing.get(name).refuses
    },
}


@pytest.mark.parametrize("verb", VERBS)
def test_gradients_pass_through_every_verb_and_all_that_acts_in_it(verb):
    exact = verb in ("decode", "reconstruct", "batches", "relaxed", "moments", "restart", "escape")
    found = errors(Net(), "flow", [*KEPT, "reversible"] if exact else KEPT, VERBS[verb])
    assert max(found[:3]) < 1e-12
    assert max(found) < 1e-10


def test_a_mask_holds_recorded_states_and_passes_their_gradients_on():
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.5]], dtype=torch.float64)

    def run(model, x, adjoint):
        return sf.edit(model, x, model.condition * 2.0, steps=4, mask=mask, adjoint=adjoint)

    assert error(Net(), "flow", "checkpoint", run) < 1e-13


def test_corrections_keep_one_record_of_a_run_and_act_on_its_trainable_tensors():
    weight = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    matching = corrections.MomentMatching(0.7)
    seen = []
    model = sf.Denoiser(Net(), sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
    grads, noted = [], []
    for adjoint in ("none", "checkpoint", "reversible"):
        matching.record.factors.clear()
        seen.clear()
        acting = [matching, lambda info: info.x * weight]
        x = leaves()[0]
        how = {"solver": AUTO, "steps": 5, "corrections": acting, "callback": lambda info: seen.append(info.done)}
        sf.sample(model, x=x, adjoint=adjoint, **how).x.sum().backward()
        assert seen == [1, 2, 3, 4, 5]
        noted.append([level for level, _ in matching.record.factors])
        grads.append(weight.grad.item())
        weight.grad = None
    assert noted[0] == noted[1] == noted[2]
    assert noted[0]
    assert grads[1] == pytest.approx(grads[0], rel=1e-13)
    assert grads[2] == pytest.approx(grads[0], rel=1e-10)


def test_tuned_solvers_have_gradients():
    run = sampling(tuned_solvers.sampler(sf.RectifiedFlow()))
    assert max(errors(Net(), "flow", KEPT, run)) < 1e-14
    with pytest.raises(sf.InputError, match="cannot recover the states of solver 'tuned'"):
        gradient(Net(), "flow", "reversible", run)
    solver = tuned_solvers.sampler(sf.RectifiedFlow())
    own = solver.own_grid(sf.RectifiedFlow())
    times = torch.tensor(own.times, dtype=torch.float64, requires_grad=True)
    model = sf.Denoiser(Net(), sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
    with pytest.raises(sf.InputError, match="grid: solver 'tuned' has its own times"):
        sf.sample(model, n=1, solver=solver, grid=sf.Grid(times, own.clean), adjoint="checkpoint")


def along(loss, values, direction, step=1e-4):
    """The derivative in a direction by central differences of sixth order."""
    there = step * direction
    return sum(c * (loss(values + n * there) - loss(values - n * there)) for n, c in _SIXTH) / step


def differences(loss, values, step=1e-4):
    """The gradient of a function by the same."""
    return torch.stack([along(loss, values, unit, step) for unit in torch.eye(len(values), dtype=values.dtype)])


_SIXTH = ((1, 0.75), (2, -0.15), (3, 1 / 60))
TIMES = torch.tensor([0.9, 0.75, 0.5, 0.3, 0.12], dtype=torch.float64)
DIRECTIONS = torch.randn(2, len(TIMES), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
"""Two, in which any error of a gradient shows: one that is orthogonal to both by chance is a set of measure zero."""
PLAIN = [name for name in registry.built_in() if not registry.get(name).properties.stochastic]


@pytest.mark.parametrize(("name", "ends"), every_second(PLAIN, [("vp", "path"), ("flow", "clean")]))
def test_times_of_a_grid_have_the_gradient_that_differences_show(name, ends):
    path, end = ends
    schedule, kind = PATHS[path]
    x, base, null, scale = (leaf.detach() for leaf in leaves())
    model = sf.Denoiser(Net().requires_grad_(False), schedule, kind, condition=base, null=null, guidance=scale)

    def run(times, adjoint=None):
        found = sf.sample(model, x=x, solver=name, grid=sf.Grid(times), end=end, adjoint=adjoint, record=2)
        return found.x.tanh().sum() + found.trajectory.x.sin().sum()

    times = TIMES.clone().requires_grad_()
    run(times, "checkpoint").backward()
    for direction in DIRECTIONS:
        expected = along(run, TIMES, direction)
        assert (times.grad @ direction - expected).abs() < 1e-6 * times.grad.norm()


def test_times_of_a_way_there_and_back_and_of_the_first_noise_count():
    model = sf.Denoiser(Net(), sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
    x = leaves()[0].detach()

    def drawn(times, adjoint=None):
        return sf.sample(model, n=3, dtype=torch.float64, solver="heun", grid=sf.Grid(times), adjoint=adjoint).x.sum()

    def returned(times, adjoint=None):
        how = {"solver": "heun", "grid": sf.Grid(times), "adjoint": adjoint, "batch_size": 2}
        return sf.reconstruct(model, x, **how).x.sin().sum()

    for run, adjoint in itertools.product((drawn, returned), ("checkpoint", sf.Adjoint(every=2))):
        times = TIMES.clone().requires_grad_()
        run(times, adjoint).backward()
        with torch.no_grad():
            torch.testing.assert_close(times.grad, differences(run, TIMES), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp-2m-sde", "rex-sde", "seeds-2"])
def test_addressed_noise_makes_the_gradient_of_a_stochastic_run_exact(name):
    model = sf.Denoiser(Net(), sf.VPLinear(), shape=(DIM,))

    def run(z, adjoint=None):
        found = sf.sample(model, x=z.view(2, DIM), solver=name, steps=5, t_max=0.6, seed=3, adjoint=adjoint)
        return found.x.tanh().sum()

    z = torch.linspace(-1.0, 1.0, 2 * DIM, dtype=torch.float64).requires_grad_()
    run(z, "checkpoint").backward()
    with torch.no_grad():
        torch.testing.assert_close(z.grad, differences(run, z.detach(), 1e-3), rtol=1e-8, atol=1e-8)


def held(adjoint, steps, solver=AUTO):
    """How many tensors of the state's shape are alive between a run and its way back."""
    net = Net(torch.float32)
    model = sf.Denoiser(net, sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
    x = torch.randn(37, DIM, requires_grad=True)
    gc.collect()
    found = sf.sample(model, x=x, solver=solver, steps=steps, adjoint=adjoint, end="path")
    storages = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for item in gc.get_objects():
            if type(item) is torch.Tensor and item.shape == x.shape:
                storages.add(item.untyped_storage().data_ptr())
    found.x.sum().backward()
    return len(storages)


def test_what_is_held_between_a_run_and_its_way_back():
    few, many = held("reversible", 10), held("reversible", 40)
    assert few == many <= 5  # the start, and both states of the end
    assert held("checkpoint", 40, "euler") - held("checkpoint", 10, "euler") == 30
    assert held(sf.Adjoint(every="sqrt"), 49, "euler") <= 12


def test_a_result_that_is_dropped_is_gone_at_once():
    """No cycle keeps a run alive until the garbage collector comes."""
    import weakref

    for adjoint in ADJOINTS.values():
        model = sf.Denoiser(Net(), sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
        x = leaves()[0]
        sf.sample(model, x=x, solver=AUTO, steps=1, adjoint=adjoint)  # torch imports a part of itself here
        gc.collect()
        gc.disable()
        try:
            found = sf.sample(model, x=x, solver=AUTO, steps=4, adjoint=adjoint, end="path")
            watched = weakref.ref(found.x)
            del found
            assert watched() is None, adjoint
        finally:
            gc.enable()


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x, t, c=None):
        return checkpoint(self.net, x, t, c, use_reentrant=False)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.drop = Net(), nn.Dropout(0.3)

    def forward(self, x, t, c=None):
        return self.drop(self.net(self.drop(x), t, c))


@pytest.mark.parametrize("kind", ADJOINTS)
def test_networks_that_are_checkpointed_compiled_or_drop(kind):
    run = sampling(AUTO, steps=4)
    assert error(Checkpointed(), "flow", ADJOINTS[kind], run) < 1e-10
    compiled = torch.compile(Net(), backend="aot_eager")
    assert error(compiled, "flow", ADJOINTS[kind], run) < 1e-10

    def drawn(model, x, adjoint):
        torch.manual_seed(4)
        found = sampling("heun", steps=4)(model, x, adjoint)
        torch.rand(3)
        return found

    if "reversible" in kind:
        with pytest.raises(sf.InputError, match="draws random numbers"):
            error(Dropping(), "flow", ADJOINTS[kind], sampling(AUTO, steps=4))
    else:
        assert error(Dropping(), "flow", ADJOINTS[kind], drawn) < 1e-13


def test_autocast_is_as_it_was():
    """In half precision the way back rounds as the run did: without its context the error would be that of the type."""
    net = Net(torch.float32)

    def run(model, x, adjoint):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return sf.sample(model, x=x, solver="heun", steps=4, adjoint=adjoint)

    _, plain = gradient(net, "flow", "none", run, torch.float32)
    _, graph = gradient(net, "flow", ADJOINTS["second"], run, torch.float32)
    _, found = gradient(net, "flow", "checkpoint", run, torch.float32)
    assert torch.equal(graph, plain)
    of_start = slice(0, 3 * DIM)  # sums over steps of a weight's gradient are rounded by plain back-propagation alone
    torch.testing.assert_close(found[of_start], plain[of_start], rtol=1e-5, atol=1e-6)


def test_gradients_of_gradients():
    net = Net()
    model = sf.Denoiser(net, sf.RectifiedFlow(), prediction="flow", shape=(DIM,))

    def twice(adjoint):
        x = leaves()[0]
        found = sf.sample(model, x=x, solver=AUTO, steps=3, adjoint=adjoint)
        (slope,) = torch.autograd.grad(found.x.pow(3).sum(), x, create_graph=True)
        parts = torch.autograd.grad(slope.pow(2).sum(), [x, *net.parameters()], materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    plain = twice("none")
    for kind in ("second", "reversible second"):
        torch.testing.assert_close(twice(ADJOINTS[kind]), plain, rtol=1e-11, atol=1e-11)
    for kind in ("checkpoint", "reversible"):
        with pytest.raises(sf.InputError, match=rf"sf.Adjoint\('{kind}', order=2\)"):
            twice(kind)


def test_what_an_adjoint_cannot_be_is_refused_by_name():
    with pytest.raises(sf.UnknownNameError, match="adjoint"):
        sf.Adjoint("reversibel")
    with pytest.raises(sf.InputError, match="adjoint: got 3"):
        sf.sample(sf.Denoiser(Net(), sf.VPLinear(), shape=(DIM,)), n=1, adjoint=3)
    for options, words in (
        ({"every": 0}, "every"),
        ({"every": 1.5}, "every"),
        ({"kind": "reversible", "every": 2}, "every"),
        ({"order": 3}, "order"),
        ({"tolerance": math.nan}, "tolerance"),
    ):
        with pytest.raises(sf.InputError, match=words):
            sf.Adjoint(**options)


def test_a_gradient_that_would_be_wrong_is_refused():
    x = leaves()[0]
    how = {"x": x, "solver": "heun", "steps": 3}
    black = sf.Denoiser(lambda x, t: torch.tanh(x.detach()), sf.VPLinear(), shape=(DIM,), name="black box")
    for adjoint in (None, "none", *ADJOINTS.values()):
        with pytest.raises(sf.InputError, match="'black box' does not depend on the state"):
            sf.sample(black, **{**how, "solver": AUTO}, adjoint=adjoint)
    model = sf.Denoiser(Net(), sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
    with pytest.raises(sf.InputError, match=r"correction 'Stein': has no gradient"):
        sf.sample(model, **how, corrections=[corrections.Stein()])
    times = TIMES.clone().requires_grad_()
    for adjoint in (None, "none", ADJOINTS["second"]):
        with pytest.raises(sf.InputError, match="grid: its times require a gradient"):
            sf.sample(model, x=x, solver="heun", grid=sf.Grid(times), adjoint=adjoint)
    with torch.no_grad():
        sf.sample(model, x=x, solver="heun", grid=sf.Grid(times))
    for words, options in (
        ("corrections", {"corrections": [corrections.Relaxed(1.1)]}),
        ("stochastic|noise", {"solver": "ddpm"}),
    ):
        given = {"x": x, "solver": "heun", "grid": sf.Grid(times), "adjoint": "checkpoint", **options}
        with pytest.raises(sf.InputError, match=f"grid: .*({words})"):
            sf.sample(model, **given)
    for name in ("flow-edit", "rf-inversion", "flow-align", "dvrf"):
        with pytest.raises(sf.InputError, match="grid: its times have no gradient with this way of editing"):
            sf.edit(model, x, 0, method=name, grid=sf.Grid(times), adjoint="checkpoint")


class Changing(nn.Module):
    """A network that answers differently when it is asked again, as one with a cache of steps does."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = Net(), 0

    def forward(self, x, t, c=None):
        self.calls += 1
        return self.net(x, t, c) * (1.0 + 0.05 * self.calls)


def test_a_model_that_answers_differently_when_asked_again_is_noticed():
    model = sf.Denoiser(Changing(), sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
    found = sf.sample(model, x=leaves()[0], solver="heun", steps=4, adjoint="checkpoint")
    with pytest.raises(sf.InputError, match="has answered differently"):
        found.x.sum().backward()


def test_what_was_written_to_since_is_noticed():
    model = sf.Denoiser(Net(), sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
    x = leaves()[0]
    found = sf.sample(model, x=x, solver=AUTO, steps=4, adjoint="reversible", end="path")
    with torch.no_grad():
        found.x.clamp_(-0.1, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.x.sum().backward()


def test_parameters_have_a_gradient_with_an_adjoint_and_no_graph_without():
    net = Net()
    model = sf.Denoiser(net, sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
    how = {"n": 2, "dtype": torch.float64, "solver": "heun", "steps": 3}
    assert not sf.sample(model, **how).x.requires_grad
    for adjoint in ("none", *ADJOINTS.values()):
        fired = []
        hook = net.leave.bias.register_post_accumulate_grad_hook(lambda p, fired=fired: fired.append(p))
        sf.sample(model, **{**how, "solver": AUTO}, adjoint=adjoint).x.sum().backward()
        assert len(fired) == 1
        hook.remove()
        with torch.no_grad():
            assert not sf.sample(model, **how, adjoint=adjoint).x.requires_grad


def test_a_scale_of_guidance_may_be_a_tensor_one_for_all_or_one_for_each():
    x, base, null, scale = (leaf.detach() for leaf in leaves())
    model = sf.Denoiser(Net(), sf.RectifiedFlow(), prediction="flow", shape=(DIM,), condition=base, null=null)
    rows = [sf.sample(model.slice(i, i + 1).with_guidance(scale[i].item()), x=x[i : i + 1]).x for i in range(3)]
    each = sf.sample(model.with_guidance(scale), x=x, batch_size=2).x
    torch.testing.assert_close(each, torch.cat(rows), rtol=1e-12, atol=1e-12)
    one = model.with_guidance(torch.tensor(2.0))
    assert one.guidance == 2.0
    assert one.with_guidance(1.0).scale is None
    for wrong in (torch.ones(2, 2), torch.tensor(3), torch.tensor([math.nan])):
        with pytest.raises(sf.InputError, match="guidance"):
            model.with_guidance(wrong)
    with pytest.raises(sf.InputError, match="2 scales for a batch of 3"):
        sf.sample(model.with_guidance(scale[:2]), x=x)
    with pytest.raises(sf.InputError, match="one scale per sample is not saved"):
        sf.invert(model.with_guidance(scale), x).save("never.safetensors")


def test_a_hook_of_a_parameter_acts_on_the_whole_gradient_once():
    net, seen = Net(), []
    handle = net.leave.bias.register_hook(lambda grad: seen.append(grad) or 0.1 * grad)
    grads = []
    for adjoint in ("none", "checkpoint", "reversible", *list(ADJOINTS.values())[3:]):
        model = sf.Denoiser(net, sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
        net.leave.bias.grad = None
        sf.sample(model, x=leaves()[0], solver=AUTO, steps=4, adjoint=adjoint).x.sum().backward()
        grads.append(net.leave.bias.grad.clone())
        assert len(seen) == len(grads)
    for found in grads[1:]:
        torch.testing.assert_close(found, grads[0], rtol=1e-11, atol=1e-11)
    handle.remove()


def test_hooks_stay_with_their_parameters():
    net = Net()
    net.enter.weight.register_hook(lambda grad: grad).remove()  # which leaves an empty list of hooks
    net.leave.bias.register_hook(lambda grad: 0.1 * grad)
    model = sf.Denoiser(net, sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
    for _ in range(2):
        sf.sample(model, x=leaves()[0], solver="heun", steps=3, adjoint="checkpoint").x.sum().backward()
        assert [len(p._backward_hooks or ()) for p in net.parameters()] == [0, 0, 0, 1]


class Energy(nn.Module):
    """A network that differentiates inside."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x, t, c=None):
        with torch.enable_grad():
            y = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(self.net(y, t, c).square().sum(), y, create_graph=True)[0]


@pytest.mark.parametrize("kind", ADJOINTS)
def test_networks_that_differentiate_inside(kind):
    assert error(Energy(), "flow", ADJOINTS[kind], sampling(AUTO, steps=4)) < 1e-10


@pytest.mark.parametrize("name", ["reversible-heun", "alf", "bdia", "belm", "edict", "rex-midpoint"])
@pytest.mark.parametrize("kind", ["checkpoint", "reversible", "reversible second"])
def test_corrections_of_states_that_an_inverse_recovers(kind, name):
    def returned(info):
        return info.x * 1.003

    def in_place(info):
        info.x.mul_(1.003)

    for act in (returned, in_place):
        run = sampling(name, steps=5, t_max=0.9, end="path", corrections=[act])
        assert error(Net(), "vp", ADJOINTS[kind], run) < 1e-9


def test_black_boxes_are_noticed_behind_guidance_and_bounds():
    inner = Net()

    @torch.no_grad()
    def net(x, t, c=None):
        return inner(x, t, c)

    x, base, null, scale = leaves()
    for words in ({"clip": sf.Clip(1.0)}, {"condition": base, "null": null, "guidance": scale}):
        model = sf.Denoiser(net, sf.VPLinear(), shape=(DIM,), **words)
        for adjoint in (None, "none", *ADJOINTS.values()):
            with pytest.raises(sf.InputError, match="does not depend on the state by any graph"):
                sf.sample(model, x=x, solver="rex-midpoint", steps=3, adjoint=adjoint)


def test_other_kinds_of_differentiation_are_refused_by_name():
    model = sf.Denoiser(Net().requires_grad_(False), sf.RectifiedFlow(), prediction="flow", shape=(DIM,))
    x = leaves()[0].detach()
    for adjoint in ADJOINTS.values():

        def run(z, adjoint=adjoint):
            return sf.sample(model, x=z, solver=AUTO, steps=3, adjoint=adjoint).x

        with pytest.raises(sf.InputError, match=r"torch\.func"):
            torch.func.grad(lambda z: run(z).sum())(x)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(sf.InputError, match="forward mode"):
                run(dual)


def test_edits_that_hold_states_of_the_source_cost_no_more_than_others():
    calls = [0]
    net = Net()
    net.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    spent = []
    for steps in (5, 20):
        x, base, *_ = leaves()
        model = sf.Denoiser(net, sf.RectifiedFlow(), prediction="flow", shape=(DIM,), condition=base)
        edited = sf.edit(model, x, base * 2.0, method="direct", solver="euler", steps=steps, adjoint="checkpoint")
        calls[0] = 0
        edited.x.sum().backward()
        spent.append(calls[0])
    assert spent == [10, 40]


def test_what_the_network_reads_may_not_be_written_to_before_its_gradient():
    for kind, what in itertools.product(ADJOINTS.values(), ("weight", "condition")):
        net, condition = Net().requires_grad_(False), torch.ones(1, WIDTH, dtype=torch.float64)
        model = sf.Denoiser(net, sf.RectifiedFlow(), prediction="flow", shape=(DIM,), condition=condition)
        found = sf.sample(model, x=leaves()[0], solver=AUTO, steps=3, adjoint=kind)
        with torch.no_grad():
            (net.enter.weight if what == "weight" else condition).mul_(1.01)
        with pytest.raises(sf.InputError, match="has been written to since the run"):
            found.x.sum().backward()


def test_grids_keep_their_tensor_or_refuse_it():
    import dataclasses
    import pickle

    times = TIMES.clone().requires_grad_()
    grid = sf.Grid(times)
    kept = [
        grid.reversed().reversed(),
        grid.ending(True),
        dataclasses.replace(grid, clean=True),
        pickle.loads(pickle.dumps(grid)),
        sf.Grid(tuple(times)),
        sf.Grid.from_timesteps(times),
        sf.Grid.from_timesteps(times, 0.05),
    ]
    assert all(one.tensor is not None and one.tensor.requires_grad for one in kept)
    assert grid == sf.Grid(tuple(TIMES.tolist()))
    assert hash(grid) == hash(sf.Grid(tuple(TIMES.tolist())))
    with pytest.raises(sf.InputError, match="sigmas"):
        sf.Grid.from_sigmas(times, sf.VE())
    with pytest.raises(sf.InputError, match="times and tensor differ"):
        dataclasses.replace(grid, times=(0.9, 0.1))
    model = sf.Denoiser(Net(), sf.VPLinear(), shape=(DIM,))
    x = leaves()[0].detach()
    how = {"grid": grid, "adjoint": "checkpoint"}
    with pytest.raises(sf.InputError, match="grid: its times have no gradient with noise maps"):
        sf.edit(model.with_condition(torch.ones(1, WIDTH)), x, torch.ones(1, WIDTH), method="noise-maps", **how)
    with pytest.raises(sf.InputError, match="goes on from the state of another"):
        sf.reconstruct(model, x, solver="belm", **how)
    with pytest.raises(sf.InputError, match="controller"):
        sf.integrate(model, x, grid, solvers.get("heun"), controller=sf.PIDController(), adjoint="checkpoint")
    sf.sample(model, x=x, solver=sf.Auto(samples=1), **how).x.sum().backward()
    assert times.grad.isfinite().all()


@pytest.mark.parametrize("times", [[1.0, 0.7, 0.4, 0.0], [0.9, 0.5, 0.0]], ids=str)
def test_times_at_the_ends_of_a_path(times):
    model = sf.Denoiser(Net(), sf.RectifiedFlow(), prediction="flow", shape=(DIM,))

    def run(values, adjoint=None):
        how = {"n": 2, "dtype": torch.float64, "solver": "heun", "end": "path", "adjoint": adjoint}
        return sf.sample(model, grid=sf.Grid(values), **how).x.sum()

    start = torch.tensor(times, dtype=torch.float64)
    given = start.clone().requires_grad_()
    run(given, "checkpoint").backward()
    one_sided = torch.zeros_like(start)
    for i in range(len(start)):
        step = torch.zeros_like(start)
        step[i] = 1e-4 * (-1.0 if start[i] == 1.0 else 1.0)
        with torch.no_grad():
            one_sided[i] = sum(c * run(start + k * step) for k, c in enumerate(_AHEAD)) / step[i]
    torch.testing.assert_close(given.grad, one_sided, rtol=1e-6, atol=1e-7)


_AHEAD = (-2.45, 6.0, -7.5, 20 / 3, -3.75, 1.2, -1 / 6)


def test_times_on_a_table():
    table = sf.Tabulated.scaled_linear()
    model = sf.Denoiser(Net(), table, shape=(DIM,), time_scale=1e-3)
    x = leaves()[0].detach()

    def run(values, adjoint=None):
        return sf.sample(model, x=x, solver="dpmpp-2m", grid=sf.Grid(values), adjoint=adjoint, end="path").x.sum()

    between = torch.tensor([900.3, 600.7, 300.2, 50.5], dtype=torch.float64)
    given = between.clone().requires_grad_()
    run(given, "checkpoint").backward()
    torch.testing.assert_close(given.grad, differences(run, between, 0.02), rtol=1e-5, atol=1e-8)
    on = between.round().requires_grad_()  # where the path bends: between the slopes of both sides
    run(on, "checkpoint").backward()
    with torch.no_grad():
        sides = [
            torch.stack([(run(on + h * unit) - run(on)) / h for unit in torch.eye(4, dtype=torch.float64)])
            for h in (1e-4, -1e-4)
        ]
    low, high = torch.minimum(*sides), torch.maximum(*sides)
    slack = 1e-3 * on.grad.abs()
    assert ((low - slack <= on.grad) & (on.grad <= high + slack)).all()
