"""The HTML report of the demonstration: one file, pictures inside, nothing fetched."""

from pathlib import Path
from typing import Any

from torch import Tensor

from steadyflow import grids, noise
from steadyflow._internal import html, plots
from steadyflow.diagnostics import stability_region, stiffness
from steadyflow.models import load

from .demo import Study, table

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>steadyflow: round trips and edits of real digits</title>
<style>{{ style }}</style></head><body>
<h1>Round trips and edits of {{ n }} held-out real digits</h1>
<p>Each digit was inverted under its own label and generated again: the <em>error</em> is the root mean square of
what came back less what was sent, on a scale from -1 to 1. From the same latent it was generated under another
label with guidance w: <em>edited</em> is the share that a classifier of real digits takes for the target,
<em>kept</em> the median distance to the source. Evaluations are counted each way.</p>
<h2>Figures</h2>
<div class="scroll"><table class="sortable">
<thead><tr>{% for head in heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in cells %}<tr{% if loop.index0 % budgets == 0 %} class="first"{% endif %}>
{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
<h2>Error against evaluations</h2>
<figure><img alt="Reconstruction error of each solver against evaluations each way, both axes logarithmic"
src="data:image/png;base64,{{ curves }}"><figcaption>Median over the digits; the bars reach the 95th
percentile. Lower is better.</figcaption></figure>
<h2>Stability</h2>
<figure><img alt="Regions of the complex plane in which each solver is stable, with marks where the digits model puts z"
src="data:image/png;base64,{{ regions }}"><figcaption>Where a step does not amplify (dashed: scaled to one evaluation).
The ticks above the axis show where the model puts z = step times eigenvalue on a grid of 12 steps, plainly and under
guidance 7.5: a solver whose region does not hold them amplifies errors. The exactly reversible ones contract almost
nothing.</figcaption></figure>
<h2>Pictures, at {{ nfe }} evaluations each way</h2>
<figure><img class="digits" alt="{{ source.alt }}" src="data:image/png;base64,{{ source.png }}">
<figcaption>{{ source.caption }}</figcaption></figure>
<div class="compare" data-label="Solver">
{% for name, strips in solvers %}<section data-choice="{{ name }}"><h3>{{ name }}</h3>
{% for strip in strips %}<figure><img class="digits" alt="{{ strip.alt }}" src="data:image/png;base64,{{ strip.png }}">
<figcaption>{{ strip.caption }}</figcaption></figure>
{% endfor %}</section>
{% endfor %}</div>
<p>steadyflow {{ version }}, {{ seconds }} seconds.</p>
<script>{{ script }}</script>
</body></html>
"""


def write(result: Study, path: str | Path) -> Path:
    """Write the report of a study to one self-contained HTML file and return its path."""
    heads, cells = table(result)
    return html.write(
        path,
        _PAGE,
        n=len(result.source),
        heads=heads,
        cells=cells,
        budgets=len({row.nfe for row in result.rows}) or 1,
        curves=_curves(result),
        regions=_regions(),
        nfe=result.nfe_shown,
        source=_strip("Source: digits that the model has not seen.", "source", result.source),
        solvers=[(name, _strips(result, name)) for name in result.shown],
        seconds=f"{result.seconds:.0f}",
    )


def _strip(caption: str, name: str, x: Tensor, count: int = 16) -> dict[str, str]:
    return {"alt": f"{len(x[:count])} digits, {name}", "caption": caption, "png": html.strip(x[:count], columns=8)}


def _strips(result: Study, solver: str, count: int = 16) -> list[dict[str, str]]:
    wanted = " ".join(str(int(v)) for v in result.targets[:count])
    shown = result.shown[solver]
    latent = shown.latent / shown.latent.abs().max()
    strips = [
        _strip("Latent: what the inversion found, scaled to the picture's range.", f"latent of {solver}", latent),
        _strip("Reconstruction from the latent.", f"reconstruction by {solver}", shown.reconstruction),
    ]
    for w, x in shown.edits.items():
        caption = f"Edited at guidance {w:g}, towards {wanted}."
        strips.append(_strip(caption, f"edit by {solver} at guidance {w:g}", x))
    return strips


def draw_curves(result: Study, axes: Any) -> None:
    """Draw reconstruction error against evaluations on matplotlib axes, one line per solver."""
    for name in dict.fromkeys(row.solver for row in result.rows):
        rows = [row for row in result.rows if row.solver == name]
        nfe, median = [row.nfe for row in rows], [row.error_median for row in rows]
        above = [row.error_p95 - row.error_median for row in rows]
        axes.errorbar(nfe, median, yerr=[[0.0] * len(rows), above], marker="o", capsize=3, label=name)
    ticks = sorted({row.nfe for row in result.rows})
    axes.set(xscale="log", yscale="log", xlabel="evaluations each way", ylabel="reconstruction error (rms)")
    axes.minorticks_off()
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _curves(result: Study) -> str:
    figure = plots.figure(7.5, 4.2)
    draw_curves(result, figure.subplots())
    return html.png(figure)


def _regions() -> str:
    """Draw the stability map, with the digits model's own z in the noise coordinates for eight drawn digits."""
    model = load("digits").with_condition(list(range(8)))
    grid = grids.make("quadratic", model.schedule, 12)
    start = noise.initial(0, range(8), (1, 8, 8)) * model.schedule.sigma(grid.times[0])
    places = {
        f"w = {w:g}": stiffness(model.with_guidance(w), start, grid, solver="ddim", iterations=6) for w in (1.0, 7.5)
    }
    names = ["ddim", "midpoint", "rk4", "ees25", "ees27", "rex-euler", "rex-midpoint", "edict", "bdia", "alf"]
    return html.png(stability_region.figure(names, stiffness=places, resolution=51))
