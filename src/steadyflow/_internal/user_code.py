"""The code that a user wrote: which modules it lies in, which files these are, and which others they import."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
import sysconfig
import types
from pathlib import Path

OURS = ("steadyflow", "steadyflow_lab")


@functools.lru_cache(maxsize=4096)
def is_own_code(module: str) -> bool:
    """Whether a module is a user's: one of no installed package, which has a version, nor of Python."""
    top = module.partition(".")[0]
    if not top or top in sys.stdlib_module_names or top in (*OURS, "builtins"):
        return top == "__main__"
    there = sys.modules.get(module) or sys.modules.get(top)
    file = getattr(there, "__file__", None)
    if file is None:
        return there is None or not hasattr(there, "__path__")
    path = Path(file).resolve()
    return not any(path.is_relative_to(place) for place in _installed())


@functools.cache
def _installed() -> tuple[Path, ...]:
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")}
    return tuple(Path(place).resolve() for place in places if place)


def instructions(code: types.CodeType, names: list[str]) -> str:
    """The instructions of a function and of those in it, as text; the names that they refer to are added to a list."""
    names += code.co_names
    inner = [
        instructions(one, names) if isinstance(one, types.CodeType) else repr(one)
        for one in code.co_consts
        if not isinstance(one, frozenset)
    ]
    sets = [repr(sorted(one, key=repr)) for one in code.co_consts if isinstance(one, frozenset)]
    return f"{code.co_code.hex()} {code.co_names!r} {code.co_varnames!r} {[*inner, *sets]!r}"


def file_of(name: str) -> Path | None:
    """The source file of a module, loaded or not."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None and name not in sys.modules:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            spec = None
        file = None if spec is None else spec.origin
    return Path(file) if file is not None and Path(file).is_file() and Path(file).suffix == ".py" else None


def imported(file: Path, name: str) -> list[str]:
    """The modules that a source file may import, anywhere in it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    found, package = set[str](), name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).strip(".")
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    parts = {".".join(word.split(".")[: k + 1]) for word in found for k in range(word.count(".") + 1)}
    return sorted(part for part in parts if part)
