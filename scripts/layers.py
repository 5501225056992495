"""The layers of the package, from its imports, drawn into docs/design.md:  python scripts/layers.py

A room is a module or a package directly under `steadyflow`. It stands one floor above the highest room that it imports
from, wherever in the file the import is, so that an import can only go down. With `--check` nothing is written, and the
exit status says whether the page is up to date.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "steadyflow"
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- layers -->", "<!-- /layers -->"
FRONT = ("__init__", "__main__")


def rooms_imported(path: Path) -> set[str]:
    """The rooms from which a file imports, its own left out."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {".".join([*base, name]).split(".")[0] for name in names}
    return found - {parts[0]}


def imports() -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    graph: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).with_suffix("").parts[0]
        if room not in FRONT:
            graph[room] = graph.get(room, set()) | rooms_imported(path)
    known = set(graph)
    return {room: targets & known for room, targets in graph.items()}


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """The rooms floor by floor from the ground up.

    Raises:
        ValueError: Some rooms import each other in a circle.
    """
    height: dict[str, int] = {}
    left = dict(graph)
    while left:
        ready = [room for room, targets in left.items() if targets <= height.keys()]
        if not ready:
            raise ValueError(f"a circle of imports among {', '.join(sorted(left))}")
        for room in ready:
            height[room] = 1 + max((height[target] for target in left.pop(room)), default=-1)
    return [sorted(room for room in height if height[room] == k) for k in range(max(height.values()) + 1)]


def drawing() -> str:
    """The floors as text, the top one first; behind each room the rooms on the floors below that it stands on."""
    graph = imports()
    whole = floors(graph)
    height = {room: k for k, rooms in enumerate(whole) for room in rooms}
    wide = max(len(room) for room in graph)
    lines = []
    for k in reversed(range(len(whole))):
        for i, room in enumerate(whole[k]):
            below = sorted(graph[room], key=lambda target: (-height[target], target))
            direct = [t for t in below if not any(t in graph[other] for other in below)]
            rest = f"on {', '.join(direct)}" if direct else ""
            lines.append(f"{k + 1 if i == 0 else '':>3}  {room:<{wide}}  {rest}".rstrip())
    return "\n".join(lines)


def page() -> str:
    """docs/design.md with the drawing of today."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n```text\n{drawing()}\n```\n{END}{after}"


if __name__ == "__main__":
    new = page()
    if "--check" in sys.argv:
        raise SystemExit(new != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(new, encoding="utf-8")
