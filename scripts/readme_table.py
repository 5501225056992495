"""Renew the table of solvers in docs/solvers.md from the registry."""

import re
from pathlib import Path

from steadyflow.solvers.registry import solver_table

path = Path("docs/solvers.md")
pattern = r"\| solver \| order \|.*?(?=\n\n)"
path.write_text(re.sub(pattern, lambda _: solver_table(), path.read_text(), flags=re.DOTALL))
