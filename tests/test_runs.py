"""Runs: the same bits however the work is cut up, and nothing lost, whatever happens to the folder or the process."""

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import steadyflow as sf
from steadyflow import editing, runs
from steadyflow._internal import files
from steadyflow.datasets import arrays, digits
from steadyflow.runs import engines
from steadyflow.runs.driving import missing
from steadyflow.runs.engines import InProcess
from steadyflow.runs.exporting import export, results
from steadyflow.runs.run import shard_size
from steadyflow_lab.cached_results import cached_results


def drawing(**changes):
    options = {"n": 700, "solver": runs.spec_of("ddpm"), "steps": 6, "block": 50}
    return runs.Sampling("mixture", **{**options, **changes})


def samples(run):
    return torch.cat(list(results(run)))


class Stopping(InProcess):
    """Stops like Ctrl-C after some ranges, and notes what it did."""

    def __init__(self, after=10**9):
        self.after, self.did = after, []

    def run(self, job, prepared, ranges):
        for done in super().run(job, prepared, ranges):
            if len(self.did) == self.after:
                raise KeyboardInterrupt
            self.did.append((done.start, done.stop))
            yield done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The samples of an undisturbed run."""
    return samples(runs.run_job(drawing(), tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.parametrize("shard", [50, 100, 250, 700 // 50 * 50])
def test_samples_have_the_same_bits_however_they_are_cut_into_shards(tmp_path, whole, shard):
    run = runs.run_job(drawing(), tmp_path / "run", shard=shard)
    assert torch.equal(samples(run), whole)
    assert len(run.shards()) == -(-700 // shard)


def test_samples_are_those_that_sample_draws(whole):
    model = sf.GaussianMixture.grid().denoiser(sf.VPLinear())
    drawn = sf.sample(model, n=700, solver="ddpm", steps=6, batch_size=50).x
    assert torch.equal(drawn, whole)


def test_interrupted_runs_go_on_where_they_stopped_even_with_other_shards(tmp_path, whole):
    first, second = Stopping(after=3), Stopping()
    with pytest.raises(KeyboardInterrupt):
        runs.run_job(drawing(), tmp_path / "run", engine=first, shard=100)
    run = runs.run_job(drawing(), tmp_path / "run", engine=second, shard=50)
    assert first.did == [(0, 100), (100, 200), (200, 300)]
    assert [start for start, _ in second.did] == list(range(300, 700, 50))
    assert torch.equal(samples(run), whole)


def test_finished_runs_do_nothing_more(tmp_path):
    runs.run_job(drawing(), tmp_path / "run")
    again = Stopping()
    runs.run_job(drawing(), tmp_path / "run", engine=again)
    assert again.did == []


@pytest.mark.parametrize("solver", ["ees25", "rex-midpoint", "edict", "alf"])
def test_inverted_shards_are_inversions_that_decode_to_what_was_sent(tmp_path, solver):
    job = runs.Inverting("digits", n=30, solver=runs.spec_of(solver), steps=6, block=8)
    run = runs.run_job(job, tmp_path / "run", shard=16)
    model = sf.load("digits")
    images, labels = digits("held-out")
    for shard in run.shards():
        inversion = sf.Inversion.load(run.path / "shards" / shard.file, model)
        rows = slice(shard.start, shard.stop)
        assert inversion.index == shard.start
        assert torch.equal(inversion.condition, labels[rows])
        expected = sf.invert(model.with_condition(labels[rows]), images[rows], solver=solver, steps=6, batch_size=8)
        assert torch.equal(inversion.latent, expected.latent)
        off = (inversion.decode().x - expected.decode().x).abs().max()
        assert off < 1e-4  # whole shards at once here, blocks of 8 there: another order of sums in the network


def test_diagnoses_are_the_same_for_any_shards_and_count_causes_by_blocks(tmp_path):
    job = runs.Diagnosing("mixture", n=12, solver=runs.spec_of("ddim"), steps=6, block=4, double=True)
    one, two = runs.run_job(job, tmp_path / "a", shard=4), runs.run_job(job, tmp_path / "b", shard=12)
    a, b = one.figures(), two.figures()
    for figures in (a, b):
        figures.pop("seconds of work")
    assert a == b
    assert a["causes, by blocks"] == "steps 3"
    part = next(two.parts())
    terms = sum(v for k, v in part.tensors.items() if k.startswith("terms."))
    torch.testing.assert_close(terms, part.tensors["total"])


def test_figures_are_those_of_the_samples(tmp_path, whole):
    figures = runs.run_job(drawing(), tmp_path / "run").figures()
    assert figures["samples"] == 700
    assert figures["nfe"] == 6
    np.testing.assert_allclose(figures["mean"], whole.double().mean().item(), rtol=1e-9)
    np.testing.assert_allclose(figures["std"], whole.double().std(correction=0).item(), rtol=1e-9)
    assert figures["max |x|"] == whole.double().abs().max().item()


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"steps": 7}, "steps"), ({"seed": 1}, "seed"), ({"block": 100}, "block"), ({"n": 701}, "n is 700 there")],
)
def test_other_settings_are_refused_by_name_and_change_nothing(tmp_path, whole, changes, named):
    runs.run_job(drawing(), tmp_path / "run")
    with pytest.raises(sf.InputError, match=named):
        runs.run_job(drawing(**changes), tmp_path / "run")
    assert torch.equal(samples(runs.RunFolder.open(tmp_path / "run")), whole)


def test_another_version_is_refused(tmp_path):
    runs.run_job(drawing(n=50), tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(torch.__version__, "2.4.0"))
    with pytest.raises(sf.InputError, match=r"versions.torch is '2.4.0' there"):
        runs.run_job(drawing(n=50), tmp_path / "run")


def test_other_weights_or_data_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 8, 8), np.float32))
    job = runs.Inverting("digits", n=4, solver=runs.spec_of("ddim"), steps=2, label=1, input=str(tmp_path / "x.npy"))
    runs.run_job(job, tmp_path / "run")
    np.save(tmp_path / "x.npy", np.ones((4, 1, 8, 8), np.float32))
    with pytest.raises(sf.InputError, match=r"x\.npy, rows 0 to 3 has changed"):
        runs.run_job(job, tmp_path / "run")


def test_folders_with_other_things_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(sf.InputError, match="holds other things"):
        runs.run_job(drawing(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_unfinished_runs_hand_out_no_results(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        runs.run_job(drawing(), tmp_path / "run", engine=Stopping(after=2))
    with pytest.raises(sf.InputError, match="has 100 of 700 samples"):
        samples(runs.RunFolder.open(tmp_path / "run"))


def _damage(path, how):
    data = path.read_bytes()
    if how == "a flipped bit":
        at = len(data) - 100
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif how == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()
    else:
        shutil.copy(path.parent / "shard-000000000100-000000000150.safetensors", path)


@pytest.mark.parametrize("how", ["a flipped bit", "cut short", "emptied", "gone", "another shard"])
def test_damaged_shards_are_refused_and_the_same_command_computes_them_anew(tmp_path, whole, how):
    run = runs.run_job(drawing(), tmp_path / "run")
    _damage(run.path / "shards" / "shard-000000000200-000000000250.safetensors", how)
    with pytest.raises(sf.CorruptFileError, match="shard-000000000200"):
        samples(run)
    again = Stopping()
    run = runs.run_job(drawing(), tmp_path / "run", engine=again)
    assert again.did == [(200, 250)]
    assert torch.equal(samples(run), whole)


def test_a_shard_that_was_written_but_not_entered_is_entered_not_computed_again(tmp_path, whole):
    run = runs.run_job(drawing(), tmp_path / "run")
    with sqlite3.connect(run.path / "index.sqlite") as index:
        index.execute("delete from shards where start in (0, 350)")
    index.close()
    again = Stopping()
    run = runs.run_job(drawing(), tmp_path / "run", engine=again)
    assert again.did == []
    assert torch.equal(samples(run), whole)


def test_the_index_can_be_rebuilt_from_the_shards(tmp_path, whole):
    run = runs.run_job(drawing(), tmp_path / "run")
    (run.path / "index.sqlite").write_bytes(b"SQLite format 3\0 but not really" * 50)
    with pytest.raises(sf.CorruptFileError, match=r"index.sqlite: damaged .* delete it"):
        runs.run_job(drawing(), tmp_path / "run")
    (run.path / "index.sqlite").unlink()
    again = Stopping()
    assert torch.equal(samples(runs.run_job(drawing(), tmp_path / "run", engine=again)), whole)
    assert again.did == []


def test_overlapping_entries_are_refused(tmp_path):
    run = runs.run_job(drawing(), tmp_path / "run")
    with sqlite3.connect(run.path / "index.sqlite") as index:
        index.execute("update shards set stop = 150 where start = 50")
    index.close()
    with pytest.raises(sf.CorruptFileError, match="overlap"):
        run.shards()


def test_what_a_process_left_half_written_is_removed_and_stray_shards_are_never_counted(tmp_path, whole):
    run = runs.run_job(drawing(), tmp_path / "run")
    shards = run.path / "shards"
    (shards / "shard-000000000000-000000000050.safetensors1234abc_.part").write_bytes(b"half")
    shutil.copy(
        shards / "shard-000000000000-000000000050.safetensors", shards / "shard-000000000025-000000000075.safetensors"
    )
    run = runs.run_job(drawing(), tmp_path / "run")
    copy = "shard-000000000025-000000000075.safetensors"
    assert sorted(path.name for path in shards.iterdir()) == sorted([copy, *(shard.file for shard in run.shards())])
    assert run.foreign() == [f"shards/{copy}"]
    assert torch.equal(samples(run), whole)


def test_two_processes_on_one_folder_are_refused_clearly(tmp_path):
    folder = tmp_path / "run"

    class Meddling(InProcess):
        def run(self, job, prepared, ranges):
            code = f"from steadyflow.runs import *; run_job({job!r}, {str(folder)!r})"
            other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert "another process is working on" in other.stderr
            assert other.returncode
            yield from super().run(job, prepared, ranges)

    run = runs.run_job(drawing(n=100), folder, engine=Meddling())
    assert len(samples(run)) == 100


def test_a_full_disk_ends_the_run_with_a_reason_and_it_goes_on_later(tmp_path, monkeypatch, whole):
    count, save = [0], files.save_file

    def filling(*args, **kwargs):
        count[0] += 1
        if count[0] > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **kwargs)

    monkeypatch.setattr(files, "save_file", filling)
    with pytest.raises(sf.StorageError, match="No space left"):
        runs.run_job(drawing(), tmp_path / "run")
    monkeypatch.undo()
    assert not list((tmp_path / "run" / "shards").glob("*.part"))
    again = Stopping()
    assert torch.equal(samples(runs.run_job(drawing(), tmp_path / "run", engine=again)), whole)
    assert len(again.did) == 14 - 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB, where we may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_loses_nothing(small_disk, whole):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 180_000)
    with pytest.raises(sf.StorageError, match=r"space|full|No space"):
        runs.run_job(drawing(n=7000), small_disk / "run")
    before = len(runs.RunFolder.open(small_disk / "run").shards())
    assert not list((small_disk / "run").rglob("*.part"))
    ballast.unlink()
    with pytest.raises(sf.StorageError):
        runs.run_job(drawing(n=7000), small_disk / "run")
    shards = runs.RunFolder.open(small_disk / "run").shards()
    assert len(shards) > before
    parts = [runs.RunFolder.open(small_disk / "run").read(shard).tensors["x"] for shard in shards[:14]]
    assert torch.equal(torch.cat(parts), whole)


def test_the_wall_clock_is_not_read(tmp_path, monkeypatch, whole):
    def broken():
        raise AssertionError("the wall clock was read")

    job = drawing()
    job.prepare()  # imports may read it
    monkeypatch.setattr(time, "time", broken)
    monkeypatch.setattr(time, "time_ns", broken)
    run = runs.run_job(job, tmp_path / "run", progress=False)
    assert torch.equal(samples(run), whole)
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert not any("date" in key or "time" in key for key in manifest)


def test_files_from_the_future_and_the_past_make_no_difference(tmp_path, whole):
    run = runs.run_job(drawing(), tmp_path / "run")
    for k, path in enumerate(run.path.rglob("*")):
        os.utime(path, (4e9, 4e9) if k % 2 else (0, 0))
    again = Stopping()
    assert torch.equal(samples(runs.run_job(drawing(), tmp_path / "run", engine=again)), whole)
    assert again.did == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n": 0}, "n: got 0"),
        ({"block": 0}, "block: got 0"),
        ({"threads": True}, "threads"),
        ({"solver": {"name": "dimm"}}, "ddim"),
        ({"grid": "quadratik"}, "quadratic"),
        ({"model": "digitz"}, "digits"),
        ({"label": 3}, "label"),
        ({"guidance": 2.0}, "guidance"),
    ],
)
def test_jobs_that_cannot_be_done_are_refused_before_the_folder_is_made(tmp_path, changes, named):
    options = {"model": "mixture", "n": 10, "solver": runs.spec_of("ddim"), "steps": 2}
    with pytest.raises(sf.SteadyflowError, match=named):
        runs.run_job(runs.Sampling(**{**options, **changes}), tmp_path / "run")
    assert not (tmp_path / "run" / "shards").exists() or not list((tmp_path / "run" / "shards").iterdir())


def test_stochastic_solvers_are_no_inverses_of_runs():
    with pytest.raises(sf.NotInvertibleError, match="ddpm"):
        runs.Inverting("mixture", n=10, solver=runs.spec_of("ddpm"))


def test_shards_are_multiples_of_blocks_and_about_a_thousand():
    job = drawing(n=10_000_000, block=64)
    assert shard_size(job, None) % 64 == 0
    assert 512 <= job.n / shard_size(job, None) <= 1024
    with pytest.raises(sf.InputError, match="multiple of the block of 64"):
        shard_size(job, 100)


def test_missing_ranges_are_what_shards_leave_open():
    job = drawing(n=500)
    there = [runs.Shard(50, 150, "", 0.0, ""), runs.Shard(300, 350, "", 0.0, "")]
    assert list(missing(job, there, 100)) == [(0, 50), (150, 250), (250, 300), (350, 450), (450, 500)]


def test_jobs_survive_json():
    jobs = [
        drawing(label=None, prompt="a cat"),
        runs.Inverting("ink", n=3, solver=runs.spec_of("rex-rk4"), input="pictures", resize=True),
        runs.Reconstructing("digits", n=3, nfe=12, t_min=0.01, guidance=2.0, source_guidance=0.5, label=3),
        runs.Editing("digits", n=3, target=8, source=3, method="rf-inversion", strength=0.5, seed=4),
        *(runs.Editing("digits", n=3, target=8, method=method) for method in editing.names()),
        runs.Editing("digits", n=3, target=8, method="uni-edit:omega=3,measure=signed,empty=false"),
        runs.Editing("digits", n=3, target=8, method=editing.DVRF(0.5, rate="published"), seed=3),
        runs.Editing("digits", n=3, target=8, method="rf-inversion:window=0/0.4"),
        runs.Editing("ink", n=3, target="a cat", smoothing=0.2, smooth="generation", mask="mask.png"),
        runs.Diagnosing("faces", n=3, solver=runs.spec_of("ees27"), guidance=2.0, grid=[1.0, 0.5, 0.01]),
    ]
    for job in jobs:
        again = runs.jobs.from_spec(json.loads(json.dumps(job.spec())))
        assert again == job
        assert getattr(again, "way", None) == getattr(job, "way", None)
    written = runs.Editing("digits", n=3, target=8, method="rf-inversion:window=0/0.3,gamma=0.2")
    assert runs.jobs.from_spec(written.spec()).way == editing.RFInversion(0.2, window=(0.0, 0.3))


def test_pictures_of_a_folder_are_inverted_in_the_order_of_their_names(tmp_path):
    images, _ = digits("held-out")
    for k in (2, 0, 1):
        arrays.write(tmp_path / "in" / f"{k}.png", images[k : k + 1])
    job = runs.Inverting(
        "digits", n=3, solver=runs.spec_of("rk4"), steps=4, block=2, label=3, input=str(tmp_path / "in")
    )
    run = runs.run_job(job, tmp_path / "run")
    back = [sf.Inversion.load(run.path / "shards" / shard.file, sf.load("digits")).decode().x for shard in run.shards()]
    assert (torch.cat(back) - images[:3]).abs().max() < 0.1


def test_exports_hold_all_samples_in_order(tmp_path, whole):
    run = runs.run_job(drawing(), tmp_path / "run", shard=250)
    assert np.array_equal(np.load(export(run, tmp_path / "x.npy")), whole.numpy())
    job = runs.Sampling("digits", n=5, solver=runs.spec_of("ddim"), steps=4, block=2)
    export(runs.run_job(job, tmp_path / "digits"), tmp_path / "png")
    assert [path.name for path in sorted((tmp_path / "png").iterdir())] == [f"{k:09d}.png" for k in range(5)]
    with pytest.raises(sf.InputError, match=r"expected a \.npy or a folder"):
        export(run, tmp_path / "x.xyz")
    with pytest.raises(sf.InputError, match="expected images of shape"):
        export(run, tmp_path / "x.jpg")


def test_cells_are_kept_and_read_again(tmp_path):
    done = []

    def work(item):
        done.append(item)
        return runs.Shard(item, item + 1, "", 0.0, "")

    def both(stamp):
        cells = [("a", 1), ("b", 2)]
        return dict(cached_results(InProcess(), work, cells, tmp_path, stamp, lambda fields: runs.Shard(**fields)))

    first = both({"n": 1})
    assert both({"n": 1}) == first
    assert done == [1, 2]
    both({"n": 2})
    assert done == [1, 2, 1, 2]
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(sf.CorruptFileError, match=r"a.json: not a result"):
        both({"n": 2})


def test_commands_work_in_runs(call, tmp_path):
    shared = ["--run", str(tmp_path / "run"), "--model", "mixture", "--n", "20", "--batch-size", "8", "--steps", "3"]
    code, out, _ = call("sample", *shared, "--out", str(tmp_path / "x.npy"), "--json")
    assert code == 0
    assert json.loads(out)["samples"] == 20
    assert np.load(tmp_path / "x.npy").shape == (20, 2)
    code, out, _ = call("runs", "show", str(tmp_path / "run"))
    assert code == 0
    assert "20 of 20" in out
    code, _, err = call("sample", *shared[:-1], "4")
    assert code == 1
    assert "steps is 3 there and 4 here" in err
    code, _, err = call("sample", "--engine", "ray")
    assert code == 1
    assert "--run" in err
    code, _, err = call("runs", "show", str(tmp_path))
    assert code == 1
    assert "no run" in err


def test_invert_keeps_latents(call, tmp_path):
    code, out, _ = call("invert", "--n", "4", "--steps", "4", "--save", str(tmp_path / "i.safetensors"), "--json")
    assert code == 0
    assert json.loads(out)["samples"] == 4
    inversion = sf.Inversion.load(tmp_path / "i.safetensors", sf.load("digits"))
    assert (inversion.decode().x - digits("held-out")[0][:4]).abs().max() < 0.2


def test_models_of_ones_own_are_found_by_module_and_function(tmp_path, monkeypatch):
    (tmp_path / "mymodels.py").write_text(
        "import steadyflow as sf\ndef tiny():\n    return sf.GaussianMixture.grid(2).denoiser(sf.VPCosine())\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    job = runs.Sampling("mymodels:tiny", n=10, solver=runs.spec_of("ddim"), steps=2)
    assert samples(runs.run_job(job, tmp_path / "run")).shape == (10, 2)
    for name, words in (("mymodels:wrong", "returned int"), ("mymodels:none", "cannot be found"), ("no:f", "cannot")):
        with pytest.raises(sf.InputError, match=words):
            runs.run_job(runs.Sampling(name, n=10, solver=runs.spec_of("ddim")), tmp_path / "other")


def test_engines_are_named():
    assert isinstance(runs.engine("local"), InProcess)
    with pytest.raises(sf.InputError, match="local, ray"):
        runs.engine("slurm")
    with pytest.raises(sf.InputError, match="--engine ray"):
        runs.engine("local", workers=3)


def test_maps_keep_the_order_of_results_that_come_in_any_order():
    class Backwards(InProcess):
        def each(self, function, items):
            yield from reversed(list(super().each(function, items)))

    assert list(Backwards().map(lambda v: v * v, [1, 2, 3])) == [1, 4, 9]


def test_folders_stay_readable(tmp_path):
    run = runs.run_job(drawing(n=50), tmp_path / "run")
    modes = {oct(path.stat().st_mode & 0o444) for path in Path(run.path / "shards").iterdir()}
    assert modes == {"0o444"}


def test_the_threads_of_the_callers_process_are_left_as_they_were(tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        runs.run_job(drawing(n=50), tmp_path / "run")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_worker_with_other_weights_refuses_to_work():
    with pytest.raises(sf.InputError, match="the same weights, inputs and packages on every node"):
        engines._prepared(json.dumps(drawing().spec()), json.dumps({"model": {"numbers": "0123456789abcdef"}}))


HERE = {
    "sample": drawing(n=20, block=8),
    "invert": runs.Inverting("digits", n=10, steps=3, block=4),
    "reconstruct": runs.Reconstructing("digits", n=10, steps=3, block=4, guidance=1.5),
    "edit": runs.Editing("digits", n=10, target=8, method="rf-inversion", seed=3, steps=3, block=4),
    "edit, dna-edit": runs.Editing("digits", n=10, target=8, method="dna-edit:eta=0.5", seed=3, steps=3, block=4),
    "edit, uni-edit": runs.Editing("digits", n=10, target=8, method="uni-edit:omega=2", steps=3, block=4),
    "diagnose": runs.Diagnosing("mixture", n=6, solver="ddim", steps=4, block=3, verify=True),
}


@pytest.mark.parametrize("task", HERE)
def test_runs_in_memory_are_those_in_folders(tmp_path, task):
    job = HERE[task]
    here, there = runs.run_job(job), runs.run_job(job, tmp_path / "run", shard=2 * job.block)
    assert here.job == there.job == job
    one, other = ({name: torch.cat([p.tensors[name] for p in run.parts()]) for name in next(run.parts()).tensors}
                  for run in (here, there))  # fmt: skip
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    figures = there.figures()
    assert here.figures() == {name: figures[name] for name in here.figures()}
    assert set(figures) - set(here.figures()) == {"seconds of work", "computed on"}
    if task == "diagnose":
        with pytest.raises(sf.InputError, match="has no samples"):
            export(here, tmp_path / "x.npy")
    else:
        paths = [export(run, tmp_path / f"{k}.npy") for k, run in enumerate((here, there))]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_shard_goes_with_a_folder():
    with pytest.raises(sf.InputError, match="shard: only valid with a folder"):
        runs.run_job(drawing(), shard=50)


def test_jobs_call_their_verbs_with_the_same_words():
    """With as few samples as a block, the numbers are those of one call of the verb."""
    images, labels = digits("held-out")
    x, model = images[:4], sf.load("digits").with_condition(labels[:4])
    words = {"solver": "midpoint", "nfe": 8, "grid": "uniform", "strength": 0.8, "t_min": 0.02, "t_max": 0.9}
    both = {"guidance": 2.0, "source_guidance": 0.5}

    def only(job):
        (part,) = runs.run_job(job).parts()
        return job.samples(part) if job.task != "diagnose" else part.tensors["measured"]

    label = sf.load("digits").with_condition(3)
    job = runs.Sampling("digits", n=4, label=3, guidance=2.0, seed=5, index=7, double=True, **words)
    drawn = sf.sample(label, n=4, guidance=2.0, seed=5, index=7, dtype=torch.float64, **words)
    assert torch.equal(only(job), drawn.x)
    found = sf.invert(model, x, source_guidance=0.5, **words)
    assert torch.equal(only(runs.Inverting("digits", n=4, source_guidance=0.5, **words)), found.latent)
    assert torch.equal(
        only(runs.Reconstructing("digits", n=4, **both, **words)), sf.reconstruct(model, x, **both, **words).x
    )
    edited = sf.edit(sf.load("digits"), x, 8, source=labels[:4], method="direct", smoothing=0.1, smooth="inversion",
                     **both, **words)  # fmt: skip
    job = runs.Editing("digits", n=4, target=8, method="direct", smoothing=0.1, smooth="inversion", **both, **words)
    assert torch.equal(only(job), edited.x)
    diagnosed = sf.diagnose(model, x, tolerance=1e-3, **both, **words)
    assert torch.equal(only(runs.Diagnosing("digits", n=4, tolerance=1e-3, **both, **words)), diagnosed.measured)


@pytest.mark.parametrize(
    "job",
    [
        runs.Sampling("mixture", n=20, solver="auto", nfe=12, block=4),
        runs.Inverting("digits", n=12, solver="auto", nfe=12, block=4),
        runs.Editing("digits", n=12, target=8, guidance=2.0, solver="auto", nfe=12, block=4),
        runs.Diagnosing("mixture", n=4, solver="auto", nfe=12, block=2),
    ],
    ids=lambda job: job.task,
)
def test_auto_is_settled_once_and_recorded_so_that_all_blocks_have_one_solver(tmp_path, job):
    here, there = runs.run_job(job), runs.run_job(job, tmp_path / "run")
    assert here.job == there.job
    assert there.job.solver["name"] in there.job.reason
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["job"]["solver"] == there.job.solver != "auto"
    assert all(torch.equal(a.tensors[name], b.tensors[name])
               for a, b in zip(here.parts(), there.parts(), strict=True) for name in a.tensors)  # fmt: skip
    again = Stopping()
    runs.run_job(job, tmp_path / "run", engine=again)
    assert again.did == []


def test_the_solver_that_auto_settles_on_is_the_one_of_the_library():
    job = runs.run_job(runs.Inverting("digits", n=12, solver="auto", nfe=12, strength=0.7)).job
    images, labels = digits("held-out")
    found = sf.invert(sf.load("digits").with_condition(labels[:12]), images[:12], solver="auto", nfe=12, strength=0.7)
    assert (job.solver, tuple(job.grid)) == (found.solver.spec(), found.grid.reversed().times)
    assert (job.reason, job.strength, job.nfe) == (found.reason, None, None)


@pytest.mark.parametrize(
    ("job", "options", "named"),
    [
        (runs.Sampling, {"steps": sf.PIDController()}, "steps: got PIDController"),
        (runs.Sampling, {"steps": 3, "nfe": 3}, "steps, nfe"),
        (runs.Sampling, {"grid": {"name": "uniform"}}, "grid: got"),
        (runs.Sampling, {"grid": [0.5, "a"]}, "grid"),
        (runs.Inverting, {"input": 3}, "input: got"),
        (runs.Sampling, {"noise": "white"}, "noise: would change nothing"),
        (runs.Sampling, {"label": 3, "prompt": "a cat"}, "label, prompt"),
        (runs.Inverting, {"seed": 3}, "seed: would change nothing"),
        (runs.Reconstructing, {"index": 3}, "index: would change nothing"),
        (runs.Editing, {"target": 8, "seed": 3}, "seed: would change nothing"),
        (runs.Editing, {"target": 8, "method": "uni-edit", "seed": 3}, "seed: would change nothing"),
        (runs.Editing, {"target": 8, "method": "flow-opt", "index": 3}, "index: would change nothing"),
        (runs.Editing, {"target": 8, "method": "pmi", "noise": "white"}, "noise: "),
        (runs.Editing, {"target": 8, "method": "uni-edit:omega=-1"}, "omega: got -1"),
        (runs.Editing, {"target": 8, "smooth": "both"}, "smooth: says on which ways"),
        (runs.Editing, {"target": 8, "method": "rf-inversion", "mask": "m.png"}, "mask: method 'rf-inversion'"),
        (runs.Editing, {"target": 8, "method": "flow-edit", "solver": "auto"}, "solver: 'auto' chooses for inversions"),
        (runs.Editing, {"target": 8, "inversion": "i.safetensors", "source": 3}, "source: the inversion that is given"),
        (runs.Editing, {"target": 8, "method": {"name": "direct", "share": 2.0}}, "share"),
    ],
)
def test_what_a_job_cannot_do_is_refused_by_name_when_it_is_made(job, options, named):
    with pytest.raises(sf.InputError, match=named):
        job("digits", n=4, **options)


def test_guidance_without_anything_to_guide_to_is_refused():
    for job, word in ((runs.Sampling, "guidance"), (runs.Inverting, "source_guidance"), (runs.Diagnosing, "guidance")):
        with pytest.raises(sf.InputError, match=f"^{word}: needs something to guide to"):
            runs.run_job(job("mixture", n=2, steps=2, **{word: 2.0}))


def test_edits_of_a_saved_inversion_are_cut_into_blocks(tmp_path):
    images, labels = digits("held-out")
    model = sf.load("digits")
    inversion = sf.invert(model.with_condition(labels[:5]), images[:5], solver="rex-midpoint", steps=4)
    inversion.save(tmp_path / "five.safetensors")
    job = runs.Editing("digits", n=5, target=8, guidance=2.0, inversion=str(tmp_path / "five.safetensors"), block=2)
    run = runs.run_job(job)
    expected = sf.edit(model, None, 8, guidance=2.0, inversion=inversion)
    # float32 rounds otherwise in blocks of other sizes, and the solver's steps at guidance 2 make it larger
    torch.testing.assert_close(samples(run), expected.x, atol=1e-3, rtol=1e-3)
    assert "distance median" not in run.figures()
    assert run.figures()["nfe"] == expected.nfe


def test_another_mask_is_another_run(tmp_path):
    path = tmp_path / "mask.png"
    size = sf.load("digits").shape[1:]
    job = runs.Editing("digits", n=2, target=8, steps=2, mask=str(path))
    arrays.write(path, torch.ones(1, 1, *size))
    runs.run_job(job, tmp_path / "run")
    arrays.write(path, -torch.ones(1, 1, *size))
    with pytest.raises(sf.InputError, match="files is"):
        runs.run_job(job, tmp_path / "run")


def test_sheets_that_would_not_fit_in_memory_are_refused(tmp_path, monkeypatch):
    run = runs.run_job(runs.Sampling("digits", n=5, steps=2, block=2))
    assert export(run, tmp_path / "sheet.png").is_file()
    monkeypatch.setattr("steadyflow.runs.exporting.SHEET", 100)
    with pytest.raises(sf.InputError, match="out: a sheet of 5 pictures is too large"):
        export(run, tmp_path / "large.png")
    assert torch.equal(arrays.read(export(run, tmp_path / "x.safetensors"), sf.load("digits").shape), samples(run))
