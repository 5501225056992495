"""The notebooks run from top to bottom, show what they say, and are stored without their outputs."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
BOOKS = {path.stem: path for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))}
PICTURES = {"edit": 5, "reconstruct": 4, "tune": 3}
NO_WIDGETS = "IProgress not found"
"""What tqdm says, when a library imports it, where there is no ipywidgets."""
NUMBER = r"(\d[\d.]*(?:e[+-]?\d+)?)"


def test_there_is_a_notebook_for_each_task():
    assert set(BOOKS) == set(PICTURES)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """By notebook, what it prints, how many pictures it shows, and what it warns of.

    All run in one kernel, which forgets all names after each.
    """
    books = {name: nbformat.read(path, as_version=4) for name, path in BOOKS.items() if runs(name)}
    whole = nbformat.v4.new_notebook()
    for book in books.values():
        whole.cells += [*book.cells, nbformat.v4.new_code_cell("%reset -f")]
    folder = {"metadata": {"path": str(tmp_path_factory.mktemp("notebooks"))}}
    NotebookClient(whole, kernel_name="python3", resources=folder).execute()
    found = {}
    for name, book in books.items():
        outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
        texts = {kind: [one.text for one in outputs if one.get("name") == kind] for kind in ("stdout", "stderr")}
        pictures = sum("image/png" in output.get("data", {}) for output in outputs)
        found[name] = "".join(texts["stdout"]), pictures, [text for text in texts["stderr"] if NO_WIDGETS not in text]
    return found


def runs(name):
    """Whether there is what a notebook needs."""
    return name != "edit" or importlib.util.find_spec("diffusers") is not None


NEEDING = [pytest.param(name, marks=pytest.mark.skipif(not runs(name), reason="needs diffusers")) for name in PICTURES]


@pytest.mark.parametrize("name", NEEDING)
def test_it_runs_from_top_to_bottom_without_warnings_and_shows_its_pictures(name, told):
    _, pictures, warned = told[name]
    assert pictures == PICTURES[name]
    assert warned == []


def figures(pattern, text):
    return [float(number) for number in re.search(pattern.replace("#", NUMBER), text).groups()]


def test_what_the_notebook_on_reconstruction_says_holds(told):
    text = told["reconstruct"][0]
    (ddim,), (midpoint,) = figures("DDIM: median error #", text), figures("midpoint: median error #", text)
    assert midpoint < ddim / 4
    assert "inversion" in text  # the summary of the diagnosis
    assert figures("belm: largest error #", text)[0] < 1e-10


def test_what_the_notebook_on_editing_says_holds(told):
    if not runs("edit"):
        pytest.skip("needs diffusers")
    text = told["edit"][0]
    wild, calm = figures("in the edit: Rex #, EES25 #", text)
    assert wild > 5 * calm
    whole, gentle = figures("whole #, strength 0.8 #", text)
    assert gentle < whole
    assert figures("right half under the mask: #", text)[0] < 1e-5


def test_what_the_notebook_on_tuning_says_holds(told):
    text = told["tune"][0]
    (plain,), (tuned,) = figures("ddim: distance to the fine solve #", text), figures("tuned: distance .* #", text)
    assert tuned < plain
    assert figures("from the file: largest difference #", text) == [0.0]


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_stored_small_and_as_it_was_written(name):
    """Outputs would be megabytes of pictures, and would differ from machine to machine."""
    book = nbformat.read(BOOKS[name], as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert BOOKS[name].stat().st_size < 20_000
    assert max(len(cell.source.splitlines()) for cell in code) <= 20


@pytest.mark.parametrize("name", PICTURES)
def test_its_links_lead_to_files(name):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", nbformat.read(BOOKS[name], as_version=4).cells[-1].source):
        assert (BOOKS[name].parent / target).exists(), target


def test_the_documentation_names_them():
    for page in (ROOT / "docs" / "index.md", ROOT / "README.md"):
        assert "examples/notebooks" in page.read_text()
