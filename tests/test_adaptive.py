"""Adaptive steps and the choice of a solver."""

import pytest
import torch

import steadyflow as sf
from oracles import adaptive, gaussian, gaussian_flow

EMBEDDED = ["heun", "bogacki-shampine", "dopri5", "tsit5", "ees25"]


def problem(schedule=None):
    schedule = schedule or sf.VPLinear()
    mixture = gaussian()
    x = schedule.sigma(schedule.t_max) * sf.noise.initial(0, range(6), (3,), dtype=torch.float64)
    exact = gaussian_flow(mixture, schedule, x, schedule.t_max, schedule.t_min)
    return mixture.denoiser(schedule), x, exact


@pytest.mark.parametrize("solver", EMBEDDED)
def test_the_error_follows_the_tolerance(solver):
    model, x, exact = problem()
    errors = []
    for tolerance in (1e-2, 1e-4):
        run = adaptive(model, x, solver=solver, rtol=tolerance, atol=tolerance)
        errors.append((run.x - exact).abs().max().item())
        assert errors[-1] < 10 * tolerance
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("path", [sf.RectifiedFlow(), sf.VE(), sf.VPCosine()], ids=repr)
@pytest.mark.parametrize("solver", ["dopri5", "ees25"])
def test_every_path_is_crossed_whole(solver, path):
    model, x, exact = problem(path)
    run = adaptive(model, x, solver=solver, rtol=1e-5, atol=1e-5)
    assert (run.x - exact).abs().max() < 3e-3 * x.abs().max()
    assert run.grid.times[0] == path.t_max
    assert run.grid.times[-1] == path.t_min


def test_the_accepted_grid_retraces_the_run():
    model, x, _ = problem()
    run = adaptive(model, x, solver="dopri5", rtol=1e-6, atol=1e-6)
    again = sf.sample(model, x=x, solver="dopri5", grid=run.grid, end="path")
    assert torch.equal(again.x, run.x)
    up = sf.integrate(model, run.x, run.grid.reversed(), sf.solvers.get("dopri5")).x
    assert (up - x).abs().max() < 1e-4


def test_inversion_is_the_same_call_with_the_ends_exchanged():
    model, x, _ = problem()
    t_min, t_max = model.schedule.t_range
    down = adaptive(model, x, rtol=1e-8, atol=1e-8)
    up = adaptive(model, down.x, t_start=t_min, t_end=t_max, rtol=1e-8, atol=1e-8)
    assert up.grid.rising
    assert (up.x - x).abs().max() < 1e-4


def test_the_worst_sample_sets_the_step():
    mixture = sf.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.02)
    model = mixture.denoiser(sf.VPLinear())
    easy = torch.full((1, 1), 2.0, dtype=torch.float64)
    hard = torch.full((1, 1), 0.01, dtype=torch.float64)  # near the saddle between the modes
    alone = adaptive(model, easy).grid.steps
    together = adaptive(model, torch.cat([easy, hard])).grid.steps
    assert together > alone
    assert together == adaptive(model, hard).grid.steps


def test_a_step_that_fails_is_taken_back_and_counted():
    model, x, exact = problem()
    run = adaptive(model, x, solver="bogacki-shampine", first_step=0.9, rtol=1e-6, atol=1e-6)
    assert run.rejected > 0
    assert run.nfe == 1 + 3 * (run.grid.steps + run.rejected)
    assert (run.x - exact).abs().max() < 1e-4


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize(("solver", "first", "more"), [("dopri5", 1, 6), ("ees25", 0, 3)])
def test_nothing_is_asked_twice(solver, first, more, prediction):
    """The slope at a step's end is the next one's first, where there is one; a step tried again keeps its first.

    A sample prediction is not asked at sigma = 0, but a little before, from where DDIM goes on.
    """
    model, x, _ = problem(sf.RectifiedFlow())
    asked = []

    def net(x, t):
        asked.append((x.clone(), float(t[0])))
        answer = model(x, float(t[0]))
        return answer.output if prediction == "v_prediction" else answer.x0

    watched = sf.Denoiser(net, model.schedule, prediction=prediction, shape=model.shape)
    run = adaptive(watched, x, solver=solver, first_step=0.9, rtol=1e-6, atol=1e-6)
    assert run.rejected > 0
    last = prediction == "sample"  # of DDIM; with a known slope it asks nothing
    tried = run.grid.steps - last + run.rejected
    saved = 0 if first else run.rejected - last
    assert run.nfe == len(asked) == first + more * tried - saved
    pairs = [(a, b) for k, a in enumerate(asked) for b in asked[k + 1 :] if a[1] == b[1]]
    assert not any(torch.equal(a[0], b[0]) for a, b in pairs)


