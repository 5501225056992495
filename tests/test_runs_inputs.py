"""What a run is about is pinned: inputs and models that change are named, and nothing of two kinds is mixed."""

import json
import os
import sqlite3
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import steadyflow as sf
from steadyflow import runs
from steadyflow.datasets import contents, media
from steadyflow.identity import identify
from steadyflow.loading import load_model
from steadyflow.runs.engines import InProcess
from steadyflow.runs.exporting import results
from steadyflow.runs.parts import ExactSum

pytest.importorskip("PIL")
from PIL import Image

N, BLOCK = 8, 2


def pictures(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (N, 8, 8), dtype=np.uint8)


def as_files(folder, values, suffix):
    """The samples as pictures in a folder, or as one array."""
    folder.mkdir(exist_ok=True)
    floats = torch.from_numpy(values).float()[:, None] / 127.5 - 1.0
    if suffix == ".npy":
        np.save(folder / "x.npy", floats.numpy())
        return folder / "x.npy"
    if suffix == ".safetensors":
        save_file({"x": floats}, folder / "x.safetensors")
        return folder / "x.safetensors"
    for k, one in enumerate(values):
        Image.fromarray(one).save(folder / f"{k}{suffix}")
    return folder


def job_of(source, **words):
    return runs.Inverting("digits", n=N, solver="ddim", steps=2, block=BLOCK, label=1, input=str(source), **words)


def samples(run):
    return torch.cat(list(results(run)))


class Between(InProcess):
    """Does something after some results."""

    def __init__(self, after, act):
        self.after, self.act, self.did = after, act, []

    def run(self, job, prepared, ranges):
        for k, done in enumerate(super().run(job, prepared, ranges)):
            self.did.append((done.start, done.stop))
            yield done
            if k + 1 == self.after:
                self.act()


def stop():
    raise KeyboardInterrupt


def half_done(job, folder, **how):
    with pytest.raises(KeyboardInterrupt):
        runs.run_job(job, folder, engine=Between(2, stop), **how)


def set_back(source, times):
    """The times of the files as they were."""
    for path in contents.inside(source):
        os.utime(path, ns=times[path.name])


def times_of(source):
    return {path.name: (path.stat().st_atime_ns, path.stat().st_mtime_ns) for path in contents.inside(source)}


