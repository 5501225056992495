"""Fits of solvers: their derivatives, what they gain on other starts, and what they refuse."""

import gc
import weakref

import pytest
import torch

import steadyflow as sf
from steadyflow import solvers
from steadyflow.coordinates import FLOW
from steadyflow.solvers import Plain, Scheme
from steadyflow.tasks._options import Resolved
from steadyflow.tuning import derivatives, judging, schemes
from steadyflow.tuning.round_trips import RoundBatch, RoundTrip

PATHS = {"vp": sf.VPLinear(), "flow": sf.RectifiedFlow(), "ve": sf.VE(t_min=0.01, t_max=40.0)}


def mixture(dim=2, components=5):
    generator = torch.Generator().manual_seed(dim)
    means = torch.randn(components, dim, generator=generator, dtype=torch.float64)
    return sf.GaussianMixture(means, torch.full((components, dim), 0.2, dtype=torch.float64))


def labelled():
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return sf.GaussianMixture(means, torch.full((6, 3), 0.5, dtype=torch.float64), labels=torch.arange(6) % 2)


def grid_of(model, solver, nfe, *, clean=True):
    return Resolved.of({"solver": solver, "nfe": nfe, "grid": "quadratic"}, "test").falling(model, clean=clean)


def batch_of(model, n=6, calls=5, solver="fireflow"):
    """Starts with fine ends, and the numbers of a plain solver."""
    schedule = model.schedule
    begin = schedule.at(schedule.t_max)
    x = begin.sigma * torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    end = sf.sample(model, x=x, solver="rk4", nfe=80, grid="quadratic").x
    scheme = schemes.scheme_of(solvers.get(solver), schedule, grid_of(model, solver, calls))
    bound = FLOW.time(schedule.at(schedule.t_min))
    return derivatives.Batch(schemes.field_of(model), x / FLOW.scale(begin), end), schemes.Numbers.of(scheme, bound)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "name", ["ddim", "dpmpp-2m", "deis", "unipc", "fireflow", "midpoint", "ees25", "stork-2", "alf"]
)
def test_the_scheme_of_a_plain_solver_is_that_solver(path, name):
    model = mixture().denoiser(PATHS[path])
    grid = grid_of(model, name, 9)
    try:
        scheme = schemes.scheme_of(solvers.get(name), model.schedule, grid)
    except sf.SteadyflowError:
        pytest.skip("it cannot run on this path, or its calls are not in order")
    x = sf.noise.initial(0, range(4), model.shape, dtype=torch.float64) * model.schedule.sigma(grid.times[0])
    plain = sf.sample(model, x=x, solver=name, grid=grid)
    found = schemes.run(
        schemes.field_of(model), schemes.Numbers.of(scheme, 0.0), x / FLOW.scale(model.schedule.at(grid.times[0]))
    )
    assert scheme.calls == plain.nfe
    assert (found.end - plain.x).abs().max() < 1e-12


def test_what_is_not_linear_or_not_in_order_has_no_scheme():
    model = mixture().denoiser(sf.VPLinear())
    for name in ("rk4", "heun"):
        with pytest.raises(sf.InputError, match="strictly"):
            schemes.scheme_of(solvers.get(name), model.schedule, grid_of(model, name, 9))


def derivatives_by_autograd(batch, numbers, vector):
    """J^T z through a run whose factors are tensors that require gradients."""
    rows, weights = numbers.rows.clone().requires_grad_(True), numbers.weights.clone().requires_grad_(True)
    slopes = []
    for k in range(numbers.calls):
        point = rows[k, 0] * batch.start + sum(rows[k, j + 1] * slopes[j] for j in range(k))
        slopes.append(batch.field(point, float(numbers.times[k])))
    end = weights[0] * batch.start + sum(weights[j + 1] * slopes[j] for j in range(numbers.calls))
    of_rows, of_weights = torch.autograd.grad((end * vector).sum(), (rows, weights))
    return torch.cat([of_weights, *(of_rows[k, : k + 1] for k in range(1, numbers.calls))])


