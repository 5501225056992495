"""Where files are written: links and streams are written through, and what cannot be written is refused before work."""

import os
import stat
import threading
import typing

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import steadyflow as sf
from steadyflow._internal import files, html, plots
from steadyflow._internal.places import check_writable
from steadyflow.cli import app
from steadyflow.corrections import Calibrated
from steadyflow.datasets import arrays, media
from steadyflow_lab import cli as lab

X = torch.linspace(-1.0, 1.0, 32).view(2, 1, 4, 4)
VIDEO = torch.zeros(1, 3, 2, 16, 16)


def inversion():
    model = sf.Denoiser(lambda x, t: x, sf.VPCosine(), shape=(1, 4, 4), dtype=torch.float32)
    return sf.invert(model, X, steps=1)


def figure(path):
    drawn = plots.figure(1, 1)
    plots.save(drawn, path)


WRITERS = {
    "x.npy": lambda path: arrays.write(path, X),
    "x.safetensors": lambda path: arrays.write(path, X),
    "x.png": lambda path: arrays.write(path, X),
    "x.webm": lambda path: media.write(path, VIDEO, fps=8.0),
    "inversion": lambda path: inversion().save(path),
    "solution": lambda path: sf.sample(inversion().model, n=1, steps=1).save(path),
    "text": lambda path: files.write_text(path, "text"),
    "page": lambda path: html.write(path, "{{ x }}", x="text"),
    "figure.svg": figure,
    "calibrated": lambda path: Calibrated((0.1, 1.0), (1.0, 1.0)).save(path),
}


@pytest.fixture(params=list(WRITERS))
def written(request):
    """A file's name, and how it is written."""
    return request.param, WRITERS[request.param]


def test_links_are_followed_and_modes_and_other_names_kept(written, tmp_path):
    name, write = written
    (tmp_path / "elsewhere").mkdir()
    target, link, second = tmp_path / "elsewhere" / name, tmp_path / name, tmp_path / "elsewhere" / f"second-{name}"
    link.symlink_to(target)
    write(link)  # whose target is missing
    assert link.is_symlink()
    size = target.stat().st_size
    assert size > 0
    target.write_bytes(b"old")
    target.chmod(0o640)
    write(link)
    assert link.is_symlink()
    assert target.stat().st_size == size
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    second.hardlink_to(target)
    target.write_bytes(b"old")
    write(target)
    assert target.samefile(second)
    assert second.stat().st_size == size
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == sorted([name, second.name])


def test_a_pipe_is_written_into_and_stays_one(written, tmp_path):
    name, write = written
    pipe, read = tmp_path / name, []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # a reader that is there before the other is
    reader.start()
    write(pipe)
    os.close(handle)
    reader.join(10)
    assert not reader.is_alive()
    write(tmp_path / f"plain-{name}")
    assert read[0] or name == "x.webm"
    assert len(read[0]) == (tmp_path / f"plain-{name}").stat().st_size
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_that_nobody_reads_is_refused_and_the_result_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(
        sf.StorageError, match=r"x\.npy: could not be written \(a pipe that nobody reads\); it is kept in"
    ):
        arrays.write(tmp_path / "x.npy", X)
    [kept] = (tmp_path / "temporary").iterdir()
    np.testing.assert_array_equal(np.load(kept), X.numpy())
    assert stat.S_ISFIFO((tmp_path / "x.npy").stat().st_mode)


def test_what_takes_no_file_is_refused_by_its_name(written, tmp_path):
    name, write = written
    (tmp_path / name).mkdir()
    with pytest.raises(sf.StorageError, match="is a folder"):
        write(tmp_path / name)
    lost = tmp_path / f"lost-{name}"
    lost.symlink_to(tmp_path / "missing" / name)
    with pytest.raises(sf.StorageError, match="whose folder does not exist"):
        write(lost)
    assert lost.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {name, lost.name}


def test_names_as_long_as_the_disk_takes_are_written(tmp_path):
    for name in ("n" * 251 + ".npy", "é" * 125 + "n.npy", "語" * 83 + "nn.npy"):
        assert len(name.encode()) == 255
        arrays.write(tmp_path / name, X)
        np.testing.assert_array_equal(np.load(tmp_path / name), X.numpy())