SUFFIXES = [".bmp", ".png", ".npy", ".safetensors"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_inputs_that_changed_are_refused_by_name_whatever_their_size_and_time_say(tmp_path, suffix):
    source = as_files(tmp_path / "in", pictures(), suffix)
    half_done(job_of(source), tmp_path / "run")
    times = times_of(source)
    as_files(tmp_path / "in", pictures(1), suffix)
    set_back(source, times)
    name = "0" + suffix if source.is_dir() else "rows 0 to 1"
    with pytest.raises(sf.InputError, match=f"input: .*{name}.* changed since the run began"):
        runs.run_job(job_of(source), tmp_path / "run")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_comes_from_changed_inputs_is_computed_again_if_that_is_asked_for(tmp_path, suffix):
    source = as_files(tmp_path / "in", pictures(), suffix)
    runs.run_job(job_of(source), tmp_path / "run")
    new = pictures()
    new[3] = 255 - new[3]
    as_files(tmp_path / "in", new, suffix)
    again = Between(-1, stop)
    run = runs.run_job(job_of(source), tmp_path / "run", recompute_changed=True, engine=again)
    assert again.did == [(2, 4)]
    assert torch.equal(samples(run), samples(runs.run_job(job_of(source), tmp_path / "other")))
    assert runs.run_job(job_of(source), tmp_path / "run").aside() == []


def test_an_input_that_changes_before_it_is_computed_is_taken_as_it_is_with_a_warning(tmp_path):
    source = as_files(tmp_path / "in", pictures(), ".bmp")
    half_done(job_of(source), tmp_path / "run")
    Image.fromarray(pictures(1)[7]).save(source / "7.bmp")
    with pytest.warns(UserWarning, match=r"7.bmp changed before it was computed"):
        run = runs.run_job(job_of(source), tmp_path / "run")
    assert torch.equal(samples(run), samples(runs.run_job(job_of(source), tmp_path / "other")))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_inputs_that_change_under_a_run_are_never_mixed(tmp_path, suffix):
    source = as_files(tmp_path / "in", pictures(), suffix)
    old = samples(runs.run_job(job_of(source), tmp_path / "old"))
    engine = Between(2, lambda: as_files(tmp_path / "in", pictures(1), suffix))
    with pytest.warns(UserWarning, match="finished without 4 of 8 samples.*changed after the run began"):
        run = runs.run_job(job_of(source), tmp_path / "run", engine=engine)
    found = samples(run)
    assert torch.equal(found[:4], old[:4])
    assert found[4:].isnan().all()
    with pytest.raises(sf.InputError, match="changed since the run began"):
        runs.run_job(job_of(source), tmp_path / "run")
    new = runs.run_job(job_of(source), tmp_path / "run", recompute_changed=True)
    assert torch.equal(samples(new), samples(runs.run_job(job_of(source), tmp_path / "new")))


def test_an_array_that_changes_under_a_run_in_memory_ends_it(tmp_path):
    source = as_files(tmp_path / "in", pictures(), ".npy")
    with pytest.raises(sf.InputError, match=r"x\.npy was changed while it was being read"):
        runs.run_job(job_of(source), engine=Between(2, lambda: as_files(tmp_path / "in", pictures(1), ".npy")))


def test_times_alone_are_compared_if_that_is_asked_for_and_what_they_do_not_see_is_known(tmp_path):
    source = as_files(tmp_path / "in", pictures(), ".bmp")
    half_done(job_of(source), tmp_path / "run", check_inputs="times")
    times = times_of(source)
    as_files(source, pictures(1), ".bmp")
    os.utime(source / "0.bmp", ns=(1, 1))
    with pytest.raises(sf.InputError, match=r"0.bmp has changed"):
        runs.run_job(job_of(source), tmp_path / "run", check_inputs="times")
    set_back(source, times)
    with pytest.raises(sf.InputError, match=r"0.bmp has changed"):  # what was computed was hashed as it was read
        runs.run_job(job_of(source), tmp_path / "run", check_inputs="content")
    runs.run_job(job_of(source), tmp_path / "run", check_inputs="times")  # as documented
    with pytest.raises(sf.InputError, match="check_inputs: got 'hash', expected one of content, times"):
        runs.run_job(job_of(source), tmp_path / "run", check_inputs="hash")


@pytest.mark.parametrize("content", ["content", "times"])
def test_copies_of_the_inputs_elsewhere_in_time_are_the_same_inputs_by_content(tmp_path, content):
    source = as_files(tmp_path / "in", pictures(), ".bmp")
    half_done(job_of(source), tmp_path / "run")
    for path in source.iterdir():
        os.utime(path, (5, 5))
    run = runs.run_job(job_of(source), tmp_path / "run")
    assert samples(run).isfinite().all()


def test_what_is_added_under_a_run_is_no_part_of_it(tmp_path):
    source = as_files(tmp_path / "in", pictures(), ".png")
    whole = samples(runs.run_job(job_of(source), tmp_path / "whole"))
    engine = Between(1, lambda: Image.fromarray(pictures(5)[0]).save(source / "-first.png"))
    assert torch.equal(samples(runs.run_job(job_of(source), tmp_path / "run", engine=engine)), whole)
    with pytest.warns(UserWarning, match=r"-first.png came after the run began"):
        run = runs.run_job(job_of(source), tmp_path / "run")
    assert torch.equal(samples(run), whole)
    with pytest.raises(sf.InputError, match=r"n: the run is about 8 samples, and 9 are asked for, .*-first.png"):
        runs.run_job(runs.jobs.from_spec({**job_of(source).spec(), "n": 9}), tmp_path / "run")


def test_nobody_lists_the_inputs_after_the_driver_has(tmp_path, monkeypatch):
    source = as_files(tmp_path / "in", pictures(), ".png")

    def listing(*args):
        raise AssertionError("listed again")

    class Blind(InProcess):
        def run(self, job, prepared, ranges):
            monkeypatch.setattr(media, "listed", listing)
            monkeypatch.setattr(media, "scanned", listing)
            yield from super().run(job, prepared, ranges)

    run = runs.run_job(job_of(source), tmp_path / "run", engine=Blind())
    monkeypatch.undo()
    assert torch.equal(samples(run), samples(runs.run_job(job_of(source))))


def test_inputs_that_are_gone_are_named(tmp_path):
    source = as_files(tmp_path / "in", pictures(), ".png")
    runs.run_job(job_of(source), tmp_path / "run")
    (source / "3.png").unlink()
    for n in (8, 7):
        job = runs.jobs.from_spec({**job_of(source).spec(), "n": n})
        with pytest.raises(sf.InputError, match=r"3.png is gone"):
            runs.run_job(job, tmp_path / "run")


def test_a_list_that_is_lost_is_made_again_if_the_inputs_are_what_they_were(tmp_path):
    source = as_files(tmp_path / "in", pictures(), ".png")
    half_done(job_of(source), tmp_path / "run")
    (tmp_path / "run" / "inputs.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(sf.CorruptFileError, match=r"inputs.sqlite: damaged"):
        runs.run_job(job_of(source), tmp_path / "run")
    (tmp_path / "run" / "inputs.sqlite").unlink()
    runs.run_job(job_of(source), tmp_path / "run")
    (tmp_path / "run" / "inputs.sqlite").unlink()
    as_files(source, pictures(1), ".png")
    with pytest.raises(sf.InputError, match="the list of the inputs is gone"):
        runs.run_job(job_of(source), tmp_path / "run")


def test_the_list_says_names_sizes_and_hashes_in_the_order_of_the_samples(tmp_path):
    source = as_files(tmp_path / "in", pictures(), ".png")
    runs.run_job(job_of(source), tmp_path / "run")
    base = sqlite3.connect(tmp_path / "run" / "inputs.sqlite")
    rows = base.execute("select name, size, digest from pieces order by start").fetchall()
    base.close()
    paths = sorted(source.iterdir())
    assert rows == [(os.fsencode(p.name), p.stat().st_size, contents.digest(p)) for p in paths]


def test_other_files_that_decide_the_numbers_are_compared_by_their_content(tmp_path):
    mask = tmp_path / "mask.bmp"
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(mask)
    job = runs.Editing("digits", n=2, target=8, steps=2, mask=str(mask))
    runs.run_job(job, tmp_path / "run")
    times = mask.stat()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(mask)
    os.utime(mask, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(sf.InputError, match="files is"):
        runs.run_job(job, tmp_path / "run")


def test_pictures_among_the_arguments_of_a_call_are_other_files(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"x")
    job = runs.Sampling("ink", n=1, call_inputs={"image": str(picture), "height": 32, "more": [str(picture), "no.png"]})
    assert job.other_files() == [str(picture)] * 2


# models


MODEL = """
import numpy as np
import torch
import steadyflow as sf
import {helper}
SCALE = {scale}
TABLE = {{"a": [1.0, {table}]}}
class Half:
    factor = {factor}
    def __call__(self, x):
        return x * self.factor
def inner(x):
    return {inner} * x
def make():
    torch.manual_seed({seed})
    net = torch.nn.Linear(2, 2).requires_grad_(False)
    shift = np.ones(2, np.float32) * {shift}
    half = Half()
    def call(x, t, power={power}):
        return half(inner(net(x))) * SCALE * TABLE["a"][1] + torch.from_numpy(shift) + {helper}.extra(x) ** power
    return sf.Denoiser(call, sf.VPCosine(), shape=(2,))
"""
HELPER = "WEIGHT = {weight}\ndef extra(x):\n    return WEIGHT * x\n"
SAME = {"scale": 1, "table": 2.0, "factor": 0.5, "inner": 1.0, "seed": 1, "shift": 0.0, "power": 1, "weight": 0.1}


def made(folder, monkeypatch, name, **changes):
    """A model of the user's, as a new process would load it."""
    words = {**SAME, **changes}
    helper = f"{name}_helper"
    for module in (name, helper):
        sys.modules.pop(module, None)
    (folder / f"{helper}.py").write_text(HELPER.format(weight=words.pop("weight")))
    (folder / f"{name}.py").write_text(MODEL.format(helper=helper, **words))
    monkeypatch.syspath_prepend(str(folder))
    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    try:
        return load_model(f"{name}:make")
    finally:
        sys.dont_write_bytecode = kept


@pytest.mark.parametrize("changed", SAME)
def test_all_that_a_users_function_depends_on_is_part_of_what_stands_for_it(tmp_path, monkeypatch, changed):
    first = identify(made(tmp_path, monkeypatch, "mine_a"))
    assert identify(made(tmp_path, monkeypatch, "mine_a")) == first
    assert first.unknown == ()
    other = identify(made(tmp_path, monkeypatch, "mine_a", **{changed: 3.0 if changed != "seed" else 3}))
    assert other.parts != first.parts


def test_a_run_is_not_continued_with_another_function(tmp_path, monkeypatch):
    made(tmp_path, monkeypatch, "mine_b")
    job = runs.Sampling("mine_b:make", n=8, solver="ddim", steps=3, block=2)
    half_done(job, tmp_path / "run")
    made(tmp_path, monkeypatch, "mine_b", inner=2.0)
    with pytest.raises(sf.InputError, match=r"model\.code is"):
        runs.run_job(job, tmp_path / "run")
    made(tmp_path, monkeypatch, "mine_b")
    runs.run_job(job, tmp_path / "run")


def test_what_nothing_can_stand_for_is_said_and_needs_a_name(tmp_path, monkeypatch):
    (tmp_path / "mine_c.py").write_text(
        textwrap.dedent("""
        import itertools
        import steadyflow as sf
        def make():
            count = itertools.count()
            return sf.Denoiser(lambda x, t: x * (next(count) >= 0), sf.VPCosine(), shape=(2,))
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    job = runs.Sampling("mine_c:make", n=4, solver="ddim", steps=2, block=2)
    with pytest.raises(sf.InputError, match=r"net\.count \(itertools\.count\).*--model-version"):
        runs.run_job(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    runs.run_job(job, tmp_path / "run", model_version="first")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["unknown"] == ["net.count (itertools.count)"]
    with pytest.raises(sf.InputError, match="model_version is 'first' there and 'second' here"):
        runs.run_job(job, tmp_path / "run", model_version="second")


def test_numbers_that_are_not_saved_with_a_network_count_too():
    class Net(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.register_buffer("kept", torch.ones(1))
            self.register_buffer("left_out", torch.full((1,), value), persistent=False)
            self.plain = value

        def forward(self, x, t):
            return x * self.left_out

    def of(value):
        return identify(sf.Denoiser(Net(value), sf.VPCosine(), shape=(2,))).parts

    assert of(1.0) == of(1.0)
    assert of(1.0)["numbers"] != of(2.0)["numbers"]
    assert of(1.0)["configuration"] != of(2.0)["configuration"]


def test_a_hook_on_a_network_is_part_of_it():
    def net_of(hooked):
        net = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(net.weight)
        torch.nn.init.zeros_(net.bias)
        if hooked:
            net.register_forward_hook(lambda module, given, found: found * 2)
        return identify(sf.Denoiser(lambda x, t: net(x), sf.VPCosine(), shape=(2,)))

    assert net_of(True) != net_of(False)


def test_the_versions_of_what_computes_and_reads_are_kept(tmp_path):
    source = as_files(tmp_path / "in", pictures(), ".png")
    runs.run_job(job_of(source), tmp_path / "run")
    versions = json.loads((tmp_path / "run" / "manifest.json").read_text())["versions"]
    assert {"steadyflow", "torch", "numpy", "python", "PIL"} <= versions.keys()
    runs.run_job(runs.Sampling("mixture", n=2, steps=2), tmp_path / "other")
    versions = json.loads((tmp_path / "other" / "manifest.json").read_text())["versions"]
    assert versions.keys() == {"steadyflow", "torch", "numpy", "python"}


def test_exact_sums_do_not_depend_on_the_order():
    import math

    values = (np.random.default_rng(0).standard_normal(300) * 10.0 ** np.arange(-150, 150)).tolist()
    values += [-value for value in values[40:]] + [1.0, 1e100, 1.0, -1e100]
    for order in (values, values[::-1], sorted(values)):
        total = ExactSum()
        for at in range(0, len(order), 7):
            total.add(order[at : at + 7])
        assert total.value == math.fsum(values)


def test_paths_and_numbers_of_numpy_are_plain_data_in_a_job(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 2), "f4"))
    job = runs.Inverting("mixture", n=np.int64(2), solver="ddim", steps=np.int32(1), input=tmp_path / "x.npy")
    assert job == runs.Inverting("mixture", n=2, solver="ddim", steps=1, input=str(tmp_path / "x.npy"))
    assert json.loads(json.dumps(job.spec()))["n"] == 2
    assert runs.Sampling("mixture", n=2, device=torch.device("cpu")).device == "cpu"
    assert Path(job.input).is_file()
