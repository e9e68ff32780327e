"""One self-contained HTML page that plays clips: no scripts, nothing loaded from elsewhere."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from cogvideo.data.video import Video
from cogvideo.errors import CogVideoError
from cogvideo.io import write_whole

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; media-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ margin: 0; padding: 2.5rem clamp(1rem, 4vw, 4rem); background: #f6f5f2; color: #222; font: 16px/1.5 system-ui, sans-serif }}
h1 {{ margin: 0; font-size: 1.6rem }}
h2 {{ margin: 2.5rem 0 1rem; font-size: 1.1rem }}
p, small {{ color: #5c5c5c }}
p {{ max-width: 46rem; margin: .3rem 0 0 }}
section {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: 1.5rem; margin-top: 2rem }}
figure {{ margin: 0; overflow: hidden; border-radius: .6rem; background: #fff; box-shadow: 0 1px 4px #0003 }}
figure video {{ display: block; width: 100% !important; background: #000 }}
figcaption {{ padding: .8rem 1rem 1rem; font-weight: 600; overflow-wrap: anywhere }}
small {{ display: block; font-weight: 400 }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_page(
    path: str | Path, sections: Sequence[tuple[str, Video | Sequence[Video]]], about: str = ""
) -> Path:
    """Write a page that plays every clip above its prompt and settings, section by section; whole or not at all.

    The first section's title is the page's, with `about` below it. Raises CogVideoError for no sections and for a place
    that cannot be written.
    """
    path = Path(path)
    if not sections:
        raise CogVideoError(f"{path} would be a page without sections: give at least one (title, videos).")
    parts = []
    for number, (title, videos) in enumerate(sections):
        heading = (
            f"<h2>{escape(title)}</h2>" if number else f"<h1>{escape(title)}</h1>\n<p>{escape(about)}</p>"
        )
        cards = map(_card, [videos] if isinstance(videos, Video) else videos)
        parts.append(f"{heading}\n<section>\n{chr(10).join(cards)}\n</section>")
    return write_whole(path, PAGE.format(title=escape(sections[0][0]), body="\n".join(parts)))


def _card(video: Video) -> str:
    settings = {name.replace("_", " "): value for name, value in video.settings.items() if name != "prompt"}
    facts = [
        f"{len(video)} frames",
        f"{video.fps:g} fps",
        *(f"{name} {value}" for name, value in settings.items()),
    ]
    caption = f"{escape(str(video.settings.get('prompt', '')))}<small>{escape(' · '.join(facts))}</small>"
    return f"<figure>{video.video_tag()}<figcaption>{caption}</figcaption></figure>"
