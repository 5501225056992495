"""The tables of results in docs and in the README, made from the results that are kept in lab/results.

A page holds places `<!-- claims PAPER -->` and `<!-- table PAPER FIGURE -->`, each closed by `<!-- end -->`; what lies
between is replaced. Nothing else in a page is touched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from steadyflow.errors import InputError

from .findings import Finding
from .papers import PAPERS
from .studies import Paper, read_findings

_PLACE = re.compile(r"(<!-- (claims|table) (\S+)(?: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, results: str | Path) -> str:
    """Give a page with its tables made anew from the results in a folder.

    Raises `InputError` for a place that names no paper or no figure, or a figure whose result is not there.
    """

    def table(place: re.Match[str]) -> str:
        head, kind, name, figure, end = place.groups()
        if name not in PAPERS:
            raise InputError(f"page: {head.strip()!r} names no paper; known: {', '.join(PAPERS)}")
        paper = PAPERS[name]
        found = read_findings(paper, results)
        missing = [key for key in ([figure] if kind == "table" else paper.figures) if key not in found]
        if missing:
            raise InputError(
                f"page: no result of the full form for {', '.join(map(str, missing))} in {results}; "
                f"`steadyflow lab run {name} --out {results}` makes it"
            )
        body = claims_table(paper, found) if kind == "claims" else figure_table(found[str(figure)])
        return f"{head}\n{body}\n\n{end}"

    return _PLACE.sub(table, text)


def claims_table(paper: Paper, found: dict[str, Finding]) -> str:
    """Write every claim of a paper: verdict, the paper's number beside ours, and the command that makes it."""
    heads = ["claim", "what it says", "the paper", "here", "verdict", "`steadyflow lab run`"]
    rows = [
        [claim.label, claim.says, claim.paper, claim.here, f"**{claim.verdict}**", f"`{paper.name} --figure {figure}`"]
        for figure in paper.figures
        for claim in found[figure].claims
    ]
    return markdown(heads, rows)


def figure_table(finding: Finding) -> str:
    """Write the rows of a finding, and its note."""
    return markdown(finding.heads, finding.rows) + (f"\n\n{finding.note}" if finding.note else "")


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
