"""What a variant costs: every term against a closed form, an independent run, or a change whose place is known."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import steadyflow as sf
import tuned_solvers
from steadyflow.diagnostics import COMPARED, in_precision

N, DIM, MEAN = 3, 4, 0.5
ONE_STEP = ("ddim", "midpoint", "rk4", "ees25")
MULTISTEP = ("dpmpp-2m", "unipc", "deis", "ipndm")
REVERSIBLE = ("rex-midpoint", "bdia", "edict", "belm", "alf", "reversible-heun")
ASKS = {"rk4": (False, False), "rex-midpoint": (False, False), "reversible-heun": (True, False)}
"""Whether an interval of times that is asked in one step alone has the step's end and its start; (False, True) for
those that ask at the start, or at the start and within."""
PATHS = (sf.VPLinear(), sf.RectifiedFlow(1.0, 1e-3, 0.999), sf.VE())
PARTS = ("model", "rounding", "discretisation")


def gaussian(std=0.6, schedule=None, mean=MEAN, change=None):
    """The exact model of a Gaussian, as a function; `change` is added to what it says of a time."""
    schedule = sf.VPLinear() if schedule is None else schedule

    def net(x, t):
        alpha, sigma = (part(t).view(-1, 1) for part in (schedule.alpha, schedule.sigma))
        eps = sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return eps if change is None else eps + change(t).view(-1, 1)

    return sf.Denoiser(net, schedule, shape=(DIM,))


def radius(schedule, t, std):
    level = schedule.at(t)
    return math.hypot(level.alpha * std, level.sigma)


class Net(nn.Module):
    """A small smooth network."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.4 * torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0)))

    def forward(self, x, t):
        return (0.7 * x + torch.tanh(x @ self.weight) * torch.cos(2.0 * t)[:, None]).to(x.dtype)


def network():
    return sf.Denoiser(Net(), sf.VPLinear(), shape=(DIM,))


