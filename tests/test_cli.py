"""The command line as a user meets it."""

import importlib.metadata
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

import steadyflow as sf
from steadyflow import editing
from steadyflow.cli.app import app, main
from steadyflow.cli.options import print_json
from steadyflow.datasets import arrays, digits
from steadyflow_lab.digits import recognise


def test_help_at_every_level_shows_an_example(call):
    assert call("--help")[0] == 0
    for command in ("sample", "reconstruct", "edit", "solvers", "demo"):
        status, out, _ = call(command, "--help")
        assert status == 0
        assert f"Example: steadyflow {command}" in out


def test_version_is_the_packages(call):
    assert call("--version") == (0, f"steadyflow {sf.__version__}\n", "")


def test_solvers_lists_every_registered_solver_with_its_facts(call):
    _, out, _ = call("solvers")
    lines = out.splitlines()
    assert {line.split()[0] for line in lines[2:]} == set(sf.solvers.names())
    facts = json.loads(call("solvers", "--json")[1])
    assert facts["ees25"]["antisymmetric_order"] == 5
    assert re.search(r"ees25 .*\[-3\.087, 0\]", out)


@pytest.mark.parametrize("suffix", [".png", ".npy", ".safetensors"])
def test_sample_writes_what_it_drew(suffix, call, tmp_path):
    out = tmp_path / f"sevens{suffix}"
    status, text, _ = call("sample", "--n", 4, "--label", 7, "--guidance", 2, "--steps", 10, "--out", out, "--json")
    assert status == 0
    figures = json.loads(text)
    drawn = sf.sample(sf.load("digits").with_condition(7), n=4, steps=10, guidance=2.0)
    assert (figures["steps"], figures["nfe"], figures["samples"]) == (10, drawn.nfe, 4)
    expected = drawn.x
    if suffix == ".png":
        assert arrays.read(out, (1, 16, 16)).shape == (1, 1, 16, 16)
    else:
        written = torch.from_numpy(np.load(out)) if suffix == ".npy" else load_file(out)["x"]
        torch.testing.assert_close(written, expected)


def test_reconstruct_the_users_own_picture(call, tmp_path):
    image = digits("held-out")[0][:1]
    arrays.write(tmp_path / "mine.png", image)
    arguments = ("reconstruct", "--input", tmp_path / "mine.png", "--solver", "rk4", "--nfe", 96, "--json")
    status, text, _ = call(*arguments, "--out", tmp_path / "back.npy", "--save", tmp_path / "inv.safetensors")
    assert status == 0
    figures = json.loads(text)
    assert figures["nfe each way"] == 96
    assert figures["error max"] < 1e-2
    back = torch.from_numpy(np.load(tmp_path / "back.npy"))
    assert (back - image).abs().max() < 2e-2
    again = sf.Inversion.load(tmp_path / "inv.safetensors", sf.load("digits")).decode().x
    torch.testing.assert_close(again, back)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_reconstruct_arrays_on_the_mixture(suffix, call, tmp_path):
    x = sf.GaussianMixture.grid().sample(5)
    path = tmp_path / f"points{suffix}"
    arrays.write(path, x)
    status, text, _ = call("reconstruct", "--model", "mixture", "--input", path, "--nfe", 60, "--json")
    assert status == 0
    assert json.loads(text)["samples"] == 5
    assert json.loads(text)["error max"] < 1e-3


def test_edit_moves_digits_to_another_class(call, tmp_path):
    options = ("--source", 3, "--target", 8, "--n", 8, "--guidance", 2, "--json", "--out")
    status, text, _ = call("edit", *options, tmp_path / "e.png")
    assert status == 0
    assert json.loads(text)["samples"] == 8
    assert (tmp_path / "e.png").is_file()
    assert call("edit", *options, tmp_path / "e.npy")[0] == 0
    images, labels = digits("held-out")
    model, threes = sf.load("digits"), images[labels == 3][:8]
    expected = sf.edit(model, threes, 8, source=3, guidance=2.0)
    edited = torch.from_numpy(np.load(tmp_path / "e.npy"))
    torch.testing.assert_close(edited, expected.x)
    assert (recognise(edited) == 8).float().mean() > 0.5
    np.testing.assert_allclose(json.loads(text)["distance median"], expected.distance.double().quantile(0.5), rtol=1e-5)


