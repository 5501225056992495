"""The engine on Ray: a cluster of two nodes on this machine gives the same bits, whatever dies."""

import gc
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import steadyflow as sf
from steadyflow import runs
from steadyflow.cli.app import app
from steadyflow.runs import engines
from steadyflow.runs.exporting import results
from steadyflow_lab.hallucination import drawing, setting

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import kill_runs

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds its processes in /proc")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of models that the workers import from."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "deadly_model.py").write_text(DEADLY)
    return folder


@pytest.fixture(scope="module")
def cluster(models):
    """Two nodes, and one connection for all tests: with a new one, workers start, and import torch, anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(models), prepend=os.pathsep)
        two = kill_runs.TwoNodes()
        held = runs.Ray(two.address)
        assert list(held.map(abs, [-1])) == [1]
        yield two
        del held
        two.close()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The samples of an undisturbed run in one process, this one."""
    folder = tmp_path_factory.mktemp("kills") / "undisturbed"
    done = CliRunner().invoke(app, words(kill_runs.command(folder, None)))
    assert done.exit_code == 0, done.output
    return torch.cat(list(results(runs.RunFolder.open(folder))))


def words(command):
    """Of a command of ours, what follows `python -m steadyflow`."""
    assert command[1:3] == ["-m", "steadyflow"]
    return command[3:]


JOBS = {
    "sample": runs.Sampling("digits", n=90, solver=runs.spec_of("dpmpp-2m-sde"), steps=6, block=8, label=3),
    "invert": runs.Inverting("digits", n=60, solver=runs.spec_of("rex-midpoint"), steps=4, block=8),
    "reconstruct": runs.Reconstructing("digits", n=30, nfe=24, solver="auto", block=8),
    "edit": runs.Editing("digits", n=30, target=8, method="flow-edit", steps=4, guidance=2.0, seed=3, block=8),
    "diagnose": runs.Diagnosing("mixture", n=24, solver=runs.spec_of("ddim"), steps=5, block=4),
}


def tensors(run):
    """All tensors of a run, shards put together."""
    parts = list(run.parts())
    return {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}


@pytest.mark.parametrize(
    "task", [task if task == "edit" else pytest.param(task, marks=pytest.mark.slow) for task in JOBS]
)
def test_results_are_the_same_bits_for_any_workers_and_shards(cluster, tmp_path, task):
    job = JOBS[task]
    here = tensors(runs.run_job(job, tmp_path / "here", shard=3 * job.block))
    for k, (workers, shard) in enumerate(((1, job.block), (4, 2 * job.block))):
        engine = runs.Ray(cluster.address, workers=workers)
        there = tensors(runs.run_job(job, tmp_path / f"ray-{k}", engine=engine, shard=shard))
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], value) for name, value in here.items())


def test_a_run_may_move_between_engines(cluster, tmp_path):
    job = JOBS["sample"]
    whole = runs.run_job(job, tmp_path / "whole")

    class Tired(runs.Ray):
        def run(self, job, prepared, ranges):
            for k, done in enumerate(super().run(job, prepared, ranges)):
                if k == 4:
                    raise KeyboardInterrupt
                yield done

    with pytest.raises(KeyboardInterrupt):
        runs.run_job(job, tmp_path / "run", engine=Tired(cluster.address))
    assert len(runs.RunFolder.open(tmp_path / "run").shards()) == 4
    run = runs.run_job(job, tmp_path / "run")
    assert torch.equal(torch.cat(list(results(run))), torch.cat(list(results(whole))))


def test_functions_are_mapped_over_items_in_order(cluster):
    assert list(runs.Ray(cluster.address).map(lambda v: v * v, range(7))) == [v * v for v in range(7)]


def test_an_experiments_samples_are_the_same_bits_wherever_their_batches_are_drawn(cluster):
    problem = setting.exact()
    methods = setting.ddim(), setting.Method("escape", "ddim", setting.quadratic_50, sf.corrections.Escape)
    requests = [drawing.Request(method, 700, batch=250) for method in methods]
    here = drawing.run(problem, requests)
    for workers in (1, 4):
        there = drawing.run(problem, requests, runs.Ray(cluster.address, workers=workers))
        for one, other in zip(here, there, strict=True):
            assert torch.equal(one.x, other.x)
            assert one.evaluations == other.evaluations
    assert here[1].evaluations > here[0].evaluations


def test_a_process_at_work_on_one_cluster_does_not_turn_to_another(cluster):
    at_work = runs.Ray(cluster.address).each(abs, range(8))
    next(at_work)
    with pytest.raises(sf.InputError, match="at work on another cluster"):
        list(runs.Ray("127.0.0.1:1").map(abs, range(2)))
    at_work.close()


