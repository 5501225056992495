"""HTML reports: self-contained files with their pictures inside, which fetch nothing."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .._version import __version__
from ..errors import MissingExtraError
from . import files, sounds, video_writing
from .imports import needing
from .pictures import pillow, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #4c5a6a; --line: #dde3ea; --edge: #9aa7b5; --box: #f4f6f8 }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr.first td { border-top: 2px solid var(--edge) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--box); padding: .6rem }
figure { margin: 1rem 0 } figcaption { color: var(--soft); font-size: .92rem }
img, video { max-width: 100%; height: auto } img.digits { image-rendering: pixelated; width: 100% }
video { display: block; min-width: min(100%, 20rem) } audio { display: block; margin: .3rem 0 }
.sorts { cursor: pointer; user-select: none } .sorts:focus-visible { outline: 2px solid #4e79a7 }
.choices { display: flex; gap: 1rem; flex-wrap: wrap; margin: .5rem 0 }
.choices select { font: inherit; padding: .2rem }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)) }
section[hidden] { display: none }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #dde3ea; --soft: #a9b4c0; --line: #39424e; --edge: #66727f; --box: #1d242d }
  body { background: #12171d } figure img:not(.digits) { background: #fff; border-radius: 4px } }
@media print { .choices { display: none } section[hidden] { display: block !important } .pair { display: block }
  body { margin: 0; max-width: none; font-size: 11pt } figure, tr { break-inside: avoid }
  .scroll { overflow: visible } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, k) => {
    head.classList.add('sorts'); head.tabIndex = 0; head.title = 'sort by ' + head.textContent;
    const sort = () => {
      const falling = head.getAttribute('aria-sort') === 'ascending';
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', falling ? 'descending' : 'ascending');
      const value = row => { const text = row.cells[k].textContent.trim(), n = parseFloat(text);
                             return Number.isNaN(n) ? text : n; };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = value(a), y = value(b), less = x < y ? -1 : x > y ? 1 : 0;
        return falling ? -less : less; });
      rows.forEach(row => { row.classList.remove('first'); table.tBodies[0].append(row); });
    };
    head.addEventListener('click', sort);
    head.addEventListener('keydown', event => { if (event.key === 'Enter') sort(); });
  });
}
for (const box of document.querySelectorAll('.compare')) {
  const parts = [...box.querySelectorAll('section[data-choice]')];
  if (parts.length < 2) continue;
  const bar = document.createElement('div'); bar.className = 'choices';
  const pair = document.createElement('div'); pair.className = 'pair';
  const pick = [0, parts.length - 1].map((first, side) => {
    const label = document.createElement('label'), select = document.createElement('select');
    label.textContent = box.dataset.label + (side ? ' beside: ' : ': ');
    parts.forEach((part, k) => select.add(new Option(part.dataset.choice, k, k === first, k === first)));
    label.append(select); bar.append(label); return select;
  });
  const show = () => {
    const chosen = pick.map(select => parts[select.value]);
    parts.forEach(part => { part.hidden = !chosen.includes(part); });
    pair.append(...new Set([...chosen, ...parts]));
  };
  pick.forEach(select => select.addEventListener('change', show));
  box.prepend(bar, pair); show();
}
"""


def write(path: str | Path, template: str, **values: object) -> Path:
    """Render a jinja2 template into a file.

    The template also sees `style`, `script` and `version`. The script lets one sort tables of class "sortable", and
    choose which two of the sections in a div of class "compare" to see side by side; without it all are shown.

    Args:
        path: The file.
        template: The template.
        **values: What the template sees.

    Returns:
        The path.

    Raises:
        MissingExtraError: jinja2 is not installed.
        StorageError: The file cannot be written.
    """
    with needing("jinja2", "jinja2", "markupsafe", extra="plots", purpose="the HTML report"):
        import jinja2
        import markupsafe  # which jinja2 escapes by
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    ours = {"style": markupsafe.Markup(_STYLE), "script": markupsafe.Markup(_SCRIPT), "version": __version__}
    html = environment.from_string(template).render(**ours, **values)
    files.write_text(path, html)
    return Path(path)


def png(figure: Figure) -> str:
    """A matplotlib figure as a PNG in base64 text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def strip(x: Tensor, width: int = 1024, columns: int | None = None) -> str:
    """Arrange images on one PNG in base64 text.

    Args:
        x: Images in [-1, 1], shape (B, 1 or 3, h, w).
        width: About how many pixels wide the PNG is to be.
        columns: The number of images in a row; all by default.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    image_module = pillow()
    pixels = sheet(x, columns=columns or len(x))
    picture = image_module.fromarray(pixels)
    zoom = max(1, round(width / pixels.shape[1]))
    picture = picture.resize((pixels.shape[1] * zoom, pixels.shape[0] * zoom), image_module.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def film(x: Tensor, fps: float) -> dict[str, str]:
    """Arrange videos side by side on one that a browser plays: an MP4, or an animated PNG where PyAV is not installed.

    Args:
        x: Videos in [-1, 1], shape (B, 1 or 3, F, h, w).
        fps: Their frames per second.

    Returns:
        The HTML element ("tag"), the media type ("type"), and the file in base64 text ("data").

    Raises:
        InputError: x has another shape.
        MissingExtraError: Neither PyAV nor Pillow is installed.
    """
    try:
        return {"tag": "video", "type": "video/mp4", "data": _text(video_writing.mp4(x, fps))}
    except MissingExtraError:
        first, *rest = map(pillow().fromarray, video_writing.tiled(x))
        buffer = io.BytesIO()
        first.save(buffer, "PNG", save_all=True, append_images=rest, duration=1000.0 / fps, loop=0)
        return {"tag": "img", "type": "image/png", "data": _text(buffer.getvalue())}


def wav(x: Tensor, rate: int) -> str:
    """One sound as a WAV in base64 text.

    Args:
        x: The sound in [-1, 1], shape (channels, samples).
        rate: Its sample rate in Hz.

    Raises:
        InputError: x has another shape.
        MissingExtraError: SciPy is not installed.
    """
    return _text(sounds.wav(x, rate))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
