"""The two drivers, recording, resuming, and what happens when a run goes wrong."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

import steadyflow as sf
from steadyflow import solvers
from steadyflow._integrate import plan
from steadyflow.solvers.state import concat_states, deserialize_state, serialize_state, slice_state

NAMES = solvers.names()
PATHS = {"vp": sf.VPCosine(), "ve": sf.VE(), "flow": sf.RectifiedFlow(t_min=0.01, t_max=0.99)}


@pytest.fixture
def model():
    return sf.GaussianMixture.grid(3, std=0.3).denoiser(sf.VPCosine())


def start(schedule, n=6):
    return schedule.sigma(schedule.t_max) * sf.noise.initial(0, range(n), (2,), dtype=torch.float64)


@pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", NAMES)
def test_an_outside_loop_gives_the_same_bits_as_ours(name, schedule):
    model = sf.GaussianMixture.grid(3, std=0.3).denoiser(schedule)
    solver, grid, x = solvers.get(name), sf.grids.make("quadratic", schedule, 9), start(schedule)
    noise = sf.noise.Brownian(0, range(len(x)), (2,), dtype=torch.float64)
    ours = sf.integrate(model, x, grid, solver, noise=noise)
    stepper = sf.Stepper(solver, schedule, grid, x, noise=noise)
    queries = []
    while stepper.query is not None:
        queries.append(stepper.query.t)
        stepper.feed(model(stepper.query.x, stepper.query.t))
    assert torch.equal(stepper.x, ours.x)
    assert stepper.nfe == ours.nfe == len(queries)
    if solver.properties.evaluations is not None:
        assert [t for _, t in plan(solver, schedule, grid, sf.noise.Brownian(0, range(1), (1,)))] == queries


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["ddim", "heun", "rex-midpoint", "lms", "dpmpp-2m", "unipc"])
def test_an_outside_loop_may_ask_its_model_at_a_time_a_sample(name, kind):
    schedule = sf.VPCosine()
    model = sf.Denoiser(lambda x, t: torch.tanh(x), schedule, prediction=kind, shape=(2,))
    grid = sf.grids.make("uniform", schedule, 4)
    stepper = sf.Stepper(solvers.get(name), schedule, grid, start(schedule))
    while stepper.query is not None:
        x, t = stepper.query
        stepper.feed(model(x, torch.full((len(x),), t, dtype=torch.float64)))
    wanted = sf.integrate(model, start(schedule), grid, solvers.get(name)).x
    torch.testing.assert_close(stepper.x, wanted, rtol=1e-9, atol=1e-9)


def test_feeding_a_finished_journey_is_refused(model):
    stepper = sf.Stepper(solvers.get("ddim"), model.schedule, sf.Grid((0.5, 0.2)), torch.ones(1, 2))
    prediction = model(stepper.query.x, stepper.query.t)
    stepper.feed(prediction)
    with pytest.raises(sf.InputError, match="run is over"):
        stepper.feed(prediction)


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_counted_as_the_facts_declare(name, model):
    calls = []
    net = model.evaluate
    counting = sf.Denoiser(
        lambda x, t: calls.append(1) or net(x, t[0].item(), None),
        model.schedule,
        prediction="v_prediction",
        shape=(2,),
    )
    out = sf.sample(counting, x=start(model.schedule), solver=name, steps=5, end="path")
    facts = solvers.get(name).properties
    assert out.nfe == len(calls)
    if facts.evaluations is not None:
        assert out.nfe == 5 * facts.evaluations + facts.startup_evaluations


@pytest.mark.parametrize(("record", "kept"), [("all", [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6, 7]), (7, [0, 7])])
def test_recording_keeps_the_states_that_were_asked_for(record, kept, model):
    grid = sf.grids.make("uniform", model.schedule, 7)
    seen = [start(model.schedule)]
    run = sf.integrate(
        model, seen[0], grid, solvers.get("ees25"), record=record, callback=lambda m: seen.append(m.x.clone())
    )
    assert run.trajectory.times == tuple(grid.times[k] for k in kept)
    assert torch.equal(run.trajectory.x, torch.stack([seen[k] for k in kept]))


@pytest.mark.parametrize("record", [None, "last"])
def test_nothing_is_recorded_unless_asked_for(record, model):
    grid = sf.grids.make("uniform", model.schedule, 3)
    assert sf.integrate(model, start(model.schedule), grid, sf.Euler(), record=record).trajectory is None


def test_memory_does_not_grow_with_the_number_of_steps():
    """The largest number of living tensors of the state's size is the same for 5 and for 25 steps."""
    import gc

    class Spy:
        most = 0

        def __call__(self, info):
            alive = sum(
                type(o) is torch.Tensor and o.numel() == info.x.numel() and o.shape == info.x.shape
                for o in gc.get_objects()
            )
            self.most = max(self.most, alive)

    model = sf.GaussianMixture.grid(3, std=0.3).denoiser(sf.VPCosine())
    most = []
    gc.freeze()  # what was there before is not looked through at every step
    try:
        for steps in (5, 25):
            spy = Spy()
            sf.sample(model, n=257, solver="ddpm", steps=steps, callback=spy, noise="white", end="path")
            most.append(spy.most)
    finally:
        gc.unfreeze()
    assert most[0] > 0
    assert most[1] <= most[0]


