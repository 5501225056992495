"""Adaptive steps and the choice of a solver."""

import pytest
import torch

import steadyflow as sf
from oracles import gaussian, gaussian_flow
from steadyflow._integrate import PID

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
        run = sf.solve_adaptive(model, x, solver=solver, rtol=tolerance, atol=tolerance)
        errors.append((run.x - exact).abs().max().item())
        assert errors[-1] < 10 * tolerance
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("path", [sf.RectifiedFlow(), sf.VE(), sf.VPCosine()], ids=repr)
@pytest.mark.parametrize("solver", ["dopri5", "ees25"])
def test_every_path_is_crossed_whole(solver, path):
    model, x, exact = problem(path)
    run = sf.solve_adaptive(model, x, solver=solver, rtol=1e-5, atol=1e-5)
    assert (run.x - exact).abs().max() < 3e-3 * x.abs().max()
    assert run.grid.times[0] == path.t_max
    assert run.grid.times[-1] == path.t_min


def test_the_accepted_grid_retraces_the_run():
    model, x, _ = problem()
    run = sf.solve_adaptive(model, x, solver="dopri5", rtol=1e-6, atol=1e-6)
    again = sf.sample(model, x=x, solver="dopri5", grid=run.grid)
    assert torch.equal(again.x, run.x)
    up = sf.integrate(model, run.x, run.grid.reversed(), sf.solvers.get("dopri5")).x
    assert (up - x).abs().max() < 1e-4


def test_inversion_is_the_same_call_with_the_ends_exchanged():
    model, x, _ = problem()
    t_min, t_max = model.schedule.t_range
    down = sf.solve_adaptive(model, x, rtol=1e-8, atol=1e-8)
    up = sf.solve_adaptive(model, down.x, t_start=t_min, t_end=t_max, rtol=1e-8, atol=1e-8)
    assert up.grid.rising
    assert (up.x - x).abs().max() < 1e-4


def test_the_worst_sample_sets_the_step():
    mixture = sf.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.02)
    model = mixture.denoiser(sf.VPLinear())
    easy = torch.full((1, 1), 2.0, dtype=torch.float64)
    hard = torch.full((1, 1), 0.01, dtype=torch.float64)  # near the saddle between the modes
    alone = sf.solve_adaptive(model, easy).grid.steps
    together = sf.solve_adaptive(model, torch.cat([easy, hard])).grid.steps
    assert together > alone
    assert together == sf.solve_adaptive(model, hard).grid.steps


def test_a_step_that_fails_is_taken_back_and_counted():
    model, x, exact = problem()
    run = sf.solve_adaptive(model, x, solver="bogacki-shampine", first_step=0.9, rtol=1e-6, atol=1e-6)
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
    run = sf.solve_adaptive(watched, x, solver=solver, first_step=0.9, rtol=1e-6, atol=1e-6)
    assert run.rejected > 0
    last = prediction == "sample"  # of DDIM; with a known slope it asks nothing
    tried = run.grid.steps - last + run.rejected
    saved = 0 if first else run.rejected - last
    assert run.nfe == len(asked) == first + more * tried - saved
    pairs = [(a, b) for k, a in enumerate(asked) for b in asked[k + 1 :] if a[1] == b[1]]
    assert not any(torch.equal(a[0], b[0]) for a, b in pairs)


def test_the_controller_shrinks_after_large_errors_and_grows_after_small_ones():
    control = PID()
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
        sf.solve_adaptive(model, x, **options)


def test_too_few_steps_say_how_far_they_came():
    model, x, _ = problem()
    with pytest.raises(sf.ConvergenceError, match="3 steps reached t = "):
        sf.solve_adaptive(model, x, max_steps=3)


@pytest.fixture(scope="module")
def conditional():
    from steadyflow_lab.coupling import conditional_mixture

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
    inversion = sf.invert(model.with_condition(0), x, solver="auto", nfe=48, exact=True, target=target)
    assert inversion.solver.properties.inverse == "exact"
    assert (inversion.decode().x - x).abs().max() < 1e-11
    assert inversion.decode(target).x.abs().max() < 10


def test_exactness_and_target_go_with_auto_alone(conditional):
    model, x = conditional
    with pytest.raises(sf.InputError, match="solver='auto'"):
        sf.invert(model, x, solver="ees25", exact=True)
    with pytest.raises(sf.InputError, match="no candidate can invert with 1 evaluations"):
        sf.choose_solver(model, x, nfe=1)