def test_a_sweep_gives_the_derivatives_of_the_run():
    batch, numbers = batch_of(mixture().denoiser(sf.VPLinear()))
    forward = schemes.run(batch.field, numbers, batch.start)
    vector = torch.randn(batch.start.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    swept, at_start = derivatives.sweep(batch.field, numbers, batch.start, forward, [vector], of_start=True)
    exact = derivatives_by_autograd(batch, numbers, vector)
    assert swept.shape == (1, 6, schemes.parameters(5))
    torch.testing.assert_close(swept[0].sum(0)[: len(exact)], exact, rtol=1e-9, atol=1e-12)

    start = batch.start.clone().requires_grad_(True)
    end = schemes.run(batch.field, numbers, start).end
    torch.testing.assert_close(at_start[0], torch.autograd.grad((end * vector).sum(), start)[0], rtol=1e-9, atol=1e-12)

    for k in range(1, 5):  # times, by central differences of the run
        moved = []
        for sign in (1.0, -1.0):
            times = numbers.times.clone()
            times[k] += sign * 1e-6
            moved.append(schemes.run(batch.field, numbers._replace(times=times), batch.start).end)
        slope = float(((moved[0] - moved[1]) / 2e-6 * vector).sum())
        assert float(swept[0].sum(0)[len(exact) + k - 1]) == pytest.approx(slope, rel=0.1, abs=1e-3)


def test_both_ways_to_derivatives_agree():
    batch, numbers = batch_of(mixture().denoiser(sf.VPLinear()), n=400)
    generator = torch.Generator().manual_seed(0)
    swept = derivatives.by_sweep(batch, numbers, generator)
    changed = derivatives.by_differences(batch, numbers, generator)
    assert torch.equal(swept.residual, changed.residual)
    scale = changed.gradient.abs().amax(0)
    assert ((swept.gradient - changed.gradient).abs().amax(0) < 0.05 * scale + 1e-9).all()
    exact = torch.einsum("mbp,mbq->pq", changed.square, changed.square)
    estimate = torch.einsum("mbp,mbq->pq", swept.square, swept.square)
    size = exact.diagonal().sqrt()
    # 1,200 draws of pairs of signs in two dimensions: five standard errors of a normalised entry are below 0.25
    assert ((estimate - exact) / size[:, None] / size).abs().max() < 0.25


def test_round_trips_have_the_derivatives_of_both_ways():
    data = labelled()
    model, other = (data.denoiser(sf.VPLinear()).with_condition(label) for label in (0, 1))
    grid = grid_of(model, "fireflow", 4, clean=False)
    up, down = (schemes.scheme_of(solvers.get("fireflow"), model.schedule, one) for one in (grid.reversed(), grid))
    pair = schemes.Pair(schemes.Numbers.of(up, up.end), schemes.Numbers.of(down, down.end))
    u = data.sample(5, label=0) / FLOW.scale(model.schedule.at(model.schedule.t_min))
    for edit in (None, schemes.field_of(other)):
        batch = RoundBatch(schemes.field_of(model), edit, u, torch.zeros_like(u))
        aim, generator = RoundTrip(0.7), torch.Generator().manual_seed(0)
        swept, _ = aim.sensitivity(batch, pair, "back-propagation", generator)
        changed, _ = aim.sensitivity(batch, pair, "differences", generator)
        torch.testing.assert_close(swept.residual, changed.residual)
        scale = changed.gradient.abs().amax(0)
        assert ((swept.gradient - changed.gradient).abs().amax(0) < 0.05 * scale + 1e-6).all()
        assert aim.errors(batch, pair).square() == pytest.approx(swept.residual.square().mean(1), rel=1e-9)


def test_an_extended_scheme_is_the_same_with_a_call_more():
    batch, numbers = batch_of(mixture().denoiser(sf.VPLinear()))
    longer = numbers.extended()
    assert longer.calls == numbers.calls + 1
    assert longer.scheme().times != numbers.scheme().times
    torch.testing.assert_close(
        schemes.run(batch.field, longer, batch.start).end, schemes.run(batch.field, numbers, batch.start).end
    )


def test_the_graph_of_one_call_at_a_time_is_held():
    layers = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(6)])
    model = sf.Denoiser(lambda x, t: layers(x), sf.VPLinear(), shape=(8,))
    kept, peak = set(), 0

    def keep(tensor):
        nonlocal peak
        kept.add(id(tensor))
        weakref.finalize(tensor, kept.discard, id(tensor))
        peak = max(peak, len(kept))
        return tensor

    peaks = []
    for calls in (4, 16):
        numbers = schemes.Numbers.of(
            schemes.scheme_of(solvers.get("ddim"), model.schedule, grid_of(model, "ddim", calls)), 0.01
        )
        start = torch.randn(3, 8)
        batch = derivatives.Batch(schemes.field_of(model), start, torch.zeros(3, 8))
        gc.collect()
        kept, peak = set(), 0
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            derivatives.by_sweep(batch, numbers, torch.Generator().manual_seed(0))
        peaks.append(peak)
    assert peaks[0] == peaks[1] > 0


