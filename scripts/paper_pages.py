"""Make the tables in docs/papers and in the README anew from the results in lab/results; see `steadyflow_lab.pages`."""

from pathlib import Path

from steadyflow_lab.pages import fill

for page in (Path("README.md"), *sorted(Path("docs/papers").glob("*.md"))):
    page.write_text(fill(page.read_text(encoding="utf-8"), "lab/results"), encoding="utf-8")
