"""The parts that reports are made of: text, tables, figures, clips side by side; one HTML page that needs no other file.

No scripts. Printed on A4, tables keep their rows whole and strips of frames stand for clips.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cogvideo.data.video import Video
from cogvideo.io import write_whole

STRIP_FRAMES = 5  # of a clip when it is printed

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; media-src data:; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light }}
body {{ margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 4rem); max-width: 76rem; background: #fff; color: #222;
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif }}
h1 {{ margin: 0 0 .5rem; font-size: 1.7rem; line-height: 1.25 }}
h2 {{ margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #ddd; font-size: 1.2rem }}
p, ul {{ max-width: 52rem; margin: .5rem 0 }}
small, figcaption, .quiet {{ color: #5c5c5c }}
table {{ border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; font-size: .87rem }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }}
th {{ border-bottom: 2px solid #888; vertical-align: bottom }}
th:first-child, td:first-child, .text {{ text-align: left }}
td.text {{ white-space: nowrap }}
#failed td.text {{ white-space: normal; overflow-wrap: anywhere }}
.wide {{ overflow-x: auto }}
.better {{ color: #00684a; font-weight: 600 }}
.worse {{ color: #a63c00; font-weight: 600 }}
pre {{ padding: .8rem 1rem; background: #f4f4f2; font-size: .8rem; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere }}
figure {{ margin: 1rem 0 }}
figure img {{ max-width: 100% }}
.clips td {{ text-align: center; border: 0; padding: .25rem .4rem }}
.clips th {{ text-align: center; border: 0 }}
.clips td:first-child, .clips th:first-child {{ text-align: left; min-width: 8rem; vertical-align: middle }}
.clips video {{ display: block; width: 8rem; margin: auto; background: #000; image-rendering: pixelated }}
.clips img {{ display: none }}
@page {{ size: A4; margin: 14mm 12mm }}
@media print {{
  body {{ padding: 0; max-width: none; font-size: 9.5pt }}
  h1 {{ font-size: 16pt }}
  h2 {{ font-size: 12pt; break-after: avoid }}
  h2 + p {{ break-after: avoid }}
  table {{ font-size: 7.5pt; max-width: 100% }}
  th, td {{ padding: 1.5pt 3.5pt }}
  thead {{ display: table-header-group }}
  tr, figure {{ break-inside: avoid }}
  .wide {{ overflow: visible }}
  pre {{ font-size: 7.5pt }}
  .clips video {{ display: none }}
  .clips img {{ display: block; width: 24mm; margin: auto; image-rendering: pixelated }}
  .clips td:first-child, .clips th:first-child {{ min-width: 18mm }}
}}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def number(value: Any) -> str:
    """A value of a table as it is shown: numbers with four digits, whole ones whole; a dash for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, float, np.integer, np.floating)):
        whole = float(value).is_integer() and abs(value) < 1e9
        return f"{value:.0f}" if whole else f"{value:.4g}"
    return str(value)


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def listing(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def markdown(text: str) -> str:
    """Markdown as HTML; markup inside of it is shown as text, not taken as such."""
    import mistune

    return str(mistune.create_markdown(escape=True, plugins=["table"])(text))


def table(
    name: str, header: Sequence[str], rows: Sequence[Sequence[Any]], *, text: Sequence[int] = (0,)
) -> str:
    """A table with the id `name`. Cells are values (see `number`), or (value, class) to be coloured.

    text: columns that hold words and stand on the left.
    """

    def cell(column: int, value: Any) -> str:
        value, *classes = value if isinstance(value, tuple) else (value,)
        classes += ["text"] if column in text else []
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        return f"<td{attribute}>{escape(number(value))}</td>"

    head = "".join(
        f"<th{' class=text' if column in text else ''}>{escape(title)}</th>"
        for column, title in enumerate(header)
    )
    body = "\n".join(f"<tr>{''.join(cell(i, value) for i, value in enumerate(row))}</tr>" for row in rows)
    return f'<div class="wide"><table id="{name}"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def figure(drawn: Any, caption: str = "") -> str:
    """A matplotlib figure as SVG inside of the page; its label tells it to those who cannot see it. Closes the figure."""
    import matplotlib.pyplot as plt

    drawing = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "cogvideo"}):
        drawn.savefig(drawing, format="svg", metadata={"Date": None})
    plt.close(drawn)
    source = base64.b64encode(drawing.getvalue()).decode()
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(drawn.get_label())}" src="data:image/svg+xml;base64,{source}">{words}</figure>'


def clips(rows: Mapping[str, Sequence[Video | None]], header: Sequence[str]) -> str:
    """Clips side by side: a row for each prompt, a column for each title of the header."""
    head = "".join(f"<th>{escape(title)}</th>" for title in ["", *header])
    body = "\n".join(
        f"<tr><td>{escape(prompt)}</td>{''.join(map(_clip, videos))}</tr>" for prompt, videos in rows.items()
    )
    return f'<div class="wide"><table class="clips"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _clip(video: Video | None) -> str:
    if video is None:
        return "<td>–</td>"
    strip = io.BytesIO()
    video.contact_sheet(STRIP_FRAMES, gap=1).save(strip, format="png", optimize=True)
    picture = base64.b64encode(strip.getvalue()).decode()
    source = video.mp4_data_uri()
    return (
        f'<td><video autoplay loop muted playsinline src="{source}"></video>'
        f'<img alt="{STRIP_FRAMES} frames" src="data:image/png;base64,{picture}"></td>'
    )


def write(path: str | Path, title: str, parts: Sequence[str]) -> Path:
    """Write the page, whole or not at all. Raises CogVideoError for a place that cannot be written."""
    return write_whole(
        path, PAGE.format(title=escape(title), body=f"<h1>{escape(title)}</h1>\n" + "\n".join(parts))
    )
