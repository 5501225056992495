"""Run the tests with the lowest and the newest versions, on each Python, and with each extra alone.

    python scripts/versions.py [cell ...] [--list] [--work FOLDER] [--python 3.14=/path/of/python]

Each cell of the matrix is a fresh environment with this repository's two distributions in it, built and installed, and
a run of the tests there:

- `lowest` takes every dependency at the version that pyproject.toml gives as its lowest;
- `python3.11`, `python3.12`, ... take the newest of everything, without constraints;
- `sdist` builds the source distribution, unpacks it, installs what it holds and runs the tests that it holds;
- `core` takes no extra, and `data`, `plots`, ... one extra alone: every public module is imported, the command line
  starts and samples, and the tests run with `--missing=skip`, by which what needs another package is skipped.

The versions are read from pyproject.toml, and the packages without dependencies from the Makefile. A table is printed,
with the reasons of what could not be run; the log has all that the tools said, and the versions of all packages. The
exit status is 1 if a test failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
FAST = ["-rs", "-m", "not slow and not families", "-n", "2", "--dist", "worksteal"]
SDIST = "sdist"
BUILD = "import sys; from hatchling.build import build_sdist; print(build_sdist(sys.argv[1]))"
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "mpmath")
"""What the tests of a cell of one extra need beside it; all are named in the extra `dev`."""
SHOWN = ("torch", "numpy", "typer", "transformers", "diffusers")
"""The packages whose versions are in the table."""
TESTS = {
    "data": ["digits_model", "pictures", "shapes"],
    "plots": ["diagnosis", "stability"],
    "diffusers": ["diffusers", "ink", "modular", "pipeline_editing", "scheduler_plans"],
    "metrics": ["feature_distances", "image_metrics", "metrics"],
    "video": ["media"],
    "audio": ["media"],
    "ray": ["ray"],
    "sbi": ["interop_sbi"],
    "onnx": ["interop_onnx"],
}
"""The tests of what an extra is for; those of the core run all, as far as they need nothing else."""
PURPOSES = {
    "core": "sf.sample(sf.load('digits').with_condition(7), n=2, nfe=8)",
    "data": "sf.reconstruct(sf.load('digits').with_condition(3), sf.datasets.digits('held-out')[0][:2], nfe=8)",
    "plots": "from steadyflow.diagnostics import stability_region as s; s.figure(['ddim'])",
    "diffusers": "import steadyflow.loading as of; sf.sample(of.load_model('ink').with_condition('a'), n=1, nfe=4)",
    "metrics": "from steadyflow.metrics import ssim; ssim(*torch.rand(2, 1, 1, 32, 32), span=1.0)",
    "video": "from steadyflow._internal import video_writing as w; w.mp4(torch.zeros(1, 3, 4, 32, 32), 8.0)",
    "audio": "from steadyflow._internal import sounds; sounds.wav(torch.zeros(1, 800), 8000)",
    "ray": "from steadyflow.runs import Ray; assert list(Ray(workers=1).map(abs, range(-2, 0))) == [2, 1]",
    "sbi": "from sbi.neural_nets.estimators import ConditionalVectorFieldEstimator",
    "onnx": "import onnx, onnxruntime",
    "docs": "import mkdocs, material, mkdocstrings, markdown_exec",
}
"""What an extra is for, in a line of Python."""
IMPORTS = """
import importlib, pkgutil, sys, torch, steadyflow as sf
public = [m.name for m in pkgutil.walk_packages(sf.__path__, "steadyflow.") if not m.name.endswith("__main__")]
for name in public:
    try:
        importlib.import_module(name)
    except sf.MissingExtraError as error:
        print(f"{name}: {error}", file=sys.stderr)
print(len(public))
"""


@dataclass(frozen=True)
class Cell:
    """An environment of the matrix."""

    name: str
    python: str
    requirements: tuple[str, ...]
    versions: str
    """ "lowest", "newest" or "constraints" (those of constraints-cpu.txt)."""
    tests: tuple[str, ...] = ()
    """Files; all if there are none."""
    alone: bool = False
    """Whether packages are missing on purpose."""


@dataclass
class Row:
    """What a cell gave."""

    cell: str
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    not_run: str = ""
    """Why it could not be run."""
    failures: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    """The files of tests that were chosen in place of the cell's own."""


