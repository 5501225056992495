"""The HTML report of a diagnosis: the budget of each image, the images, and the amplification along time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._internal import html, plots
from . import CAUSES, Diagnosis
from ._shown import shown
from .comparison_figure import stacked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "codec": "#8c8c8c",
    "guidance": "#b07aa1",
    "inversion": "#4e79a7",
    "amplification": "#e15759",
    "regeneration": "#f28e2b",
    "rounding": "#59a14f",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>steadyflow: diagnosis of {{ what }}</title>
<style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
<p><strong>{{ cause }}.</strong> {{ advice }}</p>
<pre>{{ call }}</pre>
{% if verified %}<p>{{ verified }}</p>{% endif %}
{% if change %}<p>{{ change }}</p>{% endif %}
<h2>Where the error comes from</h2>
{% if budget %}<figure><img alt="Stacked bars: for each image, the terms of its error, with the measured error as a
mark" src="data:image/png;base64,{{ budget }}"><figcaption>The terms of the budget for each image, in the
image's units (root mean square): parts below zero work against the others, and an amplification below zero is a
contraction. The mark is the measured error; where it
is hollow, the linear theory does not hold for that image and the budget is a guide only.</figcaption></figure>
<h2>How an error in the latent grows on the way down</h2>
<figure><img alt="Norm of the inversion error carried along the generation, against path time, one line per image"
src="data:image/png;base64,{{ growth }}"><figcaption>The inversion error carried along by the exact generation map,
relative to its size in the latent. Above one the model amplifies it.</figcaption></figure>
{% else %}<p>The run did not stay finite, so that there is no budget.</p>{% endif %}
{% for one in shown %}<figure><img class="digits" alt="{{ one.alt }}"
src="data:image/png;base64,{{ one.png }}">
{% if one.film and one.film.tag == "video" %}<video controls loop muted playsinline title="{{ one.alt }}"
src="data:{{ one.film.type }};base64,{{ one.film.data }}"></video>
{% elif one.film %}<img alt="{{ one.alt }}, as a film"
src="data:{{ one.film.type }};base64,{{ one.film.data }}">{% endif %}
{% for sound in one.sounds %}<audio controls title="{{ one.alt }}, {{ loop.index0 }}"
src="data:audio/wav;base64,{{ sound }}"></audio>
{% endfor %}<figcaption>{{ one.alt }}</figcaption></figure>
{% endfor %}
<h2>Image by image</h2>
<div class="scroll"><table class="sortable">
<thead><tr>{% for head in heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
<h2>In figures</h2>
<pre>{{ summary }}</pre>
<h2>What was tried</h2>
<div class="scroll"><table class="sortable">
<thead><tr><th scope="col">call</th><th scope="col">median error</th></tr></thead>
<tbody>{% for call, error in tried %}<tr><td><code>{{ call }}</code></td><td>{{ error }}</td></tr>{% endfor %}</tbody>
</table></div>
<p>steadyflow {{ version }}.</p>
<script>{{ script }}</script>
</body></html>
"""


def write(found: Diagnosis, path: str | Path) -> Path:
    """Write the report to one self-contained HTML file.

    Args:
        found: The diagnosis.
        path: The file.

    Returns:
        The path.

    Raises:
        MissingExtraError: jinja2, matplotlib or Pillow is not installed.
        StorageError: The file cannot be written.
    """
    finite = bool(found.measured.isfinite().all())
    verified = ""
    if found.verified is not None:
        after = found.verified.error.median().item()
        verified = f"Verified on all images: median error {after:.3g}, {found.verified.gain:.3g} times lower."
    edits, change = found.target is not None, ""
    if finite and found.budget.change is not None:
        share = (found.measured / found.budget.change.clamp_min(1e-300)).median().item()
        change = (
            f"An exact solver would change the images by {found.budget.change.median().item():.3g} (median); that is "
            f"the edit itself. What the solver adds to it is {share:.2g} of that."
        )
    tried = sorted(found.recommendation.tried.items(), key=lambda entry: entry[1])
    return html.write(
        path,
        _PAGE,
        what="an edit" if edits else "a reconstruction",
        title="How far the edit is from an exact solver's" if edits else "Why the reconstruction is off",
        change=change,
        cause=CAUSES[found.cause],
        advice=found.recommendation.text.partition(". ")[2],
        call=found.recommendation.call,
        verified=verified,
        budget=_picture(found, draw_budget, (9.0, 4.0)) if finite else "",
        growth=_picture(found, draw_growth, (7.5, 3.6)) if finite else "",
        shown=shown(found) if finite else [],
        heads=[
            "image",
            *([] if found.budget.change is None else ["change"]),
            "measured",
            "sum",
            *found.terms,
            "linear",
        ],
        rows=_rows(found),
        summary=found.summary(),
        tried=[(call, f"{error:.2e}") for call, error in tried],
    )


def _rows(found: Diagnosis) -> list[list[str]]:
    """The budget of each image as text."""
    columns = [found.measured, found.total, *found.terms.values()]
    columns = columns if found.budget.change is None else [found.budget.change, *columns]
    return [
        [str(k), *(f"{column[k].item():.3g}" for column in columns), "yes" if bool(found.linear[k]) else "no"]
        for k in range(len(found.measured))
    ]


def draw_budget(found: Diagnosis, axes: Axes) -> None:
    """Draw the terms of the budget as stacked bars, one per image; parts below zero are stacked downwards.

    Args:
        found: The diagnosis.
        axes: The matplotlib axes to draw on.
    """
    rows = range(len(found.measured))
    stacked(found.terms, _COLOURS, axes)
    for linear, fill in ((True, "black"), (False, "none")):
        chosen = [k for k in rows if bool(found.linear[k]) == linear]
        if chosen:
            label = "measured" if linear else "measured, not linear"
            axes.plot(chosen, np.asarray(found.measured[chosen]), "D", color="black", mfc=fill, ms=4, label=label)
    axes.axhline(0, color="#444", lw=0.6)
    axes.set(xlabel="image", ylabel="error (rms)")
    axes.set_xticks(rows)
    axes.legend(frameon=False, fontsize=8, ncol=6, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def draw_growth(found: Diagnosis, axes: Axes) -> None:
    """Draw how the inversion error grows on its way down, relative to its size in the latent.

    Args:
        found: The diagnosis.
        axes: The matplotlib axes to draw on.
    """
    axes.plot(np.asarray(found.budget.times), np.asarray(found.budget.growth), lw=0.7, alpha=0.6, color="#e15759")
    axes.axhline(1.0, color="#444", lw=0.6)
    axes.set(yscale="log", xlabel="path time (generation runs to the left)", ylabel="growth")


def _picture(found: Diagnosis, draw: Callable[[Diagnosis, Axes], None], size: tuple[float, float]) -> str:
    figure = plots.figure(*size)
    draw(found, figure.subplots())
    return html.png(figure)