FEW = ["ddim", "dpmpp-2m", "fireflow", "unipc"]


@pytest.fixture(scope="module")
def tuned():
    model = mixture().denoiser(sf.VPLinear())
    return model, sf.tune(
        model, nfe=(4, 6), n=96, judge=192, against=FEW, fine=120, dtype=torch.float64, progress=False
    )


def test_a_fit_wins_on_starts_that_were_not_fitted(tuned):
    model, solver = tuned
    assert solver.budgets == (4, 6)
    for calls in (4, 6):
        verdict = solver.at(calls).verdict
        assert verdict.won
        assert verdict.gain_median[1] > 2.0
        assert verdict.gain_mean[1] > 1.0
        assert verdict.reference < 0.05 * verdict.median
        found = sf.sample(model, n=300, seed=11, solver=solver, nfe=calls, dtype=torch.float64)
        x = sf.noise.initial(11, range(300), model.shape, dtype=torch.float64) * model.schedule.sigma(
            model.schedule.t_max
        )
        exact = sf.sample(model, x=x, solver="dopri5", nfe=241, grid="quadratic").x
        plain = min(
            judging.median(sf.metrics.rmse(sf.sample(model, x=x, solver=name, nfe=calls, grid=grid).x, exact))
            for name in FEW
            for grid in ("quadratic", "uniform", "log-snr", "kl-optimal", "karras")
        )
        error = judging.median(sf.metrics.rmse(found.x, exact))
        assert found.nfe == calls
        assert error == pytest.approx(verdict.median, rel=0.5)
        assert plain / error > 0.5 * verdict.gain_median[0]


SMALL = {"nfe": 4, "n": 32, "judge": 32, "against": ["ddim", "fireflow"], "fine": 40, "progress": False}


@pytest.fixture(scope="module")
def small():
    """A quick fit, to be made again."""
    model = mixture().denoiser(sf.VPLinear())
    return model, sf.tune(model, **SMALL)


def test_the_same_seed_gives_the_same_file(small, tmp_path):
    model, solver = small
    for number, one in enumerate((solver, sf.tune(model, **SMALL))):
        one.save(tmp_path / f"{number}.json")
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()


def test_a_file_holds_the_solver(tuned, tmp_path):
    _, solver = tuned
    solver.save(tmp_path / "tuned.json")
    loaded = solvers.get(str(tmp_path / "tuned.json"))
    assert loaded == solver
    assert loaded.at(4).verdict == solver.at(4).verdict


@pytest.mark.parametrize("after", [300, 40_000])
def test_a_tune_goes_on_where_it_was_stopped(small, tmp_path, after, monkeypatch):
    model, whole = small
    spent = 0

    class StoppedError(Exception):
        pass

    spend = sf.tuning.progress.Budget.spend

    def counted(self, calls):
        nonlocal spent
        spent += calls
        if spent > after:
            raise StoppedError
        spend(self, calls)

    file = tmp_path / "state.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(sf.tuning.progress.Budget, "spend", counted)
        with pytest.raises(StoppedError):
            sf.tune(model, **SMALL, checkpoint=file)
    assert sf.tune(model, **SMALL, checkpoint=file).document() == whole.document()
    with pytest.raises(sf.CorruptFileError, match="another call"):
        sf.tune(model, **{**SMALL, "seed": 1}, checkpoint=file)


def test_a_checkpoint_of_another_condition_or_guidance_is_refused(tmp_path):
    """What changes the model's answers and is in no argument of the call, too."""
    model = labelled().denoiser(sf.VPLinear()).with_condition(0)
    how = {"nfe": 3, "n": 8, "judge": 8, "against": ["ddim"], "fine": 16, "derivatives": "none", "progress": False}
    file = tmp_path / "state.safetensors"
    sf.tune(model, **how, checkpoint=file)
    sf.tune(model, **how, calls=10**6, checkpoint=file)  # a budget is no other work
    for other in (model.with_condition(1), model.with_guidance(2.0), model.with_smoothing(0.1)):
        with pytest.raises(sf.CorruptFileError, match="another call"):
            sf.tune(other, **how, checkpoint=file)


def test_least_squares_on_own_states_need_no_derivatives(tuned):
    model, _ = tuned
    solver = sf.tune(
        model, nfe=4, n=96, judge=192, against=FEW, fine=120, derivatives="none", dtype=torch.float64, progress=False
    )
    assert solver.verdict.fitted == "least squares on the run's own states"
    assert solver.verdict.won
    assert solver.verdict.gain_median[1] > 1.5


