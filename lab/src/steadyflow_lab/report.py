"""The HTML report of the demonstration: one file, pictures inside, nothing fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from steadyflow._internal import html, plots
from steadyflow._internal.pictures import sheet
from steadyflow.diagnostics import CAUSES, Diagnosis
from steadyflow.diagnostics.report import draw_budget

from .demo import FINE, Study, sentence, table, title

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>steadyflow: {{ title }}</title>
<style>{{ style }}
table.pictures th, table.pictures td { border: 0; padding: .2rem; text-align: center; white-space: normal;
  vertical-align: bottom; font-weight: normal }
table.pictures th[scope=row] { vertical-align: middle; text-align: left }
table.pictures img { display: block; width: clamp(4.5rem, 12vw, 6.6rem); max-width: none }</style></head><body>
<h1>{{ title }}</h1>
<p>{{ sentence }}</p>
<figure><div class="scroll"><table class="pictures">
<thead><tr><td></td>{% for name in columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, row in overview %}<tr><th scope="row">{{ name }}</th>{% for one in row %}<td>{% if one %}<img
class="digits" alt="{{ one.alt }}" src="data:image/png;base64,{{ one.png }}">{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div><figcaption>One picture, {{ words }}. Every solver had {{ nfe }} evaluations
of the network each way{% if fewer %}, the tuned one {{ fewer }}{% endif %}; w is the guidance.</figcaption></figure>
<h2>Why DDIM does not return the picture, and what does</h2>
{% if cause %}<p><strong>{{ cause }}.</strong> {{ advice }}</p>
<pre>{{ call }}</pre>
<p>{{ verified }}</p>
<figure><img alt="Stacked bars: for each picture, the terms of its error, with the measured error as a mark"
src="data:image/png;base64,{{ budget }}"><figcaption>The error of DDIM's round trip for {{ diagnosed }}, divided into
what causes it: steps up that miss the exact latent (inversion), what the way down makes of that (amplification), steps
down (regeneration), and rounding. In the units of the model's samples.</figcaption></figure>
{% else %}<p>Not asked for (--no-diagnosis).</p>{% endif %}
<h2>Figures</h2>
<div class="scroll"><table class="sortable">
<thead><tr>{% for head in heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in cells %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody></table>
</div>
<p>{% if several %}Medians over {{ n }}, in{% else %}In{% endif %} per cent of the range of a picture (root mean
square). <em>round trip</em>: the picture that came back, less the picture as the model's decoder shows it.
<em>edit</em>: the edit, less that of a fine solve (RK4 with {{ fine }} evaluations each way), at each guidance.
{% if judged %}<em>done</em>: how many edits a classifier of held-out pictures takes for what was asked.
<em>around</em>: what changed outside of the pixels that the edit concerns; guidance itself changes some of that, with
any solver.{% endif %} <em>max |x|</em>: the largest number of any state on the way.</p>
<h2>All pictures</h2>
<div class="compare" data-label="Solver">
{% for name, strips in solvers %}<section data-choice="{{ name }}"><h3>{{ name }}</h3>
{% for strip in strips %}<figure><img class="digits" style="max-width: {{ strip.wide }}rem" alt="{{ strip.alt }}"
src="data:image/png;base64,{{ strip.png }}">
<figcaption>{{ strip.caption }}</figcaption></figure>
{% endfor %}</section>
{% endfor %}</div>
<p>steadyflow {{ version }}, {{ seconds }} seconds.</p>
<script>{{ script }}</script>
</body></html>
"""


def write(result: Study, path: str | Path) -> Path:
    """Write the report of a demonstration to one self-contained HTML file.

    Args:
        result: What the demonstration gave.
        path: The file.

    Returns:
        The path.
    """
    heads, cells = table(result)
    n, calls = len(result.pictures), result.rows[0].nfe
    return html.write(
        path,
        _PAGE,
        title=title(result),
        sentence=sentence(result),
        columns=["picture", "fine solve", *result.shown],
        overview=overview(result),
        words=result.subject.words[chosen(result)],
        nfe=calls,
        fewer=", ".join(str(row.nfe) for row in result.rows if row.nfe != calls),
        heads=heads,
        cells=cells,
        n="one picture" if n == 1 else f"{n} pictures",
        several=n > 1,
        fine=FINE * calls,
        judged=result.subject.judge is not None,
        solvers=[(name, _strips(result, name)) for name in result.shown],
        seconds=f"{result.seconds:.0f}",
        **_diagnosed(result.diagnosis),
    )


