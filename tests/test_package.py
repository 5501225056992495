"""What importing costs, what is public, and which way imports run."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import steadyflow as sf

SOURCE = Path(sf.__file__).parent

# The floors of the house, from the ground up; a module may import from lower floors and its own room.
FLOORS = [
    ["errors", "_version", "batches", "bisection"],
    ["schedules"],
    ["prediction", "noise", "files", "gradients"],
    ["arrays", "plots"],
    ["variables", "grids", "denoisers", "metrics"],
    ["solvers"],
    ["integrate"],
    ["adaptive"],
    ["tasks", "models", "datasets"],
    ["diagnostics"],
    ["corrections"],
    ["adapters"],
    ["runs"],
    ["lab", "diffusers"],
    ["cli"],
    ["__main__", "__init__"],
]


def room(module):
    return module.split(".")[0]


def imports(path):
    """The rooms that a module imports from, within the package."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield room(".".join([*base, name]))


def test_imports_go_down_only():
    floor = {name: k for k, names in enumerate(FLOORS) for name in names}
    wrong = []
    for path in SOURCE.rglob("*.py"):
        here = path.relative_to(SOURCE).with_suffix("").parts[0]
        wrong += [
            f"{path.relative_to(SOURCE)} imports {target}"
            for target in imports(path)
            if target != here and target in floor and floor[target] >= floor[here] and here not in ("__init__",)
        ]
    assert not wrong


def test_importing_loads_none_of_the_optional_packages_and_starts_no_thread():
    code = "import sys, threading, steadyflow; print([m for m in sys.modules]); assert threading.active_count() == 1"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = ("matplotlib", "diffusers", "sklearn", "skimage", "transformers", "jinja2", "typer", "PIL")
    assert [name for name in heavy if f"'{name}'" in loaded] == []


@pytest.mark.parametrize(("package", "code"), [
    ("sklearn", "from steadyflow.datasets import digits; digits('train')"),
    ("skimage", "import torch; from steadyflow.metrics import count_shapes; count_shapes(torch.zeros(1, 1, 8, 8))"),
    ("PIL", "import torch; from steadyflow.datasets import arrays; arrays.write('x.png', torch.zeros(1, 1, 8, 8))"),
    ("jinja2", "from steadyflow._internal import html; html.write('x.html', '')"),
    ("matplotlib", "from steadyflow.diagnostics import stability_region; stability_region.figure(['ddim'])"),
])  # fmt: skip
def test_a_missing_extra_says_what_to_install(package, code):
    extra = "plots" if package in ("jinja2", "matplotlib") else "data"
    hide = f"import sys; sys.modules[{package!r}] = None; import steadyflow as sf\n"
    program = f"{hide}try:\n    {code}\nexcept sf.MissingExtraError as error:\n    print(error)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"pip install 'steadyflow[{extra}]'" in out.stdout, out.stderr


def test_every_public_name_exists_is_documented_and_is_used_in_an_example():
    root = SOURCE.parents[1]
    pages = [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("examples/*.py")]
    shown = "\n".join(path.read_text() for path in pages)
    for name in sf.__all__:
        assert getattr(sf, name) is not None
        if name != "__version__":
            assert inspect.getdoc(getattr(sf, name)), name
            assert re.search(rf"\b{name}\b", shown), f"{name} is in no example"


def modules():
    return [importlib.import_module(info.name) for info in pkgutil.walk_packages(sf.__path__, "steadyflow.")
            if not info.name.endswith("__main__")]  # fmt: skip


def test_everything_without_an_underscore_has_a_docstring():
    bare = []
    for module in modules():
        bare += [] if module.__doc__ else [module.__name__]
        for name, thing in vars(module).items():
            public = not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing))
            if not public or thing.__module__ != module.__name__:
                continue
            bare += [] if inspect.getdoc(thing) else [f"{module.__name__}.{name}"]
            methods = vars(thing).items() if inspect.isclass(thing) else ()
            bare += [
                f"{module.__name__}.{name}.{method}"
                for method, of in methods
                if not method.startswith("_") and (inspect.isfunction(of) or isinstance(of, property | classmethod))
                if not inspect.getdoc(getattr(thing, method)) and not _told_above(thing, method)
            ]
    assert not bare


def _told_above(kind, name):
    """Whether a base class or the protocol that a class keeps says what this is."""
    from steadyflow.metrics.features import Extractor

    fields = getattr(kind, "__dataclass_fields__", {})
    return (
        any(name in {**vars(base), **base.__annotations__} for base in (*kind.__mro__[1:-1], Extractor))
        or name in fields
    )


def test_modules_are_short_enough_to_hold_in_the_head():
    reasons = {
        "schedules.py": "all paths, side by side",
        "integrate.py": "both drivers, and what a run keeps",
        "multistep.py": "one family",
        "reversible.py": "one family",
        "commands.py": "the options of every command",
    }
    long = [path.name for path in SOURCE.rglob("*.py") if len(path.read_text().splitlines()) > 400]
    assert set(long) <= set(reasons)