def project(folder: Path = ROOT) -> dict:
    """The table [project] of a pyproject.toml."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def extras() -> dict[str, list[str]]:
    """The extras that users install one by one, with their requirements."""
    return {name: given for name, given in project()["optional-dependencies"].items()
            if name not in ("dev", "peers", "all")}  # fmt: skip


def declared() -> Iterator[tuple[str, str]]:
    """(name, lowest version) of every requirement of both distributions, their extras and their build."""
    for folder in (ROOT, ROOT / "lab", ROOT / "comfy"):
        given = project(folder)
        options = given.get("optional-dependencies", {}).values()
        for requirement in itertools.chain(given["dependencies"], *options):
            name = re.match(r"[\w.-]+", requirement)[0]
            if name == "steadyflow":
                continue
            lowest = re.fullmatch(r"[\w.-]+(?:\[[\w,]+\])?>=([\d.]+)", requirement)
            if lowest is None:
                raise ValueError(f"pyproject.toml: {requirement} has no lowest version")
            yield name, lowest[1]


def lowest() -> dict[str, str]:
    """The lowest version of every requirement; the highest of these where there are several."""
    found: dict[str, str] = {}
    for name, version in declared():
        if name not in found or parts(version) > parts(found[name]):
            found[name] = version
    return found


def parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def without_dependencies() -> list[str]:
    """The packages that the Makefile installs without theirs."""
    return re.search(r"--no-deps (.+)", (ROOT / "Makefile").read_text())[1].split()


def matrix() -> dict[str, Cell]:
    """The cells by their names, the small ones first."""
    cells = [Cell("core", PYTHONS[0], (".",), "constraints", alone=True)]
    for name in extras():
        files = tuple(f"tests/test_{stem}.py" for stem in TESTS.get(name, ["package"]))
        cells.append(Cell(name, PYTHONS[0], (f".[{name}]",), "constraints", files, alone=True))
    whole = (".[dev,peers]", "./lab")
    cells.append(Cell(SDIST, PYTHONS[0], whole, "constraints"))
    cells.append(Cell("lowest", PYTHONS[0], whole, "lowest"))
    cells += [Cell(f"python{version}", version, whole, "newest") for version in PYTHONS]
    return {cell.name: cell for cell in cells}


def interpreter(version: str, given: dict[str, str]) -> str | None:
    """A Python of a version: a given one, this one, or one on PATH or of pyenv."""
    here = sys.executable if sys.version.startswith(f"{version}.") else None
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    kept = sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))
    for path in (given.get(version), here, shutil.which(f"python{version}"), *kept):
        if path and run([path, "-c", "import venv, ssl"], None).returncode == 0:
            return path
    return None


def unpacked(python: Path, folder: Path, log: Path) -> Path:
    """Build the source distribution with a Python that has the build's backend, and unpack it."""
    for name in ("dist", "unpacked"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "dist").mkdir()
    run([python, "-c", BUILD, folder / "dist"], log)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (inside,) = (folder / "unpacked").iterdir()
    return inside


def run(
    command: list, log: Path | None, limit: float = 120.0, cwd: Path = ROOT, **options
) -> subprocess.CompletedProcess:
    """Run a command; what it says is appended to the log. A command that hangs counts as one that failed."""
    try:
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=limit, check=False, cwd=cwd, **options)  # fmt: skip
    except subprocess.TimeoutExpired as stop:
        said = stop.stdout.decode(errors="replace") if isinstance(stop.stdout, bytes) else stop.stdout or ""
        done = subprocess.CompletedProcess(stop.cmd, 124, f"{said}\nno end after {limit:g} s\n")
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(map(str, command))}\n{done.stdout}\n")
    return done


