"""Run benchmarks and put what they print into benchmarks/RESULTS.md.

    python benchmarks/run.py [name ...] [-- ARGUMENT ...]

Without names all are run but the long ones (few_calls, tuning, tuning_pictures, many_inputs, video_edits, kills,
faults, fuzz and versions), and gradients_on_device, which needs an accelerator. The sections of benchmarks that are not
run stay as they are. Arguments after -- are those of the scripts, such as --read FILE.
"""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"
PATHS = {
    path.stem: path
    for path in sorted(FOLDER.glob("*.py"))
    if path.stem not in ("run", "peers", "timing", "tuning_problems", "memory_record")
}
SCRIPTS = {"kills": "kill_runs", "faults": "faults", "fuzz": "fuzz", "versions": "versions"}
LONG = {name: FOLDER.parent / "scripts" / f"{file}.py" for name, file in SCRIPTS.items()}
LONG |= {
    name: PATHS.pop(name)
    for name in ("few_calls", "tuning", "tuning_pictures", "many_inputs", "gradients_on_device", "video_edits")
    if name in PATHS
}
HEAD = "# Results\n\nWhat the scripts of this folder printed; `make benchmarks` makes it anew.\n"


def processor():
    """The processor's name where the system tells it, else its kind."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.machine()


end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
chosen, passed = sys.argv[1:end] or list(PATHS), sys.argv[end + 1 :]
unknown = set(chosen) - {*PATHS, *LONG}
if unknown:
    sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join([*PATHS, *LONG])}")
text = RESULTS.read_text() if RESULTS.exists() else HEAD
sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
for name in chosen:
    print(f"{name} ...", flush=True)
    path = {**PATHS, **LONG}[name]
    done = subprocess.run([sys.executable, path, *passed], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    machine = f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    printed = done.stdout.strip("\n")
    sections[name] = f"\n{machine}, torch {torch.__version__}\n\n```text\n{printed}\n```\n\n"
    RESULTS.write_text(HEAD + "\n" + "".join(f"## {key}\n{sections[key]}" for key in sorted(sections)).rstrip() + "\n")
