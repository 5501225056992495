"""A walk over every command, every way of editing and every flag: each changes something, or is refused by its name."""

import json
import re

import numpy as np
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import steadyflow as sf
from steadyflow import editing
from steadyflow.cli import app
from steadyflow.datasets import arrays

SHAPE = (1, 4, 4)


class Net(nn.Module):
    """A small smooth function of the state, the time and a label, that is no field of any real data."""

    def __init__(self, scale):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.3 * torch.randn(16, 16, generator=generator), requires_grad=False)
        self.shifts = nn.Parameter(scale * torch.randn(4, 16, generator=generator), requires_grad=False)

    def forward(self, x, time, label=None):
        shift = self.shifts[3] if label is None else self.shifts[label]
        flat = x.flatten(1)
        return (0.7 * flat + torch.tanh(flat @ self.weight + shift) * torch.cos(2.0 * time)[:, None]).view_as(x)


def tiny(scale=1.0):
    """A model of pictures of 4 x 4 in three classes."""
    return sf.Denoiser(Net(scale), sf.VPLinear(), shape=SHAPE, null=3, classes=3, name="tiny")


def other():
    """Another one."""
    return tiny(2.0)


APPLICATION = typer.main.get_command(app)
TINY, OTHER = f"{__name__}:tiny", f"{__name__}:other"

COMMON = {
    "--model": [OTHER],
    "--call": ["height=16"],
    "--n": ["2"],
    "--label": ["2"],
    "--prompt": ["a cat"],
    "--guidance": ["2.5"],
    "--source-guidance": ["0.5"],
    "--solver": ["midpoint"],
    "--coordinates": ["data"],
    "--steps": ["4"],
    "--nfe": ["12"],
    "--grid": ["karras"],
    "--strength": ["0.5"],
    "--t-min": ["0.1"],
    "--t-max": ["0.9"],
    "--seed": ["5"],
    "--index": ["7"],
    "--noise": ["white"],
    "--double": [],
    "--input": ["other.npy"],
    "--resize": [],
    "--frames": ["0:2"],
    "--target": ["2"],
    "--source": ["2"],
    "--method": ["flow-edit"],
    "--task": ["paint"],
    "--share": ["0.5"],
    "--average": ["2"],
    "--gamma": ["0.2"],
    "--eta": ["0.3"],
    "--window": ["0.5,1.0"],
    "--mask": ["mask.png"],
    "--smooth": ["0.4"],
    "--smooth-lora": ["lora"],
    "--smooth-when": ["generation"],
    "--from": ["saved.safetensors"],
    "--tolerance": ["1e-3"],
    "--verify": [],
    "--contractivity": [],
    "--other": [OTHER],
    "--other-dtype": ["bfloat16"],
    "--other-solver": ["midpoint"],
    "--other-steps": ["5"],
    "--other-nfe": ["7"],
    "--other-grid": ["karras"],
    "--names": ["ddim,ees25"],
    "--judge": ["12"],
    "--prompts": ["prompts.txt"],
    "--judge-prompts": ["prompts.txt"],
    "--against": ["euler"],
    "--fine": ["12"],
    "--derivatives": ["differences"],
    "--calls": ["1"],
    "--minutes": ["1e-9"],
    "--factor": ["4"],
    "--blur": ["0.7"],
    "--damage": [],
    "--iterations": ["1"],
    "--zeta": ["0.5"],
    "--prior-variance": ["0.5"],
    "--eta-b": ["0.5"],
    "--samples": ["2"],
}
"""A value other than the default for every flag; one that is missing here fails the walk."""