@pytest.mark.parametrize(("name", "passes"), [("ddim", 2), ("euler", 2), ("heun", 5), ("dpmpp-2m", 4), ("unipc", 5)])
def test_a_step_passes_over_the_state_as_often_as_its_formula_has_terms(name, passes):
    """Counted by torch itself, beside the model and the one sum a step that notices NaN."""

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            counted.append(isinstance(out, torch.Tensor) and out.shape == shape and function not in FREE)
            return out

    shape, schedule = (2, 3, 4), sf.VPScaledLinear()
    FREE = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
    answer, counts = torch.ones(shape), []
    model = sf.Denoiser(lambda x, t: answer, schedule, shape=shape[1:])
    for steps in (8, 18):
        counted: list[bool] = []
        with Counter():
            sf.integrate(model, torch.ones(shape), sf.grids.make("uniform", schedule, steps), solvers.get(name))
        counts.append(sum(counted))
    assert counts[1] - counts[0] == 10 * passes


def test_callbacks_see_every_solver_step_once_and_in_order(model):
    seen = []
    sf.sample(model, n=2, solver="rk4", steps=4, callback=seen.append, end="path")
    assert [(info.done, info.total, info.nfe) for info in seen] == [(1, 4, 4), (2, 4, 8), (3, 4, 12), (4, 4, 16)]


def test_a_correction_replaces_the_state_and_is_seen_by_the_next_step(model):
    seen = []

    def clamp(info):
        seen.append(info.done)
        return info.x.clamp(-0.1, 0.1) if info.done == 3 else None

    out = sf.sample(model, n=16, solver="euler", steps=3, corrections=[clamp], end="path")
    assert seen == [1, 2, 3]
    assert out.x.abs().max() <= 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_run_stopped_saved_and_resumed_ends_in_the_same_bits(name, model, tmp_path):
    grid, x, solver = sf.grids.make("quadratic", model.schedule, 9), start(model.schedule), solvers.get(name)

    def noise():
        return sf.noise.Brownian(4, range(len(x)), (2,), dtype=torch.float64)

    whole = sf.integrate(model, x, grid, solver, noise=noise())
    part = sf.integrate(model, x, grid, solver, noise=noise(), stop_after=4)
    assert not part.finished
    part.save(tmp_path / "run.safetensors")
    loaded = sf.Solution.load(tmp_path / "run.safetensors")
    rest = sf.integrate(model, None, loaded.grid, loaded.solver, noise=noise(), resume=loaded)
    assert rest.finished
    assert torch.equal(rest.x, whole.x)
    assert rest.nfe == whole.nfe


def test_resuming_over_another_grid_is_refused(model):
    grid = sf.grids.make("quadratic", model.schedule, 4)
    part = sf.integrate(model, start(model.schedule), grid, sf.Euler(), stop_after=2)
    with pytest.raises(sf.InputError, match="another grid or solver"):
        sf.integrate(model, None, sf.grids.make("uniform", model.schedule, 4), sf.Euler(), resume=part)


