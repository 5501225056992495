"""Tuned solvers wherever a solver can be given: they run over their own grids, or are refused by name."""

import copy
import inspect
import json
import math
import pickle
import re

import pytest
import torch
from typer.testing import CliRunner

import steadyflow as sf
from steadyflow import diagnostics
from steadyflow.cli import app
from steadyflow.corrections import Escape, Restart
from steadyflow.datasets import arrays
from steadyflow.diagnostics import contractivity_report, scheme_figure, stability_region
from steadyflow.grids import Grid
from steadyflow.loading import load_model
from steadyflow.solvers import Entry, Plain, Scheme, Tuned
from steadyflow.tuning.schemes import scheme_of
from tuned_solvers import falling, made, replaced, sampler, tripper

MEANS = torch.tensor([[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], dtype=torch.float64)
DATA = sf.GaussianMixture(MEANS, 0.25, labels=[0, 1, 1, 0])
PATHS = [sf.VPLinear(), sf.VPCosine(), sf.VE(), sf.RectifiedFlow(), sf.Tabulated.linear(100, 1e-3, 0.2)]
PATH = PATHS[0]
MODEL = DATA.denoiser(PATH)
X = DATA.sample(5, seed=1)
FAST, TRIP = sampler(PATH, (8, 5)), tripper(PATH)
START = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def close(a, b, tolerance=1e-12):
    scale = b.abs().max().clamp_min(1.0)
    assert ((a - b).abs().max() / scale).item() < tolerance


def path_name(path):
    return type(path).__name__


# what it computes


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc", "ees25", "midpoint", "deis"])
@pytest.mark.parametrize("path", PATHS, ids=path_name)
def test_the_scheme_of_a_plain_solver_gives_its_numbers_on_every_path(path, solver):
    model = DATA.denoiser(path)
    grid = falling(solver, path, 8)
    try:
        scheme = scheme_of(sf.solvers.get(solver), path, grid, defined_at_zero_noise=model.defined_at_zero_noise)
    except sf.InputError:  # a method that asks twice at one time is no scheme of falling times
        assert solver == "ees25"
        return
    tuned = made([Entry(8, scheme)], path)
    start = START * path.at(path.t_range[1]).sigma
    expected = sf.sample(model, x=start, solver=solver, grid=grid)
    found = sf.sample(model, x=start, solver=tuned, nfe=8)
    close(found.x, expected.x, 1e-9)
    assert found.nfe == expected.nfe == scheme.calls


@pytest.mark.parametrize("path", PATHS, ids=path_name)
def test_a_round_trip_gives_the_numbers_of_a_plain_one(path):
    model, grid = DATA.denoiser(path), falling("ees25", path, 9, clean=False)
    try:
        tuned = tripper(path)
    except sf.InputError as error:
        pytest.skip(str(error))
    found, expected = sf.invert(model, X, solver=tuned), sf.invert(model, X, solver="ees25", grid=grid)
    close(found.latent, expected.latent, 1e-9)
    close(found.decode().x, expected.decode().x, 1e-9)
    close(found.decode(model.with_condition(1)).x, expected.decode(model.with_condition(1)).x, 1e-9)
    assert found.grid.rising
    assert found.nfe == found.decode().nfe == 9


def test_a_plain_solver_in_its_place_gives_its_own_numbers():
    for solver in ("midpoint", "dpmpp-2m"):
        found = sf.sample(MODEL, x=START, solver=replaced(PATH, 8, solver), nfe=8)
        close(found.x, sf.sample(MODEL, x=START, solver=solver, grid=falling(solver, PATH, 8)).x)


def test_two_plain_solvers_on_one_grid_are_told_apart_by_the_number_of_calls():
    entries = [Entry(n, Plain(sf.solvers.get(name), "quadratic")) for n, name in ((4, "ddim"), (7, "midpoint"))]
    both = made(entries, PATH)
    assert both.own_grid(PATH, 4) == both.own_grid(PATH, 7)
    for n, name in ((4, "ddim"), (7, "midpoint")):
        found = sf.sample(MODEL, x=START, solver=both, nfe=n)
        close(found.x, sf.sample(MODEL, x=START, solver=name, grid=both.own_grid(PATH, n)).x)
        assert found.nfe == n
    with pytest.raises(sf.InputError, match="this grid for 4, 7 calls"):
        sf.sample(MODEL, x=START, solver=both, grid=both.own_grid(PATH, 4))


def test_batches_callbacks_and_records_are_those_of_any_solver():
    whole = sf.sample(MODEL, n=5, solver=FAST, nfe=8, record="all")
    seen = []
    parts = sf.sample(MODEL, n=5, solver=FAST, nfe=8, batch_size=2, callback=lambda info: seen.append(info.done))
    close(parts.x, whole.x, 1e-5)
    assert seen == [*range(1, 9)] * 3
    assert whole.trajectory.x.shape == (9, 5, 2)
    close(sf.sample(MODEL, n=2, index=3, solver=FAST, nfe=8).x, whole.x[3:], 1e-5)


def test_a_correction_moves_the_run_as_it_moves_a_plain_one():
    shift = torch.tensor([0.1, -0.2], dtype=torch.float64)

    def nudge(info):
        return info.solver.with_sample(info.state, info.x + shift, MODEL.schedule, info.t) if info.done == 3 else None

    for again in (nudge, lambda info: info.x + shift if info.done == 3 else None):
        found = sf.sample(MODEL, x=START, solver=sampler(PATH, (8,), "ddim"), corrections=[again])
        expected = sf.sample(MODEL, x=START, solver="ddim", grid=falling("ddim", PATH, 8), corrections=[nudge])
        close(found.x, expected.x)
    same = sf.sample(MODEL, x=START, solver=FAST, nfe=8, corrections=[lambda info: info.x])
    close(same.x, sf.sample(MODEL, x=START, solver=FAST, nfe=8).x, 1e-10)
    again = sf.sample(MODEL, x=START, solver=FAST, nfe=8, corrections=[Restart(remaining=2, back=3)])
    assert bool(again.x.isfinite().all())


def test_a_run_can_be_stopped_saved_and_resumed(tmp_path):
    grid = FAST.own_grid(PATH, 8)
    whole = sf.integrate(MODEL, START, grid, FAST)
    half = sf.integrate(MODEL, START, grid, FAST, stop_after=3)
    half.save(tmp_path / "half.safetensors")
    read = sf.Solution.load(tmp_path / "half.safetensors")
    assert read.solver == FAST
    assert torch.equal(sf.integrate(MODEL, None, grid, read.solver, resume=read).x, whole.x)


def test_a_stepper_can_be_copied_and_pickled_in_the_middle():
    expected = sf.sample(MODEL, x=START, solver=FAST, nfe=8).x
    stepper = sf.Stepper(FAST, PATH, FAST.own_grid(PATH, 8), START)
    for _ in range(3):
        stepper.feed(MODEL(stepper.query.x, stepper.query.t))
    for one in (copy.deepcopy(stepper), pickle.loads(pickle.dumps(stepper)), stepper):
        while one.query is not None:
            one.feed(MODEL(one.query.x, one.query.t))
        assert torch.equal(one.x, expected)


# what it is


def test_everything_survives_a_file_a_spec_and_a_pickle(tmp_path):
    path = tmp_path / "fast.json"
    for solver in (FAST, TRIP, replaced(PATH)):
        solver.save(path)
        for again in (
            Tuned.load(path), sf.solvers.get(str(path)), sf.solvers.from_spec(json.loads(json.dumps(solver.spec()))),
            pickle.loads(pickle.dumps(solver)), copy.deepcopy(solver),
        ):  # fmt: skip
            assert again == solver
            assert hash(again) == hash(solver)
            assert (again.model, again.schedule, again.guidance) == (solver.model, solver.schedule, solver.guidance)
        assert solver.spec() == json.loads(json.dumps(solver.spec()))
    assert "_hash" not in pickle.loads(pickle.dumps(FAST)).__dict__


def _changed(document, path, value):
    found = copy.deepcopy(document)
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return found


HOSTILE = {
    "another format": (("format",), "steadyflow-tuned-9"),
    "no entries": (("entries",), []),
    "no list": (("entries",), 3),
    "a row too short": (("entries", 0, "down", "rows", 2), [1.0]),
    "a weight too many": (("entries", 0, "down", "weights"), [0.0] * 12),
    "NaN": (("entries", 0, "down", "weights", 0), math.nan),
    "infinity": (("entries", 0, "down", "times", 1), math.inf),
    "times out of order": (("entries", 0, "down", "times", 3), 0.99),
    "a time beyond the path": (("entries", 0, "down", "times", 0), 1.5),
    "a text for a number": (("entries", 0, "down", "end"), "end"),
    "more calls than it says": (("entries", 0, "calls"), 2),
    "no calls": (("entries", 0, "calls"), 0),
    "twice the same": (("entries", 1, "calls"), 8),
    "another kind": (("kind",), "both"),
    "ends the wrong way round": (("tau_max",), 0.0),
    "NaN at an end": (("tau_min",), math.nan),
    "guidance of three": (("guidance",), [1.0, 2.0, 3.0]),
    "a verdict of nothing": (("entries", 0, "verdict"), {"won": True}),
    "a solver in a file": (("entries", 0, "down"), {"solver": {"name": "/etc/other.json"}, "grid": "uniform"}),
    "a tuned solver within": (("entries", 0, "down"), {"solver": {"name": "tuned", "document": {}}, "grid": "uniform"}),
    "a stochastic one": (("entries", 0, "down"), {"solver": {"name": "ddpm"}, "grid": "uniform"}),
    "a plain way up": (("entries", 0, "up"), {"solver": {"name": "ddim"}, "grid": "uniform"}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_by_their_name(what, tmp_path):
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(_changed(FAST.document(), *HOSTILE[what])))
    with pytest.raises(sf.CorruptFileError, match=r"hostile\.json"):
        sf.solvers.get(str(path))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", "[" * 100_000, '{"format": "steadyflow-tuned-1"}', "\x00"])
def test_broken_files_too(text, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(sf.CorruptFileError, match=r"broken\.json"):
        Tuned.load(path)
    with pytest.raises(sf.StorageError, match=r"none\.json"):
        sf.solvers.get(str(tmp_path / "none.json"))
    with pytest.raises(sf.InputError, match="options"):
        sf.solvers.get(str(path), coordinates="flow")
    with pytest.raises(sf.InputError, match=r"fast\.json"):
        sf.solvers.get("tuned")
    with pytest.raises(sf.InputError, match=r"\.json"):
        FAST.save(tmp_path / "fast.yaml")


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(sf.CorruptFileError, match="too many"):
        Tuned.load(path)


def test_a_folder_of_tuned_solvers_gives_them_names(tmp_path, monkeypatch):
    plain = sf.solvers.names()
    FAST.save(tmp_path / "fast.json")
    (tmp_path / "broken.json").write_text("{")
    FAST.save(tmp_path / "ddim.json")
    monkeypatch.setenv("STEADYFLOW_SOLVERS", str(tmp_path))
    with pytest.warns(UserWarning, match="left out") as told:
        assert sf.solvers.names() == [*plain, "fast"]
    assert {str(one.message).split(": ")[1].rsplit("/")[-1] for one in told} == {"broken.json", "ddim.json"}
    assert sf.solvers.get("fast") == FAST
    assert sf.solvers.get("ddim").name == "ddim"
    close(sf.sample(MODEL, x=START, solver="fast", nfe=8).x, sf.sample(MODEL, x=START, solver=FAST, nfe=8).x)
    slow = sampler(PATH, (4,))
    slow.save(tmp_path / "fast.json")
    assert sf.solvers.get("fast") == slow
    (tmp_path / "broken.json").unlink()
    (tmp_path / "ddim.json").unlink()
    with pytest.raises(sf.UnknownNameError, match=r"\.\./fast"):
        sf.solvers.get("../fast")
    monkeypatch.setenv("STEADYFLOW_SOLVERS", str(tmp_path / "none"))
    with pytest.warns(UserWarning, match="no folder"):
        assert sf.solvers.names() == plain


def test_the_noise_levels_for_other_programs():
    taus = FAST.at(8).down.times
    assert FAST.sigmas(8, flow=True) == (*taus, 0.0)
    for sigma, tau in zip(FAST.sigmas(8), taus, strict=False):
        assert sigma == pytest.approx(tau / (1.0 - tau))
    levels = [PATH.at(t) for t in FAST.own_grid(PATH, 8).times]
    assert FAST.sigmas(8)[:-1] == pytest.approx([level.ratio for level in levels[:8]])
    assert TRIP.sigmas()[-1] > 0.0
    with pytest.raises(sf.InputError, match="fitted for 8, 5 evaluations"):
        FAST.sigmas(7)
    with pytest.raises(sf.InputError, match="'midpoint'"):
        replaced(PATH).sigmas()


# where it runs, and where it is refused

REFUSED = {
    "steps": (lambda: sf.sample(MODEL, n=2, solver=FAST, steps=8), "steps"),
    "a named grid": (lambda: sf.sample(MODEL, n=2, solver=FAST, nfe=8, grid="karras"), "grid"),
    "strength": (lambda: sf.sample(MODEL, n=2, solver=FAST, nfe=8, strength=0.5), "strength"),
    "t_max": (lambda: sf.sample(MODEL, n=2, solver=FAST, nfe=8, t_max=0.9), "t_max"),
    "no number of calls": (lambda: sf.sample(MODEL, n=2, solver=FAST), "nfe: got no number.*8, 5"),
    "another number": (lambda: sf.sample(MODEL, n=2, solver=FAST, nfe=9), "nfe: got 9.*8, 5"),
    "end": (lambda: sf.sample(MODEL, n=2, solver=FAST, nfe=8, end="path"), "end"),
    "adaptive steps": (lambda: sf.sample(MODEL, n=2, solver=FAST, nfe=None, steps=sf.PIDController()), "steps"),
    "another grid": (lambda: sf.sample(MODEL, n=2, solver=FAST, grid=falling("ddim", PATH, 6)), "own grid"),
    "its grid without the end": (
        lambda: sf.integrate(MODEL, START, Grid(FAST.own_grid(PATH, 8).times[:-1]), FAST), "own grid",
    ),
    "its times, one moved": (
        lambda: sf.integrate(MODEL, START, Grid((*FAST.own_grid(PATH, 5).times[:-2], 0.0005, 0.0)), FAST),
        "own grid",
    ),
    "integrate": (lambda: sf.integrate(MODEL, START, falling("ddim", PATH, 6), FAST), "own grid"),
    "integrate, adaptive": (
        lambda: sf.integrate(MODEL, START, FAST.own_grid(PATH, 8), FAST, controller=sf.PIDController()), "tuned",
    ),
    "Stepper": (lambda: sf.Stepper(FAST, PATH, falling("ddim", PATH, 6), START), "own grid"),
    "Stepper, in the middle": (
        lambda: sf.Stepper(FAST, PATH, FAST.own_grid(PATH, 8), START, first=2).feed(MODEL(START, 0.5)), "first call",
    ),
    "invert": (lambda: sf.invert(MODEL, X, solver=FAST, nfe=8), "sampling alone"),
    "reconstruct": (lambda: sf.reconstruct(MODEL, X, solver=FAST, nfe=8), "sampling alone"),
    "edit": (lambda: sf.edit(MODEL, X, 1, source=0, solver=FAST, nfe=8), "sampling alone"),
    "edit, direct": (lambda: sf.edit(MODEL, X, 1, source=0, solver=FAST, nfe=8, method="direct"), "sampling alone"),
    "edit, held": (lambda: sf.edit(MODEL, X, 1, source=0, solver=TRIP, method="direct"), "at other times"),
    "edit, masked": (lambda: sf.edit(MODEL, X, 1, source=0, solver=TRIP, mask=torch.ones(2)), "at other times"),
    "edit, flow-edit": (lambda: sf.edit(MODEL, X, 1, source=0, solver=TRIP, nfe=9, method="flow-edit"), "'tuned'"),
    **{
        f"edit, {name}": (
            lambda name=name: sf.edit(MODEL, X, 1, source=0, solver=TRIP, nfe=9, method=name), "'tuned'",
        )
        for name in ("rf-inversion", "flow-align", "dvrf", "uni-edit", "pmi", "dna-edit", "flow-opt")
    },
    "edit, noise maps": (lambda: sf.edit(MODEL, X, 1, source=0, solver=TRIP, nfe=9, method="noise-maps"), "'tuned'"),
    "noise maps": (lambda: sf.editing.noise_maps(MODEL, X, solver=FAST, nfe=8), "'tuned'"),
    "diagnose": (lambda: sf.diagnose(MODEL, X, solver=FAST, nfe=8), "sampling alone"),
    "diagnose, steps": (lambda: sf.diagnose(MODEL, X, solver=TRIP, steps=8), "steps"),
    "contractivity": (lambda: diagnostics.contractivity(MODEL, START, falling("ddim", PATH, 6), FAST), "own grid"),
    "stiffness": (lambda: diagnostics.stiffness(MODEL, START, falling("ddim", PATH, 6), solver=FAST), "own grid"),
    "log_likelihood": (lambda: diagnostics.log_likelihood(MODEL, X, solver=FAST), "'tuned'"),
    "critical_window": (lambda: diagnostics.critical_window(MODEL, n=4, solver=FAST, steps=8), "steps"),
    "FlowMap": (lambda: diagnostics.FlowMap(MODEL, falling("ddim", PATH, 6), FAST), "own grid"),
    "FlowMap, upwards": (
        lambda: diagnostics.FlowMap(MODEL, TRIP.own_grid(PATH, rising=True), FAST), "sampling alone",
    ),
    "Hybrid": (lambda: sf.solvers.get("hybrid", deterministic=FAST), "hybrid"),
    "Hybrid, as the noisy one": (lambda: sf.solvers.get("hybrid", stochastic=FAST), "hybrid"),
    "Rex": (lambda: sf.solvers.get("rex-tuned"), "rex-tuned"),
    "choose_solver": (lambda: sf.choose_solver(MODEL, X, nfe=8, solver=FAST), "solver"),
    "gits": (lambda: sf.gits(MODEL, 4, n=8, solver=FAST), "solver"),
    "Restart": (lambda: Restart(solver=FAST), "restart"),
    "Escape": (lambda: Escape(solver=FAST), "restart"),
    "real_interval": (lambda: stability_region.real_interval(FAST), "8, 5"),
    "a job": (lambda: sf.runs.Sampling("mixture", n=2, solver=FAST, steps=8).prepare(), "steps"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_elsewhere_it_is_refused_by_name(what):
    call, words = REFUSED[what]
    with pytest.raises(sf.SteadyflowError, match=words):
        call()


def test_a_foreign_path_is_refused_by_its_range():
    short = DATA.denoiser(sf.Tabulated.linear(10, 1e-3, 0.02))
    with pytest.raises(sf.InputError, match="tune it for this path"):
        sf.sample(short, n=2, solver=sampler(PATH))


def test_its_own_grid_may_be_passed():
    expected = sf.sample(MODEL, x=START, solver=FAST, nfe=5).x
    assert torch.equal(sf.sample(MODEL, x=START, solver=FAST, grid=FAST.own_grid(PATH, 5)).x, expected)
    up = sf.invert(MODEL, X, solver=TRIP, grid=TRIP.own_grid(PATH)).latent
    assert torch.equal(up, sf.invert(MODEL, X, solver=TRIP).latent)


def test_a_round_trip_is_honoured_in_every_verb(tmp_path):
    grid = falling("ees25", PATH, 9, clean=False)
    pairs = [({"solver": TRIP, "nfe": 9}, {"solver": "ees25", "grid": grid})]
    for mine, plain in pairs:
        close(sf.reconstruct(MODEL, X, **mine).x, sf.reconstruct(MODEL, X, **plain).x)
        close(sf.edit(MODEL, X, 1, source=0, **mine).x, sf.edit(MODEL, X, 1, source=0, **plain).x)
    ddim, words = tripper(PATH, (8,), "ddim"), {"method": "direct", "source": 0}
    plain = sf.edit(MODEL, X, 1, **words, solver="ddim", grid=falling("ddim", PATH, 8, clean=False))
    if ddim.own_grid(PATH, rising=True) == ddim.own_grid(PATH).reversed():
        close(sf.edit(MODEL, X, 1, **words, solver=ddim).x, plain.x)
    kept = sf.invert(MODEL, X, solver=TRIP)
    kept.save(tmp_path / "kept.safetensors")
    close(sf.Inversion.load(tmp_path / "kept.safetensors", MODEL).decode().x, kept.decode().x)
    found, expected = (sf.diagnose(MODEL, X[:2], **words) for words in pairs[0])
    close(found.measured, expected.measured, 1e-6)
    close(found.budget.coefficient, expected.budget.coefficient, 1e-6)
    assert "nfe=9" in found.setting.call()


def test_maps_and_constants_are_those_of_the_plain_solver():
    plain, tuned = sf.solvers.get("ddim"), sampler(PATH, (6,), "ddim")
    grid = tuned.own_grid(PATH)
    mine, its = diagnostics.FlowMap(MODEL, grid, tuned), diagnostics.FlowMap(MODEL, grid, plain)
    close(mine.jvp(START, X), its.jvp(START, X))
    close(mine.dense(START), its.dense(START))
    words = {"coordinates": "flow"}
    found = diagnostics.contractivity(MODEL, START, grid, tuned, **words).lipschitz
    close(found, diagnostics.contractivity(MODEL, START, grid, plain, **words).lipschitz)
    report = contractivity_report.study(MODEL, X, solver=tuned)
    assert "'tuned'" in report.summary()
    z = diagnostics.stiffness(MODEL, START, grid, solver=tuned).z
    assert z.shape == (6, 5)
    assert bool(z[:-1].isfinite().all())
    assert diagnostics.critical_window(MODEL, n=16, solver=tuned).closes >= 0


def test_the_region_is_that_of_the_whole_run_by_call():
    even = Grid(tuple(1.0 - k / 8 for k in range(9)))
    flow = sf.RectifiedFlow()
    euler = made([Entry(8, scheme_of(sf.solvers.get("euler", coordinates="flow"), flow, even))], flow)
    z = [-0.5, -2.5, 1j, -1 + 0.5j, 0.0]
    expected = stability_region.spectral_radius("euler", z)
    assert stability_region.spectral_radius(euler, z) == pytest.approx(expected)
    assert stability_region.real_interval(euler) == pytest.approx(2.0, abs=1e-4)
    assert stability_region.real_interval(FAST.only(8)) > 0.0
    assert stability_region.real_interval(replaced(PATH)) == pytest.approx(2.0, abs=1e-4)
    lame = made([Entry(1, Scheme((1.0,), 0.0, ((1.0,),), (1.001, -1.0)))], flow)  # changes a constant by 0.1 %
    assert stability_region.real_interval(lame) > 1.9


def test_it_is_drawn(tmp_path):
    FAST.save(tmp_path / "fast.json")
    shown = scheme_figure(FAST, 8, resolution=11)
    assert [axis.get_title() for axis in shown.axes] == ["8 calls", ""]
    assert len(scheme_figure(FAST, resolution=11).axes) == 4
    panels = stability_region.figure([str(tmp_path / "fast.json"), "ddim"], resolution=11).axes
    assert [axis.get_title().split(",")[0] for axis in panels] == ["fast.json at 8", "fast.json at 5", "ddim"]


def test_another_model_or_guidance_is_told():
    fitted = sampler(PATH, fingerprint="0123456789abcdef", guidance=(1.0, 2.0))
    with pytest.warns(UserWarning, match="does not hold here"):
        sf.sample(MODEL, n=2, solver=fitted)


# k-diffusion


def _denoised(path):
    model = DATA.denoiser(path)

    def net(x, sigma):
        return model(x, float(sigma[0])).x0

    return net


@pytest.mark.parametrize("path", [sf.VE(), sf.RectifiedFlow()], ids=path_name)
def test_k_diffusions_sampler_takes_its_own_levels(path, tmp_path):
    flow = isinstance(path, sf.RectifiedFlow)
    tuned = sampler(path if flow else PATH, (8, 5), "ddim")
    tuned.save(tmp_path / "fast.json")
    levels = tuned.sigmas(8, flow=flow)
    x = levels[0] * START
    given = {"schedule": path} if flow else {}
    kept = []
    found = sf.sample_steady(
        _denoised(path), x, torch.tensor(levels, dtype=torch.float32), None, kept.append, True,
        solver=str(tmp_path / "fast.json"), **given,
    )  # fmt: skip
    expected = sf.sample_steady(_denoised(path), x, levels, disable=True, solver="ddim", **given)
    close(found, expected, 1e-5)
    assert [one["i"] for one in kept] == list(range(8))
    more = "flow=True" if flow else "calls"
    for foreign in (levels[:-1], [*levels[:3], 0.0], [1.0, 0.9, 0.5, 0.2, 0.1, 0.0]):
        with pytest.raises(sf.InputError, match=rf"pass solver\.sigmas\(calls.*{more}|pass solver\.sigmas\(calls"):
            sf.sample_steady(_denoised(path), x, foreign, disable=True, solver=tuned, **given)
    with pytest.raises(sf.NotInvertibleError, match="sampling alone"):
        sf.sample_steady(_denoised(path), x, levels[::-1], disable=True, solver=tuned, **given)


# jobs and the command line


def _command(*words):
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner.__init__).parameters else {}
    done = CliRunner(**apart).invoke(app, [*map(str, words)])  # click before 8.2 joins what is told and what is shown
    if isinstance(done.exception, sf.SteadyflowError):
        return str(done.exception)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_a_job_holds_the_solver_itself(tmp_path):
    model = load_model("mixture")
    tuned = sampler(model.schedule, (4,))
    tuned.save(tmp_path / "fast.json")
    job = sf.runs.Sampling("mixture", n=4, solver=str(tmp_path / "fast.json"))
    assert job.solver == tuned.spec()
    assert job.spec() == json.loads(json.dumps(job.spec()))
    words = ["sample", "--model", "mixture", "--n", 4, "--solver", tmp_path / "fast.json", "--nfe", 4, "--json"]
    plain = json.loads(_command(*words))
    first = json.loads(_command(*words, "--run", tmp_path / "run"))
    assert {key: first[key] for key in plain} == plain
    (tmp_path / "fast.json").unlink()
    assert sf.runs.RunFolder.open(tmp_path / "run").job.resolved().method == tuned


def labelled():
    """A model for the command line."""
    return MODEL


def test_commands_take_a_file(tmp_path, monkeypatch):
    sampler(PATH, (4, 6)).save(tmp_path / "fast.json")
    tripper(PATH).save(tmp_path / "trip.json")
    arrays.write(tmp_path / "x.npy", X.float())
    base = ["--model", f"{__name__}:labelled", "--n", 2, "--json", "--solver"]
    for words in (["invert"], ["reconstruct"], ["edit", "--target", 1], ["diagnose"], ["diagnose", "--contractivity"]):
        data = [*words, "--input", tmp_path / "x.npy", *base]
        assert json.loads(_command(*data, tmp_path / "trip.json", "--nfe", 9))
        assert "sampling alone" in _command(*data, tmp_path / "fast.json", "--nfe", 6)
    assert "4, 6 evaluations" in _command("sample", *base, tmp_path / "fast.json", "--nfe", 5)
    listed = _command("solvers", "--names", f"{tmp_path / 'fast.json'},ddim")
    assert "fitted to a model" in listed
    assert "ddim" in listed
    plain = _command("solvers")
    monkeypatch.setenv("STEADYFLOW_SOLVERS", str(tmp_path))
    with_folder = _command("solvers", "--json")
    assert {"fast", "trip"} <= set(json.loads(with_folder))
    assert "fast" not in plain.split()
    assert json.loads(_command("sample", *base, "fast", "--nfe", 6))["solver"] == "tuned"


TUNE = ["tune", "--model", "mixture", "--n", 8, "--judge", 8, "--fine", 16, "--against", "ddim,dpmpp-2m", "--seed", 1]


def test_the_command_tunes_and_writes_a_file(tmp_path):
    out = tmp_path / "fast.json"
    shown = _command(*TUNE, "--nfe", "3:5", "--calls", 400, "--out", out)
    assert "fit to 'mixture' at 3, 4 evaluations" in shown
    assert "model evaluations" in shown
    assert "best plain" in shown
    found = Tuned.load(out)
    assert found.budgets == (3, 4)
    assert found.model == "mixture"
    again = json.loads(_command(*TUNE, "--nfe", "4", "--calls", 400, "--guidance", "1", "--json", "--out", out))
    assert list(again["entries"]) == ["4"]
    assert again["written to"] == str(out)
    assert json.loads(_command("sample", "--model", "mixture", "--solver", out, "--n", 2, "--json"))["nfe"] <= 4


@pytest.mark.parametrize("edits", [[], ["--target", "8", "--guidance", "2"]])
def test_the_command_fits_round_trips_of_held_out_data(tmp_path, edits):
    out = tmp_path / "back.json"
    few = ["--n", "16", "--judge", "12", "--fine", "24", "--against", "ddim,fireflow", "--nfe", "3", "--calls", "2000"]
    shown = _command("tune", "--model", "digits", "--task", "round-trip", *few, *edits, "--out", out)
    assert "16 starts to fit on, 12 to judge on" in shown
    found = Tuned.load(out)
    assert found.kind == "round trip"
    assert found.verdict.beside is not None
    back = json.loads(_command("reconstruct", "--model", "digits", "--solver", out, "--n", 4, "--json"))
    assert back["nfe each way"] == 3
    refused = _command("tune", "--model", "digits", *few, "--target", "8", "--out", out)
    assert "only valid with --task round-trip" in refused


REFUSALS = {
    "out: got": ["--nfe", 4, "--out", "fast.txt"],
    "out: .*is there already": ["--nfe", 4, "--out", "taken.json"],
    "nfe: got '4:'": ["--nfe", "4:", "--out", "x.json"],
    "nfe: got '0'": ["--nfe", "0", "--out", "x.json"],
    "nfe: got 'many'": ["--nfe", "many", "--out", "x.json"],
    "guidance: got '1:2:3'": ["--nfe", 4, "--guidance", "1:2:3", "--out", "x.json"],
    "prompts: .*takes none": ["--nfe", 4, "--prompts", "prompts.txt", "--out", "x.json"],
    "prompts: .*no line": ["--nfe", 4, "--prompts", "empty.txt", "--out", "x.json"],
    "prompts: .*could not be read": ["--nfe", 4, "--prompts", "none.txt", "--out", "x.json"],
    "judge_prompts: only valid": ["--nfe", 4, "--judge-prompts", "prompts.txt", "--out", "x.json"],
    "label, prompts: give one": ["--nfe", 4, "--label", 1, "--prompts", "prompts.txt", "--out", "x.json"],
    "prompt: the model": ["--nfe", 4, "--prompt", "a cat", "--out", "x.json"],
    "unknown solver 'none'": ["--nfe", 4, "--against", "none", "--out", "x.json"],
}


@pytest.mark.parametrize("words", REFUSALS)
def test_the_command_refuses_before_it_works(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.json").write_text("[1, 2]")
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    (tmp_path / "empty.txt").write_text("\n")
    base = (
        [word for word in TUNE if word not in ("--against", "ddim,dpmpp-2m")]
        if "--against" in REFUSALS[words]
        else TUNE
    )
    assert re.search(words, _command(*base, *REFUSALS[words]))
    assert not (tmp_path / "x.json").exists()