@pytest.mark.parametrize(("name", "options", "method"), [
    ("inversion", (), "inversion"),
    ("direct", ("--share", 0.5), editing.Direct(0.5)),
    ("rf-inversion:window=0/0.6", ("--gamma", 0.2), editing.RFInversion(0.2, window=(0.0, 0.6))),
    ("flow-edit", ("--average", 2), editing.FlowEdit(2)),
    ("flow-align:zeta=0.05", ("--average", 2), editing.FlowAlign(0.05, average=2)),
    ("dvrf:rate=published,progressive=false", ("--eta", 0.5), editing.DVRF(0.5, False, "published")),
    ("noise-maps", (), "noise-maps"),
    ("uni-edit:omega=3,measure=signed", (), editing.UniEdit(3.0, "signed")),
    ("pmi:keep=0.5,dimension=2", (), editing.PMI(dimension=2.0, keep=0.5)),
    ("dna-edit", ("--eta", 0.5), editing.DNAEdit(0.5)),
    ("flow-opt:iterations=2,rate=0.1", (), editing.ByFlowOpt(2, 0.1)),
])  # fmt: skip
def test_methods_of_editing_and_their_options_are_reached_from_the_command_line(name, options, method, call, tmp_path):
    out = tmp_path / "e.npy"
    words = ("--source", 3, "--target", 8, "--n", 2, "--steps", 3, "--guidance", 2, "--out", out, "--json")
    status, text, problem = call("edit", "--model", "digits", *words, "--method", name, *options)
    assert status == 0, problem
    images, labels = digits("held-out")
    expected = sf.edit(sf.load("digits"), images[labels == 3][:2], 8, source=3, guidance=2.0, steps=3, method=method)
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected.x)
    assert json.loads(text)["method"] == expected.method == name.partition(":")[0]
    assert json.loads(text)["nfe"] == expected.nfe


def test_the_help_names_every_method_of_editing_and_those_that_have_an_option():
    """It is written out, as the methods are not imported for it."""
    options = typer.main.get_command(app).commands["edit"].params
    told = {name: option.help for option in options for name in option.opts}
    listed = re.split(r", | or ", told["--method"].partition(";")[0].replace(" (the default)", ""))
    assert listed == editing.names()
    for flag in ("share", "average", "gamma", "eta", "window"):
        have = [name for name in editing.names() if flag in editing.get(name).spec()]
        clauses = re.findall(r"(?:^|; )[Oo]f ([^:;]*):", told[f"--{flag}"])
        assert sorted(re.split(", | and ", ", ".join(clauses))) == sorted(have), flag


