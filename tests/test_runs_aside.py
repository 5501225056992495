"""What cannot be computed is set aside and named, the rest is finished, and what was set aside is done after repair."""

import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import steadyflow as sf
from steadyflow import runs
from steadyflow.runs import driving, writer
from steadyflow.runs.engines import InProcess
from steadyflow.runs.exporting import export, results

pytest.importorskip("PIL")
from PIL import Image

N, BLOCK = 10, 4


class Noting(InProcess):
    def __init__(self):
        self.did = []

    def run(self, job, prepared, ranges):
        for found in super().run(job, prepared, ranges):
            self.did.append((found.start, found.stop))
            yield found


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(N):
        values = np.random.default_rng(k).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{k}.png")
    return folder


JOBS = {
    "invert": lambda path: runs.Inverting("digits", n=N, solver="rex-midpoint", steps=2, block=BLOCK, input=path),
    "reconstruct": lambda path: runs.Reconstructing("digits", n=N, solver="ddim", steps=2, block=BLOCK, input=path),
    "edit": lambda path: runs.Editing("digits", n=N, target=8, steps=2, block=BLOCK, input=path),
    "diagnose": lambda path: runs.Diagnosing(
        "digits", n=N, solver="ddim", steps=3, tolerance=1e-2, block=BLOCK, input=path
    ),
}


def tensors(run):
    parts = list(run.parts())
    return {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}


def damage(path):
    good = path.read_bytes()
    path.write_bytes(good[:60])
    return good


