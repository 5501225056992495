"""The Python of a page's fenced blocks."""

import re
from pathlib import Path

_BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The blocks in their order."""
    return _BLOCK.findall(page.read_text())


def run(page: Path, names: dict | None = None) -> None:
    """Run the blocks one after the other, with names that the page takes as given."""
    names = {} if names is None else names
    for block in blocks(page):
        exec(compile(block, f"<{page.name}>", "exec"), names)  # torch 2.5 reads the file, as Python, that code names