ELSEWHERE = {
    "--json": "how figures are printed; all others are read from it",
    "--out": "where samples are written; the walk compares what is in it",
    "--save": "where the inversion is written",
    "--plot": "where a picture is written",
    "--run": "where the work is done; the results are equal",
    "--shard": "how the work is cut up in a folder; the results are equal",
    "--strict": "what becomes of a run in a folder when something cannot be computed",
    "--check-inputs": "how a run in a folder that goes on knows its inputs again",
    "--recompute-changed": "what becomes of a run in a folder when its inputs have changed",
    "--model-version": "a name for the model of a run in a folder",
    "--engine": "what does the work; the results are equal",
    "--address": "of the engine",
    "--workers": "of the engine; the results are equal",
    "--batch-size": "how many are computed together; the results are equal",
    "--checkpoint": "where the state of the work is kept; the results are equal",
    "--device": "where the model runs; there is one device here",
    "--imports": "whether an examination also imports all extras",
    "--help": "what there is",
}
"""Flags that change no results by their nature; the tests below check what they do."""

WORDS = {
    "--judge-prompts": ["judge_prompts"],
    "--smooth": ["smoothing"],
    "--smooth-when": ["smooth"],
    "--smooth-lora": ["lora"],
    "--from": ["inversion"],
    "--other-nfe": ["nfe"],
}
"""Where a flag is another word of the library."""

DATA = ["--input", "x.npy", "--label", "1"]
COARSE = ["--tolerance", "1e-2"]
"""Of reference solves, whose accuracy is no matter here."""
PLAIN = [name for name in editing.names() if not isinstance(editing.get(name), editing.injection.Injected)]
"""The methods that run without attention; see test_injection for the others."""
EDIT = ["--input", "x.npy", "--source", "0", "--target", "1", "--guidance", "1.5"]
BASES = {
    "sample": ["sample", "--n", "3", "--label", "1"],
    "sample, stochastic": ["sample", "--n", "3", "--label", "1", "--solver", "ddpm"],
    "sample, without a class": ["sample", "--n", "3"],
    "invert": ["invert", *DATA],
    "invert, without a class": ["invert", "--input", "x.npy"],
    "reconstruct": ["reconstruct", *DATA],
    "reconstruct, of pictures": ["reconstruct", "--input", "large", "--resize"],
    "reconstruct, auto": ["reconstruct", *DATA, "--solver", "auto", "--nfe", "6"],
    "diagnose": ["diagnose", *DATA, "--n", "2"],
    "diagnose, contractivity": ["diagnose", *DATA, "--contractivity"],
    "compare": ["compare", "--n", "2", "--label", "1", "--other-steps", "4", *COARSE],
    "compare, by model": ["compare", "--n", "2", "--other", OTHER, *COARSE],
    **{f"edit, {name}": ["edit", *EDIT, "--method", name] for name in PLAIN},
    "edit": ["edit", *EDIT],
    "edit, without a source": ["edit", "--input", "x.npy", "--target", "1"],
    "edit, masked": ["edit", *EDIT, "--mask", "half.png"],
    "edit, smoothed": ["edit", *EDIT, "--smooth", "0.3"],
    "tune": ["tune", "--n", "8", "--judge", "8", "--fine", "16", "--against", "ddim,midpoint", "--nfe", "2"],
    "edit, of an inversion": ["edit", "--from", "saved.safetensors", "--target", "1"],
    "restore": ["restore", "large/0.png", "--resize", "--mask", "half.png", "--label", "1"],
    "restore, superres": ["restore", "large/0.png", "--resize", "--task", "superres", "--method", "pigdm"],
    "restore, deblur": ["restore", "large/0.png", "--resize", "--task", "deblur", "--method", "dps", "--damage"],
    "restore, ddrm": ["restore", "large/0.png", "--resize", "--task", "deblur", "--method", "ddrm"],
}
"""What is run with every flag of its command, and without."""
OTHER_VALUES = {
    ("edit, of an inversion", "--from"): ["other.safetensors"],
    ("reconstruct, of pictures", "--input"): ["small"],
    ("edit, flow-edit", "--method"): ["direct"],
    ("diagnose", "--n"): ["1"],
    **{(name, "--n"): ["1"] for name in ("compare", "compare, by model")},
    ("compare, by model", "--other"): ["mixture"],
    ("tune", "--n"): ["12"],
    ("tune", "--nfe"): ["3"],
    ("sample, stochastic", "--solver"): ["dpmpp-2m-sde"],
    ("edit, noise-maps", "--solver"): ["dpmpp-2m-sde"],
    **{(name, "--noise"): ["0.3"] for name in ("restore", "restore, superres", "restore, deblur", "restore, ddrm")},
    **{(name, "--method"): ["mmps"] for name in ("restore, superres", "restore, deblur", "restore, ddrm")},
    ("restore", "--method"): ["dps"],
    ("restore", "--task"): ["deblur"],
}