class Caching(Net):
    """One that returns every second answer twice, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls, self.kept, self.resets = 0, None, 0

    def reset_cache(self):
        self.calls, self.kept, self.resets = 0, None, self.resets + 1

    def forward(self, x, t):
        self.calls += 1
        self.most = max(self.calls, getattr(self, "most", 0))
        if self.kept is None or self.calls % 2 == 1:
            self.kept = super().forward(x, t)
        return self.kept


def summed(found):
    return torch.stack(list(found.terms.values())).sum(0)


# ---- the identities


@pytest.mark.parametrize("solver", [*ONE_STEP, *MULTISTEP, *REVERSIBLE])
def test_the_terms_sum_to_the_error_whatever_the_solver_keeps(solver):
    other = gaussian(change=lambda t: 0.05 * torch.cos(3.0 * t))
    found = sf.compare(gaussian(), other, changed={"steps": 5}, n=N, solver=solver, steps=8)
    torch.testing.assert_close(summed(found), found.error, rtol=1e-9, atol=1e-12)
    assert set(found.terms) == set(COMPARED) - {"codec"}
    for values in (found.made, *(found.reached[name] for name in PARTS)):
        assert values.shape == (5, N)
        assert values.max() > 0.0
    # no part is larger than the sum of what its steps leave there
    parts = torch.stack([found.reached[name].sum(0) for name in PARTS]).sum(0)
    assert bool((found.error <= parts * (1 + 1e-9)).all())
    assert bool((found.change <= found.reached["model"].sum(0) * (1 + 1e-9)).all())


def test_a_tuned_solver_is_compared_over_its_own_grid():
    model = gaussian()
    tuned = tuned_solvers.sampler(model.schedule, (6,))
    found = sf.compare(model, changed={"solver": tuned}, n=N, solver="dpmpp-2m", grid="quadratic", nfe=6)
    torch.testing.assert_close(summed(found), found.error, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.error, found.plain, rtol=1e-3, atol=1e-6)  # it is that plain solver
    assert len(found.times) == 6


@pytest.mark.parametrize(
    "schedule", [sf.VPLinear(), sf.VPCosine(), sf.RectifiedFlow(1.0, 1e-3, 0.999), sf.VE()], ids=repr
)
def test_the_exact_journey_and_what_it_makes_of_errors_are_those_of_the_closed_form(schedule):
    std, grid = 0.6, sf.grids.make("quadratic", schedule, 5)
    x = 2.0 * radius(schedule, grid.times[0], 1.0) * torch.randn(N, DIM, generator=torch.Generator().manual_seed(1))
    words = {"x": x.double(), "solver": "ddim", "grid": grid, "end": "path", "tolerance": 1e-9}
    found = sf.compare(gaussian(std, schedule), changed={"solver": "midpoint"}, **words)
    top, bottom = schedule.at(grid.times[0]), schedule.at(grid.times[-1])
    last = radius(schedule, grid.times[-1], std)
    expected = bottom.alpha * MEAN + last / radius(schedule, top.t, std) * (x.double() - top.alpha * MEAN)
    torch.testing.assert_close(found.exact, expected, rtol=1e-6, atol=1e-7)
    for k, t in enumerate(grid.times[1:]):
        size = radius(schedule, t, 1.0) / radius(schedule, grid.times[-1], 1.0)
        growth = last / radius(schedule, t, std) * size
        torch.testing.assert_close(found.reached["discretisation"][k], growth * found.made[k], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("schedule", PATHS, ids=repr)
def test_data_of_unit_variance_amplify_nothing_on_any_path(schedule):
    model = gaussian(1.0, schedule)
    found = sf.compare(model, changed={"steps": 4}, n=N, steps=8, solver="ddim", end="path", tolerance=1e-9)
    assert found.terms["amplification"].abs().max() < 1e-5 * found.error.max()


def test_the_errors_are_those_of_the_runs_themselves():
    model, other = gaussian(), gaussian(0.5)
    found = sf.compare(model, other, changed={"steps": 5}, n=N, solver="heun", steps=9, seed=3, index=2)
    words = {"n": N, "solver": "heun", "seed": 3, "index": 2}
    usual, same = sf.sample(model, steps=9, **words).x.double(), sf.sample(model, steps=5, **words).x.double()
    its = sf.sample(other, steps=5, **words).x
    torch.testing.assert_close(found.x, its, rtol=0, atol=0)
    for off, size in ((its - found.exact, found.error), (usual - found.exact, found.plain), (its - same, found.change)):
        torch.testing.assert_close(size, off.square().mean(1).sqrt(), rtol=1e-9, atol=0)


# ---- the parts


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "bdia"])
def test_a_variant_that_is_the_plain_model_has_changed_exactly_nothing(solver):
    found = sf.compare(network(), network(), n=N, solver=solver, steps=6)
    assert bool((found.terms["model"] == 0).all())
    assert bool((found.reached["model"] == 0).all())
    assert bool((found.change == 0).all())
    assert bool((found.error == found.plain).all())
    assert found.main == "discretisation"
    assert found.step() == found.step("discretisation")


@pytest.mark.parametrize("solver", [*ONE_STEP, *MULTISTEP, *REVERSIBLE])
@pytest.mark.parametrize("k", [2, 5])
def test_a_change_within_one_step_is_found_at_that_step_and_nowhere_else(solver, k):
    """Whatever the solver keeps: what another step does with the answer belongs to the step that asked for it."""
    grid = sf.grids.make("uniform", sf.VPLinear(), 8)
    low, high = grid.times[k + 1], grid.times[k]
    first, last = ASKS.get(solver, (False, True))
    low, high = low + (-1e-9 if first else 1e-9), high + (1e-9 if last else -1e-9)
    other = gaussian(change=lambda t: 0.2 * ((t > low) & (t < high)).to(t.dtype))
    words = {"solver": solver, "grid": grid, "end": "path", "dtype": torch.float64}
    found = sf.compare(gaussian(), other, n=N, **words)
    assert found.step("model") == found.step() == k + 1
    assert found.share("model") == 1.0
    assert found.reached["model"][k].min() > 1e-4
    torch.testing.assert_close(found.reached["model"][k], found.change, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp-2m", 2), ("bogacki-shampine", 3), ("rk4", 4)])
def test_the_discretisation_shrinks_at_the_order_of_the_solver(solver, order):
    words = {"n": N, "solver": solver, "grid": "uniform", "t_min": 0.2, "end": "path", "dtype": torch.float64}
    few, many = (
        sf.compare(gaussian(), changed={"steps": steps}, steps=4, tolerance=1e-9, **words) for steps in (8, 16)
    )
    ratio = few.made.sum(0).median() / many.made.sum(0).median()
    assert abs(math.log2(ratio.item()) - order) < 0.5


def test_rounding_is_that_of_the_plain_model_in_its_working_precision():
    fine = network()
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = in_precision(fine, dtype)
        found = sf.compare(model, changed={"steps": 6}, n=N, solver="heun", steps=9)
        words = {"solver": "heun", "steps": 6}
        single = sf.sample(model, n=N, **words).x.double()
        start = sf.sample(model, n=N, record="all", **words).trajectory.x[0].double()
        double = sf.sample(in_precision(model, torch.float64), x=start, **words).x
        off = (single - double).square().mean(1).sqrt()
        assert bool((off <= found.reached["rounding"].sum(0) * (1 + 1e-9)).all())
        assert bool((found.reached["rounding"].sum(0) < 20.0 * off).all())
        assert found.precision == torch.float64
        sizes[dtype] = off.median().item()
    assert sizes[torch.float32] < 1e-5 < 1e-4 < sizes[torch.bfloat16]
    found = sf.compare(in_precision(fine, torch.float64), changed={"steps": 4}, n=2, steps=6, dtype=torch.float64)
    assert bool((found.terms["rounding"] == 0).all())


def test_half_precision_of_the_variant_is_a_change_of_the_model():
    model = network()
    found = sf.compare(model, in_precision(model, torch.bfloat16), n=N, solver="rk4", steps=24)
    assert found.main == "model"
    assert bool((found.terms["model"].abs() > 100.0 * found.terms["rounding"].abs()).all())


class Scaled:
    """A linear codec."""

    def __init__(self, factor, seam=0.0):
        self.factor, self.seam = factor, seam

    def decode(self, x):
        edge = torch.zeros_like(x)
        edge[:, 0] = self.seam
        return self.factor * x + edge

    def encode(self, x):
        return x / self.factor


def test_a_linear_codec_scales_every_term():
    words = {"n": N, "changed": {"steps": 5}, "solver": "heun", "steps": 9, "dtype": torch.float64, "tolerance": 1e-7}
    plain = sf.compare(gaussian(), gaussian(0.5), **words)
    found = sf.compare(gaussian(), gaussian(0.5), codec=Scaled(-3.0), **words)
    assert bool((found.terms["codec"] == 0).all())
    for name, term in plain.terms.items():
        torch.testing.assert_close(found.terms[name], 3.0 * term, rtol=1e-6, atol=1e-9)
    for name in ("error", "plain", "change", "uncertainty"):
        torch.testing.assert_close(getattr(found, name), 3.0 * getattr(plain, name), rtol=1e-6, atol=1e-12)


def test_another_decoder_is_the_codec_term_and_nothing_else():
    words = {"n": N, "solver": "rk4", "steps": 24, "dtype": torch.float64}
    found = sf.compare(gaussian(), codec=Scaled(2.0), other_codec=Scaled(2.0, seam=0.3), **words)
    assert bool((found.terms["model"] == 0).all())
    torch.testing.assert_close(found.terms["codec"], torch.full((N,), 0.3 / DIM**0.5).double(), rtol=1e-2, atol=0)
    torch.testing.assert_close(found.change, torch.full((N,), 0.3 / DIM**0.5).double())
    others = [found.terms[name].abs().max() for name in ("discretisation", "rounding", "amplification")]
    assert max(others) < 0.02 * found.terms["codec"].min()


# ---- networks that keep something from call to call


def test_a_cached_network_is_asked_in_the_order_of_one_run_that_begins_afresh():
    net = Caching()
    cached = dataclasses.replace(network(), net=net)
    net(torch.zeros(1, DIM), torch.zeros(1))  # what another run has left
    first = sf.compare(network(), cached, n=N, solver="ddim", steps=6)
    assert net.most == 6
    assert net.calls == 0
    assert net.resets == 2
    again = sf.compare(network(), cached, n=N, solver="ddim", steps=6)
    assert bool((first.error == again.error).all())
    assert bool((first.terms["model"] != 0).all())
    assert bool((first.reached["model"][0] == 0).all())  # the first answer is its own
    assert bool((first.reached["model"][1] > 0).all())
    with pytest.raises(sf.InputError, match="model: its network keeps something from call to call"):
        sf.compare(cached, network(), n=N)


def attention_cache(net):
    """Let a network of diffusers compute its attentions in every second call alone."""
    hooks = pytest.importorskip("diffusers.hooks")
    everywhere = {f"{kind}_attention_timestep_skip_range": (-1, 1001) for kind in ("spatial", "cross")}
    every = {f"{kind}_attention_block_skip_range": 2 for kind in ("spatial", "cross")}
    config = hooks.PyramidAttentionBroadcastConfig(**every, **everywhere, current_timestep_callback=lambda: 500)
    hooks.apply_pyramid_attention_broadcast(net, config)


def test_a_step_cache_of_diffusers_changes_every_second_call():
    pytest.importorskip("diffusers")
    import pipelines

    plain = sf.from_diffusers(pipelines.build("sd"), "a cat")
    pipe = pipelines.build("sd")
    attention_cache(pipe.unet)
    cached = sf.from_diffusers(pipe, "a cat")
    words = {"n": 1, "solver": "ddim", "steps": 4, "tolerance": 1e-2}
    found = sf.compare(plain, cached, **words)
    assert found.precision == torch.float32
    assert "precise" in found.summary()
    assert bool((found.reached["model"][0] == 0).all())
    assert bool((found.reached["model"][1] > 0).all())
    assert bool((sf.compare(plain, cached, **words).error == found.error).all())
    with pytest.raises(sf.InputError, match="model: its network keeps something"):
        sf.compare(cached, plain, **words)


def test_a_cache_that_asks_which_call_of_a_step_is_made_is_told_so():
    """diffusers' first block cache, with both branches of guidance in one call."""
    hooks = pytest.importorskip("diffusers.hooks")
    if not hasattr(hooks, "FirstBlockCacheConfig"):
        pytest.skip("this diffusers has none")
    import pipelines

    size = {"height": 8, "width": 8, "max_sequence_length": 77}
    plain = sf.from_diffusers(pipelines.build("flux"), "a cat", **size)
    pipe = pipelines.build("flux")
    pipe.transformer.enable_cache(hooks.FirstBlockCacheConfig(threshold=1e9))  # always the first answer's remainder
    cached = sf.from_diffusers(pipe, "a cat", **size)
    found = sf.compare(plain, cached, n=1, solver="ddim", steps=3, guidance=2.0, tolerance=1e-2)
    assert bool((found.reached["model"][0] == 0).all())
    assert bool((found.reached["model"][1:] > 0).all())


