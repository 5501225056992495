"""Renew the table of solvers in README.md from the registry."""

import re
from pathlib import Path

from steadyflow.solvers.registry import solver_table

path = Path("README.md")
text = re.sub(r"\| solver \| order \|.*?(?=\n\n)", lambda _: solver_table(), path.read_text(), flags=re.DOTALL)
path.write_text(text)
