"""The same seed gives the same bits, however the work is cut up, and nothing waits for the device in a step."""

import itertools

import pytest
import torch

import steadyflow as sf
from steadyflow import noise, solvers
from steadyflow._integrate import Stepper, integrate
from steadyflow._integrate.records import Watch
from steadyflow.noise import SOURCES

SHAPE = (3, 5, 7)  # 105 numbers, no multiple of a vector's width
SOLVERS = solvers.names()
LOOKS = ("aidi", "renoise")  # their inversions look once a step whether they converge
STEADY = [name for name in SOLVERS if solvers.get(name).properties.evaluations is not None]
KINDS = [(name, "brownian") for name in SOLVERS]
KINDS += [(name, "white") for name in SOLVERS if solvers.get(name).properties.stochastic]
PATHS = {"vp": sf.VPScaledLinear(), "flow": sf.RectifiedFlow(t_min=0.02, t_max=0.98)}


def elementwise(path):
    """A model whose numbers do not depend on the batch: polynomials of each entry alone."""
    return sf.Denoiser(lambda x, t: 0.3 * x - 0.05 * x * x * x / (1.0 + x * x), path, shape=SHAPE)


def drawn(solver, path, **options):
    return sf.sample(
        elementwise(path),
        n=13,
        solver=solver,
        steps=5,
        seed=3,
        t_min=0.05,
        t_max=0.9,
        progress=False,
        **options,
        end="path",
    ).x


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("solver", "kind"), KINDS)
def test_samples_are_the_same_bits_for_any_batch_size_and_thread_count(solver, path, kind):
    method = solvers.get(solver)
    whole = drawn(solver, PATHS[path], noise=kind)
    if method.properties.evaluations is not None:  # else a batch iterates until its worst sample has converged
        for size in (1, 4, 13):
            assert torch.equal(drawn(solver, PATHS[path], noise=kind, batch_size=size), whole)
        alone = sf.sample(
            elementwise(PATHS[path]),
            n=1,
            index=9,
            solver=solver,
            steps=5,
            seed=3,
            t_min=0.05,
            t_max=0.9,
            noise=kind,
            end="path",
        )
        assert torch.equal(alone.x[0], whole[9])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(drawn(solver, PATHS[path], noise=kind), whole)
    finally:
        torch.set_num_threads(threads)


def test_networks_keep_bits_on_reruns_and_are_close_for_other_batches():
    model = sf.load("digits").with_condition(torch.arange(10) % 10)
    first = sf.sample(model, n=10, solver="dpmpp-2m-sde", steps=10, end="path").x
    assert torch.equal(sf.sample(model, n=10, solver="dpmpp-2m-sde", steps=10, end="path").x, first)
    other = sf.sample(model, n=10, solver="dpmpp-2m-sde", steps=10, batch_size=3, end="path").x
    assert (other - first).abs().max() < 1e-4  # matrix products add up in another order


@pytest.mark.parametrize("solver", STEADY)
def test_no_step_reads_from_the_device(solver):
    """On the meta device there is nothing to be read: a step that looked at a number would fail."""
    method = solvers.get(solver)
    path = PATHS["vp"]
    model = sf.Denoiser(lambda x, t: x * 0.5, path, shape=SHAPE)
    grid = sf.grids.make("uniform", path, 4, t_min=0.05, t_max=0.9)

    class Meta(noise.White):
        def _normal(self, stream, node):
            return torch.empty(len(self.samples), *self.shape, device="meta")

    x = torch.empty(2, *SHAPE, device="meta")
    for direction in (grid, grid.reversed()) if method.invertible and solver not in LOOKS else (grid,):
        stepper = Stepper(method, path, direction, x, noise=Meta(0, range(2), SHAPE))
        while stepper.query is not None:
            stepper.feed(model(stepper.query.x, stepper.query.t))
        assert stepper.x.shape == x.shape


def test_the_watch_for_nan_does_not_read_from_an_accelerator():
    watch = Watch(torch.empty(2, 3, device="meta"))
    for _ in range(3):
        watch.see(torch.empty(2, 3, device="meta"), 1, None)  # reading would raise


@pytest.mark.parametrize("solver", STEADY)
def test_networks_may_reuse_the_memory_of_their_answers(solver):
    """As they do under CUDA graphs (torch.compile in mode "reduce-overhead")."""
    path, memory = PATHS["vp"], torch.empty(4, *SHAPE)

    def fresh(x, t):
        return torch.tanh(x) * 0.7

    def same(x, t):
        return torch.tanh(x, out=memory).mul_(0.7)

    runs = []
    for net, options in ((fresh, {}), (same, {"reuses_output": True})):
        model = sf.Denoiser(net, path, shape=SHAPE, **options)
        runs.append(sf.sample(model, n=4, solver=solver, steps=5, t_min=0.05, t_max=0.9, end="path").x)
    assert torch.equal(*runs)


