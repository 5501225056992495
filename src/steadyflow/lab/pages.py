"""What the HTML reports share: one self-contained file, pictures inside, nothing fetched."""

import base64
import io
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import files
from .._version import __version__
from ..arrays import sheet
from ..errors import MissingExtraError

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #dde3ea; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr.first td { border-top: 2px solid #9aa7b5 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f6f8; padding: .6rem }
figure { margin: 1rem 0 } figcaption { color: #4c5a6a; font-size: .92rem }
img { max-width: 100%; height: auto } img.digits { image-rendering: pixelated; width: 100% }
"""


def write(path: str | Path, template: str, **values: Any) -> Path:
    """Render a jinja2 template, which also sees `style` and `version`, into a file and return its path.

    Raises `MissingExtraError` without jinja2.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("jinja2", "lab", "the HTML report") from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(template).render(style=_STYLE, version=__version__, **values)
    with files.replacing(path) as part:
        part.write_text(html, encoding="utf-8")
    return Path(path)


def png(figure: Any) -> str:
    """A matplotlib figure as base64 text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def strip(x: Tensor, width: int = 1024) -> str:
    """Images (B, 1 or 3, h, w) side by side as base64 text, each pixel a square, about `width` pixels wide."""
    from PIL import Image

    pixels = sheet(x, columns=len(x))
    picture = Image.fromarray(pixels)
    zoom = max(1, round(width / pixels.shape[1]))
    picture = picture.resize((pixels.shape[1] * zoom, pixels.shape[0] * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