def test_the_controller_shrinks_after_large_errors_and_grows_after_small_ones():
    control = sf.PIDController()
    assert control.factor([2.0], 3) < 1
    assert control.factor([1e-3], 3) > 1
    assert control.factor([1e9], 3) == control.smallest
    assert control.factor([1e-12], 3) == control.largest
    falling, rising = control.factor([1e-2, 1e-3], 3), control.factor([1e-4, 1e-3], 3)
    assert falling > control.factor([1e-3, 1e-3], 3) > rising  # the trend counts


@pytest.mark.parametrize(("options", "message"), [
    ({"solver": "rk4"}, "no embedded error estimate"), ({"solver": "dpmpp-2m"}, "no embedded"),
    ({"solver": sf.EES25(x=0.25)}, "no embedded"), ({"rtol": 0.0}, "must be positive"),
    ({"t_start": 2.0}, "defined on"),
])  # fmt: skip
def test_bad_arguments_of_adaptive_runs_are_refused(options, message):
    model, x, _ = problem()
    with pytest.raises(sf.InputError, match=message):
        adaptive(model, x, **options)


def test_too_few_steps_say_how_far_they_came():
    model, x, _ = problem()
    with pytest.raises(sf.ConvergenceError, match="3 steps reached t = "):
        adaptive(model, x, max_steps=3)


@pytest.fixture(scope="module")
def conditional():
    from steadyflow_lab.editing.coupling import conditional_mixture

    mixture = conditional_mixture()
    return mixture.denoiser(sf.VPScaledLinear()), mixture.sample(16, label=0)


def test_auto_picks_a_solver_near_the_best_and_says_why(conditional):
    model, x = conditional
    here = model.with_condition(0)
    inversion = sf.invert(here, x, solver="auto", nfe=24)
    assert inversion.nfe <= 24
    assert "24 evaluations each way" in inversion.reason
    chosen = (inversion.decode().x - x).square().mean(1).sqrt().median()
    for other in ("ddim", "midpoint", "rk4", "ees25"):
        fixed = sf.invert(here, x, solver=other, nfe=24)
        assert chosen < 1.5 * (fixed.decode().x - x).square().mean(1).sqrt().median()


def test_auto_takes_an_exact_solver_if_asked(conditional):
    model, x = conditional
    target = model.with_condition(1, guidance=7.5)
    auto = sf.Auto(exact=True, target=target)
    inversion = sf.invert(model.with_condition(0), x, solver=auto, nfe=48)
    assert inversion.solver.properties.inverse == "exact"
    assert (inversion.decode().x - x).abs().max() < 1e-11
    assert inversion.decode(target).x.abs().max() < 10


def test_what_a_choice_cannot_do_is_refused(conditional):
    model, x = conditional
    with pytest.raises(sf.InputError, match="unknown option 'exact'"):
        sf.invert(model, x, solver="ees25", exact=True)
    with pytest.raises(sf.InputError, match="no candidate can do this at 1 evaluations each way"):
        sf.choose_solver(model, x, nfe=1)
    with pytest.raises(sf.InputError, match="give nfe instead"):
        sf.invert(model, x, solver="auto", steps=8)
    with pytest.raises(sf.InputError, match="about inversions"):
        sf.sample(model, n=2, solver=sf.Auto(exact=True))


def test_a_choice_is_made_for_the_run_that_was_asked_for_and_keeps_what_the_caller_wrote(conditional, monkeypatch):
    """Its ends, strength, seed and grid are those of every trial, and of the run itself."""
    from steadyflow.tasks import choosing

    model, x = conditional
    tried, original = [], choosing.run_batched

    def watched(one, grid, solver, options, **start):
        tried.append(
            (min(grid.times), max(grid.times), options.seed, grid.steps * (solver.properties.evaluations or 1))
        )
        return original(one, grid, solver, options, **start)

    monkeypatch.setattr(choosing, "run_batched", watched)
    found = sf.invert(model.with_condition(0), x, solver="auto", nfe=24, strength=0.5, t_min=0.01, seed=7)
    low, high = 0.01, 0.01 + 0.5 * (model.schedule.t_max - 0.01)
    assert {(a, b, seed) for a, b, seed, _ in tried} == {(low, high, 7)}
    assert all(cost <= 24 for *_, cost in tried)
    assert (found.grid.times[0], found.grid.times[-1], found.seed) == (low, high, 7)
    uniform = sf.invert(model.with_condition(0), x, solver="auto", nfe=24, grid="uniform")
    gaps = [b - a for a, b in zip(uniform.grid.times, uniform.grid.times[1:], strict=False)]
    assert max(gaps) - min(gaps) < 1e-9
    times = sf.Grid((0.9, 0.5, 0.2, 0.05))
    assert sf.invert(model.with_condition(0), x, solver="auto", grid=times).grid == times.reversed()


