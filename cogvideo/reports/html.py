"""What self-contained pages are made of: text, tables, figures, clips side by side; and the page itself.

No scripts, nothing loaded from elsewhere. Printed on A4, tables keep their rows whole and strips of frames
stand for clips.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cogvideo.data.video import Video
from cogvideo.io import html_page, write_whole

STRIP_FRAMES = 5  # of a clip when it is printed
SCREEN = 1.3  # how much larger than on paper figures are: letters of 9 points there become those of the text
POLICY = "media-src data:; img-src data:; style-src 'unsafe-inline'"


def number(value: Any, digits: int = 4) -> str:
    """A table's value as text: numbers with so many digits, whole ones whole; a dash for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, float, np.integer, np.floating)):
        whole = float(value).is_integer() and abs(value) < 1e9
        return f"{value:.0f}" if whole else f"{value:.{digits}g}"
    return str(value)


def element(tag: str, text: str, style: str = "") -> str:
    """Text as an HTML element. style: its class."""
    return f'<{tag} class="{style}">{escape(text)}</{tag}>' if style else f"<{tag}>{escape(text)}</{tag}>"


heading, subheading, paragraph, preformatted = (partial(element, tag) for tag in ("h2", "h3", "p", "pre"))


def listing(items: Sequence[str]) -> str:
    return f"<ul>{''.join(element('li', item) for item in items)}</ul>"


def markdown(text: str) -> str:
    """Markdown as HTML; HTML in it is shown as text."""
    import mistune

    return str(mistune.create_markdown(escape=True, plugins=["table"])(text))


def table(
    name: str, header: Sequence[str], rows: Sequence[Sequence[Any]], *, text: Sequence[int] = (0,)
) -> str:
    """A table with the id `name`. Cells are values (see `number`), or (value, class) to be coloured.

    text: columns that hold words and are aligned left.
    """

    def cell(column: int, value: Any, tag: str = "td") -> str:
        value, *classes = value if isinstance(value, tuple) else (value,)
        return element(tag, number(value), " ".join(classes + ["text"] * (column in text)))

    head = [cell(column, title, "th") for column, title in enumerate(header)]
    return _table(f'id="{name}"', head, [[cell(i, value) for i, value in enumerate(row)] for row in rows])


def clips(rows: Mapping[str, Sequence[Video | None]], header: Sequence[str]) -> str:
    """Clips side by side: a row for each prompt, a column for each title of the header."""
    head = [element("th", title) for title in ["", *header]]
    lines = [[element("td", prompt), *map(_clip, videos)] for prompt, videos in rows.items()]
    return _table('class="clips"', head, lines)


def _table(attribute: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    head_row = f"<thead><tr>{''.join(head)}</tr></thead>"
    return f'<div class="wide"><table {attribute}>{head_row}\n<tbody>\n{body}\n</tbody></table></div>'


def _clip(video: Video | None) -> str:
    if video is None:
        return "<td>–</td>"
    strip = io.BytesIO()
    video.contact_sheet(STRIP_FRAMES, gap=1).save(strip, format="png", optimize=True)
    return (
        f'<td><video autoplay loop muted playsinline src="{video.mp4_data_uri()}"></video>'
        f'<img alt="{STRIP_FRAMES} frames" src="{_uri("image/png", strip)}"></td>'
    )


def _uri(kind: str, file: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def figure(drawn: Any, caption: str = "") -> str:
    """A matplotlib figure as SVG, its label as the alternative text. Closes the figure.

    Screens show it SCREEN times as large as it is; on narrower ones and on paper it fills the width.
    """
    import matplotlib.pyplot as plt

    drawing = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "cogvideo"}):
        drawn.savefig(drawing, format="svg", metadata={"Date": None})
    plt.close(drawn)
    words = element("figcaption", caption) if caption else ""
    source, width = _uri("image/svg+xml", drawing), SCREEN * drawn.get_figwidth()
    label = escape(drawn.get_label())
    return f'<figure><img alt="{label}" style="width: {width:.1f}in" src="{source}">{words}</figure>'


def write(path: str | Path, title: str, parts: Sequence[str], style: str = "report") -> Path:
    """Write a page of these parts, whole or not at all. style: "report", or "gallery" (page.write_page)."""
    css = Path(__file__).with_name(f"{style}.css").read_text("utf-8")
    body = "\n".join([element("h1", title), *parts])
    return write_whole(path, html_page(title, body, css, POLICY))