def commands():
    """All commands of our own by their names, from the application itself."""

    def walk(prefix, group):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(f"{prefix}{name} ", command)
            else:
                yield f"{prefix}{name}", command

    return dict(walk("", APPLICATION))


def flags(command):
    """The flags of a command, each by its first name."""
    return [parameter.opts[0] for parameter in command.params if parameter.opts[0].startswith("--")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with inputs, to work in."""
    folder = tmp_path_factory.mktemp("walk")
    generator = torch.Generator().manual_seed(1)
    for name in ("x", "other"):
        x = torch.rand(3, *SHAPE, generator=generator) * 2 - 1
        arrays.write(folder / f"{name}.npy", x)
        sf.invert(tiny().with_condition(0), x, steps=3).save(folder / f"{'saved' if name == 'x' else name}.safetensors")
    for name, size in (("large", 8), ("small", 4)):
        for k in range(3):
            arrays.write(folder / name / f"{k}.png", torch.rand(1, 1, size, size, generator=generator) * 2 - 1)
    white = torch.full((1, 1, 4, 4), -1.0)
    white[..., 2:] = 1.0
    arrays.write(folder / "half.png", white)
    white[..., 1:] = 1.0
    arrays.write(folder / "mask.png", white)
    (folder / "lora").mkdir()
    return folder


@pytest.fixture(autouse=True)
def built_once(monkeypatch):
    """The application is not put together anew for each of some hundred commands."""
    monkeypatch.setattr(typer.testing, "_get_command", lambda app: APPLICATION)


@pytest.fixture
def invoke(place, monkeypatch):
    """A command in the folder: what it refused, or its figures and samples."""
    monkeypatch.chdir(place)

    def call(arguments):
        for path in place.glob("out.*"):
            path.unlink()
        kind = "json" if arguments[0] == "tune" else "npy"
        out = [] if arguments[0] in ("compare", "diagnose", "solvers") else ["--out", f"out.{kind}"]
        done = CliRunner().invoke(app, [*arguments, *out, "--json"])
        if isinstance(done.exception, sf.SteadyflowError):
            return str(done.exception), None
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        samples = (place / f"out.{kind}").read_bytes() if out else b""
        return None, (done.stdout, samples)

    return call


def without(arguments, flag, has_value):
    """The arguments without a flag and its value."""
    if flag not in arguments:
        return list(arguments)
    at = arguments.index(flag)
    return [*arguments[:at], *arguments[at + 1 + has_value :]]


def base_of(name, flag):
    """What is compared with: the base's words, three steps, and not what would contradict the flag."""
    words = BASES[name]
    model = [] if flag == "--model" else ["--model", TINY]
    fixed = flag in ("--nfe", "--from") or {"--from", "--nfe", "tune"} & {*words}
    steps = [] if fixed else ["--steps", "3"]
    return [*words, *model, *steps]


@pytest.mark.parametrize("name", BASES)
def test_every_flag_changes_something_or_is_refused_by_its_name(name, invoke):
    command = commands()[BASES[name][0]]
    ignored, plainly = [], {}
    for flag in flags(command):
        if flag in ELSEWHERE:
            continue
        assert flag in COMMON, f"the walk has no value for {flag}: give one, or say why it changes no results"
        value = OTHER_VALUES.get((name, flag), COMMON[flag])
        before = [*base_of(name, flag), *(["--model", TINY] if flag == "--model" else [])]
        if tuple(before) not in plainly:
            plainly[tuple(before)] = invoke(before)
        refusal, plain = plainly[tuple(before)]
        assert plain is not None, (before, refusal)
        here = before
        if flag == "--from" and "--from" not in before:
            here = without(without(without(before, "--input", True), "--source", True), "--mask", True)
        changed = without(here, flag, bool(value))
        changed = changed if flag in here and not value else [*changed, flag, *value]
        refusal, found = invoke(changed)
        if refusal is not None:
            names = [flag[2:], flag[2:].replace("-", "_"), *WORDS.get(flag, [])]
            if not any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", refusal) for word in names):
                ignored.append(f"{flag} is refused without its name: {refusal}")
        elif found == plain:
            ignored.append(f"{flag} {' '.join(value)} changes nothing")
    assert ignored == []


def test_the_walk_goes_over_every_command_and_every_flag():
    walked = {words[0] for words in BASES.values()}
    others = {"solvers", "runs show", "runs export", "doctor"}
    assert set(commands()) == walked | others
    there = {flag for command in commands().values() for flag in flags(command)}
    assert there == (set(COMMON) | set(ELSEWHERE)) - {"--help"}
    for name in others:
        assert set(flags(commands()[name])) <= {*ELSEWHERE, "--names"}


def test_words_are_in_every_command_whose_verb_takes_them():
    """The same words, by the same names, with the same defaults and the same help."""
    everywhere = {"--model", "--n", "--solver", "--coordinates", "--steps", "--nfe", "--grid", "--strength", "--t-min"}
    everywhere |= {"--t-max", "--batch-size", "--device", "--double", "--out", "--run", "--engine", "--address"}
    everywhere |= {"--workers", "--shard", "--json", "--strict", "--check-inputs", "--recompute-changed"}
    everywhere |= {"--model-version"}
    on_data = {"--input", "--resize", "--source-guidance"}
    noise = {"--seed", "--index", "--noise"}
    expected = {
        "sample": {"--guidance", "--label", "--prompt", *noise},
        "invert": {"--label", "--prompt", "--save", *on_data, *noise},
        "reconstruct": {"--guidance", "--label", "--prompt", "--save", *on_data, *noise},
        "edit": {"--guidance", "--target", "--source", "--method", "--save", "--from", *on_data, *noise},
        "diagnose": {"--guidance", "--label", "--prompt", "--verify", "--contractivity", "--tolerance", *on_data},
    }
    seen = {}
    for name, wanted in expected.items():
        command = commands()[name]
        assert everywhere | wanted <= set(flags(command)), name
        for parameter in command.params:
            flag = parameter.opts[0]
            if flag == "--out":  # of a diagnosis, a folder for its report
                continue
            about = (parameter.default, parameter.help)
            assert seen.setdefault(flag, about) == about, (name, flag)
    for flag in ("--n", "--solver", "--steps", "--nfe", "--grid", "--guidance", "--seed", "--batch-size"):
        assert seen[flag][0] is None, flag


WORK = {name: BASES[name] for name in ("sample", "invert", "reconstruct", "edit", "edit, flow-edit")}
WORK["diagnose"] = ["diagnose", *DATA]


@pytest.mark.parametrize("name", WORK)
def test_where_and_how_the_work_is_done_changes_no_results(name, invoke, place):
    words = [*WORK[name], "--model", TINY, "--steps", "3"]
    _, plain = invoke(words)
    shown, samples = plain
    figures = json.loads(shown)
    for extra in (["--device", "cpu"], ["--batch-size", "64"]):
        assert invoke([*words, *extra])[1] == plain
    folder = place / name.replace(", ", "-")
    run = ["--run", str(folder), "--batch-size", "1"]
    cut = [*run, "--shard", "2"]
    alone = CliRunner().invoke(app, [*words, "--batch-size", "1", *_out(name), "--json"])
    assert alone.exit_code == 0, alone.exception
    one_by_one = json.loads(alone.stdout)
    done = CliRunner().invoke(app, [*words, *cut, "--engine", "local", "--json"])
    assert done.exit_code == 0, done.exception
    found = {key: json.loads(done.stdout)[key] for key in one_by_one}
    assert found == one_by_one
    assert len(sf.runs.RunFolder.open(folder).shards()) == 2
    if name != "diagnose":
        exported = CliRunner().invoke(app, ["runs", "export", str(folder), "--out", "exported.npy"])
        assert exported.exit_code == 0, exported.exception
        assert (place / "exported.npy").read_bytes() == (place / "out.npy").read_bytes()
        np.testing.assert_allclose(np.load(place / "exported.npy"), _array(samples, place), atol=2e-5)
        assert found["samples"] == figures["samples"]
    listed = CliRunner().invoke(app, ["runs", "show", str(folder), "--json"])
    assert json.loads(listed.stdout)["done"] == "3 of 3"
    for extra, named in ((["--shard", "2"], "shard"), (["--engine", "ray"], "engine"), (["--workers", "2"], "workers"),
                         (["--address", "auto"], "address"), (["--strict"], "strict"),
                         (["--check-inputs", "times"], "check_inputs"), (["--model-version", "a"], "model_version"),
                         (["--recompute-changed"], "recompute_changed")):  # fmt: skip
        refusal, _ = invoke([*words, *extra])
        assert refusal.startswith(f"{named}: only valid with --run")
    refusal, _ = invoke([*words, *run, "--workers", "2"])
    assert "workers" in refusal


def _out(name):
    return [] if name == "diagnose" else ["--out", "out.npy"]


def _array(samples, place):
    (place / "plain.npy").write_bytes(samples)
    return np.load(place / "plain.npy")


@pytest.mark.parametrize("name", ["invert", "reconstruct", "edit"])
def test_what_is_saved_is_the_inversion(name, invoke, place):
    words = [*BASES[name], "--model", TINY, "--steps", "3", "--batch-size", "2"]
    _, _ = invoke([*words, "--save", "new.safetensors"])
    found = sf.Inversion.load(place / "new.safetensors", tiny())
    x = arrays.read(place / "x.npy", SHAPE)
    expected = sf.invert(tiny().with_condition(0 if name == "edit" else 1), x, steps=3)
    torch.testing.assert_close(found.latent, expected.latent)
    torch.testing.assert_close(found.decode().x, expected.decode().x)
    refusal, _ = invoke([*words, "--save", "new.safetensors", "--run", "folder"])
    assert refusal.startswith("save: not valid with --run")


def test_an_edit_that_makes_no_inversion_saves_none(invoke):
    for name in PLAIN:
        if "inversion" not in editing.get(name).refuses:
            continue
        refusal, _ = invoke([*BASES[f"edit, {name}"], "--model", TINY, "--steps", "3", "--save", "none.safetensors"])
        assert refusal.startswith("save:")
    refusal, _ = invoke([*BASES["edit, of an inversion"], "--model", TINY, "--save", "none.safetensors"])
    assert refusal.startswith("save:")


@pytest.mark.parametrize("name", ["sample", "reconstruct", "edit"])
def test_samples_are_written_as_a_sheet_as_arrays_or_as_pictures_in_a_folder(name, invoke, place):
    words = [*BASES[name], "--model", TINY, "--steps", "3"]
    _, (_, samples) = invoke(words)
    expected = torch.from_numpy(_array(samples, place))
    for out in ("sheet.png", "x.safetensors", "pictures"):
        for extra in ([], ["--run", f"{name}-{out}"]):
            done = CliRunner().invoke(app, [*words, *extra, "--out", out])
            assert done.exit_code == 0, done.exception
    assert arrays.read(place / "sheet.png", (1, 8, 8)).shape == (1, 1, 8, 8)
    torch.testing.assert_close(arrays.read(place / "x.safetensors", SHAPE), expected)
    assert len(arrays.pictures(place / "pictures")) == 3


def test_solvers_lists_or_draws_those_that_are_named(place, monkeypatch):
    monkeypatch.chdir(place)
    listed = CliRunner().invoke(app, ["solvers", "--names", "ddim, ees25", "--json"])
    assert list(json.loads(listed.stdout)) == ["ddim", "ees25"]
    drawn = CliRunner().invoke(app, ["solvers", "--names", "rk4", "--plot", "regions.png", "--json"])
    assert json.loads(drawn.stdout) == {"written to": "regions.png"}
    assert (place / "regions.png").stat().st_size > 1000