def test_a_fit_that_does_not_win_gives_the_plain_solver():
    """With a constant estimate of the noise, DDIM is exact, which cannot be bettered."""
    model = sf.Denoiser(lambda x, t: torch.full_like(x, 0.3), sf.VPLinear(), shape=(2,), prediction="epsilon")
    solver = sf.tune(model, nfe=6, n=32, judge=64, against=FEW, fine=60, dtype=torch.float64, progress=False)
    plain = solver.at().down
    assert isinstance(plain, Plain)
    assert not solver.verdict.won
    assert "did not win" in str(solver.verdict)
    x = sf.noise.initial(0, range(5), model.shape, dtype=torch.float64) * model.schedule.sigma(model.schedule.t_max)
    found = sf.sample(model, x=x, solver=solver)
    expected = sf.sample(model, x=x, solver=plain.solver, nfe=6, grid=plain.grid)
    assert torch.equal(found.x, expected.x)
    with pytest.raises(sf.InputError, match="was better than the fit"):
        solver.sigmas()


def test_a_black_box_is_fitted_by_differences():
    exact = mixture().denoiser(sf.VPLinear())

    def net(x, t):
        with torch.no_grad():
            return exact(x.double(), float(t[0])).eps.float()

    model = sf.Denoiser(net, sf.VPLinear(), shape=(2,), name="a function")
    solver = sf.tune(model, nfe=4, n=64, judge=128, against=FEW, fine=80, progress=False)
    assert "differences" in solver.verdict.fitted
    assert solver.verdict.won
    assert solver.verdict.gain_median[1] > 2.0


def test_conditions_and_a_range_of_guidance():
    model = labelled().denoiser(sf.VPLinear())
    solver = sf.tune(
        model, nfe=5, guidance=(1.0, 3.0), n=90, judge=90, against=FEW, fine=80, progress=False, dtype=torch.float64
    )
    assert solver.guidance == (1.0, 3.0)
    assert solver.verdict.won
    with pytest.warns(UserWarning, match="guidance 1 to 3, and this run has 5"):
        sf.sample(model.with_condition(1), n=2, solver=solver, guidance=5.0, dtype=torch.float64)


@pytest.mark.filterwarnings("error")
def test_elsewhere_a_tuned_solver_warns(tuned):
    model, solver = tuned
    sf.sample(model, n=2, solver=solver, nfe=4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="this model is 'mixture'"):
        sf.sample(mixture(components=4).denoiser(sf.VPLinear()), n=2, solver=solver, nfe=4, dtype=torch.float64)


@pytest.mark.parametrize("targets", [None, [1]])
def test_round_trips_are_fitted_together(targets):
    data = labelled()
    model = data.denoiser(sf.VPLinear())
    x = data.sample(220, label=0)
    guidance = None if targets is None else 2.0
    solver = sf.tune(
        model,
        nfe=5,
        task="round trip",
        x=x,
        conditions=[0],
        targets=targets,
        guidance=guidance,
        against=["ddim", "fireflow", "ees25"],
        fine=80,
        progress=False,
    )
    verdict = solver.verdict
    assert verdict.won
    assert verdict.gain_median[1] > 1.5
    assert verdict.beside[0] <= 1.1 * verdict.beside[1]
    source = model.with_condition(0)
    fresh = data.sample(100, label=0)
    inversion = sf.invert(source, fresh, solver=solver)
    assert inversion.nfe == inversion.decode().nfe == 5
    error = judging.median(sf.metrics.rmse(inversion.decode().x, fresh))
    assert error == pytest.approx(verdict.median, rel=0.6)
    if targets is not None:
        fine = sf.invert(source, fresh, solver="rk4", nfe=80)
        to = model.with_condition(1)
        exact = fine.decode(to, guidance=2.0).x
        edited = inversion.decode(to, guidance=2.0).x
        assert judging.median(sf.metrics.rmse(edited, exact)) == pytest.approx(verdict.beside[0], rel=0.6)
    with pytest.raises(sf.InputError, match="fitted for round trips"):
        sf.sample(source, n=2, solver=solver, dtype=torch.float64)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"nfe": 0}, "nfe"),
        ({"nfe": []}, "nfe"),
        ({"nfe": 4, "task": "paint"}, "task"),
        ({"nfe": 4, "task": "round trip"}, "x: round trips begin at samples"),
        ({"nfe": 4, "targets": [1]}, "targets"),
        ({"nfe": 4, "n": 3}, "n, judge"),
        ({"nfe": 4, "fine": 3}, "fine"),
        ({"nfe": 4, "guidance": (3.0, 1.0)}, "guidance"),
        ({"nfe": 4, "conditions": "a cat"}, "conditions"),
        ({"nfe": 4, "conditions": []}, "conditions"),
        ({"nfe": 4, "x": torch.zeros(9, 2)}, "n, judge"),
        ({"nfe": 4, "x": torch.zeros(100, 2), "n": 90}, "x: got 100"),
        ({"nfe": 4, "t_min": 0.9, "t_max": 0.5}, "t_min"),
        ({"nfe": 4, "against": ["ddimm"]}, "ddim"),
        ({"nfe": 4, "against": "ddim"}, "against"),
        ({"nfe": 4, "against": []}, "against"),
        ({"nfe": 4, "batch_size": 0}, "batch_size"),
        ({"nfe": 4.0}, "nfe"),
        ({"nfe": 4, "guidance": (1, 2, 3)}, "guidance"),
        ({"nfe": 4, "seed": -1}, "seed"),
        ({"nfe": 8, "fine": 24}, "fine"),
        ({"nfe": 4, "calls": -1}, "calls"),
        ({"nfe": 4, "conditions": [0.5]}, "conditions"),
        ({"nfe": 4, "derivatives": "guess"}, "derivatives"),
        ({"nfe": 1, "against": ["rk4"]}, "nfe"),
    ],
)
def test_what_cannot_be_is_refused_by_name(words, message):
    model = mixture().denoiser(sf.VPLinear())
    with pytest.raises(sf.InputError, match=message):
        sf.tune(model, **words, progress=False)


