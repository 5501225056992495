"""The matrix of versions is that of pyproject.toml; what is not installed is skipped where that is asked for."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import versions

ROOT = Path(__file__).parents[1]
PROJECTS = [tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"] for part in (".", "lab")]


def test_the_lowest_versions_are_those_of_pyproject():
    found = versions.lowest()
    for project in PROJECTS:
        for requirements in (project["dependencies"], *project.get("optional-dependencies", {}).values()):
            for requirement in requirements:
                name, _, version = requirement.partition(">=")
                name = name.partition("[")[0]
                if name != "steadyflow":
                    assert versions.parts(found[name]) >= versions.parts(version)


def test_both_distributions_ask_for_the_same_lowest_versions():
    """Else one of them would name a version that is never installed."""
    found = {}
    for name, version in versions.declared():
        found.setdefault(name, set()).add(version)
    of_the_core = {
        requirement.partition(">=")[0] for requirement in PROJECTS[0]["dependencies"]
    }  # extras may ask for more
    assert {name: several for name, several in found.items() if len(several) > 1 and name not in of_the_core} == {}


def test_there_is_a_cell_for_every_extra_and_every_python_that_is_promised():
    cells = versions.matrix()
    extras = set(PROJECTS[0]["optional-dependencies"]) - {"dev", "peers", "all"}
    assert {name for name, cell in cells.items() if cell.alone} == {"core", *extras}
    assert set(versions.PURPOSES) == {"core", *extras}
    promised = {line.rpartition(" ")[2] for line in PROJECTS[0]["classifiers"] if "Python :: 3." in line}
    assert {cell.python for cell in cells.values()} >= promised
    assert PROJECTS[0]["requires-python"] == f">={versions.PYTHONS[0]}"
    named = {file for cell in cells.values() for file in cell.tests}
    assert all((ROOT / file).is_file() for file in named)


def test_a_requirement_without_a_lowest_version_is_refused(tmp_path, monkeypatch):
    for part in (".", "lab"):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "pyproject.toml").write_text('[project]\ndependencies = ["torch<3"]\n')
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="torch<3 has no lowest version"):
        versions.lowest()


def test_the_table_says_what_passed_what_failed_and_what_was_not_run():
    rows = [
        versions.Row("core", "3.11.7", {"torch": "2.4.0"}, 3, 1, 2, 1.6, failures=["a::b"]),
        versions.Row("python3.14", "3.14", not_run="there is no Python 3.14 here"),
    ]
    lines = versions.table(rows).splitlines()
    assert lines[0].split() == ["cell", "Python", *versions.SHOWN, "passed", "failed", "skipped", "seconds"]
    assert lines[1].split() == ["core", "3.11.7", "2.4.0", "-", "-", "-", "-", "3", "1", "2", "2"]
    assert lines[2].split() == ["python3.14", "3.14", *"-----", *"----"]
    assert lines[-2:] == ["python3.14: not run: there is no Python 3.14 here", "core: failed: a::b"]


def test_outcomes_are_counted_from_pytests_own_file(tmp_path):
    cases = {"good": "", "bad": "<failure/>", "broken": "<error/>", "out": "<skipped/>"}
    lines = [f'<testcase classname="a" name="{name}">{inside}</testcase>' for name, inside in cases.items()]
    text = f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>"
    (tmp_path / "tests.xml").write_text(text)
    row = versions.Row("x")
    versions.count(tmp_path / "tests.xml", row)
    assert (row.passed, row.failed, row.skipped) == (1, 2, 1)
    assert row.failures == ["a::bad", "a::broken"]
    versions.count(tmp_path / "none.xml", row)
    assert row.failures[-1] == "pytest wrote no outcome"


TESTS = {
    "test_whole.py": "import no_such_package\ndef test(): pass\n",
    "test_part.py": """
import steadyflow as sf
def test_of_ours(): raise sf.MissingExtraError("PyAV", "video", "videos")
def test_by_name(): import no_such_package
def test_of_a_part(): import math.no_such_part
def test_broken(): raise sf.BrokenExtraError("PyAV", "videos", ImportError("no codec"))
def test_good(): pass
def test_bad(): assert False
def test_of_a_command():
    said = "error: videos needs PyAV; install it with: pip install 'steadyflow[video]'"
    assert said == "done"
""",
}


@pytest.mark.parametrize(
    ("option", "outcome"), [("skip", {"passed": 1, "failed": 3, "skipped": 4}), ("fail", {"passed": 1, "failed": 7})]
)
def test_what_is_not_installed_is_skipped_where_that_is_asked_for(tmp_path, option, outcome):
    assert importlib.util.find_spec("no_such_package") is None
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    for name, text in TESTS.items():
        (tmp_path / name).write_text(text)
    found = tmp_path / "found.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors",
               f"--missing={option}", f"--junitxml={found}", "--rootdir", tmp_path, tmp_path]  # fmt: skip
    subprocess.run(list(map(str, command)), capture_output=True, check=False, cwd=tmp_path)
    row = versions.Row("x")
    versions.count(found, row)
    assert (row.passed, row.failed, row.skipped) == (outcome["passed"], outcome["failed"], outcome.get("skipped", 0))
