"""The README's examples and the example scripts run; the table of solvers is the registry's, in one place."""

import runpy
from pathlib import Path

import pytest

import fences
import steadyflow as sf
from steadyflow.solvers.registry import solver_table
from steadyflow_lab import demo
from steadyflow_lab.editing.ways import FEW, TUNED

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_examples_run_one_after_the_other(capsys):
    pytest.importorskip("diffusers")
    assert len(fences.blocks(README)) >= 3
    fences.run(README)
    assert "verified: median error" in capsys.readouterr().out


def test_the_table_is_of_the_solvers_of_the_demonstration():
    """Renewed by `make picture`."""
    table = README.read_text().partition("<!-- demonstration -->")[2].partition("<!-- end -->")[0].splitlines()
    shown = [line.split(" | ")[0].removeprefix("| ") for line in table if line.startswith("| ")]
    tuned = [f"tuned for {FEW // 2} calls"] if TUNED.is_file() else []
    assert shown == ["solver", "---", *demo.compared(sf.load("digits")), *tuned]


def test_the_table_of_solvers_is_the_registrys():
    """Renewed by `make table`."""
    pages = [path for path in (README.parent / "docs").rglob("*.md") if solver_table() in path.read_text()]
    assert [path.name for path in pages] == ["solvers.md"]
    assert "| solver | order |" not in README.read_text()


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) < 150


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("path", sorted((README.parent / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_the_examples_run(path):
    runpy.run_path(str(path))