def test_answers_that_share_memory_are_wrong_unless_it_is_said():
    """What the option is for: Heun needs its first answer after the second."""
    memory = torch.empty(4, *SHAPE)
    model = sf.Denoiser(lambda x, t: torch.tanh(x, out=memory), PATHS["vp"], shape=SHAPE)
    right = sf.Denoiser(lambda x, t: torch.tanh(x), PATHS["vp"], shape=SHAPE)
    assert not torch.equal(
        sf.sample(model, n=4, solver="heun", steps=3, end="path").x,
        sf.sample(right, n=4, solver="heun", steps=3, end="path").x,
    )


@pytest.mark.parametrize("solver", ["ddim", "rk4", "dpmpp-2m", "rex-midpoint", "unipc"])
def test_compiled_networks_are_compiled_once_and_have_no_graph_breaks(solver):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2))
    compiled = torch.compile(lambda x, t: net(x) * t[:, None], backend=counter, fullgraph=True)
    model = sf.Denoiser(compiled, PATHS["vp"], shape=(2,), dtype=torch.float32)
    with torch.no_grad():
        sf.sample(model, n=8, solver=solver, steps=6, batch_size=4, end="path")
    assert counter.frame_count == 1  # one graph for all steps, stages and batches


def test_noise_is_the_same_bits_for_any_grouping_of_samples():
    for name, source in SOURCES.items():
        whole = source(5, range(40), SHAPE).unit(0.3, 0.9)
        for rows in (range(7, 8), range(3, 31), [30, 2, 3, 4, 17]):
            assert torch.equal(source(5, rows, SHAPE).unit(0.3, 0.9), whole[list(rows)]), name


def test_recording_does_not_change_the_bits():
    path = PATHS["vp"]
    model, grid = elementwise(path), sf.grids.make("uniform", path, 5, t_min=0.05, t_max=0.9)
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    plain = integrate(model, x, grid, solvers.get("rk4")).x
    assert torch.equal(integrate(model, x, grid, solvers.get("rk4"), record="all", callback=lambda m: None).x, plain)


MEMORY = [
    *(solvers.get("unipc", order=order, kind=kind) for order in (1, 2, 3) for kind in ("bh1", "bh2")),
    *(solvers.get("heun", coordinates=coordinates) for coordinates in ("flow", "noise", "data")),
    *map(solvers.get, ("dpmpp-2m", "dpmpp-3m", "lms", "deis", "ipndm", "rk4")),
]


def test_what_a_schedule_remembers_of_one_run_does_not_change_another():
    """Solvers, grids that overlap, prediction types and moved states on one schedule, against a fresh one for each."""
    x, shared = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).view(2, 3), sf.VPCosine()

    def end(schedule, solver, times, kind, moved):
        def push(info):
            if info.done == 2:
                return solver.with_sample(info.state, 1.01 * info.x, schedule, info.step.t1)
            return None

        model = sf.Denoiser(lambda x, t: torch.tanh(x), schedule, prediction=kind, shape=(3,))
        return sf.integrate(model, x, sf.Grid(times), solver, corrections=[push] if moved else []).x

    grids = (0.9, 0.6, 0.4, 0.2, 0.1), (0.8, 0.6, 0.4, 0.2, 0.1), (0.6, 0.4, 0.2, 0.1)
    for case in itertools.product(MEMORY, grids, ("v_prediction", "epsilon"), (False, True)):
        assert torch.equal(end(shared, *case), end(sf.VPCosine(), *case)), case


MODES = sf.GaussianMixture.farthest_points(25, 64)
MIXTURES = {
    "one spread": MODES,
    "a spread each": sf.GaussianMixture(MODES.means, torch.linspace(0.1, 0.3, 25)),
    "diagonal": sf.GaussianMixture(MODES.means, 0.1 + 0.01 * torch.arange(25 * 64).view(25, 64).remainder(7)),
    "labels": sf.GaussianMixture(MODES.means, 0.1, labels=torch.arange(25) % 3),
    "two dimensions": sf.GaussianMixture.grid(5),
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_mixtures_give_the_same_bits_in_any_batch_on_one_thread(name, dtype):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = MIXTURES[name].denoiser(sf.VPCosine())
        model = model.with_condition(1, guidance=2.0) if name == "labels" else model
        whole = sf.sample(model, n=40, steps=3, solver="ddpm", dtype=dtype).x
        for size in (1, 3, 17):
            part = sf.sample(model, n=40 if size > 3 else 6, steps=3, solver="ddpm", dtype=dtype, batch_size=size).x
            assert torch.equal(part, whole[: len(part)]), size
        alone = sf.sample(model, n=1, index=31, steps=3, solver="ddpm", dtype=dtype).x
        assert torch.equal(alone[0], whole[31])
    finally:
        torch.set_num_threads(threads)