def test_demo_prints_one_table_and_writes_one_self_contained_report(call, tmp_path):
    status, out, _ = call("demo", "--n", 6, "--out", tmp_path / "demo")
    assert status == 0
    assert len([line for line in out.splitlines() if line.startswith(("ddim", "midpoint", "rk4", "ees2"))]) == 15
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<img") == page.count('src="data:image/png;base64,') == page.count('alt="') == 28
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.parametrize(("arguments", "message"), [
    (("sample", "--solver", "ees52"), "unknown solver 'ees52': did you mean 'ees2"),
    (("sample", "--steps", "0"), "steps: got 0"),
    (("sample", "--steps", "5", "--nfe", "5"), "not both"),
    (("sample", "--solver", "rk4", "--nfe", "3"), "takes 4 evaluations"),
    (("sample", "--model", "digitz"), "did you mean 'digits'"),
    (("sample", "--label", "12"), "label 12"),
    (("sample", "--guidance", "3"), "give --label"),
    (("sample", "--solver", "ddim", "--coordinates", "data"), "no option 'coordinates'"),
    (("sample", "--n", "0"), "n: got 0"),
    (("sample", "--out", "x.xyz"), "out: x.xyz is of an unknown kind"),
    (("sample", "--solver", "auto", "--coordinates", "data"), "coordinates: solver 'auto' chooses them"),
    (("reconstruct", "--solver", "ddpm"), "stochastic"),
    (("reconstruct", "--input", "nowhere.png"), "no such file"),
    (("invert", "--resize"), "resize: held-out data"),
    (("edit", "--target", "8", "--window", "3"), "window: got '3'"),
    (("edit", "--target", "8", "--method", "magic"), "unknown editing method 'magic'"),
    (("edit", "--target", "8", "--method", "uni-edit:omga=3"), "method 'uni-edit': no option 'omga'; it takes omega,"),
    (("edit", "--target", "8", "--method", "uni-edit:omega=x"), "method 'uni-edit': omega: got 'x', expected a number"),
    (("edit", "--target", "8", "--method", "dvrf:eta=0.5", "--eta", "0.4"), "eta is given twice"),
    (("edit", "--target", "8", "--method", "pmi", "--share", "0.5"), "no option 'share'; it takes proximity, "),
    (("edit", "--target", "8", "--method", "pmi", "--seed", "5"), "seed: would change nothing"),
    (("compare", "--n", "2"), "compare: give another model, changed options or another codec"),
    (("compare", "--n", "2", "--other-dtype", "int8"), "other_dtype: got 'int8', expected one of float32, bfloat16"),
    (("compare", "--model", "mixture", "--other-dtype", "float16"), "other_dtype: the network of 'mixture' is no"),
    (("diagnose", "--contractivity", "--verify"), "verify: not valid with --contractivity"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line_without_a_traceback(arguments, message, call):
    status, out, err = call(*arguments)
    assert status == 1
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_debug_shows_where_an_error_came_from(monkeypatch):
    """The error is let through, of which Python shows where it was raised."""
    monkeypatch.setattr(sys, "argv", ["steadyflow", "--debug", "sample", "--steps", "0"])
    with pytest.raises(sf.InputError, match="steps: got 0"):
        main()


def test_files_that_are_not_what_they_say_are_refused(tmp_path):
    shape = (1, 8, 8)
    text = tmp_path / "text.png"
    text.write_text("this is no picture")
    with pytest.raises(sf.CorruptFileError, match="no picture"):
        arrays.read(text, shape)
    (tmp_path / "text.npy").write_text("this is no array")
    with pytest.raises(sf.CorruptFileError, match=r"no plain \.npy array"):
        arrays.read(tmp_path / "text.npy", shape)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(sf.CorruptFileError):
        arrays.read(tmp_path / "objects.npy", shape)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    with pytest.raises(sf.InputError, match="array of numbers"):
        arrays.read(tmp_path / "words.npy", shape)
    (tmp_path / "text.safetensors").write_text("this is no tensor")
    with pytest.raises(sf.CorruptFileError, match="no safetensors file"):
        arrays.read(tmp_path / "text.safetensors", shape)
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(sf.InputError, match="one named 'x'"):
        arrays.read(tmp_path / "two.safetensors", shape)
    (tmp_path / "thing.xyz").write_text("")
    with pytest.raises(sf.InputError, match="unknown kind"):
        arrays.read(tmp_path / "thing.xyz", shape)


def test_a_picture_of_another_size_is_refused_or_resized_on_request(tmp_path):
    arrays.write(tmp_path / "large.png", torch.zeros(1, 1, 20, 30))
    with pytest.raises(sf.InputError, match="30 x 20, the model's samples are 8 x 8"):
        arrays.read(tmp_path / "large.png", (1, 8, 8))
    assert arrays.read(tmp_path / "large.png", (1, 8, 8), resize=True).shape == (1, 1, 8, 8)


def test_pictures_survive_writing_and_reading_to_half_a_level(tmp_path):
    x = torch.rand(1, 3, 5, 7) * 2 - 1
    arrays.write(tmp_path / "x.png", x)
    assert (arrays.read(tmp_path / "x.png", (3, 5, 7)) - x).abs().max() <= 0.5 / 127.5 + 1e-6


COMMANDS = ("", "sample", "invert", "reconstruct", "edit", "diagnose", "compare", "solvers", "doctor", "demo", "lab",
            "lab run", "runs", "runs show", "runs export", "lab run piebench", "lab run instability",
            "lab run hallucination", "lab run reconstruction", "lab run stein", "lab run editing")  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_at_every_level_has_an_example(command, call):
    status, out, _ = call(*command.split(), "--help")
    assert status == 0
    assert "Example: steadyflow" in out
    if command.split()[-1:] and command not in ("lab", "lab run", "runs"):
        assert "--json" in out


def test_json_has_no_numbers_that_are_not(capsys):
    print_json({"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": (float("-inf"), 2)}, "e": "NaN"})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.0, None],
        "c": {"d": [None, 2]},
        "e": "NaN",
    }


