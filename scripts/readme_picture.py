"""Make the picture of the README, docs/images/roundtrip.png, from the demonstration itself."""

from pathlib import Path

from torch.nn.functional import pad

from steadyflow._internal import plots
from steadyflow.datasets.arrays import sheet
from steadyflow_lab.demo import study
from steadyflow_lab.report import draw_curves

result = study(100)
shown = result.shown["rk4"]
figure = plots.figure(7.6, 3.4)
left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
draw_curves(result, left)
left.set_title("100 unseen digits, there and back", fontsize=11)
count = 8
rows = [
    ("source", result.source),
    ("latent", shown.latent / 3),
    ("back", shown.reconstruction),
    *((f"edit, w = {w:g}", x) for w, x in shown.edits.items() if w < 7),
]
for k, (name, x) in enumerate(rows):
    strip = right.inset_axes((0.28, 1 - (k + 1) / len(rows), 0.72, 0.92 / len(rows)))
    tiles = pad(x[:count], (1, 1, 1, 1), value=1.0)  # white between the pictures
    strip.imshow(sheet(tiles, columns=count), cmap="gray", vmin=0, vmax=255, aspect="equal")
    strip.set_axis_off()
    right.text(0.26, 1 - (k + 0.54) / len(rows), name, ha="right", va="center")
right.set_axis_off()
right.set_title(f"rk4, {result.nfe_shown} evaluations each way", fontsize=11)
path = Path("docs/images/roundtrip.png")
plots.save(figure, path, dpi=200)
print(path)
