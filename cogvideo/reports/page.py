"""One self-contained HTML page that plays clips."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from cogvideo.data.video import Video
from cogvideo.errors import CogVideoError
from cogvideo.reports import html


def write_page(
    path: str | Path, sections: Sequence[tuple[str, Video | Sequence[Video]]], about: str = ""
) -> Path:
    """Write a page that plays every clip above its prompt and settings, section by section.

    The first section's title is the page's, with `about` below it.
    """
    if not sections:
        raise CogVideoError(f"{path} would be a page without sections: give at least one (title, videos).")
    parts = [html.paragraph(about)]
    for number, (title, videos) in enumerate(sections):
        cards = map(_card, [videos] if isinstance(videos, Video) else videos)
        parts += [html.heading(title)] if number else []
        parts += ["<section>", *cards, "</section>"]
    return html.write(path, sections[0][0], parts, style="gallery")


def _card(video: Video) -> str:
    settings = {name.replace("_", " "): value for name, value in video.settings.items() if name != "prompt"}
    facts = [f"{len(video)} frames", f"{video.fps:g} fps", *(f"{name} {v}" for name, v in settings.items())]
    caption = f"{escape(str(video.settings.get('prompt', '')))}<small>{escape(' · '.join(facts))}</small>"
    return f"<figure>{video.video_tag()}<figcaption>{caption}</figcaption></figure>"