def test_nan_in_mid_run_names_the_step_and_the_times(model):
    schedule = sf.VPLinear()
    grid = sf.Grid((0.9, 0.7, 0.5, 0.3))
    breaks = sf.Denoiser(lambda x, t: x * (float("nan") if t[0] < 0.6 else 1.0), schedule, shape=(2,))
    with pytest.raises(sf.NonFiniteError, match=r"step 3, between t = 0\.5 and t = 0\.3"):
        sf.sample(breaks, x=torch.ones(1, 2), solver="ddim", grid=grid, end="path")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("verb", ["sample", "invert", "reconstruct"])
def test_nan_and_infinity_in_the_input_are_refused_and_the_sample_named(verb, value, model):
    x = torch.zeros(4, 2)
    x[2, 1] = value
    call = {
        "sample": lambda: sf.sample(model, x=x, end="path"),
        "invert": lambda: sf.invert(model, x),
        "reconstruct": lambda: sf.reconstruct(model, x),
    }[verb]
    with pytest.raises(sf.InputError, match=r"NaN or infinity in sample\(s\) 2"):
        call()


def test_large_numbers_whose_sum_overflows_are_finite_all_the_same():
    large = torch.full((2, 3), 3e38)
    stays = sf.Denoiser(lambda x, t: x, sf.RectifiedFlow(), prediction="sample", shape=(3,))
    assert sf.sample(stays, x=large, solver="ddim", steps=2, end="path").x.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_states_of_less_than_single_precision_are_refused(dtype, model):
    with pytest.raises(sf.InputError, match=r"expected float32 or float64"):
        sf.sample(model, x=torch.zeros(2, 2, dtype=dtype), end="path")


@pytest.mark.parametrize(("x", "message"), [
    (torch.zeros(3, 5), r"samples of shape \(5,\), but the model's are \(2,\)"),
    (torch.zeros(2), r"expected \(batch, \.\.\.\)"),
    (torch.zeros(0, 2), "at least one sample"),
    ([[0.0, 0.0]], "expected a torch tensor"),
])  # fmt: skip
def test_wrong_shapes_are_refused(x, message, model):
    with pytest.raises(sf.InputError, match=message):
        sf.invert(model, x)


def test_a_network_that_answers_in_another_shape_is_named():
    model = sf.Denoiser(lambda x, t: x[:, :1], sf.VPLinear(), shape=(2,))
    with pytest.raises(sf.InputError, match=r"returned shape \(3, 1\) for a state of shape \(3, 2\)"):
        sf.sample(model, n=3, end="path")


@pytest.mark.parametrize(("solver", "message"), [
    ("ees52", "did you mean 'ees25' or 'ees27'|did you mean 'ees27' or 'ees25'"),
    ("DDMI", "ddim"),
    ("euler ancestral", "unknown solver"),
])  # fmt: skip
def test_an_unknown_solver_gets_the_nearest_names(solver, message, model):
    with pytest.raises(sf.UnknownNameError, match=message):
        sf.sample(model, n=1, solver=solver, end="path")


def test_an_unknown_option_of_a_solver_is_refused():
    with pytest.raises(sf.InputError, match="no option 'gamma'; it takes coordinates, x"):
        solvers.get("ees25", gamma=1)


@pytest.mark.parametrize("steps", [0, -3, 2.0, True, "8"])
def test_fewer_than_one_step_is_refused(steps, model):
    with pytest.raises(sf.InputError, match="steps"):
        sf.sample(model, n=1, steps=steps, end="path")


@pytest.mark.parametrize("solver", ["ddpm", sf.DDIM(eta=0.5)])
def test_a_stochastic_solver_refuses_to_invert(solver, model):
    for call in (sf.invert, sf.reconstruct):
        with pytest.raises(sf.NotInvertibleError, match=r"stochastic.*cannot invert"):
            call(model, torch.zeros(1, 2), solver=solver)
    method = solvers.get(solver)
    with pytest.raises(sf.NotInvertibleError):
        sf.integrate(model, torch.zeros(1, 2), sf.Grid((0.1, 0.5)), method)
    with pytest.raises(sf.NotInvertibleError):
        sf.Stepper(method, model.schedule, sf.Grid((0.1, 0.5)), torch.zeros(1, 2))