def quietly(*args, **words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return runs.run_job(*args, **words)


BAD = [(5,), (0, 3), (4, 5, 6, 7), (9,)]


@pytest.mark.parametrize(
    ("task", "bad"), [(task, bad) for task in JOBS for bad in BAD if task != "diagnose" or bad == (5,)]
)
def test_the_rest_is_finished_with_the_same_bits_and_repair_does_only_what_was_missing(tmp_path, source, task, bad):
    job = JOBS[task](str(source))
    whole = tensors(runs.run_job(job, tmp_path / "whole"))
    good = {k: damage(source / f"{k}.png") for k in bad}
    with pytest.warns(UserWarning, match=f"finished without .* of {N} samples: .*{bad[0]}.png .*truncated"):
        run = runs.run_job(job, tmp_path / "run")
    aside = [k for one in run.aside() for k in range(one.start, one.stop)]
    blocks = {k // BLOCK for k in bad}
    assert set(bad) <= set(aside)
    assert {k // BLOCK for k in aside} == blocks
    if task != "diagnose":  # of which a block has one
        assert aside == list(bad)
        kept = [k for k in range(N) if k not in bad]
        assert all(torch.equal(value, whole[name][kept]) for name, value in tensors(run).items())
        np.testing.assert_array_equal(
            np.load(export(run, tmp_path / "x.npy"))[kept], torch.cat(list(results(run)))[kept]
        )
        assert np.isnan(np.load(tmp_path / "x.npy")[list(bad)]).all()
    assert run.figures()["samples"] == N
    again = Noting()
    quietly(job, tmp_path / "run", engine=again)
    if task != "diagnose":
        assert again.did == []  # they still cannot be read
    for k, content in good.items():
        (source / f"{k}.png").write_bytes(content)
    again = Noting()
    run = quietly(job, tmp_path / "run", engine=again)
    assert {a // BLOCK for a, _ in again.did} == blocks
    assert run.aside() == []
    assert all(torch.equal(value, whole[name]) for name, value in tensors(run).items())
    assert run.foreign() == []


@pytest.mark.parametrize("how", ["truncated", "gone", "unreadable", "another size", "a folder"])
def test_whatever_is_wrong_with_an_input_is_named(tmp_path, source, how):
    path = source / "6.png"
    if how == "truncated":
        damage(path)
    elif how == "gone":
        path.unlink()
        path.symlink_to(tmp_path / "nowhere.png")
    elif how == "unreadable":
        path.unlink()
        path.symlink_to(path)  # a loop
    elif how == "another size":
        Image.fromarray(np.zeros((9, 8), np.uint8)).save(path)
    else:
        path.unlink()
        path.mkdir()
    run = quietly(JOBS["invert"](str(source)), tmp_path / "run")
    (one,) = run.aside()
    assert (one.start, one.stop, one.name, one.kind) == (6, 7, "6.png", "input")


def test_strict_runs_stop_at_the_first(tmp_path, source):
    damage(source / "5.png")
    with pytest.raises(sf.CorruptFileError, match=r"5\.png"):
        runs.run_job(JOBS["invert"](str(source)), tmp_path / "run", strict=True)
    assert len(runs.RunFolder.open(tmp_path / "run").shards()) == 1


def test_runs_in_memory_stop_at_the_first(source):
    damage(source / "5.png")
    with pytest.raises(sf.CorruptFileError, match=r"5\.png"):
        runs.run_job(JOBS["invert"](str(source)))


def test_a_run_of_which_nothing_can_be_computed_ends_with_the_cause(tmp_path, source, monkeypatch):
    for path in source.iterdir():
        Image.fromarray(np.zeros((9, 8), np.uint8)).save(path)
    with pytest.raises(sf.InputError, match=r"none of the samples could be computed; 0.png: .*--resize"):
        runs.run_job(JOBS["invert"](str(source)), tmp_path / "run")
    monkeypatch.setattr(driving, "LIMIT", 4)
    engine = Noting()
    with pytest.raises(sf.InputError, match="none of the samples"):
        runs.run_job(JOBS["invert"](str(source)), tmp_path / "other", engine=engine)
    assert len(engine.did) == 4


def test_commands_say_what_they_finished_without(call, tmp_path, source):
    damage(source / "5.png")
    command = ["invert", "--input", str(source), "--n", str(N), "--solver", "ddim", "--steps", "2", "--batch-size", "4",
               "--run", str(tmp_path / "run")]  # fmt: skip
    code, out, _ = call(*command)
    assert code == 3
    assert "finished without" in out
    assert "1 of 10 samples: 5.png" in out
    code, out, _ = call(*command, "--json")
    assert code == 3
    (one,) = json.loads(out)["finished without"]
    assert (one["samples"], one["input"]) == ([5, 6], "5.png")
    code, out, _ = call("runs", "show", str(tmp_path / "run"))
    assert code == 0
    assert "9 of 10" in out
    assert "5.png" in out
    code, out, _ = call("runs", "export", str(tmp_path / "run"), "--out", str(tmp_path / "x.npy"))
    assert code == 0
    assert "5.png" in out
    code, _, err = call(*command[:-1], str(tmp_path / "other"), "--strict")
    assert code == 1
    assert "5.png" in err


def test_pictures_of_what_was_set_aside_are_left_out_and_a_sheet_keeps_its_places(tmp_path, source):
    for k in (0, 9):
        damage(source / f"{k}.png")
    run = quietly(JOBS["edit"](str(source)), tmp_path / "run")
    export(run, tmp_path / "pictures")
    assert [path.stem for path in sorted((tmp_path / "pictures").iterdir())] == [f"{k:09d}" for k in range(1, 9)]
    sheet = np.asarray(Image.open(export(run, tmp_path / "sheet.png")))
    assert (sheet[:8, :8] == 128).all()


MINE = """
import os
import torch
import steadyflow as sf
def make():
    def net(x, t):
        worst = x.abs().amax()
        if {condition}:
            {act}
        return x
    return sf.Denoiser(net, sf.VPCosine(), shape=(2,))
"""


def model(tmp_path, monkeypatch, name, act, condition="worst > 90"):
    (tmp_path / f"{name}.py").write_text(MINE.format(act=act, condition=condition))
    monkeypatch.syspath_prepend(str(tmp_path))
    x = np.ones((12, 2), "f4")
    x[5] = 100
    np.save(tmp_path / "x.npy", x)
    return runs.Inverting(f"{name}:make", n=12, solver="ddim", steps=2, block=4, input=str(tmp_path / "x.npy"))


def test_a_block_that_raises_is_set_aside_and_tried_again_by_the_next_call(tmp_path, monkeypatch):
    job = model(tmp_path, monkeypatch, "raising", f"open({str(tmp_path / 'needed')!r}).close()")
    with pytest.warns(UserWarning, match=r"samples 4 to 7 \(FileNotFoundError: "):
        run = runs.run_job(job, tmp_path / "run")
    assert [(one.start, one.stop, one.kind) for one in run.aside()] == [(4, 8, "error")]
    (tmp_path / "needed").touch()
    again = Noting()
    assert runs.run_job(job, tmp_path / "run", engine=again).aside() == []
    assert again.did == [(4, 8)]


def test_where_memory_does_not_suffice_fewer_samples_are_computed_together_and_that_is_said(tmp_path, monkeypatch):
    job = model(tmp_path, monkeypatch, "hungry", "raise MemoryError", condition="len(x) > 2")
    run = runs.run_job(job, tmp_path / "run")
    assert {shard.together for shard in run.shards()} == {2}
    assert run.figures()["for want of memory"] == "3 shards were computed by 2 samples"
    assert torch.cat(list(results(run))).shape == (12, 2)
    (tmp_path / "run" / "index.sqlite").unlink()
    assert {shard.together for shard in runs.run_job(job, tmp_path / "run").shards()} == {2}
    job = model(tmp_path, monkeypatch, "starving", "raise MemoryError")
    (one,) = quietly(job, tmp_path / "other").aside()
    assert (one.start, one.stop, one.cause) == (5, 6, "needs more memory than there is")


def test_what_stands_for_a_damaged_input_is_never_a_result_whatever_else_fails(tmp_path, monkeypatch):
    """A damaged input, too little memory, and a sample that always needs too much, in one block."""
    pictures = tmp_path / "in"
    pictures.mkdir()
    for k in range(4):
        values = np.random.default_rng(k).integers(0, 200, (8, 8), dtype=np.uint8)
        Image.fromarray(values if k != 3 else np.full((8, 8), 255, np.uint8)).save(pictures / f"{k}.png")
    damage(pictures / "1.png")
    (tmp_path / "greedy.py").write_text(
        "import steadyflow as sf\ndef make():\n    def net(x, t):\n"
        "        if len(x) > 2 or (x.flatten(1).amin(1) > 0.5).any():\n            raise MemoryError\n"
        "        return x\n    return sf.Denoiser(net, sf.VPCosine(), shape=(1, 8, 8))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    job = runs.Inverting("greedy:make", n=4, solver="ddim", steps=2, block=4, input=str(pictures))
    run = quietly(job, tmp_path / "run")
    assert [(one.start, one.kind) for one in run.aside()] == [(1, "input"), (3, "error")]
    assert [(shard.start, shard.stop) for shard in run.shards()] == [(0, 1), (2, 3)]
    assert all(shard.together for shard in run.shards())


def _in_a_child(job, folder):
    """The exit status of a process that does a job."""
    child = multiprocessing.get_context("fork").Process(target=quietly, args=(job, folder))
    child.start()
    child.join(60)
    return child.exitcode


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_block_of_which_the_process_dies_is_set_aside_after_three_times(tmp_path, monkeypatch):
    job = model(tmp_path, monkeypatch, "deadly", "os._exit(77)")
    assert [_in_a_child(job, tmp_path / "run") for _ in range(4)] == [77, 77, 77, 0]
    run = runs.RunFolder.open(tmp_path / "run")
    assert [(one.start, one.stop, one.kind) for one in run.aside()] == [(4, 8, "death")]
    assert "died 3 times" in run.aside()[0].cause
    assert sum(shard.stop - shard.start for shard in run.shards()) == 8
    assert [_in_a_child(job, tmp_path / "run") for _ in range(3)] == [
        77,
        0,
        77,
    ]  # tried again once, as it may be mended
    assert _in_a_child(job, tmp_path / "run") == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_the_shards_of_which_a_process_dies_are_cut_to_blocks(tmp_path, monkeypatch):
    job = model(tmp_path, monkeypatch, "deadly_shard", "os._exit(77)")

    def child():
        process = multiprocessing.get_context("fork").Process(
            target=quietly, args=(job, tmp_path / "run"), kwargs={"shard": 12}
        )
        process.start()
        process.join(60)
        return process.exitcode

    codes = []
    while not codes or codes[-1]:
        codes.append(child())
        assert len(codes) < 8
    run = runs.RunFolder.open(tmp_path / "run")
    assert [(one.start, one.stop) for one in run.aside()] == [(4, 8)]


def test_what_is_done_of_a_block_stays_done_when_the_rest_of_it_fails(tmp_path, monkeypatch):
    good = tmp_path / "needed"
    good.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    pictures = tmp_path / "in"
    pictures.mkdir()
    for k in range(4):
        values = np.random.default_rng(k).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(pictures / f"{k}.png")
    broken = damage(pictures / "1.png")
    (tmp_path / "pictured.py").write_text(
        f"import steadyflow as sf\ndef make():\n    def net(x, t):\n        open({str(good)!r}).close()\n"
        "        return x\n    return sf.Denoiser(net, sf.VPCosine(), shape=(1, 8, 8))\n"
    )
    job = runs.Inverting("pictured:make", n=4, solver="ddim", steps=2, block=4, input=str(pictures))
    run = quietly(job, tmp_path / "run")
    assert [(shard.start, shard.stop) for shard in run.shards()] == [(0, 1), (2, 4)]
    (pictures / "1.png").write_bytes(broken)
    good.unlink()
    run = quietly(job, tmp_path / "run")
    assert [(one.start, one.stop, one.kind) for one in run.aside()] == [(1, 2, "error")]
    assert torch.cat(list(results(run)))[[0, 2, 3]].isfinite().all()
    good.touch()
    assert runs.run_job(job, tmp_path / "run").aside() == []


def test_interruptions_are_no_deaths(tmp_path, monkeypatch):
    job = model(tmp_path, monkeypatch, "interrupted", "raise KeyboardInterrupt")
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            runs.run_job(job, tmp_path / "run")
    assert runs.RunFolder.open(tmp_path / "run").aside() == []


# the folder


def drawing(**changes):
    return runs.Sampling("mixture", **{"n": 40, "solver": "ddim", "steps": 2, "block": 4, **changes})


class With(InProcess):
    """Does something after the third result."""

    def __init__(self, act):
        self.act = act

    def run(self, job, prepared, ranges):
        for k, found in enumerate(super().run(job, prepared, ranges)):
            yield found
            if k == 2:
                self.act()


@pytest.mark.parametrize("holding", ["begin", "begin immediate", "begin exclusive"])
def test_who_holds_the_index_does_not_stop_the_work(tmp_path, monkeypatch, holding):
    monkeypatch.setattr(writer, "_SHORT", 0.01)
    whole = torch.cat(list(results(runs.run_job(drawing(), tmp_path / "whole"))))

    def hold():
        base = sqlite3.connect(tmp_path / "run" / "index.sqlite", isolation_level=None, check_same_thread=False)
        base.execute(holding)
        base.execute("select * from shards").fetchall()
        threading.Timer(0.5, base.close).start()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        run = runs.run_job(drawing(), tmp_path / "run", engine=With(hold))
    assert torch.equal(torch.cat(list(results(run))), whole)


def test_who_holds_the_index_for_good_is_named_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_SHORT", 0.01)
    monkeypatch.setattr(writer, "PATIENCE", 0.1)
    held = []

    def hold():
        held.append(sqlite3.connect(tmp_path / "run" / "index.sqlite", isolation_level=None))
        held[0].execute("begin")
        held[0].execute("select * from shards").fetchall()

    with (
        pytest.warns(UserWarning, match="another program holds it; the work goes on"),
        pytest.raises(
            sf.StorageError, match=r"database browser, has held it for 0\.1 s; all results are in the folder"
        ),
    ):
        runs.run_job(drawing(), tmp_path / "run", engine=With(hold))
    assert len(list((tmp_path / "run" / "shards").iterdir())) == 10
    held[0].close()
    again = Noting()
    run = runs.run_job(drawing(), tmp_path / "run", engine=again)
    assert again.did == []
    assert len(run.shards()) == 10


def test_copying_the_folder_in_the_same_process_does_not_release_its_lock(tmp_path):
    folder = tmp_path / "run"

    def copy():
        shutil.copytree(folder, tmp_path / "copy")
        (folder / "lock").read_bytes()
        code = f"from steadyflow.runs import *; run_job({drawing()!r}, {str(folder)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another process is working on" in other.stderr

    runs.run_job(drawing(), folder, engine=With(copy))
    run = runs.run_job(drawing(), tmp_path / "copy")
    assert len(run.shards()) == 10


def test_a_run_does_not_take_a_folder_twice_in_one_process(tmp_path):
    def again():
        with pytest.raises(sf.InputError, match="another process is working on"):
            runs.run_job(drawing(), tmp_path / "run")

    runs.run_job(drawing(), tmp_path / "run", engine=With(again))


def test_foreign_files_are_left_alone_and_named(call, tmp_path):
    runs.run_job(drawing(), tmp_path / "run")
    place = tmp_path / "run" / "shards"
    (place / "my-export.npy").write_text("mine")
    (place / ".ipynb_checkpoints").mkdir()
    (place / "@eaDir").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (place / "half.part").write_text("mine")
    runs.run_job(drawing(), tmp_path / "run")
    named = ["notes.txt", "shards/.ipynb_checkpoints", "shards/@eaDir", "shards/half.part", "shards/my-export.npy"]
    assert runs.RunFolder.open(tmp_path / "run").foreign() == named
    code, out, _ = call("runs", "show", str(tmp_path / "run"))
    assert code == 0
    assert "shards/my-export.npy" in out
    assert (place / "my-export.npy").read_text() == "mine"


def test_a_shard_under_another_name_is_not_taken_for_its_samples(tmp_path):
    run = runs.run_job(drawing(), tmp_path / "run")
    whole = torch.cat(list(results(run)))
    first, last = (run.path / "shards" / run.shards()[k].file for k in (0, -1))
    last.write_bytes(first.read_bytes())
    (run.path / "index.sqlite").unlink()
    assert torch.equal(torch.cat(list(results(runs.run_job(drawing(), tmp_path / "run")))), whole)


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")
def test_folders_and_inputs_whose_names_are_no_text(call, tmp_path, source):
    folder, inputs = (Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/run-\xff", b"/in-\xfe"))
    shutil.move(source, inputs)
    os.rename(os.fsencode(inputs / "3.png"), os.fsencode(inputs) + b"/3-\xfd.png")
    damage(Path(os.fsdecode(os.fsencode(inputs) + b"/3-\xfd.png")))
    run = quietly(JOBS["invert"](str(inputs)), folder)
    assert [(one.start, one.name) for one in run.aside()] == [(3, "3-\\xfd.png")]
    again = Noting()
    quietly(JOBS["invert"](str(inputs)), folder, engine=again)
    assert again.did == []
    code, out, _ = call("runs", "show", str(folder))
    assert code == 0
    assert "3-" in out


def test_what_is_left_of_a_run_that_could_not_begin_is_no_folder(tmp_path):
    with pytest.raises(sf.SteadyflowError):
        runs.run_job(runs.Sampling("mixture", n=4, guidance=2.0, steps=2, solver="auto"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