def test_the_precision_of_a_served_pipeline_is_told():
    pytest.importorskip("diffusers")
    import pipelines

    with sf.from_diffusers(pipelines.build("sd"), "a cat", served=True) as served:
        found = sf.compare(served, changed={"steps": 2}, n=1, solver="ddim", steps=3, tolerance=1e-2)
    assert found.precision == torch.float32
    assert "the exact journey is that of the network in float32" in found.summary()


# ---- what is refused, and what goes wrong


REFUSED = {
    "compare: give another model": {},
    "other_codec: only valid with codec": {"other_codec": Scaled(1.0)},
    "compare: give either n": {"n": None, "changed": {"steps": 2}},
    "end: got 'data'": {"end": "data", "changed": {"steps": 2}},
    "tolerance: got -1": {"tolerance": -1.0, "changed": {"steps": 2}},
    "solver: 'ddpm' draws noise": {"solver": "ddpm", "changed": {"steps": 2}},
    "changed: 'ddpm' draws noise": {"changed": {"solver": "ddpm"}},
    "steps: a comparison is of a fixed number": {"steps": sf.PIDController(), "changed": {"solver": "heun"}},
    "changed: a comparison is of a fixed number": {"changed": {"steps": sf.PIDController(), "solver": "dopri5"}},
    "changed: the variant's run goes from t = 0.5": {"changed": {"t_max": 0.5}},
    "changed: the variant's run goes from t = 1 to 0.1": {"changed": {"t_min": 0.1}},
    "seed: has no meaning for the options that are `changed`": {"changed": {"seed": 1}},
    "corrections: has no meaning for compare": {"corrections": [], "changed": {"steps": 2}},
    "batch_size: has no meaning for compare": {"batch_size": 2, "changed": {"steps": 2}},
    "steps: only valid with a named grid": {"grid": sf.Grid((1.0, 0.5, 0.1)), "changed": {"steps": 2}},
    "guidance: got 2.0": {"guidance": 2.0, "changed": {"steps": 2}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused_by_its_name(message):
    with pytest.raises(sf.InputError, match=message.replace("(", r"\(")):
        sf.compare(gaussian(), **{"n": 2, **REFUSED[message]})


def test_a_variant_of_something_else_is_refused():
    flat = dataclasses.replace(gaussian(), shape=(DIM + 1,))
    with pytest.raises(sf.InputError, match=r"other: has samples of shape \(5,\)"):
        sf.compare(gaussian(), flat, n=2)
    with pytest.raises(sf.InputError, match="other: is over VPCosine"):
        sf.compare(gaussian(), gaussian(schedule=sf.VPCosine()), n=2)
    with pytest.raises(sf.InputError, match="other: other has a condition and the plain model has none"):
        sf.compare(gaussian(), gaussian().with_condition(torch.zeros(2, 1)), n=2)
    with pytest.raises(sf.InputError, match="precise: is over"):
        sf.compare(gaussian(), gaussian(), precise=gaussian(schedule=sf.VPCosine()), n=2)
    with pytest.raises(sf.UnknownNameError, match="option 'step'"):
        sf.compare(gaussian(), changed={"step": 2}, n=2)
    with pytest.raises(sf.InputError, match="term: got 'codec'"):
        sf.compare(gaussian(), changed={"steps": 2}, n=2, steps=3).step("codec")


def test_a_run_that_diverges_is_named():
    broken = gaussian(change=lambda t: torch.where(t < 0.5, torch.nan, 0.0))
    with pytest.raises(sf.NonFiniteError, match="compare: the variant's run: the state became NaN"):
        sf.compare(gaussian(), broken, n=2, steps=6)
    with pytest.raises(sf.NonFiniteError, match="compare: the plain model's run: the state became NaN"):
        sf.compare(broken, gaussian(), n=2, steps=6)


def test_options_of_the_plain_run_carry_over_unless_they_are_changed():
    grid = sf.grids.make("uniform", sf.VPLinear(), 5)
    found = sf.compare(gaussian(), changed={"grid": grid.ending(True)}, n=2, solver="heun", steps=9)
    assert found.times == grid.times
    ve = gaussian(schedule=sf.VE())  # whose recommended grid is another than the default
    usual = sf.compare(ve, changed={"steps": 5}, n=2, steps=9)
    assert usual.times == sf.sample(ve, n=1, steps=5).grid.times
    assert len(sf.compare(ve, changed={"nfe": 4}, n=2, steps=9, solver="ddim").times) == 4


def test_parameters_and_starts_that_ask_for_gradients_get_none():
    model = network()
    assert model.net.weight.requires_grad
    start = torch.randn(2, DIM, requires_grad=True)
    found = sf.compare(model, changed={"steps": 3}, x=start, steps=5, codec=Scaled(2.0))
    assert not any(value.requires_grad for value in (found.error, found.x, found.exact, *found.terms.values()))
    assert start.grad is None


# ---- what is shown


def test_the_figures_the_summary_and_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    found = sf.compare(gaussian(), gaussian(0.5), changed={"steps": 5}, n=N, steps=9)
    figures = json.loads(json.dumps(found.figures(), allow_nan=False))
    assert figures["terms"]["model"] == found.terms["model"].tolist()
    assert figures["step"]["model"] == found.step("model")
    assert figures["precision"] == "float64"
    text = found.summary()
    assert f"in step {found.step()} of 5" in text
    assert all(name in text for name in found.terms)
    assert found.draw(tmp_path / "comparison.png").stat().st_size > 1000


def test_the_command_writes_its_figures_and_its_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from typer.testing import CliRunner

    from steadyflow.cli import app

    monkeypatch.chdir(tmp_path)
    words = ["compare", "--model", "mixture", "--n", "3", "--steps", "5", "--other-solver", "ddim", "--out", "found"]
    words += ["--tolerance", "1e-3"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.exception
    kept = json.loads((tmp_path / "found" / "comparison.json").read_text())
    assert json.loads(done.stdout) == kept
    assert (tmp_path / "found" / "comparison.png").stat().st_size > 1000
    model = sf.GaussianMixture.grid().denoiser(sf.VPLinear())
    expected = sf.compare(model, changed={"solver": "ddim"}, n=3, steps=5, tolerance=1e-3)
    assert kept["error"] == expected.error.tolist()
    assert CliRunner().invoke(app, words).stdout.startswith(expected.summary())
