"""One HTML page of text and figures, made by nbconvert: a notebook that runs leaves it behind."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogvideo.io import write_whole


def write_report(path: str | Path, title: str, parts: Sequence[Any]) -> Path:
    """Write a page of parts, each Markdown or a matplotlib figure, whole or not at all.

    Pictures are inside of it; the label of a figure describes it to those who cannot see it.
    """
    import nbformat
    from nbconvert import HTMLExporter

    cells = [_cell(nbformat.v4, part) for part in [f"# {title}", *parts]]
    book = nbformat.v4.new_notebook(cells=cells, metadata={"title": title})
    exporter = HTMLExporter(
        exclude_input=True, require_js_url="", jquery_url="", mathjax_url=""
    )  # nothing from outside
    page, _ = exporter.from_notebook_node(book)
    return write_whole(path, page)


def _cell(v4: Any, part: Any) -> Any:
    if isinstance(part, str):
        return v4.new_markdown_cell(part)
    picture = io.BytesIO()
    part.savefig(picture, format="png", dpi=110)
    source = base64.b64encode(picture.getvalue()).decode()
    return v4.new_markdown_cell(f"![{part.get_label()}](data:image/png;base64,{source})")