def _diagnosed(found: Diagnosis | None) -> dict[str, Any]:
    """What the page says of the diagnosis; empty texts without one."""
    names = ("cause", "advice", "call", "verified", "budget", "diagnosed")
    if found is None:
        return dict.fromkeys(names, "")
    figure = plots.figure(7.5, 3.4)
    draw_budget(found, figure.subplots())
    tried = ""
    if found.verified is not None:
        after = found.verified.error.median().item()
        tried = f"Tried: the median error is {after:.2g} then, {found.verified.gain:.0f} times lower."
    n = len(found.measured)
    texts = (CAUSES[found.cause], found.recommendation.text.partition(". ")[2], found.recommendation.call, tried)
    return dict(zip(names, (*texts, html.png(figure), "one picture" if n == 1 else f"{n} pictures"), strict=True))


def chosen(result: Study) -> int:
    """The picture that is shown first: the one whose strong edit the exactly reversible solver spoils most.

    Of several that are equally spoiled it is the first.

    Args:
        result: What the demonstration gave.
    """
    w = result.strongest
    exact, near = (result.shown[name].edits[w] for name in ("rex, exactly reversible", "ees25, near-reversible"))
    fine = result.fine.edits[w]
    off = [(x - fine).square().flatten(1).mean(1) for x in (exact, near)]
    return int((off[0] - off[1]).argmax())


def draw_overview(result: Study, figure: Any, k: int) -> None:
    """Draw one picture, what each solver brings back, and its edits, on a matplotlib figure.

    Args:
        result: What the demonstration gave.
        figure: The figure, of about 2 by 1 per solver.
        k: Which of the pictures.
    """
    names = ["a fine solve", *result.shown]
    columns = ["picture", "came back", *(f"edited, w = {w:g}" for w in result.guidances)]
    grid = figure.subplots(len(columns), len(names), squeeze=False)
    for column, name in enumerate(names):
        made = result.fine if name == names[0] else result.shown[name]
        pictures = [result.pictures, made.back, *made.edits.values()]
        for row, picture in enumerate(pictures):
            axes = grid[row][column]
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0 and column > 0:
                axes.set_axis_off()
                label = name.replace(", ", ",\n").replace(" for", "\nfor")
                axes.text(0.5, 0.1, label, ha="center", va="bottom", fontsize=9)
                continue
            axes.imshow(sheet(picture[k : k + 1], columns=1), cmap="gray", interpolation="nearest")
            if row == 1 and column == 0:
                axes.set_title(name, fontsize=9)
            if column == 0:
                axes.set_ylabel(columns[row], fontsize=9)


def overview(result: Study) -> list[tuple[str, list[dict[str, str] | None]]]:
    """One picture, what each solver brings back, and its edits: lines of PNGs in base64 text, with their names.

    Args:
        result: What the demonstration gave.
    """
    k, made = chosen(result), [("a fine solve", result.fine), *result.shown.items()]

    def cell(x: Tensor, alt: str) -> dict[str, str]:
        return {"alt": alt, "png": html.strip(_large(x[k : k + 1]), width=192)}

    back = [cell(shown.back, f"what {name} brings back") for name, shown in made]
    lines: list[tuple[str, list[dict[str, str] | None]]] = [
        ("came back", [cell(result.pictures, "the picture"), *back])
    ]
    for w in result.guidances:
        edits = [cell(shown.edits[w], f"edited by {name} at guidance {w:g}") for name, shown in made]
        lines.append((f"edited, w = {w:g}", [None, *edits]))
    return lines


def _strips(result: Study, solver: str, count: int = 16) -> list[dict[str, str]]:
    shown = result.shown[solver]
    strips = [
        ("The pictures.", "source", result.pictures),
        ("What came back.", f"round trip by {solver}", shown.back),
        *((f"Edited at guidance {w:g}.", f"edits by {solver} at guidance {w:g}", x) for w, x in shown.edits.items()),
    ]
    made = []
    for caption, name, x in strips:
        n = len(x[:count])
        alt, png = f"{n} pictures, {name}", html.strip(_large(x[:count]), columns=min(8, n))
        made.append({"alt": alt, "caption": caption, "png": png, "wide": 8 * min(8, n)})
    return made


def _large(x: Tensor) -> Tensor:
    """Pictures of at most 256 pixels, as many of them are shown."""
    side = max(x.shape[-2:])
    return x if side <= 256 else functional.interpolate(x, scale_factor=256 / side, mode="area")
