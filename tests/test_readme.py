"""The README's examples run, and its table is the registry's."""

import runpy
from pathlib import Path

import pytest

import fences
from steadyflow.solvers.registry import solver_table

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_five_examples_run_one_after_the_other(capsys):
    assert len(fences.blocks(README)) == 5
    fences.run(README)
    assert "True" in capsys.readouterr().out  # the addressed sample is the same one


def test_the_table_of_solvers_is_the_registrys():
    """Renewed by `make table`."""
    assert solver_table() in README.read_text()
    assert solver_table() in (README.parent / "docs" / "solvers.md").read_text()


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("path", sorted((README.parent / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_the_examples_run(path):
    runpy.run_path(str(path))