def surroundings(cell: Cell) -> dict[str, str]:
    """The environment variables of a cell: nothing of the caller's Python."""
    mine = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    mine |= {"HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if cell.versions == "newest":
        mine["PIP_CONSTRAINT"] = os.devnull  # neither what the machine's pip is held to
    return mine


def install(cell: Cell, python: str, env: Path, log: Path) -> str:
    """Build the environment of a cell; what went wrong, if anything."""
    around = surroundings(cell)
    done = run([python, "-m", "venv", env], log, env=around)
    tools = {name: version for name, version in declared() if name in TOOLS}
    constraints = []
    if cell.versions == "lowest":
        held = env.parent / "lowest.txt"
        held.write_text("".join(f"{name}=={version}\n" for name, version in lowest().items()))
        constraints = ["-c", held]
    elif cell.versions == "constraints":
        constraints = ["-c", "constraints-cpu.txt"]
    packages = [*cell.requirements, *(f"{name}>={version}" for name, version in tools.items())]
    pip = [env / "bin" / "python", "-m", "pip", "install", "-q", "--no-compile"]
    if done.returncode == 0:
        done = run([*pip, *constraints, *packages], log, 3600.0, env=around)
    if done.returncode == 0 and not cell.alone:
        done = run([*pip, "--no-deps", *without_dependencies()], log, 600.0, env=around)
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()[-1:]
    return errors[0] if errors else f"pip ended with status {done.returncode}"


def measure(cell: Cell, python: str | None, folder: Path, only: list[str]) -> Row:
    """Build the environment of a cell, if it is not there, and run what it is for."""
    row = Row(cell.name, cell.python, only=only)
    if python is None:
        row.not_run = f"there is no Python {cell.python} here"
        return row
    folder.mkdir(parents=True, exist_ok=True)
    env, log, built = folder / "env", folder / "log.txt", folder / "built"
    log.write_text("", encoding="utf-8")
    began, fresh = time.time(), False
    if not built.exists():
        shutil.rmtree(env, ignore_errors=True)
        row.not_run = install(cell, python, env, log)
        if row.not_run:
            return row
        built.touch()
        fresh = True
    of_env, around = env / "bin" / "python", surroundings(cell)
    source = unpacked(of_env, folder, log) if cell.name == SDIST else ROOT
    if not fresh or source != ROOT:  # what it needs is there; ours may have changed
        ours = [source / part for part in (".", "lab") if part == "." or not cell.alone]
        run([of_env, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", *ours], log, 600.0, env=around)
    run([of_env, "-m", "pip", "freeze"], log, env=around)
    told = run([of_env, "-c", "import json, platform; from importlib import metadata as m; print(json.dumps("
                "{'python': platform.python_version()} | {d.name.lower(): d.version for d in m.distributions()}))"],
               None, env=around)  # fmt: skip
    row.versions = json.loads(told.stdout)
    row.python = row.versions.pop("python")
    if cell.alone:
        for what, command in probes(cell, env).items():
            good = run(command, log, 600.0, env=around).returncode == 0
            row.passed, row.failed = row.passed + good, row.failed + (not good)
            row.failures += [] if good else [what]
    if cell.name != "docs":  # an extra of tools
        found = folder / "tests.xml"
        found.unlink(missing_ok=True)
        command = [of_env, "-m", "pytest", *FAST, f"--junitxml={found}", *(["--missing=skip"] if cell.alone else [])]
        done = run([*command, *(only or cell.tests)], log, 7200.0, env=around, cwd=source)
        count(found, row)
        if done.returncode not in (0, 1, 5):  # passed, failed, none that fits; else it was stopped on its way
            row.failed += 1
            row.failures.append(f"pytest ended with status {done.returncode}")
    row.seconds = time.time() - began
    return row


def probes(cell: Cell, env: Path) -> dict[str, list]:
    """What must work wherever the package is installed, and what the extra is for."""
    python, ours = env / "bin" / "python", env / "bin" / "steadyflow"
    purpose = f"import torch, steadyflow as sf; {PURPOSES[cell.name]}"
    return {
        "importing every module": [python, "-c", IMPORTS],
        "steadyflow --version": [ours, "--version"],
        "steadyflow sample": [ours, "sample", "--label", "7", "--n", "2", "--out", env / "sevens.npy"],
        "its purpose": [python, "-c", purpose],
    }


def count(found: Path, row: Row) -> None:
    """Add the outcomes in a file of pytest's to a row."""
    if not found.exists():
        row.failed += 1
        row.failures.append("pytest wrote no outcome")
        return
    for case in ElementTree.parse(found).iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped") is not None
        row.failed += bad
        row.skipped += skipped and not bad
        row.passed += not bad and not skipped
        if bad:
            row.failures.append(f"{case.get('classname')}::{case.get('name')}")


def table(rows: list[Row]) -> str:
    """The rows in columns, and below them what failed and what was not run."""
    head = ["cell", "Python", *SHOWN, "passed", "failed", "skipped", "seconds"]
    lines = [head]
    for row in rows:
        versions = [row.versions.get(name, "-") for name in SHOWN]
        counts = ["-"] * 4 if row.not_run else [row.passed, row.failed, row.skipped, round(row.seconds)]
        lines.append([row.cell, row.python, *versions, *map(str, counts)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += [""] + [f"{row.cell}: not run: {row.not_run}" for row in rows if row.not_run]
    text += [f"{row.cell}: failed: {name}" for row in rows for name in row.failures]
    text += [f"{row.cell}: a part of its tests: {' '.join(row.only)}" for row in rows if row.only and not row.not_run]
    return "\n".join(text).rstrip()


def main() -> None:
    """Run the chosen cells, or print the table of cells that ran before."""
    cells = matrix()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="cell", help=f"all by default: {', '.join(cells)}")
    parser.add_argument("--list", action="store_true", help="print the cells and the lowest versions, run nothing")
    parser.add_argument("--work", type=Path, help="a folder that keeps environments, logs and outcomes, and uses "
                        "environments that are there; without it they are removed cell by cell")  # fmt: skip
    parser.add_argument(
        "--read", type=Path, metavar="FOLDER", help="print the table of a folder of --work, run nothing"
    )
    parser.add_argument("--log", type=Path, help="a file for all that the tools said")
    parser.add_argument(
        "--python", action="append", default=[], metavar="VERSION=PATH", help="such as 3.14=/opt/python"
    )
    parser.add_argument("--tests", nargs="+", default=[], metavar="FILE", help="in place of the tests of the cells")
    given = parser.parse_args()
    unknown = set(given.cells) - set(cells)
    if unknown:
        parser.error(f"no cell {', '.join(sorted(unknown))}; there are {', '.join(cells)}")
    if given.list:
        for cell in cells.values():
            print(f"{cell.name:12} Python {cell.python}, {cell.versions}: {' '.join(cell.requirements)}")
        print("lowest:", ", ".join(f"{name} {version}" for name, version in lowest().items()))
        return
    chosen = [cells[name] for name in given.cells or cells]
    if given.read:
        print(table(read(given.read, chosen)))
        return
    pythons = dict(pair.split("=", 1) for pair in given.python)
    rows = []
    with tempfile.TemporaryDirectory() as passing:
        for cell in chosen:
            folder = (given.work or Path(passing)).resolve() / cell.name
            row = measure(cell, interpreter(cell.python, pythons), folder, given.tests)
            rows.append(row)
            print(table([row]), end="\n\n", file=sys.stderr, flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "row.json").write_text(json.dumps(asdict(row), indent=1), encoding="utf-8")
            if given.log and (folder / "log.txt").exists():
                with given.log.open("a", encoding="utf-8") as log:
                    log.write(f"== {cell.name}\n{(folder / 'log.txt').read_text(encoding='utf-8')}\n")
            if not given.work:
                shutil.rmtree(folder)
    print(table(rows))
    sys.exit(any(row.failed for row in rows))


def read(folder: Path, cells: list[Cell]) -> list[Row]:
    """The rows that a folder of --work holds, and those of cells that were not run."""
    rows = []
    for cell in cells:
        kept = folder / cell.name / "row.json"
        rows.append(Row(**json.loads(kept.read_text(encoding="utf-8"))) if kept.exists()
                    else Row(cell.name, cell.python, not_run="not asked for"))  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