def test_the_figures_of_all_solvers_are_valid_json(call):
    assert json.loads(call("solvers", "--json")[1], parse_constant=pytest.fail)


def test_of_an_input_at_most_n_samples_are_taken(call, tmp_path):
    arrays.write(tmp_path / "x.npy", sf.GaussianMixture.grid().sample(5).float())
    for command in ("invert", "reconstruct", "diagnose"):
        for n, expected in ((2, 2), (9, 5)):
            words = ("--model", "mixture", "--input", tmp_path / "x.npy", "--n", n, "--steps", 2, "--run")
            status, text, err = call(command, *words, tmp_path / f"{command}-{n}", "--json")
            assert status == 0, err
            assert json.loads(text)["samples"] == expected


def test_a_solver_is_chosen_on_the_first_samples_and_the_reason_is_told(call):
    status, text, err = call("reconstruct", "--model", "mixture", "--solver", "auto", "--nfe", 24, "--json")
    assert status == 0, err
    figures = json.loads(text)
    assert figures["reason"].startswith(figures["solver"])
    assert figures["nfe each way"] <= 24


def test_contractivity_says_which_steps_contract_and_draws_them(call, tmp_path):
    words = ("diagnose", "--model", "mixture", "--n", 3, "--solver", "ddim", "--steps", 4, "--contractivity")
    status, text, _ = call(*words, "--out", tmp_path / "found")
    assert status == 0
    assert len([line for line in text.splitlines() if line.endswith("%")]) == 4
    assert "below 1, a step contracts" in text
    assert (tmp_path / "found" / "contractivity.png").is_file()
    rows = json.loads(call(*words, "--json")[1])
    assert [sorted(row) for row in rows] == [["contracts", "largest", "median", "t"]] * 4


def test_diagnoses_of_several_blocks_are_counted_and_each_has_a_report(call, tmp_path):
    words = ("diagnose", "--model", "mixture", "--n", 3, "--solver", "ddim", "--steps", 4, "--batch-size", 2, "--json")
    status, text, _ = call(*words, "--out", tmp_path)
    assert status == 0
    assert json.loads(text)["causes, by blocks"] == "steps 2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["diagnosis-000000000.html", "diagnosis-000000002.html"]


def test_the_commands_of_the_lab_are_imported_only_when_they_are_wanted():
    code = (
        "import sys\nfrom steadyflow.cli import main\nsys.argv = ['steadyflow', 'sample', '--help']\n"
        "try:\n    main()\nfinally:\n"
        "    print([name for name in sys.modules if name.startswith(('steadyflow_lab', 'diffusers'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("command", ["lab", "demo"])
def test_without_the_lab_its_commands_say_what_to_install(call, monkeypatch, command):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **given: importlib.metadata.EntryPoints())
    status, out, err = call(command)
    assert (status, out) == (1, "")
    assert "pip install steadyflow-lab" in err


def test_commands_of_any_package_are_found(call, monkeypatch):
    group = "steadyflow.commands"
    found = [importlib.metadata.EntryPoint(name, f"{__name__}:{name}", group) for name in ("greet", "tools")]
    entries = importlib.metadata.EntryPoints(found)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **given: entries.select(**given))
    assert call("greet", "--name", "you") == (0, "hello you\n", "")
    assert "Example: steadyflow greet" in call("greet", "--help")[1]
    assert call("tools", "hammer") == (0, "bang\n", "")
    listed = call("--help")[1]
    assert "greet" in listed
    assert "Things to hold." in listed


def greet(name: str = "all") -> None:
    """Say hello."""
    print(f"hello {name}")


greet.epilog = "Example: steadyflow greet"
tools = typer.Typer(help="Things to hold.")


@tools.command()
def hammer() -> None:
    """Hit."""
    print("bang")


@tools.command()
def saw() -> None:
    """Cut."""