def test_a_tuned_solver_is_no_plain_one(tuned):
    model, solver = tuned
    with pytest.raises(sf.InputError, match="against: got a tuned solver"):
        sf.tune(model, nfe=4, against=["ddim", solver], progress=False)


def test_a_model_that_answers_in_two_ways_is_refused():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5))
    model = sf.Denoiser(lambda x, t: net(x), sf.VPLinear(), shape=(3,))
    with pytest.raises(sf.InputError, match="eval"):
        sf.tune(model, nfe=4, n=8, judge=8, progress=False)


@pytest.mark.slow
def test_all_guidance_scales_choose_the_plain_solvers_and_batches_do_not_matter():
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    data = sf.GaussianMixture(means, torch.full((6, 3), 0.3, dtype=torch.float64), labels=torch.arange(6) % 2)
    model = data.denoiser(sf.VPLinear())
    how = {
        "nfe": 4,
        "guidance": (1.0, 12.0),
        "n": 48,
        "judge": 48,
        "fine": 60,
        "derivatives": "none",
        "progress": False,
    }
    found = [sf.tune(model, **how, batch_size=size, dtype=torch.float64).verdict for size in (3, 64)]
    assert found[0].plain == found[1].plain
    assert found[0].plain_mean == pytest.approx(found[1].plain_mean, rel=1e-9)


def test_a_fit_cannot_win_against_a_reference_that_is_no_finer():
    errors = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = judging.Candidate(Plain(solvers.get("ddim"), "uniform"), sf.Grid((1.0, 0.5)))
    judged = judging.Judged([(plain, 5.0 * errors)], 1)
    assert judging.verdict(errors, judged, "", 64, 0.1 * judging.median(errors), 0).won
    assert not judging.verdict(errors, judged, "", 64, 3.0 * judging.median(errors), 0).won


def test_a_scheme_is_checked():
    good = {"times": (0.9, 0.5), "end": 0.0, "rows": ((1.0,), (1.0, -0.4)), "weights": (1.0, -0.2, -0.3)}
    assert Scheme(**good).calls == 2
    for name, value in (
        ("times", (0.5, 0.9)),
        ("end", 0.6),
        ("rows", ((1.0,), (1.0,))),
        ("weights", (1.0, float("nan"), 0.0)),
        ("rows", ((2.0,), (1.0, 0.1))),
    ):
        with pytest.raises(sf.InputError, match="scheme"):
            Scheme(**{**good, name: value})


def test_gains_have_intervals_that_hold_the_truth():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(100):
        spread = torch.randn(200, generator=generator, dtype=torch.float64).mul(0.5).exp()
        noise = torch.randn(2, 200, generator=generator, dtype=torch.float64).mul(0.2).exp()
        _, low, high = judging.gain(3.0 * spread * noise[0], spread * noise[1], lambda errors: errors.mean(-1))
        held += low < 3.0 < high
    assert held >= 86  # 95 % of 100; fewer than 86 have a probability below 1e-3
