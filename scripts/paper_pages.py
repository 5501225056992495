"""Make the tables of results in docs and in the README anew from lab/results; see `steadyflow_lab.pages`."""

from pathlib import Path

from steadyflow_lab.pages import fill

for page in (Path("README.md"), *sorted(Path("docs").rglob("*.md"))):
    before = page.read_text(encoding="utf-8")
    after = fill(before, "lab/results")
    if after != before:
        page.write_text(after, encoding="utf-8")