def test_a_grid_outside_the_path_is_refused(model):
    for grid in (sf.Grid((1.5, 0.1)), sf.Grid((0.5, -0.1))):
        with pytest.raises(sf.InputError, match=r"VPCosine is defined on \[0.0, 1.0\]"):
            sf.sample(model, n=1, grid=grid, end="path")


def test_a_singular_evaluation_says_so():
    """An epsilon network cannot say x0 where alpha = 0: the very end of a cosine path."""
    model = sf.Denoiser(lambda x, t: x, sf.VPCosine(), prediction="epsilon", shape=(2,))
    with pytest.raises(sf.SingularTimeError, match="needs alpha > 0"):
        sf.sample(model, n=1, t_max=1.0, end="path")


@pytest.mark.parametrize("x", [1.0, 0.5, -0.5, float("nan")])
def test_inadmissible_ees_parameters_are_refused_when_the_solver_is_made(x):
    with pytest.raises(sf.InputError, match="expected a finite number other than"):
        sf.EES25(x=x)


def test_inadmissible_options_of_other_solvers_are_refused():
    with pytest.raises(sf.InputError, match="branch"):
        sf.EES27(branch="*")
    with pytest.raises(sf.InputError, match="other than"):
        sf.EES27(x=0.5)
    with pytest.raises(sf.InputError, match="eta"):
        sf.DDIM(eta=1.5)
    with pytest.raises(sf.UnknownNameError, match="coordinates 'nose': did you mean 'noise'"):
        sf.Euler(coordinates="nose")


def test_a_state_survives_packing_cutting_and_joining():
    value = (torch.arange(6.0).view(3, 2), (torch.ones(3, 1), 0.1, None, 7))
    tensors, text = serialize_state(value)
    again = deserialize_state(tensors, text)
    assert torch.equal(again[0], value[0])
    assert again[1][1:] == (0.1, None, 7)
    parts = concat_states([slice_state(value, 0, 1), slice_state(value, 1, 3)])
    assert torch.equal(parts[0], value[0])
    assert parts[1][1:] == (0.1, None, 7)


def test_a_state_that_does_not_fit_its_file_is_refused():
    with pytest.raises(sf.CorruptFileError):
        deserialize_state({}, json.dumps({"tensor": "missing"}))
    with pytest.raises(sf.CorruptFileError):
        deserialize_state({}, "[" * 5)
    with pytest.raises(sf.CorruptFileError):
        deserialize_state({}, json.dumps({"tuple": "os.system", "items": []}))


def test_a_file_of_another_program_is_not_taken_for_a_run(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(sf.CorruptFileError, match="file of another program"):
        sf.Solution.load(tmp_path / "other.safetensors")


def test_gradients_flow_from_the_start_alone():
    """Parameters that still require gradients make no graph over the steps, a start that does is differentiated."""
    net = torch.nn.Linear(2, 2)
    model = sf.Denoiser(lambda x, t: net(x), sf.VPLinear(), shape=(2,))
    assert not sf.sample(model, n=4, steps=5, end="path").x.requires_grad
    start = torch.randn(4, 2, requires_grad=True)
    sf.sample(model, x=start, steps=5, end="path").x.sum().backward()
    assert start.grad is not None
    assert start.grad.abs().min() > 0


def test_a_stepper_that_was_given_a_wrong_answer_is_over():
    path = sf.VPLinear()
    stepper = sf.Stepper(sf.DDIM(), path, sf.Grid((0.9, 0.5, 0.1)), torch.zeros(1, 2))
    query = stepper.query
    wrong = sf.Prediction(query.x, torch.zeros(1, 3), "epsilon", path.alpha(query.t), path.sigma(query.t))
    with pytest.raises(RuntimeError):
        stepper.feed(wrong)
    assert stepper.nfe == 0
    with pytest.raises(sf.InputError, match="over"):
        stepper.feed(wrong)


def test_a_resumed_run_takes_no_other_start():
    model = sf.GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.2).denoiser(sf.VPLinear())
    grid, x = sf.Grid((0.9, 0.5, 0.1)), torch.randn(2, 2)
    half = sf.integrate(model, x, grid, sf.DDIM(), stop_after=1)
    with pytest.raises(sf.InputError, match="resume"):
        sf.integrate(model, x, grid, sf.DDIM(), resume=half)
