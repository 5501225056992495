"""Run benchmarks and put what they print into benchmarks/RESULTS.md:  python benchmarks/run.py [name ...]

Without names all are run. The sections of benchmarks that are not run stay as they are.
"""

import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "run")
HEAD = "# Results\n\nWhat the scripts of this folder printed; `make benchmarks` makes it anew.\n"

chosen = sys.argv[1:] or NAMES
unknown = set(chosen) - set(NAMES)
if unknown:
    sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
text = RESULTS.read_text() if RESULTS.exists() else HEAD
sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
for name in chosen:
    print(f"{name} ...", flush=True)
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}"
    sections[name] = f"\n{machine}, torch {torch.__version__}\n\n```text\n{done.stdout.strip()}\n```\n\n"
    RESULTS.write_text(HEAD + "\n" + "".join(f"## {key}\n{sections[key]}" for key in sorted(sections)).rstrip() + "\n")
