"""The page as a browser gets it: everything inside, prompts escaped, nothing fetched."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from cogvideo.data.video import Video
from cogvideo.errors import CogVideoError
from cogvideo.reports.page import write_page

VOID = {"meta", "br", "img", "link"}


class Elements(HTMLParser):
    """All elements with their attributes, the text between, and whether every one is closed."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.open, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def clip(prompt: str, **settings) -> Video:
    return Video(np.full((5, 32, 48, 3), 90, np.uint8), 2.0, {"prompt": prompt} | settings)


def test_page_needs_nothing_else(tmp_path):
    clips = [clip("a lion & <b>more</b>", seconds=4.0, seed=7), clip('一只狮子摇响一个铃铛 "quoted"')]
    sections = [("Clips <1>", clips), ("Alone", clip("a bear eats a cake"))]
    page = write_page(tmp_path / "index.html", sections, "Made & shown").read_text("utf-8")
    elements = Elements(page)
    assert elements.open == []
    for words in (
        "Clips <1>", "Alone", "Made & shown", "a lion & <b>more</b>",
        '一只狮子摇响一个铃铛 "quoted"', "a bear eats a cake",
        "5 frames · 2 fps · seconds 4.0 · seed 7",
    ):  # fmt: skip
        assert words in elements.text
    tags = [tag for tag, _ in elements.found]
    assert (tags.count("video"), tags.count("b"), tags.count("script")) == (3, 0, 0)
    outside = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert len(outside) == 3 and all(value.startswith("data:video/mp4;base64,") for value in outside)
    assert not re.search(r"https?:|url\(|@import", page)
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]


def test_refusals_leave_nothing(tmp_path):
    with pytest.raises(CogVideoError, match="cannot be written .*: choose another place"):
        write_page(tmp_path / "missing" / "index.html", [("Clips", clip("a"))])
    with pytest.raises(CogVideoError, match="without sections"):
        write_page(tmp_path / "index.html", [])
    assert list(tmp_path.iterdir()) == []
