"""The pages of the papers: made from results that are there, of the sizes that the code has, which come out again."""

import json
import re
from pathlib import Path

import pytest

import steadyflow as sf
from steadyflow.runs.engines import InProcess
from steadyflow_lab.findings import VERDICTS, Claim, Finding, Size, decide
from steadyflow_lab.pages import claims_table, fill
from steadyflow_lab.papers import PAPERS
from steadyflow_lab.studies import Bench, Paper, read_findings, result_name, run_figures

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "lab/results"
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if re.search("<!-- (claims|table) ", path.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_what_the_results_say(page):
    text = page.read_text(encoding="utf-8")
    assert fill(text, RESULTS) == text, "stale: run python scripts/paper_pages.py"


@pytest.mark.parametrize("paper", PAPERS.values(), ids=lambda paper: paper.name)
def test_every_figure_has_a_result_of_the_size_that_the_code_has(paper):
    found = read_findings(paper, RESULTS)
    assert list(found) == list(paper.figures)
    assert all(found[figure].figure == figure for figure in found)
    assert any(finding.claims for finding in found.values())
    files = {path.stem for path in RESULTS.glob(f"{paper.name}-*.json")}
    assert files == {result_name(paper, figure) for figure in paper.figures}
    assert (ROOT / "docs/papers" / paper.page).is_file()


@pytest.mark.parametrize(("paper", "figure"), [("hallucination", "E.12"), ("hallucination", "P4.5")])
def test_what_is_kept_comes_out_again(paper, figure):
    """Deterministic figures that take a second in their full form."""
    kept = read_findings(PAPERS[paper], RESULTS)[figure]
    again = PAPERS[paper].figures[figure](Bench(PAPERS[paper].full))
    for row, before in zip(again.rows, kept.rows, strict=True):
        for cell, old in zip(row, before, strict=True):
            assert (
                cell == old or abs(float(cell) - float(old)) < 1e-12
            )  # rounding, which differs from one CPU to another
    assert again.claims == kept.claims


def _paper(calls: list[str]) -> Paper:
    def figure(bench: Bench) -> Finding:
        def one(k: int) -> Size:
            calls.append(f"cell {k}")
            return Size("cell", k)

        cells = bench.cells("a", one, [(str(k), k) for k in range(3)], lambda fields: Size(**fields))
        total = sum(cell.n for cell in cells) + bench.size.n
        claim = Claim("1", "it is so", "1", str(total), "holds")
        return Finding("a", "A | B", [claim], ["x"], [["1|2"]], note="a note")

    return Paper("paper", "0000.00000", {"a": figure}, Size("full", 10), Size("quick", 1), "paper.md")


class Told:
    def __init__(self):
        self.seen = []

    def figure(self, name):
        self.seen.append(name)

    def expect(self, units):
        self.seen.append(units)

    def advance(self):
        self.seen.append("+")


def test_a_figure_is_kept_by_cell_and_tells_how_far_it_has_come(tmp_path):
    calls, told = [], Told()
    paper = _paper(calls)
    (first,) = run_figures(paper, folder=tmp_path, progress=told)
    assert told.seen == ["a", 3, "+", "+", "+"]
    assert first.claims[0].here == "13"
    (tmp_path / "paper-a.json").unlink()
    (tmp_path / "cells/a-1.json").unlink()
    assert run_figures(paper, folder=tmp_path) == [first]
    assert calls == ["cell 0", "cell 1", "cell 2", "cell 1"]
    (quick,) = run_figures(paper, quick=True, folder=tmp_path)
    assert quick.claims[0].here == "4"
    assert calls[-3:] == ["cell 0", "cell 1", "cell 2"]  # of another size: not the same cells
    (tmp_path / "paper-a.json").unlink()
    assert run_figures(paper, folder=tmp_path) == [first]
    assert len(calls) == 7  # nor have they been overwritten


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        ([True, True], [False, False], "holds"),
        ([False, False], [True, True], "does not hold"),
        ([True, False], [False, True], "holds in part"),
        ([True, False], [False, False], "not decided"),
        ([False, False], [False, False], "not decided"),
    ],
)
def test_a_claim_about_several_cases_is_decided_by_all_of_them(inside, outside, expected):
    assert decide(inside, outside) == expected


def test_a_result_of_another_size_or_version_is_computed_anew(tmp_path):
    calls = []
    paper = _paper(calls)
    run_figures(paper, folder=tmp_path)
    path = tmp_path / "paper-a.json"
    data = json.loads(path.read_text())
    assert data["stamp"] == {"size": {"name": "full", "n": 10, "long": 100_000, "images": 400, "seed": 0}}
    assert data["version"].startswith(f"{sf.__version__}+")
    path.write_text(json.dumps({**data, "version": "0"}))
    assert read_findings(paper, tmp_path)  # the page does not ask which version made it
    run_figures(paper, folder=tmp_path)
    assert json.loads(path.read_text())["version"] == data["version"]
    path.write_text(json.dumps({**data, "stamp": {"size": {"n": 11}}}))
    assert not read_findings(paper, tmp_path)


def test_a_page_is_filled_and_what_it_lacks_is_named(tmp_path, monkeypatch):
    paper = _paper([])
    monkeypatch.setitem(PAPERS, "paper", paper)
    page = "before\n<!-- claims paper -->\nbygone\n<!-- end -->\nbetween\n<!-- table paper a -->\n<!-- end -->\nafter\n"
    with pytest.raises(sf.InputError, match="no result of the full form for a"):
        fill(page, tmp_path)
    run_figures(paper, folder=tmp_path, engine=InProcess())
    text = fill(page, tmp_path)
    assert "bygone" not in text
    assert "| 1 | it is so | 1 | 13 | **holds** | `paper --figure a` |" in text
    assert "| 1\\|2 |" in text
    assert "a note" in text
    assert fill(text, tmp_path) == text
    assert claims_table(paper, read_findings(paper, tmp_path)) in text
    with pytest.raises(sf.InputError, match="names no paper"):
        fill("<!-- claims other -->\n<!-- end -->", tmp_path)


def test_a_verdict_is_one_of_five():
    assert len(VERDICTS) == 5
    with pytest.raises(ValueError, match="verdict"):
        Claim("1", "it is so", "", "", "holds, perhaps")