def test_work_that_is_given_up_is_stopped(cluster, tmp_path):
    """None of it comes to its end, which is when nobody wants it any more."""

    def endless_but_for_one(k):
        if k == 1:
            raise sf.SteadyflowError("one")
        for _ in range(6000):  # a guard: else what is not stopped would hold the cluster for good
            time.sleep(0.1)
        (tmp_path / f"{k}").touch()

    engine = runs.Ray(cluster.address, workers=2)
    with pytest.raises(sf.SteadyflowError, match="one"):
        list(engine.map(endless_but_for_one, range(4)))
    assert list(engine.map(abs, range(6))) == list(range(6))
    assert list(tmp_path.iterdir()) == []


def test_errors_of_ours_come_back_with_their_words(cluster, tmp_path):
    job = runs.Sampling("mixture", n=8, solver=runs.spec_of("ddim"), steps=2, label=3)
    with pytest.raises(sf.SteadyflowError, match="the mixture has no labels"):
        runs.run_job(job, tmp_path / "run", engine=runs.Ray(cluster.address))


DEADLY = """
import os
import steadyflow as sf
def make():
    def net(x, t):
        if (x.abs() > 90).any():
            os._exit(1)
        return 0.5 * x
    return sf.Denoiser(net, sf.VPCosine(), shape=(2,))
def hungry():
    def net(x, t):
        if len(x) > 2:
            raise MemoryError
        return 0.5 * x
    return sf.Denoiser(net, sf.VPCosine(), shape=(2,))
"""


@pytest.fixture
def deadly(models, tmp_path, monkeypatch):
    """Jobs whose sample 5 kills its worker."""
    monkeypatch.syspath_prepend(str(models))
    x = np.ones((8, 2), "f4") * np.arange(8, dtype="f4")[:, None]
    x[5] = 100
    np.save(tmp_path / "x.npy", x)
    given = {"n": 8, "solver": "ddim", "steps": 2, "input": str(tmp_path / "x.npy")}
    return lambda name, block: runs.Inverting(f"deadly_model:{name}", block=block, **given)


def test_a_sample_that_kills_its_workers_is_found_and_set_aside(cluster, tmp_path, deadly, monkeypatch):
    """A shard is cut into blocks, and a block into samples."""
    monkeypatch.setattr(engines, "_TRIES", 2)  # in place of 3: six workers die
    job, engine = deadly("make", 2), runs.Ray(cluster.address)
    with pytest.warns(UserWarning, match=r"finished without 1 of 8 samples: .*its worker died, 2 times"):
        run = runs.run_job(job, tmp_path / "run", engine=engine, shard=4)
    assert [(one.start, one.stop, one.kind) for one in run.aside()] == [(5, 6, "death")]
    found = torch.cat(list(results(run)))
    assert found[5].isnan().all()
    np.save(tmp_path / "x.npy", np.where(np.arange(8)[:, None] == 5, 5, np.load(tmp_path / "x.npy")).astype("f4"))
    with pytest.raises(sf.InputError, match="rows 4 to 5 has changed"):  # a piece of an array is a block
        runs.run_job(job, tmp_path / "run", engine=engine, shard=4)
    run = runs.run_job(job, tmp_path / "run", engine=engine, shard=4, recompute_changed=True)
    assert run.aside() == []
    whole = torch.cat(list(results(runs.run_job(job, tmp_path / "whole"))))
    assert torch.equal(torch.cat(list(results(run))), whole)


def test_a_result_that_finds_no_room_is_tried_again_and_then_given_up(cluster, monkeypatch):
    ray = runs.Ray(cluster.address)
    tried = []
    full = ray._ray.exceptions.ObjectStoreFullError

    def get(reference, real=ray._ray.get):
        found = real(reference)
        tried.append(found)
        if len(tried) < limit:
            raise full("no room")
        return found

    monkeypatch.setattr(ray._ray, "get", get)
    monkeypatch.setattr(engines, "_PAUSE", 0.0)
    limit = 3
    assert list(ray.map(abs, [-1])) == [1]
    tried.clear()
    limit = 10
    with pytest.raises(sf.StorageError, match="no room for its result in Ray's object store, 3 times"):
        list(ray.map(abs, [-1]))