def test_auto_samples_with_a_solver_near_the_best(conditional):
    model, _ = conditional
    exact = sf.sample(model.with_condition(0), n=64, solver="rk4", nfe=801, dtype=torch.float64).x
    found = sf.sample(model.with_condition(0), n=64, solver=sf.Auto(), nfe=24, dtype=torch.float64)
    assert found.nfe <= 24
    assert "distance to a fine solve" in found.reason
    error = (found.x - exact).square().mean(1).sqrt().median()
    for other in ("ddim", "dpmpp-2m", "unipc", "ees25"):
        fixed = sf.sample(model.with_condition(0), n=64, solver=other, nfe=24, dtype=torch.float64).x
        assert error < 1.5 * (fixed - exact).square().mean(1).sqrt().median()


def test_every_verb_takes_adaptive_steps_with_its_callbacks_corrections_and_records(conditional):
    model, x = conditional
    here, seen = model.with_condition(0), []
    control = sf.PIDController(rtol=1e-6, atol=1e-6)
    found = sf.invert(here, x, solver="dopri5", steps=control, callback=seen.append, record="all", progress=False)
    assert [info.t for info in seen] == list(found.grid.times[1:]) == list(found.trajectory.times[1:])
    assert all(info.total is None for info in seen)
    assert (found.decode().x - x).abs().max() < 1e-4
    drawn = sf.sample(here, n=4, solver="tsit5", steps=control, dtype=torch.float64, record=3)
    assert drawn.grid.clean
    assert torch.equal(drawn.trajectory.x[-1], drawn.x)
    stopped = sf.sample(here, n=4, solver="dopri5", steps=control, corrections=[lambda info: info.x * 0.0])
    assert stopped.x.abs().max() < 1.0  # the correction was obeyed, and what was known of the state forgotten
    with pytest.raises(sf.InputError, match="batch_size"):
        sf.invert(here, x, solver="dopri5", steps=control, batch_size=4)
    with pytest.raises(sf.InputError, match="chooses its own steps"):
        sf.invert(here, x, solver="dopri5", steps=control, grid="uniform")
    with pytest.raises(sf.InputError, match="not both"):
        sf.invert(here, x, solver="dopri5", steps=control, nfe=48)
    with pytest.raises(sf.InputError, match="counts the steps that are left"):
        sf.sample(here, n=4, solver="dopri5", steps=control, corrections=[sf.corrections.Restart(2, 1)])


def test_a_round_trip_from_the_data_itself_keeps_its_tolerance():
    """Also of a noise model, which is not defined at sigma = 0."""
    flow = sf.GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), 0.2).denoiser(sf.RectifiedFlow())
    x = flow.mixture.sample(4).double()
    model = sf.Denoiser(lambda z, t: flow(z, float(t[0])).eps, sf.RectifiedFlow(), "epsilon", shape=(2,))

    def error(rtol):
        steps = sf.PIDController(rtol=rtol, atol=rtol / 10)
        return sf.reconstruct(model, x, solver="dopri5", steps=steps, t_max=0.95).error.max().item()

    coarse, fine, finer = (error(rtol) for rtol in (1e-3, 1e-5, 1e-7))
    assert coarse > 30 * fine > 1000 * finer
    assert sf.sample(model, n=2, solver="dopri5", steps=sf.PIDController(), strength=5e-6).steps == 1


@pytest.mark.parametrize("solver", ["heun", "bogacki-shampine", "dopri5", "tsit5"])
def test_a_correction_in_place_is_the_same_correction(solver):
    model = sf.GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.2).denoiser(sf.VPLinear())
    steps = sf.PIDController(rtol=1e-3, atol=1e-3)
    here = sf.sample(model, n=4, solver=solver, steps=steps, corrections=[lambda info: info.x.mul_(0.9)])
    anew = sf.sample(model, n=4, solver=solver, steps=steps, corrections=[lambda info: info.x * 0.9])
    assert torch.equal(here.x, anew.x)
