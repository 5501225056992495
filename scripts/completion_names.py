"""Write the names that the shell completes, from the registries:  python scripts/completion_names.py

They are written out, as completion has no time to import what registers them. With `--check` nothing is written, and
the exit status says whether the file is up to date.
"""

import sys
from pathlib import Path

from steadyflow import editing, grids, loading, models
from steadyflow._internal import extensions
from steadyflow.solvers import registry

FILE = Path(__file__).resolve().parents[1] / "src" / "steadyflow" / "cli" / "names.py"
WIDE = 120


def text() -> str:
    """The module as it should be."""
    own = set(models.names()) - set(extensions.registered(extensions.MODELS))
    lists = {
        "SOLVERS": registry.built_in(),
        "GRIDS": grids.names(),
        "METHODS": editing.names(),
        "MODELS": sorted({*own, *loading.PIPELINES, "mixture"}),
    }
    head = '"""Names that the shell completes, written by scripts/completion_names.py."""\n\n'
    return head + "\n".join(_assigned(name, values) for name, values in lists.items())


def _assigned(name: str, values: list[str]) -> str:
    """A tuple as ruff formats it."""
    inside = ", ".join(f'"{value}"' for value in values)
    if len(f"{name} = ({inside})") <= WIDE:
        return f"{name} = ({inside})\n"
    return f"{name} = (\n" + "".join(f'    "{value}",\n' for value in values) + ")\n"


if __name__ == "__main__":
    new = text()
    if "--check" in sys.argv:
        raise SystemExit(not FILE.is_file() or new != FILE.read_text(encoding="utf-8"))
    FILE.write_text(new, encoding="utf-8")
