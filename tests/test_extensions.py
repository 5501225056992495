"""What installed packages add to the library, and what is said without them: models, held-out data, commands."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

import steadyflow as sf
from steadyflow import models
from steadyflow._internal import extensions
from steadyflow.datasets.sources import open_source
from steadyflow.loading import load_model
from steadyflow_lab.datasets import faces
from steadyflow_lab.models import CALLS, WEIGHTS


@pytest.fixture
def alone(monkeypatch):
    """The library as if nothing else were installed."""
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **given: importlib.metadata.EntryPoints())


@pytest.mark.parametrize("group", extensions.LAB)
def test_the_lab_registers_what_the_messages_say_it_does(group):
    ours = {
        name
        for name, entry in extensions.registered(group).items()
        if entry.value.partition(".")[0] == "steadyflow_lab"
    }
    assert ours == set(extensions.LAB[group])


@pytest.mark.parametrize("name", extensions.LAB[extensions.MODELS])
def test_every_model_of_the_lab_is_loaded_by_its_name(name):
    if name in CALLS:
        pytest.importorskip("diffusers")
    model = models.load(name)
    assert model.name in (name, "triangles")
    assert torch.isfinite(sf.sample(model, n=1, steps=1).x).all()
    assert name in models.names()
    assert load_model(name).shape == model.shape


def test_the_weights_of_the_lab_are_those_of_its_models_and_the_judges():
    files = {path.stem for path in WEIGHTS.iterdir() if path.suffix == ".safetensors" or path.is_dir()}
    assert {name for name in files if not name.endswith("judge")} == {*extensions.LAB[extensions.MODELS]}


def test_entry_points_are_not_looked_at_for_models_of_our_own(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **given: pytest.fail("looked"))
    assert models.load("digits").name == "digits"
    assert len(open_source(models.load("digits"), None, 3)) == 3


@pytest.mark.usefixtures("alone")
def test_without_the_lab_its_models_are_unknown_and_the_message_says_what_to_install():
    assert models.names() == ["digits", "ink"]
    with pytest.raises(sf.UnknownNameError, match=r"'faces' is in steadyflow-lab: pip install steadyflow-lab.*digits"):
        sf.load("faces")
    with pytest.raises(sf.UnknownNameError, match=r"\./lab"):
        load_model("triangles-20")
    with pytest.raises(sf.UnknownNameError, match="did you mean 'digits'") as caught:
        sf.load("digit")
    assert "lab" not in str(caught.value)


def test_a_name_that_nothing_knows_is_refused_with_all_there_are():
    with pytest.raises(
        sf.UnknownNameError, match=r"did you mean 'faces'.*digits, digits-flow, faces, ink, mixture25"
    ) as caught:
        sf.load("face")
    assert "pip install" not in str(caught.value)


def test_held_out_data_come_from_the_package_that_has_them():
    images, labels = faces("held-out")
    source = open_source(models.load("faces"), None, 5)
    x, given = source.rows(0, 5)
    assert torch.equal(x, images[:5])
    assert torch.equal(given, labels[:5])
    with pytest.raises(sf.InputError, match="no data of its own; give --input"):
        open_source(models.load("triangles"), None, 5)


def test_held_out_data_without_the_lab_say_what_to_install(alone):
    model = models.load(str(WEIGHTS / "faces.safetensors"))
    with pytest.raises(sf.InputError, match="pip install steadyflow-lab"):
        open_source(model, None, 5)
    assert len(open_source(models.load("digits"), None, 5)) == 5


def test_models_of_any_package_are_found(monkeypatch):
    entry = importlib.metadata.EntryPoint("points", f"{__name__}:points", extensions.MODELS)
    found = importlib.metadata.EntryPoints([entry])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **given: found.select(**given))
    assert models.names() == ["digits", "ink", "points"]
    assert sf.load("points").name == "points"


def points(name):
    """A model as another package would register it."""
    return sf.Denoiser(lambda x, t: x, sf.VE(), shape=(2,), name=name)


def test_the_commands_of_the_lab_are_an_application_and_a_function_with_an_epilog():
    found = {name: entry.load() for name, entry in extensions.registered(extensions.COMMANDS).items()}
    assert isinstance(found["lab"], typer.Typer)
    assert found["demo"].epilog == "Example: steadyflow demo --out demo"


def test_the_command_line_has_the_commands_of_the_lab(call):
    status, out, _ = call("--help")
    assert status == 0
    assert re.search(r"\bdemo\b.*side by side", out)
    assert re.search(r"\blab\b.*experiments", out)


def test_the_command_line_works_without_the_lab():
    hide = (
        "import importlib.metadata as m, sys\n"
        "m.entry_points = lambda **given: m.EntryPoints()\n"
        "sys.modules['steadyflow_lab'] = None\n"
        "from steadyflow.cli import main\n"
        "for word in ('--help', 'solvers', 'demo'):\n"
        "    sys.argv = ['steadyflow', word]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        print(f'exit {stop.code}', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    shown, listed, missing, rest = re.split(r"^exit (?:0|None|1)\n", done.stdout, flags=re.M)
    assert re.findall(r"^exit (\w+)$", done.stdout, re.M)[::2] == ["0", "1"], done.stderr
    assert "sample" in shown
    assert not re.search(r"\bdemo\b", shown)
    assert "ees25" in listed, done.stderr
    assert missing == rest == ""
    assert "'demo' is in steadyflow-lab: pip install steadyflow-lab" in done.stderr


def test_the_core_imports_nothing_of_the_lab():
    folder = Path(sf.__file__).parent
    wrong = [
        path for path in folder.rglob("*.py") if re.search(r"^\s*(from|import) steadyflow_lab", path.read_text(), re.M)
    ]
    assert wrong == []


def test_both_packages_have_one_version():
    assert importlib.metadata.version("steadyflow-lab") == importlib.metadata.version("steadyflow") == sf.__version__