@pytest.mark.parametrize("pattern", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
def test_an_open_stream_is_written_on_wherever_it_leads(tmp_path, pattern):
    """As /dev/stdout, which is a link to such a name."""
    handle = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    name = pattern.format(handle)
    if name == "link":
        (tmp_path / "link").symlink_to(f"/dev/fd/{handle}")
        name = tmp_path / "link"
    os.write(handle, b"first, ")
    files.write_text(name, "second, ")
    os.write(handle, b"third")
    os.close(handle)
    assert (tmp_path / "out").read_text() == "first, second, third"
    ends = os.pipe()
    files.write_text(f"/dev/fd/{ends[1]}", "piped")
    assert os.read(ends[0], 10) == b"piped"
    for end in ends:
        os.close(end)


class Working(nn.Module):
    """A network that tells that work has begun."""

    def forward(self, x, t, *_):
        raise AssertionError("work began")


def working():
    return sf.Denoiser(Working(), sf.VPLinear(), shape=(1, 4, 4), null=3, classes=3, name="working")


MODEL = ["--model", f"{__name__}:working"]
INPUT = [*MODEL, "--input", "x.npy"]
COMMANDS = {
    "sample": ["sample", *MODEL],
    "invert": ["invert", *INPUT],
    "reconstruct": ["reconstruct", *INPUT],
    "edit": ["edit", *INPUT, "--target", "1"],
    "diagnose": ["diagnose", *INPUT],
    "restore": ["restore", "x.npy", *MODEL, "--task", "deblur"],
    "diagnose, contractivity": ["diagnose", *INPUT, "--contractivity"],
    "compare": ["compare", *MODEL, "--other-steps", "2"],
    "tune": ["tune", *MODEL, "--nfe", "4"],
    "solvers": ["solvers"],
    "runs export": ["runs", "export", "run"],
    "demo": ["demo"],
    **{f"lab run {name}": ["lab", "run", name] for name in ("instability", "editing", "stein", "hallucination")},
    "lab run piebench": ["lab", "run", "piebench", "--data", "."],
    "lab run reconstruction": ["lab", "run", "reconstruction", *MODEL, "--images", ".", "--no-captions"],
}
SUFFIX = {"sample": ".npy", "invert": ".npy", "reconstruct": ".npy", "edit": ".npy", "runs export": ".npy"}
SUFFIX |= {"restore": ".npy"}
SUFFIX |= {"tune": ".json", "solvers": ".png"}
WRITTEN = ("--out", "--save", "--plot", "--checkpoint", "--folder")
READ = ("--input", "--mask", "--smooth-lora", "--from", "--prompts", "--judge-prompts", "--data", "--images")
READ += ("--captions", "--image", "--tuned")
LATER = ("--run",)
"""Folders of runs, which are made, and locked, before the work."""


def path_options(group, prefix=""):
    """(command, flag) of all options of all commands that take a path."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from path_options(command, f"{prefix}{name} ")
            continue
        hints = typing.get_type_hints(command.callback)
        for parameter in command.params:
            if parameter.opts[0].startswith("--") and "Path" in str(hints[parameter.name]):
                yield f"{prefix}{name}", parameter.opts[0]


def everything():
    own = typer.main.get_command(app)
    yield from path_options(own)
    yield from path_options(typer.main.get_group(lab.lab), "lab ")
    yield from (("demo", flag) for flag in ("--out", "--image", "--tuned"))


def outputs():
    """(words of a command, an option that says where it writes)."""
    there = {(name, flag) for name, flag in everything() if flag in WRITTEN}
    return [(key, flag) for key in COMMANDS for name, flag in sorted(there) if key.partition(",")[0] == name]


def test_every_path_of_every_command_is_known_to_be_read_or_written():
    found = list(everything())
    assert {flag for _, flag in found} <= {*WRITTEN, *READ, *LATER}
    assert {name for name, flag in found if flag in WRITTEN} == {key.partition(",")[0] for key, _ in outputs()}


@pytest.mark.parametrize(("name", "flag"), outputs(), ids=lambda value: value.replace(" ", "-"))
def test_where_nothing_can_be_written_no_work_begins(name, flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays.write("x.npy", X)
    (tmp_path / "file").write_bytes(b"a file")
    suffix = SUFFIX.get(name, "") if flag != "--save" else ".safetensors"
    bad = ["file/inside" + suffix, "n" * 256 + suffix]
    if suffix:
        (tmp_path / f"folder{suffix}").mkdir()
        (tmp_path / f"lost{suffix}").symlink_to(tmp_path / "missing" / "x")
        bad += [f"folder{suffix}", f"lost{suffix}"]
    else:
        bad += ["file"]
    before = {path.name for path in tmp_path.iterdir()}
    for place in bad:
        extra = ["--out", "fine.json"] if (name, flag) == ("tune", "--checkpoint") else []
        done = CliRunner().invoke(app, [*COMMANDS[name], *extra, flag, place])
        assert isinstance(done.exception, sf.InputError), (place, done.output, done.exception)
        assert str(done.exception).startswith(f"{flag[2:]}: "), done.exception
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["sample", "solvers", "tune"])
def test_a_kind_that_is_not_written_is_refused_before_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flag = "--plot" if name == "solvers" else "--out"
    monkeypatch.setattr("steadyflow.diagnostics.stability_region.figure", lambda names: pytest.fail("work began"))
    done = CliRunner().invoke(app, [*COMMANDS[name], flag, "x.unknown"])
    assert isinstance(done.exception, sf.InputError)
    assert "x.unknown" in str(done.exception)


def test_checking_a_place_leaves_nothing_there(tmp_path):
    for path, folder in (("new/file.npy", False), ("new/folder", True), ("", True)):
        check_writable(tmp_path / path, folder=folder)
    for wrong in ("\0", "a\0b/c.npy"):
        with pytest.raises(sf.InputError, match="out"):
            check_writable(wrong)
        with pytest.raises(sf.StorageError):
            files.write_text(wrong, "")
    assert list(tmp_path.iterdir()) == []
