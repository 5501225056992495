"""Make the picture of the ways of editing, docs/images/pareto.png, from what the study found:  see lab/results."""

import json
from pathlib import Path

from steadyflow._internal import plots
from steadyflow_lab.editing.pareto import GUIDANCES
from steadyflow_lab.editing.ways import WAYS
from steadyflow_lab.findings import Finding

COLOURS = {"inversion": "tab:blue", "injection": "tab:red", "no inversion": "tab:green"}
found = Finding.read(json.loads(Path("lab/results/editing-scenes.json").read_text())["result"])
groups = {way.label: way.group for way in WAYS}
figure = plots.figure(7.6, 5.2)
axes = figure.subplots()
points = [
    (x, y, f"{line.label.removeprefix('_')}, w = {w:g}")
    for line in found.curves
    for x, y, w in zip(line.x, line.y, GUIDANCES, strict=True)
]
for line in found.curves:
    axes.plot(line.x, line.y, "o-", ms=3, lw=0.7, alpha=0.5, color=COLOURS[groups[line.label.removeprefix("_")]])
ahead, most = [], -1.0
for x, y, label in sorted(points, key=lambda point: (point[0], -point[1])):
    if y > most:
        ahead.append((x, y, label))
        most = y
axes.step([x for x, _, _ in ahead], [y for _, y, _ in ahead], where="post", color="black", lw=1.5)
for x, y, label in ahead:
    axes.annotate(label, (x, y), xytext=(-4, 2), textcoords="offset points", fontsize=8, ha="right")
for group, colour in COLOURS.items():
    axes.plot([], [], "o-", color=colour, label=group)
axes.plot([], [], color="black", label="no other way beats it in both")
axes.set(xscale="log", xlabel="error of the background", ylabel="success", title=found.title)
axes.set_xlim(left=0.002)
axes.legend(frameon=False, loc="upper left")
path = Path("docs/images/pareto.png")
plots.save(figure, path, dpi=200)
print(path)
