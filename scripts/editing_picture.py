"""Make the picture of edits, docs/images/editing.png, from what the study found: see lab/results."""

import json
import re
from pathlib import Path

from steadyflow._internal import plots
from steadyflow_lab.findings import Finding

MARKERS = ("o", "s", "^")
found = Finding.read(json.loads(Path("lab/results/editing-tradeoff.json").read_text())["result"])
guidances = [match[1] for head in found.heads if (match := re.fullmatch(r"background, w = (.+)", head))]
figure = plots.figure(7.2, 4.8)
axes = figure.subplots()
for line in found.curves:
    colour = axes.plot(line.x, line.y, "-", lw=1.2, label=line.label)[0].get_color()
    for x, y, marker in zip(line.x, line.y, MARKERS, strict=True):
        axes.plot(x, y, marker, ms=6, color=colour)
for guidance, marker in zip(guidances, MARKERS, strict=True):
    axes.plot([], [], marker, ms=6, color="0.4", label=f"w = {guidance}")
axes.set(xlabel=found.axes[0], ylabel=found.axes[1], title=found.title)
axes.grid(alpha=0.3)
figure.legend(loc="outside lower center", ncols=3, frameon=False)
path = Path("docs/images/editing.png")
plots.save(figure, path, dpi=200)
print(path)