def test_workers_are_given_the_inputs_and_list_nothing(cluster, tmp_path):
    pil = pytest.importorskip("PIL.Image")
    (tmp_path / "in").mkdir()
    for k in range(1, 9):
        pil.fromarray(np.full((8, 8), k * 20, np.uint8)).save(tmp_path / f"in/{k}.png")
    job = runs.Inverting("digits", n=8, solver="ddim", steps=2, block=2, label=1, input=str(tmp_path / "in"))
    whole = torch.cat(list(results(runs.run_job(job, tmp_path / "whole"))))

    class Meddling(runs.Ray):
        def run(self, *given):
            pil.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "in/0.png")
            pil.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "in/8.png")
            (tmp_path / "in/3.png").write_bytes(b"no picture")
            yield from super().run(*given)

    with pytest.warns(UserWarning, match="finished without 2 of 8 samples: 3.png .* 8.png .*was changed after"):
        run = runs.run_job(job, tmp_path / "run", engine=Meddling(cluster.address))
    found = torch.cat(list(results(run)))
    kept = [0, 1, 3, 4, 5, 6]
    assert torch.equal(found[kept], whole[kept])
    assert found[[2, 7]].isnan().all()


RUNS = Path(__file__).parents[1] / "docs" / "runs.md"
SMALL = {
    "--device cuda": "--device cpu",
    "--nfe 48": "--nfe 6",
    "--n 256": "--n 4",
    "--batch-size 64": "--batch-size 4",
}


def commands_of_the_plan():
    """The commands of the numbered steps, and what each does."""
    plan = RUNS.read_text().split("## A plan")[1]
    return [re.sub(r"\s+", " ", found) for found in re.findall(r"`(steadyflow [^`]*)`", plan) if "FOLDER" not in found
            or "--run try" not in found]  # fmt: skip


def test_the_plan_for_ten_million_pictures_holds_on_a_small_copy(cluster, tmp_path, call, monkeypatch):
    pil = pytest.importorskip("PIL.Image")
    images = tmp_path / "images"
    images.mkdir()
    for k in range(6):
        values = np.random.default_rng(k).integers(0, 255, (11, 9), dtype=np.uint8)
        pil.fromarray(values).save(images / f"{k}.png")
    good = (images / "4.png").read_bytes()
    (images / "4.png").write_bytes(good[:100])
    monkeypatch.chdir(tmp_path)

    def step(command):
        for old, new in {**SMALL, "FOLDER": "digits", "IMAGES": str(images)}.items():
            command = command.replace(old, new)
        return call(*command.replace("--address auto", f"--address {cluster.address}").split()[1:])

    diagnosed, inverted, shown, exported = commands_of_the_plan()
    code, out, _ = step(diagnosed)
    assert code == 0
    assert "error median" in out
    code, out, _ = step(inverted)
    assert code == 3
    assert "finished without" in out
    assert "4.png" in out
    code, out, _ = step(shown)
    assert code == 0
    assert "5 of 6" in out
    (images / "4.png").write_bytes(good)
    code, out, _ = step(inverted)  # "run the same command again"
    assert code == 0
    code, out, _ = step(shown)
    assert "6 of 6" in out
    code, out, _ = step(exported)
    assert code == 0
    assert np.isfinite(np.load("latents.npy")).all()
    assert len(np.load("latents.npy")) == 6


@pytest.fixture
def of_the_caller(cluster):
    """A connection that no engine has made."""
    import ray

    ray.shutdown()
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    yield ray.get_runtime_context().get_job_id
    ray.shutdown()


def test_workers_without_memory_for_a_block_do_it_in_pieces(cluster, tmp_path, deadly, of_the_caller):
    """On a connection of the caller's, which is left open."""
    before = of_the_caller()
    run = runs.run_job(deadly("hungry", 4), tmp_path / "run", engine=runs.Ray(cluster.address))
    assert {shard.together for shard in run.shards()} == {2}
    assert run.aside() == []
    gc.collect()
    assert of_the_caller() == before


def test_workers_are_at_least_one():
    with pytest.raises(sf.InputError, match="workers: got 0"):
        runs.Ray(workers=0)


@pytest.mark.parametrize("kind", ["driver", pytest.param("ray driver", marks=pytest.mark.slow), "worker"])
def test_a_killed_process_loses_nothing(cluster, tmp_path, reference, kind):
    found = kill_runs.trial(kind, random.uniform(0.1, 0.9), tmp_path / "run", reference, cluster)
    assert found.good, found


@pytest.mark.slow
def test_a_killed_node_loses_nothing(cluster, tmp_path, reference):
    found = kill_runs.trial("node", random.uniform(0.1, 0.6), tmp_path / "run", reference, cluster)
    assert found.good, found


def heeds_ctrl_c():
    """A shell that runs the tests in the background has them ignore it, and what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path, reference, call):
    command = kill_runs.command(tmp_path / "run", None)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, preexec_fn=heeds_ctrl_c)
    limit = threading.Timer(120.0, process.kill)
    limit.start()
    while process.poll() is None and not list(tmp_path.glob("run/shards/*.safetensors")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    limit.cancel()
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert call(*words(command))[0] == 0
    assert torch.equal(torch.cat(list(results(runs.RunFolder.open(tmp_path / "run")))), reference)
